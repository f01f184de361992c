"""The process's open files, shared out: what one port's peers open, no other port lacks.

All roles of a process live on one limit. Agents come first: their connections, and those that
have not shaken hands yet, have a share of their own. What everybody may open, ports of
ServiceDiscovery and of the Manager, gets what is left. So a stranger who opens all that he can
keeps out other strangers, and no agent.
"""

from collections.abc import Collection
from typing import Final

from attrs import frozen
from twisted.logger import Logger

from elkeid.config import Settings

OTHER_FILES: Final = 512
"""Open files that are no connection of a peer: segments, databases, calls to other roles."""

API_CONNECTIONS: Final = 512
"""To a gateway's API, of Managers, other gateways and operators: a few each."""

STRANGERS: Final = 4096
"""Agents' connections before their handshake; see `elkeid.agentcenter.door`."""

REFUSED_SHARE: Final = 10
"""One connection for so many of the agents' limit is there only to be refused by a status."""

FACE_CONNECTIONS: Final = 10_000
"""To one port that everybody reaches, where open files allow it: agents keep theirs open."""

FACE_LEAST: Final = 64
"""To such a port, where open files are short: kept free of agents' share, too."""

log = Logger()


@frozen
class Shares:
    """How many connections each may have.

    Args:
        open_files: of the process; None: as many as it likes.
        agents: at the agents' port, those before their handshake among them.
        api: at a gateway's API.
        face: at each port that everybody reaches.
    """

    open_files: int | None
    agents: int
    api: int
    face: int


UNBOUNDED: Final = Shares(None, 1 << 30, API_CONNECTIONS, FACE_CONNECTIONS)


def share(open_files: int | None, settings: Settings, roles: Collection[str]) -> Shares:
    """Share out the open files of a process that runs ``roles``; None: there is no limit."""
    if open_files is None:
        return UNBOUNDED
    own = min(OTHER_FILES, open_files // 4)
    api = min(API_CONNECTIONS, open_files // 8) if "ac" in roles else 0
    left = open_files - own - api
    faces = _faces(settings, roles)
    wanted = 0
    if "ac" in roles:
        limit = settings.agentcenter.connection_limit
        wanted = limit + max(limit // REFUSED_SHARE, 1) + STRANGERS
    agents = min(wanted, max(left - faces * FACE_LEAST, left // 2))
    face = min(FACE_CONNECTIONS, (left - agents) // faces) if faces else 0
    return Shares(open_files, agents, api, face)


def _faces(settings: Settings, roles: Collection[str]) -> int:
    """Ports that everybody reaches; a plain and a TLS port of ServiceDiscovery share one limit."""
    manager = 1 + (settings.manager.tls_port is not None)
    return ("sd" in roles) + manager * ("manager" in roles)


def shown(shares: Shares, settings: Settings, roles: Collection[str]) -> str:
    """In words, what open files allow."""
    parts = []
    if "ac" in roles:
        agents = min(settings.agentcenter.connection_limit, shares.agents)
        parts += [f"{agents} agents", f"{shares.api} callers of the gateway's API"]
    if _faces(settings, roles):
        parts.append(f"{shares.face} connections to each port that everybody reaches")
    files = "any number of" if shares.open_files is None else shares.open_files
    return f"{files} open files allow {', '.join(parts)}"


def tell(shares: Shares, settings: Settings, roles: Collection[str]) -> None:
    """Log who may have how many connections, as a warning if too few are left for agents."""
    text, limit = shown(shares, settings, roles), settings.agentcenter.connection_limit
    if "ac" not in roles or shares.agents >= limit:
        log.info("{text}", text=text)
        return
    most = share(1 << 30, settings, roles)
    log.warn(
        "{text}; agentcenter.connection_limit is {limit}: raise the hard limit on open files "
        "(ulimit -Hn, LimitNOFILE) to {need}",
        text=text,
        limit=limit,
        need=most.agents + most.api + OTHER_FILES + _faces(settings, roles) * most.face,
    )
