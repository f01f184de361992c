"""Unix seconds that never go back, for timers.

Twisted's reactor counts by the wall clock. When that is set back by an hour, every timer that is
pending waits an hour longer: nobody is polled, no lease is renewed, no peer is asked for a sign
of life.
"""

import time
from collections.abc import Callable

from twisted.logger import Logger

SPEED = 0.9
"""Of this clock while it is ahead of one that was set back: timers are late by a tenth at most, and
an hour is made up in ten."""

TOLD_SECONDS = 1.0
"""A smaller step back is nothing to tell of."""


class ForwardClock:
    """The wall clock, as long as that goes forward.

    Args:
        wall: seconds since the epoch.
        monotonic: seconds that only go forward.
    """

    log = Logger()

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._last = wall()
        self._since: float | None = None  # when it was last asked while it was ahead

    def __call__(self) -> float:
        """Seconds since the epoch; ahead of the wall clock for a while after a step back."""
        now = self._wall()
        if self._since is None and now >= self._last:
            self._last = now
            return now
        at = self._monotonic()
        if self._since is None:
            self._tell(self._last - now)
            self._since = at
        least = self._last + (at - self._since) * SPEED
        if now >= least:
            self._last, self._since = now, None
        else:
            self._last, self._since = least, at
        return self._last

    def _tell(self, seconds: float) -> None:
        if seconds > TOLD_SECONDS:
            self.log.warn(
                "the clock was set back by {seconds:.0f} s: times that are shown are ahead of it "
                "for {hours:.1f} hours, or until this process is started again",
                seconds=seconds,
                hours=seconds / (1 - SPEED) / 3600,
            )
