"""Saying goodbye to many connections, not all of them in one moment."""

from collections.abc import Iterable
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

TICK_SECONDS: Final = 0.02
"""Between two rounds of goodbyes; other work goes on in between."""

ROUND: Final = 50
"""Connections told in one round even if all could wait: a few milliseconds of work."""


class Leaving(Protocol):
    """A connection that can be told that we leave."""

    def go_away(self) -> None:
        """Tell the peer to open no more calls, end those under way, read them to their end."""


class Farewell:
    """Tells connections goodbye, spread over some seconds.

    Agents that are told at once come back at once, to whichever gateway is next.

    Args:
        links: to tell; they are read to their end, which takes each its own time.
        clock: for the rounds.
        seconds: until the last one is told; 0 is as fast as `ROUND` allows.

    Attributes:
        over: fires when all are gone; cancel it to say no more goodbyes.
    """

    def __init__(self, links: Iterable[Leaving], clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self._began, self._seconds = clock.seconds(), seconds
        self._present = set(links)
        self._untold = list(self._present)
        self._total = len(self._untold)
        self._call: IDelayedCall | None = None
        self.over: Deferred[None] = Deferred(lambda _: self._stop())
        self._tell()
        self._finish_if_all_are_gone()

    def __len__(self) -> int:
        """Connections that are not gone yet."""
        return len(self._present)

    def gone(self, link: Leaving) -> None:
        """A connection is gone, whoever ended it."""
        self._present.discard(link)
        self._finish_if_all_are_gone()

    def _finish_if_all_are_gone(self) -> None:
        if not self._present and not self.over.called:
            self._stop()
            self.over.callback(None)

    def _tell(self) -> None:
        self._call = None
        elapsed = self._clock.seconds() - self._began
        if elapsed < self._seconds:
            due = 1 + int(self._total * elapsed / self._seconds)
            count = due - (self._total - len(self._untold))
            pause = max(self._seconds / max(self._total, 1), TICK_SECONDS)
            pause = min(pause, self._seconds - elapsed)
        else:
            count, pause = ROUND, 0.0
        for _ in range(count):
            if not self._untold:
                return  # also when the last one there is gone at once
            link = self._untold.pop()
            if link in self._present:
                link.go_away()
        if self._untold:
            self._call = self._clock.callLater(pause, self._tell)

    def _stop(self) -> None:
        self._untold = []
        if self._call is not None:
            self._call.cancel()
            self._call = None
