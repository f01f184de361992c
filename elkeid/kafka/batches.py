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

from elkeid.eventlog.format import KEEP_LOCK, Entry, Row
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
_AFTER: Final = [b"\0" + each for each in _ZIGZAG]
"""The same after a zero: the headers of the record before, or the attributes of this one."""
_SHORT: Final = 64
"""Numbers below take one byte, all others in the tables two."""
_SPARE: Final = 9
"""Bytes that the numbers of a record take at most, while all are in the tables."""
_PARTS: Final = 7
"""Of a record, in the list that becomes a batch."""
_LAYOUTS: Final = 64
"""Lists of lengths that are kept, 64 KiB each; agents of one kind need about four."""

_lengths: dict[int, list[bytes]] = {}


def _lengths_beside(fixed: int) -> list[bytes]:
    """Lengths of records as they begin, by bytes of the value.

    Args:
        fixed: bytes of all else in a record, but for the value's own length.
    """
    if len(_lengths) >= _LAYOUTS:
        _lengths.clear()
    found = _AFTER[fixed + 1 : fixed + 1 + _SHORT] + _AFTER[fixed + 2 + _SHORT :]
    _lengths[fixed] = found
    return found


def _sized(key: bytes) -> bytes:
    """A key after its length."""
    return (_ZIGZAG[len(key)] if len(key) < _TABLED else _zigzag(len(key))) + key


UUID_FRONT: Final = b"\x22\x24"
UUID_BEHIND: Final = b"\x22\x25"
UUID_END: Final = 38
"""A suffix between the two begins with an agent id of 36 bytes, as all but a few do, which ends
there. To compare is quicker than to cut off the front."""
_UUID_KEY: Final = _ZIGZAG[UUID_END - len(UUID_FRONT)]


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
    """One encoded record batch, and the entries it was made of."""

    entries: list[Row]
    records: int
    region_bytes: int  # what they took in the log
    body: bytes  # all after the header
    attributes: int
    base_ms: int
    max_ms: int
    arrivals: list[tuple[int, int]]  # when records were received, milliseconds; how many

    @property
    def first_offset(self) -> int:
        """The log's offset of its first record."""
        return Entry._make(self.entries[0]).first_offset

    @property
    def end_offset(self) -> int:
        """The log's offset after its last record."""
        return Entry._make(self.entries[-1]).end_offset

    @property
    def oldest_ms(self) -> int:
        """When its first record was received, milliseconds since the epoch."""
        return Entry._make(self.entries[0]).time_ms

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return HEADER_BYTES + len(self.body)

    def header(self, producer_id: int, epoch: int, sequence: int) -> bytes:
        """What goes before the body: who sends this batch, and its number with this sender."""
        rest = _REST.pack(
            self.attributes,
            self.records - 1,
            self.base_ms,
            self.max_ms,
            producer_id,
            epoch,
            sequence,
            self.records,
        )
        front = _FRONT.pack(0, HEADER_BYTES - 12 + len(self.body), -1, _MAGIC)
        return front + _CRC.pack(crc32c(self.body, crc32c(rest), KEEP_LOCK)) + rest


class RegionDamaged(Exception):
    """An entry's region does not hold the records it says."""


def encode(
    pending: deque[Row],
    byte_limit: int,
    record_limit: int,
    compression: str,
    untimed_before: int = 0,
) -> Batch:
    """Take as many records as fit from the front of ``pending`` and encode them.

    Args:
        pending: at least one entry; what is taken is removed, the last one is cut if need be.
        byte_limit: of header and records before compression; one record goes in any case.
        record_limit: most records, at least 1.
        compression: a key of `COMPRESSORS`.
        untimed_before: offset below which records have no time, because a broker refuses theirs.

    Raises:
        RegionDamaged: the first entry cannot be read; it stays where it is.
    """
    table = _ZIGZAG
    first = Entry._make(pending[0])
    timed = first.first_offset >= untimed_before
    base = last_ms = max_ms = first.time_ms
    front = b"\0\0"
    # Each record begins with the zero that ends the one before: that it has no headers.
    parts: list[bytes] = []
    size, delta, region_bytes = HEADER_BYTES, 0, 0
    tabled = min(record_limit, _TABLED)
    whole = 0  # entries, of those that are pending
    cut: Row | None = None  # the part that is taken of the next
    arrivals: list[tuple[int, int]] = []
    counted = 0
    for entry in pending:
        label, offset, count, suffix, region, time_ms = entry
        if not timed and offset >= untimed_before:
            break  # times that are refused go apart
        if time_ms != last_ms:
            arrivals.append((last_ms, delta - counted))
            counted, last_ms = delta, time_ms
            if timed:
                max_ms = max(max_ms, time_ms)
                later = time_ms - base
                front = _AFTER[later] if 0 <= later < _TABLED else b"\0" + _zigzag(later)
        if UUID_FRONT < suffix < UUID_BEHIND:
            middle = _UUID_KEY + suffix[2:UUID_END]
        else:
            middle = _sized(agent_id(suffix))
        suffix_bytes, all_bytes = len(suffix), len(region)
        fixed = len(front) + len(middle) + 1
        most = all_bytes + count * (fixed + suffix_bytes + _SPARE)
        end_delta = delta + count
        if size + most <= byte_limit:
            if end_delta <= tabled:
                # All of it fits: nearly always, and as quickly as can be.
                at, begin, end = 1, delta, end_delta
                if begin < _SHORT < end:
                    end = _SHORT
                try:
                    while True:
                        beside = fixed + (1 if end <= _SHORT else 2)
                        lengths = _lengths.get(beside) or _lengths_beside(beside)
                        for offset_delta in table[begin:end]:
                            length = region[at]
                            if length < 0x80:
                                start = at + 1
                            else:
                                length += (region[at + 1] << 7) - 0x80
                                start = at + 2
                            at = start + length
                            value = length + suffix_bytes
                            parts += (
                                lengths[value],
                                front,
                                offset_delta,
                                middle,
                                table[value],
                                region[start:at],
                                suffix,
                            )
                            at += 1
                        if end == end_delta:
                            break
                        begin, end = end, end_delta
                except IndexError:
                    at = 0
                if at == all_bytes + 1:
                    whole += 1
                    delta = end_delta
                    size += most
                    region_bytes += all_bytes
                    continue
                del parts[_PARTS * delta :]  # damaged, or numbers beyond the tables
        elif whole and end_delta <= record_limit:
            break
        if delta >= record_limit:
            break
        try:
            got, end = _add_records(
                parts,
                (front, middle, suffix),
                region,
                first=delta,
                most=min(count, record_limit - delta),
                room=byte_limit - size,
            )
        except IndexError as error:
            if whole:
                break  # sent first, so that nothing is lost with it
            raise RegionDamaged(f"records {offset} to {offset + count - 1}") from error
        delta, size, region_bytes = delta + got, size + most, region_bytes + end
        if got == count:
            whole += 1
            continue
        if got:
            cut = (label, offset, got, suffix, region[:end], time_ms)
            rest = (label, offset + got, count - got, suffix, region[end:], time_ms)
        break
    if whole == len(pending):
        taken = list(pending)
        pending.clear()
    else:
        taken = [pending.popleft() for _ in range(whole)]
    if cut is not None:
        taken.append(cut)
        pending[0] = rest
    arrivals.append((last_ms, delta - counted))
    if not timed:
        base = max_ms = NO_TIME
    parts[0] = parts[0][1:]
    parts.append(b"\0")
    body, attributes = b"".join(parts), 0
    if (codec := COMPRESSORS[compression]) is not None:
        body, attributes = codec.compress(body), codec.attribute
    return Batch(taken, delta, region_bytes, body, attributes, base, max_ms, arrivals)


def _add_records(
    parts: list[bytes],
    constant: tuple[bytes, bytes, bytes],
    region: bytes,
    *,
    first: int,
    most: int,
    room: int,
) -> tuple[int, int]:
    """Add records of an entry that does not fit whole, or has lengths beyond the tables.

    Args:
        parts: added to, `_PARTS` for each record.
        constant: attributes and time; the key after its length; the suffix.
        region: theirs.
        first: records in the batch so far.
        most: records to add.
        room: bytes to add; the first record of a batch goes in any case.

    Returns:
        How many were added, and where they end in the region.

    Raises:
        IndexError: the region does not hold what it says; nothing was added.
    """
    front, middle, suffix = constant
    added: list[bytes] = []
    got = at = 0
    while got < most:
        length = shift = 0
        start = at + 1
        while (byte := region[start]) >= 0x80:
            length |= (byte & 0x7F) << shift
            start, shift = start + 1, shift + 7
        start += 1
        end = start + (length | byte << shift)
        if end > len(region):
            raise IndexError(end)
        value = end - start + len(suffix)
        inner = b"".join((front, _zigzag(first + got), middle, _zigzag(value)))
        total = _zigzag(len(inner) + value + 1)
        room -= len(total) + len(inner) + value + 1
        if room < 0 and first + got:
            break
        added += (b"\0", total, inner, b"", b"", region[start:end], suffix)
        got, at = got + 1, end
    parts += added
    return got, at
