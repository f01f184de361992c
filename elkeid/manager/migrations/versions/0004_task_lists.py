"""Indices for the lists of tasks and of subtasks."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add indices; one gives way to a longer one that begins as it does."""
    listed: dict[str, Any] = {
        "sqlite_where": sa.text("quick IS 0"),
        "postgresql_where": sa.text("quick IS false"),
    }
    op.create_index("ix_task_listed", "task", ["number"], **listed)
    columns = "task_type task_name action task_user tag status approval create_time".split()
    for name in columns:
        op.create_index(f"ix_task_listed_{name}", "task", [name, "number"], **listed)
    op.create_index(
        "ix_subtask_status_task_agent_id", "subtask", ["status", "task", "agent_id"]
    )
    op.create_index("ix_subtask_agent_id_task", "subtask", ["agent_id", "task"])
    op.drop_index("ix_subtask_agent_id", "subtask")
