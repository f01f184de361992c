"""How late the reactor calls its timers: the one number that tells a server that is overloaded.

A tick is due at fixed times. When one call is late, so are all that were due meanwhile; each
counts, so that one stall of a second is not hidden among a hundred ticks on time.
"""

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from math import inf
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

TICK_SECONDS: Final = 0.02
"""Fifty calls a second cost 0.1 % of a core."""

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, inf)

MOST_TICKS: Final = 5_000
"""Counted for one stall, 100 s of it: a suspended machine was not busy."""


class LatenessMonitor:
    """Measures one reactor.

    Args:
        clock: whose timers.
        monotonic: seconds that only go forward.
    """

    def __init__(self, clock: IReactorTime, monotonic: Callable[[], float]) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._due = 0.0
        self._timer: IDelayedCall | None = None
        self._counts = [0] * len(BOUNDS)
        self._sum = 0.0
        self.worst = 0.0  # seconds

    def start(self) -> None:
        """Measure from now on."""
        self._due = self._monotonic() + TICK_SECONDS
        self._timer = self._clock.callLater(TICK_SECONDS, self._tick)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        late = max(0.0, self._monotonic() - self._due)
        self.worst = max(self.worst, late)
        for _ in range(MOST_TICKS):
            self._counts[bisect_left(BOUNDS, late)] += 1
            self._sum += late
            if late < TICK_SECONDS:
                break
            late -= TICK_SECONDS
        self._due = self._monotonic() + TICK_SECONDS
        self._timer = self._clock.callLater(TICK_SECONDS, self._tick)

    def figures(self) -> tuple[list[tuple[float, int]], float]:
        """Upper bounds, each with the number of ticks at most so late, and the sum of lateness."""
        return list(zip(BOUNDS, accumulate(self._counts), strict=True)), self._sum
