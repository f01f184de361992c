"""How late timers are: counted for every tick that was due, on a fake clock."""

from math import inf

from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock

from elkeid.lateness import TICK_SECONDS, LatenessMonitor
from elkeid.metrics import LatenessMetrics


class Busy(Clock):
    """A reactor whose timers come late when it is told so."""

    def stall(self, seconds: float) -> None:
        self.rightNow += seconds


def test_on_time() -> None:
    """An idle reactor is late by nothing."""
    clock = Clock()
    monitor = LatenessMonitor(clock, clock.seconds)
    monitor.start()
    clock.pump([TICK_SECONDS] * 50)
    buckets, total = monitor.figures()
    assert buckets[0] == (0.001, 50)
    assert buckets[-1] == (inf, 50)
    assert total < 0.001
    monitor.stop()
    assert clock.getDelayedCalls() == []


def test_stall_counts_for_all_ticks_that_it_held_up() -> None:
    """One second without a tick is fifty late ones, up to a second late."""
    clock = Busy()
    monitor = LatenessMonitor(clock, clock.seconds)
    monitor.start()
    clock.stall(1.0 + TICK_SECONDS)
    clock.advance(0)
    buckets = dict(monitor.figures()[0])
    assert 50 <= buckets[inf] <= 51
    assert 12 <= buckets[0.25] <= 14
    assert monitor.worst >= 1.0
    monitor.stop()


def test_shown_as_a_histogram() -> None:
    """By the name that dashboards ask for."""
    clock = Clock()
    monitor = LatenessMonitor(clock, clock.seconds)
    registry = CollectorRegistry()
    LatenessMetrics(registry, monitor.figures)
    monitor.start()
    clock.pump([TICK_SECONDS] * 3)
    name = "elkeid_reactor_lateness_seconds"
    assert registry.get_sample_value(f"{name}_count") == 3
    assert registry.get_sample_value(f"{name}_bucket", {"le": "0.25"}) == 3
    monitor.stop()
