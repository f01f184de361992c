"""MQData, what readers and Kafka get of a record: the record, then what its batch says of it.

A value is the record's own bytes (fields 1 to 3) followed by a suffix (fields 4 to 15) that all
records of a batch share.

Source: docs/protocol.md, "Messages".
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from attrs import frozen

from elkeid.errors import WireError
from elkeid.wire import item
from elkeid.wire.protobuf import (
    BYTES,
    VARINT,
    fields,
    length_delimited,
    read_varint,
    signed,
    varint,
)
from elkeid.wire.rawdata import Header

FIELD_LIMIT: Final = 1024
"""Fields of one value; the message has fifteen."""


def encode_suffix(header: Header, svr_time: int, tags: bytes) -> bytes:
    """Encode fields 4 to 15, empty ones left out.

    Args:
        header: what the batch says of its host; keeps the encodings that seldom change.
        svr_time: when the batch arrived, unix seconds, our clock.
        tags: of the agent, comma-joined.
    """
    kept = header.kept_suffix
    if kept is not None and kept[0] == svr_time and kept[1] == tags:
        return kept[2]
    start = header.kept_fields
    if start is None:
        start = header.kept_fields = _encode_host(header)
    suffix = b"".join(
        (
            start,
            b"\x60" + varint(svr_time) if svr_time else b"",
            _encode_tags(tags) if tags else b"",
        )
    )
    header.kept_suffix = (svr_time, tags, suffix)
    return suffix


@lru_cache(maxsize=4096)
def _encode_tags(tags: bytes) -> bytes:
    """Encode field 15; agents share theirs, and keep them for long."""
    return length_delimited(15, tags)


def _encode_host(header: Header) -> bytes:
    """Encode fields 4 to 11."""
    values = (
        header.agent_id,
        b",".join(header.intranet_ipv4),
        b",".join(header.extranet_ipv4),
        b",".join(header.intranet_ipv6),
        b",".join(header.extranet_ipv6),
        header.hostname,
        header.version,
        header.product,
    )
    return b"".join(
        length_delimited(number, value) for number, value in enumerate(values, 4) if value
    )


def records(region: bytes) -> Iterator[bytes]:
    """Yield each record of a region (`elkeid.wire.rawdata.Packet.runs`), without its length."""
    pos, end = 0, len(region)
    try:
        while pos < end:
            length = region[pos + 1]
            pos += 2
            if length >= 0x80:
                length &= 0x7F
                shift = 7
                while (byte := region[pos]) >= 0x80:
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    pos += 1
                length |= byte << shift
                pos += 1
            yield region[pos : pos + length]
            pos += length
    except IndexError:
        pos = end + 1
    if pos != end:
        raise WireError("region is cut short")


def pieces(region: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Cut a region between records.

    Args:
        region: see `records`.
        size: bytes of a piece; one with a single record may be larger.

    Yields:
        The number of records of a piece, and the piece.
    """
    start = pos = count = 0
    end = len(region)
    while pos < end:
        length, body = read_varint(region, pos + 1, end)
        after = body + length
        if count and after - start > size:
            yield count, region[start:pos]
            start, count = pos, 0
        pos, count = after, count + 1
    if pos != end:
        raise WireError("region is cut short")
    if count:
        yield count, region[start:]


@frozen
class MQData:
    """One record as its readers see it; text with bad UTF-8 replaced."""

    data_type: int
    agent_time: int
    """Unix seconds, the agent's clock."""
    body: bytes
    """An encoded Item, mostly; see `fields`."""
    agent_id: str
    intranet_ipv4: list[str]
    extranet_ipv4: list[str]
    intranet_ipv6: list[str]
    extranet_ipv6: list[str]
    hostname: str
    version: str
    product: str
    svr_time: int
    """Unix seconds, our clock."""
    psm_name: str
    psm_path: str
    tags: list[str]
    fields: dict[str, str] | None
    """The body's fields; None when it is no Item."""


_BYTES_FIELDS = frozenset({3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15})


def decode(value: bytes) -> MQData:
    """Decode one value.

    Raises:
        WireError: it is no MQData.
    """
    texts = dict.fromkeys(range(3, 16), b"")
    numbers = {1: 0, 2: 0, 12: 0}
    for number, wire_type, got in fields(value, 0, len(value), FIELD_LIMIT):
        if number > 15:
            continue
        if wire_type != (BYTES if number in _BYTES_FIELDS else VARINT):
            raise WireError(f"MQData field {number} has wire type {wire_type}")
        if isinstance(got, bytes):
            texts[number] = got
        else:
            numbers[number] = got

    def text(number: int) -> str:
        return texts[number].decode("utf-8", "replace")

    def several(number: int) -> list[str]:
        return text(number).split(",") if texts[number] else []

    return MQData(
        data_type=signed(numbers[1], 32),
        agent_time=signed(numbers[2], 64),
        body=texts[3],
        agent_id=text(4),
        intranet_ipv4=several(5),
        extranet_ipv4=several(6),
        intranet_ipv6=several(7),
        extranet_ipv6=several(8),
        hostname=text(9),
        version=text(10),
        product=text(11),
        svr_time=signed(numbers[12], 64),
        psm_name=text(13),
        psm_path=text(14),
        tags=several(15),
        fields=_fields_of(texts[3]),
    )


def _fields_of(body: bytes) -> dict[str, str] | None:
    """Decode a body; None when it is no Item, as when something is there and no field is."""
    try:
        found = item.decode_text(body)
    except WireError:
        return None
    return found if found or not body else None
