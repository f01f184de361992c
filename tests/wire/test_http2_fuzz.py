"""Random and broken input: nothing raises, nothing grows, and h2 judges it as we do."""

import tracemalloc
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from elkeid.wire import http2_frames as h2
from elkeid.wire.grpc import (
    CallCancelled,
    CallStarted,
    ConnectionEnded,
    ConnectionLimits,
    ErrorCode,
    Event,
    GrpcServerConnection,
    HalfClosed,
    MessageReceived,
    PingAcked,
    Status,
)
from elkeid.wire.http2 import Http2Server, Stream
from elkeid.wire.http2_fields import Request
from tests.wire.http2_peer import (
    GREETING,
    PATH,
    block,
    data,
    frames,
    headers,
    message,
    request,
    resets,
)

KNOWN = (CallCancelled, CallStarted, ConnectionEnded, HalfClosed, MessageReceived, PingAcked)
LIMITS = ConnectionLimits(message_bytes=100_000)

# --- frames, most of them good

stream_ids = st.sampled_from([1, 1, 1, 3, 3, 5, 7, 0, 2])
blocks = st.sampled_from(
    [
        block(),
        block(),
        block(),
        block(request(_method="GET", content_type=None)),
        block(request(content_length="7")),
        block([("grpc-message", "trailer")]),
        block(request(_path=None)),
        block(request(te="gzip")),
        block(request(connection="close")),
        block([*request(), ("Upper", "x")]),
        b"\xbe",
        b"\x20" + block(),
        b"\x3f\xe2\x1f",
        b"",
    ]
)
flags_of_headers = st.sampled_from([4, 4, 4, 5, 5, 0, 1])
bodies = st.one_of(
    st.sampled_from([b"", message(b"one"), message(b"two", 1), message(bytes(300))]),
    st.binary(max_size=12),
)


@st.composite
def padded(draw: st.DrawFn, kind: int) -> bytes:
    """DATA or HEADERS with padding, now and then too much of it."""
    body = draw(bodies if kind == h2.DATA else blocks)
    padding = draw(st.integers(0, 5))
    wrong = min(255, len(body) + padding + 1)
    claimed = draw(st.sampled_from([padding, padding, padding, wrong, 255]))
    flags = draw(st.sampled_from([0, 1])) | (h2.END_HEADERS if kind == h2.HEADERS else 0)
    payload = bytes([claimed]) + body + bytes(padding)
    return h2.frame(kind, flags | h2.PADDED, draw(stream_ids), payload)


some_frames = st.one_of(
    st.builds(lambda i, f, b: h2.frame(h2.HEADERS, f, i, b), stream_ids, flags_of_headers, blocks),
    st.builds(lambda i, f: h2.frame(h2.HEADERS, f, i, block()), stream_ids, flags_of_headers),
    st.builds(data, stream_ids, bodies, st.sampled_from([0, 0, 0, 1])),
    padded(h2.DATA),
    padded(h2.HEADERS),
    st.builds(
        lambda i, f, b: h2.frame(h2.CONTINUATION, f, i, b), stream_ids, flags_of_headers, blocks
    ),
    st.builds(
        lambda i, parent, f: h2.frame(
            h2.HEADERS, f | h2.WITH_PRIORITY, i, parent.to_bytes(4, "big") + b"\x10" + block()
        ),
        stream_ids,
        stream_ids,
        st.sampled_from([4, 5]),
    ),
    st.builds(
        h2.window_update_frame,
        stream_ids,
        st.sampled_from([0, 1, 65_535, 1 << 30, h2.LARGEST_WINDOW]),
    ),
    st.builds(h2.rst_stream_frame, stream_ids, st.sampled_from([0, 8, 99])),
    st.builds(
        lambda i, parent: h2.frame(h2.PRIORITY, 0, i, parent.to_bytes(4, "big") + b"\x10"),
        stream_ids,
        stream_ids,
    ),
    st.builds(
        lambda name, value: h2.settings_frame([(name, value)]),
        st.integers(0, 8),
        st.sampled_from([0, 1, 2, 100, 16_384, 65_535, 1 << 24, h2.LARGEST_WINDOW, 1 << 31]),
    ),
    st.sampled_from([h2.SETTINGS_ACK, h2.ping_frame(bytes(8)), h2.ping_frame(bytes(8), h2.ACK)]),
    st.sampled_from([h2.goaway_frame(0, 0), h2.goaway_frame(7, 2, b"debug")]),
    st.builds(
        h2.frame,
        st.integers(0, 11),
        st.integers(0, 255),
        stream_ids,
        st.binary(max_size=9),
    ),
)


def act(connection: GrpcServerConnection, events: list[Event]) -> None:
    """What an owner might do on what it is told."""
    for event in events:
        if isinstance(event, MessageReceived) and event.compressed:
            connection.send_message(event.stream_id, event.body, compressed=True)
        elif isinstance(event, MessageReceived) and event.body[:1] == b"o":
            connection.end_call(event.stream_id, Status.ABORTED, "x", keep_reading=True)
        elif isinstance(event, MessageReceived) and not event.body:
            connection.pause_call(event.stream_id)
        elif isinstance(event, HalfClosed):
            connection.end_call(event.stream_id, Status.OK)


def told(sent: bytes, cuts: list[int]) -> tuple[list[Event], bytes]:
    """Feed ``sent``, cut in pieces of these sizes in turn."""
    connection = GrpcServerConnection(LIMITS, (PATH,), lambda: 0.0)
    events: list[Event] = []
    at = turn = 0
    while at < len(sent):
        size = cuts[turn % len(cuts)]
        events += connection.receive_data(sent[at : at + size])
        at, turn = at + size, turn + 1
    assert all(isinstance(event, KNOWN) for event in events)
    return events, connection.data_to_send()


@given(st.lists(some_frames, max_size=12), st.lists(st.integers(1, 40), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_cuts_make_no_difference(sent: list[bytes], cuts: list[int]) -> None:
    """However a stream of frames, good or bad, is cut: the same events, the same answers."""
    whole = GREETING + b"".join(sent)
    assert told(whole, cuts) == told(whole, [len(whole)]) == told(whole, [1])


@given(
    st.lists(some_frames, min_size=1, max_size=10),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6),
    st.lists(st.integers(1, 400), min_size=1, max_size=4),
)
@settings(max_examples=500, deadline=None)
def test_damaged_frames(sent: list[bytes], damage: list[tuple[int, int]], cuts: list[int]) -> None:
    """Whatever bytes a peer sends, and whatever the owner does then, nothing raises."""
    whole = bytearray(GREETING + b"".join(sent))
    for at, value in damage:
        whole[at % len(whole)] = value
    connection = GrpcServerConnection(LIMITS, (PATH,), lambda: 0.0)
    at = turn = 0
    while at < len(whole):
        size = cuts[turn % len(cuts)]
        events = connection.receive_data(bytes(whole[at : at + size]))
        assert all(isinstance(event, KNOWN) for event in events)
        act(connection, events)
        frames(connection.data_to_send())
        at, turn = at + size, turn + 1


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=300, deadline=None)
def test_noise(noise: bytes, greet: bool) -> None:
    """Noise is no HTTP/2; it is told so, or waited for."""
    connection = GrpcServerConnection(LIMITS, (PATH,), lambda: 0.0)
    connection.receive_data((GREETING if greet else b"") + noise)
    frames(connection.data_to_send())


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=500, deadline=None)
@example(b"\x00\x01a")
@example(b"\x40\x00")
@example(b"\x0f")
@example(b"\x82\x86\x44\x81\xff")
def test_header_block_noise(noise: bytes) -> None:
    """A header block of any bytes is read, or ends the stream or the connection."""
    connection = GrpcServerConnection(LIMITS, (PATH,), lambda: 0.0)
    for event in connection.receive_data(GREETING + headers(1, fields=noise)):
        if isinstance(event, ConnectionEnded):
            assert event.error_code in (
                ErrorCode.COMPRESSION_ERROR,
                ErrorCode.ENHANCE_YOUR_CALM,
            )


@given(st.lists(some_frames, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_memory_is_bounded(sent: list[bytes]) -> None:
    """The same frames again and again, never answered: memory stays within the limits."""
    again = b"".join(sent) * 200
    connection = GrpcServerConnection(LIMITS, (PATH,), lambda: 0.0)
    connection.receive_data(GREETING)
    tracemalloc.start()
    for _ in range(3):
        connection.receive_data(again)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 600_000


# --- the oracle


class Recorder(Http2Server):
    """Our side without gRPC: says what it is told, and never answers."""

    def __init__(self) -> None:
        super().__init__(ConnectionLimits(), lambda: 0.0)
        self.told: list[tuple[Any, ...]] = []

    def _on_request(
        self, stream: Stream, request: Request, ended: bool, events: list[Event]
    ) -> None:
        self.told.append(("request", stream.stream_id, request.path))

    def _on_data(
        self, stream: Stream, data: bytes, at: int, stop: int, events: list[Event]
    ) -> None:
        self.told.append(("data", stream.stream_id, data[at:stop]))

    def _on_end(self, stream: Stream, events: list[Event]) -> None:
        self.told.append(("end", stream.stream_id))

    def _on_broken(self, stream: Stream, code: int, reason: str, events: list[Event]) -> None:
        self.told.append(("broken", stream.stream_id, code))


class Oracle:
    """h2's server side, with the same settings, that gives windows back at once."""

    def __init__(self) -> None:
        self.wire = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        limits = ConnectionLimits()
        self.wire.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = limits.streams
        self.wire.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = limits.stream_window
        self.wire.local_settings[SettingCodes.MAX_HEADER_LIST_SIZE] = limits.header_bytes
        self.wire.initiate_connection()
        self.wire.increment_flow_control_window(limits.connection_window - 65_535)
        self.told: list[tuple[Any, ...]] = []

    def receive(self, sent: bytes) -> int | None:
        """Feed one frame; the code of the connection error that it is, if any."""
        try:
            events = self.wire.receive_data(sent)
        except ProtocolError as error:
            return int(error.error_code)
        for event in events:
            if isinstance(event, RequestReceived):
                path = dict(event.headers).get(b":path")
                self.told.append(("request", event.stream_id, path))
            elif isinstance(event, DataReceived):
                if event.data:
                    self.told.append(("data", event.stream_id, event.data))
                self.wire.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.told.append(("end", event.stream_id))
            elif isinstance(event, StreamReset):
                self.told.append(("broken", event.stream_id, int(event.error_code)))
        return None


Verdict = tuple[int | None, list[int]]
"""Code of a connection error, if it is one; codes of the streams reset."""


def excuse(frame: bytes, ours: Verdict, theirs: Verdict) -> str:
    """Why h2 may judge a frame otherwise than we do; empty if it may not.

    Both follow the RFC where it leaves a choice, except where h2 is said to be laxer.
    """
    kind, flags = frame[3], frame[4]
    (our_end, our_resets), (their_end, their_resets) = ours, theirs
    if our_end is None and their_end in our_resets:
        return "h2 ends the connection for what we reset the stream for"
    if our_end is not None and our_end in their_resets:
        return "we end the connection for what h2 resets the stream for: frames on closed streams"
    if our_end is not None and their_end is not None:
        if our_end == ErrorCode.COMPRESSION_ERROR:
            return "h2 says PROTOCOL_ERROR for what does not decompress"
        if {our_end, their_end} == {ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR}:
            return "two faults in a frame; h2 looks at its form first"
        if kind == h2.CONTINUATION:
            return "h2 calls a CONTINUATION of nothing a frame on a closed stream"
    if our_end == ErrorCode.PROTOCOL_ERROR and theirs == (None, []):
        if kind in (h2.HEADERS, h2.PUSH_PROMISE) and not flags & h2.END_HEADERS:
            return "h2 looks at a header block's stream only when the block is whole"
        if kind == h2.RST_STREAM:
            return "h2 is laxer: RST_STREAM on an idle stream"
    if (
        ours == (None, [ErrorCode.PROTOCOL_ERROR])
        and theirs == (None, [])
        and kind in (h2.HEADERS, h2.CONTINUATION)
    ):
        return "h2 is laxer: content-length of a request that is no more than its HEADERS"
    if ours == (None, []):
        if kind == h2.SETTINGS and frame[9:11] == b"\0\x08":
            return "h2 knows a setting of RFC 8441, which is of no use here"
        if kind == 10:
            return "h2 knows a frame of RFC 7838, which clients do not send"
        if kind == h2.HEADERS and flags & h2.PADDED and 2 * frame[9] + 1 >= len(frame) - 9:
            return "h2 is stricter than the RFC: no more padding than header block"
        if kind == h2.WINDOW_UPDATE and frame[9:] == bytes(4):
            return "WINDOW_UPDATE of 0 bytes would cost a stream that is closed already"
        if their_resets == [ErrorCode.STREAM_CLOSED]:
            return "h2 resets a stream again for frames that were in flight when it did so first"
    return ""


@given(st.lists(some_frames, max_size=8))
@settings(max_examples=400, deadline=None)
def test_judged_as_h2_does(sent: list[bytes]) -> None:
    """Frame by frame, h2 takes what we take, and ends what we end, by the same code."""
    ours, oracle = Recorder(), Oracle()
    ours.receive_data(GREETING)
    oracle.receive(GREETING)
    for frame in sent:
        ours.data_to_send()
        oracle.wire.data_to_send()
        ours.told.clear()
        oracle.told.clear()
        ends = [e.error_code for e in ours.receive_data(frame) if isinstance(e, ConnectionEnded)]
        their_end = oracle.receive(frame)
        our_verdict = ends[0] if ends else None, [c for _, c in resets(ours.data_to_send())]
        their_verdict = their_end, [c for _, c in resets(oracle.wire.data_to_send())]
        if our_verdict != their_verdict:
            note(f"{frame!r}: ours {our_verdict}, theirs {their_verdict}")
            assert excuse(frame, our_verdict, their_verdict)
            return
        if ends:
            return
        note(f"{frame!r}: ours {ours.told}, theirs {oracle.told}")
        assert [t for t in ours.told if t[0] != "broken"] == [
            t for t in oracle.told if t[0] != "broken"
        ]
        if frame[3] == h2.GOAWAY:
            return  # h2 takes nothing after it; the RFC lets calls under way go on
