"""What the parts that follow agents are told, and when."""

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.task import Clock

from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.table import Agent
from elkeid.wire.compression import snappy_frame
from elkeid.wire.grpc import Status
from tests.agentcenter.host import Host, batch, make_gateway


class Diary:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def joined(self, agent: Agent) -> None:
        self.lines.append(f"joined {agent.stream.peer_addr}")

    def heartbeat(self, agent: Agent, data_type: int, fields: Mapping[bytes, bytes]) -> None:
        self.lines.append(f"heartbeat {data_type} {fields.get(b'v', b'').decode()}")

    def results(self, agent: Agent, results: Sequence[tuple[int, bytes]]) -> None:
        self.lines.append(f"results {[data_type for data_type, _ in results]}")

    def left(self, agent: Agent) -> None:
        self.lines.append(f"left {agent.stream.peer_addr}")


def watched(**changes: Any) -> tuple[Gateway, Diary, Clock]:
    gateway, _, clock = make_gateway(**changes)
    diary = Diary()
    gateway.follow(diary)
    return gateway, diary, clock


def test_an_agent_from_its_coming_to_its_going() -> None:
    """It joins before anything it says is told; results come in order and all of them."""
    gateway, diary, _ = watched()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 1000, 5100, 59, 8010, v="1"))
    host.client.half_close(stream)
    host.pump()
    assert diary.lines == [
        "joined 10.0.0.1:40000",
        "results [5100, 8010]",
        "heartbeat 1000 1",
        "left 10.0.0.1:40000",
    ]


def test_results_of_refused_streams_count() -> None:
    """An agent does not send them again; but nobody speaks for an id that another holds."""
    gateway, diary, _ = watched(connection_limit=1)
    first = Host(gateway)
    first.send(first.open(), batch("a1", 59))
    for agent_id in ("a2", "a1"):
        host = Host(gateway, "10.0.0.2")
        stream = host.client.open_call()
        host.client.send_message(stream, batch(agent_id, 1000, 5100), False)
        host.pump()
        ended = host.ended(stream)
        assert ended is not None
        assert ended.status == Status.UNKNOWN
    assert diary.lines == ["joined 10.0.0.1:40000", "results [5100]"]
    assert gateway.table.get("a2") is None
    first.drop()
    gateway.draining = Status.UNAVAILABLE
    host = Host(gateway)
    host.client.send_message(host.client.open_call(), batch("a1", 8010), False)
    host.pump()
    assert diary.lines[2:] == ["left 10.0.0.1:40000", "results [8010]"]


def test_results_pass_whatever_the_rate() -> None:
    """Control records beyond the rate count as logs; results are told all the same."""
    gateway, diary, _ = watched()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", *[5100] * 150))
    host.send(stream, batch("a1", 5101))
    assert diary.lines[1:] == [f"results {[5100] * 150}", "results [5101]"]


def test_a_replaced_stream_leaves_without_a_word() -> None:
    """Who follows an agent sees one that joined anew, never one that is gone and still here."""
    gateway, diary, _ = watched()
    old, new = Host(gateway), Host(gateway, port=40001)
    first = old.open()
    old.send(first, batch("a1", 59))
    new.send(new.open(), batch("a1", 59))
    old.pump()
    old.send(first, batch("a1", 5100))
    assert diary.lines == ["joined 10.0.0.1:40000", "joined 10.0.0.1:40001"]


def test_a_newcomer_is_told_once_it_wins() -> None:
    """What a newcomer says while the holder is probed is told when the holder does not answer."""
    gateway, diary, clock = watched()
    old, new = Host(gateway), Host(gateway, address="10.0.0.2")
    old.send(old.open(), batch("a1", 59))
    new.send(new.open(), batch("a1", 1000, 5100, v="new"))
    assert diary.lines == ["joined 10.0.0.1:40000"]
    clock.advance(gateway.settings.probe_seconds + 1)
    assert diary.lines[1:] == ["joined 10.0.0.2:40000", "heartbeat 1000 new", "results [5100]"]


def test_a_loser_is_not_told() -> None:
    """Results of a stream that did not get the id are kept as records and taken from nobody."""
    gateway, diary, clock = watched()
    old, new = Host(gateway), Host(gateway, address="10.0.0.2")
    old.send(old.open(), batch("a1", 59))
    new.send(new.open(), batch("a1", 5100))
    old.pump()  # answers the probe
    clock.advance(1)
    assert diary.lines == ["joined 10.0.0.1:40000"]


def test_results_of_a_stream_that_was_ended_in_peace() -> None:
    """What an agent still sends after a reset or a stop is its own; after that it has left."""
    gateway, diary, _ = watched()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 59))
    host.frozen = True  # its next batch is on the way already
    held = gateway.table.get("a1")
    assert held is not None
    held.stream.end(0, "")
    host.client.send_message(stream, snappy_frame(batch("a1", 5100)))
    host.frozen = False
    host.pump()
    assert diary.lines == [
        "joined 10.0.0.1:40000",
        "results [5100]",
        "left 10.0.0.1:40000",
    ]
