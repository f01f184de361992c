"""The other end of a connection, by others' code: h2 as a client, hyperframe to read frames."""

from collections.abc import Iterable

import hpack
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived
from h2.events import Event as ClientEvent
from hyperframe.frame import Frame, RstStreamFrame

from elkeid.wire import http2_frames as h2
from elkeid.wire.grpc import ConnectionLimits, Event, GrpcServerConnection

PATH = "/grpc.Transfer/Transfer"
REQUEST = (
    (":method", "POST"),
    (":scheme", "https"),
    (":path", PATH),
    (":authority", "127.0.0.1:6751"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.69.4"),
    ("te", "trailers"),
    ("grpc-encoding", "snappy"),
    ("grpc-accept-encoding", "snappy"),
)
"""What an agent sends, in its order."""

GREETING = h2.PREFACE + h2.settings_frame([]) + h2.SETTINGS_ACK


def request(**changes: str | None) -> list[tuple[str, str]]:
    """An agent's request with some fields changed, added or (None) left out.

    Names are written with ``_`` for ``-`` and for the colon of pseudo-header fields.
    """
    fields = dict(REQUEST)
    for key, value in changes.items():
        name = ":" + key[1:] if key.startswith("_") else key.replace("_", "-")
        fields.pop(name, None)
        if value is not None:
            fields[name] = value
    pseudo = [(name, value) for name, value in fields.items() if name.startswith(":")]
    return pseudo + [(name, value) for name, value in fields.items() if not name.startswith(":")]


def block(fields: Iterable[tuple[str, str]] = REQUEST) -> bytes:
    """A header block that depends on no earlier one."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode([(n.encode(), v.encode()) for n, v in fields])


def headers(stream_id: int, flags: int = 0, fields: bytes | None = None) -> bytes:
    """A HEADERS frame that is whole, by default an agent's request."""
    return h2.frame(h2.HEADERS, flags | h2.END_HEADERS, stream_id, fields or block())


def data(stream_id: int, body: bytes = b"", flags: int = 0) -> bytes:
    """A DATA frame."""
    return h2.frame(h2.DATA, flags, stream_id, body)


def message(body: bytes, flag: int = 0) -> bytes:
    """A gRPC message."""
    return bytes([flag]) + len(body).to_bytes(4, "big") + body


def server(limits: ConnectionLimits | None = None) -> GrpcServerConnection:
    """A new connection of the gateway, with a clock that stands still."""
    return GrpcServerConnection(limits or ConnectionLimits(), (PATH,), clock=lambda: 0.0)


def greeted(limits: ConnectionLimits | None = None) -> GrpcServerConnection:
    """A connection whose greetings are exchanged."""
    connection = server(limits)
    connection.receive_data(GREETING)
    connection.data_to_send()
    return connection


def frames(sent: bytes) -> list[Frame]:
    """Read frames; all of ``sent`` must be whole frames."""
    found = []
    while sent:
        frame, size = Frame.parse_frame_header(memoryview(sent)[:9])
        frame.parse_body(memoryview(sent)[9 : 9 + size])
        found.append(frame)
        assert len(sent) >= 9 + size
        sent = sent[9 + size :]
    return found


def resets(sent: bytes) -> list[tuple[int, int]]:
    """Stream and code of each RST_STREAM."""
    return [(f.stream_id, f.error_code) for f in frames(sent) if isinstance(f, RstStreamFrame)]


def fields_of(sent: bytes) -> list[tuple[str, str]]:
    """Fields of the only header block in ``sent``."""
    (only,) = [frame for frame in frames(sent) if frame.type == h2.HEADERS]
    return [(str(n), str(v)) for n, v in hpack.Decoder().decode(only.data)]


class Client:
    """An h2 client joined to a connection of the gateway.

    Attributes:
        server: the gateway's end.
        wire: the client's end, to act on.
        chunk: bytes handed to the gateway at once.
        seen: what the client was told so far.
    """

    def __init__(
        self,
        limits: ConnectionLimits | None = None,
        chunk: int = 1 << 20,
        fields: Iterable[tuple[str, str]] | None = REQUEST,
    ) -> None:
        self.server = server(limits)
        self.wire = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.chunk = chunk
        self.seen: list[ClientEvent] = []
        self.wire.initiate_connection()
        self.exchange()
        self.seen.clear()
        if fields is not None:
            self.wire.send_headers(1, list(fields))

    def exchange(self) -> list[Event]:
        """Let both ends talk until they have nothing to say; what the gateway was told."""
        told: list[Event] = []
        while True:
            up = self.wire.data_to_send()
            for at in range(0, len(up), self.chunk):
                told += self.server.receive_data(up[at : at + self.chunk])
            down = self.server.data_to_send()
            if down:
                self.seen += self.wire.receive_data(down)
            if not up and not down:
                return told

    def take(self, kind: type) -> list:
        """Events of one kind that the client has seen, and forget all."""
        found = [event for event in self.seen if isinstance(event, kind)]
        self.seen.clear()
        return found

    def body(self) -> bytes:
        """DATA that the client has seen and now acknowledges."""
        got = b""
        for event in self.take(DataReceived):
            got += event.data
            self.wire.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return got
