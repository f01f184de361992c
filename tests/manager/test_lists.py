"""Long lists: numbers of matches and places that are remembered, whatever is listed."""

from attrs import frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.errors import StoreError
from elkeid.manager.anchors import SHALLOW_ROWS
from elkeid.manager.lists import (
    COUNT_AGAIN_SECONDS,
    COUNT_SECONDS,
    COUNTS,
    EXACT_ROWS,
    KEY_CHARACTERS,
    LongLists,
)
from elkeid.manager.store.starts import Start

LONG = EXACT_ROWS + 1


@frozen
class Shown:
    """A page."""

    total: int
    starts: tuple[Start, ...]


class LongListTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lists = LongLists(self.clock.seconds)
        self.rows = LONG
        self.known: list[int | None] = []  # totals that pages were read with
        self.places: list[Start | None] = []
        self.counts: list[Deferred[int]] = []  # that are under way

    def page(self, offset: int = 0, key: str = "a") -> int:
        """The total beside a page."""

        def look(total: int | None, start: Start | None) -> "Deferred[Shown]":
            self.known.append(total)
            self.places.append(start)
            starts = (Start(offset, (offset,), after=False),)
            return succeed(Shown(self.rows if total is None else total, starts))

        def count() -> "Deferred[int]":
            self.counts.append(Deferred())
            return self.counts[-1]

        read = self.lists.page(key, offset, look, count)
        return self.successResultOf(Deferred.fromCoroutine(read)).total

    def test_short_lists_are_exact(self) -> None:
        """Each page is counted."""
        self.rows = EXACT_ROWS
        self.assertEqual(self.page(), EXACT_ROWS)
        self.rows -= 1
        self.assertEqual(self.page(), EXACT_ROWS - 1)
        self.assertEqual(self.known, [None, None])

    def test_long_ones_are_counted_beside(self) -> None:
        """The number is shown meanwhile, and never when it is older than promised."""
        self.page()
        self.rows += 1
        self.clock.advance(COUNT_AGAIN_SECONDS + 0.1)
        self.assertEqual([self.page(), self.page()], [LONG, LONG])
        self.assertEqual(len(self.counts), 1)
        self.counts[0].callback(self.rows)
        self.assertEqual(self.page(), LONG + 1)
        self.rows += 1
        self.clock.advance(COUNT_SECONDS + 0.1)
        self.assertEqual(self.page(), LONG + 2)
        self.assertEqual(self.known, [None, LONG, LONG, LONG + 1, None])

    def test_one_is_counted_at_a_time(self) -> None:
        """The others have their turn after it, also when it fails."""
        for key in "abc":
            self.page(key=key)
        self.clock.advance(COUNT_AGAIN_SECONDS + 0.1)
        for key in "abc":
            self.page(key=key)
        self.assertEqual(len(self.counts), 1)
        self.counts[0].callback(LONG)
        self.assertEqual(len(self.counts), 2)
        fail(StoreError("away")).chainDeferred(self.counts[1])
        self.assertEqual(len(self.counts), 3)

    def test_a_list_that_became_short(self) -> None:
        """It is exact again."""
        self.page()
        self.clock.advance(COUNT_AGAIN_SECONDS + 0.1)
        self.page()
        self.counts[0].callback(3)
        self.rows = 4
        self.assertEqual(self.page(), 4)

    def test_a_clock_set_back(self) -> None:
        """A number of later is none."""
        self.clock.advance(10)
        self.page()
        self.clock.rightNow = 5
        self.page()
        self.assertEqual(self.known, [None, None])

    def test_places(self) -> None:
        """A deep page is read from the nearest one before it."""
        self.page(SHALLOW_ROWS)
        self.page(SHALLOW_ROWS + 100)
        self.page(SHALLOW_ROWS + 100, key="b")
        place = Start(SHALLOW_ROWS, (SHALLOW_ROWS,), after=False)
        self.assertEqual(self.places, [None, place, None])

    def test_bounds(self) -> None:
        """The lists longest unused are forgotten, and endless names are not remembered at all."""
        for number in range(COUNTS + 1):
            self.page(key=f"{number}")
        self.known.clear()
        self.page(key="0")
        self.page(key=f"{COUNTS}")
        self.assertEqual(self.known, [None, LONG])
        self.known.clear()
        for _ in range(2):
            self.page(SHALLOW_ROWS, key="x" * (KEY_CHARACTERS + 1))
        self.assertEqual((self.known, self.places[-2:]), ([None, None], [None, None]))
