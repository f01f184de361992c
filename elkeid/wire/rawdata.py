"""RawData, the agents' batches: split into records by class, without decoding what need not be.

What agents send is canonical: records first, each exactly the fields 1 to 3 in ascending order
and in their shortest form, then the fields 2 to 9 that tell of the host, the same bytes in
every batch of one agent. `split` walks such a message once and slices it. Any other valid
message is decoded and its records are encoded anew, so that whoever splices fields on to a
record never meets a forged or a repeated one.

Source: docs/protocol.md, "Messages" and "Data types and classes".
"""

import re
from typing import Final

from attrs import define, evolve, field

from elkeid.errors import WireError
from elkeid.wire.datatypes import AGENT_HEARTBEAT, CLASS_OF, PLUGIN_HEARTBEAT, TASK_RESULTS
from elkeid.wire.datatypes import RecordClass as Class
from elkeid.wire.protobuf import (
    BYTES,
    VARINT,
    TooManyFields,
    fields,
    length_delimited,
    read_varint,
    signed,
    varint,
)

RECORD_LIMIT: Final = 4_096
"""Records of one message: twice what an agent's buffer holds. Splitting costs time by the
record, and records of a few bytes compress to nothing."""

FIELD_LIMIT: Final = 4 * RECORD_LIMIT
"""Fields of one message, those of its records counted, where each must be decoded."""

SPECIAL = frozenset({AGENT_HEARTBEAT, PLUGIN_HEARTBEAT, *TASK_RESULTS})
"""Data types that the gateway looks into."""

_TYPE = re.compile(rb"\x08([\x80-\xff]{0,3}[\x01-\x7f])").match
_TIME = re.compile(rb"(?:\x10[\x80-\xff]{0,8}[\x01-\x7f])?(\x1a)?").match
"""A record's first fields in their shortest form: data type; time, and the tag of the body."""

_FILLING: Final = {
    length + (1 if length < 0x80 else 2): varint(length) for length in range(1, 1 << 14)
}
"""By the bytes that are left for a body and its length: that length, in its shortest form."""

_NOTHING: Final = b"\x00"  # no record holds this where a field starts: numbers start at 1


@define(eq=False)
class Header:
    """What a batch says of its host: RawData fields 2 to 9, bytes as received.

    A value: make another with `with_agent_id` rather than change one, since what was encoded
    from it is kept in it.
    """

    agent_id: bytes = b""
    intranet_ipv4: list[bytes] = field(factory=list)
    extranet_ipv4: list[bytes] = field(factory=list)
    intranet_ipv6: list[bytes] = field(factory=list)
    extranet_ipv6: list[bytes] = field(factory=list)
    hostname: bytes = b""
    version: bytes = b""
    product: bytes = b""
    tail: bytes | None = None
    """The message's bytes after the records, to know them again; None if they were scattered."""

    kept_fields: bytes | None = field(default=None, init=False, repr=False)
    """Of `elkeid.wire.mqdata`: MQData fields 4 to 11."""
    kept_suffix: tuple[int, bytes, bytes] | None = field(default=None, init=False, repr=False)
    """Of `elkeid.wire.mqdata`: the last time, tags and suffix."""
    kept_time: bytes = field(default=_NOTHING, init=False, repr=False)
    """Of `split`: time and body's tag of the last record; batches of one second share it."""

    def with_agent_id(self, agent_id: bytes) -> "Header":
        """Give the same header under another id; `split` still knows it by its bytes."""
        return evolve(self, agent_id=agent_id)


@define(eq=False)
class Packet:
    """One batch, split."""

    header: Header
    count: int
    """Records in all."""
    runs: list[tuple[Class, int, bytes]]
    """Of each class met, once: number of records, and the records in order as one region.

    A region is ``0x0a <varint length> <record>`` over and over, every record canonical.
    """
    special: list[tuple[int, int, bytes]]
    """Data type, time (agent's, unix seconds) and body of each record of a type in `SPECIAL`."""
    counts: dict[int, int]
    """Data type -> records."""


_Kind = tuple[int, Class, bool, int]
"""Data type, its class, whether it is special, bytes of its field in a record."""

_kinds: dict[bytes, _Kind] = {}
"""By the first three bytes of a record with a time; at most 16,383, all types below 2**14."""


def split(data: bytes, known: Header | None = None) -> Packet:
    """Split a RawData message.

    Args:
        data: the message, decompressed.
        known: the header of this agent's last batch; given back when the bytes are the same.

    Raises:
        TooManyFields: more than `RECORD_LIMIT` records or `FIELD_LIMIT` fields.
        WireError: not a RawData message.
    """
    try:
        packet = _split_canonical(data, known)
    except LookupError:  # ran past the end, or a length that no canonical record has
        packet = None
    return packet or _split_any(data)


def _split_canonical(data: bytes, known: Header | None) -> Packet | None:
    """Split a message of the agents' form; None or LookupError for one of any other.

    For each record: tag and length, the head (data type, time and the tag of the body; mostly
    the very bytes of the record before), and the body's length, which must fill the record.
    """
    pos = data_type = counted = first = run_start = head_size = 0
    head = _NOTHING
    time_head = _NOTHING if known is None else known.kept_time
    cls: Class | None = None
    done: list[tuple[Class, int, bytes]] = []
    special: list[tuple[int, int, bytes]] = []
    counts: dict[int, int] = {}
    starts_with = data.startswith
    for index in range(RECORD_LIMIT + 1):
        if data[pos] != 0x0A:
            break
        length = data[pos + 1]
        if length < 0x80:
            start = pos + 2
            if length > head_size and starts_with(head + _FILLING[length - head_size], start):
                pos = start + length
                continue
        elif 0 < (high := data[pos + 2]) < 0x80:
            length += (high << 7) - 0x80
            start = pos + 3
            if starts_with(head + _FILLING[length - head_size], start):
                pos = start + length
                continue
        else:
            length, start = _long_length(data, pos + 1)
        # Another head than before, or a long record.
        if index > counted:
            counts[data_type] = counts.get(data_type, 0) + index - counted
            counted = index
        kind = _kinds.get(data[start : start + 3]) or _read_kind(data, start)
        data_type = kind[0]
        if kind[1] is not cls:
            if cls is not None:
                done.append((cls, index - first, data[run_start:pos]))
                first, run_start = index, pos
            cls = kind[1]
        time = start + kind[3]
        pos = start + length
        if starts_with(time_head, time):
            head_size = kind[3] + len(time_head)
            body = start + head_size
        else:
            match = _TIME(data, time)
            assert match is not None  # it matches nothing, too
            body = match.end()
            head_size = body - start
            time_head = data[time:body] if match.lastindex else _NOTHING
        if time_head is _NOTHING:
            if body != pos:
                return None
            head_size, head = 0, _NOTHING
        else:
            head = data[start:body]
            filling = _FILLING.get(pos - body)
            if filling is None:
                if body >= pos:
                    return None
                size, body = _long_length(data, body)
                if not size or body + size != pos:
                    return None
            elif not starts_with(filling, body):
                return None
        if kind[2]:
            special.append(_read_record(data[start:pos], 3)[0])
            head_size, head = 0, _NOTHING  # so that the next one comes here, too
    else:
        raise TooManyFields(f"more than {RECORD_LIMIT} records")
    if cls is not None:
        counts[data_type] = counts.get(data_type, 0) + index - counted
        done.append((cls, index - first, data[run_start:pos]))
        if len(done) > 1:
            done = _by_class(done)
    if known is not None and known.tail == data[pos:]:
        header = known
    else:
        tail = _read_header(data, pos)
        if tail is None:
            return None
        header = tail
    header.kept_time = time_head
    return Packet(header, index, done, special, counts)


def _long_length(data: bytes, pos: int) -> tuple[int, int]:
    """Read a length in its shortest form; give it and the position after it.

    Raises:
        LookupError: the form is not the shortest.
        WireError: it is no length.
    """
    length, after = read_varint(data, pos, len(data))
    if after - pos > 1 and not data[after - 1]:
        raise LookupError
    return length, after


def _read_kind(data: bytes, start: int) -> _Kind:
    """Read the data type of the record at ``start``, 0 when it does not begin with one."""
    match = _TYPE(data, start)
    data_type, end = 0, start
    if match is not None:
        data_type, end = read_varint(data, start + 1, match.end())
    size = end - start
    kind = (data_type, CLASS_OF.get(data_type, Class.TELEMETRY), data_type in SPECIAL, size)
    if size == 3 or (size == 2 and data[end] == 0x10):
        _kinds[data[start : start + 3]] = kind
    return kind


def _by_class(slices: list[tuple[Class, int, bytes]]) -> list[tuple[Class, int, bytes]]:
    """Join the slices of each class, in their order."""
    counts: dict[Class, int] = {}
    regions: dict[Class, list[bytes]] = {}
    for cls, count, region in slices:
        counts[cls] = counts.get(cls, 0) + count
        regions.setdefault(cls, []).append(region)
    return [(cls, counts[cls], b"".join(regions[cls])) for cls in counts]


_HEADER_TEXTS = {2: "agent_id", 7: "hostname", 8: "version", 9: "product"}
_HEADER_LISTS = {3: "intranet_ipv4", 4: "extranet_ipv4", 5: "intranet_ipv6", 6: "extranet_ipv6"}


def _take_header_field(header: Header, number: int, wire_type: int, value: int | bytes) -> None:
    if 2 <= number <= 9:
        if wire_type != BYTES:
            raise WireError(f"RawData field {number} has wire type {wire_type}")
        if number in _HEADER_TEXTS:
            setattr(header, _HEADER_TEXTS[number], value)
        else:
            getattr(header, _HEADER_LISTS[number]).append(value)


def _read_header(data: bytes, start: int) -> Header | None:
    """Read the fields from ``start`` on; None when a record is among them."""
    header = Header(tail=data[start:])
    for number, wire_type, value in fields(data, start, len(data), FIELD_LIMIT):
        if number == 1:
            return None
        _take_header_field(header, number, wire_type, value)
    return header


def _split_any(data: bytes) -> Packet:
    """Split any RawData message by decoding every record and encoding it anew."""
    header = Header()
    slices: list[tuple[Class, int, bytes]] = []
    special: list[tuple[int, int, bytes]] = []
    counts: dict[int, int] = {}
    left = FIELD_LIMIT
    for number, wire_type, value in fields(data, 0, len(data), FIELD_LIMIT):
        left -= 1
        if number != 1:
            _take_header_field(header, number, wire_type, value)
            continue
        if not isinstance(value, bytes) or wire_type != BYTES:
            raise WireError(f"RawData field 1 has wire type {wire_type}")
        if len(slices) == RECORD_LIMIT:
            raise TooManyFields(f"more than {RECORD_LIMIT} records")
        (data_type, time, body), used = _read_record(value, left)
        left -= used
        cls = CLASS_OF.get(data_type, Class.TELEMETRY)
        counts[data_type] = counts.get(data_type, 0) + 1
        slices.append((cls, 1, length_delimited(1, encode_record(data_type, time, body))))
        if data_type in SPECIAL:
            special.append((data_type, time, body))
    return Packet(header, len(slices), _by_class(slices), special, counts)


def _read_record(record: bytes, limit: int) -> tuple[tuple[int, int, bytes], int]:
    """Give data type, time and body, the last of each field, and the number of fields read."""
    data_type = time = used = 0
    body = b""
    for number, wire_type, value in fields(record, 0, len(record), limit):
        used += 1
        if number > 3:
            continue
        if wire_type != (BYTES if number == 3 else VARINT):
            raise WireError(f"Record field {number} has wire type {wire_type}")
        if isinstance(value, bytes):
            body = value
        elif number == 1:
            data_type = signed(value, 32)
        else:
            time = signed(value, 64)
    return (data_type, time, body), used


def encode_record(data_type: int, time: int, body: bytes) -> bytes:
    """Encode one record canonically: shortest form, zero values left out.

    Args:
        data_type: what the record is, a signed 32-bit integer.
        time: unix seconds, a signed 64-bit integer.
        body: an encoded Item.
    """
    return b"".join(
        (
            b"\x08" + varint(data_type) if data_type else b"",
            b"\x10" + varint(time) if time else b"",
            length_delimited(3, body) if body else b"",
        )
    )
