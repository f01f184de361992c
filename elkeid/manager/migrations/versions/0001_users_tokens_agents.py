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
        sa.Column("version", sa.Text),
        sa.Column("source_ip", sa.Text),
        sa.Column("source_port", sa.Integer),
        sa.Column("connected", sa.Boolean(create_constraint=False)),
        sa.Column("first_heartbeat_time", sa.BigInteger, nullable=False),
        sa.Column("last_heartbeat_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_agent_hostname", "agent", ["hostname"])
    op.create_table(
        "agent_detail",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent_detail"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.agent_id"], name="fk_agent_detail_agent_id", ondelete="CASCADE"
        ),
    )
