"""Large messages: unpacked elsewhere, in order, while only their sender waits."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger

from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.transfer import TransferStream
from elkeid.agentcenter.unpacking import INLINE_BYTES
from elkeid.config import AgentCenterSettings
from elkeid.wire.compression import snappy_frame
from elkeid.wire.grpc import Status
from tests.agentcenter.host import WALL, Host, MemoryLog, batch

HUGE = "x" * (INLINE_BYTES + 1)


class Thread:
    """Does what it is given when a test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[..., Any], Deferred[Any]]] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> "Deferred[Any]":
        done: Deferred[Any] = Deferred()
        self.jobs.append((lambda: function(*args), done))
        return done

    def work(self) -> None:
        """Do the oldest."""
        function, done = self.jobs.pop(0)
        try:
            result = function()
        except Exception:
            done.errback()
        else:
            done.callback(result)


class Bench:
    """A gateway with a thread."""

    def __init__(self, **changes: Any) -> None:
        self.log, self.thread, self.clock = MemoryLog(), Thread(), Clock()
        log: Any = self.log
        self.gateway = Gateway(
            AgentCenterSettings(**changes),
            log,
            self.clock,
            lambda: WALL,
            self.clock.seconds,
            in_thread=self.thread,
        )


def test_a_huge_message_keeps_nobody_else_waiting() -> None:
    """What its sender says after it waits and follows in order; others are served meanwhile."""
    bench = Bench()
    big, small = Host(bench.gateway, "10.0.0.1"), Host(bench.gateway, "10.0.0.2")
    streams = big.open(), small.open()
    big.send(streams[0], batch("a1", 59))
    big.client.send_message(streams[0], snappy_frame(batch("a1", 42, 42, k=HUGE)))
    big.send(streams[0], batch("a1", 59))
    big.client.half_close(streams[0])
    big.pump()
    small.send(streams[1], batch("a2", 59))
    assert bench.log.of("a1") == [59]
    assert bench.log.of("a2") == [59]
    assert big.ended(streams[0]) is None
    assert big.link.unread  # so its silence says nothing
    bench.thread.work()
    big.pump()
    assert bench.log.of("a1") == [59, 42, 42, 59]
    ended = big.ended(streams[0])
    assert ended is not None
    assert ended.status == Status.OK
    assert not big.link.unread
    assert bench.gateway.unpacker.messages == 1


def test_two_huge_ones_in_a_row() -> None:
    """Each waits for the one before, within one read, too."""
    bench = Bench()
    host = Host(bench.gateway)
    stream = host.open()
    for kind in (41, 42, 43):
        host.client.send_message(stream, snappy_frame(batch("a1", kind, k=HUGE)))
    host.pump()
    for done in (1, 2, 3):
        assert len(bench.thread.jobs) == 1
        bench.thread.work()
        host.pump()
        assert bench.log.of("a1") == [41, 42, 43][:done]
    assert bench.thread.jobs == []


def test_one_at_a_time() -> None:
    """Memory is kept for one result: the next is unpacked when it was taken."""
    bench = Bench()
    hosts = [Host(bench.gateway, f"10.0.0.{n}") for n in (1, 2)]
    for number, host in enumerate(hosts):
        host.send(host.open(), batch(f"a{number}", 59, k=HUGE))
    assert len(bench.thread.jobs) == 1
    bench.thread.work()
    assert bench.log.of("a0") == [59]
    assert len(bench.thread.jobs) == 1
    bench.thread.work()
    assert bench.log.of("a1") == [59]


def test_its_room_stays_taken() -> None:
    """What waits compressed counts against the memory of all streams, and for no deadline."""
    bench = Bench(message_seconds=30.0)
    host = Host(bench.gateway)
    stream = host.open()
    body = bytes(range(256)) * 8_000  # stored, nearly as it is
    host.send(stream, batch("a1", 59, k=HUGE + body.hex()))
    held = bench.gateway.memory.used
    assert held > 100_000
    bench.clock.advance(60)
    assert bench.gateway.memory.used == held
    assert host.ended(stream) is None
    bench.thread.work()
    assert bench.gateway.memory.used == 0
    assert bench.log.of("a1") == [59]


def test_bombs_and_damage_are_found_there() -> None:
    """A message beyond the limit, and one that breaks behind its beginning, end their streams."""
    bench = Bench(decompressed_bytes=2 * INLINE_BYTES, message_bytes=2 * INLINE_BYTES)
    host = Host(bench.gateway)
    for message, status in (
        (bytes(2 * INLINE_BYTES + 1), Status.RESOURCE_EXHAUSTED),
        (batch("a1", 59, k=HUGE)[:-1], Status.INTERNAL),
    ):
        stream = host.open()
        host.send(stream, message)
        bench.thread.work()
        host.pump()
        ended = host.ended(stream)
        assert ended is not None
        assert ended.status == status
    stream = host.open()
    host.send(stream, batch("a1", 59))
    assert bench.log.of("a1") == [59]


def test_lost_meanwhile() -> None:
    """What a lost connection had brought is stored, what a reset one had brought is not."""
    for reset in (False, True):
        bench = Bench()
        host = Host(bench.gateway)
        host.send(host.open(), batch("a1", 59, k=HUGE))
        if reset:
            host.link.abort()
        host.drop()
        assert (len(bench.gateway.links) == 1) is not reset
        bench.thread.work()
        assert bench.log.of("a1") == [59] * (not reset)
        assert bench.gateway.memory.used == 0
        assert len(bench.gateway.links) == 0


def test_told_its_end_meanwhile() -> None:
    """A stream that another one replaced is read to its end, that message too."""
    bench = Bench()
    old, new = Host(bench.gateway, port=1), Host(bench.gateway, port=2)
    stream = old.open()
    old.send(stream, batch("a1", 42))
    old.send(stream, batch("a1", 43, k=HUGE))
    new.send(new.open(), batch("a1", 59))
    bench.thread.work()
    old.pump()
    assert bench.log.of("a1") == [42, 59, 43]
    ended = old.ended(stream)
    assert ended is not None
    assert ended.status == Status.ABORTED


def test_a_fault_of_ours_costs_the_connection(monkeypatch: Any) -> None:
    """A message that cannot be taken is lost aloud: its sender begins anew."""
    bench = Bench()
    host = Host(bench.gateway)
    host.send(host.open(), batch("a1", 59, k=HUGE))
    told: list[str] = []
    monkeypatch.setattr(Logger, "failure", lambda self, text, *args, **named: told.append(text))

    def broken(self: TransferStream, *args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(TransferStream, "_receive", broken)
    bench.thread.work()
    assert told == ["a message is lost by a fault of ours"]
    assert host.transport.disconnected
