"""One agent's connection: plain TCP until its handshake's turn comes, then TLS."""

import contextlib
import socket
import struct
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from elkeid.agentcenter.watch import READABLE, WRITABLE, SocketWatch
from elkeid.tls_engine import ServerTls, TlsBroken

HELLO_BYTES: Final = 4 << 10
"""Read from a connection before its TLS begins; a ClientHello has under 2 KiB."""

UNSENT_BYTES: Final = 65_536
"""Of cipher text; with more waiting for the peer, the protocol is asked to pause."""

_ABORT: Final = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


@implementer(ITransport, IConsumer, IPushProducer)
class TlsSocket:
    """One accepted connection: the transport of its protocol.

    Its first protocol gets the bytes as they come, until `start_tls` puts TLS and another
    protocol in its place. From then on it behaves as Twisted's TLS transports do, with these
    differences: what is written goes to the socket at once, as far as it takes it; all that one
    read brings is given to the protocol in one piece; nothing can be written before the
    handshake is done; only producers that push are served; `abortConnection` resets the
    connection without a TLS alert.

    Args:
        plain: the accepted socket.
        protocol: the first; told by the port that the connection is made.
        address: of the peer.
        port: which accepted it.
        number: of the connection, for Twisted's transports; not used.
        reactor: for what must not happen within a call of the protocol's.
    """

    __slots__ = (
        "__weakref__",
        "_aborting",
        "_address",
        "_ending",
        "_events",
        "_leaving",
        "_number",
        "_paused",
        "_producer",
        "_protocol",
        "_reactor",
        "_shaken",
        "_socket",
        "_tls",
        "_unsent",
        "_watch",
        "connected",
        "disconnecting",
        "negotiatedProtocol",
    )

    def __init__(  # noqa: PLR0917 (the port's class passes them so)
        self,
        plain: socket.socket,
        protocol: Any,
        address: tuple[Any, ...],
        port: Any,
        number: int,
        reactor: Any,
    ) -> None:
        plain.setblocking(False)
        self._socket = plain
        self._number = plain.fileno()
        self._protocol = protocol
        self._address = address
        self._reactor = reactor
        self._tls: ServerTls | None = None
        self._watch: SocketWatch = port.watch
        self._events = READABLE
        self._unsent: bytearray | None = None  # cipher text that the socket did not take
        self._producer: IPushProducer | None = None
        self._paused = False  # the producer is asked to wait
        self._shaken = False
        self._leaving = False  # TLS is shut down on our side
        self._ending = False  # and on both sides: close once all is sent
        self._aborting = False
        self.connected = True
        self.disconnecting = False
        self.negotiatedProtocol: bytes | None = None
        self._watch.add(self._number, self, READABLE)

    # --- what the watch calls

    def ready(self, events: int) -> int:
        """Read or write, as the socket is ready to."""
        if events & WRITABLE:
            self._send_more()
        if not self._events & READABLE:
            if events & ~(READABLE | WRITABLE):
                self.lose(Failure(CONNECTION_LOST))
            return 0
        if not events & ~WRITABLE:
            return 0
        tls = self._tls
        try:
            if tls is None:
                return self._receive_plain()
            size = self._socket.recv_into(tls.buffer)
        except BlockingIOError:
            return 0
        except OSError:
            self.lose(Failure(CONNECTION_LOST))
            return 0
        if not size:
            self.lose(Failure(CONNECTION_DONE if tls.peer_closed else CONNECTION_LOST))
        elif self._shaken:
            self._receive(tls, size)
        else:
            self._shake_hands(tls, size)
        return size

    def _receive_plain(self) -> int:
        data = self._socket.recv(HELLO_BYTES)
        if data:
            self._protocol.dataReceived(data)
        else:
            self.lose(Failure(CONNECTION_DONE))
        return len(data)

    def start_tls(self, tls: ServerTls, protocol: Any, held: bytes) -> None:
        """Put TLS and ``protocol`` in the place of the first protocol.

        Args:
            tls: new.
            protocol: told that its connection is made, and later
                `IHandshakeListener.handshakeCompleted`.
            held: what the first protocol got, at most a few times `HELLO_BYTES`.
        """
        self._tls, self._protocol = tls, protocol
        protocol.makeConnection(self)
        if self._aborting or not self.connected:
            return
        self.resumeProducing()
        tls.buffer[: len(held)] = held
        self._shake_hands(tls, len(held))

    def _shake_hands(self, tls: ServerTls, size: int) -> None:
        try:
            done = tls.handshake(size)
        except SSL.Error:
            self._send(tls.output())  # an alert that says why
            self._end()
            return
        self._send(tls.output())
        if not done:
            return
        self._shaken = True
        self.negotiatedProtocol = tls.protocol
        tls.forget_handshake()
        self._protocol.handshakeCompleted()
        if self.connected:
            self._receive(tls, 0)
            tls.forget_handshake()  # again: most peers' first words come with their last of it

    def _receive(self, tls: ServerTls, size: int) -> None:
        try:
            data = tls.decrypt(size)
        except TlsBroken:
            self._send(tls.output())
            self._end()
            return
        if data and not self._aborting:
            self._protocol.dataReceived(data)
        if tls.peer_closed and self.connected:
            self._leave()

    def _send_more(self) -> None:
        """Send what the socket did not take before."""
        unsent = self._unsent
        if unsent is None:
            return
        try:
            sent = self._socket.send(unsent)
        except BlockingIOError:
            return
        except OSError:
            self.lose(Failure(CONNECTION_LOST))
            return
        if sent < len(unsent):
            del unsent[:sent]
            return
        self._unsent = None
        self._want(self._events & ~WRITABLE)
        if self._ending:
            self.lose(Failure(CONNECTION_DONE))
        elif self._paused and self._producer is not None:
            self._paused = False
            self._producer.resumeProducing()

    def lose(self, reason: Failure) -> None:
        """The connection is gone: close the socket and tell the protocol."""
        if not self.connected:
            return
        self.connected = False
        self._watch.remove(self._number, self._events)
        self._unsent = None
        self._events = 0
        with contextlib.suppress(OSError):
            if self._aborting:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            else:
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        producer, self._producer = self._producer, None
        protocol, self._protocol = self._protocol, None  # else both would wait for the collector
        if producer is not None:
            producer.stopProducing()
        protocol.connectionLost(reason)

    def _want(self, events: int) -> None:
        if self.connected and events != self._events:
            self._watch.change(self._number, self._events, events)
            self._events = events

    # --- sending

    def write(self, data: bytes) -> None:
        """Send, as far as the socket takes it now; the rest when it does."""
        if not self.connected or self._leaving or (self.disconnecting and self._producer is None):
            return
        if self._tls is None or not self._shaken:
            raise RuntimeError("nothing can be written before the handshake is done")
        try:
            cipher = self._tls.encrypt(data)
        except TlsBroken:
            self._end()
            return
        self._send(cipher)

    def writeSequence(self, data: Any) -> None:
        """Send all of these."""
        self.write(b"".join(data))

    def _send(self, cipher: bytes) -> None:
        if not cipher:
            return
        if self._unsent is not None:
            self._unsent += cipher
        else:
            try:
                sent = self._socket.send(cipher)
            except BlockingIOError:
                sent = 0
            except OSError:  # told by the socket when it is read next, unless nobody reads it
                self._reactor.callLater(0, self.lose, Failure(CONNECTION_LOST))
                return
            if sent == len(cipher):
                return
            self._unsent = bytearray(memoryview(cipher)[sent:])
            self._want(self._events | WRITABLE)
        if self._producer is not None and not self._paused and len(self._unsent) > UNSENT_BYTES:
            self._paused = True
            self._producer.pauseProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Ask ``producer`` to pause while much waits for the peer."""
        if not streaming:
            raise RuntimeError("only producers that push are served")
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        if self.connected:
            self._producer = producer
        else:
            producer.stopProducing()

    def unregisterProducer(self) -> None:
        """Nothing more comes of the producer."""
        self._producer = None
        self._paused = False
        if self.disconnecting:
            self._leave()

    # --- receiving

    def pauseProducing(self) -> None:
        """Read nothing more."""
        self._want(self._events & ~READABLE)

    def resumeProducing(self) -> None:
        """Read again."""
        if not self._ending and not self._aborting:
            self._want(self._events | READABLE)

    def stopProducing(self) -> None:
        """Close the connection."""
        self.loseConnection()

    # --- closing

    def loseConnection(self) -> None:
        """Close once all is sent and the peer has said that it sends no more, too.

        What it sends until then is read, and the protocol is told of it.
        """
        if self.disconnecting or not self.connected:
            return
        if not self._shaken:
            self.abortConnection()
            return
        self.disconnecting = True
        if self._producer is None:
            self._leave()

    def abortConnection(self) -> None:
        """Reset the connection; the protocol is told so in the next turn."""
        if self._aborting or not self.connected:
            return
        self._aborting = self.disconnecting = self._leaving = True
        self._unsent = None
        self._want(0)
        self._reactor.callLater(0, self.lose, Failure(ConnectionAborted()))

    def _leave(self) -> None:
        """Shut TLS down on our side; close when it is down on both."""
        tls = self._tls
        if tls is None or (self._leaving and not tls.peer_closed):
            return
        self.disconnecting = self._leaving = True
        down = tls.shutdown()
        self._send(tls.output())
        if down:
            self._end()

    def _end(self) -> None:
        """Read no more, and close once what waits is sent."""
        if self._ending or not self.connected:
            return
        self._ending = self.disconnecting = self._leaving = True
        self._want(self._events & ~READABLE)
        if self._unsent is None:
            self._reactor.callLater(0, self.lose, Failure(CONNECTION_DONE))

    # --- ends

    def peer_left(self) -> bool:
        """Whether nothing more can come, though nobody reads: the peer closed or reset."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def getPeer(self) -> IPv4Address | IPv6Address:
        """Address of the other end."""
        return _address(self._address)

    def getHost(self) -> IPv4Address | IPv6Address:
        """Address of this end."""
        return _address(self._socket.getsockname())


def _address(name: tuple[Any, ...]) -> IPv4Address | IPv6Address:
    return (IPv4Address if len(name) == 2 else IPv6Address)("TCP", *name)
