"""Where in long lists pages began and ended, so that the next page is read from there.

Pages are asked for by number. A database finds the millionth row of a list by passing all before
it; from a row that was shown a moment ago it goes straight on. So of pages deep in a list the
first and the last row are remembered for a short time, and a page is read from the nearest one
before it.

Rows come and go meanwhile, so a page may lie as far off as the number of rows before it has changed
within `ANCHOR_SECONDS`: an anchor that was found from another one ends with that one. Whoever walks
from page to page goes on behind the row that the page before ended with. Up to `SHALLOW_ROWS` there
are no anchors: those pages are of the list as it is.
"""

from collections.abc import Callable, Hashable

from attrs import frozen

from elkeid.manager.store.starts import Start

SHALLOW_ROWS = 10_000
"""Rows that a database passes within some milliseconds."""

ANCHOR_SECONDS = 10.0
"""A walk finds its place by passing rows so often, and else costs the same wherever it is."""

ANCHORS = 64
"""Of one list: as many walks in different parts of it."""

LISTS = 64
"""Lists that have anchors; all of them take 2 MiB at most."""


@frozen
class _Anchor:
    start: Start
    at: float


class Anchors:
    """Remembers places in lists.

    Args:
        wall: seconds since the epoch.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        # List -> offset -> place; the last ones used.
        self._lists: dict[Hashable, dict[int, _Anchor]] = {}

    def near(self, of: Hashable, offset: int) -> "Reading":
        """Begin to read a page.

        Args:
            of: the list: what selects and orders it.
            offset: rows before the page.
        """
        now = self._wall()
        fresh = [
            each
            for each in self._lists.get(of, {}).values()
            if each.start.offset <= offset and 0 <= now - each.at <= ANCHOR_SECONDS
        ]
        if not fresh:
            return Reading(self, of, None, now)
        nearest = max(fresh, key=lambda each: each.start.offset)
        return Reading(self, of, nearest.start, nearest.at)

    def note(self, of: Hashable, start: Start, at: float) -> None:
        """Remember a place that was right at a time."""
        if start.offset < SHALLOW_ROWS:
            return
        places = self._lists.pop(of, {})
        self._lists[of] = places
        known = places.pop(start.offset, None)
        places[start.offset] = known if known and known.at > at else _Anchor(start, at)
        while len(places) > ANCHORS:
            del places[next(iter(places))]
        while len(self._lists) > LISTS:
            del self._lists[next(iter(self._lists))]

    @property
    def count(self) -> int:
        """Places that are remembered."""
        return sum(map(len, self._lists.values()))


@frozen
class Reading:
    """A page that is being read.

    Attributes:
        start: where from; None for the beginning of the list.
    """

    _anchors: Anchors
    _of: Hashable
    start: Start | None
    _at: float

    def found(self, *starts: Start) -> None:
        """Note places that were found on the way."""
        for each in starts:
            self._anchors.note(self._of, each, self._at)
