"""HTTP/2 frames: the numbers the protocol fixes, and how each kind of frame is built.

Source: RFC 9113, sections 4, 6 and 7.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from elkeid.errors import WireError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
DEFAULT_WINDOW: Final = 65_535  # bytes, of a stream and of the connection, until told otherwise
LARGEST_WINDOW: Final = (1 << 31) - 1
SMALLEST_MAX_FRAME: Final = 16_384  # bytes of payload that every peer takes
LARGEST_MAX_FRAME: Final = (1 << 24) - 1
DEFAULT_HEADER_TABLE: Final = 4_096
STREAM_ID_MASK: Final = 0x7FFF_FFFF  # the bit above is reserved, and ignored

# Frame types.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# Flags; which apply depends on the type.
END_STREAM: Final = 0x01
ACK: Final = 0x01
END_HEADERS: Final = 0x04
PADDED: Final = 0x08
WITH_PRIORITY: Final = 0x20

# Settings.
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6


class ErrorCode(IntEnum):
    """What RST_STREAM and GOAWAY say."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Http2Error(WireError):
    """The peer broke HTTP/2 in a way that ends the connection; ``code`` goes into GOAWAY."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        self.code = code
        super().__init__(reason)


HEAD: Final = struct.Struct(">IBI")
"""A frame's head, read as length << 8 | type, flags, stream id."""

U32: Final = struct.Struct(">I")
SETTING: Final = struct.Struct(">HI")
_TWO_U32 = struct.Struct(">II")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame of any type."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings_frame(settings: Iterable[tuple[int, int]]) -> bytes:
    """SETTINGS with these (setting, value) pairs, in order."""
    payload = b"".join(SETTING.pack(name, value) for name, value in settings)
    return frame(SETTINGS, 0, 0, payload)


def window_update_frame(stream_id: int, more: int) -> bytes:
    """WINDOW_UPDATE: ``more`` bytes may be sent; stream 0 stands for the connection."""
    return HEAD.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id) + U32.pack(more)


def rst_stream_frame(stream_id: int, code: int) -> bytes:
    """RST_STREAM."""
    return HEAD.pack(4 << 8 | RST_STREAM, 0, stream_id) + U32.pack(code)


def ping_frame(payload: bytes, flags: int = 0) -> bytes:
    """PING; ``payload`` is 8 bytes that the peer's answer repeats."""
    return HEAD.pack(8 << 8 | PING, flags, 0) + payload


def goaway_frame(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """GOAWAY: streams above ``last_stream_id`` were not and will not be acted upon."""
    return frame(GOAWAY, 0, 0, _TWO_U32.pack(last_stream_id, code) + debug)


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)
