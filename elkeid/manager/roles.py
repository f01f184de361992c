"""Users' levels, what operators call them, and which levels may do what.

Source: docs/protocol.md, "Manager API", "Users".
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
"""What each user may do: see agents, manage the own password."""

AGENT_WRITERS = frozenset({0, 1, 2})
"""Who decides what hosts run."""

AGENT_READERS = frozenset({0, 1, 2, 3, 6, 7, 8})
"""Who may see what hosts shall run."""


def level_of(role: str) -> int:
    """The level of a role given by name or number; `ValueError` says what there is."""
    level = ROLES.get(role)
    if level is None and role.isascii() and role.isdigit() and int(role) in LEVELS:
        level = int(role)
    if level is None:
        raise ValueError(f"{role!r} is no role: use one of {', '.join(ROLES)}, or 0 to 8")
    return level
