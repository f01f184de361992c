"""Open files, shared out between agents and strangers."""

from pathlib import Path
from typing import Any

import pytest
from twisted.logger import LogLevel, capturedLogs, formatEvent

from elkeid import descriptors
from elkeid.config import Settings, parse
from elkeid.descriptors import FACE_CONNECTIONS, FACE_LEAST, OTHER_FILES, share

ALL = ("sd", "manager", "ac")


def limited(agents: int = 10_000, **manager: Any) -> Settings:
    """Settings with a limit of agents."""
    return parse({"agentcenter": {"connection_limit": agents}, "manager": manager}, Path())


@pytest.mark.parametrize("files", [64, 256, 1024, 4096, 20_000, 65_536, 1 << 20])
@pytest.mark.parametrize("roles", [ALL, ("ac",), ("sd",), ("manager",), ("sd", "manager")])
@pytest.mark.parametrize("agents", [1, 1000, 10_000, 50_000])
def test_shares(files: int, roles: tuple[str, ...], agents: int) -> None:
    """All together never take more than there is, and agents come first."""
    shares = share(files, limited(agents), roles)
    faces = len(set(roles) & {"sd", "manager"})
    assert shares.agents + shares.api + faces * shares.face < files
    assert shares.face <= FACE_CONNECTIONS
    assert (shares.face > 0) == bool(faces)
    if "ac" in roles:
        assert shares.agents >= min(files // 4, agents)
        if shares.face > FACE_LEAST and shares.face > files // 4:  # strangers have what is left
            assert shares.agents > agents
    else:
        assert (shares.agents, shares.api) == (0, 0)


def test_plenty() -> None:
    """With open files enough everybody gets his own limit."""
    shares = share(1 << 20, limited(), ALL)
    assert (shares.agents, shares.api, shares.face) == (15_096, 512, 10_000)
    assert share(None, limited(), ALL).face == FACE_CONNECTIONS
    assert share(20_000, limited(), ALL).face == (20_000 - OTHER_FILES - 512 - 15_096) // 2
    assert share(20_000, limited(tls_port=6703), ALL).face < 1900


@pytest.mark.parametrize(
    ("files", "limit", "roles", "level", "said"),
    [
        (20_000, 10_000, ALL, "info", "20000 open files allow 10000 agents, 512 callers"),
        (4096, 10_000, ALL, "warn", "raise the hard limit on open files (ulimit -Hn, LimitNOFILE)"),
        (100, 1000, ("ac",), "warn", "allow 63 agents"),
        (20_000, 10_000, ("sd",), "info", "allow 10000 connections to each port that everybody"),
        (None, 10_000, ALL, "info", "any number of open files allow 10000 agents"),
    ],
)
def test_what_is_told(
    files: int | None,
    limit: int,
    roles: tuple[str, ...],
    level: str,
    said: str,
) -> None:
    """At start it is said who may have how many connections, loudly if agents lack some."""
    settings = limited(limit)
    with capturedLogs() as events:
        descriptors.tell(share(files, settings, roles), settings, roles)
    assert events[0]["log_level"] is LogLevel.levelWithName(level)
    assert said in formatEvent(events[0])
