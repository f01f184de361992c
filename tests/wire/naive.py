"""A second decoder of the agents' messages, written to be obvious rather than fast.

It reads the protobuf wire format straight from its definition and shares no code with
`elkeid.wire`; what it refuses raises `Refused`.
"""

from typing import Any


class Refused(Exception):
    """The bytes are no such message."""


def read_varint(data: bytes) -> tuple[int, bytes]:
    """Give the value and what follows."""
    value = 0
    for count, byte in enumerate(data):
        if count == 10:
            raise Refused("varint of more than ten bytes")
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value % 2**64, data[count + 1 :]
    raise Refused("no end of varint")


def take(data: bytes, count: int) -> tuple[bytes, bytes]:
    """Give the first bytes and what follows."""
    if count > len(data):
        raise Refused("too short")
    return data[:count], data[count:]


def read_field(data: bytes) -> tuple[int, int, Any, bytes]:
    """Give number, wire type, value and what follows; a group's value is None."""
    tag, data = read_varint(data)
    number, wire_type = divmod(tag, 8)
    if number == 0 or number >= 2**29:
        raise Refused("field number")
    value: Any = None
    if wire_type == 0:
        value, data = read_varint(data)
    elif wire_type == 1:
        value, data = take(data, 8)
    elif wire_type == 2:
        length, data = read_varint(data)
        value, data = take(data, length)
    elif wire_type == 3:
        inner = -1
        while inner != 4:
            inner, data = read_group_field(data)
    elif wire_type == 5:
        value, data = take(data, 4)
    else:
        raise Refused("wire type")
    return number, wire_type, value, data


def read_group_field(data: bytes) -> tuple[int, bytes]:
    """Skip one field inside a group; give its wire type, 4 for the group's end."""
    tag, after = read_varint(data)
    if tag % 8 == 4:
        if not 0 < tag // 8 < 2**29:
            raise Refused("field number")
        return 4, after
    _, wire_type, _, after = read_field(data)
    return wire_type, after


def message(data: bytes) -> list[tuple[int, int, Any]]:
    """Give all fields of a message."""
    found = []
    while data:
        number, wire_type, value, data = read_field(data)
        found.append((number, wire_type, value))
    return found


def signed(value: int, bits: int) -> int:
    """Take the low bits as two's complement."""
    value %= 2**bits
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def record(data: bytes) -> tuple[int, int, bytes]:
    """Give data type, time and body."""
    result: dict[int, Any] = {1: 0, 2: 0, 3: b""}
    for number, wire_type, value in message(data):
        if number <= 3:
            if wire_type != {1: 0, 2: 0, 3: 2}[number]:
                raise Refused("wire type")
            result[number] = value
    return signed(result[1], 32), signed(result[2], 64), result[3]


Header = dict[int, Any]


def raw_data(data: bytes) -> tuple[list[tuple[int, int, bytes]], Header]:
    """Give the records, and the header's fields by number."""
    records, header = [], {2: b"", 3: [], 4: [], 5: [], 6: [], 7: b"", 8: b"", 9: b""}
    for number, wire_type, value in message(data):
        if number <= 9 and wire_type != 2:
            raise Refused("wire type")
        if number == 1:
            records.append(record(value))
        elif 3 <= number <= 6:
            header[number].append(value)
        elif number <= 9:
            header[number] = value
    return records, header


def item(data: bytes) -> dict[bytes, bytes]:
    """Give a body's fields."""
    result = {}
    for number, wire_type, value in message(data):
        if number != 1:
            continue
        if wire_type != 2:
            raise Refused("wire type")
        pair = {1: b"", 2: b""}
        for part, part_type, inner in message(value):
            if part <= 2:
                if part_type != 2:
                    raise Refused("wire type")
                pair[part] = inner
        result[pair[1]] = pair[2]
    return result
