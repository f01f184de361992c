"""What agents send decodes to what was meant, and is numbered without a gap."""

import json
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.fleet.buffer import BUFFER_RECORDS, RecordBuffer
from elkeid.fleet.events import OWN_TYPES, SAMPLE, EventsError, load_events, parse_events
from elkeid.fleet.host import STOCK_PLUGINS, Activity, Host
from elkeid.fleet.records import (
    Identity,
    StreamWriter,
    Template,
    event_template,
    own_template,
)
from elkeid.wire import rawdata
from elkeid.wire.compression import snappy_frame
from elkeid.wire.datatypes import RecordClass
from tests.fleet.gateway import decode_batch

IDENTITY = Identity("id-1", "host-1", ("10.0.0.1", "10.0.0.2"), ("fd00::1",))


def writer(number: int = 0) -> StreamWriter:
    """A writer for one stream of a fixed agent."""
    return StreamWriter(number, IDENTITY.hostname, IDENTITY.encode())


def test_a_batch_is_what_was_meant() -> None:
    """Type, time and every field arrive; the host's name and the counters are patched in."""
    templates = [
        event_template(59, {"exe": "/bin/sh", "nodename": "elsewhere", "fleet_seq": "7"}),
        event_template(4000, {"status": "true", "note": "ü" * 200}),
        event_template(1010, {"level": "error"}),
    ]
    body = snappy_frame(writer(3).encode([(t, 1_700_000_000 + n) for n, t in enumerate(templates)]))
    records = decode_batch(body)
    counters = {"fleet_conn": "3", "fleet_seq": "0"}
    assert [(r.data_type, r.time) for r in records] == [
        (59, 1_700_000_000),
        (4000, 1_700_000_001),
        (1010, 1_700_000_002),
    ]
    assert records[0].fields == {"exe": "/bin/sh", "nodename": "host-1", **counters}
    assert records[1].fields == {
        "status": "true",
        "note": "ü" * 200,
        "fleet_conn": "3",
        "fleet_seq": "1",
    }
    assert records[2].fields == {"level": "error", **counters}
    assert {(r.agent_id, r.hostname) for r in records} == {("id-1", "host-1")}


def test_the_host_is_on_the_packet() -> None:
    """A batch names the agent, its addresses, version and product, and is canonical."""
    data = writer().encode([(event_template(59, {"a": "b"}), 1)])
    packet = rawdata.split(data)
    header = packet.header
    assert header.agent_id == b"id-1"
    assert header.intranet_ipv4 == [b"10.0.0.1", b"10.0.0.2"]
    assert header.intranet_ipv6 == [b"fd00::1"]
    assert header.product == b"elkeid-agent"
    assert header.version
    assert data.startswith(packet.runs[0][2])  # spliced, so it was taken as it is


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([59, 1010, 5100, 8010, 2_000_000_000]), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.integers(0, 2000),
)
def test_numbers_have_no_gap(
    kinds: list[tuple[int, bool]], batches: list[int], already: int
) -> None:
    """However records are batched, each class counts from 0 without gap or double."""
    templates = [event_template(t, {"nodename": "x"} if named else {}) for t, named in kinds]
    out = writer()
    out.sent = [already, already, already]
    expected = dict.fromkeys(RecordClass, already)
    at = 0
    for size in batches:
        chosen = [(templates[(at + n) % len(templates)], 1_700_000_000 + at) for n in range(size)]
        at += size
        for record in decode_batch(snappy_frame(out.encode(chosen))):
            assert record.fields["fleet_seq"] == str(expected[record.record_class])
            expected[record.record_class] += 1
    assert out.sent == list(expected.values())


def test_sample_events_are_shipped_and_replayable() -> None:
    """The packaged events encode to what their file says, but for what agents make themselves."""
    lines = (resources.files("elkeid.fleet") / SAMPLE).read_text(encoding="utf-8").splitlines()
    wanted = [json.loads(line) for line in lines]
    wanted = [event for event in wanted if event["data_type"] not in OWN_TYPES]
    events = load_events(None)
    assert len(events.templates) == len(wanted)
    assert events.left_out == len(lines) - len(wanted)
    out = writer()
    records = decode_batch(snappy_frame(out.encode([(t, 5) for t in events.templates])))
    for record, event in zip(records, wanted, strict=True):
        got = {k: v for k, v in record.fields.items() if not k.startswith("fleet_")}
        if "nodename" in event["fields"]:
            event["fields"]["nodename"] = "host-1"
        assert (record.data_type, got) == (event["data_type"], event["fields"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no event to replay"),
        ('{"data_type": 1000, "fields": {}}', "no event to replay"),
        ('{"data_type": 5100, "fields": {"token": "t"}}', "no event to replay"),
        ("{", "line 1"),
        ('{"data_type": 59, "fields": {}}\n{"data_type": "59", "fields": {}}', "line 2"),
        ('{"data_type": 59, "fields": {"pid": 1}}', "fields"),
        ('{"data_type": 0, "fields": {}}', "data_type"),
        ('{"fields": {}}', "data_type"),
    ],
)
def test_bad_event_files(text: str, said: str) -> None:
    """A file that cannot be replayed is told in a sentence, with the line."""
    with pytest.raises(EventsError, match=said):
        parse_events(text.split("\n"), "my.jsonl")


def test_event_files_from_disk(tmp_path: Path) -> None:
    """Own events are read from a file; a missing or binary one is told by name."""
    path = tmp_path / "my.jsonl"
    path.write_text('{"data_type": 59, "fields": {"a": "b\u2028c"}, "scenario": "x"}\n\n')
    assert len(load_events(path).templates) == 1
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(EventsError, match="not UTF-8"):
        load_events(path)
    with pytest.raises(EventsError, match=r"gone\.jsonl: No such file"):
        load_events(tmp_path / "gone.jsonl")


def numbered(count: int, own: bool = False) -> list[tuple[Template, int]]:
    """Records told apart by their time."""
    template = own_template(1000, b"") if own else event_template(59, {})
    return [(template, n) for n in range(count)]


def test_the_full_buffer() -> None:
    """When 2048 records wait, plugins' new ones are lost and the agent's own take slot 0."""
    buffer = RecordBuffer()
    events = numbered(BUFFER_RECORDS + 10)
    lost = [buffer.add(record) for record in events]
    assert lost == [None] * BUFFER_RECORDS + events[-10:]
    own = numbered(2, own=True)
    assert buffer.add(own[0]) == events[0]
    assert (buffer.own, buffer.dropped, buffer.overwritten) == (1, 10, 1)
    assert buffer.add(own[1]) == own[0]
    assert (len(buffer), buffer.own, buffer.overwritten) == (BUFFER_RECORDS, 1, 2)
    assert buffer.take() == [own[1], *events[1:BUFFER_RECORDS]]
    assert (len(buffer), buffer.own) == (0, 0)


def test_hosts_follow_from_seed_and_number() -> None:
    """The same seed makes the same hosts; others differ in id, name and address."""
    hosts = [Host(7, number) for number in range(300)]
    again = [Host(7, number) for number in range(300)]
    assert [host.identity for host in hosts] == [host.identity for host in again]
    assert len({host.identity.agent_id for host in hosts}) == 300
    assert len({host.identity.hostname for host in hosts}) == 300
    assert len({host.identity.intranet_ipv4 for host in hosts}) == 300
    assert Host(8, 0).identity.agent_id != hosts[0].identity.agent_id
    named = Host(7, 0, "load-", "box").identity
    assert named.agent_id == "load-" + hosts[0].identity.agent_id
    assert named.hostname == "box"


def test_heartbeats_are_complete() -> None:
    """A heartbeat has the fields that real agents send, all of them text; so has a plugin's."""
    host = Host(1, 1)
    beat = host.heartbeat(1000.0, "sd", Activity(records=90, bytes_sent=600), lambda: 0.5)
    plugin = host.plugin_heartbeat("driver", STOCK_PLUGINS["driver"], 1000.0, 2.0, lambda: 0.5)
    first, second = decode_batch(snappy_frame(writer().encode([(beat, 60), (plugin, 60)])))
    assert (first.data_type, second.data_type) == (1000, 1001)
    known = (
        "kernel_version arch platform platform_family platform_version state state_detail idc "
        "region net_mode rx_speed tx_speed rx_tps tx_tps cpu rss read_speed write_speed pid nfd "
        "start_time du ngr nproc total_mem load_1 load_5 load_15 running_procs total_procs "
        "host_serial host_id host_model host_vendor dns gateway cpu_name boot_time cpu_usage "
        "mem_usage fleet_conn fleet_seq"
    )
    assert set(first.fields) == set(known.split())
    assert first.fields["net_mode"] == "sd"
    assert first.fields["tx_tps"] == "1.50000000"
    assert first.fields["tx_speed"] == "10.00000000"
    known = (
        "name pversion cpu rss read_speed write_speed pid nfd start_time du rx_tps tx_tps "
        "rx_speed tx_speed fleet_conn fleet_seq"
    )
    assert set(second.fields) == set(known.split())
    assert second.fields["name"] == "driver"
