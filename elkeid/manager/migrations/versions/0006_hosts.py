"""Hosts' states, events and figures."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables; none that was there changes."""
    op.create_table(
        "host_state",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("gateway", sa.String(300), nullable=False),
        sa.Column("connected", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("connected_at", sa.BigInteger, nullable=False),
        sa.Column("protection", sa.String(20), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("protection_since", sa.BigInteger, nullable=False),
        sa.Column("doubted_at", sa.BigInteger),
        sa.Column("retired_at", sa.BigInteger),
        sa.Column("kernel_version", sa.String(128), nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_host_state"),
        _of_agent("host_state"),
        sqlite_with_rowid=False,
    )
    for column in ("gateway", "kernel_version"):
        columns = [column, "agent_id"]
        op.create_index(f"ix_host_state_{column}_agent_id", "host_state", columns)
    op.create_table(
        "host_event",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "place", name="pk_host_event"),
        _of_agent("host_event"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_host_event_at", "host_event", ["at"])
    op.create_table(
        "fleet_figure",
        sa.Column("began", sa.BigInteger, nullable=False),
        sa.Column("hosts", sa.Integer, nullable=False),
        sa.Column("running", sa.Integer, nullable=False),
        sa.Column("offline", sa.Integer, nullable=False),
        sa.Column("cpu", sa.Float, nullable=False),
        sa.Column("memory", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("began", name="pk_fleet_figure"),
    )
    op.create_table(
        "host_figure",
        sa.Column("span", sa.Integer, nullable=False),
        sa.Column("began", sa.BigInteger, nullable=False),
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("beats", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("span", "began", "agent_id", name="pk_host_figure"),
        sqlite_with_rowid=False,
    )


def _of_agent(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["agent_id"], ["agent.agent_id"], name=f"fk_{table}_agent_id", ondelete="CASCADE"
    )
