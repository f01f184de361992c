"""What one agent may send: of everything, and of the two classes that are meant to be small.

Control records beyond their rate count as logs (a flood of heartbeats must not crowd out the
control log); logs beyond theirs are dropped and counted (an agent in an error loop repeats
itself). Task results never pass through here: they are not dropped for rate.
"""

from elkeid.config import AgentCenterSettings

CONTROL_BURST_SECONDS = 10.0
"""A reconnected agent sends its queued heartbeats at once: ten seconds' worth pass."""


class FlowBudget:
    """What one stream may send at all before its window is refilled no more: nothing is lost.

    The numbers are lowered without a look at the clock; only below `floor` is it asked what
    time has given back. So a burst may be exceeded by a sixteenth.
    """

    __slots__ = ("_at", "_settings", "octets", "records")

    def __init__(self, settings: AgentCenterSettings, now: float) -> None:
        self._settings = settings
        self._at = now
        self.records = float(settings.agent_records_burst)
        self.octets = float(settings.agent_bytes_burst)  # decompressed

    @staticmethod
    def floor(settings: AgentCenterSettings) -> tuple[float, float]:
        """Records and bytes left, below which `refill` must be asked."""
        part = 15 / 16
        return settings.agent_records_burst * part, settings.agent_bytes_burst * part

    def refill(self, now: float) -> float:
        """Add what time has given; return the seconds until nothing is owed any more."""
        limits = self._settings
        passed, self._at = max(0.0, now - self._at), now
        self.records += passed * limits.agent_records_rate
        self.octets += passed * limits.agent_bytes_rate
        self.records = min(self.records, limits.agent_records_burst)
        self.octets = min(self.octets, limits.agent_bytes_burst)
        owed = max(
            -self.records / limits.agent_records_rate, -self.octets / limits.agent_bytes_rate
        )
        return max(0.0, owed)


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
