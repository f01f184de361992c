"""How old things have surely become, whatever the clock says.

A clock that jumps ahead by years would make everything old at once, and retention would delete it
all. So there is a second time beside the clock's, which is kept in the database. It follows the
clock, but forward at most twice as fast as time passes in a running process: what is kept for 90
days stays for 45 at least, and is not touched any more once the clock is right again. After a
server was off for a week, a week later nothing is kept too long.

Source: docs/settings.md, "[manager]".
"""

from collections.abc import Callable
from typing import Final

from attrs import frozen
from twisted.logger import Logger

from elkeid.manager.store.aging import aged_until, set_aged_until
from elkeid.manager.store.store import Store

CATCH_UP: Final = 2.0
"""Seconds by which things age in one second, at most, while the clock is ahead."""

REMARK_SECONDS: Final = 86400.0
"""A lead of the clock that operators are told of; a shorter stop of a server is nothing."""


@frozen
class _Line:
    """Things had aged until ``at`` (unix seconds) when ``seen`` (monotonic seconds) was."""

    at: float
    seen: float


class Aging:
    """Tells what time it is for retention.

    Args:
        store: open when it is first asked.
        wall: seconds since the epoch.
        monotonic: seconds that pass as they do, whatever the clock is set to.
    """

    log = Logger()

    def __init__(
        self, store: Store, wall: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._store, self._wall, self._monotonic = store, wall, monotonic
        self._line: _Line | None = None
        self._told = False  # that the clock is ahead

    async def now(self) -> float:
        """Unix seconds, not later than the clock's, by which ages are to be told.

        Raises:
            StoreError: the database does not say, or does not take, how far it was.
        """
        line = self._line
        if line is None:
            line = _Line(await self._store.write(aged_until, self._wall()), self._monotonic())
        at, seen = self._reached(line), self._monotonic()
        self._line = _Line(at, seen)
        self._tell()
        await self._store.write(set_aged_until, at)
        return min(at, self._wall())

    def _reached(self, line: _Line) -> float:
        may = line.at + CATCH_UP * max(0.0, self._monotonic() - line.seen)
        # A clock that was set back takes nothing from it: what was seen to pass has passed.
        return max(line.at, min(self._wall(), may))

    @property
    def ahead(self) -> float:
        """Seconds by which the clock is ahead of the time that was seen to pass."""
        return 0.0 if self._line is None else max(0.0, self._wall() - self._reached(self._line))

    def remarks(self) -> list[str]:
        """What operators should know, for ``/ready``."""
        return [self._words()] if self.ahead > REMARK_SECONDS else []

    def _tell(self) -> None:
        """Say once that it begins, and once that it is over."""
        ahead = self.ahead > REMARK_SECONDS
        if ahead and not self._told:
            self.log.warn("{words}", words=self._words())
        elif self._told and not ahead:
            self.log.info("retention goes by the clock again")
        self._told = ahead

    def _words(self) -> str:
        return (
            f"the clock is {self.ahead / 86400:.1f} days ahead of the time that was seen to pass: "
            "if it is wrong, set it right; until then old data go at most twice as fast as time "
            "passes"
        )
