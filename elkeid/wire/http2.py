"""The server side of one HTTP/2 connection: bytes in, events out, no I/O.

It is made for a connection that carries few, long-lived streams of small messages: received
DATA is handed on as slices of what was read, without an object for a frame, and an idle
connection holds next to nothing. `Http2Server` knows frames, streams, windows and limits;
what a request means is left to a subclass through the methods named ``_on_*``.

A stream has two halves. What the peer sends is, in this order, `READING` (handed on),
`DROPPING` (the request is answered: the rest is thrown away, up to its window), `STOPPING`
(thrown away too, and the stream is reset once our end is sent), `ENDED`. What we send is open,
then ending (the end waits behind data that waits for windows), then ended.

Nothing that a peer sends raises: a broken stream is reset, a broken connection is told so by
GOAWAY and the event `ConnectionEnded`.

Source: RFC 9113.
"""

import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

import hpack
from attrs import field, frozen
from attrs.validators import gt
from msgspec import Struct

from elkeid.errors import WireError
from elkeid.wire import http2_frames as h2
from elkeid.wire.http2_fields import (
    TABLE_SIZE_ZERO,
    Fields,
    MalformedFields,
    Request,
    check_trailers,
    read_request,
)
from elkeid.wire.http2_frames import ErrorCode, Http2Error
from elkeid.wire.http2_headers import HeaderDecoder

KiB = 1 << 10
MiB = 1 << 20

MAX_FRAME: Final = h2.SMALLEST_MAX_FRAME
"""Bytes of a frame's payload, either way. Larger ones would save little and cost memory."""

CONTINUATION_LIMIT: Final = 16
"""CONTINUATION frames of one header block. Its bytes fit one frame; more is a flood."""

NUISANCE_BURST: Final = 1_000
"""Points that frames without progress may cost at once. A 4 MiB Command makes an agent send
some 500 WINDOW_UPDATE and PING frames, which the DATA sent pays for; nothing else comes near."""

NUISANCE_LEAK: Final = 50.0
"""Points forgotten per second. gRPC allows a PING every few seconds."""

NUISANCE_RESET: Final = 10
"""Points of a stream that comes to nothing: reset by the peer, refused or malformed. So 100 at
once, then 5 a second (CVE-2023-44487). Agents open one stream in 5 s."""

NUISANCE_REFUND: Final = 3
"""Points forgiven for each DATA frame sent: a peer answers it by two WINDOW_UPDATE and a PING."""

QUEUED_ANSWERS: Final = 1_000
"""Control frames that may wait to be sent. A peer that makes us answer but does not read is
cut off before its answers take memory."""

CLOSED_STREAMS: Final = 64
"""Closed streams remembered, so that frames in flight on streams that we reset are no error."""


class Progress(Enum):
    """How far something that was queued to be sent has got."""

    WAITING = auto()  # for the peer's window; nothing of it was sent
    BEGUN = auto()  # in part, or it is ready but `Http2Server.data_to_send` has not given it out
    WRITTEN = auto()  # all of it was given out


READING: Final = 0
DROPPING: Final = 1
STOPPING: Final = 2
ENDED: Final = 3

_unpack_head = h2.HEAD.unpack_from


class SendQueueFull(WireError):
    """The peer does not take what is sent to it, and enough waits for it already."""


@frozen
class ConnectionLimits:
    """What one connection may cost; shared by all connections of a listener.

    Attributes:
        message_bytes: one gRPC message on the wire. Agents cannot split a batch.
        pending_bytes: of one stream, waiting to be sent: two of the largest Commands, since
            agents take 4 MiB.
        streams: open at once; each may have a message under way. An agent has one, and one
            more for an upload.
        header_bytes: one header list, counted as the protocol does. Agents send 400.
        stream_window: bytes that a peer may send ahead on a stream. Refilled when half is
            used, it sustains 128 KiB a round trip, 1.2 MiB/s at 100 ms, which is an agent's
            budget, compressed.
        connection_window: the same for the whole connection; so a paused stream holds up no
            other, until four are paused.
    """

    message_bytes: int = 32 * MiB
    pending_bytes: int = 9 * MiB
    streams: int = 4
    header_bytes: int = 16 * KiB
    stream_window: int = 256 * KiB
    connection_window: int = field(default=MiB, validator=gt(h2.DEFAULT_WINDOW))
    greeting: bytes = field(init=False, repr=False)  # the first bytes on every connection

    @greeting.default
    def _make_greeting(self) -> bytes:
        settings = h2.settings_frame(
            [
                (h2.MAX_CONCURRENT_STREAMS, self.streams),
                (h2.INITIAL_WINDOW_SIZE, self.stream_window),
                (h2.MAX_FRAME_SIZE, MAX_FRAME),
                (h2.MAX_HEADER_LIST_SIZE, self.header_bytes),
            ]
        )
        more = self.connection_window - h2.DEFAULT_WINDOW
        return settings + h2.window_update_frame(0, more)


class Event(Struct, frozen=True, gc=False):
    """Something the peer did, that the connection's owner may act on."""


class PingAcked(Event, frozen=True, gc=False):
    """The peer answered a PING of ours."""

    payload: bytes


class ConnectionEnded(Event, frozen=True, gc=False):
    """The peer broke the connection; GOAWAY is queued, and nothing more is read.

    Attributes:
        error_code: an `ErrorCode`.
        reason: for the log.
    """

    error_code: int
    reason: str


class Stream:
    """One stream, as this side sees it."""

    __slots__ = (
        "answered",
        "end_block",
        "expected",
        "paused",
        "queue",
        "queued_bytes",
        "reading",
        "sent_of_first",
        "stream_id",
        "taken",
        "window",
    )

    def __init__(self, stream_id: int, window: int) -> None:
        self.stream_id = stream_id
        self.window = window  # bytes the peer takes; negative after it shrank its windows
        self.taken = 0  # bytes received since our window was refilled
        self.expected = -1  # bytes still to come by content-length, if one was sent
        self.reading = READING
        self.paused = False
        self.answered = False  # response HEADERS are queued
        self.queue: deque[bytes] | None = None  # DATA that waits for a window
        self.queued_bytes = 0
        self.sent_of_first = 0  # bytes of queue[0] that are sent
        # Trailers to send after the queue; b"" when its last DATA ends the stream instead.
        self.end_block: bytes | None = None


class Http2Server:
    """One connection.

    Feed `receive_data`, then send what `data_to_send` returns; also after any other call.

    Args:
        limits: what the connection may cost.
        clock: seconds, monotonic; by it, frames without progress are forgiven.
    """

    __slots__ = (
        "_answers",
        "_block",
        "_block_frames",
        "_clock",
        "_closed",
        "_greeted",
        "_half",
        "_headers",
        "_held",
        "_highest",
        "_last_taken",
        "_left",
        "_left_ends",
        "_left_stream",
        "_limits",
        "_nuisance",
        "_nuisance_at",
        "_out",
        "_out_bytes",
        "_over",
        "_peer_window",
        "_shrink_table",
        "_stream_half",
        "_streams",
        "_taken",
        "_wanted",
        "_window",
    )

    def __init__(
        self, limits: ConnectionLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._streams: dict[int, Stream] = {}
        # Id -> frames may still be in flight; bounded, and None until a stream is closed.
        self._closed: dict[int, bool] | None = None
        self._highest = 0  # of the peer's stream ids
        self._last_taken = h2.STREAM_ID_MASK  # streams above it are ignored, once we went away
        self._over = False
        # What was read but not acted on: a frame that is not whole yet, except DATA.
        self._held: bytearray | None = bytearray()
        self._wanted = 1
        self._greeted = 0  # 0: no preface, 1: no SETTINGS, 2: both came
        # The DATA frame under way.
        self._left = 0
        self._left_stream: Stream | None = None
        self._left_ends = False
        # The header block under way: its stream, its flags, its fragments.
        self._block: tuple[int, int, bytearray] | None = None
        self._block_frames = 0
        self._headers: HeaderDecoder | None = None
        self._taken = 0  # bytes received since the connection's window was refilled
        self._half = limits.connection_window // 2
        self._stream_half = limits.stream_window // 2
        self._window = h2.DEFAULT_WINDOW  # bytes the peer takes on the connection
        self._peer_window = h2.DEFAULT_WINDOW  # bytes it takes on a new stream
        self._shrink_table = False  # our next header block says that it uses no table
        self._out: list[bytes | memoryview] = [limits.greeting]
        self._out_bytes = len(limits.greeting)
        self._answers = 0
        self._nuisance = 0.0
        self._nuisance_at = clock()

    # --- what the owner sees

    @property
    def open_streams(self) -> int:
        """How many streams are open, at least on one side."""
        return len(self._streams)

    @property
    def ended(self) -> bool:
        """Whether the connection broke; nothing is read any more."""
        return self._over

    def pending_bytes(self, stream_id: int) -> int:
        """Bytes of a stream that wait for the peer's window; 0 for a closed stream."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.queued_bytes

    def progress(self, stream_id: int) -> "Progress":
        """How far the last piece of DATA that was queued on a stream has got."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.queue:
            last = len(stream.queue) == 1 and stream.sent_of_first
            return Progress.BEGUN if last else Progress.WAITING
        return Progress.BEGUN if self._out else Progress.WRITTEN

    def withdraw(self, stream_id: int) -> bool:
        """Take back the last piece of DATA queued on a stream, if none of it was sent yet."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.end_block is not None or not stream.queue:
            return False
        if len(stream.queue) == 1 and stream.sent_of_first:
            return False
        stream.queued_bytes -= len(stream.queue.pop())
        return True

    def data_to_send(self) -> bytes:
        """Take everything that is ready to be sent."""
        out = self._out
        if not out:
            return b""
        data = b"".join(out)
        out.clear()
        self._out_bytes = self._answers = 0
        return data

    def send_ping(self, payload: bytes) -> None:
        """Ask for a sign of life; `PingAcked` brings the 8 bytes of ``payload`` back."""
        if len(payload) != 8:
            raise ValueError("a PING carries 8 bytes")
        self._write(h2.ping_frame(payload))

    def send_goaway(
        self, code: int = ErrorCode.NO_ERROR, last_stream_id: int | None = None
    ) -> None:
        """Take no new streams; those up to ``last_stream_id``, by default all, go on."""
        last = self._highest if last_stream_id is None else last_stream_id
        self._last_taken = min(self._last_taken, last)
        self._write(h2.goaway_frame(self._last_taken, code))

    def pause(self, stream_id: int) -> None:
        """Refill a stream's window no more: the peer stops once it is used up."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.paused = True

    def resume(self, stream_id: int) -> None:
        """Refill a stream's window again."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.paused:
            stream.paused = False
            if stream.taken >= self._stream_half and stream.reading == READING:
                self._write(h2.window_update_frame(stream_id, stream.taken))
                stream.taken = 0

    def reset(self, stream_id: int, code: int = ErrorCode.NO_ERROR) -> None:
        """End a stream at once, both ways; what waits to be sent on it is dropped."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._write(h2.rst_stream_frame(stream_id, code))
            self._close(stream, in_flight=True)

    # --- what a subclass gives meaning to

    def _new_stream(self, stream_id: int) -> Stream:
        return Stream(stream_id, self._peer_window)

    def _on_request(
        self, stream: Stream, request: Request, ended: bool, events: list[Event]
    ) -> None:
        """A well-formed request opened a stream; its end is told apart, by `_on_end`."""
        raise NotImplementedError

    def _on_data(
        self, stream: Stream, data: bytes, at: int, stop: int, events: list[Event]
    ) -> None:
        """``data[at:stop]`` came on a stream that is read; never empty."""
        raise NotImplementedError

    def _on_end(self, stream: Stream, events: list[Event]) -> None:
        """All has come of a stream that was read."""
        raise NotImplementedError

    def _on_broken(self, stream: Stream, code: int, reason: str, events: list[Event]) -> None:
        """A stream was reset, by the peer or for what it did; it is closed already."""
        raise NotImplementedError

    # --- reading

    def receive_data(self, data: bytes) -> list[Event]:
        """Read what the peer sent, in pieces of any size."""
        events: list[Event] = []
        if self._over:
            return events
        try:
            self._read(data, events)
        except Http2Error as error:
            self._break(error, events)
        return events

    def _break(self, error: Http2Error, events: list[Event]) -> None:
        """End the connection, and forget all that it holds."""
        self._over = True
        reason = str(error)
        self._write(h2.goaway_frame(self._highest, error.code, reason.encode()))
        self._streams = {}
        self._held = self._block = self._left_stream = self._headers = None
        events.append(ConnectionEnded(error.code, reason))

    def _read(self, data: bytes, events: list[Event]) -> None:
        if self._held is not None:
            self._held += data
            if len(self._held) < self._wanted:
                return
            data, self._held = bytes(self._held), None
            if not self._greeted:
                data = self._read_preface(data)
        at, end = 0, len(data)
        if self._left:
            at = self._read_more_data(data, events)
        streams, stream_half = self._streams, self._stream_half
        while end - at >= 9:
            head, flags, stream_id = _unpack_head(data, at)
            size = head >> 8
            if not head & 0xFF and not flags and 0 < size <= MAX_FRAME and self._block is None:
                # Plain DATA. The rare cases of DATA are left to _read_data below.
                stream = streams.get(stream_id)
                if (
                    stream is not None
                    and stream.reading == READING
                    and stream.expected < 0
                    and (taken := stream.taken + size) < stream_half
                ):
                    stream.taken = taken
                    taken = self._taken + size
                    self._taken = taken if taken < self._half else self._refill(taken)
                    at += 9
                    stop = at + size
                    if stop > end:
                        self._left, self._left_stream = stop - end, stream
                        self._left_ends = False
                        stop = end
                        if at == end:
                            return
                    self._on_data(stream, data, at, stop, events)
                    at = stop
                    continue
            if size > MAX_FRAME:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            kind = head & 0xFF
            if kind == h2.DATA and not flags & h2.PADDED and self._block is None:
                at = self._read_data(data, at, events)
                continue
            stop = at + 9 + size
            if stop > end:
                self._hold(data, at, 9 + size)
                return
            self._read_frame(
                kind, flags, stream_id & h2.STREAM_ID_MASK, data[at + 9 : stop], events
            )
            at = stop
        if at < end:
            self._hold(data, at, 9)

    def _hold(self, data: bytes, at: int, wanted: int) -> None:
        self._held = bytearray(data[at:])
        self._wanted = wanted

    def _read_preface(self, data: bytes) -> bytes:
        """Check and take the preface; what follows it is returned."""
        have = min(len(data), len(h2.PREFACE))
        if data[:have] != h2.PREFACE[:have]:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the peer does not speak HTTP/2")
        if have < len(h2.PREFACE):
            self._hold(data, 0, have + 1)
            return b""
        self._greeted = 1
        return data[have:]

    # --- DATA

    def _read_data(self, data: bytes, at: int, events: list[Event]) -> int:
        """Read a DATA frame without padding, or what came of it; return where that ends."""
        head, flags, stream_id = _unpack_head(data, at)
        size: int = head >> 8
        at += 9
        stream = self._data_head(stream_id & h2.STREAM_ID_MASK, size, size, flags, events)
        stop = min(at + size, len(data))
        if at < stop and stream is not None and stream.reading == READING:
            self._on_data(stream, data, at, stop, events)
        ends = bool(flags & h2.END_STREAM)
        if stop - at < size:
            self._left, self._left_stream, self._left_ends = size - (stop - at), stream, ends
        elif ends and stream is not None:
            self._end_of_input(stream, events)
        return stop

    def _read_padded_data(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        body = _unpadded(payload, flags)
        stream = self._data_head(stream_id, len(payload), len(body), flags, events)
        if body and stream is not None and stream.reading == READING:
            self._on_data(stream, body, 0, len(body), events)
        if flags & h2.END_STREAM and stream is not None:
            self._end_of_input(stream, events)

    def _data_head(
        self, stream_id: int, size: int, body: int, flags: int, events: list[Event]
    ) -> Stream | None:
        """Account for a DATA frame; None if its stream takes no DATA."""
        if self._greeted < 2:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if not stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        ends = flags & h2.END_STREAM
        if not body and not ends:
            self._spend(1)
        taken = self._taken + size
        self._taken = taken if taken < self._half else self._refill(taken)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_closed(stream_id, "DATA")
            return None
        if stream.reading == ENDED:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED, "DATA after the end", events)
            return None
        stream.taken += size
        if stream.taken > self._limits.stream_window:
            self._stream_error(
                stream, ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the window", events
            )
            return None
        if stream.taken >= self._stream_half and not ends:
            if stream.reading == DROPPING:
                self.reset(stream_id)
                return None
            if stream.reading == READING and not stream.paused:
                self._answer(h2.window_update_frame(stream_id, stream.taken))
                stream.taken = 0
        if stream.expected >= 0:
            stream.expected -= body
            if stream.expected < 0:
                self._stream_error(
                    stream, ErrorCode.PROTOCOL_ERROR, "more DATA than content-length", events
                )
                return None
        return stream

    def _read_more_data(self, data: bytes, events: list[Event]) -> int:
        """Go on with the DATA frame under way; return where it ends in ``data``."""
        stop = min(self._left, len(data))
        self._left -= stop
        stream = self._left_stream
        if stream is not None:
            if stream.reading == READING and stop:
                self._on_data(stream, data, 0, stop, events)
            if not self._left:
                self._left_stream = None
                if self._left_ends:
                    self._end_of_input(stream, events)
        return stop

    def _end_of_input(self, stream: Stream, events: list[Event]) -> None:
        """The peer's half of a stream is over."""
        if stream.reading == ENDED:  # it was closed on this side while the frame came in
            return
        if stream.expected > 0:
            self._stream_error(
                stream, ErrorCode.PROTOCOL_ERROR, "less DATA than content-length", events
            )
            return
        was_read = stream.reading == READING
        stream.reading = ENDED
        if was_read:
            self._on_end(stream, events)
        self._close_if_done(stream)

    def _refill(self, taken: int) -> int:
        self._answer(h2.window_update_frame(0, taken))
        return 0

    # --- all other frames

    def _read_frame(
        self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        if self._greeted < 2:
            if kind != h2.SETTINGS or flags & h2.ACK:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._greeted = 2
        if self._block is not None and (kind != h2.CONTINUATION or stream_id != self._block[0]):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
        if kind == h2.WINDOW_UPDATE:
            self._read_window_update(stream_id, payload, events)
        elif kind == h2.PING:
            self._read_ping(flags, stream_id, payload, events)
        elif kind == h2.HEADERS:
            self._read_headers(flags, stream_id, payload, events)
        elif kind == h2.CONTINUATION:
            self._read_continuation(flags, payload, events)
        elif kind == h2.SETTINGS:
            self._read_settings(flags, stream_id, payload, events)
        elif kind == h2.RST_STREAM:
            self._read_rst_stream(stream_id, payload, events)
        elif kind == h2.DATA:
            self._read_padded_data(flags, stream_id, payload, events)
        elif kind == h2.PRIORITY:
            self._read_priority(stream_id, payload, events)
        elif kind == h2.GOAWAY:
            self._read_goaway(stream_id, payload)
        elif kind == h2.PUSH_PROMISE:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
        else:
            self._spend(1)

    def _read_settings(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & h2.ACK and payload):
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        self._spend(1 + len(payload) // 60)
        if flags & h2.ACK:
            return
        for name, value in h2.SETTING.iter_unpack(payload):
            if name == h2.INITIAL_WINDOW_SIZE:
                self._change_windows(value)
            elif name == h2.HEADER_TABLE_SIZE:
                if value < h2.DEFAULT_HEADER_TABLE:
                    self._shrink_table = True
            elif name == h2.ENABLE_PUSH:
                if value > 1:
                    raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
            elif name == h2.MAX_FRAME_SIZE and not MAX_FRAME <= value <= h2.LARGEST_MAX_FRAME:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
        self._answer(h2.SETTINGS_ACK)
        self._send_all()

    def _change_windows(self, value: int) -> None:
        if value > h2.LARGEST_WINDOW:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
        change = value - self._peer_window
        self._peer_window = value
        for stream in self._streams.values():
            stream.window += change
            if stream.window > h2.LARGEST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window overflows")

    def _read_ping(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong length")
        self._spend(1)
        if flags & h2.ACK:
            events.append(PingAcked(payload))
        else:
            self._answer(h2.ping_frame(payload, h2.ACK))

    def _read_window_update(self, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong length")
        self._spend(1)
        more = h2.U32.unpack(payload)[0] & h2.STREAM_ID_MASK
        if not stream_id:
            if not more:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 bytes")
            self._window += more
            if self._window > h2.LARGEST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflows")
            self._send_all()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "WINDOW_UPDATE")
        elif not more:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 bytes", events)
        elif stream.window + more > h2.LARGEST_WINDOW:
            self._stream_error(
                stream, ErrorCode.FLOW_CONTROL_ERROR, "the stream's window overflows", events
            )
        else:
            stream.window += more
            if stream.queue:
                self._send(stream)

    def _read_rst_stream(self, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong length")
        self._spend(NUISANCE_RESET)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "RST_STREAM")
            return
        code = h2.U32.unpack(payload)[0]
        self._close(stream, in_flight=False)
        self._on_broken(stream, code, f"the peer reset the stream, code {code}", events)

    def _read_priority(self, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """Priorities are deprecated and ignored, but their form is checked."""
        if not stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._spend(1)
        if len(payload) != 5:
            code, reason = ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a wrong length"
        elif _parent(payload) == stream_id:
            code, reason = ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself"
        else:
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            raise Http2Error(code, reason)
        self._stream_error(stream, code, reason, events)

    def _read_goaway(self, stream_id: int, payload: bytes) -> None:
        """The peer takes no streams of ours; we open none, so all goes on."""
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong length")
        self._spend(1)

    # --- header blocks

    def _read_headers(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        if not stream_id % 2:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        self._spend(1)
        block = _unpadded(payload, flags)
        if flags & h2.WITH_PRIORITY:
            if len(block) < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
            if _parent(block) == stream_id:
                # Costs the stream, but only after its block is decoded.
                flags |= _DEPENDS_ON_ITSELF
            block = block[5:]
        if flags & h2.END_HEADERS:
            self._read_block(stream_id, flags, block, events)
        else:
            self._block, self._block_frames = (stream_id, flags, bytearray(block)), 0

    def _read_continuation(self, flags: int, payload: bytes, events: list[Event]) -> None:
        if self._block is None:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        stream_id, first_flags, fragments = self._block
        self._block_frames += 1
        too_long = len(fragments) + len(payload) > self._limits.header_bytes
        if too_long or self._block_frames > CONTINUATION_LIMIT:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        fragments += payload
        if flags & h2.END_HEADERS:
            self._block = None
            self._read_block(stream_id, first_flags, bytes(fragments), events)

    def _read_block(self, stream_id: int, flags: int, block: bytes, events: list[Event]) -> None:
        fields = self._decode(block)
        ends = bool(flags & h2.END_STREAM)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._read_trailers(stream, fields, flags, events)
            return
        if stream_id <= self._highest:
            self._check_closed(stream_id, "HEADERS")
            return
        self._highest = stream_id
        if stream_id > self._last_taken:
            self._remember_closed(stream_id, in_flight=True)
            return
        if len(self._streams) >= self._limits.streams:
            self._refuse(stream_id, ErrorCode.REFUSED_STREAM)
            return
        try:
            request = read_request(fields)
            if flags & _DEPENDS_ON_ITSELF or (ends and request.content_length > 0):
                raise MalformedFields("a request that cannot be as it says")
        except MalformedFields:
            self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        self._count_answer()  # whatever it will be
        stream = self._streams[stream_id] = self._new_stream(stream_id)
        stream.expected = request.content_length
        self._on_request(stream, request, ends, events)
        if ends:
            self._end_of_input(stream, events)

    def _read_trailers(
        self, stream: Stream, fields: Fields, flags: int, events: list[Event]
    ) -> None:
        if stream.reading == ENDED:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED, "HEADERS after the end", events)
            return
        try:
            check_trailers(fields)
            if not flags & h2.END_STREAM or flags & _DEPENDS_ON_ITSELF:
                raise MalformedFields("a second header section that is no trailers")
        except MalformedFields as error:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, str(error), events)
            return
        self._end_of_input(stream, events)

    def _decode(self, block: bytes) -> Fields:
        if len(block) > self._limits.header_bytes:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a header block too long")
        if self._headers is None:
            self._headers = HeaderDecoder(self._limits.header_bytes)
        if _too_many_updates(block):
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, "table size updates without end")
        try:
            return self._headers.decode(block)
        except hpack.OversizedHeaderListError:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a header list too long") from None
        except hpack.HPACKError as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, f"header block: {error}") from error

    # --- ends of streams

    def _check_not_idle(self, stream_id: int, what: str) -> None:
        if not stream_id % 2 or stream_id > self._highest:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")

    def _check_closed(self, stream_id: int, what: str) -> None:
        """End the connection unless the frame was in flight when we reset the stream."""
        self._check_not_idle(stream_id, what)
        in_flight = None if self._closed is None else self._closed.get(stream_id)
        if in_flight is None and what == "HEADERS":
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} opened late")
        if not in_flight:
            raise Http2Error(ErrorCode.STREAM_CLOSED, f"{what} on closed stream {stream_id}")

    def _remember_closed(self, stream_id: int, in_flight: bool) -> None:
        if self._closed is None:
            self._closed = {}
        closed = self._closed
        closed[stream_id] = in_flight
        if len(closed) > CLOSED_STREAMS:
            del closed[next(iter(closed))]

    def _close(self, stream: Stream, in_flight: bool) -> None:
        del self._streams[stream.stream_id]
        stream.reading = ENDED
        stream.queue = None
        stream.queued_bytes = 0
        self._remember_closed(stream.stream_id, in_flight)

    def _close_if_done(self, stream: Stream) -> None:
        """Close a stream once both sides have ended."""
        if stream.end_block is None or stream.queue:
            return
        if self._streams.get(stream.stream_id) is not stream:
            return
        if stream.reading == ENDED:
            self._close(stream, in_flight=False)
        elif stream.reading == STOPPING:
            self.reset(stream.stream_id)

    def _refuse(self, stream_id: int, code: ErrorCode) -> None:
        self._spend(NUISANCE_RESET)
        self._remember_closed(stream_id, in_flight=True)
        self._answer(h2.rst_stream_frame(stream_id, code))

    def _stream_error(
        self, stream: Stream, code: ErrorCode, reason: str, events: list[Event]
    ) -> None:
        """Reset a stream for what its peer did."""
        self._spend(NUISANCE_RESET)
        self._close(stream, in_flight=True)
        self._answer(h2.rst_stream_frame(stream.stream_id, code))
        self._on_broken(stream, code, reason, events)

    def _spend(self, points: int) -> None:
        """Count a frame that brings nothing; too many of them end the connection."""
        level = self._nuisance + points
        if level > NUISANCE_BURST:
            now = self._clock()
            level = max(0.0, level - (now - self._nuisance_at) * NUISANCE_LEAK)
            self._nuisance_at = now
            if level > NUISANCE_BURST:
                raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a flood of frames without use")
        self._nuisance = level

    # --- writing

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def _answer(self, data: bytes) -> None:
        """Write what the peer made us say."""
        self._count_answer()
        self._write(data)

    def _count_answer(self) -> None:
        self._answers += 1
        if self._answers > QUEUED_ANSWERS:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "the peer does not read its answers")

    def _send_block(self, stream: Stream, block: bytes, ends: bool) -> None:
        """HEADERS: the response's, or trailers."""
        if self._shrink_table:
            self._shrink_table = False
            block = TABLE_SIZE_ZERO + block
        flags = h2.END_HEADERS | (h2.END_STREAM if ends else 0)
        stream.answered = True
        self._write(h2.frame(h2.HEADERS, flags, stream.stream_id, block))

    def _check_room(self, stream: Stream, size: int) -> None:
        """Raise `SendQueueFull` if ``size`` more bytes are too much to wait for the peer."""
        waiting = stream.queued_bytes + self._out_bytes
        if waiting + size > self._limits.pending_bytes:
            raise SendQueueFull(f"{waiting} bytes wait for the peer already")

    def _send_data(self, stream: Stream, data: bytes) -> None:
        """Send DATA, as far as the windows allow now; the rest when they do."""
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append(data)
        stream.queued_bytes += len(data)
        self._send(stream)

    def _send_end(self, stream: Stream, block: bytes, reading: int) -> None:
        """End our half, behind all data; ``reading`` is what becomes of the peer's.

        Args:
            stream: not ended yet.
            block: trailers.
            reading: READING, DROPPING or STOPPING.
        """
        stream.end_block = block
        if stream.reading != ENDED:
            stream.reading = reading
        self._send(stream)

    def _send_all(self) -> None:
        for stream in list(self._streams.values()):
            if stream.queue:
                self._send(stream)

    def _send(self, stream: Stream) -> None:
        """Send what waits on a stream, as far as the windows allow."""
        queue, stream_id = stream.queue, stream.stream_id
        while queue:
            room = min(stream.window, self._window, MAX_FRAME)
            first, at = queue[0], stream.sent_of_first
            size = min(room, len(first) - at)
            if size <= 0:
                return
            stop = at + size
            ends = stop == len(first) and len(queue) == 1 and stream.end_block == b""
            head = h2.HEAD.pack(size << 8 | h2.DATA, h2.END_STREAM if ends else 0, stream_id)
            if size == len(first):
                self._out.append(head + first)
            else:
                self._out += (head, memoryview(first)[at:stop])
            self._out_bytes += 9 + size
            stream.window -= size
            self._window -= size
            stream.queued_bytes -= size
            if self._nuisance > NUISANCE_REFUND:
                self._nuisance -= NUISANCE_REFUND
            stream.sent_of_first = stop
            if stop == len(first):
                queue.popleft()
                stream.sent_of_first = 0
            if ends:
                stream.queue = None
                self._close_if_done(stream)
                return
        stream.queue = None
        if stream.end_block:
            self._send_block(stream, stream.end_block, ends=True)
            self._close_if_done(stream)


_DEPENDS_ON_ITSELF: Final = 0x100  # beside the flags of a HEADERS frame, which are 8 bits


def _parent(priority: bytes) -> int:
    parent: int = h2.U32.unpack_from(priority)[0] & h2.STREAM_ID_MASK
    return parent


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & h2.PADDED:
        return payload
    if not payload:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without its padding")
    if payload[0] >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def _too_many_updates(block: bytes) -> bool:
    """Whether a block starts with more table size updates than the two that make sense."""
    at = updates = 0
    while at < len(block) and block[at] & 0xE0 == 0x20:
        updates += 1
        if updates > 2:
            return True
        more = block[at] & 0x1F == 0x1F
        at += 1
        while more and at < len(block):
            more = block[at] >= 0x80
            at += 1
    return False
