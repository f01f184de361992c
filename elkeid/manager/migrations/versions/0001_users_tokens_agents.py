"""Users, their tokens, and agents with their documents."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "user",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("level", sa.Integer, nullable=False),
        sa.Column("password", sa.String(255), nullable=False),
        sa.Column("avatar", sa.Text, nullable=False, server_default=""),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("password_update_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_user"),
        sa.UniqueConstraint("username", name="uq_user_username"),
    )
    op.create_table(
        "token",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_token"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name="fk_token_user_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_token_user_id", "token", ["user_id"])
    op.create_index("ix_token_expires_at", "token", ["expires_at"])
    op.create_table(
        "agent",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("hostname", sa.Text),
        sa.Column("state", sa.Text),
        sa.Column("agent_state", sa.String(16), nullable=False),
        sa.Column("version", sa.Text),
        sa.Column("platform", sa.Text),
        sa.Column("idc", sa.Text),
        sa.Column("source_ip", sa.Text),
        sa.Column("source_port", sa.Integer),
        sa.Column("connected", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("first_heartbeat_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent"),
        sqlite_with_rowid=False,
    )
    for name in ("hostname", "agent_state", "version", "platform", "idc"):
        op.create_index(f"ix_agent_{name}", "agent", [name, "agent_id"])
    op.create_index("ix_agent_source", "agent", ["source_ip", "source_port", "agent_id"])
    op.create_table(
        "agent_beat",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("last_heartbeat_time", sa.BigInteger, nullable=False),
        sa.Column("live", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("raw_print", sa.BigInteger, nullable=False),
        sa.Column("slow_print", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent_beat"),
        _agents("agent_beat"),
        sqlite_with_rowid=False,
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "agent_hot",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent_hot"),
        _agents("agent_hot"),
        postgresql_with={"fillfactor": 70},
    )
    op.create_table(
        "agent_detail",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent_detail"),
        _agents("agent_detail"),
    )
    op.create_table(
        "agent_ip",
        sa.Column("field", sa.String(16), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("previous", sa.String(64)),
        sa.PrimaryKeyConstraint("field", "address", "agent_id", name="pk_agent_ip"),
        _agents("agent_ip"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_agent_ip_agent_id", "agent_ip", ["agent_id"])
    op.create_index("ix_agent_ip_range", "agent_ip", ["field", "address", "agent_id", "previous"])
    op.create_table(
        "gateway",
        sa.Column("ip", sa.String(255), nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("known_until", sa.BigInteger, nullable=False),
        sa.Column("answers", sa.Boolean(create_constraint=False), nullable=False),
        sa.PrimaryKeyConstraint("ip", "port", name="pk_gateway"),
        sqlite_with_rowid=False,
    )


def _agents(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["agent_id"], ["agent.agent_id"], name=f"fk_{table}_agent_id", ondelete="CASCADE"
    )
