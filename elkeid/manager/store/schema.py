"""The tables, as the newest migration leaves them.

An agent is a row in each of four tables. ``agent`` is what lists are ordered, counted and most
often filtered by; it changes when an agent's state or place does. ``agent_beat`` is a few dozen
bytes that every heartbeat changes, ``agent_hot`` the figures of the last one, ``agent_detail`` the
rest of the document. ``agent_tag`` and ``agent_ip`` are for finding agents. What stands twice is
written in one transaction.
"""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

HEAD_REVISION = "0004"
"""The newest migration; a database that is there already needs none to be loaded."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

user = Table(
    "user",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("username", String(64), nullable=False, unique=True),
    Column("level", Integer, nullable=False),
    Column("password", String(255), nullable=False),  # argon2, in PHC string format
    Column("avatar", Text, nullable=False, server_default=""),
    Column("created_at", BigInteger, nullable=False),  # unix seconds
    Column("updated_at", BigInteger, nullable=False),
    Column("password_update_time", BigInteger, nullable=False),
    Column("networks", Text, nullable=False, server_default="[]"),  # JSON list; none: anywhere
    Column("otp_secret", String(64)),  # base32; NULL: no second factor was begun
    Column(
        "otp_confirmed", Boolean(create_constraint=False), nullable=False, server_default=false()
    ),
    Column("otp_step", BigInteger, nullable=False, server_default="0"),  # of the last code used
)

password_history = Table(
    "password_history",
    metadata,
    Column("id", Integer, primary_key=True),  # in the order of use
    Column(
        "user_id",
        Integer,
        ForeignKey("user.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("password", String(255), nullable=False),  # argon2, of a password no longer valid
)

recovery_code = Table(
    "recovery_code",
    metadata,
    Column(
        "user_id",
        Integer,
        ForeignKey("user.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("hash", String(64), primary_key=True),  # SHA-256 of the code, hexadecimal
)

known_address = Table(
    "known_address",
    metadata,
    Column(
        "user_id",
        Integer,
        ForeignKey("user.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("address", String(64), primary_key=True),  # from which the user logged in
    Column("seen_at", BigInteger, nullable=False),  # unix seconds
)

login_failure = Table(
    "login_failure",
    metadata,
    Column("key", String(64), primary_key=True),  # SHA-256 of what is counted, hexadecimal
    Column("subject", String(64), nullable=False, index=True),  # of the user name; "": none
    Column("count", Integer, nullable=False),  # failures in a row
    Column("last_at", BigInteger, nullable=False, index=True),  # unix seconds
)

token = Table(
    "token",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the token, hexadecimal
    Column(
        "user_id",
        Integer,
        ForeignKey("user.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", Float, nullable=False, index=True),  # unix seconds; slides with use
    Column("peer", String(64), nullable=False, server_default=""),  # who logged in, IP address
)

agent = Table(
    "agent",
    metadata,
    Column("agent_id", String(128), primary_key=True),
    Column("hostname", Text),
    Column("state", Text),  # what the agent says of itself: running or abnormal
    Column("agent_state", String(16), nullable=False),  # running, abnormal, offline, uninstalled
    Column("version", Text),
    Column("platform", Text),
    Column("idc", Text),
    Column("source_ip", Text),  # the AC that reported it last
    Column("source_port", Integer),
    # Whether it was on that AC when the AC was last asked; see `gateway` for whether that counts.
    Column("connected", Boolean(create_constraint=False), nullable=False),
    Column("first_heartbeat_time", BigInteger, nullable=False),  # unix seconds
    # As operators see it: that of `host_state`, of hosts that are gone "none". No statement
    # writes it: the database does with every change of either, see migration 0003.
    Column("protection", String(20)),
    # A list by one of these is a stretch of its index, in order.
    *(
        Index(f"ix_agent_{name}", name, "agent_id")
        for name in (
            "hostname",
            "state",
            "agent_state",
            "version",
            "platform",
            "idc",
            "first_heartbeat_time",
            "protection",
        )
    ),
    Index(
        "ix_agent_away",
        "agent_id",
        sqlite_where=text("NOT connected"),
        postgresql_where=text("NOT connected"),
    ),
    Index("ix_agent_source", "source_ip", "source_port", "agent_id"),
    # Rows lie in the order that lists have, so a page is one stretch of the file.
    sqlite_with_rowid=False,
)


def _of_agent() -> Column[str]:
    key = ForeignKey("agent.agent_id", ondelete="CASCADE")
    return Column("agent_id", String(128), key, primary_key=True)


agent_beat = Table(
    "agent_beat",
    metadata,
    _of_agent(),
    Column("last_heartbeat_time", BigInteger, nullable=False),  # unix seconds
    Column("live", Boolean(create_constraint=False), nullable=False),  # running or abnormal
    # Hashes of the last report, see `elkeid.manager.beats`; 0 equals none.
    Column("raw_print", BigInteger, nullable=False),
    Column("slow_print", BigInteger, nullable=False),
    sqlite_with_rowid=False,
    postgresql_with={"fillfactor": 50},  # room for the next version of each row beside it
)

agent_hot = Table(
    "agent_hot",
    metadata,
    _of_agent(),
    Column("fields", Text, nullable=False),  # JSON object: what any heartbeat may change
    postgresql_with={"fillfactor": 70},
)

agent_detail = Table(
    "agent_detail",
    metadata,
    _of_agent(),
    Column("fields", Text, nullable=False),  # JSON object: the rest of the document
)

agent_tag = Table(
    "agent_tag",
    metadata,
    _of_agent(),
    Column("tag", String(128), primary_key=True),
    Index("ix_agent_tag_tag", "tag", "agent_id"),
    sqlite_with_rowid=False,
)

agent_ip = Table(
    "agent_ip",
    metadata,
    Column("field", String(16), primary_key=True),  # as in documents, such as intranet_ipv4
    Column("address", String(64), primary_key=True),
    Column(
        "agent_id",
        String(128),
        ForeignKey("agent.agent_id", ondelete="CASCADE"),
        primary_key=True,
        index=True,
    ),
    # The agent's next smaller address of this field: of a range of addresses an agent's first one
    # is the one whose predecessor lies before the range.
    Column("previous", String(64)),
    Index("ix_agent_ip_range", "field", "address", "agent_id", "previous"),
    sqlite_with_rowid=False,
)

gateway = Table(
    "gateway",
    metadata,
    Column("ip", String(255), primary_key=True),
    Column("port", Integer, primary_key=True),
    Column("known_until", BigInteger, nullable=False),  # unix seconds; told by its last answer
    Column("answers", Boolean(create_constraint=False), nullable=False),
    sqlite_with_rowid=False,
)

task_token = Table(
    "task_token",
    metadata,
    Column("token", String(64), primary_key=True),
    Column("agent_id", String(128), nullable=False),  # whom it was issued for
    Column("issued_at", BigInteger, nullable=False),  # unix seconds
    sqlite_with_rowid=False,
)

task_result = Table(
    "task_result",
    metadata,
    Column("id", Integer, primary_key=True),  # in the order of arrival
    Column("token", String(64), ForeignKey("task_token.token", ondelete="CASCADE"), nullable=False),
    Column("content_hash", String(64), nullable=False),  # SHA-256 of `content`, hexadecimal
    Column("content", Text, nullable=False),  # what came of the agent, canonical JSON
    Column("received_at", BigInteger, nullable=False),  # unix seconds
    UniqueConstraint("token", "content_hash", name="uq_task_result_token_content"),
)

stored_config = Table(
    "stored_config",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("items", Text, nullable=False),  # JSON list of what hosts shall run
    Column("drops_confirmed", Boolean(create_constraint=False), nullable=False),
    Column("created_at", BigInteger, nullable=False),  # unix seconds
    Column("updated_at", BigInteger, nullable=False),
)

upload = Table(
    "upload",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("md5", String(32), nullable=False, index=True),  # hexadecimal
    Column("sha256", String(64), nullable=False),  # hexadecimal
    Column("size", BigInteger, nullable=False),  # bytes
    Column("created_at", BigInteger, nullable=False),  # unix seconds
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),  # from 1, without gaps
    Column("at_ms", BigInteger, nullable=False, index=True),  # unix milliseconds
    Column("kind", String(16), nullable=False),  # see elkeid.manager.store.audit
    Column("of", BigInteger, index=True),  # `seq` of the call that an outcome belongs to
    Column("username", String(80), nullable=False),
    Column("level", Integer),
    Column("peer", String(64), nullable=False),
    Column("method", String(16), nullable=False),
    Column("path", String(512), nullable=False),
    Column("status", Integer),  # of HTTP
    Column("code", Integer),
    Column("objects", Text, nullable=False),  # JSON list of ids
    Column("body", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("prev", String(64), nullable=False),  # `hash` of the entry before
    Column("hash", String(64), nullable=False),
    Index(None, "username", "seq"),
    Index(None, "path", "seq"),
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("seq", BigInteger, nullable=False),  # of the newest entry; 0: none
    Column("hash", String(64), nullable=False),  # its
)

export_file = Table(
    "export_file",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("user_id", Integer, nullable=False),  # who may fetch it, beside administrators
    Column("size", BigInteger, nullable=False),  # bytes
    Column("created_at", BigInteger, nullable=False),  # unix seconds
    Column("expires_at", BigInteger, nullable=False, index=True),
)

_TALLIES = (
    "created",
    "running",
    "succeed",
    "failed",
    "result_succeed",
    "result_failed",
    "cancelled",
)


def _of_listed_tasks() -> Iterator[Index]:
    """Indices by which lists of tasks are filtered and ordered; quick tasks are in none.

    None is on what changes with every batch of subtasks, such as the counters and the time of the
    last change: PostgreSQL would write a new entry into every index of the table each time.
    """
    wanted: dict[str, Any] = {
        "sqlite_where": text("quick IS 0"),
        "postgresql_where": text("quick IS false"),
    }
    yield Index("ix_task_listed", "number", **wanted)
    for name in (
        "task_type",
        "task_name",
        "action",
        "task_user",
        "tag",
        "status",
        "approval",
        "create_time",
    ):
        yield Index(f"ix_task_listed_{name}", name, "number", **wanted)


task = Table(
    "task",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("task_id", String(64), nullable=False, unique=True),
    Column("task_type", String(32), nullable=False),
    Column("task_name", String(256), nullable=False),
    Column("action", String(64), nullable=False),
    Column("task_user", String(64), nullable=False),
    Column("tag", String(128), nullable=False),
    Column("task_data_type", Integer),  # what agents know the task by; NULL for configs
    Column("quick", Boolean(create_constraint=False), nullable=False),
    Column("awaits_result", Boolean(create_constraint=False), nullable=False),
    Column("result_seconds", Float, nullable=False),  # for an agent's answer
    Column("wait_seconds", Float, nullable=False),  # for an agent to be connected
    Column("resends", Integer, nullable=False),  # where it is not known whether a send arrived
    Column("allow_empty", Boolean(create_constraint=False), nullable=False),
    Column("drops_confirmed", Boolean(create_constraint=False), nullable=False),
    Column("status", String(16), nullable=False, index=True),  # created running finished cancelled
    Column("open", Boolean(create_constraint=False), nullable=False, index=True),  # work is left
    Column("paused", String(256), nullable=False),  # why; empty: it is not
    Column("approval", String(16), nullable=False),  # "" waiting approved refused
    Column("selecting", Boolean(create_constraint=False), nullable=False),
    Column("selected_upto", String(128), nullable=False),
    Column("id_count", Integer, nullable=False),
    Column("distributed", Integer, nullable=False),
    *(Column(f"n_{name}", Integer, nullable=False, server_default="0") for name in _TALLIES),
    Column("create_time", BigInteger, nullable=False),  # unix seconds
    Column("update_time", BigInteger, nullable=False),
    *_of_listed_tasks(),
    # A number is never used again, so that no row of a deleted task speaks for another one.
    sqlite_autoincrement=True,
)

task_body = Table(
    "task_body",
    metadata,
    Column("task", Integer, ForeignKey("task.number", ondelete="CASCADE"), primary_key=True),
    Column("data", Text, nullable=False),  # JSON: what agents are sent
    Column("selection", Text, nullable=False),  # JSON: whom
)

task_job = Table(
    "task_job",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("job_id", String(128), nullable=False, unique=True),
    Column(
        "task",
        Integer,
        ForeignKey("task.number", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("count", Integer, nullable=False),  # of the subtasks that it released
    Column("concurrence", Integer, nullable=False),
    Column("cursor", String(128), nullable=False),  # agents up to here have been taken up
    Column("upto", String(128)),  # the last agent; NULL: the task's last one
    Column("drained", Boolean(create_constraint=False), nullable=False),
    Column("expired", Boolean(create_constraint=False), nullable=False),
    Column("created_at", BigInteger, nullable=False),  # unix seconds
    Column("deadline", Float, nullable=False),  # unix seconds; then nobody is waited for
)

subtask = Table(
    "subtask",
    metadata,
    Column("task", Integer, ForeignKey("task.number", ondelete="CASCADE"), primary_key=True),
    Column("agent_id", String(128), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("due", Float),  # unix seconds, when something is to be done; see store.task_work
    Column("job", Integer),
    Column("slice", String(32)),  # who is sending it
    Column("token", String(64), unique=True),
    Column("sends", Integer, nullable=False, server_default="0"),
    Column("tries", Integer, nullable=False, server_default="0"),  # that were surely not sent
    Column("sent_to", String(255)),  # HTTP address of the AC
    Column("started_at", BigInteger),  # unix seconds
    Column("update_time", BigInteger, nullable=False),
    Column("status_msg", Text),
    Column("response", Text),  # what the AC said, unless that it took it
    Column("payload", Text),  # JSON: the whole config that was sent
    Index(None, "task", "status", "due"),
    # In the order of lists. A third one for times would cost each change of a state as much again.
    Index(None, "status", "task", "agent_id"),
    Index(None, "agent_id", "task"),
    sqlite_with_rowid=False,
)

task_slice = Table(
    "task_slice",
    metadata,
    Column("slice_id", String(32), primary_key=True),
    Column(
        "task",
        Integer,
        ForeignKey("task.number", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("owner", String(64), nullable=False, index=True),
    Column("deadline", Float, nullable=False, index=True),  # unix seconds; renewed
)

task_resend = Table(
    "task_resend",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", Integer, ForeignKey("task.number", ondelete="CASCADE"), nullable=False),
    Column("agent_id", String(128), nullable=False),
    Column("sends", Integer, nullable=False),  # how often it may have been sent before
    Column("reason", Text, nullable=False),
    Column("at", BigInteger, nullable=False),  # unix seconds
    Index(None, "task", "agent_id"),
)

task_approval = Table(
    "task_approval",
    metadata,
    Column("id", Integer, primary_key=True),
    Column(
        "task",
        Integer,
        ForeignKey("task.number", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("username", String(64), nullable=False),
    Column("approved", Boolean(create_constraint=False), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", BigInteger, nullable=False),  # unix seconds
)

host_config = Table(
    "host_config",
    metadata,
    Column("agent_id", String(128), primary_key=True),
    Column("items", Text, nullable=False),  # JSON list of what this host shall run
    Column("allow_empty", Boolean(create_constraint=False), nullable=False),
    Column("drops_confirmed", Boolean(create_constraint=False), nullable=False),
    Column("updated_at", BigInteger, nullable=False),  # unix seconds
    Column("dropped_at", Float, index=True),  # unix seconds; when it took most of its plugins
    sqlite_with_rowid=False,
)

host_state = Table(
    "host_state",
    metadata,
    _of_agent(),
    Column("gateway", String(300), nullable=False),  # host:port of the AC that has or had it
    Column("connected", Boolean(create_constraint=False), nullable=False),
    Column("connected_at", BigInteger, nullable=False),  # unix seconds
    Column("protection", String(20), nullable=False),  # see elkeid.manager.protection
    Column("reason", String(32), nullable=False),
    Column("protection_since", BigInteger, nullable=False),
    Column("doubted_at", BigInteger),
    Column("retired_at", BigInteger),
    Column("kernel_version", String(128), nullable=False),
    Column("events", BigInteger, nullable=False),  # in its history so far
    Index(None, "gateway", "agent_id"),
    Index(None, "kernel_version", "agent_id"),
    sqlite_with_rowid=False,
)

host_event = Table(
    "host_event",
    metadata,
    _of_agent(),
    Column("place", Integer, primary_key=True, autoincrement=False),  # in the host's ring
    Column("number", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False, index=True),  # unix seconds
    Column("kind", String(20), nullable=False),
    Column("detail", Text, nullable=False),  # JSON object
    sqlite_with_rowid=False,
)

fleet_figure = Table(
    "fleet_figure",
    metadata,
    Column("began", BigInteger, primary_key=True, autoincrement=False),  # unix seconds
    Column("hosts", Integer, nullable=False),  # of which figures are known
    Column("running", Integer, nullable=False),
    Column("offline", Integer, nullable=False),
    Column("cpu", Float, nullable=False),  # mean, fraction of a machine
    Column("memory", Float, nullable=False),  # mean, bytes
)

host_figure = Table(
    "host_figure",
    metadata,
    # In the order in which rows are written and forgotten; one host's are found by a look at each
    # stretch of time.
    Column("span", Integer, primary_key=True, autoincrement=False),  # seconds
    Column("began", BigInteger, primary_key=True, autoincrement=False),  # unix seconds
    Column("agent_id", String(128), primary_key=True),
    Column("beats", Integer, nullable=False),  # heartbeats in it
    Column("data", LargeBinary, nullable=False),  # see elkeid.manager.figures
    sqlite_with_rowid=False,
)

aging = Table(
    "aging",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # one row: 1
    Column("until", Float, nullable=False),  # unix seconds; see `elkeid.manager.aging`
)
