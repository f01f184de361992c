"""Calls and messages, with h2 as the peer."""

import pytest
from h2.events import (
    DataReceived,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    TrailersReceived,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.wire import http2_frames as h2
from elkeid.wire.grpc import (
    CallCancelled,
    CallStarted,
    ConnectionLimits,
    ErrorCode,
    GrpcServerConnection,
    HalfClosed,
    MessageBegan,
    MessageReceived,
    Progress,
    SendQueueFull,
    Status,
)
from tests.wire.http2_peer import (
    GREETING,
    PATH,
    Client,
    block,
    data,
    fields_of,
    frames,
    greeted,
    headers,
    message,
    request,
    resets,
)

KiB, MiB = 1 << 10, 1 << 20
STARTED = CallStarted(1, PATH, "snappy", None)


def test_call_and_messages() -> None:
    """An agent's call starts, its messages come whole and as flagged, its end is told."""
    client = Client()
    assert client.exchange() == [STARTED]

    client.wire.send_data(1, message(b"one", 1) + message(b"") + message(b"three"))
    client.wire.end_stream(1)

    assert client.exchange() == [
        MessageReceived(1, True, b"one"),
        MessageReceived(1, False, b""),
        MessageReceived(1, False, b"three"),
        HalfClosed(1),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 13, 100, 1400, 16384, 16393, 70000])
def test_pieces_of_any_size(size: int) -> None:
    """However the network cuts the bytes, calls and messages are the same."""
    bodies = [b"", b"a", b"b" * 300, b"c" * 20_000, b"", b"d" * 3]
    stream = b"".join(message(body, 1) for body in bodies)
    sent = GREETING + headers(1)
    for at in range(0, len(stream), 7_000):
        sent += data(1, stream[at : at + 7_000])
    sent += h2.frame(h2.DATA, h2.PADDED, 1, b"\3" + message(b"padded")[:8] + bytes(3))
    sent += data(1, message(b"padded")[8:]) + data(1) + data(1, message(b"end"), h2.END_STREAM)
    connection = GrpcServerConnection(ConnectionLimits(), (PATH,), lambda: 0.0)

    told = []
    for at in range(0, len(sent), size):
        events = connection.receive_data(sent[at : at + size])
        told += [each for each in events if not isinstance(each, MessageBegan)]

    assert told == [
        STARTED,
        *[MessageReceived(1, True, body) for body in bodies],
        MessageReceived(1, False, b"padded"),
        MessageReceived(1, False, b"end"),
        HalfClosed(1),
    ]


@given(
    st.lists(st.binary(max_size=40) | st.integers(0, 40_000).map(bytes), max_size=8),
    st.lists(st.integers(1, 9_000), min_size=1, max_size=6),
    st.lists(st.integers(1, 9_000), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_messages_across_frames_and_reads(
    bodies: list[bytes], in_frames: list[int], in_reads: list[int]
) -> None:
    """Messages, DATA frames and reads need not begin or end together."""
    stream = b"".join(message(body) for body in bodies)
    sent, at, turn = headers(1), 0, 0
    while at < len(stream):
        size = in_frames[turn % len(in_frames)]
        sent += data(1, stream[at : at + size])
        at, turn = at + size, turn + 1
    connection = greeted()

    told, at, turn = [], 0, 0
    while at < len(sent):
        size = in_reads[turn % len(in_reads)]
        events = connection.receive_data(sent[at : at + size])
        told += [each for each in events if not isinstance(each, MessageBegan)]
        at, turn = at + size, turn + 1

    assert told == [STARTED, *[MessageReceived(1, False, body) for body in bodies]]


def test_large_message_is_announced_once() -> None:
    """Before most of it has come, with its whole size, unless it is there at once."""
    connection = greeted(ConnectionLimits(message_bytes=MiB))
    connection.receive_data(headers(1))
    stream = message(bytes(20_000))

    assert connection.receive_data(data(1, stream[:3])) == []
    assert connection.receive_data(data(1, stream[3:9])) == [MessageBegan(1, 20_000)]
    assert connection.message_left(1) == 19_996
    assert connection.receive_data(data(1, stream[9:16_000])) == []
    assert connection.receive_data(data(1, stream[16_000:])) == [
        MessageReceived(1, False, bytes(20_000))
    ]
    assert connection.receive_data(data(1, stream[:9_000])) == [MessageBegan(1, 20_000)]
    assert connection.receive_data(data(1, stream[9_000:]))
    small = message(bytes(16_000))
    assert connection.receive_data(data(1, small[:9_000])) == []
    assert connection.message_left(3) == 0


def test_half_message_that_its_owner_breaks_off() -> None:
    """The call ends with the status, what still comes is not kept."""
    client = Client()
    client.exchange()
    client.wire.send_data(1, message(bytes(20_000))[:9_000])
    client.exchange()

    assert client.server.break_off(1, Status.RESOURCE_EXHAUSTED, "too slow") == [
        CallCancelled(1, 0, Status.RESOURCE_EXHAUSTED, "too slow")
    ]
    assert client.server.message_left(1) == 0
    assert client.server.break_off(1, Status.RESOURCE_EXHAUSTED, "again") == []


def test_largest_message() -> None:
    """A message of exactly the limit is taken, across many frames."""
    limits = ConnectionLimits(message_bytes=MiB)
    connection = greeted(limits)
    connection.receive_data(headers(1))
    body = bytes(range(256)) * (MiB // 256)
    stream = message(body)

    told = []
    for at in range(0, len(stream), 16_384):
        told += connection.receive_data(data(1, stream[at : at + 16_384]))

    assert told == [MessageBegan(1, MiB), MessageReceived(1, False, body)]


@pytest.mark.parametrize(
    ("fields", "encoding", "timeout"),
    [
        ({}, "snappy", None),
        ({"grpc_encoding": None}, "identity", None),
        ({"grpc_encoding": "identity"}, "identity", None),
        ({"grpc_encoding": "zstd"}, "zstd", None),
        ({"grpc_encoding": "gzip"}, "gzip", None),
        ({"content_type": "application/grpc+proto"}, "snappy", None),
        ({"content_type": "application/grpc;x=y"}, "snappy", None),
        ({"grpc_timeout": "600000m"}, "snappy", 600.0),
        ({"grpc_timeout": "2H"}, "snappy", 7200.0),
        ({"grpc_timeout": "0S"}, "snappy", 0.0),
    ],
)
def test_requests(fields: dict[str, str | None], encoding: str, timeout: float | None) -> None:
    """Encoding and time-out are read from the request."""
    client = Client(fields=request(**fields))

    assert client.exchange() == [CallStarted(1, PATH, encoding, timeout)]


def test_response_headers_are_lazy() -> None:
    """Headers go out before the first message only, and mirror the request's encoding."""
    client = Client()
    client.exchange()
    assert client.take(ResponseReceived) == []

    assert client.server.send_message(1, b"one", compressed=True)
    assert client.server.send_message(1, b"", compressed=False)
    client.exchange()

    kinds = [type(event) for event in client.seen]
    assert kinds == [ResponseReceived, DataReceived, DataReceived]
    assert client.seen[0].headers == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-encoding", "snappy"),
    ]
    assert client.body() == message(b"one", 1) + message(b"")


def test_no_encoding_is_answered_by_none() -> None:
    """A request without grpc-encoding gets an answer without it."""
    client = Client(fields=request(grpc_encoding=None))
    client.exchange()
    client.server.send_message(1, b"x", compressed=False)
    client.exchange()

    (response,) = client.take(ResponseReceived)
    assert response.headers == [(":status", "200"), ("content-type", "application/grpc")]


def test_trailers_after_messages() -> None:
    """The status comes in trailers, behind the messages; both sides have ended: no reset."""
    client = Client()
    client.wire.end_stream(1)
    client.exchange()
    client.server.send_message(1, b"x", compressed=False)
    client.server.end_call(1, Status.OK)
    client.exchange()

    kinds = [type(event) for event in client.seen]
    assert kinds == [ResponseReceived, DataReceived, TrailersReceived, StreamEnded]
    assert client.seen[2].headers == [("grpc-status", "0"), ("grpc-message", "")]
    assert client.server.open_streams == 0


def test_trailers_only() -> None:
    """A call that ends before any message gets one header block with all in it."""
    connection = greeted()
    connection.receive_data(headers(1))
    connection.end_call(1, Status.UNKNOWN, "out of max connection limit")
    sent = connection.data_to_send()

    assert fields_of(sent) == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "2"),
        ("grpc-message", "out of max connection limit"),
    ]
    assert frames(sent)[0].flags == {"END_HEADERS", "END_STREAM"}
    assert resets(sent) == [(1, ErrorCode.NO_ERROR)]
    assert connection.open_streams == 0


def test_status_message_is_escaped() -> None:
    """Any text fits into trailers: what is not printable ASCII, and %, is escaped."""
    connection = greeted()
    connection.receive_data(headers(1))
    connection.end_call(1, Status.INTERNAL, "50% \r\n\x7f~ ü\ud800" + "x" * 5_000)
    text = dict(fields_of(connection.data_to_send()))["grpc-message"]

    assert text.startswith("50%25 %0D%0A%7F~ %C3%BC?x")
    assert len(text) < 2 * KiB


def test_ended_call_is_read_on() -> None:
    """A call that is refused can be read to its end: nothing an agent sent need be lost."""
    client = Client()
    client.exchange()
    client.server.end_call(1, Status.ABORTED, "later", keep_reading=True)
    up = data(1, message(b"x" * 100_000)[:16_000])
    assert client.server.receive_data(up) == [MessageBegan(1, 100_000)]
    for at in range(16_000, 100_005, 16_000):
        told = client.server.receive_data(data(1, message(b"x" * 100_000)[at : at + 16_000]))
    assert told == [MessageReceived(1, False, b"x" * 100_000)]
    client.server.receive_data(data(1, message(b"y" * 300_000)[:16_384]) * 3)

    sent = client.server.data_to_send()

    assert resets(sent) == []
    assert any(f.type == h2.WINDOW_UPDATE and f.stream_id == 1 for f in frames(sent))
    assert client.server.open_streams == 1
    assert client.server.receive_data(data(1, flags=h2.END_STREAM))[-1] == CallCancelled(
        1, ErrorCode.NO_ERROR, Status.INTERNAL, "the call ends within a message"
    )
    assert resets(client.server.data_to_send()) == []
    assert client.server.open_streams == 0


def test_ended_call_read_to_its_half_close() -> None:
    """Reading on ends with the peer's half-close, or when the owner has waited enough."""
    for how in ("half-close", "reset"):
        connection = greeted()
        connection.receive_data(headers(1))
        connection.end_call(1, Status.ABORTED, "later", keep_reading=True)
        connection.end_call(1, Status.OK)
        assert not connection.send_message(1, b"late", compressed=False)
        assert len(frames(connection.data_to_send())) == 1
        if how == "reset":
            connection.reset_call(1)
            assert resets(connection.data_to_send()) == [(1, ErrorCode.NO_ERROR)]
        else:
            told = connection.receive_data(data(1, message(b"x"), h2.END_STREAM))
            assert told == [MessageReceived(1, False, b"x"), HalfClosed(1)]
            assert connection.data_to_send() == b""
        assert connection.open_streams == 0


def test_frames_in_flight_after_the_end() -> None:
    """What was on its way when a call was stopped is thrown away, and costs nothing."""
    connection = greeted()
    connection.receive_data(headers(1))
    connection.end_call(1, Status.OK)
    connection.data_to_send()

    told = connection.receive_data(
        data(1, message(b"x"))
        + h2.window_update_frame(1, 5)
        + headers(1, h2.END_STREAM, block([("late", "trailer")]))
        + h2.rst_stream_frame(1, ErrorCode.CANCEL)
        + headers(3)
    )

    assert told == [CallStarted(3, PATH, "snappy", None)]
    assert connection.data_to_send() == b""


def test_call_stopped_within_a_frame() -> None:
    """A call may be stopped while a frame of it is still coming in."""
    connection = greeted()
    last = data(1, message(b"a") + message(b"bc"), h2.END_STREAM)
    told = connection.receive_data(headers(1) + last[:16])
    assert told == [STARTED, MessageReceived(1, False, b"a")]
    connection.end_call(1, Status.OK)

    assert connection.receive_data(last[16:] + headers(3)) == [CallStarted(3, PATH, "snappy", None)]


def test_end_in_a_padded_frame() -> None:
    """The last frame of a call may be padded."""
    connection = greeted()
    flags = h2.PADDED | h2.END_STREAM
    told = connection.receive_data(
        headers(1) + h2.frame(h2.DATA, flags, 1, b"\2" + message(b"a") + bytes(2))
    )
    assert told == [STARTED, MessageReceived(1, False, b"a"), HalfClosed(1)]


@pytest.mark.parametrize(
    ("body", "fields", "status", "text"),
    [
        (b"\2\0\0\0\0", {}, 13, "grpc: received unexpected payload format 2"),
        (b"\xff\xff\xff\xff\xff", {}, 13, "grpc: received unexpected payload format 255"),
        (
            b"\1\0\0\0\1x",
            {"grpc_encoding": None},
            13,
            "grpc: compressed flag set with identity or empty encoding",
        ),
        (
            b"\1\0\0\0\1x",
            {"grpc_encoding": "identity"},
            13,
            "grpc: compressed flag set with identity or empty encoding",
        ),
        (
            b"\0\2\0\0\1",
            {},
            8,
            "grpc: received message larger than max (33554433 vs. 33554432)",
        ),
        (
            b"\1\xff\xff\xff\xff",
            {},
            8,
            "grpc: received message larger than max (4294967295 vs. 33554432)",
        ),
    ],
)
@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize("answered", [False, True])
def test_bad_messages(
    body: bytes,
    fields: dict[str, str | None],
    status: int,
    text: str,
    *,
    cut: int,
    answered: bool,
) -> None:
    """A message that breaks a rule or a limit ends its call at once, before memory is taken."""
    connection = greeted()
    connection.receive_data(headers(1, fields=block(request(**fields))) + headers(3))
    if answered:
        connection.send_message(1, b"x", compressed=False)
    connection.data_to_send()

    good = message(b"good")
    told = connection.receive_data(data(1, good + body[:cut]) if cut else data(1, good))
    told += connection.receive_data(data(1, body[cut:] + good))
    sent = connection.data_to_send()

    assert told == [
        MessageReceived(1, False, b"good"),
        CallCancelled(1, ErrorCode.NO_ERROR, Status(status), text),
    ]
    ends = [("grpc-status", str(status)), ("grpc-message", text)]
    begins = [(":status", "200"), ("content-type", "application/grpc")]
    assert fields_of(sent) == (ends if answered else begins + ends)
    assert resets(sent) == [(1, ErrorCode.NO_ERROR)]
    assert connection.receive_data(data(3, good)) == [MessageReceived(3, False, b"good")]


def test_bad_message_of_an_ended_call() -> None:
    """A call that was ended and is read on is reset when it breaks a rule."""
    connection = greeted()
    connection.receive_data(headers(1))
    connection.end_call(1, Status.ABORTED, "", keep_reading=True)
    connection.data_to_send()

    (cancelled,) = connection.receive_data(data(1, b"\5\0\0\0\0"))

    assert cancelled.status == Status.INTERNAL
    assert resets(connection.data_to_send()) == [(1, ErrorCode.NO_ERROR)]


@pytest.mark.parametrize("tail", [b"\0", b"\0\0\0\0", b"\0\0\0\0\1", b"\0\0\0\0\2x"])
@pytest.mark.parametrize("by", ["DATA", "trailers"])
def test_half_close_within_a_message(tail: bytes, by: str) -> None:
    """A call that ends in the middle of a message is no clean end."""
    connection = greeted()
    connection.receive_data(headers(1))
    if by == "DATA":
        told = connection.receive_data(data(1, tail, h2.END_STREAM))
    else:
        told = connection.receive_data(
            data(1, tail) + headers(1, h2.END_STREAM, block([("a", "b")]))
        )
    sent = connection.data_to_send()

    assert [type(event) for event in told] == [CallCancelled]
    assert ("grpc-status", "13") in fields_of(sent)
    assert resets(sent) == []
    assert connection.open_streams == 0


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        (
            {"grpc_encoding": "lz4"},
            12,
            'grpc: Decompressor is not installed for grpc-encoding "lz4"',
        ),
        ({"_path": "/grpc.Transfer/Nope"}, 12, "unknown method Nope for service grpc.Transfer"),
        ({"_path": "/grpc.Other/Transfer"}, 12, "unknown service grpc.Other"),
        ({"_path": "/grpc.Transfer/Transfer/x"}, 12, "unknown service grpc.Transfer/Transfer"),
        ({"_path": "/nope"}, 12, 'malformed method name: "/nope"'),
        ({"grpc_timeout": "600"}, 13, "malformed grpc-timeout"),
        ({"grpc_timeout": "123456789S"}, 13, "malformed grpc-timeout"),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_calls_that_cannot_be_served(
    fields: dict[str, str | None], status: int, text: str, *, ended: bool
) -> None:
    """Such a call is answered at once, and its owner hears nothing of it."""
    connection = greeted()
    flags = h2.END_STREAM if ended else 0
    assert connection.receive_data(headers(1, flags, block(request(**fields)))) == []
    sent = connection.data_to_send()

    assert fields_of(sent)[2:] == [("grpc-status", str(status)), ("grpc-message", text)]
    assert resets(sent) == ([] if ended else [(1, ErrorCode.NO_ERROR)])
    assert connection.receive_data(b"" if ended else data(1, message(b"x"))) == []
    assert connection.open_streams == 0


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"_method": "GET"}, "405"),
        ({"_method": "PUT", "content_type": None}, "405"),
        ({"content_type": "text/plain"}, "415"),
        ({"content_type": "application/grpcx"}, "415"),
        ({"content_type": None, "_path": "/"}, "415"),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_plain_http(fields: dict[str, str | None], status: str, *, ended: bool) -> None:
    """What is no gRPC call gets an HTTP answer; its body is read and thrown away."""
    client = Client(fields=request(**fields))
    if ended:
        client.wire.end_stream(1)
    else:
        client.wire.send_data(1, b"some body")
    assert client.exchange() == []

    (response,) = [event for event in client.seen if isinstance(event, ResponseReceived)]
    assert response.headers == [(":status", status), ("content-type", "text/plain")]
    assert client.body().endswith(b"\n")
    if not ended:
        assert client.server.open_streams == 1
        client.wire.end_stream(1)
        assert client.exchange() == []
    assert client.server.open_streams == 0


def test_endless_plain_body() -> None:
    """A body that nobody wants is stopped before its window is used up."""
    connection = greeted()
    connection.receive_data(headers(1, fields=block(request(content_type="text/plain"))))
    for _ in range(7):
        connection.receive_data(data(1, bytes(16_384)))
    assert resets(connection.data_to_send()) == []

    connection.receive_data(data(1, bytes(16_384)))

    assert resets(connection.data_to_send()) == [(1, ErrorCode.NO_ERROR)]


def test_cancelled_by_the_peer() -> None:
    """The owner hears when a peer gives a call up; of others it never heard."""
    client = Client()
    client.wire.send_headers(3, request(_method="GET"))
    client.exchange()
    client.wire.reset_stream(1, ErrorCode.CANCEL)
    client.wire.reset_stream(3, ErrorCode.CANCEL)

    (cancelled,) = client.exchange()

    assert isinstance(cancelled, CallCancelled)
    assert (cancelled.stream_id, cancelled.code) == (1, ErrorCode.CANCEL)
    assert cancelled.status == Status.CANCELLED
    assert client.server.open_streams == 0


def test_calls_that_are_gone() -> None:
    """Acting on a call that a peer has just reset does nothing."""
    connection = greeted()
    connection.receive_data(headers(1) + h2.rst_stream_frame(1, ErrorCode.CANCEL))

    assert not connection.send_message(1, b"x", compressed=False)
    connection.end_call(1, Status.OK)
    connection.reset_call(1)
    connection.pause_call(1)
    connection.resume_call(1)

    assert connection.pending_bytes(1) == 0
    assert connection.data_to_send() == b""


def test_ping_is_answered_in_the_same_turn() -> None:
    """An agent's PING after DATA is answered together with what else is to be said."""
    client = Client()
    client.exchange()
    client.server.send_message(1, b"x", compressed=False)
    client.exchange()
    client.wire.ping(bytes.fromhex("02041010090e0707"))
    assert client.server.receive_data(client.wire.data_to_send()) == []
    client.wire.receive_data(client.server.data_to_send())
    client.seen.clear()

    client.wire.ping(b"12345678")
    client.exchange()

    assert len(client.take(PingAckReceived)) == 1


# --- sending under the peer's windows


@pytest.mark.parametrize("chunk", [1 << 20, 1_000])
def test_large_command_flows_out(chunk: int) -> None:
    """A Command of 4 MiB reaches an agent piece by piece, through windows of 64 KiB."""
    client = Client(chunk=chunk)
    client.exchange()
    body = bytes(range(256)) * (4 * MiB // 256)
    client.server.send_message(1, body, compressed=False)
    client.server.send_message(1, b"next", compressed=True)
    client.server.end_call(1, Status.OK)
    client.exchange()
    assert client.server.pending_bytes(1) == 4 * MiB + 5 + 9 - 65_535

    got = bytearray()
    while piece := client.body():
        got += piece
        client.exchange()

    assert got == message(body) + message(b"next", 1)
    assert client.server.pending_bytes(1) == 0
    assert client.server.open_streams == 0


def test_tiny_windows() -> None:
    """Windows of a few bytes, or below zero, are kept; the end waits behind the data."""
    connection = greeted()
    connection.receive_data(h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 3)]))
    connection.receive_data(headers(1))
    connection.data_to_send()
    connection.send_message(1, b"0123456789", compressed=False)
    connection.end_call(1, Status.OK)

    got = [f for f in frames(connection.data_to_send()) if f.type == h2.DATA]
    assert [f.data for f in got] == [b"\0\0\0"]
    connection.receive_data(h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 0)]))
    connection.receive_data(h2.window_update_frame(1, 3))
    assert [f.type for f in frames(connection.data_to_send())] == [h2.SETTINGS]
    connection.receive_data(h2.window_update_frame(1, 2))
    connection.receive_data(h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 4)]))
    got = [f for f in frames(connection.data_to_send()) if f.type == h2.DATA]
    assert [f.data for f in got] == [b"\0\x0a", b"0123"]
    connection.receive_data(h2.window_update_frame(1, 100))
    last = frames(connection.data_to_send())
    assert [f.type for f in last] == [h2.DATA, h2.HEADERS, h2.RST_STREAM]
    assert last[0].data == b"456789"
    assert connection.open_streams == 0


@given(
    st.lists(st.integers(0, 200_000), min_size=1, max_size=4),
    st.lists(st.integers(1, 70_000), min_size=1, max_size=5),
    st.integers(0, 70_000),
)
@settings(max_examples=40, deadline=None)
def test_windows_are_never_exceeded(sizes: list[int], updates: list[int], initial: int) -> None:
    """Whatever windows a peer gives, it gets no byte more, and in the end every byte."""
    connection = greeted()
    connection.receive_data(h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, initial)]) + headers(1))
    connection.data_to_send()
    for size in sizes:
        connection.send_message(1, bytes(size), compressed=False)
    total = sum(sizes) + 5 * len(sizes)
    got, room, all_room, turn = 0, initial, 65_535, 0
    while True:
        sent = sum(len(f.data) for f in frames(connection.data_to_send()) if f.type == h2.DATA)
        got += sent
        assert got == min(total, room, all_room)
        if got == total:
            break
        more = updates[turn % len(updates)]
        turn += 1
        room, all_room = room + more, all_room + more
        connection.receive_data(h2.window_update_frame(1, more) + h2.window_update_frame(0, more))


def test_peer_that_takes_nothing() -> None:
    """What waits for one call is bounded; the owner is told, and the message is not sent."""
    limits = ConnectionLimits(pending_bytes=100_000)
    connection = greeted(limits)
    connection.receive_data(headers(1))
    connection.data_to_send()
    with pytest.raises(SendQueueFull):
        connection.send_message(1, bytes(99_996), compressed=False)
    assert connection.data_to_send() == b""
    connection.send_message(1, bytes(90_000), compressed=False)
    connection.data_to_send()

    assert connection.pending_bytes(1) == 90_005 - 65_535
    with pytest.raises(SendQueueFull):
        connection.send_message(1, bytes(80_000), compressed=False)
    connection.send_message(1, bytes(70_000), compressed=False)
    assert connection.pending_bytes(1) == 90_005 + 70_005 - 65_535


def test_output_that_is_not_fetched_counts() -> None:
    """Where the windows are wide but the transport is stuck, the bound holds too."""
    connection = greeted(ConnectionLimits(pending_bytes=100_000))
    connection.receive_data(
        h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, h2.LARGEST_WINDOW)])
        + h2.window_update_frame(0, MiB)
        + headers(1)
    )
    connection.send_message(1, bytes(90_000), compressed=False)

    with pytest.raises(SendQueueFull):
        connection.send_message(1, bytes(90_000), compressed=False)


def test_calls_share_the_connection_window() -> None:
    """Two calls that wait both get on as the connection's window grows."""
    client = Client()
    client.wire.send_headers(3, request())
    client.exchange()
    for stream_id in (1, 3):
        client.server.send_message(stream_id, bytes(60_000), compressed=False)
    client.exchange()
    assert client.server.pending_bytes(1) + client.server.pending_bytes(3) == 120_010 - 65_535

    got = 0
    while piece := client.body():
        got += len(piece)
        client.exchange()

    assert got == 120_010


# --- receiving under our windows


def test_windows_are_refilled_in_batches() -> None:
    """A peer may send on and on; its windows are given back in halves."""
    client = Client()
    client.exchange()
    client.server.data_to_send()
    sent = updates = 0
    stream = data(1, message(bytes(9_995)))
    while sent < 2 * MiB:
        assert len(client.server.receive_data(stream)) == 1
        sent += 10_000
        updates += client.server.data_to_send() != b""
    assert updates <= 2 * MiB // (128 * KiB) + 4


def test_paused_call() -> None:
    """A paused call's peer stops when its window is used; what comes still counts."""
    client = Client()
    client.exchange()
    client.server.pause_call(1)
    sent = 0
    while client.wire.local_flow_control_window(1) >= 16_000:
        client.wire.send_data(1, message(bytes(15_995)))
        sent += 16_000
        assert len(client.exchange()) == 1
    assert sent == 256_000
    client.wire.send_headers(3, request())
    client.wire.send_data(3, message(b"other"))
    assert client.exchange()[-1] == MessageReceived(3, False, b"other")

    client.server.resume_call(1)
    client.exchange()

    assert client.wire.local_flow_control_window(1) == 256 * KiB


def test_paused_call_beyond_its_window() -> None:
    """A peer that ignores the window loses its call, not the connection."""
    connection = greeted()
    connection.receive_data(headers(1))
    connection.pause_call(1)
    connection.data_to_send()
    for _ in range(16):
        connection.receive_data(data(1, message(bytes(16_379))))

    (cancelled,) = connection.receive_data(data(1, b"\0"))

    assert isinstance(cancelled, CallCancelled)
    assert resets(connection.data_to_send()) == [(1, ErrorCode.FLOW_CONTROL_ERROR)]
    assert not connection.ended


def test_progress_of_a_message() -> None:
    """A message waits for the window, is begun, and is written once all of it was given out."""
    client = Client()
    client.exchange()
    grpc = client.server
    assert grpc.message_progress(1) is Progress.WRITTEN  # there is none
    grpc.send_message(1, bytes(h2.DEFAULT_WINDOW - 5), False)
    assert grpc.message_progress(1) is Progress.BEGUN
    client.seen += client.wire.receive_data(grpc.data_to_send())
    assert grpc.message_progress(1) is Progress.WRITTEN
    grpc.send_message(1, bytes(70_000), False)
    assert grpc.message_progress(1) is Progress.WAITING
    client.wire.increment_flow_control_window(10)
    client.wire.increment_flow_control_window(10, 1)
    client.exchange()
    assert grpc.message_progress(1) is Progress.BEGUN
    client.wire.increment_flow_control_window(200_000)
    client.wire.increment_flow_control_window(200_000, 1)
    grpc.receive_data(client.wire.data_to_send())
    assert grpc.message_progress(1) is Progress.BEGUN  # sent, but not given out yet
    client.exchange()
    assert grpc.message_progress(1) is Progress.WRITTEN
    assert grpc.message_progress(3) is Progress.WRITTEN  # no such call


def test_message_withdrawn() -> None:
    """Only what was not begun can be taken back; what was sent before and after it is whole."""
    client = Client()
    client.exchange()
    grpc = client.server
    assert not grpc.withdraw_message(1)
    grpc.send_message(1, bytes(70_000), False)
    assert not grpc.withdraw_message(1)
    grpc.send_message(1, b"taken back", False)
    assert grpc.withdraw_message(1)
    assert not grpc.withdraw_message(1)
    grpc.send_message(1, b"last", False)
    body = b""
    while len(body) < 70_014:
        client.exchange()
        body += client.body()
    assert body == message(bytes(70_000)) + message(b"last")
    assert grpc.pending_bytes(1) == 0


def test_no_message_withdrawn_behind_the_end() -> None:
    """Once the end of a call is queued its messages stay; with the call gone there is none."""
    client = Client()
    client.exchange()
    grpc = client.server
    grpc.send_message(1, bytes(70_000), False)
    grpc.send_message(1, b"stays", False)
    grpc.end_call(1, Status.OK)
    assert not grpc.withdraw_message(1)
    grpc.reset_call(1)
    assert not grpc.withdraw_message(1)


def test_call_goes_on_after_the_only_message_was_withdrawn() -> None:
    """A call whose waiting message was taken back ends like any other."""
    client = Client()
    client.exchange()
    grpc = client.server
    grpc.send_message(1, bytes(h2.DEFAULT_WINDOW - 5), False)
    client.exchange()
    grpc.send_message(1, b"taken back", False)
    assert grpc.withdraw_message(1)
    grpc.end_call(1, Status.OK)
    client.exchange()
    assert client.take(TrailersReceived)
