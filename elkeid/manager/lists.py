"""Long lists by pages: how many rows match, and where pages began, both as of a moment ago.

What is listed, and how it is read and counted, is the caller's. A short list is as it is: it is
counted for every page, and read from its beginning.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredLock

from elkeid.errors import StoreError
from elkeid.manager.anchors import Anchors
from elkeid.manager.store.starts import Start

EXACT_ROWS = 10_000
"""Up to so many matches are counted for every page; of more, a number may be seconds old."""

COUNT_SECONDS = 5.0
"""How old the number of matches of a large list may be."""

COUNT_AGAIN_SECONDS = 3.0
"""From this age on it is counted anew, meanwhile the old one is shown."""

COUNTS = 256
"""Lists whose numbers of matches are remembered."""

KEY_CHARACTERS = 4_096
"""Of a list that takes longer to name neither the number nor places are remembered."""


class Page(Protocol):
    """A page that was read."""

    @property
    def total(self) -> int:
        """How many rows the whole list has."""

    @property
    def starts(self) -> tuple[Start, ...]:
        """Places in the list that were found."""


P = TypeVar("P", bound=Page)


@frozen
class _Counted:
    total: int
    at: float


class LongLists:
    """Remembers numbers of matches, and places.

    Args:
        wall: seconds since the epoch.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.anchors = Anchors(wall)
        self._wall = wall
        self._counts: dict[str, _Counted] = {}  # the last ones asked for
        self._counting: set[str] = set()
        self._turns = DeferredLock()

    async def page(
        self,
        key: str,
        offset: int,
        look: Callable[[int | None, Start | None], Awaitable[P]],
        count: Callable[[], Awaitable[int]],
    ) -> P:
        """Read a page.

        The total is exact up to `EXACT_ROWS`, and above at most `COUNT_SECONDS` old; a deep page
        is where it was at most `ANCHOR_SECONDS` ago.

        Args:
            key: of the list: what selects and orders it.
            offset: rows before the page.
            look: reads it, given the total, if that is known already, and a place in the list at
                most ``offset`` rows after its beginning.
            count: counts the whole list; called beside, after this has returned.
        """
        known = self._counts.pop(key, None)
        if known is not None and not 0 <= self._wall() - known.at <= COUNT_SECONDS:
            known = None
        if known is not None:
            self._counts[key] = known  # the last of those asked for
            if self._wall() - known.at > COUNT_AGAIN_SECONDS and key not in self._counting:
                self._counting.add(key)
                Deferred.fromCoroutine(self._count_again(key, count))
        at = self._wall()
        reading = self.anchors.near(key, offset)
        page = await look(None if known is None else known.total, reading.start)
        if known is None:
            self._remember(key, _Counted(page.total, at))
        if len(key) <= KEY_CHARACTERS:
            reading.found(*page.starts)
        return page

    def _remember(self, key: str, counted: _Counted) -> None:
        self._counts.pop(key, None)
        if counted.total <= EXACT_ROWS or len(key) > KEY_CHARACTERS:
            return
        self._counts[key] = counted
        while len(self._counts) > COUNTS:
            del self._counts[next(iter(self._counts))]

    async def _count_again(self, key: str, count: Callable[[], Awaitable[int]]) -> None:
        # One at a time: counts of several lists would leave no search to those who ask for pages.
        await self._turns.acquire()
        try:
            at = self._wall()
            self._remember(key, _Counted(await count(), at))
        except StoreError:
            return  # whoever asks next counts, and hears of it
        finally:
            self._turns.release()
            self._counting.discard(key)
