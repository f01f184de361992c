"""The collector's pauses, and when it may look at what."""

import gc
import weakref
from typing import Any

from twisted.internet.task import Clock

from elkeid.garbage import FREEZE_SECONDS, FULL_SECONDS, NEVER, Keeper, Pauses, pauses
from tests.agentcenter.host import Host, batch, make_gateway
from tests.agentcenter.test_tls_socket import Scene


class Collector:
    """Stands in for the module `gc`: the test process's own is left alone."""

    def __init__(self) -> None:
        self.callbacks: list[Any] = []
        self.threshold = (700, 10, 10)
        self.did: list[str] = []

    def get_threshold(self) -> tuple[int, int, int]:
        return self.threshold

    def set_threshold(self, *threshold: int) -> None:
        self.threshold = threshold  # type: ignore[assignment]

    def collect(self, generation: int = 2) -> None:
        self.did.append(f"collect {generation}")

    def freeze(self) -> None:
        self.did.append("freeze")

    def unfreeze(self) -> None:
        self.did.append("unfreeze")


def test_survivors_are_frozen_again_and_again() -> None:
    """Everything is looked at once, then only what is new, and all of it after some hours."""
    clock, collector = Clock(), Collector()
    keeper = Keeper(clock, collector)
    keeper.start()
    keeper.start()  # nothing more
    everything = ["unfreeze", "collect 2", "freeze"]
    assert collector.did == everything
    assert collector.threshold[2] == NEVER
    assert collector.callbacks == [pauses]
    collector.did.clear()
    clock.advance(FREEZE_SECONDS)
    clock.advance(FREEZE_SECONDS)
    assert collector.did == ["collect 1", "freeze"] * 2
    collector.did.clear()
    clock.advance(FULL_SECONDS)
    assert collector.did == everything


def test_stop_gives_the_collector_back() -> None:
    """Nothing of it is left, and stopping twice or before the start does nothing."""
    clock, collector = Clock(), Collector()
    keeper = Keeper(clock, collector)
    keeper.stop()
    keeper.start()
    keeper.stop()
    keeper.stop()
    assert collector.threshold == (700, 10, 10)
    assert (collector.callbacks, clock.getDelayedCalls()) == ([], [])
    assert collector.did[-1] == "unfreeze"


def test_pauses_are_counted() -> None:
    """By generation: how many, how long, and the longest; an end without a start is ignored."""
    clock = Clock()
    measured = Pauses(clock.seconds)
    measured("stop", {"generation": 0})
    for generation, seconds in ((0, 0.25), (2, 1.5), (0, 0.5)):
        measured("start", {"generation": generation})
        clock.advance(seconds)
        measured("stop", {"generation": generation})
    assert measured.count == [2, 0, 1]
    assert measured.seconds == [0.75, 0.0, 1.5]
    assert measured.longest == 1.5


def test_a_connection_that_ended_is_freed_at_once() -> None:
    """Nothing of an agent's connection waits for the collector, however it ended."""
    gc.collect()
    gc.disable()
    try:
        gateway, _, clock = make_gateway()
        for ending in ("drop", "half-close", "abort"):
            host = Host(gateway)
            stream = host.open()
            host.send(stream, batch("a1", 1000, 59))
            if ending == "half-close":
                host.client.half_close(stream)
                host.pump()
                host.link.go_away()
                host.pump()
            elif ending == "abort":
                host.link.abort()
                host.pump()
            host.drop()
            host.transport.producer = None  # as real transports do at their end
            link = weakref.ref(host.link)
            clock.advance(120)
            del host
            assert link() is None, ending
    finally:
        gc.enable()


def test_a_socket_that_ended_is_freed_at_once() -> None:
    """The same of the transport."""
    scene = Scene()
    peer = scene.meet()
    gc.collect()
    gc.disable()
    try:
        peer.server.abortConnection()
        scene.settle()
        assert peer.protocol.reason is not None
        server, peer.server = weakref.ref(peer.server), None  # type: ignore[assignment]
        peer.protocol.transport = peer.first.transport = None
        assert server() is None
    finally:
        gc.enable()
        peer.socket.close()
