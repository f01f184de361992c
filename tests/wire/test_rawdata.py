"""Batches split into records, by class."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.errors import WireError
from elkeid.wire.datatypes import CLASS_OF, RecordClass
from elkeid.wire.mqdata import records
from elkeid.wire.protobuf import TooManyFields
from elkeid.wire.rawdata import (
    FIELD_LIMIT,
    RECORD_LIMIT,
    SPECIAL,
    Header,
    Packet,
    encode_record,
    split,
)
from tests.wire import naive
from tests.wire.messages import (
    BODIES,
    CANONICAL,
    DATA_TYPES,
    ODD_RECORDS,
    TIMES,
    VALID,
    damaged,
    plain_record,
    put,
    put_varint,
)

ID = b"d8a7b8f2-3a5e-5c8e-9d55-0f4d0e6a2f10"
TAIL = put(2, ID) + put(3, b"10.0.0.1") + put(3, b"10.0.0.2") + put(7, b"host")
NOW = 1_764_000_000
CONTROL, TELEMETRY, LOGS = RecordClass.CONTROL, RecordClass.TELEMETRY, RecordClass.LOGS


def batch(*kinds: int, body: bytes = b"b" * 200, time: int = NOW) -> bytes:
    """Make the records of a batch as agents do, without its header."""
    return b"".join(put(1, plain_record(kind, time, body)) for kind in kinds)


def header_fields(header: Header) -> naive.Header:
    """Give a header as the naive decoder does."""
    return {
        2: header.agent_id,
        3: header.intranet_ipv4,
        4: header.extranet_ipv4,
        5: header.intranet_ipv6,
        6: header.extranet_ipv6,
        7: header.hostname,
        8: header.version,
        9: header.product,
    }


def assert_agrees(packet: Packet, data: bytes) -> None:
    """Check a packet against the naive decoder, record by record, and that it is canonical."""
    expected, header = naive.raw_data(data)
    assert header_fields(packet.header) == header
    assert packet.count == len(expected)
    counts: dict[int, int] = {}
    wanted: dict[RecordClass, list[bytes]] = {}
    for data_type, time, body in expected:
        counts[data_type] = counts.get(data_type, 0) + 1
        cls = CLASS_OF.get(data_type, TELEMETRY)
        wanted.setdefault(cls, []).append(plain_record(data_type, time, body))
    assert packet.counts == counts
    assert packet.special == [each for each in expected if each[0] in SPECIAL]
    assert len({cls for cls, _, _ in packet.runs}) == len(packet.runs)
    for cls, count, region in packet.runs:
        assert region == b"".join(put(1, record) for record in wanted[cls])
        assert list(records(region)) == wanted.pop(cls)
        assert count == region_count(region)
    assert not wanted


def region_count(region: bytes) -> int:
    """Count the records of a region."""
    return len(list(records(region)))


def test_a_batch_of_one_class_is_one_slice_of_the_message() -> None:
    """Telemetry of several types comes out as the very bytes that came in."""
    front = batch(59, 59, 42, 601, 59)
    packet = split(front + TAIL)
    assert packet.runs == [(TELEMETRY, 5, front)]
    assert packet.counts == {59: 3, 42: 1, 601: 1}
    assert packet.special == []
    assert packet.header.agent_id == ID
    assert packet.header.intranet_ipv4 == [b"10.0.0.1", b"10.0.0.2"]


def test_each_class_keeps_the_order_of_its_records() -> None:
    """Records of three classes in one batch are sorted by class and stay in order within it."""
    packet = split(batch(59, 1000, 42, 1010, 1001, 601) + TAIL)
    assert [(cls, count) for cls, count, _ in packet.runs] == [
        (TELEMETRY, 3),
        (CONTROL, 2),
        (LOGS, 1),
    ]
    assert packet.runs[0][2] == batch(59, 42, 601)
    assert packet.runs[1][2] == batch(1000, 1001)


def test_heartbeats_and_task_results_are_handed_out_with_their_bodies() -> None:
    """The gateway sees type, time and body of each record it must look into, also empty ones."""
    data = batch(1000, body=b"") + batch(5100, 5100, body=b"no item") + batch(59) + TAIL
    assert split(data).special == [
        (1000, NOW, b""),
        (5100, NOW, b"no item"),
        (5100, NOW, b"no item"),
    ]


@pytest.mark.parametrize("data_type", sorted(SPECIAL | {1010, 1011}))
def test_a_record_whose_body_is_no_item_is_kept(data_type: int) -> None:
    """Upstream drops task results and logs that it cannot parse, or dies of them; we keep them."""
    for body in (b"", b"\xff\xff", b"\x0a\x05ab"):
        front = batch(data_type, body=body)
        assert split(front + TAIL).runs == [(CLASS_OF[data_type], 1, front)]


def test_the_same_host_is_not_decoded_twice() -> None:
    """A header whose bytes are known is given back as the same object."""
    first = split(batch(59) + TAIL)
    again = split(batch(42, 1000) + TAIL, first.header)
    other = split(batch(42) + TAIL + put(8, b"1.0"), first.header)
    assert again.header is first.header
    assert other.header is not first.header
    assert other.header.version == b"1.0"


def test_a_header_under_another_id_is_still_known() -> None:
    """An id made up for an agent without one lasts as long as the agent says the same."""
    nameless = put(7, b"host")
    header = split(batch(59) + nameless).header.with_agent_id(b"noid-1")
    again = split(batch(59) + nameless, header)
    assert again.header is header
    assert again.header.agent_id == b"noid-1"
    assert again.header.hostname == b"host"


@pytest.mark.parametrize(
    "record",
    [
        plain_record(59, NOW, b"body") + put(4, b"forged id"),
        plain_record(59, NOW, b"body") + put(15, b"forged tags"),
        put(3, b"body") + put(2, NOW) + put(1, 59),
        put(1, 1) + put(1, 59) + put(2, NOW) + put(3, b"body"),
        put(1, 59, size=5) + put(2, NOW) + put(3, b"body"),
        put(1, 59, tag_size=2) + put(2, NOW) + put(3, b"body"),
        put(1, 59) + put(2, NOW, size=10) + put(3, b"body"),
        put(1, 59) + put(2, NOW) + put(3, b"body", size=4),
        put(1, 59 + 2**32) + put(2, NOW) + put(3, b"body"),
        put(1, 59) + put(2, NOW) + put(3, b"old") + put(3, b"body"),
    ],
)
def test_a_record_of_another_form_is_encoded_anew(record: bytes) -> None:
    """Forged, repeated and unordered fields leave, and over-long numbers are shortened."""
    clean = put(1, plain_record(59, NOW, b"body"))
    for front in (put(1, record), clean + put(1, record), put(1, record, size=4)):
        region = split(front + TAIL).runs[0][2]
        assert set(records(region)) == {plain_record(59, NOW, b"body")}


@pytest.mark.parametrize("data_type", [-1, -3, -(2**31), 2**31 - 1, 2**14, 2**28, 2**21 - 1])
@pytest.mark.parametrize("time", [0, 1, 26, -1, 2**63 - 1, -(2**63)])
def test_extreme_numbers_keep_their_bytes(data_type: int, time: int) -> None:
    """Negative types and far times are canonical, in ten bytes or fewer."""
    data = batch(data_type, 59, data_type, time=time) + TAIL
    packet = split(data)
    assert packet.runs == [(TELEMETRY, 3, data[: -len(TAIL)])]
    assert packet.counts == {data_type: 2, 59: 1}


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 2**21, 2**21 + 1])
def test_bodies_of_every_length_form(size: int) -> None:
    """Lengths of one to four bytes are read right."""
    front = batch(59, 1000, 59, body=b"x" * size)
    packet = split(front + TAIL)
    assert packet.count == 3
    assert packet.special[0][2] == b"x" * size


def test_fields_of_the_host_may_come_first() -> None:
    """Records and the host's fields may be in any order; the last value of each text holds."""
    packet = split(put(7, b"early") + batch(59) + TAIL + batch(42) + put(7, b"late"))
    assert packet.runs == [(TELEMETRY, 2, batch(59, 42))]
    assert packet.header.hostname == b"late"


def test_no_header_and_nothing_at_all() -> None:
    """A batch may lack its header or its records, or be empty."""
    assert split(batch(59, 59)).runs == [(TELEMETRY, 2, batch(59, 59))]
    assert split(TAIL).runs == []
    assert split(TAIL).count == 0
    assert split(b"").header.agent_id == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\xff",
        b"\x0a\x05\x08",
        put(1, b"\x08"),
        put(1, b"\x1a\x05abc"),
        put(1, put(1, b"text")),
        put(1, put(3, 5)),
        put(1, 5),
        put(7, 5),
        b"\x00\x01",
        b"\x0c",
        b"\x0b",
        b"\x0e\x01",
        b"\x0a" + b"\x80" * 11,
        b"\x0a" + b"\xff" * 9 + b"\x01",
        put(1, b"\x08" + b"\x80" * 10 + b"\x01"),
        put_varint(2**29 * 8) + b"\x00",
    ],
)
def test_a_malformed_message_is_refused(data: bytes) -> None:
    """What is no RawData costs the peer its stream, wherever in the message it stands."""
    for message in (data, batch(59) + data, batch(59) + TAIL + data):
        with pytest.raises(WireError):
            split(message)


def test_a_message_cut_anywhere_is_refused_or_means_less() -> None:
    """No cut lets an exception out, and what is then left is what the naive decoder sees."""
    data = batch(59, 1000, 42) + TAIL
    for end in range(len(data)):
        try:
            expected = naive.raw_data(data[:end])
        except naive.Refused:
            with pytest.raises(WireError):
                split(data[:end])
        else:
            assert split(data[:end]).count == len(expected[0])


def test_too_many_records_are_refused() -> None:
    """Neither form of a batch can hold the reactor or the memory for long."""
    one = batch(59, body=b"")
    assert split(one * RECORD_LIMIT + TAIL).count == RECORD_LIMIT
    for message in (one * (RECORD_LIMIT + 1) + TAIL, TAIL + one * (RECORD_LIMIT + 1)):
        with pytest.raises(TooManyFields):
            split(message)


def test_too_many_fields_are_refused() -> None:
    """Unknown fields, in the batch or in its records, count against one limit."""
    unknown = put(20, 1)
    with pytest.raises(TooManyFields):
        split(unknown * (FIELD_LIMIT + 1))
    with pytest.raises(TooManyFields):
        split(put(1, unknown * 10_000) * (FIELD_LIMIT // 10_000 + 1))
    with pytest.raises(TooManyFields):
        split(b"\x0b" * (FIELD_LIMIT + 1))


@settings(max_examples=300, deadline=None)
@given(CANONICAL)
def test_canonical_batches_agree_with_a_naive_decoder(data: bytes) -> None:
    """Every batch of the agents' form is split as a simple decoder says."""
    assert_agrees(split(data), data)


@settings(max_examples=400, deadline=None)
@given(VALID)
def test_valid_batches_agree_with_a_naive_decoder(data: bytes) -> None:
    """Every other valid batch, too: any order, unknown fields, over-long numbers."""
    assert_agrees(split(data), data)


@settings(max_examples=600, deadline=None)
@given(damaged(CANONICAL) | damaged(VALID) | st.binary(max_size=60))
def test_damaged_batches_are_refused_or_agree(data: bytes) -> None:
    """Only `WireError` escapes, and exactly where a simple decoder refuses."""
    try:
        naive.raw_data(data)
    except naive.Refused:
        with pytest.raises(WireError):
            split(data)
    else:
        assert_agrees(split(data), data)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(DATA_TYPES, TIMES, BODIES), max_size=5), st.lists(CANONICAL, max_size=2))
def test_what_was_split_before_changes_nothing(
    wanted: list[tuple[int, int, bytes]], before: list[bytes]
) -> None:
    """What the splitter keeps of types it has met never mixes messages up."""
    for data in before:
        split(data)
    data = b"".join(put(1, encode_record(*each)) for each in wanted) + TAIL
    assert_agrees(split(data), data)


@settings(max_examples=200, deadline=None)
@given(ODD_RECORDS)
def test_an_encoded_record_is_canonical(record: bytes) -> None:
    """What we encode from any valid record, we take back unchanged on the fast path."""
    again = encode_record(*naive.record(record))
    assert split(put(1, again) + TAIL).runs[0][2] == put(1, again)
