"""What AgentCenters ask for and bring: tags, task tokens and results, configs, uploads."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables; none that was there changes."""
    op.create_table(
        "agent_tag",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("tag", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "tag", name="pk_agent_tag"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.agent_id"], name="fk_agent_tag_agent_id", ondelete="CASCADE"
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_agent_tag_tag", "agent_tag", ["tag", "agent_id"])
    op.create_table(
        "task_token",
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("issued_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("token", name="pk_task_token"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "task_result",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_task_result"),
        sa.ForeignKeyConstraint(
            ["token"], ["task_token.token"], name="fk_task_result_token", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("token", "content_hash", name="uq_task_result_token_content"),
    )
    op.create_table(
        "stored_config",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("items", sa.Text, nullable=False),
        sa.Column("drops_confirmed", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_stored_config"),
    )
    op.create_table(
        "upload",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("md5", sa.String(32), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_upload"),
    )
    op.create_index("ix_upload_md5", "upload", ["md5"])
