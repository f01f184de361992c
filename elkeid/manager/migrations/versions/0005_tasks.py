"""Tasks: what hosts are told to do, host by host, and hosts' own configs."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _flag(name: str) -> "sa.Column[bool]":
    return sa.Column(name, sa.Boolean(create_constraint=False), nullable=False)


def _of_a_task(table: str, **column: Any) -> list[Any]:
    """The column that refers to the task, whose rows go with it."""
    return [
        sa.Column("task", sa.Integer, nullable=False, **column),
        sa.ForeignKeyConstraint(
            ["task"], ["task.number"], name=f"fk_{table}_task", ondelete="CASCADE"
        ),
    ]


def upgrade() -> None:
    """Add tables; none that was there changes."""
    tallies = (
        "created",
        "running",
        "succeed",
        "failed",
        "result_succeed",
        "result_failed",
        "cancelled",
    )
    op.create_table(
        "task",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("task_id", sa.String(64), nullable=False),
        sa.Column("task_type", sa.String(32), nullable=False),
        sa.Column("task_name", sa.String(256), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("task_user", sa.String(64), nullable=False),
        sa.Column("tag", sa.String(128), nullable=False),
        sa.Column("task_data_type", sa.Integer),
        _flag("quick"),
        _flag("awaits_result"),
        sa.Column("result_seconds", sa.Float, nullable=False),
        sa.Column("wait_seconds", sa.Float, nullable=False),
        sa.Column("resends", sa.Integer, nullable=False),
        _flag("allow_empty"),
        _flag("drops_confirmed"),
        sa.Column("status", sa.String(16), nullable=False),
        _flag("open"),
        sa.Column("paused", sa.String(256), nullable=False),
        sa.Column("approval", sa.String(16), nullable=False),
        _flag("selecting"),
        sa.Column("selected_upto", sa.String(128), nullable=False),
        sa.Column("id_count", sa.Integer, nullable=False),
        sa.Column("distributed", sa.Integer, nullable=False),
        *(sa.Column(f"n_{name}", sa.Integer, nullable=False, server_default="0") for name in tallies),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_task"),
        sa.UniqueConstraint("task_id", name="uq_task_task_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_task_status", "task", ["status"])
    op.create_index("ix_task_open", "task", ["open"])
    op.create_table(
        "task_body",
        *_of_a_task("task_body"),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("selection", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("task", name="pk_task_body"),
    )
    op.create_table(
        "task_job",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("job_id", sa.String(128), nullable=False),
        *_of_a_task("task_job"),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("concurrence", sa.Integer, nullable=False),
        sa.Column("cursor", sa.String(128), nullable=False),
        sa.Column("upto", sa.String(128)),
        _flag("drained"),
        _flag("expired"),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_task_job"),
        sa.UniqueConstraint("job_id", name="uq_task_job_job_id"),
    )
    op.create_index("ix_task_job_task", "task_job", ["task"])
    op.create_table(
        "subtask",
        *_of_a_task("subtask"),
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("due", sa.Float),
        sa.Column("job", sa.Integer),
        sa.Column("slice", sa.String(32)),
        sa.Column("token", sa.String(64)),
        sa.Column("sends", sa.Integer, nullable=False, server_default="0"),
        sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("sent_to", sa.String(255)),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("status_msg", sa.Text),
        sa.Column("response", sa.Text),
        sa.Column("payload", sa.Text),
        sa.PrimaryKeyConstraint("task", "agent_id", name="pk_subtask"),
        sa.UniqueConstraint("token", name="uq_subtask_token"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_subtask_task_status_due", "subtask", ["task", "status", "due"])
    op.create_index("ix_subtask_agent_id", "subtask", ["agent_id"])
    op.create_table(
        "task_slice",
        sa.Column("slice_id", sa.String(32), nullable=False),
        *_of_a_task("task_slice"),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("slice_id", name="pk_task_slice"),
    )
    for column in ("task", "owner", "deadline"):
        op.create_index(f"ix_task_slice_{column}", "task_slice", [column])
    op.create_table(
        "task_resend",
        sa.Column("id", sa.Integer, nullable=False),
        *_of_a_task("task_resend"),
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("sends", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_task_resend"),
    )
    op.create_index("ix_task_resend_task_agent_id", "task_resend", ["task", "agent_id"])
    op.create_table(
        "task_approval",
        sa.Column("id", sa.Integer, nullable=False),
        *_of_a_task("task_approval"),
        sa.Column("username", sa.String(64), nullable=False),
        _flag("approved"),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_task_approval"),
    )
    op.create_index("ix_task_approval_task", "task_approval", ["task"])
    op.create_table(
        "host_config",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("items", sa.Text, nullable=False),
        _flag("allow_empty"),
        _flag("drops_confirmed"),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("dropped_at", sa.Float),
        sa.PrimaryKeyConstraint("agent_id", name="pk_host_config"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_host_config_dropped_at", "host_config", ["dropped_at"])
