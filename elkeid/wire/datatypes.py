"""Data types the gateway treats specially, and the class of every record.

Source: docs/protocol.md, "Data types and classes".
"""

from enum import IntEnum

AGENT_HEARTBEAT = 1000
PLUGIN_HEARTBEAT = 1001
TASK_RESULTS = frozenset({2001, 2003, 5100, 5101, 6000, 8010})
ERROR_LOGS = frozenset({1010, 1011})
KERNEL_TYPES = range(1, 1000)
"""The driver's: events of the kernel."""


class RecordClass(IntEnum):
    """What a record is for; each class has its own log, caps and offsets."""

    CONTROL = 0
    TELEMETRY = 1
    LOGS = 2

    @property
    def label(self) -> str:
        """The name in paths, JSON and metrics: ``control``, ``telemetry`` or ``logs``."""
        return self.name.lower()


CLASS_OF: dict[int, RecordClass] = {
    **dict.fromkeys((AGENT_HEARTBEAT, PLUGIN_HEARTBEAT, *TASK_RESULTS), RecordClass.CONTROL),
    **dict.fromkeys(ERROR_LOGS, RecordClass.LOGS),
}
"""Classes of the special data types; every other type is telemetry."""
