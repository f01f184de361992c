"""Work that is too much for one reactor turn, shared out fairly between those that have some.

A connection may bring, in one read, messages that take a second to work on; it does so in slices.
Were each slice a timer of its own, all of them would run in the same turn, and a hundred such
connections would hold up everybody else for as long as before.
"""

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

TURN_SECONDS: Final = 0.03
"""Spent on slices in one reactor turn, over all that wait; a last one may take it beyond."""


class Slices:
    """Does pieces of work in the order they came, as many in a turn as others can stand.

    Args:
        clock: its next turn is the reactor's.
        monotonic: seconds that only go forward.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, monotonic: Callable[[], float]) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._waiting: dict[Callable[[], None], None] = {}  # oldest first
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: Callable[[], None]) -> None:
        """Call ``work`` once, in a later turn, behind what waits already."""
        self._waiting[work] = None
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._serve)

    def discard(self, work: Callable[[], None]) -> None:
        """Do not call it; if it does not wait, do nothing."""
        self._waiting.pop(work, None)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _serve(self) -> None:
        self._timer = None
        until = self._monotonic() + TURN_SECONDS
        for _ in range(len(self._waiting)):  # what is added meanwhile is for the next turn
            if not self._waiting:
                return
            work = next(iter(self._waiting))
            del self._waiting[work]
            try:
                work()
            except Exception:
                self.log.failure("work that was put off failed")
            if self._monotonic() > until:
                break
        if self._waiting and self._timer is None:
            self._timer = self._clock.callLater(0, self._serve)
