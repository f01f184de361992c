"""The bridge as a part of a gateway: begun when the log is open, ended before it closes."""

import time
from collections.abc import Callable
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred

from elkeid.config import KAFKA_READER, KafkaSettings, MiB
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
        monotonic: seconds from any start.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        directory: Path,
        event_log: EventLog,
        registry: CollectorRegistry,
        in_thread: Callable[..., "Deferred[Any]"],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._event_log, self._in_thread = event_log, in_thread
        self._wakeup, self._monotonic = Wakeup(), monotonic
        self.bridge = Bridge(directory, settings, self._wakeup, monotonic=monotonic)
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

    def remarks(self) -> list[str]:
        """What an operator should know: that Kafka is away, and how long the log can wait.

        It keeps the gateway from nothing: agents stay, and their records wait in the log.
        """
        now, failed = self.bridge.figures, self.bridge.failed
        if failed is not None:
            return [f"the Kafka bridge ended: {failed!r}; records stay in the log until a restart"]
        if not now.outage:
            return []
        left = [
            each for (name, _), each in self._event_log.backlogs.items() if name == KAFKA_READER
        ]
        waiting = (
            f"{sum(each.records for each in left):,} records wait "
            f"({sum(each.bytes for each in left) / MiB:,.0f} MiB)"
        )
        room = min((each.room_seconds for each in left), default=inf)
        if isfinite(room):
            waiting += f", the event log has room for {room / 60:,.0f} minutes more"
        minutes = now.outage_seconds(self._monotonic()) / 60
        return [
            f"Kafka has not taken all records for {minutes:.1f} minutes: {now.outage}; {waiting}"
        ]

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
            outage_seconds=now.outage_seconds(self._monotonic()),
            ack_bounds=ACK_BUCKETS,
            ack_records=tuple(now.ack_seconds),
            ack_sum=now.ack_sum,
        )
