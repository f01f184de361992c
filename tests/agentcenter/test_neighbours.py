"""When agents that are turned away find another AgentCenter."""

from typing import Any

import pytest
from twisted.internet.task import Clock

from elkeid.agentcenter.neighbours import KNOWN_SECONDS, LOOK_SECONDS, Neighbours
from elkeid.discovery.client import Known
from elkeid.discovery.registry import Record
from elkeid.web.client import CallFailed

OWN = ("10.0.0.1", 6751)


class Registry:
    """What ServiceDiscovery answers, and what its client remembers."""

    def __init__(self, clock: Clock, *records: Record) -> None:
        self.clock = clock
        self.records: list[Record] | Exception = list(records)
        self.known: Known | None = None
        self.up = True

    async def reach(self, host: str, port: int) -> bool:
        return self.up

    async def lookup(self) -> list[Record]:
        if isinstance(self.records, Exception):
            raise self.records
        self.known = Known(self.records, self.clock.seconds())
        return self.records


def record(ip: str = "10.0.0.2", weight: int = 10, status: int = 0, **extra: Any) -> Record:
    return Record("hids_svr_grpc", ip, 6751, status, weight=weight, extra=extra)


def neighbours(*records: Record) -> tuple[Neighbours, Registry, Clock]:
    clock = Clock()
    registry = Registry(clock, *records)
    made = Neighbours(clock, registry.lookup, lambda: registry.known, OWN, registry.reach)
    made.start()
    return made, registry, clock


@pytest.mark.parametrize(
    ("other", "room"),
    [
        (record(limit=100), True),
        (record(limit=10), False),
        (record(limit=100, draining=True), False),
        (record(limit=100, status=3), False),
        (record("10.0.0.1", limit=100), False),  # that is us
        (record(), True),  # one that tells no limit
    ],
)
def test_who_has_room(other: Record, room: bool) -> None:
    """An instance with a state, a load below its limit, and no will to leave."""
    assert neighbours(other)[0].have_room() is room


def test_looks_again_and_again() -> None:
    """What changed counts within seconds, and nothing is left after the end."""
    looking, registry, clock = neighbours()
    assert not looking.have_room()
    registry.records = [record(limit=100)]
    clock.advance(LOOK_SECONDS)
    assert looking.have_room()
    looking.stop()
    assert not clock.getDelayedCalls()


def test_without_discovery_there_is_nowhere_to_go() -> None:
    """Old knowledge does not close a door: agents cannot look the others up either."""
    looking, registry, clock = neighbours(record(limit=100))
    registry.records = CallFailed("away")
    clock.advance(KNOWN_SECONDS)
    assert looking.have_room()
    clock.advance(1)
    assert not looking.have_room()
    registry.records = [record(limit=100)]
    clock.advance(LOOK_SECONDS)
    assert looking.have_room()


def test_another_that_cannot_be_reached_has_no_room() -> None:
    """It crashed: ServiceDiscovery lists it for a while, and agents would find no open port."""
    looking, registry, clock = neighbours(record(limit=100))
    registry.up = False
    clock.advance(LOOK_SECONDS)
    assert not looking.have_room()
    registry.up = True
    clock.advance(LOOK_SECONDS)
    assert looking.have_room()
