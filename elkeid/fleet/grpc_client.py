"""The agents' side of gRPC over HTTP/2: bytes in, events out, no I/O.

It puts on the wire what a host agent's own gRPC library does: an empty SETTINGS, the request
headers in the same order, a PING of fixed bytes after received data, and receive windows that
stay at 64 KiB. Only what one client needs is here; a server that breaks HTTP/2 ends the
connection.

Source: RFC 9113; gRPC over HTTP/2 (PROTOCOL-HTTP2); docs/protocol.md, "What agents send".
"""

import struct
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import unquote

import hpack
from attrs import define, field, frozen

from elkeid.wire.grpc import Status
from elkeid.wire.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_HEADER_TABLE,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEAD,
    HEAD_BYTES,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_MAX_FRAME,
    LARGEST_WINDOW,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    SETTINGS_ACK,
    SMALLEST_MAX_FRAME,
    STREAM_ID_MASK,
    U32,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
    Http2Error,
    frame,
    goaway_frame,
    ping_frame,
    rst_stream_frame,
    settings_frame,
    window_update_frame,
)

TRANSFER_PATH = "/grpc.Transfer/Transfer"
USER_AGENT = "grpc-go/1.69.4"
BDP_PING = bytes.fromhex("02041010090e0707")

WINDOW_REFILL = DEFAULT_WINDOW // 4  # bytes taken before a window is refilled
MESSAGE_BYTES = 4 << 20  # largest Command an agent takes; a longer one ends its stream
HEADER_BYTES = 1 << 20  # of one header block; a server that sends more is broken
CONTROL_FRAMES = 1_000  # SETTINGS and PING frames to answer in one read; more is a flood

_MESSAGE = struct.Struct(">BI")  # compressed flag, length


_STATUS_OF_RESET = {
    ErrorCode.REFUSED_STREAM: Status.UNAVAILABLE,
    ErrorCode.CANCEL: Status.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}


@frozen
class ConnectionReady:
    """The server's first SETTINGS came: calls can be opened."""


@frozen
class MessageReceived:
    """One whole gRPC message; ``body`` is as on the wire, still compressed when flagged."""

    stream_id: int
    compressed: bool
    body: bytes


@frozen
class CallEnded:
    """A call is over.

    Attributes:
        status: gRPC status, from trailers or made of a reset.
        from_trailers: the server itself said so; false for resets and broken answers.
        half_closed: this side had sent END_STREAM, and all of its data, before.
    """

    stream_id: int
    status: int
    message: str
    from_trailers: bool
    half_closed: bool


@frozen
class GoAwayReceived:
    """The server wants no new calls here; calls up to ``last_stream_id`` go on."""

    last_stream_id: int
    code: int
    debug: bytes


@frozen
class ConnectionBroken:
    """The server broke HTTP/2; a GOAWAY is queued, and the connection is to be closed."""

    code: int
    reason: str


Event = ConnectionReady | MessageReceived | CallEnded | GoAwayReceived | ConnectionBroken


@define(eq=False)
class _Call:
    """One stream: what waits for windows, and what was received of a message."""

    stream_id: int
    window: int  # bytes the server still takes on this stream
    waiting: deque[bytes] = field(factory=deque)
    waiting_bytes: int = 0
    closing: bool = False  # END_STREAM follows what waits
    closed: bool = False  # END_STREAM is sent
    answered: bool = False  # response headers came
    received: bytearray = field(factory=bytearray)
    taken: int = 0  # bytes received since the stream's window was refilled


_Headers = tuple[tuple[str, str], ...]


def _request_headers(authority: str, path: str, timeout: str) -> _Headers:
    headers = (
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("user-agent", USER_AGENT),
        ("te", "trailers"),
        ("grpc-encoding", "snappy"),
        ("grpc-accept-encoding", "snappy"),
    )
    return (*headers, ("grpc-timeout", timeout)) if timeout else headers


@lru_cache(maxsize=64)
def _first_block(headers: _Headers) -> bytes:
    """What a fresh encoder makes of these; one for each address, not for each agent."""
    return hpack.Encoder().encode(headers)


class GrpcClientConnection:
    """One HTTP/2 connection as a host agent's gRPC client keeps it.

    Feed `receive_data`, then send `data_to_send`; also after each call of another method.
    Nothing raises on what the server sends.

    Args:
        authority: ``host:port`` as dialled.
    """

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._out: list[bytes] = [PREFACE, settings_frame(())]
        self._in = bytearray()
        self._encoder: hpack.Encoder | None = None  # from the second call on
        self._first_call: _Headers = ()
        self._decoder = hpack.Decoder(max_header_list_size=HEADER_BYTES)
        self._calls: dict[int, _Call] = {}
        self._next_id = 1
        self._window = DEFAULT_WINDOW  # bytes the server still takes on the connection
        self._call_window = DEFAULT_WINDOW  # what its SETTINGS give each new stream
        self._max_frame = SMALLEST_MAX_FRAME
        self._taken = 0  # bytes received since the connection's window was refilled
        self._ready = False
        self._broken = False
        self._bdp_ping_out = False
        self._answers = 0
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, fragments
        self.going_away = False

    @property
    def open_calls(self) -> int:
        """Calls that have not ended."""
        return len(self._calls)

    def waiting_on(self, stream_id: int) -> int:
        """Bytes queued in one call."""
        call = self._calls.get(stream_id)
        return 0 if call is None else call.waiting_bytes

    def data_to_send(self) -> bytes:
        """Take everything queued for the wire; empty when there is nothing."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def open_call(self, path: str = TRANSFER_PATH, timeout: str = "") -> int:
        """Queue the request headers of a new call, and return its stream id.

        Args:
            path: of the method.
            timeout: the call's, as gRPC writes it; empty for none.
        """
        stream_id = self._next_id
        self._next_id += 2
        headers = _request_headers(self._authority, path, timeout)
        if self._encoder is None and not self._first_call:
            self._first_call = headers
            block = _first_block(headers)
        else:
            block = self._encoder_now().encode(headers)
        self._calls[stream_id] = _Call(stream_id, self._call_window)
        self._out.append(frame(HEADERS, END_HEADERS, stream_id, block))
        return stream_id

    def _encoder_now(self) -> hpack.Encoder:
        """The encoder, in the state that the first call's shared block left the server in."""
        if self._encoder is None:
            self._encoder = hpack.Encoder()
            if self._first_call:
                self._encoder.encode(self._first_call)
        return self._encoder

    def send_message(self, stream_id: int, body: bytes, compressed: bool = True) -> None:
        """Queue one message; what the windows do not take waits in order.

        Args:
            stream_id: an open call; a message for one that has ended is dropped, as it would be
                on the wire.
            body: already compressed when ``compressed`` says so.
            compressed: the flag of the message.
        """
        call = self._calls.get(stream_id)
        if call is None or call.closing:
            return
        message = _MESSAGE.pack(compressed, len(body)) + body
        size = len(message)
        room = call.window if call.window < self._window else self._window
        if size <= room and size <= self._max_frame and not call.waiting:
            call.window -= size
            self._window -= size
            self._out.append(HEAD.pack(size << 8 | DATA, 0, stream_id) + message)
            return
        step = self._max_frame
        call.waiting.extend(message[at : at + step] for at in range(0, size, step))
        call.waiting_bytes += size
        self._send_waiting(call)

    def half_close(self, stream_id: int) -> None:
        """End this side of a call, behind everything that still waits."""
        call = self._calls.get(stream_id)
        if call is None or call.closing:
            return
        call.closing = True
        self._send_waiting(call)

    def cancel_call(self, stream_id: int, code: int = ErrorCode.CANCEL) -> None:
        """Reset a call; no event tells its end."""
        if self._calls.pop(stream_id, None) is not None:
            self._out.append(rst_stream_frame(stream_id, code))

    def receive_data(self, data: bytes) -> list[Event]:
        """Read what the server sent."""
        events: list[Event] = []
        if self._broken:
            return events
        self._in += data
        self._answers = 0
        try:
            self._read_frames(events)
        except Http2Error as error:
            self._broken = True
            self._in.clear()
            self._out.append(goaway_frame(0, error.code))
            events.append(ConnectionBroken(error.code, str(error)))
        return events

    def _read_frames(self, events: list[Event]) -> None:
        buffer, at, end = self._in, 0, len(self._in)
        while end - at >= HEAD_BYTES:
            head, flags, stream_id = HEAD.unpack_from(buffer, at)
            size, kind = head >> 8, head & 0xFF
            if size > SMALLEST_MAX_FRAME:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            if end - at < HEAD_BYTES + size:
                break
            payload = bytes(buffer[at + HEAD_BYTES : at + HEAD_BYTES + size])
            at += HEAD_BYTES + size
            if not self._ready and kind != SETTINGS:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            if self._block is not None and kind != CONTINUATION:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
            read = _READERS.get(kind)
            if read is not None:  # unknown frame types are ignored
                read(self, flags, stream_id & STREAM_ID_MASK, payload, events)
        del buffer[:at]

    # --- one method for each frame type

    def _read_settings(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        if flags & ACK:
            return
        self._count_answer()
        for name, value in SETTING.iter_unpack(payload):
            self._apply_setting(name, value)
        self._out.append(SETTINGS_ACK)
        if not self._ready:
            self._ready = True
            events.append(ConnectionReady())

    def _apply_setting(self, name: int, value: int) -> None:
        if name == INITIAL_WINDOW_SIZE:
            if value > LARGEST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, f"a window of {value} bytes")
            change = value - self._call_window
            self._call_window = value
            for call in list(self._calls.values()):
                self._grow(call, change)
        elif name == MAX_FRAME_SIZE:
            if not SMALLEST_MAX_FRAME <= value <= LARGEST_MAX_FRAME:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
            self._max_frame = value
        elif name == HEADER_TABLE_SIZE and (value < DEFAULT_HEADER_TABLE or self._encoder):
            self._encoder_now().header_table_size = min(value, DEFAULT_HEADER_TABLE)

    def _read_ping(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong length")
        if flags & ACK:
            if payload == BDP_PING:
                self._bdp_ping_out = False
            return
        self._count_answer()
        self._out.append(ping_frame(payload, ACK))

    def _count_answer(self) -> None:
        self._answers += 1
        if self._answers > CONTROL_FRAMES:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a flood of SETTINGS or PING frames")

    def _read_window_update(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong length")
        more = U32.unpack(payload)[0] & STREAM_ID_MASK
        call = self._calls.get(stream_id)
        if not more:
            if not stream_id:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 bytes")
            if call is not None:
                self._fail(call, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 bytes", events)
        elif stream_id:
            if call is not None:
                self._grow(call, more)
        else:
            self._window += more
            if self._window > LARGEST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflows")
            for each in list(self._calls.values()):
                self._send_waiting(each)

    def _grow(self, call: _Call, more: int) -> None:
        call.window += more
        if call.window > LARGEST_WINDOW:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window overflows")
        self._send_waiting(call)

    def _read_data(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if not stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        size = len(payload)
        body = _unpadded(payload, flags)
        self._taken += size
        if self._taken >= WINDOW_REFILL:
            self._out.append(window_update_frame(0, self._taken))
            self._taken = 0
        if size and not self._bdp_ping_out:
            self._bdp_ping_out = True
            self._out.append(ping_frame(BDP_PING))
        call = self._calls.get(stream_id)
        if call is None:  # ended already on this side
            return
        if not call.answered:
            self._fail(call, ErrorCode.PROTOCOL_ERROR, "DATA before the headers", events)
            return
        call.taken += size
        call.received += body
        if call.taken >= WINDOW_REFILL and not flags & END_STREAM:
            self._out.append(window_update_frame(stream_id, call.taken))
            call.taken = 0
        self._read_messages(call, events)
        if flags & END_STREAM and stream_id in self._calls:
            self._finish(call, Status.INTERNAL, "the answer ends without trailers", False, events)

    def _read_messages(self, call: _Call, events: list[Event]) -> None:
        received, at = call.received, 0
        while len(received) - at >= 5:
            flag, size = _MESSAGE.unpack_from(received, at)
            if flag > 1:
                self._fail(call, ErrorCode.CANCEL, f"a message flag of {flag}", events)
                return
            if size > MESSAGE_BYTES:
                reason = f"a message of {size} bytes; agents take {MESSAGE_BYTES}"
                self._fail(call, ErrorCode.CANCEL, reason, events, Status.RESOURCE_EXHAUSTED)
                return
            if len(received) - at < 5 + size:
                break
            body = bytes(received[at + 5 : at + 5 + size])
            events.append(MessageReceived(call.stream_id, bool(flag), body))
            at += 5 + size
        del received[:at]

    def _read_headers(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        if not stream_id % 2 or stream_id >= self._next_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        block = _unpadded(payload, flags)
        if flags & WITH_PRIORITY:
            if len(block) < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
            block = block[5:]
        self._block = stream_id, flags, bytearray(block)
        if flags & END_HEADERS:
            self._read_block(events)

    def _read_continuation(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        fragments = self._block[2]
        if not payload or len(fragments) + len(payload) > HEADER_BYTES:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "an endless header block")
        fragments += payload
        if flags & END_HEADERS:
            self._read_block(events)

    def _read_block(self, events: list[Event]) -> None:
        assert self._block is not None
        stream_id, flags, fragments = self._block
        self._block = None
        try:
            decoded = self._decoder.decode(bytes(fragments), raw=True)
        except hpack.HPACKError as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, f"bad header block: {error}") from error
        call = self._calls.get(stream_id)
        if call is None:
            return
        headers = {bytes(name): bytes(value) for name, value in decoded}
        if flags & END_STREAM:
            self._finish_with_trailers(call, headers, events)
        elif call.answered:
            self._fail(call, ErrorCode.PROTOCOL_ERROR, "a second header block", events)
        elif headers.get(b":status") != b"200":
            reason = f"HTTP status {headers.get(b':status', b'none').decode('latin-1')}"
            self._fail(call, ErrorCode.CANCEL, reason, events, Status.UNKNOWN)
        else:
            call.answered = True

    def _finish_with_trailers(
        self, call: _Call, headers: dict[bytes, bytes], events: list[Event]
    ) -> None:
        said = headers.get(b"grpc-status", b"")
        if not said.isdigit() or len(said) > 3:
            reason = f"trailers without a status (HTTP {headers.get(b':status', b'?')!r})"
            self._finish(call, Status.UNKNOWN, reason, False, events)
            return
        message = unquote(headers.get(b"grpc-message", b"").decode("latin-1"), errors="replace")
        self._finish(call, int(said), message, True, events)

    def _read_rst_stream(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        if not stream_id or len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong form")
        call = self._calls.pop(stream_id, None)
        if call is not None:
            code = U32.unpack(payload)[0]
            status = _STATUS_OF_RESET.get(code, Status.INTERNAL)
            reason = f"the server reset the stream, code {code}"
            events.append(CallEnded(stream_id, status, reason, False, call.closed))

    def _read_goaway(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id or len(payload) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong form")
        last, code = struct.unpack_from(">II", payload)
        self.going_away = True
        events.append(GoAwayReceived(last & STREAM_ID_MASK, code, payload[8:]))
        for call in list(self._calls.values()):
            if call.stream_id > last & STREAM_ID_MASK:
                del self._calls[call.stream_id]
                reason = "GOAWAY: not taken by the server"
                events.append(
                    CallEnded(call.stream_id, Status.UNAVAILABLE, reason, False, call.closed)
                )

    def _read_push_promise(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE to a gRPC client")

    # --- ends of calls, and what waits for windows

    def _finish(
        self,
        call: _Call,
        status: int,
        message: str,
        from_trailers: bool,
        events: list[Event],
    ) -> None:
        """The server's side is over; tell it that this side is, too."""
        del self._calls[call.stream_id]
        if not call.closed:
            self._out.append(rst_stream_frame(call.stream_id, ErrorCode.NO_ERROR))
        events.append(CallEnded(call.stream_id, status, message, from_trailers, call.closed))

    def _fail(
        self,
        call: _Call,
        code: ErrorCode,
        reason: str,
        events: list[Event],
        status: Status = Status.INTERNAL,
    ) -> None:
        """End a call whose answer cannot be used."""
        self.cancel_call(call.stream_id, code)
        events.append(CallEnded(call.stream_id, status, reason, False, call.closed))

    def _send_waiting(self, call: _Call) -> None:
        waiting, stream_id = call.waiting, call.stream_id
        while waiting:
            room = min(call.window, self._window, self._max_frame)
            if room <= 0:
                return
            first = waiting.popleft()
            if len(first) > room:
                waiting.appendleft(first[room:])
                first = first[:room]
            size = len(first)
            call.waiting_bytes -= size
            call.window -= size
            self._window -= size
            self._out.append(frame(DATA, 0, stream_id, first))
        if call.closing and not call.closed:
            call.closed = True
            self._out.append(frame(DATA, END_STREAM, stream_id))


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


_Reader = Callable[[GrpcClientConnection, int, int, bytes, list[Event]], None]
_READERS: dict[int, _Reader] = {
    DATA: GrpcClientConnection._read_data,
    HEADERS: GrpcClientConnection._read_headers,
    RST_STREAM: GrpcClientConnection._read_rst_stream,
    SETTINGS: GrpcClientConnection._read_settings,
    PUSH_PROMISE: GrpcClientConnection._read_push_promise,
    PING: GrpcClientConnection._read_ping,
    GOAWAY: GrpcClientConnection._read_goaway,
    WINDOW_UPDATE: GrpcClientConnection._read_window_update,
    CONTINUATION: GrpcClientConnection._read_continuation,
}
