"""The server side of gRPC on one HTTP/2 connection: bytes in, calls and messages out, no I/O.

Answers have the shape that grpc-go gives them: response HEADERS only before the first message,
Trailers-Only when there was none, the request's encoding mirrored, and RST_STREAM(NO_ERROR)
behind the trailers of a call that the peer had not ended.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2); docs/protocol.md, "Calls".
"""

import re
import struct
import time
from collections.abc import Callable, Collection
from enum import IntEnum
from functools import lru_cache
from typing import Final, cast

from elkeid.wire.compression import ENCODINGS
from elkeid.wire.http2 import (
    DROPPING,
    ENDED,
    READING,
    STOPPING,
    ConnectionEnded,
    ConnectionLimits,
    Event,
    Http2Server,
    PingAcked,
    Progress,
    SendQueueFull,
    Stream,
)
from elkeid.wire.http2_fields import Request, encode
from elkeid.wire.http2_frames import ErrorCode

__all__ = [
    "CallCancelled",
    "CallStarted",
    "ConnectionEnded",
    "ConnectionLimits",
    "ErrorCode",
    "Event",
    "GrpcServerConnection",
    "HalfClosed",
    "MessageBegan",
    "MessageReceived",
    "PingAcked",
    "Progress",
    "SendQueueFull",
    "Status",
]

TEXT_LIMIT: Final = 1_024
"""Characters of a status message; so that trailers always fit one frame."""

PREFIX_BYTES: Final = 5

LARGE_BYTES: Final = 16 << 10
"""A message above this that is not there at once is announced by `MessageBegan`. Below, a
stream holds no more than one TLS record brings."""

_PREFIX = struct.Struct(">BI")  # compressed flag, length
_unpack_prefix = _PREFIX.unpack_from
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;].*)?").fullmatch
_TO_ESCAPE = re.compile(rb"[^ -$&-~]").sub


class Status(IntEnum):
    """gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallStarted(Event, frozen=True, gc=False):
    """A peer called a known method.

    Attributes:
        path: such as ``/grpc.Transfer/Transfer``.
        encoding: of compressed messages either way, one of `compression.ENCODINGS`.
        timeout: seconds that the peer waits for the end of the call, None for ever.
    """

    stream_id: int
    path: str
    encoding: str
    timeout: float | None


class MessageBegan(Event, frozen=True, gc=False):
    """The first part of a large message has come; ``size`` is what all of it takes, in bytes."""

    stream_id: int
    size: int


class MessageReceived(Event, frozen=True, gc=False):
    """One whole message; ``body`` is as on the wire, still compressed when flagged."""

    stream_id: int
    compressed: bool
    body: bytes


class HalfClosed(Event, frozen=True, gc=False):
    """The peer sends no more messages on this call."""

    stream_id: int


class CallCancelled(Event, frozen=True, gc=False):
    """A call is over and its stream is gone: the peer reset it, or broke a rule or a limit.

    Attributes:
        code: the HTTP/2 error code that reset the stream, either way.
        status: the gRPC status that the peer was told; CANCELLED when it was told none.
        reason: for the log.
    """

    stream_id: int
    code: int
    status: Status
    reason: str


class _Call(Stream):
    """A stream that carries a call, and the message that is under way on it."""

    __slots__ = ("body", "compressed", "encoding", "largest_flag", "started", "wanted")

    def __init__(self, stream_id: int, window: int) -> None:
        super().__init__(stream_id, window)
        self.started = False  # told by CallStarted
        self.encoding = b""  # as the request named it; empty when it did not
        self.largest_flag = 0  # 1 once compressed messages are allowed
        self.body: bytearray | None = None  # what came of the message or, below, of its prefix
        self.wanted = 0  # bytes of the message under way; -1 while its prefix is not whole
        self.compressed = False


class GrpcServerConnection(Http2Server):
    """One connection and its calls.

    Feed `receive_data` and act on the events it returns, then send `data_to_send`; also after
    any other call. Methods that name a call do nothing once it is gone, since a peer may reset
    it at any time.

    Args:
        limits: what the connection may cost.
        methods: full paths of the methods served, such as ``/grpc.Transfer/Transfer``.
        clock: seconds, monotonic; by it, frames without progress are forgiven.
    """

    __slots__ = ("_message_bytes", "_methods")

    def __init__(
        self,
        limits: ConnectionLimits,
        methods: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(limits, clock)
        self._message_bytes = limits.message_bytes
        self._methods = methods

    # --- what the owner does

    def send_message(self, stream_id: int, payload: bytes, compressed: bool) -> bool:
        """Send a message, behind the earlier ones of its call, as the peer's windows allow.

        Args:
            stream_id: of the call.
            payload: at most 4 GiB; what agents take is 4 MiB.
            compressed: whether ``payload`` is in the call's encoding.

        Returns:
            False if the call is over, or its end was sent.

        Raises:
            SendQueueFull: the peer is too slow; the message is not sent.
        """
        call = self._streams.get(stream_id)
        if call is None or call.end_block is not None:
            return False
        data = _PREFIX.pack(compressed, len(payload)) + payload
        self._check_room(call, len(data))
        self._send_response(cast(_Call, call))
        self._send_data(call, data)
        return True

    def message_progress(self, stream_id: int) -> Progress:
        """How far the last message sent on a call has got; WRITTEN if there is none or no call."""
        return self.progress(stream_id)

    def withdraw_message(self, stream_id: int) -> bool:
        """Take back the last message of a call; False if any of it was sent, or its end."""
        return self.withdraw(stream_id)

    def end_call(
        self, stream_id: int, status: int, message: str = "", *, keep_reading: bool = False
    ) -> None:
        """End a call with a status, behind the messages that wait.

        Args:
            stream_id: of the call.
            status: a gRPC status code.
            message: for people; cut at `TEXT_LIMIT`.
            keep_reading: go on telling what the peer sends until it ends its half, or
                `reset_call`. Otherwise nothing more is told, and a peer that has not ended its
                half is told to stop by RST_STREAM(NO_ERROR).
        """
        call = self._streams.get(stream_id)
        if call is not None and call.end_block is None:
            self._end(cast(_Call, call), status, message, READING if keep_reading else STOPPING)

    def reset_call(self, stream_id: int, code: int = ErrorCode.NO_ERROR) -> None:
        """Stop a call at once, both ways; NO_ERROR is for one whose end was sent."""
        self.reset(stream_id, code)

    def break_off(self, stream_id: int, status: Status, reason: str) -> list[Event]:
        """End a call whose peer broke a limit of its owner's; nothing more of it is read.

        Returns:
            What to act on, as of `receive_data`.
        """
        events: list[Event] = []
        call = self._streams.get(stream_id)
        if call is not None:
            self._fail(cast(_Call, call), status, reason, events)
        return events

    def message_left(self, stream_id: int) -> int:
        """Bytes still to come of the message under way on a call; 0 if there is none."""
        call = cast(_Call | None, self._streams.get(stream_id))
        if call is None or call.body is None or call.wanted < 0:
            return 0
        return call.wanted - len(call.body)

    def pause_call(self, stream_id: int) -> None:
        """Let the peer send no more on this call than its window allows now."""
        self.pause(stream_id)

    def resume_call(self, stream_id: int) -> None:
        """Let the peer send again."""
        self.resume(stream_id)

    # --- requests

    def _new_stream(self, stream_id: int) -> Stream:
        return _Call(stream_id, self._peer_window)

    def _on_request(
        self, stream: Stream, request: Request, ended: bool, events: list[Event]
    ) -> None:
        call = cast(_Call, stream)
        if request.method != b"POST":
            self._answer_http(call, b"405", b"gRPC calls are POST requests\n")
            return
        fields = request.fields
        if not _CONTENT_TYPE(fields.get(b"content-type", b"")):
            self._answer_http(call, b"415", b"the content type is not application/grpc\n")
            return
        path = request.path.decode("latin-1")
        encoding = fields.get(b"grpc-encoding", b"")
        name = encoding.decode("latin-1") or "identity"
        timeout = _timeout(fields.get(b"grpc-timeout"))
        status = Status.UNIMPLEMENTED
        if path not in self._methods:
            reason = _unknown(path, self._methods)
        elif timeout is not None and timeout < 0:
            status, reason = Status.INTERNAL, "malformed grpc-timeout"
        elif name not in ENCODINGS:
            reason = f'grpc: Decompressor is not installed for grpc-encoding "{name}"'
        else:
            call.started = True
            call.encoding = _shared(encoding)
            call.largest_flag = name != "identity"
            events.append(CallStarted(call.stream_id, path, name, timeout))
            return
        self._end(call, status, reason, DROPPING if ended else STOPPING)

    def _answer_http(self, call: _Call, status: bytes, text: bytes) -> None:
        """Answer a request that is no gRPC call; its body is not of interest."""
        self._send_block(call, _http_block(status), ends=False)
        call.reading = DROPPING
        call.end_block = b""
        self._send_data(call, text)

    # --- messages

    def _on_data(
        self, stream: Stream, data: bytes, at: int, stop: int, events: list[Event]
    ) -> None:
        call = cast(_Call, stream)
        if call.body is not None:
            at = self._go_on(call, data, at, stop, events)
        limit, largest_flag = self._message_bytes, call.largest_flag
        while stop - at >= PREFIX_BYTES:
            flag, size = _unpack_prefix(data, at)
            if flag > largest_flag or size > limit:
                self._refuse_message(call, flag, size, events)
                return
            at += PREFIX_BYTES
            end = at + size
            if end > stop:
                call.compressed = flag == 1
                call.wanted = size
                call.body = bytearray(data[at:stop])
                if size > LARGE_BYTES:
                    events.append(MessageBegan(call.stream_id, size))
                return
            events.append(MessageReceived(call.stream_id, flag == 1, data[at:end]))
            at = end
        if at < stop:
            call.wanted = -1
            call.body = bytearray(data[at:stop])

    def _go_on(self, call: _Call, data: bytes, at: int, stop: int, events: list[Event]) -> int:
        """Go on with the message under way; return where it ends, or ``stop``."""
        body = call.body
        assert body is not None
        if call.wanted < 0:
            more = min(PREFIX_BYTES - len(body), stop - at)
            body += data[at : at + more]
            at += more
            if len(body) < PREFIX_BYTES:
                return at
            flag, size = _unpack_prefix(body)
            if flag > call.largest_flag or size > self._message_bytes:
                self._refuse_message(call, flag, size, events)
                return stop
            call.compressed = flag == 1
            call.wanted = size
            body.clear()
            if size > LARGE_BYTES and size > stop - at:
                events.append(MessageBegan(call.stream_id, size))
        more = min(call.wanted - len(body), stop - at)
        body += data if more == len(data) else data[at : at + more]
        if len(body) == call.wanted:
            events.append(MessageReceived(call.stream_id, call.compressed, bytes(body)))
            call.body = None
        return at + more

    def _refuse_message(self, call: _Call, flag: int, size: int, events: list[Event]) -> None:
        if flag > 1:
            status = Status.INTERNAL
            reason = f"grpc: received unexpected payload format {flag}"
        elif size > self._message_bytes:
            status = Status.RESOURCE_EXHAUSTED
            reason = f"grpc: received message larger than max ({size} vs. {self._message_bytes})"
        else:
            status = Status.INTERNAL
            reason = "grpc: compressed flag set with identity or empty encoding"
        self._fail(call, status, reason, events)

    def _fail(self, call: _Call, status: Status, reason: str, events: list[Event]) -> None:
        """End a call whose peer broke a rule or a limit; nothing more of it is read."""
        call.body = None
        if call.end_block is None:
            self._end(call, status, reason, STOPPING)
        elif call.reading != ENDED:
            call.reading = STOPPING
            self._close_if_done(call)
        events.append(CallCancelled(call.stream_id, ErrorCode.NO_ERROR, status, reason))

    def _on_end(self, stream: Stream, events: list[Event]) -> None:
        call = cast(_Call, stream)
        if call.body is None:
            events.append(HalfClosed(call.stream_id))
        else:
            self._fail(call, Status.INTERNAL, "the call ends within a message", events)

    def _on_broken(self, stream: Stream, code: int, reason: str, events: list[Event]) -> None:
        call = cast(_Call, stream)
        call.body = None
        if call.started:
            events.append(CallCancelled(call.stream_id, code, Status.CANCELLED, reason))

    # --- answers

    def _send_response(self, call: _Call) -> None:
        if not call.answered:
            self._send_block(call, _response_block(call.encoding), ends=False)

    def _end(self, call: _Call, status: int, message: str, reading: int) -> None:
        text = _TO_ESCAPE(_escape, message[:TEXT_LIMIT].encode("utf-8", "replace"))
        block = _trailers(status, text) if call.answered else _trailers_only(status, text)
        if reading != READING:
            call.body = None
        self._send_end(call, block, reading)


@lru_cache(maxsize=16)
def _response_block(encoding: bytes) -> bytes:
    fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
    if encoding:
        fields.append((b"grpc-encoding", encoding))
    return encode(fields)


@lru_cache(maxsize=16)
def _http_block(status: bytes) -> bytes:
    return encode([(b":status", status), (b"content-type", b"text/plain")])


@lru_cache(maxsize=64)
def _trailers(status: int, text: bytes) -> bytes:
    return encode([(b"grpc-status", b"%d" % status), (b"grpc-message", text)])


@lru_cache(maxsize=64)
def _trailers_only(status: int, text: bytes) -> bytes:
    return _response_block(b"") + _trailers(status, text)


@lru_cache(maxsize=16)
def _shared(encoding: bytes) -> bytes:
    """The first of all equal names: one object for all agents."""
    return encoding


def _escape(match: "re.Match[bytes]") -> bytes:
    return b"%%%02X" % match[0][0]


def _timeout(value: bytes | None) -> float | None:
    """Seconds; None if there is no timeout, -1 if it is malformed."""
    if value is None:
        return None
    match = _TIMEOUT(value)
    return int(match[1]) * _TIMEOUT_UNITS[match[2]] if match else -1.0


def _unknown(path: str, methods: Collection[str]) -> str:
    """Say which part of a path is not known."""
    service, slash, method = path[1:].rpartition("/")
    if not slash:
        return f'malformed method name: "{path}"'
    if any(known.startswith(f"/{service}/") for known in methods):
        return f"unknown method {method} for service {service}"
    return f"unknown service {service}"
