"""Item, the body of a record: text by name, ``map<string, string> fields = 1``.

Source: docs/protocol.md, "Messages".
"""

from collections.abc import Mapping
from typing import Final

from elkeid.errors import WireError
from elkeid.wire.protobuf import BYTES, TooManyFields, fields, length_delimited

ENTRY_LIMIT: Final = 65_536
"""Entries of one Item. The richest records have about fifty; bounds the time of decoding."""


def decode(body: bytes, limit: int = ENTRY_LIMIT) -> dict[bytes, bytes]:
    """Decode a body; of equal keys the last wins, a missing key or value is empty.

    Args:
        body: an encoded Item; empty means no fields.
        limit: entries, unknown fields included, at most.

    Raises:
        TooManyFields: the body has more than ``limit`` entries.
        WireError: the body is no Item.
    """
    result: dict[bytes, bytes] = {}
    pos, end, left = 0, len(body), limit
    try:
        while pos < end:
            # The usual entry: key and value once each, in order, lengths below 16 KiB.
            if not left:
                raise TooManyFields(f"more than {limit} entries")
            left -= 1
            length, start = body[pos + 1], pos + 2
            if length >= 0x80:
                length, start = length - 0x80 + (body[start] << 7), start + 1
            stop = start + length
            length, key = body[start + 1], start + 2
            if length >= 0x80:
                length, key = length - 0x80 + (body[key] << 7), key + 1
            key_end = key + length
            size, value = body[key_end + 1], key_end + 2
            if size >= 0x80:
                size, value = size - 0x80 + (body[value] << 7), value + 1
            if (
                value + size != stop
                or body[pos] != 0x0A
                or body[start] != 0x0A
                or body[key_end] != 0x12
                or body[start - 1] >= 0x80
                or body[key - 1] >= 0x80
                or body[value - 1] >= 0x80
            ):
                return _decode_any(body, limit)
            result[body[key:key_end]] = body[value:stop]
            pos = stop
    except IndexError:
        return _decode_any(body, limit)
    if pos != end:
        raise WireError("Item is cut short")
    return result


def _decode_any(body: bytes, limit: int) -> dict[bytes, bytes]:
    """Decode any Item: unknown fields, absent or repeated keys and values, long lengths."""
    result: dict[bytes, bytes] = {}
    left = 4 * limit
    for number, wire_type, entry in fields(body, 0, len(body), limit):
        if number != 1:
            continue
        if not isinstance(entry, bytes) or wire_type != BYTES:
            raise WireError(f"Item field 1 has wire type {wire_type}")
        pair = {1: b"", 2: b""}
        for part, part_type, value in fields(entry, 0, len(entry), left):
            left -= 1
            if part in pair:
                if not isinstance(value, bytes) or part_type != BYTES:
                    raise WireError(f"Item entry field {part} has wire type {part_type}")
                pair[part] = value
        result[pair[1]] = pair[2]
    return result


def decode_text(body: bytes, limit: int = ENTRY_LIMIT) -> dict[str, str]:
    """Decode a body to text; bytes that are not UTF-8 become U+FFFD.

    Args:
        body: an encoded Item; empty means no fields.
        limit: entries, unknown fields included, at most.

    Raises:
        TooManyFields: the body has more than ``limit`` entries.
        WireError: the body is no Item.
    """
    return {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in decode(body, limit).items()
    }


def encode(values: Mapping[str, str] | Mapping[bytes, bytes]) -> bytes:
    """Encode fields in the mapping's order; lone surrogates of text become ``?``."""
    return b"".join(
        length_delimited(1, length_delimited(1, _bytes(key)) + length_delimited(2, _bytes(value)))
        for key, value in values.items()
    )


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "replace")
