"""Lines of a log that peers bring about: some at once, then a few; the rest are only counted.

A peer that misbehaves thousands of times a second must not fill the disk with complaints.
"""

from collections.abc import Callable
from typing import Any, Final

from twisted.logger import Logger, LogLevel

LINES_BURST: Final = 100
"""Lines at once: enough to see what goes on."""

LINES_RATE: Final = 0.5
"""Lines a second after that: 6 MB a day."""


class LimitedLog:
    """Says things through a logger, at most so often.

    Args:
        log: where lines go.
        clock: seconds that only go forward.

    Attributes:
        left_out: lines that were not written, so far.
    """

    def __init__(self, log: Logger, clock: Callable[[], float]) -> None:
        self._log, self._clock = log, clock
        self._lines, self._counted_at = float(LINES_BURST), clock()
        self._told = 0  # of those left out
        self.left_out = 0

    def info(self, form: str, **fields: Any) -> None:
        """Say it, unless too much was said; then the next line tells how much was left out."""
        self._say(LogLevel.info, form, fields)

    def warn(self, form: str, **fields: Any) -> None:
        """The same as a warning."""
        self._say(LogLevel.warn, form, fields)

    def _say(self, level: Any, form: str, fields: dict[str, Any]) -> None:
        now = self._clock()
        earned = max(0.0, now - self._counted_at) * LINES_RATE
        self._lines, self._counted_at = min(LINES_BURST, self._lines + earned), now
        if self._lines < 1:
            self.left_out += 1
            return
        self._lines -= 1
        if self._told != self.left_out:
            count, self._told = self.left_out - self._told, self.left_out
            self._log.emit(level, "{count} lines like the next were left out", count=count)
        self._log.emit(level, form, **fields)
