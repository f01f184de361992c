"""The layout of segments, frames, the state and cursors: fixed bytes, and hostile ones."""

from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from elkeid.errors import LogFormatError
from elkeid.eventlog.cursors import ClassCursor, Cursor, DamagedCursor, decode_cursor, encode_cursor
from elkeid.eventlog.format import (
    Entry,
    FrameHeader,
    Row,
    SegmentHeader,
    SegmentName,
    add_entries,
    decode_frame_header,
    decode_segment_header,
    encode_frame_header,
    new_ident,
    pack_entry,
    parse_segment_name,
    skip_records,
)
from elkeid.eventlog.state import (
    MAX_DELETIONS,
    MAX_REASONS,
    SLOT_BYTES,
    LogState,
    decode_slot,
    encode_slot,
)
from tests.eventlog.support import SUFFIX, TELEMETRY, region

NAME = SegmentName(1_000_000, 0x18BCFE5680012345)
PATH = Path("some.seg")


def test_segment_header_bytes() -> None:
    """The header's bytes never change within a format version: old logs stay readable."""
    data = SegmentHeader(TELEMETRY, NAME, 1_700_000_000_000, 1_000_007, 7).encode()
    assert (
        data.hex()
        == (
            "454c4b4549441a0a"  # magic
            "0100"  # format version
            "0100"  # class, padding
            "00000000"
            "40420f0000000000"  # base offset
            "0068e5cf8b010000"  # begun, ms
            "4523018056febc18"  # id
            "47420f0000000000"  # read before
            "0700000000000000"  # dropped before
            "00000000" + crc32c(data[:60]).to_bytes(4, "little").hex()
        )
    )
    header = decode_segment_header(data, PATH)
    assert header == SegmentHeader(TELEMETRY, NAME, 1_700_000_000_000, 1_000_007, 7)


def test_frame_bytes() -> None:
    """The bytes of a frame never change within a format version."""
    body = pack_entry(2, len(SUFFIX), len(region(1, 2))) + SUFFIX + region(1, 2)
    data = encode_frame_header(
        NAME.seed,
        body,
        first_offset=1_000_000,
        records=2,
        entries=1,
        time_ms=1_700_000_000_001,
        read=1_000_009,
        dropped=7,
    )
    assert (
        data.hex()
        == (
            "f5454b46"  # magic
            + crc32c(data[8:], crc32c(bytes.fromhex("4523018056febc18")))
            .to_bytes(4, "little")
            .hex()
            + "1c000000"  # bytes of the body
            + crc32c(body).to_bytes(4, "little").hex()
            + "40420f0000000000"  # first offset
            + "02000000"  # records
            + "01000000"  # entries
            + "0168e5cf8b010000"  # written, ms
            + "49420f0000000000"  # read, this frame included
            + "0700000000000000"  # dropped
        )
    )
    assert (
        body.hex()
        == (
            "02000000" + "04000000" + "0c000000"  # records, bytes of suffix, bytes of region
            "22026131"  # suffix
            "0a04083b1001" + "0a04083b1002"  # region
        )
    )
    header = decode_frame_header(data, 0, NAME.seed)
    assert header is not None
    assert header.end_offset == 1_000_002
    rows: list[Row] = []
    assert add_entries(rows, TELEMETRY, header, b"before" + body, 6)
    assert rows == [Entry(TELEMETRY, 1_000_000, 2, SUFFIX, region(1, 2), header.time_ms)]
    assert decode_frame_header(data, 0, SegmentName(1_000_000, NAME.ident + 1).seed) is None


def test_names() -> None:
    """File names sort as segments follow each other, and other files are none."""
    assert str(NAME) == "00000000000001000000-18bcfe5680012345.seg"
    assert parse_segment_name(str(NAME)) == NAME
    later = SegmentName(NAME.base, new_ident(1, above=NAME.ident))
    assert sorted([str(later), str(NAME)]) == [str(NAME), str(later)]
    assert NAME.created_ms == NAME.ident >> 20
    for other in ("state", "1-2.seg", str(NAME) + ".bak", "x" + str(NAME)):
        assert parse_segment_name(other) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_no_header(data: bytes) -> None:
    """Bytes that are nothing of ours are recognised as that; nothing is raised."""
    assert decode_segment_header(data, PATH) is None
    assert decode_frame_header(data, 0, 1) is None
    assert decode_slot(data, PATH) is None
    with pytest.raises(DamagedCursor):
        decode_cursor(data, PATH)


@given(
    st.binary(max_size=100),
    st.integers(0, 20),
    st.integers(0, 5),
    st.lists(st.integers(0, 40), min_size=3, max_size=3),
)
def test_any_bytes_as_entries(body: bytes, records: int, entries: int, sizes: list[int]) -> None:
    """A body whose lengths and counts do not add up is refused as a whole."""
    body = pack_entry(*sizes) + body
    header = FrameHeader(len(body), 0, 10, records, entries, 0, 0, 0)
    rows: list[Row] = []
    if not add_entries(rows, TELEMETRY, header, body + b"after", 0):
        assert not rows
    else:
        found = [Entry._make(each) for each in rows]
        assert sum(entry.records for entry in found) == records
        assert len(found) == entries
        used = sum(12 + len(entry.suffix) + len(entry.region) for entry in found)
        assert used == len(body)


@given(st.binary(max_size=60), st.integers(0, 10))
def test_any_bytes_as_records(data: bytes, count: int) -> None:
    """Cutting records off what holds none gives nothing, and ends."""
    rest = skip_records(data, count)
    assert rest is None or data.endswith(rest)


def test_records_are_cut_off() -> None:
    """Records of any length are cut off from the front."""
    for size in (0, 1, 127, 128, 300, 70_000):
        length = bytes((size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14))
        one = b"\x0a" + length + bytes(size)
        assert skip_records(one + region(5), 1) == region(5)
        assert skip_records(one[:-1], 1) is None or size == 0
    assert skip_records(region(1), 1) == b""
    assert skip_records(region(1), 2) is None


def test_state_fits_its_slot() -> None:
    """Whatever has happened to a log, its small file suffices to tell."""
    state = LogState(next_offset=1 << 63, checkpoint=(1 << 63, 1 << 40, 1 << 63))
    for number in range(MAX_REASONS * 2):
        state.drop(f"a-long-reason-{number:06d}", 1 << 50)
    for number in range(MAX_DELETIONS * 3):
        state.delete((1 << 62) + number, ("cap", "disk_full")[number % 2])
    slot = encode_slot(state, 7)
    assert len(slot) == SLOT_BYTES
    assert decode_slot(slot, PATH) == (7, state)
    for bit in range(16):  # damage, and no newer format
        flipped = bytearray(slot)
        flipped[4 + bit // 8] ^= 1 << bit % 8
        assert decode_slot(bytes(flipped), PATH) is None


def test_deletions_are_remembered_by_range() -> None:
    """Each record that was deleted is counted by the reason of its own deletion."""
    state = LogState()
    state.delete(10, "cap")
    state.delete(20, "cap")
    state.delete(15, "retention")  # already gone
    state.delete(30, "retention")
    assert state.deleted_to == 30
    assert state.expired(5, 25) == {"cap": 15, "retention": 5}
    assert state.expired(25, 40) == {"retention": 5, "missing": 10}
    assert state.expired(40, 40) == {}


def test_cursor_bytes() -> None:
    """A cursor file is two lines that a person can read; a changed digit is noticed."""
    cursor = Cursor(used_ms=5, classes={"logs": ClassCursor(7, 4, 1, {"cap": 2})})
    data = encode_cursor(cursor)
    text = (
        b'{"format":1,"used_ms":5,"classes":{"logs":{"position":7,"acknowledged":4,'
        b'"set_aside":1,"expired":{"cap":2},"ahead":0,"held":{},"partitions":0}},'
        b'"clean":true,"repeats":{}}'
    )
    assert data == text + b"\n%08x\n" % crc32c(text)
    assert decode_cursor(data, PATH) == cursor
    with pytest.raises(DamagedCursor):
        decode_cursor(data.replace(b"7", b"8"), PATH)
    unbalanced = encode_cursor(Cursor(classes={"logs": ClassCursor(7, 4)}))
    with pytest.raises(DamagedCursor):
        decode_cursor(unbalanced, PATH)
    with pytest.raises(LogFormatError):
        decode_cursor(encode_cursor(Cursor(format=9)), PATH)
