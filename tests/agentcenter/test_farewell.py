"""Goodbyes are spread over the time there is, and none is forgotten."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from elkeid.agentcenter.farewell import ROUND, Farewell


class Link:
    """Notes when it was told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.told: list[float] = []

    def go_away(self) -> None:
        """See `Leaving`."""
        self.told.append(self._clock.seconds())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.floats(0, 60))
def test_each_is_told_once_within_the_time(count: int, seconds: float) -> None:
    """However many there are, in about even shares."""
    clock = Clock()
    links = [Link(clock) for _ in range(count)]
    farewell = Farewell(links, clock, seconds)
    half = 0
    for step in range(1, 1001):
        clock.advance(seconds / 1000)
        if step == 500:
            half = sum(1 for link in links if link.told)
    clock.advance(0.01)  # what a thousand fractions lack
    assert all(len(link.told) == 1 for link in links)
    assert all(link.told[0] <= seconds + 0.02 for link in links)
    if seconds > 1 and count > 10:
        assert 0.4 * count < half < 0.6 * count + 2
    for link in links:
        assert not farewell.over.called
        farewell.gone(link)
    assert farewell.over.called
    assert clock.getDelayedCalls() == []


def test_all_at_once_is_in_rounds() -> None:
    """Without time to spread them other work still gets its turn."""
    clock = Clock()
    links = [Link(clock) for _ in range(2 * ROUND + 1)]
    Farewell(links, clock, 0)  # a turn of the reactor ends after each round
    assert sum(1 for link in links if link.told) == ROUND
    clock.advance(0)
    assert all(link.told for link in links)


def test_who_is_gone_is_not_told() -> None:
    """A connection that ended by itself needs no goodbye; when all have, it is over."""
    clock = Clock()
    links = [Link(clock) for _ in range(3)]
    farewell = Farewell(links, clock, 30)
    untold = [link for link in links if not link.told]
    for link in untold:
        farewell.gone(link)
    assert not farewell.over.called
    (told,) = (link for link in links if link.told)
    farewell.gone(told)
    assert farewell.over.called
    assert clock.getDelayedCalls() == []
    assert all(not link.told for link in untold)


def test_cancelled() -> None:
    """It says no more goodbyes."""
    clock = Clock()
    links = [Link(clock) for _ in range(9)]
    farewell = Farewell(links, clock, 30)
    failures: list[object] = []
    farewell.over.addErrback(failures.append)
    farewell.over.cancel()
    (failure,) = failures
    assert failure.check(CancelledError)  # type: ignore[attr-defined]
    assert clock.getDelayedCalls() == []
    for link in links:
        farewell.gone(link)
