"""The time until which stored things have aged."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a table; none that was there changes."""
    op.create_table(
        "aging",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("until", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_aging"),
    )
