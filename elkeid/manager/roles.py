"""Users' levels, what operators call them, and which levels may do what.

Source: docs/protocol.md, "Manager API", "Users". A route that names no set is open to nobody.
"""

ADMIN_LEVEL = 0

ROLES = {
    "admin": ADMIN_LEVEL,
    "advanced": 1,
    "agent-rw": 2,
    "agent-ro": 3,
    "hub-rw": 4,
    "hub-ro": 5,
    "alarm": 6,
    "risk": 7,
    "alarm-risk": 8,
}
"""Role name -> level."""

LEVELS = frozenset(ROLES.values())

EVERY_USER = LEVELS
"""What each user may do: see agents and alarms, manage the own password."""

ADMINS = frozenset({ADMIN_LEVEL})
"""Who may see and change users, read the audit log, and fetch what holds secrets."""

AGENT_WRITERS = frozenset({0, 1, 2})
"""Who decides what hosts run: configs, components and policies (reading these too), tags,
tasks of every kind, quick ones included."""

AGENT_READERS = frozenset({0, 1, 2, 3, 6, 7, 8})
"""Who may see hosts in detail, what they shall run, tasks and subtasks."""

JOB_READERS = AGENT_READERS | {4}
"""Who may see jobs: whoever sees the task, and the hub's writers, who always could."""

APPROVERS = frozenset({0, 1})
"""Who may be the second person that approves a task or an upload."""

CLUSTER_WRITERS = frozenset({0, 1})
"""Who may drain and reset AgentCenters."""

CLUSTER_READERS = AGENT_READERS
"""Who may see AgentCenters, their load and the ledger."""


def level_of(role: str) -> int:
    """The level of a role given by name or number; `ValueError` says what there is."""
    level = ROLES.get(role)
    if level is None and role.isascii() and role.isdigit() and int(role) in LEVELS:
        level = int(role)
    if level is None:
        raise ValueError(f"{role!r} is no role: use one of {', '.join(ROLES)}, or 0 to 8")
    return level
