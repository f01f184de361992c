"""What an agent meets at the gateway: a real link, a real client side, no sockets."""

from itertools import count

import pytest
from twisted.internet.task import Clock

from elkeid.agentcenter.api import status_of
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.heartbeats import AGENT_BYTES, HEARTBEAT_BYTES, PLUGIN_LIMIT
from elkeid.agentcenter.identity import HEADER_BYTES
from elkeid.wire.datatypes import RecordClass
from elkeid.wire.grpc import Status
from tests.agentcenter.host import WALL, Host, MemoryLog, batch, make_gateway


def test_records_of_a_stream_are_kept_and_confirmed() -> None:
    """Everything sent before a half-close is in the log when the status says OK."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 1000, 59, 59))
    host.send(stream, batch("a1", 42))
    host.client.half_close(stream)
    host.pump()
    ended = host.ended(stream)
    assert ended is not None
    assert (ended.status, ended.from_trailers) == (Status.OK, True)
    assert [data.data_type for _, data in log.kept] == [1000, 59, 59, 42]
    assert gateway.streams == 0
    assert len(gateway.table) == 0


def test_heartbeats_show_in_the_table() -> None:
    """The last heartbeat of the agent and of each plugin is what status shows."""
    gateway, _, clock = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 59))
    agent = gateway.table.get("a1")
    assert agent is not None
    assert status_of(agent) == {"agent_info": {}, "plugins_info": []}
    clock.advance(3)
    host.send(stream, batch("a1", 1000, cpu="0.5"))
    host.send(stream, batch("a1", 1001, name="driver", pversion="1"))
    host.send(stream, batch("a1", 1001, name="driver", pversion="2"))
    status = status_of(agent)
    assert status["agent_info"]["cpu"] == 0.5
    assert status["agent_info"]["agent_addr"] == "10.0.0.1:40000"
    assert status["agent_info"]["last_heartbeat_time"] == WALL + 3
    assert [(p["name"], p["pversion"]) for p in status["plugins_info"]] == [("driver", "2")]


def test_record_with_an_empty_body_kills_nothing() -> None:
    """Upstream's process dies of it; here it is one more record."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    raw = (
        b"\x0a\x03\x08\xec\x27" + b"\x0a\x03\x08\xe8\x07" + b"\x0a\x03\x08\xe9\x07" + b"\x12\x02a1"
    )
    host.send(stream, raw)
    assert log.of("a1") == [5100, 1000, 1001]
    assert host.ended(stream) is None
    assert gateway.counters.bad_heartbeats == 1  # a plugin without a name


def test_reconnect_from_the_same_address_takes_over_at_once() -> None:
    """What the old stream still brings is kept, but not applied."""
    gateway, log, _ = make_gateway()
    old, new = Host(gateway), Host(gateway, port=40001)
    first = old.open()
    old.send(first, batch("a1", 1000, v="old"))
    second = new.open()
    new.send(second, batch("a1", 1000, v="new"))
    old.pump()
    ended = old.ended(first)
    assert ended is not None
    assert ended.status == Status.ABORTED
    agent = gateway.table.get("a1")
    assert agent is not None
    assert status_of(agent)["agent_info"]["v"] == "new"
    assert agent.stream.peer_addr == "10.0.0.1:40001"
    assert log.of("a1") == [1000, 1000]


def test_newcomer_from_elsewhere_loses_against_a_live_holder() -> None:
    """It is told so, what it brought is kept, and nothing of it is applied."""
    gateway, log, _ = make_gateway()
    holder, thief = Host(gateway), Host(gateway, "10.6.6.6")
    first, second = holder.open(), thief.open()
    holder.send(first, batch("a1", 1000, v="holder"))
    thief.send(second, batch("a1", 1000, v="thief"))
    assert thief.ended(second) is None  # the holder is being asked
    holder.pump()  # its PING answer
    thief.pump()
    ended = thief.ended(second)
    assert ended is not None
    assert (ended.status, ended.message) == (Status.UNKNOWN, "agentID conflict")
    agent = gateway.table.get("a1")
    assert agent is not None
    assert status_of(agent)["agent_info"]["v"] == "holder"
    assert log.of("a1") == [1000, 1000]
    assert gateway.table.conflicts == 1


def test_newcomer_wins_when_the_holder_is_silent() -> None:
    """After the probe's five seconds the id moves, with what the newcomer said meanwhile."""
    gateway, _, clock = make_gateway()
    holder, new = Host(gateway), Host(gateway, "10.0.0.2")
    first, second = holder.open(), new.open()
    holder.send(first, batch("a1", 1000, v="old"))
    holder.frozen = True
    new.send(second, batch("a1", 1000, v="new"))
    clock.advance(4.9)
    agent = gateway.table.get("a1")
    assert agent is not None
    assert status_of(agent)["agent_info"]["v"] == "old"
    clock.advance(0.2)
    agent = gateway.table.get("a1")
    assert agent is not None
    assert status_of(agent)["agent_info"]["v"] == "new"
    assert holder.transport.disconnected  # reset: nobody is there
    assert new.ended(second) is None


def test_holder_that_goes_during_the_probe_makes_room_at_once() -> None:
    """No need to sit out the five seconds."""
    gateway, _, _ = make_gateway()
    holder, new = Host(gateway), Host(gateway, "10.0.0.2")
    first, second = holder.open(), new.open()
    holder.send(first, batch("a1", 1000, v="old"))
    holder.frozen = True
    new.send(second, batch("a1", 1000, v="new"))
    holder.drop()
    agent = gateway.table.get("a1")
    assert agent is not None
    assert status_of(agent)["agent_info"]["v"] == "new"
    assert new.ended(second) is None


def test_second_id_on_a_stream_ends_it() -> None:
    """The first message's id holds; nothing of the offending message is kept."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 59))
    host.send(stream, batch("a2", 59, 59))
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.INVALID_ARGUMENT
    assert "agent_id" in ended.message
    assert log.of("a1") == [59]
    assert log.of("a2") == []


def test_empty_id_is_derived_from_the_host() -> None:
    """The same host has the same id each time; another host another one."""
    gateway, log, _ = make_gateway()
    for port, name in enumerate(["web-1", "web-1", "web-2"]):
        host = Host(gateway, port=port + 1)
        stream = host.open()
        host.send(stream, batch("", 59, hostname=name))
        host.send(stream, batch("", 42, hostname=name))
        host.drop()
    log.commit()
    ids = [data.agent_id for _, data in log.kept]
    assert all(each.startswith("noid-") for each in ids)
    assert ids[0] == ids[1] == ids[2] == ids[3] != ids[4] == ids[5]
    assert gateway.counters.unidentified == 3


@pytest.mark.parametrize("mark", ["\0", "\n", "\x1b", "\x7f", "\x9b", "\u202e", "\u2028"])
def test_id_that_cannot_be_shown_is_derived_as_well(mark: str) -> None:
    """It counts as none: records, lists and logs go by the derived id, another for another id."""
    gateway, log, _ = make_gateway()
    for port, name in enumerate([f"a{mark}1", f"a{mark}2"]):
        host = Host(gateway, port=port + 1)
        stream = host.open()
        for data_type in (59, 42):
            host.send(stream, batch(name, data_type))
    log.commit()
    ids = [data.agent_id for _, data in log.kept]
    assert all(each.startswith("noid-") for each in ids)
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert {agent.agent_id for agent in gateway.table} == set(ids)
    assert gateway.counters.unidentified == 2


@pytest.mark.parametrize(
    ("agent_id", "why"), [("", "is empty"), ("a\n1", "has characters that cannot be shown")]
)
def test_empty_id_can_be_refused(agent_id: str, why: str) -> None:
    """Then the stream ends, but what it brought is kept."""
    gateway, log, _ = make_gateway(empty_agent_id="refuse")
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch(agent_id, 59))
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.INVALID_ARGUMENT
    assert ended.message == f"agent_id {why}"
    log.commit()
    assert [data.data_type for _, data in log.kept] == [59]
    assert len(gateway.table) == 0


def test_overlong_id_is_refused() -> None:
    """An id is a key in many places; 129 bytes are no id."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("x" * 129, 59))
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.INVALID_ARGUMENT
    assert log.kept == []


def test_stream_beyond_the_limit_is_refused_but_read() -> None:
    """Trailers-Only at once, and what the agent had already sent is not lost."""
    gateway, log, clock = make_gateway(connection_limit=1)
    first, second = Host(gateway), Host(gateway, "10.0.0.2")
    first.send(first.open(), batch("a1", 59))
    stream = second.client.open_call()
    second.client.send_message(stream, batch("a2", 59), False)
    second.pump()
    ended = second.ended(stream)
    assert ended is not None
    assert (ended.status, ended.message) == (Status.UNKNOWN, "out of max connection limit")
    assert log.of("a2") == [59]
    assert gateway.table.get("a2") is None
    first.drop()
    again = second.open()
    second.send(again, batch("a2", 42))
    assert gateway.table.get("a2") is not None
    clock.advance(10)
    assert gateway.streams == 1


def test_silent_stream_gives_its_place_back() -> None:
    """A stream without a first message does not hold a place for ever."""
    gateway, _, clock = make_gateway(first_message_seconds=60)
    host = Host(gateway)
    stream = host.open()
    clock.advance(60.1)
    host.pump()
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.DEADLINE_EXCEEDED
    clock.advance(5.1)
    assert gateway.streams == 0


def test_handshake_that_does_not_end_is_reset() -> None:
    """A peer that connects and says nothing loses its connection after the deadline."""
    gateway, _, clock = make_gateway(handshake_seconds=15)
    host = Host(gateway)
    clock.advance(15.1)
    assert host.transport.disconnected
    host.drop()
    assert gateway.links == set()


def test_peer_without_http2_is_reset() -> None:
    """No agent speaks anything else."""
    gateway, _, clock = make_gateway()
    host = Host(gateway)
    host.transport.negotiatedProtocol = None
    host.link.handshakeCompleted()
    assert host.transport.disconnected
    host.drop()
    assert clock.getDelayedCalls() == []


def test_bad_data_ends_the_stream_and_nothing_else() -> None:
    """Each kind of rubbish has its status; the connection and other streams go on."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    good = host.open()
    host.send(good, batch("a1", 59))
    for body, compressed, status in [
        (b"\xff\xff\xff", True, Status.INTERNAL),
        (b"\x0a\xff\x01", False, Status.INTERNAL),
        (b"\x0a\x02\x08", False, Status.INTERNAL),
    ]:
        stream = host.client.open_call()
        host.client.send_message(stream, body, compressed)
        host.pump()
        ended = host.ended(stream)
        assert ended is not None, body
        assert ended.status == status
    host.send(good, batch("a1", 42))
    assert log.of("a1") == [59, 42]
    assert host.ended(good) is None


def test_bomb_is_stopped_before_memory_is_taken() -> None:
    """A small message that unpacks beyond the limit ends its stream."""
    gateway, log, _ = make_gateway(message_bytes=1 << 20, decompressed_bytes=1 << 20)
    host = Host(gateway)
    stream = host.open()
    host.send(stream, b"\0" * ((1 << 20) + 1))
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.RESOURCE_EXHAUSTED
    assert log.kept == []


def test_stop_says_goodbye_and_reads_to_the_end() -> None:
    """GOAWAY, OK trailers, and what comes until the agent has seen them is kept."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 59))
    host.client.send_message(stream, batch("a1", 42), False)  # on its way already
    late = host.client.data_to_send()
    drained = gateway.take_leave(0)
    host.link.dataReceived(late)
    host.pump()
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.OK
    assert host.client.going_away
    assert log.of("a1") == [59, 42]
    host.drop()
    assert drained.called


def test_status_is_not_ok_when_the_log_refused_records() -> None:
    """OK after a half-close means stored, so a full disk must not answer it."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    log.failing = True
    host.send(stream, batch("a1", 59))
    log.commit()
    log.failing = False
    host.client.half_close(stream)
    host.pump()
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.DATA_LOSS


def test_status_is_not_ok_when_records_were_dropped_for_rate() -> None:
    """An agent in an error loop is not told that all is stored."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", *[1010] * 201))
    host.client.half_close(stream)
    host.pump()
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.RESOURCE_EXHAUSTED
    assert log.dropped == {(RecordClass.LOGS, "rate"): 1}


def test_nothing_ticks_after_everybody_left() -> None:
    """Every timer belongs to a stream that cancels it."""
    gateway, _, clock = make_gateway()
    hosts = [Host(gateway), Host(gateway, "10.0.0.2"), Host(gateway, "10.0.0.3")]
    for host in hosts:
        host.send(host.open(), batch("a1", 59))
    for host in hosts:
        host.drop()
    assert [call for call in clock.getDelayedCalls() if call.active()] == []
    assert gateway.streams == 0


def test_agents_are_cut_anywhere() -> None:
    """After any byte of a session the agent may vanish: whole messages count, the rest does not."""
    whole = Host(make_gateway()[0])
    stream = whole.client.open_call()
    whole.client.send_message(stream, batch("a1", 59), False)
    whole.client.send_message(stream, batch("a1", 42), False)
    session = whole.client.data_to_send()
    seen = set()
    for cut in range(len(session) + 1):
        gateway, log, clock = make_gateway()
        host = Host(gateway)
        for byte in session[:cut]:
            host.link.dataReceived(bytes([byte]))
        host.drop()
        assert log.of("a1") == [59, 42][: len(log.of("a1"))]
        seen.add(len(log.of("a1")))
        assert gateway.streams == len(gateway.table) == len(gateway.links) == 0
        assert clock.getDelayedCalls() == []
    assert seen == {0, 1, 2}


def test_id_that_looks_derived_is_refused() -> None:
    """No agent passes for one whose id we made."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("noid-1", 59))
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.INVALID_ARGUMENT
    assert log.kept == []


def test_overlong_header_is_refused() -> None:
    """What a batch says of its host is kept for each stream, so it is bounded."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 59, hostname="h" * HEADER_BYTES))
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.RESOURCE_EXHAUSTED
    assert log.kept == []


def test_later_batch_may_say_no_more_of_its_host() -> None:
    """Each batch's word of its host is kept, so each is held against the limit."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 59))
    host.send(stream, batch("a1", 42, hostname="h" * HEADER_BYTES))
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.RESOURCE_EXHAUSTED
    assert log.of("a1") == [59]


def test_large_headers_take_their_room_from_the_memory_of_all_streams() -> None:
    """It comes back with the stream, or a smaller header; without room the stream ends."""
    gateway, log, _ = make_gateway(memory_bytes=65 * 1024 * 1024)
    free, large = gateway.memory.limit, HEADER_BYTES // 4
    hosts = [Host(gateway, f"10.0.0.{number}") for number in range(60)]
    streams = [host.open() for host in hosts]
    for number, (host, stream) in enumerate(zip(hosts, streams, strict=True)):
        host.send(stream, batch(f"a{number}", 59, hostname="h" * large))
    ends = [host.ended(stream) for host, stream in zip(hosts, streams, strict=True)]
    refused = [end for end in ends if end is not None]
    assert 0 < len(refused) < 60
    assert {end.status for end in refused} == {Status.RESOURCE_EXHAUSTED}
    assert free - 2 * large < gateway.memory.used <= free
    before = gateway.memory.used
    hosts[0].send(streams[0], batch("a0", 60, hostname="h"))
    assert gateway.memory.used < before - large
    for host in hosts:
        host.drop()
    assert gateway.memory.used == 0
    log.commit()
    assert len(log.kept) == 60 - len(refused) + 1


def test_claimants_results_without_room_are_counted() -> None:
    """Results that cannot wait for the end of a dispute are told; their records are kept."""
    gateway, log, _ = make_gateway()
    refused: list[int] = []
    gateway.results_refused = refused.append
    holder = Host(gateway)
    holder.send(holder.open(), batch("a1", 59))
    assert gateway.memory.take(gateway.memory.limit)
    claimant = Host(gateway, "10.0.0.2")
    claimant.send(claimant.open(), batch("a1", 5100, 59, 5100))
    assert refused == [2]
    log.commit()
    assert len(log.of("a1")) == 4


def test_flood_of_heartbeats_is_not_worked_through() -> None:
    """Only the newest are applied, as many as the rate lets pass; bad ones are said once."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", *[1001] * 4000))  # without a name
    assert gateway.counters.bad_heartbeats <= PLUGIN_LIMIT + 1
    assert len(log.of("a1")) == 100 + 200
    host.send(stream, batch("a1", *[1001] * 4000))
    assert gateway.counters.bad_heartbeats <= PLUGIN_LIMIT + 1
    assert host.ended(stream) is None


def test_huge_heartbeat_is_kept_but_not_shown() -> None:
    """A record of any size is stored; the table keeps no such thing in memory."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 1000, cpu="x" * HEARTBEAT_BYTES))
    assert log.of("a1") == [1000]
    agent = gateway.table.get("a1")
    assert agent is not None
    assert agent.heartbeat is None
    assert gateway.counters.bad_heartbeats == 1


def test_heartbeats_of_an_agent_are_bounded_together() -> None:
    """Many large plugin heartbeats are stored, but not kept in memory; later small ones are."""
    gateway, log, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    for number in range(8):
        host.send(stream, batch("a1", 1001, name=f"p{number}", text="x" * (AGENT_BYTES // 4)))
    agent = gateway.table.get("a1")
    assert agent is not None
    assert AGENT_BYTES // 2 < agent.heartbeat_bytes() <= AGENT_BYTES
    assert gateway.counters.bad_heartbeats == 8 - len(agent.plugins)
    host.send(stream, batch("a1", 1001, name="p0", text="x"))  # replaces a large one
    host.send(stream, batch("a1", 1000, cpu="0.1"))
    assert agent.heartbeat is not None
    assert len(log.of("a1")) == 10
    assert host.ended(stream) is None


def test_second_claim_joins_the_probe_under_way() -> None:
    """A newcomer that gives up and another that comes cost the holder one PING."""
    gateway, _, clock = make_gateway()
    holder, first, second = Host(gateway), Host(gateway, "10.0.0.2"), Host(gateway, "10.0.0.3")
    holder.send(holder.open(), batch("a1", 59))
    holder.frozen = True
    first.send(first.open(), batch("a1", 59))
    first.drop()
    stream = second.open()
    second.send(stream, batch("a1", 59))
    assert second.ended(stream) is None
    clock.advance(5.1)
    agent = gateway.table.get("a1")
    assert agent is not None
    assert agent.stream.peer_host == "10.0.0.3"


def test_two_ids_of_one_connection_are_probed_together() -> None:
    """Both newcomers get the one answer."""
    gateway, _, _ = make_gateway()
    holder, first, second = Host(gateway), Host(gateway, "10.0.0.2"), Host(gateway, "10.0.0.3")
    holder.send(holder.open(), batch("a1", 59))
    holder.send(holder.open(), batch("a2", 59))
    one, two = first.open(), second.open()
    first.send(one, batch("a1", 59))
    second.send(two, batch("a2", 59))
    holder.pump()
    for host, stream in ((first, one), (second, two)):
        host.pump()
        ended = host.ended(stream)
        assert ended is not None
        assert ended.message == "agentID conflict"


def test_claim_is_settled_when_the_holder_reconnects_meanwhile() -> None:
    """The probed link goes, its agent is back already: the newcomer is refused, not forgotten."""
    gateway, _, _ = make_gateway()
    old, new, thief = Host(gateway), Host(gateway, port=40001), Host(gateway, "10.6.6.6")
    old.send(old.open(), batch("a1", 59))
    old.frozen = True
    stream = thief.open()
    thief.send(stream, batch("a1", 59))
    new.send(new.open(), batch("a1", 59))
    old.drop()
    thief.pump()
    ended = thief.ended(stream)
    assert ended is not None
    assert ended.message == "agentID conflict"
    agent = gateway.table.get("a1")
    assert agent is not None
    assert agent.stream.peer_addr == "10.0.0.1:40001"


def test_stop_withdraws_a_claim() -> None:
    """A newcomer told goodbye does not become the holder when the holder goes."""
    gateway, log, clock = make_gateway()
    holder, new = Host(gateway), Host(gateway, "10.0.0.2")
    holder.send(holder.open(), batch("a1", 59))
    holder.frozen = True
    stream = new.client.open_call()
    new.client.send_message(stream, batch("a1", 42), False)
    new.link.dataReceived(new.client.data_to_send())
    gateway.take_leave(0)
    holder.drop()
    assert len(gateway.table) == 0
    new.pump()
    new.drop()
    assert sorted(log.of("a1")) == [42, 59]
    assert [call for call in clock.getDelayedCalls() if call.active()] == []


def test_connection_without_calls_is_closed() -> None:
    """Nobody sits on a connection for nothing."""
    gateway, _, clock = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 59))
    host.client.cancel_call(stream)
    host.pump()
    clock.advance(59)
    assert not host.transport.disconnecting
    host.send(host.open(), batch("a1", 59))
    clock.advance(120)
    assert not host.transport.disconnecting
    host.client.cancel_call(3)
    host.pump()
    clock.advance(61)
    host.pump()
    assert host.client.going_away
    assert host.lost


def test_latecomer_of_a_closed_port_is_reset() -> None:
    """A handshake that ends after the port was closed: the agent tries its next address at once."""
    gateway, _, _ = make_gateway()
    gateway.closed = True
    host = Host(gateway)
    host.pump()
    assert host.transport.disconnected
    assert host.lost


def test_calls_are_refused_while_the_port_stays_open() -> None:
    """The connection stays, so that the agent asks here again instead of counting a failure."""
    gateway, log, _ = make_gateway()
    before = Host(gateway)
    before.send(before.open(), batch("a0", 59))
    gateway.draining = Status.UNAVAILABLE
    host = Host(gateway)
    stream = host.open()
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.UNAVAILABLE
    assert not host.client.going_away
    host.send(stream, batch("a1", 42))  # what had been on its way is kept
    before.send(1, batch("a0", 43))  # who was here goes on
    assert log.of("a0") == [59, 43]
    assert [agent.agent_id for agent in gateway.table] == ["a0"]


def test_broken_connection_frees_its_places_at_once() -> None:
    """After a protocol error nothing more can come: ids and places are free."""
    gateway, _, clock = make_gateway()
    host = Host(gateway)
    host.send(host.open(), batch("a1", 59))
    host.link.dataReceived(b"\0\0\4\x08\0\0\0\0\0\0\0\0\0")  # WINDOW_UPDATE of 0
    assert (gateway.streams, len(gateway.table)) == (0, 0)
    clock.advance(5.1)
    assert host.transport.disconnected  # it did not say goodbye


def test_calls_that_grpc_ends_are_counted() -> None:
    """An announced length beyond the limit shows in the metrics."""
    gateway, _, _ = make_gateway(message_bytes=1 << 20)
    host = Host(gateway)
    stream = host.open()
    host.send(stream, b"x" * ((1 << 20) + 1), compressed=False)
    ended = host.ended(stream)
    assert ended is not None
    assert ended.status == Status.RESOURCE_EXHAUSTED
    assert gateway.counters.statuses == {Status.RESOURCE_EXHAUSTED: 1}


def slow_gateway() -> tuple[Gateway, MemoryLog, Clock]:
    """A gateway to which every look at the clock shows that a slice is over."""
    gateway, log, clock = make_gateway()
    steps = count(0.0, 0.03)
    gateway.monotonic = lambda: next(steps)
    return gateway, log, clock


def several(host: Host, stream: int, *data_types: int) -> bytes:
    """One read that brings several messages."""
    for data_type in data_types:
        host.client.send_message(stream, batch("a1", data_type), False)
    return host.client.data_to_send()


def test_expensive_messages_of_one_agent_take_turns_with_others() -> None:
    """A read that brings much work is acted on in slices, in order; nothing is read meanwhile."""
    gateway, log, clock = slow_gateway()
    host = Host(gateway)
    stream = host.open()
    host.link.dataReceived(several(host, stream, 1, 2, 3))
    assert log.of("a1") == [1]
    assert host.transport.producerState == "paused"
    host.link.dataReceived(several(host, stream, 4))  # another TLS record of the same read
    clock.advance(0)  # the fake clock runs all turns that follow at once
    assert log.of("a1") == [1, 2, 3, 4]
    assert host.transport.producerState == "producing"
    assert clock.getDelayedCalls() == []


def test_work_that_waits_is_done_when_the_agent_leaves() -> None:
    """What was received whole before the loss is kept; then the id is free."""
    gateway, log, clock = slow_gateway()
    host = Host(gateway)
    stream = host.open()
    host.link.dataReceived(several(host, stream, 1, 2, 3))
    host.drop()
    assert len(gateway.table) == 1
    clock.pump([0, 0, 0])
    assert log.of("a1") == [1, 2, 3]
    assert (len(gateway.table), gateway.streams, gateway.links) == (0, 0, set())
    assert clock.getDelayedCalls() == []


def test_reset_ends_work_that_waits() -> None:
    """A stop does not wait for a connection that has too much to do."""
    gateway, _, clock = slow_gateway()
    host, gone = Host(gateway), Host(gateway, "10.0.0.2")
    host.link.dataReceived(several(host, host.open(), 1, 2, 3))
    gone.link.dataReceived(several(gone, gone.open(), 1, 2, 3))
    gone.drop()
    gateway.abort()
    host.drop()
    assert (len(gateway.table), gateway.links) == (0, set())
    assert clock.getDelayedCalls() == []
