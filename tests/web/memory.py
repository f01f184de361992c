"""HTTP in memory: real sites and real clients, joined on one fake clock."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionRefusedError as TwistedRefused
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.test import iosim
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from elkeid.web.client import Credentials, JsonClient, PooledAgent
from elkeid.web.site import FaceSite

T = TypeVar("T")
PEER = IPv4Address("TCP", "127.0.0.1", 31337)
NOW = 1_700_000_000  # what the fake clock calls the time of day


@implementer(IAgentEndpointFactory)
class _Endpoints:
    def __init__(self, network: "MemoryNetwork") -> None:
        self._network = network

    def endpointForURI(self, uri: Any) -> TCP4ClientEndpoint:
        return TCP4ClientEndpoint(self._network.clock, uri.host.decode(), uri.port)


class MemoryNetwork:
    """Ports are numbers; a port that nobody has refuses, one in ``silent`` never answers."""

    def __init__(self) -> None:
        self.clock = MemoryReactorClock()
        self.clock.advance(NOW)
        self.ports: dict[int, IProtocolFactory] = {}
        self.silent: set[int] = set()
        self.dialled: list[int] = []
        self.peer = PEER  # from where connections come that are made from now on
        self._pumps: list[iosim.IOPump] = []

    def wall(self) -> float:
        """The time of day."""
        return float(self.clock.seconds())

    def agent(self) -> PooledAgent:
        """Dials ports of this network, whatever the scheme; connections are kept."""
        pool = HTTPConnectionPool(self.clock)
        return PooledAgent(Agent.usingEndpointFactory(self.clock, _Endpoints(self), pool), pool)

    def client(self, credentials: Credentials | None = None) -> JsonClient:
        """A client whose connections are kept."""
        return JsonClient(self.clock, self.agent(), self.wall, credentials)

    def listening(self) -> None:
        """Take over the ports that were opened on the clock's reactor."""
        for port, factory, *_ in self.clock.tcpServers:
            self.ports[port] = factory
        self.clock.tcpServers.clear()

    def run(self, work: Coroutine[Any, Any, T] | Deferred[T]) -> T:
        """Let everything happen that needs no time, and return the result."""
        done = Deferred.fromCoroutine(work) if not isinstance(work, Deferred) else work
        outcome: list[Any] = []
        done.addBoth(outcome.append)
        self.flush()
        assert outcome, "it waits for something"
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        result: T = outcome[0]
        return result

    def advance(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass."""
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step
            self.flush()

    def flush(self) -> None:
        """Move bytes until nothing moves."""
        moved = True
        while moved:
            moved = self._connect()
            self.clock.advance(0)
            for pump in list(self._pumps):
                moved = pump.flush() or moved
                if pump.clientIO.disconnected and pump.serverIO.disconnected:
                    self._pumps.remove(pump)

    def _connect(self) -> bool:
        self.listening()
        waiting = list(zip(self.clock.tcpClients, self.clock.connectors, strict=True))
        self.clock.tcpClients.clear()
        self.clock.connectors.clear()
        for (_, port, factory, *_rest), connector in waiting:
            self.dialled.append(port)
            if connector.stoppedConnecting or port in self.silent:
                continue
            if port not in self.ports:
                factory.clientConnectionFailed(connector, Failure(TwistedRefused()))
                continue
            here = IPv4Address("TCP", "127.0.0.1", port)
            server = self.ports[port].buildProtocol(self.peer)
            client = factory.buildProtocol(here)
            assert server is not None
            self._pumps.append(
                iosim.connect(
                    server,
                    iosim.FakeTransport(server, True, here, self.peer),
                    client,
                    iosim.FakeTransport(client, False, self.peer, here),
                    greet=False,
                )
            )
        return bool(waiting)


class RawConnection:
    """Bytes to and from a site."""

    def __init__(self, site: FaceSite, peer: Any = PEER) -> None:
        self.channel: Any = site.buildProtocol(peer)
        self.wire = StringTransport(peerAddress=peer)
        self.channel.makeConnection(self.wire)

    def send(self, data: bytes) -> bytes:
        """Deliver bytes; return all that was answered since the last time."""
        self.channel.dataReceived(data)
        answer = self.wire.value()
        self.wire.clear()
        return answer

    def lose(self) -> None:
        """The peer goes away."""
        self.channel.connectionLost(Failure(ConnectionError()))


class Scripted(Protocol):
    """A server that answers every connection's first bytes with the same bytes."""

    def __init__(self, answer: bytes, close: bool = False) -> None:
        self._answer, self._close = answer, close

    def dataReceived(self, data: bytes) -> None:
        """Answer, whatever came."""
        assert self.transport is not None
        self.transport.write(self._answer)
        if self._close:
            self.transport.loseConnection()
