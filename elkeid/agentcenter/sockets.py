"""The agents' TCP port: accepts no more connections than there is room for."""

import socket
from typing import Any, Final
from typing import Protocol as Interface

from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime
from twisted.internet.tcp import Port

from elkeid.agentcenter.tls_socket import TlsSocket
from elkeid.agentcenter.watch import SocketWatch

BACKLOG: Final = 4096
"""Connections the kernel holds for us: after a restart a whole fleet dials within seconds."""

ACCEPTS: Final = 100
"""Connections accepted in one reactor turn: 5 ms of work."""

CROWDED_SECONDS: Final = 0.1
"""Until the port looks for room again; meanwhile the kernel holds who comes."""

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
        watch: shared by all connections.
        shared: by several processes of this host; the kernel spreads connections over them.
    """

    transport: Any = TlsSocket

    def __init__(
        self,
        port: int,
        factory: IProtocolFactory,
        interface: str,
        reactor: Any,
        *,
        entrance: Entrance,
        watch: SocketWatch,
        shared: bool = False,
    ) -> None:
        super().__init__(port, factory, BACKLOG, interface, reactor)
        self._shared = shared
        self._clock: IReactorTime = reactor
        self._entrance = entrance
        self._pause: IDelayedCall | None = None
        self.watch = watch

    def createInternetSocket(self) -> socket.socket:
        """A socket whose options the accepted ones inherit."""
        made: socket.socket = super().createInternetSocket()
        for level, option, value in SOCKET_OPTIONS:
            made.setsockopt(level, option, value)
        if self._shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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
