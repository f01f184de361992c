"""The bridge as a part of a gateway: begun when the log is open, ended before it closes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred

from elkeid.config import KafkaSettings
from elkeid.eventlog.log import EventLog
from elkeid.eventlog.wakeup import Wakeup
from elkeid.kafka.bridge import ACK_BUCKETS, Bridge
from elkeid.metrics import KafkaFigures, KafkaMetrics

STOP_SECONDS: Final = 1.2
"""Of a gateway's stop, for acknowledgements under way and the place; brokers answer within a
tenth of it, and what they do not acknowledge in time is sent again at the next start."""


class KafkaFeed:
    """Feeds Kafka from this process's event log.

    Args:
        settings: section ``[kafka]``, with brokers.
        directory: of the log.
        event_log: whose commits wake the bridge.
        registry: where its figures are shown.
        in_thread: runs a function in a pool.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        directory: Path,
        event_log: EventLog,
        registry: CollectorRegistry,
        in_thread: Callable[..., "Deferred[Any]"],
    ) -> None:
        self._event_log, self._in_thread = event_log, in_thread
        self._wakeup = Wakeup()
        self.bridge = Bridge(directory, settings, self._wakeup)
        KafkaMetrics(registry, self._figures)

    def start(self) -> None:
        """Begin; the log is open.

        Raises:
            OperatorError: password or CA file cannot be read.
        """
        self.bridge.start()
        self._event_log.wakeups.append(self._wakeup)

    async def stop(self) -> None:
        """End, and leave the place saved; the log is still open."""
        if self._wakeup in self._event_log.wakeups:
            self._event_log.wakeups.remove(self._wakeup)
        await self._in_thread(self.bridge.stop, STOP_SECONDS)

    def _figures(self) -> KafkaFigures:
        now = self.bridge.figures
        return KafkaFigures(
            connected=now.connected,
            partitions=now.partitions,
            held=now.parked,
            acknowledged=dict(now.acknowledged),
            set_aside=dict(now.set_aside),
            lag_seconds=now.lag_seconds,
            retries=now.retries,
            repeats=dict(now.repeats),
            refusals=dict(now.refusals),
            dead_letters=dict(now.dead_letters),
            batches=now.batches,
            bytes=now.bytes,
            batch_limit=now.batch_limit,
            ack_bounds=ACK_BUCKETS,
            ack_records=tuple(now.ack_seconds),
            ack_sum=now.ack_sum,
        )
