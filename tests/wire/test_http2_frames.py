"""Frames as they are on the wire."""

import pytest
from hyperframe.frame import Frame

from elkeid.wire import http2_frames as h2
from elkeid.wire.http2_frames import ErrorCode

GOLDEN = [
    (h2.settings_frame([]), "000000 04 00 00000000"),
    (h2.SETTINGS_ACK, "000000 04 01 00000000"),
    (h2.settings_frame([(h2.MAX_FRAME_SIZE, 16384)]), "000006 04 00 00000000 0005 00004000"),
    (h2.window_update_frame(1, 65535), "000004 08 00 00000001 0000ffff"),
    (h2.rst_stream_frame(3, ErrorCode.CANCEL), "000004 03 00 00000003 00000008"),
    (
        h2.ping_frame(bytes.fromhex("02041010090e0707"), h2.ACK),
        "000008 06 01 00000000 02041010090e0707",
    ),
    (
        h2.goaway_frame(5, ErrorCode.ENHANCE_YOUR_CALM, b"hi"),
        "00000a 07 00 00000000 00000005 0000000b 6869",
    ),
    (
        h2.frame(h2.DATA, h2.END_STREAM, 1, b"x" * 70000)[:9] + b"...",
        "011170 00 01 00000001 2e2e2e",
    ),
]


@pytest.mark.parametrize(("built", "hexed"), GOLDEN)
def test_golden_frames(built: bytes, hexed: str) -> None:
    """A peer sees these very bytes."""
    assert built == bytes.fromhex(hexed)


def test_others_read_our_frames() -> None:
    """hyperframe, which h2 is built on, reads back what was written."""
    for built, _ in GOLDEN[:-1]:
        frame, size = Frame.parse_frame_header(memoryview(built)[:9])
        frame.parse_body(memoryview(built)[9 : 9 + size])
        assert frame.serialize() == built
