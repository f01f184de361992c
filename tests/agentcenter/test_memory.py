"""What all streams may hold at once: who waits, who goes first, who must make room."""

from typing import Any

from attrs import define, field
from twisted.internet.task import Clock

from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.memory import GRACE_SECONDS, LOOK_SECONDS, MemoryBudget, Share
from elkeid.wire import http2_frames as h2
from elkeid.wire.grpc import LARGE_BYTES, Status
from tests.agentcenter.host import Host, batch, make_gateway

MiB = 1 << 20


@define(eq=False)
class Holder:
    budget: MemoryBudget
    to_come: int = 0
    got: list[Share] = field(factory=list)
    evicted: bool = False

    def ask(self, size: int) -> Share:
        share = Share(self, 1, size)
        if self.budget.ask(share):
            self.got.append(share)
        return share

    def granted(self, share: Share) -> None:
        self.got.append(share)

    def left(self, share: Share) -> int:
        return self.to_come

    def evict(self, share: Share) -> None:
        self.evicted = True
        self.budget.give_back(share)


def test_smallest_goes_first_when_room_comes_back() -> None:
    """A large message does not hold up small ones; nothing passes the limit."""
    clock = Clock()
    budget = MemoryBudget(100, clock)
    first, large, small = Holder(budget), Holder(budget), Holder(budget)
    share = first.ask(90)
    large.ask(80)
    small.ask(20)
    assert (budget.used, budget.waiting, budget.spent) == (90, 2, True)
    assert not budget.take(1)  # nor does anybody overtake those who wait
    budget.give_back(share)
    assert (len(small.got), len(large.got), budget.used) == (1, 1, 100)
    budget.give_back(small.got[0])
    budget.give_back(large.got[0])
    budget.give_back(large.got[0])
    assert (budget.used, clock.getDelayedCalls()) == (0, [])


def test_who_waits_may_leave() -> None:
    """Its place is given to the next, and no timer stays."""
    clock = Clock()
    budget = MemoryBudget(100, clock)
    first, second = Holder(budget), Holder(budget)
    first.ask(100)
    share = second.ask(50)
    budget.give_back(share)
    assert not budget.spent
    assert clock.getDelayedCalls() == []


def test_what_others_hold_counts() -> None:
    """And what they give back without a word is noticed."""
    clock, held = Clock(), [60]
    budget = MemoryBudget(100, clock, lambda: held[0])
    holder = Holder(budget)
    holder.ask(50)
    assert (len(holder.got), budget.used) == (0, 60)
    held[0] = 0
    clock.advance(LOOK_SECONDS)
    assert (len(holder.got), budget.used) == (1, 50)


def test_who_sends_least_makes_room() -> None:
    """Only when others wait, only after a while, and only as many as needed."""
    clock = Clock()
    budget = MemoryBudget(100, clock)
    slow, busy, late = Holder(budget, to_come=49), Holder(budget, to_come=10), Holder(budget)
    slow.ask(50)
    busy.ask(50)
    clock.advance(GRACE_SECONDS)
    late.ask(40)
    assert not late.got
    clock.advance(LOOK_SECONDS)
    assert (slow.evicted, busy.evicted, len(late.got)) == (True, False, 1)
    assert budget.evictions == 1


# --- at the gateway


def half(host: Host, size: int) -> int:
    """Open a call and send the beginning of a message of ``size`` bytes."""
    stream = host.open()
    start = b"\0" + size.to_bytes(4, "big") + bytes(1_000)
    host.link.dataReceived(h2.frame(h2.DATA, 0, stream, start))
    return stream


def gateway_with(memory_bytes: int) -> tuple[Gateway, Any, Clock]:
    gateway, log, clock = make_gateway(memory_bytes=memory_bytes + 64 * MiB)
    return gateway, log, clock


def test_large_message_takes_its_room_and_gives_it_back() -> None:
    """From its first piece until it is dealt with; small ones take none."""
    gateway, log, clock = gateway_with(64 * MiB)
    host = Host(gateway)
    stream = host.open()
    raw = batch("a1", 59, k="x" * LARGE_BYTES)
    host.client.send_message(stream, raw, False)
    data = host.client.data_to_send()
    host.link.dataReceived(data[:100])
    assert gateway.memory.used == len(raw)
    host.link.dataReceived(data[100:])
    assert gateway.memory.used == 0
    assert log.of("a1") == [59]
    host.client.send_message(stream, batch("a1", 59, k="x"), False)
    data = host.client.data_to_send()
    host.link.dataReceived(data[:20])
    assert gateway.memory.used == 0
    host.drop()
    assert clock.getDelayedCalls() == []


def test_connection_without_room_is_not_read() -> None:
    """It waits, loses nothing, and goes on when there is room."""
    gateway, log, _ = gateway_with(64 * MiB)
    greedy = [Host(gateway, f"10.6.6.{n}") for n in range(2)]
    for each in greedy:
        half(each, 32 * MiB - 100)
    host = Host(gateway)
    stream = host.open()
    raw = batch("a1", 59, k="x" * LARGE_BYTES)
    host.client.send_message(stream, raw, False)
    data = host.client.data_to_send()
    host.link.dataReceived(data[:100])
    assert host.transport.producerState == "paused"
    assert gateway.memory.spent
    greedy[0].drop()
    assert host.transport.producerState == "producing"
    host.link.dataReceived(data[100:])
    assert log.of("a1") == [59]


def test_announced_messages_that_do_not_come_make_room() -> None:
    """Hosts that announce much and send nothing hold up others for seconds, and lose."""
    gateway, log, clock = gateway_with(64 * MiB)
    greedy = [Host(gateway, f"10.6.6.{n}") for n in range(2)]
    streams = [half(each, 32 * MiB - 100) for each in greedy]
    host = Host(gateway)
    stream = host.open()
    raw = batch("a1", 59, k="x" * LARGE_BYTES)
    host.client.send_message(stream, raw, False)
    data = host.client.data_to_send()
    host.link.dataReceived(data[:100])
    for _ in range(12):
        clock.advance(LOOK_SECONDS)
    assert host.transport.producerState == "producing"
    host.link.dataReceived(data[100:])
    assert log.of("a1") == [59]
    for each in greedy:
        each.events += each.client.receive_data(each.transport.value())
    ends = [each.ended(stream) for each, stream in zip(greedy, streams, strict=True)]
    statuses = [end.status for end in ends if end is not None]
    assert statuses == [Status.RESOURCE_EXHAUSTED]
    assert gateway.counters.refused_messages == {"memory": 1}


def test_half_messages_on_one_connection() -> None:
    """Four of 32 MiB at once are one too many three times: those calls end, the first goes on."""
    gateway, _, _ = gateway_with(1024 * MiB)
    host = Host(gateway)
    streams = [half(host, 32 * MiB - 100) for _ in range(4)]
    host.events += host.client.receive_data(host.transport.value())
    ends = [host.ended(stream) for stream in streams]
    assert [end and end.status for end in ends] == [None] + [Status.RESOURCE_EXHAUSTED] * 3
    assert gateway.memory.used == 32 * MiB - 100
    assert gateway.counters.refused_messages == {"several": 3}


def test_half_message_has_a_deadline() -> None:
    """A peer that goes on too slowly loses its stream, and the room is free."""
    gateway, _, clock = gateway_with(64 * MiB)
    host = Host(gateway)
    stream = half(host, MiB)
    clock.advance(59)
    assert gateway.memory.used == MiB
    clock.advance(1)
    host.pump()
    end = host.ended(stream)
    assert end is not None
    assert (end.status, gateway.memory.used) == (Status.DEADLINE_EXCEEDED, 0)
    assert gateway.counters.refused_messages == {"deadline": 1}


def test_holder_that_is_not_read_counts_as_alive() -> None:
    """Filling the memory does not let anybody take the id of one who waits for room."""
    gateway, _, clock = gateway_with(64 * MiB)
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 1000))
    for number in range(2):
        half(Host(gateway, f"10.6.6.{number}"), 32 * MiB - 100)
    host.client.send_message(stream, bytes(MiB), False)
    host.link.dataReceived(host.client.data_to_send()[:100])
    host.frozen = True
    thief = Host(gateway, "10.6.6.6")
    thief.send(thief.open(), batch("a1", 1000))
    clock.pump([0.5] * 10)  # the probe's time is over
    agent = gateway.table.get("a1")
    assert agent is not None
    assert agent.stream.peer_host == "10.0.0.1"
