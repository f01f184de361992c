"""How well hosts are protected, beside what lists are made of; indices for what had none.

The database itself keeps `agent.protection` true, so that it is so whoever writes: the release
before this one may still run, and knows nothing of it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_GONE = "('offline', 'uninstalled')"

_FILL = f"""
UPDATE agent SET protection = CASE WHEN agent_state IN {_GONE} THEN 'none' ELSE
 (SELECT host_state.protection FROM host_state WHERE host_state.agent_id = agent.agent_id) END
"""

# Of the host that a trigger is for, where its row in `agent` says something else.
_OF_STATE = f"""
UPDATE agent SET protection = CASE WHEN NEW.agent_state IN {_GONE} THEN 'none' ELSE
 (SELECT host_state.protection FROM host_state WHERE host_state.agent_id = NEW.agent_id) END
 WHERE agent_id = NEW.agent_id;
"""
_OF_HOST = f"""
UPDATE agent SET protection = NEW.protection
 WHERE agent_id = NEW.agent_id AND agent_state NOT IN {_GONE};
"""

_SQLITE = (
    f"CREATE TRIGGER agent_protection_new AFTER INSERT ON agent BEGIN {_OF_STATE} END",
    "CREATE TRIGGER agent_protection AFTER UPDATE OF agent_state ON agent"
    f" WHEN NEW.agent_state <> OLD.agent_state BEGIN {_OF_STATE} END",
    f"CREATE TRIGGER host_state_protection_new AFTER INSERT ON host_state BEGIN {_OF_HOST} END",
    "CREATE TRIGGER host_state_protection AFTER UPDATE OF protection ON host_state"
    f" WHEN NEW.protection <> OLD.protection BEGIN {_OF_HOST} END",
)

_POSTGRESQL = (
    # Before the row is written, so that it is written once.
    f"""
    CREATE FUNCTION elkeid_protection_of_state() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF NEW.agent_state IN {_GONE} THEN
        NEW.protection := 'none';
      ELSE
        NEW.protection :=
          (SELECT host_state.protection FROM host_state WHERE agent_id = NEW.agent_id);
      END IF;
      RETURN NEW;
    END $$
    """,
    f"""
    CREATE FUNCTION elkeid_protection_of_host() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN {_OF_HOST} RETURN NULL; END $$
    """,
    "CREATE TRIGGER agent_protection_new BEFORE INSERT ON agent"
    " FOR EACH ROW EXECUTE FUNCTION elkeid_protection_of_state()",
    "CREATE TRIGGER agent_protection BEFORE UPDATE OF agent_state ON agent"
    " FOR EACH ROW WHEN (NEW.agent_state <> OLD.agent_state)"
    " EXECUTE FUNCTION elkeid_protection_of_state()",
    "CREATE TRIGGER host_state_protection_new AFTER INSERT ON host_state"
    " FOR EACH ROW EXECUTE FUNCTION elkeid_protection_of_host()",
    "CREATE TRIGGER host_state_protection AFTER UPDATE OF protection ON host_state"
    " FOR EACH ROW WHEN (NEW.protection <> OLD.protection)"
    " EXECUTE FUNCTION elkeid_protection_of_host()",
)


def upgrade() -> None:
    """Add a column, what keeps it, and indices."""
    op.add_column("agent", sa.Column("protection", sa.String(20)))
    connection = op.get_bind()
    # Before rows are read: a host that changes meanwhile is changed here too.
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(_FILL)
    for name in ("protection", "state", "first_heartbeat_time"):
        op.create_index(f"ix_agent_{name}", "agent", [name, "agent_id"])
    away = sa.text("NOT connected")
    op.create_index(
        "ix_agent_away", "agent", ["agent_id"], sqlite_where=away, postgresql_where=away
    )
