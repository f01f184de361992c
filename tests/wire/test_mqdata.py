"""What readers and Kafka get of a record."""

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.errors import WireError
from elkeid.wire import item, mqdata
from elkeid.wire.rawdata import Header, encode_record, split
from tests.wire.messages import CANONICAL, VALID, damaged, put

GOLDEN_RAW = bytes.fromhex(
    "0a12083b1080e2cfaa061a080a060a0161120162120261311a0831302e302e302e311a0831302e302e302e32"
    "3a01684203312e304a0c656c6b6569642d6167656e74"
)
GOLDEN_VALUE = bytes.fromhex(
    "083b1080e2cfaa061a080a060a0161120162220261312a1131302e302e302e312c31302e302e302e324a0168"
    "5203312e305a0c656c6b6569642d6167656e746081e2cfaa067a0574312c7432"
)


def test_record_and_suffix_make_the_golden_value() -> None:
    """A batch of one record becomes the very bytes that upstream sends to Kafka."""
    packet = split(GOLDEN_RAW)
    [(_, count, region)] = packet.runs
    [record] = mqdata.records(region)
    suffix = mqdata.encode_suffix(packet.header, 1_700_000_001, b"t1,t2")
    assert count == 1
    assert record + suffix == GOLDEN_VALUE


def test_the_golden_value_decoded() -> None:
    """Lists are split at commas, fields are text."""
    assert mqdata.decode(GOLDEN_VALUE) == mqdata.MQData(
        data_type=59,
        agent_time=1_700_000_000,
        body=b"\n\x06\n\x01a\x12\x01b",
        agent_id="a1",
        intranet_ipv4=["10.0.0.1", "10.0.0.2"],
        extranet_ipv4=[],
        intranet_ipv6=[],
        extranet_ipv6=[],
        hostname="h",
        version="1.0",
        product="elkeid-agent",
        svr_time=1_700_000_001,
        psm_name="",
        psm_path="",
        tags=["t1", "t2"],
        fields={"a": "b"},
    )


def test_a_suffix_follows_time_and_tags() -> None:
    """What a header keeps of its last suffix is used for the same time and tags alone."""
    header = Header(agent_id=b"a")
    for time, tags in ((1, b""), (1, b"t"), (2, b"t"), (2, b"t"), (1, b""), (0, b"")):
        fresh = mqdata.encode_suffix(Header(agent_id=b"a"), time, tags)
        assert mqdata.encode_suffix(header, time, tags) == fresh


def test_a_suffix_carries_the_id_given_later() -> None:
    """A header under another id does not keep the suffix of the old one."""
    header = Header(hostname=b"h")
    mqdata.encode_suffix(header, 1, b"")
    renamed = header.with_agent_id(b"noid-1")
    assert mqdata.encode_suffix(renamed, 1, b"").startswith(put(4, b"noid-1"))


def test_a_body_that_is_no_item_is_kept_as_bytes() -> None:
    """Readers get None for the fields, and the body whole; an empty body has no fields."""
    for body in (b"\xff\x00", b"just text", put(9, b"unknown")):
        decoded = mqdata.decode(encode_record(2443, 5, body))
        assert decoded.fields is None
        assert decoded.body == body
    assert mqdata.decode(encode_record(59, 5, b"")).fields == {}


def test_text_that_is_not_utf_8_is_shown_with_replacements() -> None:
    """Any bytes an agent sends can be shown."""
    assert mqdata.decode(put(9, b"\xff") + put(15, b"a,\xff")).hostname == "\ufffd"


@pytest.mark.parametrize("region", [b"\x0a", b"\x0a\x05ab", b"\x0a\x80", b"\x0a\x01a\x0a"])
def test_a_region_cut_short_is_refused(region: bytes) -> None:
    """A reader of a damaged region is told, after the whole records before the damage."""
    with pytest.raises(WireError):
        list(mqdata.records(put(1, b"whole") + region))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=20) | st.just(b"x" * 20_000), max_size=6))
def test_records_of_a_region(wanted: list[bytes]) -> None:
    """Records come out as they went in, whatever their lengths."""
    assert list(mqdata.records(b"".join(put(1, each) for each in wanted))) == wanted


@settings(max_examples=100, deadline=None)
@given(CANONICAL, st.integers(0, 2**40), st.binary(max_size=9))
def test_every_value_of_a_batch_is_decoded(data: bytes, time: int, tags: bytes) -> None:
    """Any canonical batch becomes values that carry its header, the time and the tags."""
    packet = split(data)
    suffix = mqdata.encode_suffix(packet.header, time, tags)
    for _, _, region in packet.runs:
        for record in mqdata.records(region):
            value = mqdata.decode(record + suffix)
            assert value.svr_time == time
            assert value.agent_id == packet.header.agent_id.decode("utf-8", "replace")
            assert ",".join(value.tags) == tags.decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(damaged(st.just(GOLDEN_VALUE)) | VALID | st.binary(max_size=40))
def test_damaged_values_raise_nothing_else(value: bytes) -> None:
    """Only `WireError` escapes from values and regions."""
    for read in (mqdata.decode, lambda region: list(mqdata.records(region)), item.decode_text):
        with contextlib.suppress(WireError):
            read(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=30), st.integers(1, 700))
def test_pieces_of_a_region(wanted: list[bytes], size: int) -> None:
    """Cut between records, they are as large as they may be, and together the region."""
    region = b"".join(put(1, record) for record in wanted)
    found = list(mqdata.pieces(region, size))
    assert b"".join(piece for _, piece in found) == region
    got: list[bytes] = []
    for count, piece in found:
        inside = list(mqdata.records(piece))
        assert len(inside) == count > 0
        assert len(piece) <= size or count == 1
        got += inside
    assert got == wanted
    for (_, piece), (_, after) in itertools.pairwise(found):
        assert len(piece) + len(put(1, next(mqdata.records(after)))) > size


def test_pieces_of_a_region_cut_short() -> None:
    """The end of the last record is missing: refused, as when it is read."""
    with pytest.raises(WireError):
        list(mqdata.pieces(put(1, b"abc") + put(1, b"abc")[:-1], 4))
