"""Readiness of many sockets, behind one descriptor of the reactor.

The reactor does for each ready descriptor what suits a server of few: it makes a log context,
looks up its name, checks it. A gateway has thousands of sockets that are ready with one small
message each, and this costs as much as the message. So an epoll of our own holds them, and
is itself what the reactor watches.

Under load, messages come one by one, and a turn for each costs a third of the message. So once
turns follow each other closely, the reactor no longer watches: turns come by a timer, until one
finds nothing.
"""

import select
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from typing import Protocol as Interface

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT

TURN_BYTES: Final = 8 << 20
"""Read in one reactor turn over all sockets; those that are left go first in the next one. It
bounds how long callers of the APIs wait."""

TURN_SECONDS: Final = 0.03
"""Spent on what was read in one reactor turn. Many small reads hold more work than their bytes
tell; with the slices that wait, and what other faces do, a turn stays far below a quarter of a
second, and no step of it takes more than 50 ms."""

TURN_SOCKETS: Final = 2_048
"""Sockets served in one reactor turn: some 50 ms of small messages."""


PAUSE_SECONDS: Final = 0.005
"""From the start of a turn to that of the next, while sockets are busy. What a turn costs (a
round of the reactor, a write to the event log) is then shared by all that came meanwhile, and
agents do not wait for what they send."""

BUSY_TURNS: Final = 16
"""Turns in a row that were closer than `PAUSE_SECONDS`, after which the pause is kept: a
handshake alone does not take as many."""


class Watched(Interface):
    """A socket."""

    def ready(self, events: int) -> int:
        """Read or write; return how many bytes were read."""

    def lose(self, reason: Failure) -> None:
        """The connection is gone."""


class Turn(Interface):
    """What is told when sockets are served, so that it works once for all of them."""

    def begin_turn(self) -> None:
        """Sockets are about to be served."""

    def end_turn(self) -> None:
        """They were."""


@implementer(IReadDescriptor)
class SocketWatch:
    """Tells sockets that they are ready, in turns that others can stand.

    Args:
        reactor: `IReactorFDSet` and `IReactorTime`; it watches this, while there is a socket.
        turn: told of each; the event log.
        monotonic: seconds that only go forward.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, turn: Turn, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._reactor, self._turn = reactor, turn
        self._monotonic = monotonic
        self._epoll = select.epoll()
        self._sockets: dict[int, Watched] = {}  # by descriptor
        self._left: Sequence[tuple[int, int]] = ()  # ready, but not served in the last turn
        self.cut = 0  # turns that ended before everybody was served
        self._began = 0.0  # the last turn
        self._busy = 0  # turns in a row that were close to the one before
        self._next: IDelayedCall | None = None  # turn, while the reactor does not watch

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, number: int, socket: Watched, events: int) -> None:
        """Watch a descriptor; with no events, only once `change` asks for some."""
        if not self._sockets and self._next is None:
            self._reactor.addReader(self)
        self._sockets[number] = socket
        if events:
            self._epoll.register(number, events)

    def change(self, number: int, old: int, new: int) -> None:
        """Watch a descriptor for other events than before."""
        if not old:
            self._epoll.register(number, new)
        elif new:
            self._epoll.modify(number, new)
        else:  # a lost connection would be told again and again
            self._epoll.unregister(number)

    def remove(self, number: int, events: int) -> None:
        """Watch a descriptor no more; before it is closed."""
        del self._sockets[number]
        if events:
            self._epoll.unregister(number)
        if not self._sockets:
            self._left = ()
            if self._next is None:
                self._reactor.removeReader(self)
            elif self._next.active():
                self._next.cancel()
                self._next = None

    # --- what the reactor calls

    def fileno(self) -> int:
        """Of the epoll, which is readable when a socket is ready."""
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """For the reactor's log context."""
        return "agents"

    def doRead(self) -> None:
        """Serve what is ready; once turns follow each other closely, leave the next to a timer."""
        began, last = self._monotonic(), self._began
        self._take_turn(began)
        self._busy = self._busy + 1 if began - last < PAUSE_SECONDS else 0
        if self._busy >= BUSY_TURNS and self._sockets:
            self._reactor.removeReader(self)
            self._pause(began)

    def _pause(self, began: float) -> None:
        wait = 0.0 if self._left else max(0.0, began + PAUSE_SECONDS - self._monotonic())
        self._next = self._reactor.callLater(wait, self._go_on)

    def _go_on(self) -> None:
        """A turn by the timer; when it finds nothing, or fails, the reactor watches again."""
        began, found = self._monotonic(), False
        try:
            found = self._take_turn(began)
        finally:
            self._next = None
            if found and self._sockets:
                self._pause(began)
            else:
                self._busy = 0
                if self._sockets:
                    self._reactor.addReader(self)

    def _take_turn(self, began: float) -> bool:
        """Serve what is ready; tell whether there was something."""
        self._began = began
        events = self._left or self._epoll.poll(0, TURN_SOCKETS)
        self._left = ()
        self._turn.begin_turn()
        try:
            self._serve(events)
        finally:
            self._turn.end_turn()
        return bool(events)

    def _serve(self, events: Sequence[tuple[int, int]]) -> None:
        get, monotonic = self._sockets.get, self._monotonic
        read, until = 0, monotonic() + TURN_SECONDS
        for index, (number, happened) in enumerate(events, 1):
            socket = get(number)
            if socket is None:
                continue
            try:
                read += socket.ready(happened)
            except Exception:
                failure = Failure()
                self.log.failure("a connection failed", failure)
                socket.lose(failure)
            if read >= TURN_BYTES or monotonic() > until:
                self._left = events[index:]
                self.cut += bool(self._left)
                return

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lets go of all it watches."""
        for socket in list(self._sockets.values()):
            socket.lose(Failure(CONNECTION_LOST))
