"""The clock of timers goes forward, whatever is done to the wall clock."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import globalLogPublisher

from elkeid.forward_clock import SPEED, ForwardClock


class Times:
    """Two clocks, of which one can be set."""

    def __init__(self) -> None:
        self.monotonic, self.offset = 0.0, 1e9
        self.clock = ForwardClock(lambda: self.monotonic + self.offset, lambda: self.monotonic)

    def after(self, seconds: float) -> float:
        """What the clock says then."""
        self.monotonic += seconds
        return self.clock()


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []

    def observe(event: dict[str, object]) -> None:
        lines.append(str(event.get("log_format")))

    globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
    yield lines
    globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]


def test_a_step_back(told: list[str]) -> None:
    """It goes on, a little slower, until the wall clock has caught up; told once."""
    times = Times()
    assert times.after(10) == 1e9 + 10
    times.offset -= 90
    assert times.after(0) == 1e9 + 10
    assert times.after(100) == 1e9 + 10 + 100 * SPEED
    assert len([line for line in told if "set back" in line]) == 1
    assert times.after(1_000) == 1e9 + 1_110 - 90
    times.offset -= 0.5
    assert times.after(0) == 1e9 + 1_110 - 90
    assert len([line for line in told if "set back" in line]) == 1


def test_a_step_forward() -> None:
    """Is followed at once."""
    times = Times()
    times.offset += 3_600
    assert times.after(1) == 1e9 + 3_601


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), max_size=30))
def test_never_back(steps: list[tuple[float, float]]) -> None:
    """And never slower than `SPEED`."""
    times = Times()
    seen = [(0.0, times.after(0))]
    for seconds, step in steps:
        times.offset += step
        times.after(0)
        seen.append((times.monotonic + seconds, times.after(seconds)))
    for (began, before), (ended, after) in pairwise(seen):
        assert after - before >= (ended - began) * SPEED - 0.001
