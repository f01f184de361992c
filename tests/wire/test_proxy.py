"""PROXY headers of version 2: whole, in pieces, and wrong in every way."""

import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.wire.proxy import (
    HEADER_BYTES,
    SIGNATURE,
    ProxyHeader,
    ProxyHeaderInvalid,
    read_proxy_header,
)


def header(command: int, family: int, addresses: bytes) -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, family, len(addresses)) + addresses


def tcp4(host: str, port: int) -> bytes:
    ends = socket.inet_aton(host) + socket.inet_aton("10.9.9.9")
    return header(0x21, 0x11, ends + struct.pack(">HH", port, 6751))


def tcp6(host: str, port: int) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, host) + bytes(16)
    return header(0x21, 0x21, ends + struct.pack(">HH", port, 6751))


@pytest.mark.parametrize(
    ("data", "peer"),
    [
        (tcp4("192.0.2.7", 40000), ("192.0.2.7", 40000)),
        (tcp6("2001:db8::1", 40000), ("2001:db8::1", 40000)),
        (tcp6("::ffff:192.0.2.7", 1), ("192.0.2.7", 1)),
        (header(0x20, 0x00, b""), None),
        (header(0x20, 0x11, b"whatever else"), None),
        (header(0x21, 0x11, tcp4("192.0.2.7", 1)[16:] + b"\x03\x00\x04more"), ("192.0.2.7", 1)),
    ],
)
def test_peer_of_a_header_in_pieces(data: bytes, peer: tuple[str, int] | None) -> None:
    """Nothing is known before the header is whole, and what follows is not part of it."""
    for cut in range(len(data)):
        assert read_proxy_header(data[:cut]) is None
    assert read_proxy_header(data + b"\x16\x03\x01") == ProxyHeader(peer, len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01",  # TLS
        b"PROXY TCP4 192.0.2.7 10.9.9.9 1 2\r\n",  # version 1
        header(0x11, 0x11, bytes(12)),
        header(0x22, 0x11, bytes(12)),
        header(0x21, 0x00, b""),  # of nobody
        header(0x21, 0x12, bytes(12)),  # UDP
        header(0x21, 0x31, bytes(216)),  # a UNIX socket
        header(0x21, 0x11, bytes(11)),
        header(0x20, 0x00, bytes(HEADER_BYTES)),
    ],
)
def test_what_is_refused(data: bytes) -> None:
    """An address that is not told, or not of TCP, tells nothing of the peer."""
    with pytest.raises(ProxyHeaderInvalid):
        read_proxy_header(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_rubbish(data: bytes) -> None:
    """Any bytes are a header, the beginning of one, or refused."""
    for start in (b"", SIGNATURE, SIGNATURE + b"\x21"):
        try:
            told = read_proxy_header(start + data)
        except ProxyHeaderInvalid:
            continue
        assert told is None or told.size <= len(start + data)
