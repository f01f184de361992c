"""The PROXY protocol, version 2: who a proxy's peer is, told before the first byte of TLS.

Source: HAProxy, "The PROXY protocol", section 2.2; docs/protocol.md, "Behind a proxy".
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from attrs import frozen

from elkeid.errors import WireError

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"

HEAD_BYTES: Final = 16

HEADER_BYTES: Final = 2_048
"""Of a whole header. Addresses take 52, and proxies add a few hundred bytes of their own."""

_HEAD = struct.Struct(">12sBBH")  # signature; version and command; family and transport; length
_IPV4 = struct.Struct(">4s4sHH")
_IPV6 = struct.Struct(">16s16sHH")
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21


class ProxyHeaderInvalid(WireError):
    """What came is no header of this version, or names no TCP peer."""


@frozen
class ProxyHeader:
    """A whole header.

    Attributes:
        peer: address and port; None when the proxy speaks for itself, as for a health check.
        size: bytes that it takes; what follows is the connection's own.
    """

    peer: tuple[str, int] | None
    size: int


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header at the start of a connection; None while it is not whole.

    Raises:
        ProxyHeaderInvalid: it can never become one.
    """
    have = min(len(data), len(SIGNATURE))
    if data[:have] != SIGNATURE[:have]:
        raise ProxyHeaderInvalid("no PROXY header of version 2")
    if len(data) < HEAD_BYTES:
        return None
    _, command, family, length = _HEAD.unpack_from(data)
    size = HEAD_BYTES + length
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderInvalid(f"PROXY version and command {command:#04x}")
    if size > HEADER_BYTES:
        raise ProxyHeaderInvalid(f"PROXY header of {size} bytes, limit {HEADER_BYTES}")
    layout = {_TCP4: _IPV4, _TCP6: _IPV6}.get(family)
    if command == _PROXY and (layout is None or length < layout.size):
        raise ProxyHeaderInvalid("the PROXY header names no TCP peer")
    if len(data) < size:
        return None
    if command == _LOCAL or layout is None:
        return ProxyHeader(None, size)
    address, _, port, _ = layout.unpack_from(data, HEAD_BYTES)
    ip = IPv4Address(address) if family == _TCP4 else IPv6Address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return ProxyHeader((str(mapped or ip), port), size)
