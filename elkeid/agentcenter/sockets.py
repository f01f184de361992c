"""The agents' TCP port: accepts no more than there is room for, reads no more than a turn allows.

Twisted reads once from every ready connection before timers run. With thousands of ready
connections that turn lasts for seconds; here it is cut where its budget ends, and who did not
get to read is first in the next turn.
"""

import socket
from collections.abc import Callable
from typing import Any, Final
from typing import Protocol as Interface

from twisted.internet import main
from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime
from twisted.internet.tcp import Port, Server
from twisted.python.failure import Failure

BACKLOG: Final = 4096
"""Connections the kernel holds for us: after a restart a whole fleet dials within seconds."""

ACCEPTS: Final = 100
"""Connections accepted in one reactor turn: 5 ms of work."""

CROWDED_SECONDS: Final = 0.1
"""Until the port looks for room again; meanwhile the kernel holds who comes."""

READ_BYTES: Final = 64 << 10
"""Read from one connection at once: four TLS records of the largest size."""

TURN_BYTES: Final = 8 << 20
"""Read from all connections in one reactor turn: 128 reads of the largest size."""

TURN_SECONDS: Final = 0.1
"""Spent on what was read in one reactor turn. Many small reads hold more work than their bytes
tell, and timers must not be late by more than a quarter of a second."""

# A vanished host sends no FIN. An idle connection is asked after 45 s and lost after 75 s; one
# that owes us acknowledgements is lost after 70 s (this option also ends the asking).
SOCKET_OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 45),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 70_000),  # milliseconds
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class Reader(Interface):
    """A connection, as far as a turn needs to know it."""

    deferred: bool

    def read_on(self) -> None:
        """Read, unless the connection is paused or gone by now."""


class ReadTurn:
    """What all connections together may still read in this reactor turn.

    It is never told that a turn began: a budget that lasted for many turns costs the one who
    meets its end a single turn of waiting.

    Args:
        clock: gives the next turn.
        monotonic: seconds that only go forward.
    """

    __slots__ = ("_clock", "_waiting", "bytes_left", "cut", "monotonic", "seconds_left")

    def __init__(self, clock: IReactorTime, monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self.monotonic = monotonic
        self.bytes_left = TURN_BYTES
        self.seconds_left = TURN_SECONDS
        self.cut = 0  # turns that ended for their budget
        self._waiting: list[Reader] = []

    def wait(self, reader: Reader) -> None:
        """Let ``reader`` read in the next turn, in the order of these calls."""
        if reader.deferred:
            return
        reader.deferred = True
        if not self._waiting:
            self.cut += 1
            self._clock.callLater(0, self._next)
        self._waiting.append(reader)

    def _next(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.bytes_left, self.seconds_left = TURN_BYTES, TURN_SECONDS
        for reader in waiting:
            reader.deferred = False
            reader.read_on()


class AgentSocket(Server):
    """One accepted connection."""

    server: "AgentsPort"
    bufferSize = READ_BYTES
    reading = False
    deferred = False

    def startReading(self) -> None:
        """See `FileDescriptor`."""
        self.reading = True
        super().startReading()

    def stopReading(self) -> None:
        """See `FileDescriptor`."""
        self.reading = False
        super().stopReading()

    def doRead(self) -> Any:
        """Read once, if this turn has anything left."""
        turn = self.server.turn
        if turn.bytes_left <= 0 or turn.seconds_left <= 0:
            turn.wait(self)
            return None
        began = turn.monotonic()
        try:
            data = self.socket.recv(self.bufferSize)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        self.protocol.dataReceived(data)
        turn.bytes_left -= len(data)
        turn.seconds_left -= turn.monotonic() - began
        return None

    def read_on(self) -> None:
        """Read outside the reactor's own round; a loss is told as the reactor tells it."""
        if not self.reading or not self.connected:
            return
        why = self.doRead()
        if why is None:
            return
        self.stopReading()
        if why is main.CONNECTION_DONE:
            self.readConnectionLost(Failure(why))
        else:
            self.connectionLost(Failure(why))


class Entrance(Interface):
    """Where accepted connections go."""

    def room(self) -> int:
        """How many more connections may be accepted now."""


class AgentsPort(Port):
    """Listens for agents.

    Args:
        port: 0 lets the system choose.
        factory: makes the protocols.
        interface: IP address; ``::`` is every address.
        reactor: where.
        entrance: asked for room before each round of accepting, and again soon if it has none.
        turn: shared by all connections.
    """

    transport = AgentSocket

    def __init__(
        self,
        port: int,
        factory: IProtocolFactory,
        interface: str,
        reactor: Any,
        *,
        entrance: Entrance,
        turn: ReadTurn,
    ) -> None:
        super().__init__(port, factory, BACKLOG, interface, reactor)
        self._clock: IReactorTime = reactor
        self._entrance = entrance
        self._pause: IDelayedCall | None = None
        self.turn = turn

    def createInternetSocket(self) -> socket.socket:
        """A socket whose options the accepted ones inherit."""
        made: socket.socket = super().createInternetSocket()
        for level, option, value in SOCKET_OPTIONS:
            made.setsockopt(level, option, value)
        return made

    def doRead(self) -> None:
        """Accept what is there, as far as there is room."""
        self.numberAccepts = min(ACCEPTS, self._entrance.room())
        if self.numberAccepts > 0:
            super().doRead()
        if self._entrance.room() <= 0 and self._pause is None and not self.disconnecting:
            self.stopReading()
            self._pause = self._clock.callLater(CROWDED_SECONDS, self._accept_on)

    def _accept_on(self) -> None:
        self._pause = None
        self.startReading()

    def stopListening(self, *reason: Any) -> Any:
        """Close the port; those that were not accepted are reset."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        return super().stopListening(*reason)
