"""The agents' port on real TCP sockets: what only they show."""

import datetime
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from elkeid.agentcenter.sockets import AgentsPort
from elkeid.agentcenter.watch import SocketWatch
from elkeid.key_making import make_keys
from elkeid.keys import check_keys
from elkeid.tls import agent_listener_options
from elkeid.tls_engine import ServerTls, TlsBuffers

from .servers import DEADLINE

pytestmark = pytest.mark.integration
reactor: Any = global_reactor
FILES = make_keys([], datetime.datetime.now(datetime.UTC))
KEYS = check_keys(Path("keys"), FILES)


class Resetting(Protocol):
    """Resets its connection: at the handshake, or at the first data."""

    transport: Any

    def __init__(self, at_once: bool) -> None:
        self.ended: Deferred[None] = Deferred()
        self._at_once = at_once

    def handshakeCompleted(self) -> None:
        if self._at_once:
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data * 100_000)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)


class Waiting(Protocol):
    """Puts TLS in its place at the first bytes."""

    transport: Any

    def __init__(self, then: Resetting) -> None:
        self._then = then

    def dataReceived(self, data: bytes) -> None:
        tls = ServerTls(agent_listener_options(KEYS).connection(), TlsBuffers())
        self.transport.start_tls(tls, self._then, data)


class Open:
    """Has room for everybody, and nothing to do at turns."""

    def begin_turn(self) -> None:
        pass

    def end_turn(self) -> None:
        pass

    def room(self) -> int:
        return 10


@pytest.mark.parametrize("at_once", [True, False])
@pytest_twisted.ensureDeferred
async def test_abort_is_a_reset(at_once: bool, tmp_path: Path) -> None:
    """A peer whose connection is aborted sees a TCP reset, never an orderly end."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    context.check_hostname = False
    context.load_cert_chain(tmp_path / "client.crt", tmp_path / "client.key")
    context.set_alpn_protocols(["h2"])
    protocol = Resetting(at_once)
    factory = Factory.forProtocol(lambda: Waiting(protocol))  # type: ignore[arg-type]
    factory.noisy = False
    watch = SocketWatch(reactor, Open())
    port = AgentsPort(0, factory, "127.0.0.1", reactor, entrance=Open(), watch=watch)
    port.startListening()

    def dial() -> str:
        plain = socket.create_connection(("127.0.0.1", port.getHost().port), DEADLINE)
        try:
            # TLS would hide how TCP ends: what follows its handshake is read as it comes.
            with context.wrap_socket(plain) as connection:
                if not at_once:
                    connection.sendall(b"hello")
                with socket.socket(fileno=connection.detach()) as bare:
                    bare.settimeout(DEADLINE)
                    while bare.recv(65_536):
                        pass
        except ConnectionResetError:
            return "reset"
        return "closed"

    outcome = await deferToThread(dial)
    await protocol.ended
    await port.stopListening()
    assert outcome == "reset"
    assert len(watch) == 0
