"""A gateway on the h2 library and a network in memory, for tests of simulated agents."""

from typing import Any, NamedTuple

import h2.config
import h2.connection
import h2.events
import h2.settings
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.test import iosim

from elkeid.fleet.link import Address, AgentLink, DialFailed
from elkeid.wire import item, mqdata, rawdata
from elkeid.wire.compression import decompressor, snappy_frame
from elkeid.wire.datatypes import CLASS_OF, RecordClass
from elkeid.wire.protobuf import read_varint

HEADERS = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", "snappy")]


class Record(NamedTuple):
    """One received record."""

    agent_id: str
    hostname: str
    data_type: int
    time: int
    fields: dict[str, str]

    @property
    def record_class(self) -> RecordClass:
        return CLASS_OF.get(self.data_type, RecordClass.TELEMETRY)


def decode_batch(body: bytes) -> list[Record]:
    """Decode one compressed message with the gateway's own decoders, in the order sent."""
    data = decompressor("snappy")(body, 1 << 26)
    packet = rawdata.split(data)
    host = packet.header
    records = []
    at = 0
    while data[at] == 0x0A:  # RawData field 1, which agents send before the others
        size, start = read_varint(data, at + 1, len(data))
        at = start + size
        decoded = mqdata.decode(data[start:at])
        records.append(
            Record(
                host.agent_id.decode(),
                host.hostname.decode(),
                decoded.data_type,
                decoded.agent_time,
                item.decode_text(decoded.body),
            )
        )
    assert len(records) == packet.count
    return records


class H2Gateway(Protocol):
    """The server's side of one connection; what it got is in its attributes."""

    transport: Any

    def __init__(
        self, *, status: tuple[int, str] | None = None, settings: dict[int, int] | None = None
    ) -> None:
        self.refusal = status
        self.http2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        if settings:
            self.http2.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        self.headers: dict[int, list[tuple[str, str]]] = {}
        self.buffers: dict[int, bytearray] = {}
        self.messages: list[bytes] = []
        self.pings: list[bytes] = []
        self.resets: list[tuple[int, int]] = []
        self.half_closed: list[int] = []
        self.answered: set[int] = set()
        self.lost = False
        self.answer_half_close = True

    def connectionMade(self) -> None:
        self.http2.initiate_connection()
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        for event in self.http2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.headers[event.stream_id] = list(event.headers)
                self.buffers[event.stream_id] = bytearray()
                if self.refusal is not None:
                    self.end(event.stream_id, *self.refusal)
            elif isinstance(event, h2.events.DataReceived):
                self._data(event)
            elif isinstance(event, h2.events.StreamEnded):
                self.half_closed.append(event.stream_id)
                if self.answer_half_close:
                    self.end(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets.append((event.stream_id, int(event.error_code)))
            elif isinstance(event, h2.events.PingReceived):
                self.pings.append(event.ping_data)
        self.flush()

    def _data(self, event: h2.events.DataReceived) -> None:
        self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        buffer = self.buffers[event.stream_id]
        buffer += event.data
        while len(buffer) >= 5:
            size = int.from_bytes(buffer[1:5], "big")
            if len(buffer) < 5 + size:
                break
            assert buffer[0] == 1
            self.messages.append(bytes(buffer[5 : 5 + size]))
            del buffer[: 5 + size]

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True

    def flush(self) -> None:
        data = self.http2.data_to_send()
        if data and not self.lost:
            self.transport.write(data)

    def answer(self, stream_id: int) -> None:
        if stream_id not in self.answered:
            self.answered.add(stream_id)
            self.http2.send_headers(stream_id, HEADERS)

    def command(self, stream_id: int, command: bytes) -> None:
        """Send one Command; an empty one goes uncompressed, as gateways do."""
        self.answer(stream_id)
        body = snappy_frame(command) if command else b""
        message = bytes([bool(command)]) + len(body).to_bytes(4, "big") + body
        self.http2.send_data(stream_id, message)
        self.flush()

    def end(self, stream_id: int, status: int = 0, message: str = "") -> None:
        trailers = [("grpc-status", str(status)), ("grpc-message", message)]
        if stream_id not in self.answered:
            trailers = HEADERS[:2] + trailers
        self.http2.send_headers(stream_id, trailers, end_stream=True)
        self.flush()

    @property
    def records(self) -> list[Record]:
        return [record for body in self.messages for record in decode_batch(body)]


class Network:
    """Gateways by address, reached in memory and without TLS."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.listening: dict[str, Any] = {}  # address -> makes a protocol; absent: refused
        self.dialled: list[str] = []
        self.times: list[float] = []
        self.connections: list[H2Gateway] = []
        self.pumps: list[iosim.IOPump] = []

    def dial(self, address: Address) -> Deferred[AgentLink]:
        self.dialled.append(str(address))
        self.times.append(self.clock.seconds())
        make = self.listening.get(str(address))
        if make is None:
            return fail(DialFailed(f"{address}: refused"))
        done: Deferred[AgentLink] = Deferred()

        def settled(reason: Failure | None) -> None:
            if reason is None:
                done.callback(link)
            elif not done.called:
                done.errback(DialFailed(str(reason)))

        link, gateway = AgentLink(str(address), settled), make()
        self.connections.append(gateway)
        self.pumps.append(
            iosim.connect(
                gateway,
                iosim.FakeTransport(gateway, isServer=True),
                link,
                iosim.FakeTransport(link, isServer=False),
            )
        )
        self.flush()
        return done

    def flush(self) -> None:
        """Move bytes until nothing moves."""
        moved = True
        while moved:
            moved = any([pump.pump() for pump in self.pumps])  # noqa: C419 - each must move

    def advance(self, seconds: float, step: float = 0.01) -> None:
        """Let time pass, moving bytes after each step."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.flush()

    def kill(self, index: int = -1) -> None:
        """Break one connection as the death of the server's process does."""
        gateway, pump = self.connections[index], self.pumps[index]
        reason = Failure(ConnectionLost())
        for side in (pump.clientIO, pump.serverIO):
            side.disconnecting = side.disconnected = True
            side.stream.clear()
        gateway.connectionLost(reason)
        pump.client.tcp_lost(reason)
        pump.client.connectionLost(reason)
