"""The bridge: moves the event log to Kafka in a thread of its own, whatever Kafka does.

The log's reader ``kafka`` keeps its progress per partition (`elkeid.kafka.feed`). Progress moves
only past what is acknowledged or set aside; a batch that fails is sent again before anything
newer of its partition and class. There is no failure that ends the bridge: it says what is wrong,
waits and goes on.
"""

import os
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Final, Protocol

import kafka.errors
from attrs import define, field
from twisted.logger import Logger

from elkeid.config import KAFKA_READER, KafkaSettings, MiB
from elkeid.errors import OperatorError
from elkeid.eventlog.cursors import ClassCursor, Cursor, cursor_path, save_cursor
from elkeid.eventlog.files import FileOperations
from elkeid.eventlog.format import Entry
from elkeid.eventlog.reader import ClassReader, oldest_offset, take_place
from elkeid.eventlog.wakeup import Wakeup
from elkeid.kafka.batches import Batch, RegionDamaged, agent_id, encode
from elkeid.kafka.connection import connection_options, quiet_library
from elkeid.kafka.deadletters import DeadLetters
from elkeid.kafka.feed import ClassFeed, Slot
from elkeid.kafka.producer import BatchProducer, Outcome
from elkeid.wire import mqdata
from elkeid.wire.datatypes import RecordClass

LINGER_SECONDS: Final = 0.05
"""Between two looks at the log while it grows slowly: what gathers meanwhile goes out together.
A fifth of the quarter of a second that a record may take to be acknowledged."""

FULL_BYTES: Final = 256 * 1024
"""With a backlog a batch waits until it has so much, or `LINGER_SECONDS`."""

BATCH_BYTES: Final = 1_000_000
"""Of a batch before compression; brokers take 1,048,588 unless told otherwise."""

LEAST_BATCH_BYTES: Final = 1024
"""Batches are not made smaller than this for a broker that refuses larger ones; one record may
be larger, and goes alone."""

FILL_BYTES: Final = 1 * MiB
"""Read of one class before others have their turn."""

SAVE_SECONDS: Final = 1.0
"""Between two saves of the place: after a kill so much is sent again at most."""

SLOW_SECONDS: Final = 10.0
"""A batch without acknowledgement for so long is looked into, and the reason said."""

SAY_SECONDS: Final = 60.0
"""Between two log lines of one kind."""

BACKOFF_SECONDS: Final = (0.5, 30.0)
"""First and longest wait after a refusal that may pass, and between two attempts to connect."""

IDLE_SECONDS: Final = 0.5
"""Longest wait for anything; a look at nothing costs a few microseconds."""

_TOO_LARGE = (kafka.errors.MessageSizeTooLargeError, kafka.errors.RecordListTooLargeError)
_INVALID = (
    kafka.errors.InvalidRecordError,
    kafka.errors.UnsupportedForMessageFormatError,
    kafka.errors.PolicyViolationError,
)
_REFUSED = (
    kafka.errors.TopicAuthorizationFailedError,
    kafka.errors.ClusterAuthorizationFailedError,
    kafka.errors.UnknownTopicOrPartitionError,
    kafka.errors.NotEnoughReplicasError,
    kafka.errors.InvalidRequiredAcksError,
    kafka.errors.InvalidTopicError,
)
"""The broker has surely not taken the batch, and may take it later."""

_CONNECT_ERRORS = (kafka.errors.KafkaError, OSError, ValueError, AssertionError, RuntimeError)

ACK_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0)
"""Seconds; of the time from a record's arrival to its acknowledgement."""


class Producer(Protocol):
    """What the bridge needs of `BatchProducer`."""

    def partitions(self) -> int | None:
        """How many partitions the topic has; None while that is not known."""

    def unauthorized(self) -> bool:
        """Whether the brokers refuse to tell us of the topic."""

    def has_leader(self, partition: int) -> bool:
        """Whether the partition has a leader."""

    def send(self, partition: int, batch: Batch, outcome: Outcome) -> None:
        """Hand one batch over."""

    def flush(self) -> None:
        """Have what was handed over looked at."""

    def fatal(self) -> BaseException | None:
        """Why nothing can be sent any more."""

    def authentication_problem(self) -> str | None:
        """What a broker said to our credentials."""

    def close(self, seconds: float) -> None:
        """Send nothing more."""


Connect = Callable[[Callable[[], None]], Producer]
"""Makes a producer, given what to call for each retry; raises while no broker will have us."""


@define
class BridgeFigures:
    """What the bridge counts; totals since the start of the process but for ``repeats``."""

    connected: bool = False
    partitions: int = 0
    parked: int = 0  # partitions that are held back alone
    acknowledged: dict[str, int] = field(factory=dict)  # records by class, over all runs
    set_aside: dict[str, int] = field(factory=dict)
    waiting_bytes: int = 0  # in memory
    lag_seconds: float = 0.0  # age of the oldest record in memory
    retries: int = 0  # batches that the library sent again
    repeats: dict[str, int] = field(factory=dict)  # events after which records may come twice
    refusals: dict[str, int] = field(factory=dict)  # batches, by the broker's reason
    dead_letters: dict[str, int] = field(factory=dict)  # records, by reason
    batches: int = 0
    bytes: int = 0  # on the wire
    batch_limit: int = BATCH_BYTES
    outage: str = ""  # why Kafka does not take all that is there; empty while it does
    outage_since: float = 0.0  # monotonic seconds
    ack_seconds: list[int] = field(factory=lambda: [0] * (len(ACK_BUCKETS) + 1))  # records
    ack_sum: float = 0.0

    def note_outage(self, reason: str, now: float) -> None:
        """Records wait for Kafka."""
        if not self.outage:
            self.outage_since = now
        self.outage = reason

    def outage_seconds(self, now: float) -> float:
        """For how long they have waited; 0 while all is well."""
        return max(0.0, now - self.outage_since) if self.outage else 0.0


class Place:
    """The reader's place on disk, and its name, which no other process has meanwhile.

    Args:
        directory: the log's folder.
        files: the file operations.
        wall: seconds since the epoch.

    Raises:
        OperatorError: there is no log, or another process has the reader.
        LogFormatError: log or cursor are of an unknown format version.
    """

    def __init__(self, directory: Path, files: FileOperations, wall: Callable[[], float]) -> None:
        self.directory, self._files, self._wall = directory, files, wall
        self._held, cursor = take_place(directory, KAFKA_READER)
        self.cursor = cursor or Cursor()
        for each in RecordClass:
            if each.label not in self.cursor.classes:
                place = self.cursor.classes[each.label] = ClassCursor()
                if oldest := oldest_offset(directory / each.label):
                    place.expire("before", oldest)

    def save(self) -> None:
        """Make it durable; `OSError` leaves what was saved before."""
        self.cursor.used_ms = int(self._wall() * 1000)
        save_cursor(self._files, cursor_path(self.directory, KAFKA_READER), self.cursor)

    def close(self) -> None:
        """Let go of the name."""
        os.close(self._held)


class Session:
    """Sends from the log with one producer and one number of partitions, until something ends it.

    Args:
        place: where to begin; brought forward.
        producer: connected.
        settings: section ``[kafka]``.
        letters: for what Kafka never takes.
        figures: brought up to date.
        say: logs a sentence, not too often: kind, text.
        wakeup: what waits for outcomes and for new records.
        monotonic: seconds from any start.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        place: Place,
        producer: Producer,
        *,
        settings: KafkaSettings,
        letters: DeadLetters,
        figures: BridgeFigures,
        say: Callable[[str, str], None],
        wakeup: Wakeup,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        count = producer.partitions()
        assert count
        self._place, self._producer, self._settings = place, producer, settings
        self._letters, self._figures, self._say = letters, figures, say
        self._wakeup, self._monotonic, self._wall = wakeup, monotonic, wall
        self._count = count
        self._outcomes: deque[tuple[ClassFeed, Slot, Batch, BaseException | None]] = deque()
        cursor = place.cursor
        self.feeds = [
            ClassFeed(each, cursor.classes[each.label], self._opener(each), count)
            for each in RecordClass
        ]
        if not cursor.clean:
            self._repeat("crash")
        cursor.clean = False  # durable before anything is sent
        self._unsaved = True
        self._save_at = self._read_at = self._look_at = monotonic()
        self._begun = False
        self._finished = False
        # What the place goes back to if this ends before it can be noted; see `ClassFeed.savable`.
        self._before = deepcopy(cursor.classes)
        self.ending = False  # hand nothing more over
        self._update_figures(self._save_at)

    def _opener(self, record_class: RecordClass) -> Callable[[int], ClassReader]:
        folder = self._place.directory / record_class.label
        return lambda offset: ClassReader(folder, record_class, offset)

    def close(self) -> None:
        """Let go of the log; what is under way counts as failed."""
        for feed in self.feeds:
            feed.close()

    # -- one turn

    def turn(self) -> float:
        """Do all that can be done now; return for how many seconds to wait at most.

        Raises:
            OSError: log or place cannot be read or written.
            LogFormatError: a segment is of an unknown format version.
        """
        now = self._monotonic()
        if not self._begun:
            try:
                self._place.save()  # as it was, but for what the start has counted
            except OSError as error:
                self._say("place", f"{error}: nothing is sent until the place can be saved")
                return SAVE_SECONDS
            self._begun = True
        self._take_outcomes(now)
        more, read = False, 0
        if (now >= self._read_at or self._wakeup.fresh) and not self.ending:
            self._wakeup.arm()
            read = sum(feed.fill(now, FILL_BYTES) for feed in self.feeds)
            more = not all(feed.at_end for feed in self.feeds)
            # Read on at once while there is more; else let some gather, or wait to be woken.
            self._read_at = now if more else now + LINGER_SECONDS
            if more or read:
                self._wakeup.disarm()
        sent = 0
        for feed in self.feeds:
            for slot in feed.slots.values():
                if slot.batch is None and slot.pending and self._due(slot, now, more):
                    sent += self._send(feed, slot, now)
        if sent:
            self._producer.flush()
        if now >= self._save_at and self._unsaved:
            self._save(now)
        if now >= self._look_at:
            self._look(now)
        if more and (read or sent):
            return 0.0
        waits = [IDLE_SECONDS]
        if self._read_at > now:
            waits.append(self._read_at - now)
        if more or any(slot.pending for feed in self.feeds for slot in feed.slots.values()):
            waits.append(LINGER_SECONDS)
        if self._unsaved:
            waits.append(max(0.0, self._save_at - now))
        return min(waits)

    @property
    def drained(self) -> bool:
        """Whether the log holds nothing more that Kafka has not."""
        return all(
            feed.at_end and not any(slot.owed for slot in feed.slots.values())
            for feed in self.feeds
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return all(feed.idle for feed in self.feeds)

    def finish(self, cause: str) -> None:
        """Save the place; what is under way may come twice, for which ``cause`` is counted."""
        if self._finished:
            return
        self._finished = True
        self._take_outcomes(self._monotonic())
        if not self.idle:
            self._repeat(cause)
        cursor = self._place.cursor
        cursor.clean = True
        if not all(feed.savable for feed in self.feeds):
            self._repeat(cause)  # what was sent in this session comes again
            cursor.classes = self._before
            with suppress(OSError):
                self._place.save()
            return
        self._save(self._monotonic())

    def over(self) -> str | None:
        """Why another session must begin: a kind for the log; None while this one is good."""
        if (error := self._producer.fatal()) is not None:
            if isinstance(error, kafka.errors.ClusterAuthorizationFailedError):
                self._say("authorization", _NOT_AUTHORIZED)
            else:
                self._say("producer", f"the producer failed and is made anew: {_words(error)}")
            return "reset"
        count = self._producer.partitions()
        if count is not None and count != self._count:
            return "topic"
        return None

    def _due(self, slot: Slot, now: float, more: bool) -> bool:
        if now < slot.not_before or self.ending:
            return False
        return not more or slot.pending_bytes >= FULL_BYTES or now - slot.sent_at >= LINGER_SECONDS

    def _send(self, feed: ClassFeed, slot: Slot, now: float) -> int:
        figures = self._figures
        while slot.pending:
            try:
                batch = encode(
                    slot.pending,
                    figures.batch_limit,
                    slot.record_limit,
                    self._settings.compression,
                    slot.untimed_before,
                )
            except RegionDamaged as error:
                count = feed.unreadable(slot, now)
                self._say("damaged", f"{count} {feed.record_class.label} records: {error}")
                self._unsaved = True
                continue
            slot.taken(batch, now)
            figures.batches += 1
            figures.bytes += batch.size
            self._producer.send(slot.partition, batch, self._teller(feed, slot, batch))
            return 1
        return 0

    def _teller(self, feed: ClassFeed, slot: Slot, batch: Batch) -> Outcome:
        outcomes, wakeup = self._outcomes, self._wakeup

        def tell(error: BaseException | None) -> None:
            outcomes.append((feed, slot, batch, error))
            wakeup.wake()

        return tell

    # -- outcomes

    def _take_outcomes(self, now: float) -> None:
        outcomes = self._outcomes
        while outcomes:
            feed, slot, batch, error = outcomes.popleft()
            if slot.batch is not batch:
                continue
            self._unsaved = True
            if error is None:
                self._acknowledged(feed, slot, now)
            else:
                self._failed(feed, slot, batch, error, now)

    def _acknowledged(self, feed: ClassFeed, slot: Slot, now: float) -> None:
        batch = feed.acknowledged(slot, now)
        if slot.record_limit < batch.records * 2:  # the search for a bad record goes on
            slot.record_limit = min(slot.record_limit * 2, 1 << 30)
        else:
            slot.record_limit = 1 << 30
        figures, wall = self._figures, self._wall()
        for at, count in batch.arrivals:
            seconds = max(0.0, wall - at / 1000)
            figures.ack_sum += seconds * count
            figures.ack_seconds[bisect_left(ACK_BUCKETS, seconds)] += count

    def _failed(
        self, feed: ClassFeed, slot: Slot, batch: Batch, error: BaseException, now: float
    ) -> None:
        figures = self._figures
        reason = type(error).__name__.removesuffix("Error")
        figures.refusals[reason] = figures.refusals.get(reason, 0) + 1
        if isinstance(error, _TOO_LARGE):
            if batch.records == 1:
                self._set_aside(feed, slot, batch, "too_large", now)
                return
            limit = max(LEAST_BATCH_BYTES, batch.size // 2)
            figures.batch_limit = min(figures.batch_limit, limit)
            slot.record_limit = max(1, batch.records // 2)
        elif isinstance(error, kafka.errors.InvalidTimestampError):
            slot.untimed_before = batch.end_offset
            self._say("time", "the broker refuses records' times: they are sent without")
        elif isinstance(error, _INVALID):
            if batch.records == 1:
                self._set_aside(feed, slot, batch, "invalid", now)
                return
            slot.record_limit = max(1, batch.records // 2)
        else:
            if not isinstance(error, _REFUSED):
                self._repeat("reset")
            first, longest = BACKOFF_SECONDS
            slot.backoff = min(max(first, slot.backoff * 2), longest)
            if isinstance(error, kafka.errors.KafkaError) and error.retriable:
                slot.backoff = first
            slot.not_before = now + slot.backoff
            text = f"partition {slot.partition}: {_words(error)}; it is sent again"
            self._figures.note_outage(text, now)
            self._say(reason, text)
        slot.put_back()

    def _set_aside(
        self, feed: ClassFeed, slot: Slot, batch: Batch, reason: str, now: float
    ) -> None:
        entry = Entry._make(batch.entries[0])
        key, record = agent_id(entry.suffix), next(mqdata.records(entry.region))
        label = feed.record_class.label
        try:
            self._letters.add(
                feed.record_class,
                entry.first_offset,
                agent_id=key,
                reason=reason,
                time_ms=entry.time_ms,
                value=record + entry.suffix,
            )
        except OSError as error:  # a full disk: tried again with the next refusal
            self._say("letters", f"a record cannot be set aside: {error}")
            slot.not_before = now + BACKOFF_SECONDS[1]
            slot.put_back()
            return
        feed.set_aside(slot, now)
        counts = self._figures.dead_letters
        counts[reason] = counts.get(reason, 0) + 1
        self._say(
            "aside",
            f"{label} record {entry.first_offset} of {key.decode('utf-8', 'replace')}: Kafka "
            f"never takes it ({reason}, {batch.size} bytes); it is in dead-letters.jsonl",
        )

    def _repeat(self, cause: str) -> None:
        repeats = self._place.cursor.repeats
        repeats[cause] = repeats.get(cause, 0) + 1
        self._unsaved = True

    # -- housekeeping

    def _save(self, now: float) -> None:
        self._save_at = now + SAVE_SECONDS
        self._update_figures(now)
        if not all(feed.savable for feed in self.feeds):
            return
        for feed in self.feeds:
            feed.note_place()
        try:
            self._place.save()
        except OSError as error:  # such as a full disk: the place is saved when there is room
            self._say("place", f"the place cannot be saved: {error}; a crash now repeats more")
            return
        self._unsaved = False

    def _update_figures(self, now: float) -> None:
        figures, wall = self._figures, self._wall()
        figures.partitions = self._count
        figures.parked = sum(feed.parked for feed in self.feeds)
        figures.waiting_bytes = sum(feed.waiting_bytes for feed in self.feeds)
        oldest = [at for feed in self.feeds if (at := feed.oldest_ms) is not None]
        figures.lag_seconds = max(0.0, wall - min(oldest) / 1000) if oldest else 0.0
        figures.repeats = dict(self._place.cursor.repeats)
        for feed in self.feeds:
            label = feed.record_class.label
            figures.acknowledged[label] = feed.place.acknowledged
            figures.set_aside[label] = feed.place.set_aside

    def _look(self, now: float) -> None:
        """Say why batches are not acknowledged, if any wait for long, and when that is over."""
        self._look_at = now + 1.0
        self._update_figures(now)
        slots = [slot for feed in self.feeds for slot in feed.slots.values()]
        slow = {
            slot.partition
            for slot in slots
            if slot.batch is not None and now - slot.sent_at > SLOW_SECONDS
        }
        if not slow:
            # A new connection is no proof: what had to wait must have been taken, or be no more.
            figures = self._figures
            if figures.outage and not any(slot.backoff for slot in slots):
                last = max((slot.progress_at for slot in slots), default=0.0)
                if last > figures.outage_since or not any(slot.owed for slot in slots):
                    waited = figures.outage_seconds(now)
                    figures.outage = ""
                    self._say("back", f"records are taken again, after {waited:.0f} s without")
            return
        producer = self._producer
        leaderless = sorted(each for each in slow if not producer.has_leader(each))
        if problem := producer.authentication_problem():
            kind, text = "authentication", f"the brokers refuse us: {problem}; {_CREDENTIALS}"
        elif leaderless:
            kind, text = "leader", f"partitions {leaderless} have no leader; their records wait"
        else:
            kind = "slow"
            text = (
                f"no answer from the brokers for partitions {sorted(slow)}: records wait in the "
                "event log until Kafka takes them"
            )
        self._figures.note_outage(text, now)
        self._say(kind, text)


_GOOD_NEWS = ("ready", "back")
_CREDENTIALS = "check kafka.sasl_username, kafka.sasl_password_file and kafka.sasl_mechanism"
_NOT_AUTHORIZED = (
    "the brokers do not let this user write: grant Write and Describe on the topic and "
    "IdempotentWrite on the cluster; records wait in the event log"
)


def _words(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return text if name in text else f"{name}: {text}" if text else name


class Bridge:
    """Runs sessions one after another in a thread, until stopped.

    Args:
        directory: the event log's folder, opened by this process or by nobody.
        settings: section ``[kafka]``, with brokers.
        wakeup: told by the log's writer; None when there is none.
        connect: makes producers; None: of kafka-python.
        files: the file operations; tests pass a set that fails.
        monotonic: seconds from any start.
        wall: seconds since the epoch.
        once: end when the log holds nothing more that Kafka has not.
    """

    log = Logger()

    def __init__(
        self,
        directory: Path,
        settings: KafkaSettings,
        wakeup: Wakeup | None = None,
        *,
        connect: Connect | None = None,
        files: FileOperations | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        once: bool = False,
    ) -> None:
        self._directory, self._settings, self._once = directory, settings, once
        self._files = FileOperations() if files is None else files
        self._monotonic, self._wall = monotonic, wall
        self._wakeup = Wakeup() if wakeup is None else wakeup
        self._connect = self._connect_library if connect is None else connect
        self._letters = DeadLetters(directory, settings.dead_letters_bytes, self._files)
        self._said: dict[str, float] = {}
        self._stopping = False
        self._linger = 0.0  # seconds a stop may wait for what is under way
        self._thread: threading.Thread | None = None
        self.failed: Exception | None = None  # what ended it, if nobody stopped it
        self.figures = BridgeFigures()

    # -- the thread

    def start(self) -> None:
        """Begin.

        Raises:
            OperatorError: password or CA file cannot be read.
        """
        quiet_library()
        connection_options(self._settings)
        self._thread = threading.Thread(target=self._run, name="kafka-bridge", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """End: hand nothing more over, wait for what is under way, save the place. Blocking.

        Args:
            seconds: to wait at most. What is not acknowledged by then is sent again next time.

        Returns:
            Whether the thread has ended.
        """
        self._linger, self._stopping = seconds * 0.7, True
        self._wakeup.wake()
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self.run_noting_failure()
        if self.failed is not None:
            self.log.error(
                "the Kafka bridge ended: {error!r}; records stay in the log until a restart",
                error=self.failed,
            )

    def run_noting_failure(self) -> None:
        """Do as `run`, for a thread: what ended it is `failed` afterwards."""
        try:
            self.run()
        except Exception as error:
            self.failed = error

    def run(self) -> None:
        """Bridge until stopped, in this thread; with ``once`` until everything is there.

        Raises:
            OperatorError: there is no log, or another process feeds Kafka from it.
            LogFormatError: it is of an unknown format version.
        """
        place = Place(self._directory, self._files, self._wall)
        try:
            wait = 0.0
            while not self._stopping:
                try:
                    done = self._session(place)
                except (*_CONNECT_ERRORS, OperatorError) as error:
                    if isinstance(error, OperatorError) and self._once:
                        raise
                    wait = min(max(BACKOFF_SECONDS[0], wait * 2), BACKOFF_SECONDS[1])
                    self._outage("connect", f"{_words(error)}; records wait in the event log")
                    self._pause(wait)
                    continue
                wait = 0.0
                if done:
                    return
        finally:
            place.close()

    def _session(self, place: Place) -> bool:
        """Run one session to its end; True when everything is done."""
        producer = self._connect(self._retried)
        self.figures.connected = True
        session: Session | None = None
        try:
            if not self._topic_known(producer):
                return False
            session = Session(
                place,
                producer,
                settings=self._settings,
                letters=self._letters,
                figures=self.figures,
                say=self._say,
                wakeup=self._wakeup,
                monotonic=self._monotonic,
                wall=self._wall,
            )
            self._say("ready", f"feeding topic {self._settings.topic}")
            while not self._stopping:
                wait = session.turn()
                if self._once and session.drained:
                    session.finish("stop")
                    return True
                if (cause := session.over()) is not None:
                    session.finish(cause)
                    self._pause(BACKOFF_SECONDS[0])
                    return False
                if wait > 0:
                    self._wakeup.wait(wait)
            session.ending = True
            end = self._monotonic() + self._linger
            while not session.idle and self._monotonic() < end:
                self._wakeup.wait(0.05)
                session.turn()
            session.finish("stop")
            return True
        finally:
            self.figures.connected = False
            if session is not None:
                session.finish("reset")  # unless that was done: an error ends it
                session.close()
            producer.close(0.5)

    def _topic_known(self, producer: Producer) -> bool:
        """Wait until the topic's partitions are known."""
        began = self._monotonic()
        while not self._stopping:
            if producer.partitions():
                return True
            if (error := producer.fatal()) is not None:
                raise error
            topic = self._settings.topic
            if producer.unauthorized():
                self._outage("authorization", _NOT_AUTHORIZED)
            elif self._monotonic() - began > 5:
                self._outage("topic", f"topic {topic} does not exist: create it on the brokers")
            self._pause(0.1)
        return False

    def _pause(self, seconds: float) -> None:
        end = self._monotonic() + seconds
        while not self._stopping and (left := end - self._monotonic()) > 0:
            self._wakeup.wait(left)

    def _retried(self) -> None:
        self.figures.retries += 1

    def _connect_library(self, retried: Callable[[], None]) -> Producer:
        return BatchProducer(connection_options(self._settings), self._settings.topic, retried)

    def _outage(self, kind: str, text: str) -> None:
        self.figures.note_outage(text, self._monotonic())
        self._say(kind, text)

    def _say(self, kind: str, text: str) -> None:
        now = self._monotonic()
        if now - self._said.get(kind, -SAY_SECONDS) >= SAY_SECONDS:
            self._said[kind] = now
            if kind in _GOOD_NEWS:
                self.log.info("Kafka: {text}", text=text)
            else:
                self.log.error("Kafka: {text}", text=text)
