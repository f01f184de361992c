"""What one agent may send of the two classes that are meant to be small.

Control records beyond their rate count as logs (a flood of heartbeats must not crowd out the
control log); logs beyond theirs are dropped and counted (an agent in an error loop repeats
itself). Task results never pass through here: they are not dropped for rate.
"""

from elkeid.config import AgentCenterSettings

CONTROL_BURST_SECONDS = 10.0
"""A reconnected agent sends its queued heartbeats at once: ten seconds' worth pass."""


class ClassBudget:
    """Token buckets for one stream; times in seconds of any monotonic clock."""

    __slots__ = ("_at", "_control", "_logs", "_settings")

    def __init__(self, settings: AgentCenterSettings, now: float) -> None:
        self._settings = settings
        self._at = now
        self._control = settings.control_rate * CONTROL_BURST_SECONDS
        self._logs = float(settings.logs_burst)

    def _refill(self, now: float) -> None:
        passed = now - self._at
        if passed > 0:
            limits = self._settings
            burst = limits.control_rate * CONTROL_BURST_SECONDS
            self._control = min(burst, self._control + passed * limits.control_rate)
            self._logs = min(limits.logs_burst, self._logs + passed * limits.logs_rate)
            self._at = now

    def take_control(self, count: int, now: float) -> int:
        """Return how many of ``count`` control records pass; the rest counts as logs."""
        self._refill(now)
        passed = min(count, int(self._control))
        self._control -= passed
        return passed

    def take_logs(self, count: int, now: float) -> int:
        """Return how many of ``count`` log records pass; the rest is dropped."""
        self._refill(now)
        passed = min(count, int(self._logs))
        self._logs -= passed
        return passed
