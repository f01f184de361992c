"""A host in memory: the fleet's client side, joined to a real gateway's link without sockets."""

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from elkeid.agentcenter.gateway import Gateway
from elkeid.config import AgentCenterSettings
from elkeid.fleet.grpc_client import CallEnded, Event, GrpcClientConnection
from elkeid.wire import item
from elkeid.wire.compression import snappy_frame
from elkeid.wire.datatypes import RecordClass
from elkeid.wire.mqdata import MQData, decode, records
from elkeid.wire.protobuf import length_delimited
from elkeid.wire.rawdata import encode_record

WALL = 1_700_000_000


class MemoryLog:
    """Stands in for the event log: keeps what is committed, fails when told to."""

    def __init__(self) -> None:
        self.kept: list[tuple[RecordClass, MQData]] = []
        self.dropped: dict[tuple[RecordClass, str], int] = {}
        self.failures = 0
        self.failing = False
        self.before_commit: Callable[[], bool] = lambda: True
        self._pending: list[tuple[RecordClass, MQData]] = []

    def append(self, cls: RecordClass, count: int, suffix: bytes, region: bytes) -> None:
        self._pending += [(cls, decode(record + suffix)) for record in records(region)]

    def drop(self, cls: RecordClass, reason: str, count: int) -> None:
        self.dropped[cls, reason] = self.dropped.get((cls, reason), 0) + count

    def commit(self) -> bool:
        pending, self._pending = self._pending, []
        whole = self.before_commit()
        if (self.failing and pending) or not whole:
            self.failures += 1
            return False
        self.kept += pending
        return True

    def of(self, agent_id: str) -> list[int]:
        """Data types stored of an agent, in order."""
        self.commit()
        return [data.data_type for _, data in self.kept if data.agent_id == agent_id]


class Transport(StringTransport):
    """A TLS transport in memory that agreed on HTTP/2."""

    negotiatedProtocol: Any = b"h2"


class Host:
    """One connection of an agent to the gateway."""

    def __init__(self, gateway: Gateway, address: str = "10.0.0.1", port: int = 40000) -> None:
        self.transport = Transport(peerAddress=IPv4Address("TCP", address, port))
        self.link = gateway.link((address, port))
        self.client = GrpcClientConnection("127.0.0.1:6751")
        self.events: list[Event] = []
        self.lost = False
        self.frozen = False  # a host that vanished: neither reads nor answers
        self.link.makeConnection(self.transport)
        self.link.handshakeCompleted()

    def open(self) -> int:
        stream = self.client.open_call()
        self.pump()
        return stream

    def send(self, stream: int, message: bytes, compressed: bool = True) -> None:
        body = snappy_frame(message) if compressed and message else message
        self.client.send_message(stream, body, compressed and bool(message))
        self.pump()

    def pump(self) -> None:
        """Move bytes both ways until nobody says anything more."""
        if self.frozen:
            return
        quiet = False
        while not quiet and not self.lost:
            up = self.client.data_to_send()
            if up:
                self.link.dataReceived(up)
            down = self.transport.value()
            self.transport.clear()
            if down:
                self.events += self.client.receive_data(down)
            quiet = not up and not down
            if self.transport.disconnecting or self.transport.disconnected:
                self.drop()

    def drop(self) -> None:
        """The connection is gone."""
        if not self.lost:
            self.lost = True
            reason = ConnectionAborted() if self.transport.disconnected else ConnectionDone()
            self.link.connectionLost(Failure(reason))

    def ended(self, stream: int) -> CallEnded | None:
        """How the call ended, if it did."""
        for event in self.events:
            if isinstance(event, CallEnded) and event.stream_id == stream:
                return event
        return None


def make_gateway(**changes: Any) -> tuple[Gateway, MemoryLog, Clock]:
    """A gateway on a clock and a log in memory."""
    log, clock = MemoryLog(), Clock()
    settings = AgentCenterSettings(**changes)
    log_like: Any = log
    gateway = Gateway(settings, log_like, clock, lambda: WALL + int(clock.seconds()), clock.seconds)
    return gateway, log, clock


def batch(agent_id: str, *data_types: int, hostname: str = "h", **fields: str) -> bytes:
    """One RawData message."""
    body = item.encode(fields or {"k": "v"})
    raw = b"".join(
        length_delimited(1, encode_record(data_type, WALL, body)) for data_type in data_types
    )
    if agent_id:
        raw += length_delimited(2, agent_id.encode())
    return raw + length_delimited(3, b"10.0.0.1") + length_delimited(7, hostname.encode())
