"""Dialling and TLS as agents do them, over a reactor in memory and real TLS on both sides."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from elkeid.config import parse
from elkeid.fleet.grpc_client import CallEnded
from elkeid.fleet.link import QUEUED_BYTES, Address, AgentLink, DialFailed, Dialler
from elkeid.key_making import make_keys
from elkeid.keys import Keys, check_keys, create_keys, load_keys
from elkeid.tls import agent_client_options, agent_listener_options, api_server_options
from elkeid.wire.http2_frames import goaway_frame
from tests.fleet.gateway import H2Gateway

WHERE = Address("127.0.0.1", 6751)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """A fresh set of keys."""
    settings = parse({}, tmp_path_factory.mktemp("keys"))
    create_keys(settings)
    return load_keys(settings, ["ac", "agent"])


class Tcp(StringTransport):
    """One end of a connection in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = False

    def abortConnection(self) -> None:
        self.gone = True

    def loseConnection(self) -> None:
        self.gone = True


class Scene:
    """One dial, over TCP in memory."""

    def __init__(self, keys: Keys, server_tls: Any = None) -> None:
        self.reactor = MemoryReactorClock()
        self.outcome: list[Any] = []
        dialler = Dialler(self.reactor, agent_client_options(keys))
        self.dial: Deferred[AgentLink] = dialler.dial(WHERE)
        self.dial.addBoth(self.outcome.append)
        (host, port, self.factory, _, _) = self.reactor.tcpClients[0]
        assert (host, port) == ("127.0.0.1", 6751)
        self.connector = self.reactor.connectors[0]
        self.gateway = H2Gateway()
        self.server_tls = server_tls or agent_listener_options(keys)
        self.client: Any = None
        self.server: Any = None

    def connect(self) -> None:
        """TCP is there."""
        accepted = TLSMemoryBIOFactory(
            self.server_tls, False, Factory.forProtocol(lambda: self.gateway), self.reactor
        )
        self.client = self.factory.buildProtocol(None)
        self.server = accepted.buildProtocol(None)
        self.near, self.far = Tcp(), Tcp()
        self.connector.state = "connected"
        self.server.makeConnection(self.far)
        self.client.makeConnection(self.near)

    def move(self) -> None:
        """Move bytes both ways until nothing moves."""
        while True:
            self.reactor.advance(0)
            there, back = self.near.value(), self.far.value()
            self.near.clear()
            self.far.clear()
            if not there and not back:
                return
            if there:
                self.server.dataReceived(there)
            if back:
                self.client.dataReceived(back)

    def ready(self) -> AgentLink:
        """Connect, and give the link."""
        self.connect()
        self.move()
        (link,) = self.outcome
        assert isinstance(link, AgentLink)
        return link

    @property
    def timers(self) -> list[float]:
        """When something is due; what the server's TLS does in its next turn is not ours."""
        now = self.reactor.seconds()
        return [each.getTime() for each in self.reactor.getDelayedCalls() if each.getTime() > now]

    @property
    def error(self) -> str:
        """What the dial failed with."""
        (failure,) = self.outcome
        assert isinstance(failure, Failure)
        assert failure.check(DialFailed)
        return failure.getErrorMessage()


class Owner:
    """Keeps what a link tells."""

    def __init__(self) -> None:
        self.commands: list[tuple[bool, bytes]] = []
        self.ended: list[CallEnded] = []

    def message_received(self, compressed: bool, body: bytes) -> None:
        self.commands.append((compressed, body))

    def stream_ended(self, ended: CallEnded) -> None:
        self.ended.append(ended)


def test_a_link_is_ready_with_the_first_settings(keys: Keys) -> None:
    """TLS with a client certificate, HTTP/2 by ALPN, no server name; ready at the SETTINGS."""
    scene = Scene(keys)
    scene.connect()
    assert scene.outcome == []
    scene.move()
    (link,) = scene.outcome
    assert link.usable
    connection = scene.server.getHandle()
    assert connection.get_alpn_proto_negotiated() == b"h2"
    assert connection.get_servername() is None
    assert connection.get_peer_certificate() is not None
    assert scene.timers == []


def test_streams_over_a_link(keys: Keys) -> None:
    """A stream carries messages there, Commands back, and its end is told once."""
    scene, owner = Scene(keys), Owner()
    link = scene.ready()
    link.open_stream(owner)
    link.send(b"body")
    scene.move()
    assert scene.gateway.messages == [b"body"]
    assert dict(scene.gateway.headers[1])[":authority"] == "127.0.0.1:6751"
    scene.gateway.command(1, b"\x1a\x00")
    scene.move()
    assert [compressed for compressed, _ in owner.commands] == [True]
    link.half_close()
    scene.move()
    assert [(e.status, e.half_closed) for e in owner.ended] == [(0, True)]
    link.close()
    scene.move()
    assert scene.near.gone
    assert len(owner.ended) == 1


def test_refused_fails_at_once(keys: Keys) -> None:
    """A closed port costs no time."""
    scene = Scene(keys)
    scene.factory.clientConnectionFailed(scene.connector, Failure(ConnectError(string="refused")))
    assert scene.error.startswith("127.0.0.1:6751: ")
    assert scene.timers == []


def test_a_reset_fails_at_once(keys: Keys) -> None:
    """A TCP reset in the handshake sends the agent to the next address without delay."""
    scene = Scene(keys)
    scene.connect()
    scene.client.connectionLost(Failure(ConnectionLost()))
    assert "127.0.0.1:6751" in scene.error
    assert scene.timers == []


@pytest.mark.parametrize("after_handshake", [False, True])
def test_an_orderly_close_costs_the_budget(keys: Keys, after_handshake: bool) -> None:
    """A server that closes politely before its SETTINGS costs the agent its 15 s."""
    scene = Scene(keys)
    if after_handshake:
        scene.gateway.flush = lambda: None  # type: ignore[method-assign]
    scene.connect()
    if after_handshake:
        scene.move()
    scene.client.connectionLost(Failure(ConnectionDone()))
    scene.reactor.advance(14.9)
    assert scene.outcome == []
    scene.reactor.advance(0.2)
    assert "127.0.0.1:6751" in scene.error


def test_a_silent_server_costs_the_budget(keys: Keys) -> None:
    """One that accepts and says nothing costs 15 s, and is left."""
    scene = Scene(keys)
    scene.connect()
    scene.reactor.advance(15)
    assert "15 s" in scene.error
    assert scene.near.gone


def test_an_unreachable_server_costs_the_budget(keys: Keys) -> None:
    """So does one that does not even accept."""
    scene = Scene(keys)
    scene.reactor.advance(15)
    assert "15 s" in scene.error


def test_a_dial_can_be_given_up(keys: Keys) -> None:
    """Cancelling leaves neither a timer nor a connection."""
    scene = Scene(keys)
    scene.connect()
    scene.dial.cancel()
    assert scene.near.gone
    assert scene.timers == []
    scene.client.connectionLost(Failure(ConnectionDone()))


def test_servers_that_agents_do_not_trust(keys: Keys, tmp_path: Path) -> None:
    """Another authority, or a server without HTTP/2, is refused at once."""
    made = make_keys([], datetime.datetime.now(datetime.UTC))
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    wanted = ("ca.crt", "server.crt", "server.key")
    stranger = check_keys(tmp_path, {name: made[name] for name in wanted}, None)
    for options in (agent_listener_options(stranger), api_server_options(keys)):
        scene = Scene(keys, options)
        scene.connect()
        scene.move()
        assert scene.near.gone
        scene.client.connectionLost(Failure(ConnectionDone()))
        assert "127.0.0.1:6751" in scene.error


def test_a_lost_connection_ends_the_stream(keys: Keys) -> None:
    """When TCP dies, the stream ends as unavailable and the link is of no use."""
    scene, owner = Scene(keys), Owner()
    link = scene.ready()
    link.open_stream(owner)
    scene.move()
    scene.client.connectionLost(Failure(ConnectionLost()))
    assert [(e.status, e.half_closed) for e in owner.ended] == [(14, False)]
    assert not link.usable
    link.send(b"nothing")
    link.close()
    link.abort()


def test_goaway_without_a_stream_closes(keys: Keys) -> None:
    """An idle connection that got GOAWAY is closed; one with a stream, after the stream."""
    for with_stream in (False, True):
        scene, owner = Scene(keys), Owner()
        link = scene.ready()
        if with_stream:
            link.open_stream(owner)
            scene.move()
        scene.gateway.transport.write(goaway_frame(1, 0))
        scene.move()
        assert not link.usable
        assert scene.near.gone is not with_stream
        if with_stream:
            link.cancel_stream("enough")
            scene.move()
            assert scene.near.gone
            assert [e.message for e in owner.ended] == ["enough"]


def test_a_broken_server_is_left(keys: Keys) -> None:
    """A server that breaks HTTP/2 gets GOAWAY and the connection ends."""
    scene = Scene(keys)
    link = scene.ready()
    scene.gateway.transport.write(b"\0\0\4\6\0\0\0\0\0abcd")
    scene.move()
    assert scene.near.gone
    scene.client.connectionLost(Failure(ConnectionDone()))
    assert not link.usable


def test_back_pressure(keys: Keys) -> None:
    """A link is blocked while the socket takes nothing, or the server's window is used up."""
    scene, owner = Scene(keys), Owner()
    link = scene.ready()
    link.open_stream(owner)
    scene.move()
    assert not link.blocked
    scene.near.producer.pauseProducing()
    assert link.blocked
    scene.near.producer.resumeProducing()
    assert not link.blocked
    scene.gateway.http2.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]
    link.send(bytes(65_535 + QUEUED_BYTES))
    assert link.blocked
