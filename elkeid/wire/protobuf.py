"""The protobuf wire format: varints, and the fields of a message one after another.

Decoding is as tolerant as proto3 asks (any order, unknown fields, over-long varints cut to 64
bits) and knows no recursion. The hot loops of this package have their own varints inlined.

Source: docs/protocol.md, "Messages".
"""

from collections.abc import Iterator

from elkeid.errors import WireError

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
"""Wire types, the low three bits of a tag."""

VARINT_BYTES = 10
"""Longest varint: 64 bits in groups of seven."""

_MASK64 = (1 << 64) - 1


class TooManyFields(WireError):
    """A message of more fields than its kind has use for; stopped to bound time and memory."""


def varint(value: int) -> bytes:
    """Encode ``value``, an unsigned 64-bit integer or a negative one of at most 64 bits."""
    value &= _MASK64
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_delimited(number: int, value: bytes) -> bytes:
    """Encode one bytes, string or message field, also when it is empty."""
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def read_varint(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read the varint at ``pos``; give its low 64 bits, unsigned, and the position after it.

    Raises:
        WireError: it runs past ``end`` or has more than ten bytes.
    """
    value = shift = 0
    for at in range(pos, min(end, pos + VARINT_BYTES)):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, at + 1
        shift += 7
    if end - pos < VARINT_BYTES:
        raise WireError("varint is cut short")
    raise WireError(f"varint has more than {VARINT_BYTES} bytes")


def signed(value: int, bits: int) -> int:
    """Take the low ``bits`` of ``value`` as a two's complement integer."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def fields(data: bytes, start: int, end: int, limit: int) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield each field of the message in ``data[start:end]``, skipping groups.

    Args:
        data: what the message lies in.
        start: its first byte.
        end: the position after its last one.
        limit: fields at most, those inside groups counted.

    Yields:
        Field number, wire type, and value: an int of `VARINT`, empty of a group, else its bytes.

    Raises:
        TooManyFields: the message has more than ``limit`` fields.
        WireError: the message is malformed.
    """
    pos, depth, group = start, 0, 0
    value: int | bytes
    for _ in range(limit):
        if pos >= end:
            break
        tag, pos = read_varint(data, pos, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"field number {number}")
        if wire_type == VARINT:
            value, pos = read_varint(data, pos, end)
        elif wire_type == BYTES:
            length, pos = read_varint(data, pos, end)
            value, pos = data[pos : pos + length], pos + length
        elif wire_type == FIXED64:
            value, pos = data[pos : pos + 8], pos + 8
        elif wire_type == FIXED32:
            value, pos = data[pos : pos + 4], pos + 4
        elif wire_type == GROUP:
            value, depth, group = b"", depth + 1, group if depth else number
        elif wire_type == END_GROUP and depth:
            value, depth = b"", depth - 1
            number, wire_type = group, GROUP
        else:
            raise WireError(f"field {number} has wire type {wire_type}")
        if pos > end:
            raise WireError(f"field {number} is cut short")
        if not depth:
            yield number, wire_type, value
    if pos < end:
        raise TooManyFields(f"more than {limit} fields")
    if depth:
        raise WireError("group is not closed")
