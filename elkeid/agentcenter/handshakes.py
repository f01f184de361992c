"""Which of the accepted connections may shake hands now; no I/O.

A handshake costs more than a millisecond of CPU, so after a restart a fleet's would hold up
everything else. They are done in turn: a bounded number under way, a bounded rate. A connection
asks for its turn with its first bytes, so that one that says nothing takes nobody's. Turns go to
the address with the fewest under way: hosts with one address each are not kept out by one that
opens hundreds of connections. A handshake that waits for its peer for long costs nothing
meanwhile: it goes on, but lets others have its turn, so that peers far away or busy, as all are
after a storm, do not slow the rest down.
"""

from collections import deque
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

UNDER_WAY: Final = 64
"""Handshakes at once: 80 ms of work if all go on in one reactor turn."""

SLOW_SECONDS: Final = 0.25
"""A handshake that takes longer waits for its peer: others have its turn."""

SLOW_LIMIT: Final = 1024
"""Such handshakes at once, of some 50 KiB each. At the default rate they would have to take two
seconds each to be so many."""

TURN_STARTS: Final = 16
"""Handshakes begun at once when many may begin: 10 ms of work; the next ones a moment later."""

STALLED_SECONDS: Final = 4.0
"""A slow one is given up after so long when they are too many; an honest one takes two round
trips."""


class Guest(Protocol):
    """A connection that wants to shake hands."""

    host: str

    def start(self) -> None:
        """Its turn has come."""

    def give_up(self) -> None:
        """It took too long, and others wait; it must call `Handshakes.leave`."""


class Handshakes:
    """Gives turns.

    Args:
        clock: for the rate and for stalled handshakes.
        rate: handshakes begun in a second, at most; a burst of `UNDER_WAY` is allowed.
    """

    def __init__(self, clock: IReactorTime, rate: float) -> None:
        self._clock, self._rate = clock, rate
        self._tokens, self._at = float(UNDER_WAY), clock.seconds()
        self._under_way: dict[Guest, float] = {}  # guest -> start; oldest first
        self._slow: dict[Guest, float] = {}  # the same, of those that let others go on
        self._hosts: dict[str, int] = {}  # address -> its handshakes of both kinds
        self._waiting: dict[str, deque[Guest]] = {}  # address -> its guests; none is empty
        self._fresh: deque[str] = deque()  # addresses that wait and have nothing under way
        self._timer: IDelayedCall | None = None
        self._serving = False
        self.waiting = 0

    @property
    def under_way(self) -> int:
        """Handshakes begun and not over, but for the slow ones."""
        return len(self._under_way)

    @property
    def slow(self) -> int:
        """Handshakes that wait for their peers."""
        return len(self._slow)

    def enter(self, guest: Guest) -> None:
        """Give ``guest`` its turn, now or later."""
        queue = self._waiting.get(guest.host)
        if queue is None:
            queue = self._waiting[guest.host] = deque()
            if guest.host not in self._hosts:
                self._fresh.append(guest.host)
        queue.append(guest)
        self.waiting += 1
        self._serve()

    def leave(self, guest: Guest) -> None:
        """The handshake is over, well or not, or the guest is gone before its turn."""
        began = self._under_way.pop(guest, None)
        if began is None:
            began = self._slow.pop(guest, None)
        if began is not None:
            left = self._hosts.pop(guest.host) - 1
            if left:
                self._hosts[guest.host] = left
            elif guest.host in self._waiting:
                self._fresh.append(guest.host)
            self._serve()
            return
        queue = self._waiting.get(guest.host)
        if queue is not None and guest in queue:
            queue.remove(guest)
            self.waiting -= 1
            if not queue:
                self._empty(guest.host)

    def stop(self) -> None:
        """Give no more turns."""
        self._rate = 0.0
        self._tokens = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _empty(self, host: str) -> None:
        del self._waiting[host]
        if host not in self._hosts:
            self._fresh.remove(host)

    def _serve(self) -> None:
        if self._serving or not self.waiting or not self._rate:
            return
        self._serving = True  # a guest that fails at once leaves while we are here
        try:
            self._give_turns()
        finally:
            self._serving = False

    def _give_turns(self) -> None:
        now = self._clock.seconds()
        self._tokens = min(float(UNDER_WAY), self._tokens + (now - self._at) * self._rate)
        self._at = now
        for _ in range(TURN_STARTS):
            if not self.waiting:
                return
            if len(self._under_way) >= UNDER_WAY:
                began = next(iter(self._under_way.values()))
                wait = began + SLOW_SECONDS - now
                if len(self._slow) >= SLOW_LIMIT:
                    wait = max(wait, next(iter(self._slow.values())) + STALLED_SECONDS - now)
                self._wake(wait)
                return
            if self._tokens < 1:
                self._wake((1 - self._tokens) / self._rate)
                return
            self._tokens -= 1
            guest = self._next()
            self._under_way[guest] = now
            self._hosts[guest.host] = self._hosts.get(guest.host, 0) + 1
            guest.start()
        if self.waiting:
            self._wake(0.0)

    def _next(self) -> Guest:
        """Take the next guest off the queues."""
        if self._fresh:
            host = self._fresh.popleft()
        else:  # so every waiting address is among the few that have something under way
            host = min((h for h in self._hosts if h in self._waiting), key=self._hosts.__getitem__)
        queue = self._waiting[host]
        guest = queue.popleft()
        self.waiting -= 1
        if not queue:
            del self._waiting[host]
        return guest

    def _wake(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.callLater(max(seconds, 0.001), self._woken)

    def _woken(self) -> None:
        self._timer = None
        if len(self._under_way) >= UNDER_WAY and self.waiting:
            self._let_others_go_on()
        self._serve()

    def _let_others_go_on(self) -> None:
        now = self._clock.seconds()
        for guest, began in list(self._under_way.items()):
            if now - began < SLOW_SECONDS:
                return
            if len(self._slow) >= SLOW_LIMIT:
                stalled, since = next(iter(self._slow.items()))
                if now - since < STALLED_SECONDS:
                    return
                stalled.give_up()
            # It may have left meanwhile: giving up tells its protocol of the loss.
            if self._under_way.pop(guest, None) is not None:
                self._slow[guest] = began
