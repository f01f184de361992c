"""Layout of segments and frames: bytes to values and back, no I/O.

All integers are little endian. A segment is a 64-byte header, then frames back to back. A
frame is a 56-byte header and a body; the body is entries back to back, each 12 bytes of lengths,
then suffix and region. docs/eventlog.md draws all of it.

The CRC of a frame header starts from the segment's id, so bytes of another segment, or of a
record body that imitates a frame, never pass for a frame here.
"""

import re
import secrets
import struct
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from attrs import frozen
from crc32c import crc32c

from elkeid.errors import LogFormatError
from elkeid.wire.datatypes import RecordClass

FORMAT_VERSION = 1

_SEGMENT = Struct("<8sHBxIQQQQQ4x")
SEGMENT_MAGIC = b"ELKEID\x1a\n"
SEGMENT_HEADER_BYTES = _SEGMENT.size + 4  # 64: the CRC comes last

FRAME_MAGIC = b"\xf5EKF"
_FRAME = Struct("<IIQIIQQQ")  # what follows magic and CRC
_FRAME_CRC = Struct("<I")
_unpack_frame, _unpack_crc = _FRAME.unpack, _FRAME_CRC.unpack_from
_FRAME_BYTES = _FRAME.size
FRAME_HEADER_BYTES = 8 + _FRAME_BYTES  # 56

_ENTRY = Struct("<III")
ENTRY_HEADER_BYTES = _ENTRY.size  # 12
MAX_BODY_BYTES = 0x7FFF_F000 - FRAME_HEADER_BYTES
"""Longest frame body; a frame then fits one write(), which Linux caps at 2 GiB less a page."""

pack_entry = _ENTRY.pack
"""``pack_entry(count, len(suffix), len(region))``: what precedes a suffix and its region."""

KEEP_LOCK = 0
"""For `crc32c`: sum up large buffers with Python's lock held. It would be given up, and with it the
processor's caches, to whichever thread waits for it, for the sake of 20 µs."""

_unpack_entry = _ENTRY.unpack_from
_new = tuple.__new__

_NAME = re.compile(r"(\d{20})-([0-9a-f]{16})\.seg(?:\.zst)?\Z")
_RANDOM_BITS = 20


class SegmentName(NamedTuple):
    """A segment's place and identity; sorts in the order of writing."""

    base: int  # offset of its first record
    ident: int  # random, later segments of the same base have a higher one

    def __str__(self) -> str:
        return f"{self.base:020d}-{self.ident:016x}.seg"

    @property
    def seed(self) -> int:
        """What the CRCs of its frame headers start from."""
        return crc32c(self.ident.to_bytes(8, "little"))

    @property
    def created_ms(self) -> int:
        """When it was begun, milliseconds since the epoch."""
        return self.ident >> _RANDOM_BITS


def parse_segment_name(name: str) -> SegmentName | None:
    """Read a file name; None when it is no segment's, packed or not."""
    match = _NAME.match(name)
    return SegmentName(int(match[1]), int(match[2], 16)) if match else None


def new_ident(now_ms: int, above: int) -> int:
    """Make a segment id: the time and 20 random bits, and higher than ``above``."""
    return max((now_ms << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS), above + 1)


@frozen
class SegmentHeader:
    """The first 64 bytes of a segment."""

    record_class: RecordClass
    name: SegmentName
    created_ms: int
    read: int  # running totals when the segment was begun
    dropped: int

    def encode(self) -> bytes:
        """The bytes of the header."""
        front = _SEGMENT.pack(
            SEGMENT_MAGIC,
            FORMAT_VERSION,
            self.record_class,
            0,
            self.name.base,
            self.created_ms,
            self.name.ident,
            self.read,
            self.dropped,
        )
        return front + _FRAME_CRC.pack(crc32c(front))


def decode_segment_header(data: bytes, path: Path) -> SegmentHeader | None:
    """Read a segment's header; None when it is short or damaged.

    Magic, version and CRC keep their places in every version, so that one can tell a newer
    format from damage.

    Raises:
        LogFormatError: the header is sound, but of another version.
    """
    if len(data) < SEGMENT_HEADER_BYTES:
        return None
    front = data[: _SEGMENT.size]
    magic, version, label, _, base, created_ms, ident, read, dropped = _SEGMENT.unpack(front)
    (crc,) = _FRAME_CRC.unpack_from(data, _SEGMENT.size)
    if magic != SEGMENT_MAGIC or crc != crc32c(front):
        return None
    if version != FORMAT_VERSION:
        raise LogFormatError(
            f"{path}: event log format {version}, this version knows {FORMAT_VERSION}; "
            "run the version that wrote it, or move the file away"
        )
    try:
        record_class = RecordClass(label)
    except ValueError:
        return None
    return SegmentHeader(record_class, SegmentName(base, ident), created_ms, read, dropped)


class FrameHeader(NamedTuple):
    """What a frame says of itself, its CRC checked."""

    body_bytes: int
    body_crc: int
    first_offset: int
    records: int
    entries: int
    time_ms: int  # since the epoch, when it was written
    read: int  # running totals of the class, this frame included
    dropped: int

    @property
    def end_offset(self) -> int:
        """Offset after the last record: also the running total of appended records."""
        return self.first_offset + self.records


def encode_frame_header(
    seed: int,
    body: bytes,
    *,
    first_offset: int,
    records: int,
    entries: int,
    time_ms: int,
    read: int,
    dropped: int,
) -> bytes:
    """The 56 bytes that precede ``body``."""
    rest = _FRAME.pack(
        len(body),
        crc32c(body, 0, KEEP_LOCK),
        first_offset,
        records,
        entries,
        time_ms,
        read,
        dropped,
    )
    return FRAME_MAGIC + _FRAME_CRC.pack(crc32c(rest, seed)) + rest


def decode_frame_header(data: bytes, at: int, seed: int) -> FrameHeader | None:
    """Read the header at ``at``; None when those 56 bytes are not a sound one."""
    if not data.startswith(FRAME_MAGIC, at):
        return None
    rest = data[at + 8 : at + FRAME_HEADER_BYTES]
    if len(rest) != _FRAME_BYTES or _unpack_crc(data, at + 4)[0] != crc32c(rest, seed):
        return None
    return _new(FrameHeader, _unpack_frame(rest))


class Entry(NamedTuple):
    """Records of one agent batch and one class."""

    record_class: RecordClass
    first_offset: int
    records: int
    suffix: bytes  # MQData fields 4 to 15, the same for every record
    region: bytes  # each record as tag 0x0a, varint length, record
    time_ms: int  # when it was written

    @property
    def end_offset(self) -> int:
        """Offset after its last record."""
        return self.first_offset + self.records


Row = tuple[RecordClass, int, int, bytes, bytes, int]
"""The fields of an `Entry`, which is one, too, at four times the price of a plain tuple."""


def add_entries(
    entries: list[Row],
    record_class: RecordClass,
    header: FrameHeader,
    data: bytes,
    at: int,
) -> bool:
    """Split a frame's body, which begins in ``data`` at ``at`` and is all there.

    Returns:
        False when its lengths or counts contradict each other; then nothing is added.
    """
    before = len(entries)
    body_bytes, _, offset, records, count, time_ms, _, _ = header
    end, end_offset = at + body_bytes, offset + records
    try:
        while at < end:
            number, suffix_bytes, region_bytes = _unpack_entry(data, at)
            start = at + ENTRY_HEADER_BYTES
            middle = start + suffix_bytes
            at = middle + region_bytes
            entries.append(
                (record_class, offset, number, data[start:middle], data[middle:at], time_ms)
            )
            offset += number
    except struct.error:  # the bytes end within an entry's lengths
        at = end + 1
    if at != end or offset != end_offset or len(entries) - before != count:
        del entries[before:]
        return False
    return True


def skip_records(region: bytes, count: int) -> bytes | None:
    """Cut the first ``count`` records off a region; None when it has no such records."""
    at, size = 0, len(region)
    for _ in range(count):
        if at >= size or region[at] != 0x0A:
            return None
        at += 1
        length = shift = 0
        while True:
            if at >= size or shift > 28:
                return None
            byte = region[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        at += length
        if at > size:
            return None
    return region[at:]
