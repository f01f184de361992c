"""From a split batch to the event log: classed, within the rates of its stream, appended.

This is the hot path: one call a batch, and nothing per record unless a rate is exceeded.
"""

from collections.abc import Callable
from typing import Protocol

from elkeid.agentcenter.arrivals import Arrivals
from elkeid.agentcenter.counters import Counters
from elkeid.agentcenter.rates import ClassBudget
from elkeid.agentcenter.shedding import Shedder
from elkeid.config import AgentCenterSettings
from elkeid.wire.datatypes import TASK_RESULTS, RecordClass
from elkeid.wire.mqdata import encode_suffix, records
from elkeid.wire.protobuf import length_delimited
from elkeid.wire.rawdata import Header, Packet

CONTROL, TELEMETRY, LOGS = RecordClass.CONTROL, RecordClass.TELEMETRY, RecordClass.LOGS

DATA_TYPE_LIMIT = 10_000
"""Data types below are counted one by one; peers choose numbers, so others count as -1."""


class Log(Protocol):
    """What the intake needs of the event log."""

    def append(self, cls: RecordClass, count: int, suffix: bytes, region: bytes) -> None:
        """Keep ``count`` records."""

    def drop(self, cls: RecordClass, reason: str, count: int) -> None:
        """Count records that were read and not kept."""


class Sender(Protocol):
    """What the intake keeps per stream."""

    arrivals: Arrivals
    budget: ClassBudget | None
    dropped: int
    header: Header | None
    peer_host: str
    tags: bytes


class Intake:
    """Appends batches.

    Args:
        settings: the rates.
        log: where records go.
        monotonic: seconds that only go forward, for the rates.
        wall: the receive time of a batch, unix seconds.
        counters: told of every record.
    """

    def __init__(
        self,
        settings: AgentCenterSettings,
        log: Log,
        monotonic: Callable[[], float],
        wall: Callable[[], int],
        counters: Counters,
    ) -> None:
        self._settings = settings
        self._log = log
        self._monotonic = monotonic
        self._wall = wall
        self._counters = counters
        self.shedder = Shedder(monotonic)

    def append(self, sender: Sender, header: Header, packet: Packet) -> int:
        """Append one batch of ``sender``, which goes by the id in ``header``.

        Returns:
            How many control records its rate let pass.
        """
        passed = 0
        now = self._wall()
        suffix = encode_suffix(header, now, sender.tags)
        for cls, count, region in packet.runs:
            if (
                self.shedder.active
                and cls is not CONTROL
                and not self._admits(sender, header, len(suffix) + len(region))
            ):
                self._drop(sender, cls, "heavy", count)
            elif cls is TELEMETRY:
                self._log.append(TELEMETRY, count, suffix, region)
            elif cls is CONTROL:
                passed = self._append_control(sender, packet, count, suffix, region)
            else:
                self._append_logs(sender, count, suffix, region)
        counters = self._counters
        counters.records += packet.count
        sender.arrivals.take(packet.counts, packet.count, now)
        types = counters.data_types
        for data_type, count in packet.counts.items():
            types[data_type if 0 <= data_type < DATA_TYPE_LIMIT else -1] += count
        return passed

    def _admits(self, sender: Sender, header: Header, size: int) -> bool:
        return self.shedder.admits((sender.peer_host, header.agent_id), size)

    def _drop(self, sender: Sender, cls: RecordClass, reason: str, count: int) -> None:
        self._log.drop(cls, reason, count)
        sender.dropped += count

    def _budget(self, sender: Sender, now: float) -> ClassBudget:
        if sender.budget is None:
            sender.budget = ClassBudget(self._settings, now)
        return sender.budget

    def _append_control(
        self, sender: Sender, packet: Packet, count: int, suffix: bytes, region: bytes
    ) -> int:
        now = self._monotonic()
        passed = self._budget(sender, now).take_control(count, now)
        if passed == count:
            self._log.append(CONTROL, count, suffix, region)
            return passed
        kept, results, rest = [], [], []
        # Every control record is special, so both run over the same records in order.
        for index, (record, special) in enumerate(
            zip(records(region), packet.special, strict=True)
        ):
            framed = length_delimited(1, record)
            if index < passed:
                kept.append(framed)
            elif special[0] in TASK_RESULTS:
                results.append(framed)
            else:
                rest.append(framed)
        if kept:
            self._log.append(CONTROL, len(kept), suffix, b"".join(kept))
        if results:  # counted as logs, but never dropped for rate
            self._log.append(LOGS, len(results), suffix, b"".join(results))
        if rest:
            self._append_logs(sender, len(rest), suffix, b"".join(rest))
        return passed

    def _append_logs(self, sender: Sender, count: int, suffix: bytes, region: bytes) -> None:
        now = self._monotonic()
        passed = self._budget(sender, now).take_logs(count, now)
        if passed < count:
            self._drop(sender, LOGS, "rate", count - passed)
            if not passed:
                return
            framed = (length_delimited(1, record) for record in records(region))
            region = b"".join(record for record, _ in zip(framed, range(passed), strict=False))
        self._log.append(LOGS, passed, suffix, region)
