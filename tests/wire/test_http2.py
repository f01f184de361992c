"""One connection's rules and limits: frames by hand, as a careless or hostile peer sends them."""

import tracemalloc
from collections.abc import Callable

import hpack
import pytest

from elkeid.wire import http2_frames as h2
from elkeid.wire.grpc import (
    CallCancelled,
    CallStarted,
    ConnectionEnded,
    ConnectionLimits,
    ErrorCode,
    GrpcServerConnection,
    HalfClosed,
    MessageReceived,
    PingAcked,
    Status,
)
from elkeid.wire.http2 import (
    CONTINUATION_LIMIT,
    NUISANCE_BURST,
    NUISANCE_LEAK,
    NUISANCE_RESET,
    QUEUED_ANSWERS,
)
from tests.wire.http2_peer import (
    GREETING,
    PATH,
    block,
    data,
    fields_of,
    frames,
    greeted,
    headers,
    message,
    request,
    resets,
    server,
)

NOTHING = bytes(8)


def ended(connection: GrpcServerConnection, sent: bytes) -> ErrorCode:
    """Send what breaks the connection; the code that the peer and the owner are told."""
    events = connection.receive_data(sent)
    assert isinstance(events[-1], ConnectionEnded), events
    code = ErrorCode(events[-1].error_code)
    last = frames(connection.data_to_send())[-1]
    assert (last.type, last.error_code) == (h2.GOAWAY, code)
    assert connection.ended
    assert connection.open_streams == 0
    assert connection.receive_data(headers(99) + h2.ping_frame(NOTHING)) == []
    assert connection.data_to_send() == b""
    return code


# --- greetings


def test_greeting() -> None:
    """A peer is told the limits first, and gets a wide connection window."""
    settings, update = frames(server().data_to_send())

    assert settings.settings == {3: 4, 4: 262_144, 5: 16_384, 6: 16_384}
    assert (update.stream_id, update.window_increment) == (0, (1 << 20) - 65_535)


def test_settings_are_acknowledged() -> None:
    """Each SETTINGS of the peer is answered; its ACK of ours is not."""
    connection = server()
    connection.data_to_send()
    connection.receive_data(GREETING + h2.settings_frame([(0x99, 1), (h2.HEADER_TABLE_SIZE, 0)]))

    assert connection.data_to_send() == h2.SETTINGS_ACK * 2


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"P\0", h2.PREFACE[:-1] + b"x", bytes(1)]
)
@pytest.mark.parametrize("chunk", [1, 100])
def test_no_preface(sent: bytes, chunk: int) -> None:
    """A peer that does not speak HTTP/2 is found out at its first wrong byte."""
    connection = server()
    events = []
    for at in range(0, len(sent), chunk):
        events += connection.receive_data(sent[at : at + chunk])

    assert [event.error_code for event in events] == [ErrorCode.PROTOCOL_ERROR]


@pytest.mark.parametrize(
    "first", [headers(1), data(1, b"x"), h2.ping_frame(NOTHING), h2.SETTINGS_ACK, data(1)]
)
def test_settings_come_first(first: bytes) -> None:
    """Nothing may stand between the preface and SETTINGS."""
    assert ended(server(), h2.PREFACE + first) == ErrorCode.PROTOCOL_ERROR


def test_nothing_and_half_a_frame() -> None:
    """What is not whole yet is waited for."""
    connection = greeted()
    assert connection.receive_data(b"") == []
    assert connection.receive_data(headers(1)[:-1]) == []
    assert connection.receive_data(b"") == []
    assert connection.receive_data(headers(1)[-1:]) == [CallStarted(1, PATH, "snappy", None)]


# --- what ends a connection

SOME_BLOCK = block()
CUT = h2.frame(h2.HEADERS, 0, 1, SOME_BLOCK[:10])  # not END_HEADERS

BROKEN: list[tuple[str, bytes, ErrorCode]] = [
    ("DATA on stream 0", data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("DATA on idle stream", data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("DATA on even stream", data(2, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS on stream 0", headers(0), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS on even stream", headers(2), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS on lower stream", headers(5) + headers(3), ErrorCode.PROTOCOL_ERROR),
    ("PRIORITY on stream 0", h2.frame(2, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    ("PRIORITY too short", h2.frame(2, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    ("RST_STREAM on stream 0", h2.rst_stream_frame(0, 0), ErrorCode.PROTOCOL_ERROR),
    ("RST_STREAM on idle stream", h2.rst_stream_frame(1, 0), ErrorCode.PROTOCOL_ERROR),
    ("RST_STREAM too short", h2.frame(3, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    ("SETTINGS on a stream", h2.frame(4, 0, 1), ErrorCode.PROTOCOL_ERROR),
    ("SETTINGS too short", h2.frame(4, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    ("SETTINGS ACK with body", h2.frame(4, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    ("ENABLE_PUSH 2", h2.settings_frame([(2, 2)]), ErrorCode.PROTOCOL_ERROR),
    ("MAX_FRAME_SIZE small", h2.settings_frame([(5, 16_383)]), ErrorCode.PROTOCOL_ERROR),
    ("MAX_FRAME_SIZE large", h2.settings_frame([(5, 1 << 24)]), ErrorCode.PROTOCOL_ERROR),
    ("window too large", h2.settings_frame([(4, 1 << 31)]), ErrorCode.FLOW_CONTROL_ERROR),
    ("PUSH_PROMISE", h2.frame(5, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ("PING on a stream", h2.frame(6, 0, 1, NOTHING), ErrorCode.PROTOCOL_ERROR),
    ("PING too long", h2.frame(6, 0, 0, bytes(9)), ErrorCode.FRAME_SIZE_ERROR),
    ("GOAWAY on a stream", h2.frame(7, 0, 1, NOTHING), ErrorCode.PROTOCOL_ERROR),
    ("GOAWAY too short", h2.frame(7, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    ("WINDOW_UPDATE too long", h2.frame(8, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    ("WINDOW_UPDATE of 0", h2.window_update_frame(0, 0), ErrorCode.PROTOCOL_ERROR),
    ("WINDOW_UPDATE on idle", h2.window_update_frame(1, 1), ErrorCode.PROTOCOL_ERROR),
    (
        "connection window overflows",
        h2.window_update_frame(0, h2.LARGEST_WINDOW),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    (
        "SETTINGS overflow a window",
        headers(1)
        + h2.window_update_frame(1, 1 << 20)
        + h2.settings_frame([(4, h2.LARGEST_WINDOW)]),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    ("CONTINUATION alone", h2.frame(9, 4, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("CONTINUATION elsewhere", CUT + h2.frame(9, 4, 3, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("block cut by PING", CUT + h2.ping_frame(NOTHING), ErrorCode.PROTOCOL_ERROR),
    (
        "block cut by DATA",
        headers(1) + CUT[:5] + b"\0\0\0\3" + CUT[9:] + data(1, b"x"),
        ErrorCode(1),
    ),
    ("block cut by unknown", CUT + h2.frame(0x77, 0, 0), ErrorCode.PROTOCOL_ERROR),
    ("block cut by HEADERS", CUT + headers(1), ErrorCode.PROTOCOL_ERROR),
    ("frame too large", h2.frame(0x77, 0, 0, bytes(16_385)), ErrorCode.FRAME_SIZE_ERROR),
    ("DATA too large", headers(1) + data(1, bytes(16_385)), ErrorCode.FRAME_SIZE_ERROR),
    ("HEADERS too large", h2.frame(1, 4, 1, bytes(16_385)), ErrorCode.FRAME_SIZE_ERROR),
    ("no padding", headers(1) + h2.frame(0, 8, 1), ErrorCode.FRAME_SIZE_ERROR),
    ("too much padding", headers(1) + h2.frame(0, 8, 1, b"\2x"), ErrorCode.PROTOCOL_ERROR),
    ("padded HEADERS", h2.frame(1, 0xC, 1, b"\x30" + SOME_BLOCK[:9]), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS lack priority", h2.frame(1, 0x24, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    ("bad index", headers(1, fields=b"\xff\xff\xff\x7f"), ErrorCode.COMPRESSION_ERROR),
    ("cut field", headers(1, fields=b"\x40\x05ab"), ErrorCode.COMPRESSION_ERROR),
    ("bad Huffman", headers(1, fields=b"\x00\x84\xff\xff\xff\xff\x00"), ErrorCode(9)),
    ("endless integer", headers(1, fields=b"\xff" + b"\xff" * 99), ErrorCode.COMPRESSION_ERROR),
    ("table too large", headers(1, fields=b"\x3f\xe2\x1f"), ErrorCode.COMPRESSION_ERROR),
    ("many table sizes", headers(1, fields=b"\x20" * 3 + SOME_BLOCK[1:]), ErrorCode(9)),
    ("long table sizes", headers(1, fields=b"\x3f\x80\x00" * 3), ErrorCode(9)),
    (
        "DATA on closed stream",
        headers(1) + h2.rst_stream_frame(1, 8) + data(1, b"x"),
        ErrorCode.STREAM_CLOSED,
    ),
    (
        "HEADERS on closed stream",
        headers(1) + h2.rst_stream_frame(1, 8) + headers(1),
        ErrorCode.STREAM_CLOSED,
    ),
]


@pytest.mark.parametrize(
    ("sent", "code"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_broken_connections(sent: bytes, code: ErrorCode, chunk: int) -> None:
    """A peer that breaks the connection's rules is told which, and nothing else happens."""
    connection = greeted()
    first = sent[: len(sent) - 1] if chunk == 1 else b""
    for byte in first:
        connection.receive_data(bytes([byte]))
    if connection.ended:
        assert frames(connection.data_to_send())[-1].error_code == code
    else:
        assert ended(connection, sent[len(first) :]) == code


# --- what ends a stream

MALFORMED = [
    {"_path": None},
    {"_method": None},
    {"_path": ""},
    {"connection": "close"},
    {"te": "gzip"},
    {"_status": "200"},
]

WRONG: list[tuple[str, bytes, ErrorCode]] = [
    *[("request", headers(1, fields=block(request(**bad))), ErrorCode(1)) for bad in MALFORMED],
    ("depends on itself", h2.frame(1, 0x24, 1, b"\0\0\0\1\0" + SOME_BLOCK), ErrorCode(1)),
    ("PRIORITY on itself", headers(1) + h2.frame(2, 0, 1, b"\0\0\0\1\0"), ErrorCode(1)),
    ("PRIORITY too long", headers(1) + h2.frame(2, 0, 1, bytes(6)), ErrorCode(6)),
    ("WINDOW_UPDATE of 0", headers(1) + h2.window_update_frame(1, 0), ErrorCode(1)),
    (
        "window overflows",
        headers(1) + h2.window_update_frame(1, h2.LARGEST_WINDOW),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    ("second HEADERS", headers(1) + headers(1), ErrorCode.PROTOCOL_ERROR),
    (
        "trailers that end nothing",
        headers(1) + headers(1, fields=block([("a", "b")])),
        ErrorCode.PROTOCOL_ERROR,
    ),
    ("pseudo trailers", headers(1) + headers(1, h2.END_STREAM), ErrorCode.PROTOCOL_ERROR),
    ("DATA after end", headers(1, h2.END_STREAM) + data(1, b"x"), ErrorCode.STREAM_CLOSED),
    ("HEADERS after end", headers(1, h2.END_STREAM) + headers(1), ErrorCode.STREAM_CLOSED),
    (
        "too much for content-length",
        headers(1, fields=block(request(content_length="3"))) + data(1, b"four"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    (
        "too little for content-length",
        headers(1, fields=block(request(content_length="6")))
        + data(1, message(b""), flags=h2.END_STREAM),
        ErrorCode.PROTOCOL_ERROR,
    ),
    (
        "nothing for content-length",
        headers(1, h2.END_STREAM, block(request(content_length="6"))),
        ErrorCode.PROTOCOL_ERROR,
    ),
]


@pytest.mark.parametrize(
    ("sent", "code"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_broken_streams(sent: bytes, code: ErrorCode) -> None:
    """A peer that breaks a stream's rules loses that stream; its other calls go on."""
    connection = greeted()
    events = connection.receive_data(sent + headers(3) + data(3, message(b"on")))

    assert events[-2:] == [
        CallStarted(3, PATH, "snappy", None),
        MessageReceived(3, False, b"on"),
    ]
    assert resets(connection.data_to_send()) == [(1, code)]
    assert connection.open_streams == 1
    told = [type(event) for event in events[:-2]]
    assert told in ([], [CallStarted, CallCancelled], [CallStarted, HalfClosed, CallCancelled]) or (
        told == [CallStarted, MessageReceived, CallCancelled]
    )


def test_content_length_that_fits() -> None:
    """A request may say how long it is, and be so long."""
    connection = greeted()
    connection.receive_data(headers(1, fields=block(request(content_length="12"))))
    told = connection.receive_data(data(1, message(b"ab")[:4]))
    told += connection.receive_data(h2.frame(0, 8, 1, b"\1" + message(b"ab")[4:] + b"\0"))
    told += connection.receive_data(data(1, message(b""), h2.END_STREAM))

    assert told == [
        MessageReceived(1, False, b"ab"),
        MessageReceived(1, False, b""),
        HalfClosed(1),
    ]


def test_too_many_streams() -> None:
    """Above the announced number, streams are refused, so that the peer may try them again."""
    connection = greeted(ConnectionLimits(streams=2))
    connection.receive_data(headers(1) + headers(3))
    assert connection.open_streams == 2
    assert connection.receive_data(headers(5) + data(5, b"x")) == []
    assert resets(connection.data_to_send()) == [(5, ErrorCode.REFUSED_STREAM)]

    connection.end_call(1, Status.OK)

    assert connection.receive_data(headers(7)) == [CallStarted(7, PATH, "snappy", None)]


# --- what is allowed


def test_continuation_padding_priority() -> None:
    """A header block may come in pieces, padded, with a priority; so may its trailers."""
    connection = greeted()
    piece = b"\3" + b"\0\0\0\0\x10" + SOME_BLOCK[:20] + bytes(3)
    events = connection.receive_data(
        h2.frame(h2.PRIORITY, 0, 7, b"\0\0\0\1\0")
        + h2.frame(h2.HEADERS, h2.PADDED | h2.WITH_PRIORITY, 1, piece)
        + h2.frame(h2.CONTINUATION, 0, 1, b"")
        + h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, SOME_BLOCK[20:])
        + h2.frame(0xBE, 0xFF, 1, b"unknown frame")
        + h2.frame(h2.HEADERS, h2.END_STREAM, 1, b"")
        + h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, block([("some", "trailer")]))
        + h2.goaway_frame(0, ErrorCode.NO_ERROR, b"bye")
    )

    assert events == [CallStarted(1, PATH, "snappy", None), HalfClosed(1)]
    assert connection.data_to_send() == b""


def test_reserved_bit_is_ignored() -> None:
    """The bit above a stream's number means nothing."""
    connection = greeted()
    connection.receive_data(headers(1 | 1 << 31))

    assert connection.receive_data(data(1 | 1 << 31, message(b"x"))) == [
        MessageReceived(1, False, b"x")
    ]


def test_dynamic_table_lives_across_calls() -> None:
    """An agent's encoder refers to fields of its earlier calls."""
    connection = greeted()
    encoder = hpack.Encoder()
    fields = [(n.encode(), v.encode()) for n, v in request()]
    first, second = encoder.encode(fields), encoder.encode(fields)
    assert len(second) < len(first) // 4

    events = connection.receive_data(headers(1, fields=first) + headers(3, fields=second))

    assert events == [CallStarted(n, PATH, "snappy", None) for n in (1, 3)]


def test_peer_without_header_table() -> None:
    """A peer that wants no dynamic table is told at once that none is used."""
    connection = greeted()
    connection.receive_data(h2.settings_frame([(h2.HEADER_TABLE_SIZE, 0)]) + headers(1))
    connection.data_to_send()
    connection.end_call(1, Status.OK)
    (sent, _) = frames(connection.data_to_send())
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0

    assert ("grpc-status", "0") in decoder.decode(sent.data)


def test_ping_and_its_answer() -> None:
    """We answer PING; the owner's own PING comes back to it."""
    connection = greeted()
    connection.send_ping(b"12345678")
    assert connection.data_to_send() == h2.ping_frame(b"12345678")
    events = connection.receive_data(
        h2.ping_frame(b"12345678", h2.ACK) + h2.ping_frame(b"abcdefgh")
    )
    assert events == [PingAcked(b"12345678")]
    assert connection.data_to_send() == h2.ping_frame(b"abcdefgh", h2.ACK)
    with pytest.raises(ValueError, match="8 bytes"):
        connection.send_ping(b"short")


def test_going_away() -> None:
    """After GOAWAY calls under way go on, and new ones are not seen."""
    connection = greeted()
    connection.receive_data(headers(1))
    connection.send_goaway()
    assert connection.data_to_send() == h2.goaway_frame(1, ErrorCode.NO_ERROR)

    events = connection.receive_data(
        headers(3) + data(3, message(b"lost")) + data(1, message(b"kept"), h2.END_STREAM)
    )
    assert events == [MessageReceived(1, False, b"kept"), HalfClosed(1)]
    connection.end_call(1, Status.OK)
    assert ("grpc-status", "0") in fields_of(connection.data_to_send())
    assert connection.open_streams == 0


def test_discarded_data_does_not_use_up_the_connection() -> None:
    """What is thrown away is given back to the connection's window."""
    connection = greeted()
    connection.send_goaway(last_stream_id=0)
    connection.receive_data(headers(1))
    connection.data_to_send()
    for _ in range(32):
        connection.receive_data(data(1, bytes(16_384)))

    (update,) = frames(connection.data_to_send())
    assert (update.stream_id, update.window_increment) == (0, 32 * 16_384)


# --- floods


def flood(connection: GrpcServerConnection, sent: Callable[[int], bytes], most: int) -> int:
    """Send frames until the connection ends by ENHANCE_YOUR_CALM; how many it took."""
    for count in range(most):
        for event in connection.receive_data(sent(count)):
            if isinstance(event, ConnectionEnded):
                assert event.error_code == ErrorCode.ENHANCE_YOUR_CALM
                return count
    raise AssertionError(f"{most} are taken")


USELESS: list[tuple[str, Callable[[int], bytes]]] = [
    ("PING", lambda _: h2.ping_frame(NOTHING)),
    ("PING ACK", lambda _: h2.ping_frame(NOTHING, h2.ACK)),
    ("SETTINGS", lambda _: h2.settings_frame([])),
    ("SETTINGS ACK", lambda _: h2.SETTINGS_ACK),
    ("empty DATA", lambda _: data(1)),
    ("padded empty DATA", lambda _: h2.frame(0, 8, 1, b"\0")),
    ("PRIORITY", lambda _: h2.frame(2, 0, 1, bytes(5))),
    ("WINDOW_UPDATE", lambda _: h2.window_update_frame(0, 1)),
    ("WINDOW_UPDATE on a stream", lambda _: h2.window_update_frame(1, 1)),
    ("GOAWAY", lambda _: h2.goaway_frame(0, 0)),
    ("unknown", lambda _: h2.frame(0x42, 0, 0)),
]


@pytest.mark.parametrize("sent", [case[1] for case in USELESS], ids=[case[0] for case in USELESS])
def test_useless_frames(sent: Callable[[int], bytes]) -> None:
    """A peer that only keeps us busy is cut off, though its answers are fetched."""
    connection = greeted()
    connection.receive_data(headers(1))

    def one(count: int) -> bytes:
        connection.data_to_send()
        return sent(count)

    assert NUISANCE_BURST - 10 < flood(connection, one, 2 * NUISANCE_BURST) <= NUISANCE_BURST


def test_useless_frames_are_forgiven_with_time() -> None:
    """A PING every few seconds is never too much."""
    now = 0.0
    connection = GrpcServerConnection(ConnectionLimits(), (PATH,), lambda: now)
    connection.receive_data(GREETING)
    for _ in range(3 * NUISANCE_BURST):
        now += 2 / NUISANCE_LEAK
        assert connection.receive_data(h2.ping_frame(NOTHING)) == []
        connection.data_to_send()


def test_rapid_reset() -> None:
    """A peer that opens and resets calls all the time is cut off (CVE-2023-44487)."""
    connection = greeted()

    def one(count: int) -> bytes:
        connection.data_to_send()
        return headers(2 * count + 1) + h2.rst_stream_frame(2 * count + 1, ErrorCode.CANCEL)

    assert 80 < flood(connection, one, NUISANCE_BURST) <= NUISANCE_BURST // NUISANCE_RESET


@pytest.mark.parametrize(
    "sent",
    [
        lambda n: headers(n) + h2.window_update_frame(n, 0),
        lambda n: headers(n, fields=block(request(_path=None))),
        lambda n: headers(n) + h2.frame(h2.PRIORITY, 0, n, n.to_bytes(4, "big") + b"\0"),
    ],
    ids=["WINDOW_UPDATE of 0", "malformed", "PRIORITY"],
)
def test_resets_that_the_peer_provokes(sent: Callable[[int], bytes]) -> None:
    """The same goes for a peer that makes us reset its streams (CVE-2025-8671)."""
    connection = greeted()

    def one(count: int) -> bytes:
        connection.data_to_send()
        return sent(2 * count + 1)

    assert 80 < flood(connection, one, NUISANCE_BURST) <= NUISANCE_BURST // NUISANCE_RESET


def test_answers_that_are_not_read() -> None:
    """A peer that makes us answer and does not read is cut off before its answers pile up."""
    now = 0.0
    connection = GrpcServerConnection(ConnectionLimits(), (PATH,), lambda: now)
    connection.receive_data(GREETING)
    connection.data_to_send()

    def one(_: int) -> bytes:
        nonlocal now
        now += 1
        return h2.ping_frame(NOTHING)

    assert flood(connection, one, 2 * QUEUED_ANSWERS) == QUEUED_ANSWERS
    assert len(connection.data_to_send()) < 64 * QUEUED_ANSWERS


def test_calls_whose_answers_are_not_read() -> None:
    """Also when each answer is a whole HTTP response."""
    now = 0.0
    connection = GrpcServerConnection(ConnectionLimits(), (PATH,), lambda: now)
    connection.receive_data(
        GREETING
        + h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 1 << 20)])
        + h2.window_update_frame(0, 1 << 30)
    )
    fields = block(request(_method="GET"))

    def one(count: int) -> bytes:
        nonlocal now
        now += 1
        return headers(2 * count + 1, h2.END_STREAM, fields)

    assert flood(connection, one, 2 * QUEUED_ANSWERS) <= QUEUED_ANSWERS


def test_continuation_flood() -> None:
    """A header block must end: within its bytes, and within a number of frames."""
    for piece in (b"", b"x", bytes(8_192)):
        connection = greeted()
        connection.receive_data(h2.frame(h2.HEADERS, 0, 1, b""))
        sent = h2.frame(h2.CONTINUATION, 0, 1, piece)
        assert flood(connection, lambda _, sent=sent: sent, 100) <= CONTINUATION_LIMIT


def test_header_list_too_long() -> None:
    """Headers beyond the announced size end the connection, before they take memory."""
    few_bytes = h2.frame(
        h2.HEADERS,
        h2.END_HEADERS,
        1,
        b"\x40\x01a\x7f\x81\x1e" + b"x" * 4_000 + b"\xbe" * 8_000,  # 8,000 times the same field
    )
    many_fields = headers(1, fields=b"\x00\x01a\x00" * 1_000)
    tracemalloc.start()
    for sent in (few_bytes, many_fields):
        assert ended(greeted(), sent) == ErrorCode.ENHANCE_YOUR_CALM
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_header_block_too_long() -> None:
    """A header block has a limit of its own, before it is decoded."""
    connection = greeted(ConnectionLimits(header_bytes=100))
    assert ended(connection, headers(1, fields=b"\0" * 101)) == ErrorCode.ENHANCE_YOUR_CALM


def test_message_in_tiny_frames() -> None:
    """A large message in frames of two bytes takes no more memory than its bytes."""
    connection = greeted()
    connection.receive_data(headers(1) + data(1, b"\0\0\x10\0\0"))
    sent = data(1, b"xy") * 1_000
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(25):
        assert connection.receive_data(sent) == []
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 2 * 50_000


def test_idle_connection_is_small() -> None:
    """An agent that waits costs less than 4 KiB here."""
    encoder_bytes = hpack.Encoder().encode([(n.encode(), v.encode()) for n, v in request()])
    limits, greeting, methods = (
        ConnectionLimits(),
        GREETING + headers(1, fields=encoder_bytes),
        (PATH,),
    )

    def agent() -> GrpcServerConnection:
        connection = GrpcServerConnection(limits, methods)
        connection.receive_data(greeting)
        connection.receive_data(data(1, message(bytes(300), 1)))
        connection.data_to_send()
        return connection

    agent()
    tracemalloc.start()
    agents = [agent() for _ in range(100)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(agents) < 4_096
