"""Whole record batches at once: entries of the event log in, Kafka's record batch v2 out.

No I/O, and nothing of a Kafka library. One message a record: key = agent id, value = MQData,
no headers, timestamp = when the record was received.

Source: docs/kafka.md, "Messages".
"""

from collections import deque
from struct import Struct
from typing import Final

from attrs import define
from crc32c import crc32c

from elkeid.eventlog.format import Entry
from elkeid.kafka.compression import COMPRESSORS

# Base offset, length, leader epoch, magic | CRC | attributes, last offset delta, base and
# largest time, producer id, epoch, base sequence, number of records.
_FRONT = Struct(">qiib")
_CRC = Struct(">I")
_REST = Struct(">hiqqqhii")
_CRC_AT = _FRONT.size
_REST_AT = _CRC_AT + _CRC.size
HEADER_BYTES: Final = _REST_AT + _REST.size  # 61
_MAGIC: Final = 2

NO_TIME: Final = -1
"""A timestamp that brokers take whatever limits they set on times."""


def _zigzag(number: int) -> bytes:
    """A signed number as Kafka's varint."""
    number = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_TABLED: Final = 8192
_ZIGZAG: Final = [_zigzag(number) for number in range(_TABLED)]
"""Lengths and offset deltas, of which nearly all are this small."""


@define
class Piece:
    """Consecutive records of one entry that are to be sent: all of it, or what is left of it."""

    entry: Entry
    key: bytes
    offset: int  # of its first record
    count: int
    at: int  # where its first record begins in the entry's region, bytes
    timed: bool = True  # False: the broker refuses its time

    @property
    def time_ms(self) -> int:
        """The messages' timestamp."""
        return self.entry.time_ms if self.timed else NO_TIME


def agent_id(suffix: bytes) -> bytes:
    """The agent id that a suffix (MQData fields 4 to 15) begins with; empty if it has none."""
    if len(suffix) > 2 and suffix[0] == 0x22 and suffix[1] < 0x80:
        return suffix[2 : 2 + suffix[1]]
    if suffix[:1] != b"\x22":
        return b""
    at, length, shift = 1, 0, 0
    while at < len(suffix) and shift < 32:
        byte = suffix[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return suffix[at : at + length]
    return b""


@define
class Batch:
    """One encoded record batch, and the pieces it was made of."""

    pieces: list[Piece]
    records: int
    region_bytes: int  # what they took in the log
    buffer: bytearray  # header and records; `stamp` fills the header in
    attributes: int
    base_ms: int
    max_ms: int

    @property
    def first_offset(self) -> int:
        """The log's offset of its first record."""
        return self.pieces[0].offset

    @property
    def oldest_ms(self) -> int:
        """When its first record was received, milliseconds since the epoch."""
        return self.pieces[0].entry.time_ms

    def stamp(self, producer_id: int, epoch: int, sequence: int) -> None:
        """Write the header: who sends this batch, and its number with this sender."""
        buffer = self.buffer
        _REST.pack_into(
            buffer,
            _REST_AT,
            self.attributes,
            self.records - 1,
            self.base_ms,
            self.max_ms,
            producer_id,
            epoch,
            sequence,
            self.records,
        )
        _FRONT.pack_into(buffer, 0, 0, len(buffer) - 12, -1, _MAGIC)
        with memoryview(buffer) as view, view[_REST_AT:] as checked:
            _CRC.pack_into(buffer, _CRC_AT, crc32c(checked))


class RegionDamaged(Exception):
    """An entry's region does not hold the records it says."""


def encode(pending: deque[Piece], byte_limit: int, record_limit: int, compression: str) -> Batch:
    """Take as many records as fit from the front of ``pending`` and encode them.

    Args:
        pending: at least one piece; what is taken is removed, the last piece is cut if need be.
        byte_limit: of header and records before compression; one record goes in any case.
        record_limit: most records, at least 1.
        compression: a key of `COMPRESSORS`.

    Raises:
        RegionDamaged: the first piece cannot be read; it stays where it is.
    """
    base = last_ms = max_ms = pending[0].time_ms
    front = b"\0\0"
    parts: list[bytes] = [bytes(HEADER_BYTES)]
    table, size, delta, region_bytes = _ZIGZAG, HEADER_BYTES, 0, 0
    taken: list[Piece] = []
    while pending and delta < record_limit:
        piece = pending[0]
        entry, key = piece.entry, piece.key
        time_ms = entry.time_ms if piece.timed else NO_TIME
        if time_ms != last_ms:
            if (time_ms < 0) != (base < 0):
                break  # times that are refused go apart
            last_ms = time_ms
            max_ms = max(max_ms, time_ms)
            front = b"\0" + _zigzag(time_ms - base)
        suffix, region, pos = entry.suffix, entry.region, piece.at
        key_bytes = len(key)
        middle = (table[key_bytes] if key_bytes < _TABLED else _zigzag(key_bytes)) + key
        tail = suffix + b"\0"  # no headers
        suffix_bytes = len(suffix)
        fixed = len(front) + len(middle) + 1
        first, end_delta = delta, delta + piece.count
        end_delta = min(end_delta, record_limit)
        try:
            while delta < end_delta:
                length = region[pos + 1]
                start = pos + 2
                if length >= 0x80:
                    length &= 0x7F
                    shift = 7
                    while (byte := region[start]) >= 0x80:
                        length |= (byte & 0x7F) << shift
                        shift += 7
                        start += 1
                    length |= byte << shift
                    start += 1
                end = start + length
                value = length + suffix_bytes
                value_length = table[value] if value < _TABLED else _zigzag(value)
                offset_delta = table[delta] if delta < _TABLED else _zigzag(delta)
                total = fixed + len(offset_delta) + len(value_length) + value
                size += total + 3
                if size > byte_limit and delta:
                    size -= total + 3
                    break
                parts += (
                    table[total] if total < _TABLED else _zigzag(total),
                    front,
                    offset_delta,
                    middle,
                    value_length,
                    region[start:end],
                    tail,
                )
                pos = end
                delta += 1
        except IndexError:
            pos = len(region) + 1
        if pos > len(region):
            if taken:  # sent first, so that nothing is lost with it
                del parts[1 + 7 * first :]
                delta = first
                break
            raise RegionDamaged(f"records {piece.offset} to {piece.offset + piece.count - 1}")
        region_bytes += pos - piece.at
        count = delta - first
        if count == piece.count:
            taken.append(pending.popleft())
            continue
        if count:
            taken.append(Piece(entry, key, piece.offset, count, piece.at, piece.timed))
        piece.offset, piece.count, piece.at = piece.offset + count, piece.count - count, pos
        break
    compress = COMPRESSORS[compression]
    if compress is None:
        return Batch(taken, delta, region_bytes, bytearray().join(parts), 0, base, max_ms)
    header, parts[0] = parts[0], b""
    packed = bytearray().join((header, compress.compress(b"".join(parts))))
    return Batch(taken, delta, region_bytes, packed, compress.attribute, base, max_ms)
