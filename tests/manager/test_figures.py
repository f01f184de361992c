"""Figures of heartbeats, rolled up."""

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from elkeid.manager.figures import (
    FINE_SECONDS,
    LATE_SECONDS,
    NAMES,
    Figures,
    Rollup,
    joined,
    rolled_up,
    unpacked,
)

from .stores import report

START = 1_700_000_100 // FINE_SECONDS * FINE_SECONDS


def over(figures: Figures, now: float, **how: Any) -> list[Rollup]:
    """What is over, rolled up."""
    return [rolled_up(*each) for each in figures.over(now, **how)]


def figure(rollup: Rollup, name: str) -> tuple[float, float, float]:
    """Least, mean and greatest."""
    place = NAMES.index(name)
    return rollup.least[place], rollup.mean[place], rollup.greatest[place]


def test_a_stretch() -> None:
    """Heartbeats of five minutes become one row, once the five minutes and a little are over."""
    figures = Figures()
    for number, cpu in enumerate((0.5, 0.25, 0.75)):
        figures.take(report("a1", START + 60 * number, cpu=cpu, rss=100 * number))
    assert over(figures, START + FINE_SECONDS) == []
    (row,) = over(figures, START + FINE_SECONDS + LATE_SECONDS)
    assert (row.agent_id, row.began, row.beats) == ("a1", START, 3)
    assert figure(row, "cpu") == (0.25, 0.5, 0.75)
    assert figure(row, "rss") == (0, 100, 200)
    assert all(map(math.isnan, figure(row, "load_1")))
    assert over(figures, START + 10_000) == []


def test_the_same_heartbeat_again() -> None:
    """A heartbeat counts once, however often it is told of; one that is late does not count."""
    figures = Figures()
    for seen in (100, 100, 40, 160, 100):
        figures.take(report("a1", START + seen, cpu=1.0))
    (row,) = over(figures, START, everything=True)
    assert row.beats == 2
    figures.take(report("a1", START + 10, cpu=1.0))
    figures.take(report("a1", START + 310, cpu=1.0))
    figures.take(report("a1", START + 20, cpu=1.0))
    assert [row.beats for row in over(figures, START, everything=True)] == [1, 1]


def test_what_is_no_figure() -> None:
    """Texts, booleans and numbers beyond all measure are left out."""
    figures = Figures()
    figures.take(report("a1", START, cpu="x", rss=True, du=1e300, load_1=None, mem_usage=0.5))
    (row,) = over(figures, START, everything=True)
    for name in ("cpu", "rss", "du", "load_1"):
        assert math.isnan(figure(row, name)[1])
    assert figure(row, "mem_usage") == (0.5, 0.5, 0.5)


def test_memory_is_bounded() -> None:
    """Hosts beyond the limit are left out and counted."""
    figures = Figures(hosts=2)
    for agent_id in ("a1", "a2", "a3", "a1"):
        figures.take(report(agent_id, START, cpu=1.0))
    assert figures.left_out == 1
    assert [row.agent_id for row in over(figures, START, everything=True)] == ["a1", "a2"]


@given(st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=20))
def test_order_of_values(values: list[float]) -> None:
    """The least is no greater than the mean, that no greater than the greatest; packing keeps."""
    figures = Figures()
    for number, value in enumerate(values):
        figures.take(report("a1", START + number, cpu=value))
    (row,) = over(figures, START, everything=True)
    kept = unpacked("a1", START, row.beats, row.packed())
    least, mean, greatest = figure(kept, "cpu")
    assert least == min(values)
    assert greatest == max(values)
    assert least * 0.999 <= mean <= greatest * 1.001


def test_longer_stretches() -> None:
    """Parts count by their heartbeats; a figure told in one part only is that part's."""
    figures = Figures()
    for number in range(3):
        figures.take(report("a1", START + number, cpu=1.0))
    figures.take(report("a1", START + FINE_SECONDS, cpu=5.0, load_1=2.0))
    whole = joined("a1", START, over(figures, START, everything=True))
    assert whole.beats == 4
    assert figure(whole, "cpu") == (1.0, 2.0, 5.0)
    assert figure(whole, "load_1") == (2.0, 2.0, 2.0)
    assert math.isnan(figure(whole, "du")[0])
