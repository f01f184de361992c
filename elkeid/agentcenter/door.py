"""The agents' door: who may come in, who must wait, and who is turned away, and how.

Each accepted connection waits here, in plain TCP, until its handshake's turn comes; then TLS and
the link take its place. When the process is full the door depends on others: while
ServiceDiscovery lists an AgentCenter with room the port is closed, so that agents dial that one
at once; otherwise it stays open, and streams are refused by a status, since an agent that finds
no open port gives up after seven tries, and with it all detection on its host.

Source: docs/protocol.md, "How agents are turned away".
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final
from typing import Protocol as Interface

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.agentcenter.handshakes import Handshakes
from elkeid.agentcenter.link import AgentLink
from elkeid.config import AgentCenterSettings
from elkeid.descriptors import REFUSED_SHARE, STRANGERS, UNBOUNDED
from elkeid.web.peers import Networks
from elkeid.wire.proxy import ProxyHeaderInvalid, read_proxy_header

WAIT_SHARE: Final = 0.8
"""Of `handshake_seconds` a connection may wait for its turn: with less than the rest its agent
would have given up before the handshake is done, and the work be in vain."""

SILENT_SECONDS: Final = 1.0
"""A connection that said nothing for so long makes room for others, when they are too many."""

REOPEN_SHARE: Final = 0.95
"""The closed door opens again below this share of the limit, not at every departure."""

REOPEN_SECONDS: Final = 1.0
"""Between two looks at whether a closed door may open."""


class Hall(Interface):
    """What lies behind the door; the gateway."""

    links: set[AgentLink]

    def link(self, peer: tuple[str, int], shaken: Callable[[], None]) -> AgentLink:
        """Make the protocol of a connection; ``shaken`` is called when its handshake is over."""


class Entry(Protocol):
    """One connection until its handshake begins."""

    log = Logger()
    transport: Any

    def __init__(self, door: "Door", host: str, port: int) -> None:
        self._door = door
        self.host = host
        self._proxied = door.is_proxy(host)
        self._introduced = False  # by a PROXY header
        self._peer = (host, port)
        self._held = b""
        self._deadline: IDelayedCall | None = None
        self._asked = False  # for its turn
        self.accepted_at = 0.0

    def connectionMade(self) -> None:
        """Wait for the first bytes, unless the connection is turned away."""
        self._door.arrived(self)

    def wait(self, clock: IReactorTime, seconds: float) -> None:
        """Say something and have a turn within ``seconds``."""
        self.accepted_at = clock.seconds()
        self._deadline = clock.callLater(seconds, self._late)

    def dataReceived(self, data: bytes) -> None:
        """The peer speaks: wait for a turn without reading on."""
        self._held += data
        if self._proxied and not self._read_proxy_header():
            return
        self.transport.pauseProducing()
        self._asked = True
        self._door.spoke(self)

    def _read_proxy_header(self) -> bool:
        """Learn from a proxy who the peer is; False while that, or what follows, has not come."""
        if not self._introduced:
            try:
                header = read_proxy_header(self._held)
            except ProxyHeaderInvalid as error:
                self.log.info("{host}: {error}", host=self.host, error=error)
                self.turn_away("proxy")
                return False
            if header is None:
                return False
            self._introduced = True
            self._held = self._held[header.size :]
            if header.peer is not None:
                self._peer = header.peer
                self.host = header.peer[0]  # whose turn it is
        return bool(self._held)

    def start(self) -> None:
        """Its turn has come: TLS and the link take this protocol's place."""
        self._cancel()
        if self.transport.peer_left():
            self.turn_away("left")
            return
        if not self._door.admits(self):
            return
        link = self._door.hall.link(self._peer, self._shaken)
        transport, held, self._held = self.transport, self._held, b""
        try:
            self._door.secure(transport, link, held)
        except Exception:
            self.log.failure("{host}: a handshake failed by a fault of ours", host=self.host)
            transport.abortConnection()

    def _shaken(self) -> None:
        self._door.left(self)

    def give_up(self) -> None:
        """The handshake stalled, and others wait: reset."""
        self.turn_away("stalled")

    def turn_away(self, reason: str) -> None:
        """Reset the connection: the peer tries its next address at once."""
        self._door.refused[reason] += 1
        self.transport.abortConnection()

    def _late(self) -> None:
        self._deadline = None
        self.turn_away("late" if self._asked else "silent")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The peer left before its turn, or was turned away."""
        self._cancel()
        self._door.left(self)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Door(Factory):
    """Opens and closes the agents' port, and lets connections in.

    Args:
        settings: limits.
        hall: what lies behind.
        clock: for deadlines.
        listen: opens the port for a factory and returns it.
        secure: puts TLS and a link in the place of a transport's protocol; gets what has come.
        others_have_room: whether agents find another AgentCenter with room.
        connections: as many as the process has open files for.
    """

    noisy = False
    log = Logger()

    def __init__(
        self,
        settings: AgentCenterSettings,
        hall: Hall,
        clock: IReactorTime,
        *,
        listen: Callable[["Door"], IListeningPort],
        secure: Callable[[Any, AgentLink, bytes], None],
        others_have_room: Callable[[], bool],
        connections: int = UNBOUNDED.agents,
    ) -> None:
        self.hall, self.secure = hall, secure
        self._settings, self._clock, self._listen = settings, clock, listen
        self._others_have_room, self._connections = others_have_room, connections
        self._proxies = Networks(settings.proxy_networks)
        self._port: Any = None
        self._open = False  # the port should be open, but for a full house
        self._reopen: IDelayedCall | None = None
        self._silent: dict[Entry, None] = {}  # said nothing yet; oldest first
        self._strangers: set[Entry] = set()  # all whose handshake is not over
        self.handshakes = Handshakes(clock, settings.handshake_rate)
        self.refused: Counter[str] = Counter()  # connections turned away, by reason
        self.closings = 0  # times the port was closed for a full house

    # --- the port

    def open(self) -> IListeningPort:
        """Open the port, for the first time or after `close`.

        Raises:
            OperatorError: it cannot be opened.
        """
        self._port = self._listen(self)
        self._open = True
        self.handshakes = Handshakes(self._clock, self._settings.handshake_rate)
        return self._port  # type: ignore[no-any-return]

    def close(self) -> Deferred[None]:
        """Close the port until it is opened again, and forget who waits for a turn."""
        self._open = False
        if self._reopen is not None:
            self._reopen.cancel()
            self._reopen = None
        self.handshakes.stop()
        for entry in [each for each in self._strangers if each.transport is not None]:
            entry.turn_away("stopping")
        return self._close_port()

    def _close_port(self) -> Deferred[None]:
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        closed: Deferred[None] = maybeDeferred(port.stopListening)
        return closed

    @property
    def is_open(self) -> bool:
        """Whether agents find an open port here."""
        return self._port is not None

    @property
    def is_closed(self) -> bool:
        """Whether the port was closed by `close`, and not for a full house."""
        return not self._open

    @property
    def full(self) -> bool:
        """Whether as many agents' connections are here as the limit allows.

        Those whose handshake is not over have a limit of their own: else anybody could close
        the port, without the agents' key.
        """
        return len(self.hall.links) >= self._settings.connection_limit

    @property
    def silent(self) -> int:
        """Connections that have not said anything yet."""
        return len(self._silent)

    def turns_away(self) -> bool:
        """Whether to send agents elsewhere: the house is full, and another has room."""
        return self.full and self._others_have_room()

    def _shut(self) -> None:
        """Close the port until there is room here, or nowhere else."""
        if self._port is None or not self._open:
            return
        self.closings += 1
        self.log.warn(
            "{n} connections are here, the limit is {limit}, and another AgentCenter has room: "
            "the port is closed until there is room",
            n=len(self.hall.links),
            limit=self._settings.connection_limit,
        )
        self._close_port()
        self._reopen = self._clock.callLater(REOPEN_SECONDS, self._look)

    def _look(self) -> None:
        """Open again when there is room here, or when agents have nowhere else to go."""
        self._reopen = None
        room = len(self.hall.links) <= self._settings.connection_limit * REOPEN_SHARE
        if room or not self._others_have_room():
            try:
                self._port = self._listen(self)
            except Exception as error:
                self.log.error("cannot open the port again: {error}; trying on", error=error)
            else:
                self.log.info("the port is open again")
                return
        self._reopen = self._clock.callLater(REOPEN_SECONDS, self._look)

    # --- connections

    def room(self) -> int:
        """How many more connections may be accepted now; see `sockets.Entrance`."""
        room = self._room()
        if room > 0 or not self._silent:
            return room
        oldest = next(iter(self._silent))
        if self._clock.seconds() - oldest.accepted_at >= SILENT_SECONDS:
            oldest.turn_away("crowded")
        return self._room()

    def _room(self) -> int:
        """By the limit of strangers, and by open files; links are strangers until shaken."""
        here = len(self.hall.links) + len(self._strangers)
        return min(STRANGERS - len(self._strangers), self._connections - here)

    def is_proxy(self, host: str) -> bool:
        """Whether a connection from this address must begin with a PROXY header."""
        return host in self._proxies

    def buildProtocol(self, addr: IAddress | None) -> Entry:
        """Let a connection wait here."""
        address: Any = addr
        return Entry(self, address.host, address.port)

    def arrived(self, entry: Entry) -> None:
        """A connection was accepted."""
        if not self.admits(entry):
            return
        self._strangers.add(entry)
        self._silent[entry] = None
        entry.wait(self._clock, self._settings.handshake_seconds * WAIT_SHARE)

    def admits(self, entry: Entry) -> bool:
        """Whether there is room behind the door; an entry without any is turned away."""
        if not self.full:
            return True
        limit = self._settings.connection_limit
        if self._others_have_room():
            entry.turn_away("full")
            self._shut()
            return False
        if len(self.hall.links) >= limit + max(limit // REFUSED_SHARE, 1):
            entry.turn_away("full")
            return False
        return True

    def spoke(self, entry: Entry) -> None:
        """A connection is ready for its handshake."""
        self._silent.pop(entry, None)
        self.handshakes.enter(entry)

    def left(self, entry: Entry) -> None:
        """A connection's handshake is over, or the connection itself."""
        if entry not in self._strangers:
            return
        self._strangers.discard(entry)
        self._silent.pop(entry, None)
        self.handshakes.leave(entry)
