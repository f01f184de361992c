"""The agents' side of gRPC against h2's server side, and against servers that misbehave."""

import struct

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.fleet.grpc_client import (
    BDP_PING,
    CONTROL_FRAMES,
    HEADER_BYTES,
    MESSAGE_BYTES,
    TRANSFER_PATH,
    CallEnded,
    ConnectionBroken,
    ConnectionReady,
    Event,
    GoAwayReceived,
    GrpcClientConnection,
    MessageReceived,
)
from elkeid.wire import grpc
from elkeid.wire.grpc import Status
from elkeid.wire.http2_frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

ANSWER = [(":status", "200"), ("content-type", "application/grpc")]
OK = [("grpc-status", "0"), ("grpc-message", "")]


class Pair:
    """A client of ours and a server of h2, joined by hand."""

    def __init__(self, **server_settings: int) -> None:
        self.client = GrpcClientConnection("10.0.0.1:6751")
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.server = h2.connection.H2Connection(config)
        if server_settings:
            codes = {h2.settings.SettingCodes[name]: v for name, v in server_settings.items()}
            self.server.local_settings = h2.settings.Settings(False, initial_values=codes)
            self.server.max_inbound_frame_size = server_settings.get("MAX_FRAME_SIZE", 16_384)
        self.server.initiate_connection()
        self.seen: list[h2.events.Event] = []
        self.events: list[Event] = []
        self.acknowledge = True

    def move(self) -> list[Event]:
        """Move bytes until nothing moves; give what the client saw meanwhile."""
        start = len(self.events)
        while True:
            out, back = self.client.data_to_send(), self.server.data_to_send()
            if not out and not back:
                return self.events[start:]
            if out:
                for event in self.server.receive_data(out):
                    self.seen.append(event)
                    if isinstance(event, h2.events.DataReceived) and self.acknowledge:
                        size = event.flow_controlled_length
                        self.server.acknowledge_received_data(size, event.stream_id)
            if back:
                self.events += self.client.receive_data(back)

    def received(self, stream_id: int = 1) -> bytes:
        """The data that the server got on a stream."""
        return b"".join(
            event.data
            for event in self.seen
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream_id
        )

    def of(self, kind: type) -> list[h2.events.Event]:
        """What the server saw of one kind."""
        return [event for event in self.seen if isinstance(event, kind)]


def connected(**server_settings: int) -> Pair:
    """A pair with one open call, stream 1."""
    pair = Pair(**server_settings)
    assert pair.move() == [ConnectionReady()]
    assert pair.client.open_call() == 1
    pair.move()
    return pair


def message(body: bytes, flag: int = 1) -> bytes:
    """A gRPC message as on the wire."""
    return struct.pack(">BI", flag, len(body)) + body


def test_opens_like_a_real_agent() -> None:
    """The first bytes are the preface and an empty SETTINGS; headers come in the known order."""
    first = Pair().client.data_to_send()
    assert first == PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    pair = connected()
    (request,) = pair.of(h2.events.RequestReceived)
    assert request.headers == [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/grpc.Transfer/Transfer"),
        (":authority", "10.0.0.1:6751"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.69.4"),
        ("te", "trailers"),
        ("grpc-encoding", "snappy"),
        ("grpc-accept-encoding", "snappy"),
    ]
    acknowledged = pair.of(h2.events.SettingsAcknowledged)
    assert pair.seen.index(acknowledged[0]) < pair.seen.index(request)


def test_second_stream_has_the_same_headers() -> None:
    """A connection that is used again opens stream 3 with the same headers."""
    pair = connected()
    assert pair.client.open_call() == 3
    pair.move()
    first, second = pair.of(h2.events.RequestReceived)
    assert (first.headers, second.stream_id) == (second.headers, 3)


@pytest.mark.parametrize("table", [0, 100, 4096, 65_536])
def test_any_header_table_of_the_server(table: int) -> None:
    """Headers are understood by a server with any size of header table."""
    pair = connected(HEADER_TABLE_SIZE=table)
    pair.client.open_call()
    pair.move()
    assert len(pair.of(h2.events.RequestReceived)) == 2


def test_messages_arrive_as_sent() -> None:
    """Messages are framed with flag and length, and arrive in order."""
    pair = connected()
    for body in (b"one", b"", b"three" * 100):
        pair.client.send_message(1, body)
    pair.client.send_message(1, b"plain", compressed=False)
    pair.move()
    expected = message(b"one") + message(b"") + message(b"three" * 100) + message(b"plain", 0)
    assert pair.received() == expected


@pytest.mark.parametrize("window", [0, 1, 10, 1000, 16_384, 65_535, 1 << 20])
@pytest.mark.parametrize("frame_size", [16_384, 100_000])
def test_windows_are_honoured(window: int, frame_size: int) -> None:
    """A big batch goes out piece by piece as the server's windows and frame size allow."""
    pair = connected(INITIAL_WINDOW_SIZE=window, MAX_FRAME_SIZE=frame_size)
    bodies = [bytes([n]) * 70_000 for n in range(3)]
    for body in bodies:
        pair.client.send_message(1, body)
    pair.client.half_close(1)
    pair.acknowledge = False
    pair.move()
    expected = b"".join(message(body) for body in bodies)
    sent = len(pair.received())
    assert sent == min(window, 65_535, len(expected))
    assert pair.client.waiting_on(1) == len(expected) - sent
    while len(pair.received()) < len(expected):
        pair.server.increment_flow_control_window(9_999)
        pair.server.increment_flow_control_window(9_999, 1)
        pair.move()
        assert len(pair.received()) > sent
        sent = len(pair.received())
    assert pair.received() == expected
    assert pair.of(h2.events.StreamEnded)
    assert pair.client.waiting_on(1) == 0


def test_a_shrunken_window_goes_below_zero() -> None:
    """A server may shrink the window under what was sent; nothing is sent until it is back."""
    pair = connected()
    pair.acknowledge = False
    pair.client.send_message(1, bytes(40_000))
    pair.move()
    pair.server.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
    pair.move()
    pair.client.send_message(1, bytes(100))
    pair.move()
    assert pair.client.waiting_on(1) == 105
    pair.server.increment_flow_control_window(30_110 + 5, 1)
    pair.move()
    assert pair.client.waiting_on(1) == 0


def test_half_close_then_status() -> None:
    """OK trailers after the half-close confirm the stream."""
    pair = connected()
    pair.client.send_message(1, b"last")
    pair.client.half_close(1)
    pair.move()
    pair.server.send_headers(1, ANSWER)
    pair.server.send_headers(1, OK, end_stream=True)
    assert pair.move() == [CallEnded(1, 0, "", from_trailers=True, half_closed=True)]
    assert pair.of(h2.events.StreamReset) == []
    assert pair.client.open_calls == 0


def test_server_ends_first() -> None:
    """Trailers before the half-close end the stream; a reset tells the server so."""
    pair = connected()
    pair.server.send_headers(
        1, [*ANSWER, ("grpc-status", "2"), ("grpc-message", "out%20of%20it")], end_stream=True
    )
    assert pair.move() == [CallEnded(1, 2, "out of it", from_trailers=True, half_closed=False)]
    (reset,) = pair.of(h2.events.StreamReset)
    assert reset.error_code == 0
    pair.client.send_message(1, b"too late")
    pair.client.half_close(1)
    assert pair.client.data_to_send() == b""


def test_waiting_half_close_is_not_one() -> None:
    """A half-close still behind unsent data does not confirm anything."""
    pair = connected(INITIAL_WINDOW_SIZE=10)
    pair.acknowledge = False
    pair.client.send_message(1, bytes(100))
    pair.client.half_close(1)
    pair.move()
    pair.server.send_headers(1, ANSWER + OK, end_stream=True)
    (ended,) = pair.move()
    assert isinstance(ended, CallEnded)
    assert not ended.half_closed


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, 13), (1, 13), (2, 13), (7, 14), (8, 1), (11, 8), (12, 7), (99, 13)],
)
def test_reset_codes(code: int, status: int) -> None:
    """A reset stream has the status that gRPC makes of its code."""
    pair = connected()
    pair.server.reset_stream(1, code)
    (ended,) = pair.move()
    assert isinstance(ended, CallEnded)
    assert (ended.status, ended.from_trailers) == (status, False)


def test_commands_arrive() -> None:
    """Commands come out whole, with their flag; received data is answered with a PING."""
    pair = connected()
    pair.server.send_headers(1, ANSWER)
    wire = message(b"first") + message(b"", 0) + message(b"third" * 1000)
    for start in range(0, len(wire), 999):
        pair.server.send_data(1, wire[start : start + 999])
    assert pair.move() == [
        MessageReceived(1, True, b"first"),
        MessageReceived(1, False, b""),
        MessageReceived(1, True, b"third" * 1000),
    ]
    assert pair.of(h2.events.PingReceived)[0].ping_data == BDP_PING


def test_windows_of_ours_are_refilled() -> None:
    """A Command larger than the 64 KiB window arrives whole."""
    pair = connected()
    pair.server.send_headers(1, ANSWER)
    wire, at = message(bytes(300_000)), 0
    while at < len(wire):
        room = min(pair.server.local_flow_control_window(1), 16_384)
        assert room
        pair.server.send_data(1, wire[at : at + room])
        at += room
        pair.move()
    assert pair.events[-1] == MessageReceived(1, True, bytes(300_000))


def test_a_command_beyond_4_mib_ends_the_stream() -> None:
    """Agents take Commands up to 4 MiB: a larger one costs the stream, by its length alone."""
    pair = connected()
    pair.server.send_headers(1, ANSWER)
    pair.server.send_data(1, struct.pack(">BI", 1, MESSAGE_BYTES + 1))
    (ended,) = pair.move()
    assert isinstance(ended, CallEnded)
    assert ended.status == Status.RESOURCE_EXHAUSTED
    assert pair.of(h2.events.StreamReset)


def test_goaway_lets_the_stream_end() -> None:
    """After GOAWAY the stream goes on to its status, and no new one is wanted here."""
    pair = connected()
    client = pair.client
    events = client.receive_data(frame(GOAWAY, 0, 0, struct.pack(">II", 1, 0) + b"bye"))
    assert events == [GoAwayReceived(1, 0, b"bye")]
    assert client.going_away
    assert client.open_calls == 1
    pair.server.send_headers(1, ANSWER + OK, end_stream=True)
    assert pair.move() == [CallEnded(1, 0, "", from_trailers=True, half_closed=False)]


def test_goaway_drops_what_was_not_taken() -> None:
    """A stream above GOAWAY's last one is over."""
    pair = connected()
    goaway, ended = pair.client.receive_data(frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)))
    assert isinstance(goaway, GoAwayReceived)
    assert isinstance(ended, CallEnded)
    assert ended.status == Status.UNAVAILABLE


def test_pings_are_answered() -> None:
    """Each PING of the server comes back with its bytes."""
    pair = connected()
    pair.server.ping(b"12345678")
    pair.move()
    assert pair.of(h2.events.PingAckReceived)[0].ping_data == b"12345678"


def test_drip_feed() -> None:
    """The same bytes in pieces of any size make the same events."""
    whole = Pair()
    whole.client.data_to_send()
    server = whole.server
    client = GrpcClientConnection("a:1")
    server.receive_data(client.data_to_send())
    wire = server.data_to_send()
    client.receive_data(wire)
    client.open_call()
    server.receive_data(client.data_to_send())
    server.send_headers(1, ANSWER)
    server.send_data(1, message(b"x" * 500) + message(b""))
    server.ping(b"abcdefgh")
    server.send_headers(1, OK, end_stream=True)
    wire += server.data_to_send()
    expected: list[Event] | None = None
    for size in (len(wire), 1, 2, 3, 5, 8, 13, 100):
        fresh = GrpcClientConnection("a:1")
        fresh.open_call()
        events = []
        for start in range(0, len(wire), size):
            events += fresh.receive_data(wire[start : start + size])
        expected = events if expected is None else expected
        assert events == expected
        assert [type(event) for event in events] == [
            ConnectionReady,
            MessageReceived,
            MessageReceived,
            CallEnded,
        ]


def header_block(headers: list[tuple[str, str]]) -> bytes:
    """A header block of a fresh encoder."""
    return hpack.Encoder().encode(headers)


def ready() -> GrpcClientConnection:
    """A client with an open call and nothing queued."""
    client = GrpcClientConnection("a:1")
    client.receive_data(frame(SETTINGS, 0, 0))
    client.open_call()
    client.data_to_send()
    return client


BREACHES = {
    "no SETTINGS first": None,
    "frame too large": struct.pack(">BHBBI", 0, 16_385, DATA, 0, 1),
    "SETTINGS on a stream": frame(SETTINGS, 0, 1),
    "SETTINGS of 5 bytes": frame(SETTINGS, 0, 0, bytes(5)),
    "SETTINGS ack with a body": frame(SETTINGS, 1, 0, bytes(6)),
    "window beyond 2^31": frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)),
    "frame size below the least": frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 100)),
    "PING of 7 bytes": frame(PING, 0, 0, bytes(7)),
    "PING on a stream": frame(PING, 0, 1, bytes(8)),
    "WINDOW_UPDATE of 0": frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    "WINDOW_UPDATE of 3 bytes": frame(WINDOW_UPDATE, 0, 0, bytes(3)),
    "window overflow": frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - 1)),
    "DATA on stream 0": frame(DATA, 0, 0, b"x"),
    "too much padding": frame(DATA, 8, 1, b"\x05abc"),
    "no padding length": frame(DATA, 8, 1, b""),
    "HEADERS on a stream of the server": frame(HEADERS, 4, 2, header_block(ANSWER)),
    "HEADERS on an idle stream": frame(HEADERS, 4, 9, header_block(ANSWER)),
    "HEADERS without its priority": frame(HEADERS, 0x24, 1, b"x"),
    "bad header block": frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    "CONTINUATION of nothing": frame(CONTINUATION, 4, 1, b""),
    "interrupted header block": frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, bytes(8)),
    "empty CONTINUATION": frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b""),
    "endless header block": frame(HEADERS, 0, 1, bytes(16_384))
    + frame(CONTINUATION, 0, 1, bytes(16_384)) * (HEADER_BYTES // 16_384),
    "PUSH_PROMISE": frame(PUSH_PROMISE, 4, 1, bytes(4)),
    "GOAWAY of 7 bytes": frame(GOAWAY, 0, 0, bytes(7)),
    "RST_STREAM of 3 bytes": frame(RST_STREAM, 0, 1, bytes(3)),
    "flood of PING": frame(PING, 0, 0, bytes(8)) * (CONTROL_FRAMES + 1),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_server_that_breaks_http2(name: str) -> None:
    """A breach ends the connection with GOAWAY, and nothing after it is read."""
    breach = BREACHES[name]
    if breach is None:
        client, breach = GrpcClientConnection("a:1"), frame(PING, 0, 0, bytes(8))
        client.data_to_send()
    else:
        client = ready()
    events = client.receive_data(breach)
    assert isinstance(events[-1], ConnectionBroken), events
    assert client.data_to_send()[-17 + 3] == GOAWAY
    assert client.receive_data(frame(PING, 0, 0, bytes(8))) == []


def test_answers_that_cannot_be_used() -> None:
    """An answer that is no gRPC ends the stream, not the connection."""
    cases: list[tuple[bytes, int]] = [
        (frame(DATA, 0, 1, b"x"), Status.INTERNAL),
        (frame(HEADERS, 4, 1, header_block([(":status", "502")])), Status.UNKNOWN),
        (frame(HEADERS, 5, 1, header_block([(":status", "415")])), Status.UNKNOWN),
        (frame(HEADERS, 5, 1, header_block([*ANSWER, ("grpc-status", "x")])), Status.UNKNOWN),
        (frame(WINDOW_UPDATE, 0, 1, bytes(4)), Status.INTERNAL),
        (frame(HEADERS, 4, 1, header_block(ANSWER)) + frame(DATA, 1, 1), Status.INTERNAL),
        (
            frame(HEADERS, 4, 1, header_block(ANSWER)) + frame(DATA, 0, 1, b"\x02\0\0\0\0"),
            Status.INTERNAL,
        ),
        (frame(HEADERS, 4, 1, header_block(ANSWER)) * 2, Status.INTERNAL),
    ]
    for wire, status in cases:
        client = ready()
        events = client.receive_data(wire)
        (ended,) = [event for event in events if not isinstance(event, MessageReceived)]
        assert isinstance(ended, CallEnded), wire
        assert ended.status == status, wire
        assert not ended.from_trailers
        assert client.receive_data(frame(PING, 0, 0, bytes(8))) == []
        assert client.open_call() == 3


def test_header_blocks_in_pieces() -> None:
    """Padding, priority and CONTINUATION are understood."""
    block = header_block([*ANSWER, *OK])
    wire = frame(HEADERS, 0x29, 1, b"\x02" + bytes(5) + block[:3] + b"\0\0")
    wire += frame(CONTINUATION, 0, 1, block[3:6]) + frame(CONTINUATION, 4, 1, block[6:])
    (ended,) = ready().receive_data(wire)
    assert ended == CallEnded(1, 0, "", from_trailers=True, half_closed=False)


def test_unknown_frames_are_ignored() -> None:
    """Frame types and settings of the future mean nothing to an agent."""
    client = ready()
    wire = frame(0xEE, 0xFF, 7, b"what") + frame(SETTINGS, 0, 0, struct.pack(">HI", 0x99, 5))
    assert client.receive_data(wire) == []
    assert client.data_to_send() == frame(SETTINGS, 1, 0)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 11),
            st.integers(0, 255),
            st.sampled_from([0, 1, 1, 2, 3]),
            st.binary(max_size=40),
        ),
        max_size=12,
    ),
    st.binary(max_size=20),
)
def test_no_input_raises(frames: list[tuple[int, int, int, bytes]], rest: bytes) -> None:
    """Whatever a server sends, nothing escapes, and splitting it anywhere changes nothing."""
    wire = b"".join(frame(*each) for each in frames) + rest
    whole, split = ready(), ready()
    events = whole.receive_data(wire)
    pieces: list[Event] = []
    for byte in wire:
        pieces += split.receive_data(bytes([byte]))
    assert pieces == events
    whole.send_message(1, b"x" * 100)
    whole.half_close(1)
    whole.data_to_send()


def test_uploads_have_a_path_of_their_own() -> None:
    """Other calls than Transfer can be opened on the same connection."""
    pair = connected()
    pair.client.open_call("/grpc.FileExt/Upload")
    pair.move()
    paths = [dict(event.headers)[":path"] for event in pair.of(h2.events.RequestReceived)]
    assert paths == [TRANSFER_PATH, "/grpc.FileExt/Upload"]


def test_our_own_gateway_understands() -> None:
    """The gateway's side of this package gets every message, and its answers arrive."""
    client = GrpcClientConnection("127.0.0.1:6751")
    server = grpc.GrpcServerConnection(grpc.ConnectionLimits(), (TRANSFER_PATH,))
    got: list[grpc.Event] = []
    said: list[Event] = []

    def move() -> None:
        while True:
            out, back = client.data_to_send(), server.data_to_send()
            if not out and not back:
                return
            for at in range(0, len(out), 1000):
                got.extend(server.receive_data(out[at : at + 1000]))
            said.extend(client.receive_data(back))

    move()
    for number in (1, 3):
        assert client.open_call() == number
        bodies = [bytes([n]) * size for n, size in enumerate((0, 5, 16_384, 300_000))]
        for body in bodies:
            client.send_message(number, body)
        move()
        server.send_message(number, b"x" * 200_000, compressed=True)
        client.half_close(number)
        move()
        server.end_call(number, 0)
        move()
        messages = [e for e in got if isinstance(e, grpc.MessageReceived)]
        assert [(m.stream_id, m.compressed, m.body) for m in messages] == [
            (number, True, body) for body in bodies
        ]
        messages_too = (grpc.MessageBegan, grpc.MessageReceived)
        assert [type(e) for e in got if not isinstance(e, messages_too)] == [
            grpc.CallStarted,
            grpc.HalfClosed,
        ]
        assert said[-2:] == [
            MessageReceived(number, True, b"x" * 200_000),
            CallEnded(number, 0, "", from_trailers=True, half_closed=True),
        ]
        got.clear()
