"""HTTP/2 header fields: what a request may contain, and a stateless encoding of answers.

Answers are encoded without the dynamic table, so that encoding needs no state per connection
and the same bytes serve every connection.

Source: RFC 9113, sections 8.1 to 8.3; RFC 7541, sections 5, 6 and appendix A.
"""

import re
from collections.abc import Iterable, Sequence

from attrs import define, field

from elkeid.errors import WireError

Fields = Sequence[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_VALUE = re.compile(rb"(?:[^\x00\r\n\t ](?:[^\x00\r\n]*[^\x00\r\n\t ])?)?").fullmatch
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch

_OF_REQUESTS = frozenset({b":method", b":scheme", b":path", b":authority"})
_OF_CONNECTIONS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)

_STATIC_NAMES = {b"content-length": 28, b"content-type": 31}
_STATIC_STATUS = {b"200": 8, b"404": 13}

TABLE_SIZE_ZERO = b"\x20"
"""Dynamic table size update to 0, at the start of a header block."""


class MalformedFields(WireError):
    """A header section that HTTP/2 forbids; costs the peer its stream."""


@define(eq=False)
class Request:
    """A request's header section, found well-formed.

    Attributes:
        fields: without the pseudo-header fields; of a repeated field, the first value.
        content_length: bytes announced, -1 when not.
    """

    method: bytes = b""
    path: bytes = b""
    content_length: int = -1
    fields: dict[bytes, bytes] = field(factory=dict)


def read_request(fields: Fields) -> Request:
    """Check a request's fields and sort them.

    Raises:
        MalformedFields: section 8 of the RFC forbids such a request.
    """
    pseudo: dict[bytes, bytes] = {}
    request = Request()
    regular = request.fields
    for name, value in fields:
        if name[:1] == b":":
            if name not in _OF_REQUESTS or name in pseudo or regular:
                raise MalformedFields("an unknown, repeated or late pseudo-header field")
            if not _VALUE(value):
                raise MalformedFields("a field value that is not allowed")
            pseudo[name] = value
        else:
            _check(name, value)
            known = regular.setdefault(name, value)
            if name == b"content-length":
                if known != value or not _LENGTH(value):
                    raise MalformedFields("content-length is no number, or two")
                request.content_length = int(value)
    request.method = pseudo.get(b":method", b"")
    request.path = pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority", b"")
    if request.method == b"CONNECT":
        if len(pseudo) != 2 or not authority:
            raise MalformedFields("CONNECT needs :authority and nothing else")
    elif not (request.method and request.path and pseudo.get(b":scheme")):
        raise MalformedFields(":method, :scheme or :path is missing or empty")
    elif request.path[:1] != b"/" and (request.method, request.path) != (b"OPTIONS", b"*"):
        raise MalformedFields(":path does not begin with a slash")
    if authority and regular.get(b"host", authority) != authority:
        raise MalformedFields("host and :authority differ")
    return request


def check_trailers(fields: Fields) -> None:
    """Raise `MalformedFields` for trailers that section 8.1 of the RFC forbids."""
    for name, value in fields:
        if name[:1] == b":":
            raise MalformedFields("a pseudo-header field in trailers")
        _check(name, value)


def _check(name: bytes, value: bytes) -> None:
    if not _NAME(name):
        raise MalformedFields("a field name that is not allowed")
    if not _VALUE(value):
        raise MalformedFields("a field value that is not allowed")
    if name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
        raise MalformedFields("a field that belongs to HTTP/1.1 connections")


def encode(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode fields as a header block that touches no dynamic table."""
    block = bytearray()
    for name, value in fields:
        if name == b":status" and value in _STATIC_STATUS:
            block.append(0x80 | _STATIC_STATUS[value])
            continue
        index = 8 if name == b":status" else _STATIC_NAMES.get(name, 0)
        block += _integer(index, 4, 0x00)
        if not index:
            block += _integer(len(name), 7, 0x00) + name
        block += _integer(len(value), 7, 0x00) + value
    return bytes(block)


def _integer(value: int, bits: int, pattern: int) -> bytes:
    """An integer with a prefix of ``bits`` bits, below the bits of ``pattern``."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((pattern | value,))
    out = bytearray((pattern | most,))
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
