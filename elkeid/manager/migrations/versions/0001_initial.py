"""Every table of the first release."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _flag(name: str) -> "sa.Column[bool]":
    return sa.Column(name, sa.Boolean(create_constraint=False), nullable=False)


def _of_user(table: str) -> sa.ForeignKeyConstraint:
    """The user's rows go with the user."""
    return sa.ForeignKeyConstraint(
        ["user_id"], ["user.id"], name=f"fk_{table}_user_id", ondelete="CASCADE"
    )


def _of_agent(table: str) -> sa.ForeignKeyConstraint:
    """The agent's rows go with the agent."""
    return sa.ForeignKeyConstraint(
        ["agent_id"], ["agent.agent_id"], name=f"fk_{table}_agent_id", ondelete="CASCADE"
    )


def _of_a_task(table: str) -> list[Any]:
    """The column that refers to the task, whose rows go with it."""
    return [
        sa.Column("task", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["task"], ["task.number"], name=f"fk_{table}_task", ondelete="CASCADE"
        ),
    ]


def upgrade() -> None:
    """Make all tables."""
    _users()
    _audit()
    _agents()
    _hosts()
    _configs()
    _results()
    _tasks()
    _files()


def _users() -> None:
    """Users, their tokens, and what guards logins."""
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
        sa.Column("networks", sa.Text, nullable=False, server_default="[]"),
        sa.Column("otp_secret", sa.String(64)),
        sa.Column(
            "otp_confirmed",
            sa.Boolean(create_constraint=False),
            nullable=False,
            server_default=sa.false(),
        ),
        sa.Column("otp_step", sa.BigInteger, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("id", name="pk_user"),
        sa.UniqueConstraint("username", name="uq_user_username"),
    )
    op.create_table(
        "token",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("peer", sa.String(64), nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("hash", name="pk_token"),
        _of_user("token"),
    )
    op.create_index("ix_token_user_id", "token", ["user_id"])
    op.create_index("ix_token_expires_at", "token", ["expires_at"])
    op.create_table(
        "password_history",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("password", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_password_history"),
        _of_user("password_history"),
    )
    op.create_index("ix_password_history_user_id", "password_history", ["user_id"])
    op.create_table(
        "recovery_code",
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "hash", name="pk_recovery_code"),
        _of_user("recovery_code"),
    )
    op.create_table(
        "known_address",
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "address", name="pk_known_address"),
        _of_user("known_address"),
    )
    op.create_table(
        "login_failure",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_login_failure"),
    )
    op.create_index("ix_login_failure_subject", "login_failure", ["subject"])
    op.create_index("ix_login_failure_last_at", "login_failure", ["last_at"])


def _audit() -> None:
    """The audit log, and its head."""
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("of", sa.BigInteger),
        sa.Column("username", sa.String(80), nullable=False),
        sa.Column("level", sa.Integer),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("path", sa.String(512), nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("code", sa.Integer),
        sa.Column("objects", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("prev", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
    op.create_index("ix_audit_at_ms", "audit", ["at_ms"])
    op.create_index("ix_audit_of", "audit", ["of"])
    op.create_index("ix_audit_username_seq", "audit", ["username", "seq"])
    op.create_index("ix_audit_path_seq", "audit", ["path", "seq"])
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "hash": "0" * 64}])


def _agents() -> None:
    """Agents with their documents, and the gateways that report them."""
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
        _flag("connected"),
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
        _flag("live"),
        sa.Column("raw_print", sa.BigInteger, nullable=False),
        sa.Column("slow_print", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent_beat"),
        _of_agent("agent_beat"),
        sqlite_with_rowid=False,
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "agent_hot",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent_hot"),
        _of_agent("agent_hot"),
        postgresql_with={"fillfactor": 70},
    )
    op.create_table(
        "agent_detail",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent_detail"),
        _of_agent("agent_detail"),
    )
    op.create_table(
        "agent_ip",
        sa.Column("field", sa.String(16), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("previous", sa.String(64)),
        sa.PrimaryKeyConstraint("field", "address", "agent_id", name="pk_agent_ip"),
        _of_agent("agent_ip"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_agent_ip_agent_id", "agent_ip", ["agent_id"])
    op.create_index("ix_agent_ip_range", "agent_ip", ["field", "address", "agent_id", "previous"])
    op.create_table(
        "agent_tag",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("tag", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "tag", name="pk_agent_tag"),
        _of_agent("agent_tag"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_agent_tag_tag", "agent_tag", ["tag", "agent_id"])
    op.create_table(
        "gateway",
        sa.Column("ip", sa.String(255), nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("known_until", sa.BigInteger, nullable=False),
        _flag("answers"),
        sa.PrimaryKeyConstraint("ip", "port", name="pk_gateway"),
        sqlite_with_rowid=False,
    )


def _hosts() -> None:
    """Hosts' states, events and figures."""
    op.create_table(
        "host_state",
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("gateway", sa.String(300), nullable=False),
        _flag("connected"),
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


def _configs() -> None:
    """What hosts shall run."""
    op.create_table(
        "stored_config",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("items", sa.Text, nullable=False),
        _flag("drops_confirmed"),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_stored_config"),
    )
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


def _results() -> None:
    """Tokens of tasks, and what came back by them."""
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


def _tasks() -> None:
    """Tasks: what hosts are told to do, host by host."""
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


def _files() -> None:
    """Files of agents, and exported lists."""
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
    op.create_table(
        "export_file",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_export_file"),
    )
    op.create_index("ix_export_file_expires_at", "export_file", ["expires_at"])
