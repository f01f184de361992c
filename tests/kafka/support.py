"""Scenery of the bridge's tests: logs with records, and a Kafka cluster as the bridge sees it."""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import kafka.errors
from attrs import define, field
from kafka.record.memory_records import MemoryRecords
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from elkeid.config import EventLogSettings, KafkaSettings, MiB
from elkeid.eventlog import EventLog
from elkeid.eventlog.files import FileOperations
from elkeid.eventlog.wakeup import Wakeup
from elkeid.kafka.batches import Batch
from elkeid.kafka.bridge import BridgeFigures, Place, Session
from elkeid.kafka.deadletters import DeadLetters
from elkeid.kafka.producer import Outcome
from elkeid.wire.datatypes import RecordClass
from elkeid.wire.protobuf import length_delimited, varint

SETTINGS = KafkaSettings(brokers=("127.0.0.1:9092",))


def record(body: bytes, data_type: int = 59) -> bytes:
    """Fields 1 to 3 of MQData."""
    return b"\x08" + varint(data_type) + b"\x10\x05" + length_delimited(3, body)


def region(*records: bytes) -> bytes:
    """Records as a region has them."""
    return b"".join(b"\x0a" + varint(len(each)) + each for each in records)


def suffix(agent_id: bytes) -> bytes:
    """The shortest suffix of an agent."""
    return length_delimited(4, agent_id) + length_delimited(9, b"host")


class Log:
    """An event log with its writer, all in this thread."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory, self.clock = directory, Clock()
        self.clock.advance(time.time())
        chosen = {"min_free_bytes": 0, "readers": ("kafka",), **settings}
        self.log = EventLog(
            directory,
            EventLogSettings(**chosen),  # type: ignore[arg-type]
            self.clock,
            maybeDeferred,
        )
        self._run(self.log.open())
        self.sent: dict[tuple[RecordClass, bytes], list[bytes]] = defaultdict(list)

    @staticmethod
    def _run(coroutine: object) -> None:
        failed: list[object] = []
        Deferred.fromCoroutine(coroutine).addErrback(failed.append)  # type: ignore[arg-type]
        assert not failed, failed

    def append(
        self, agent: bytes, *bodies: bytes, cls: RecordClass = RecordClass.TELEMETRY
    ) -> None:
        """Append and commit one batch of an agent."""
        records = [record(body) for body in bodies]
        self.log.append(cls, len(records), suffix(agent), region(*records))
        self.sent[cls, agent] += [each + suffix(agent) for each in records]
        self.log.commit()

    def ledger(self, cls: RecordClass = RecordClass.TELEMETRY) -> dict[str, object]:
        """What became of a class with the reader ``kafka``."""
        account = self.log.ledger()[cls.label]
        found = account["readers"]["kafka"]
        total = found["acknowledged"] + found["set_aside"] + found["waiting"]
        assert account["appended"] == total + sum(found["expired"].values()), account
        return dict(found)

    def close(self) -> None:
        self._run(self.log.close())


@define
class Sent:
    """A batch that was handed over and waits for its outcome."""

    partition: int
    batch: Batch
    outcome: Outcome


@define
class Cluster:
    """The brokers as the bridge sees them: what they took, and whether they answer.

    ``verdict`` says what becomes of a batch: None takes it, an error refuses it, and `HOLD`
    leaves it without an answer.
    """

    count: int = 4
    verdict: Callable[[int, Batch], object] = lambda _partition, _batch: None
    taken: dict[int, list[tuple[bytes, bytes, int]]] = field(factory=lambda: defaultdict(list))
    held: list[Sent] = field(factory=list)
    broken: BaseException | None = None
    closed: int = 0
    handed: list[Sent] = field(factory=list)

    def partitions(self) -> int | None:
        return self.count or None

    def unauthorized(self) -> bool:
        return False

    def has_leader(self, partition: int) -> bool:
        return True

    def send(self, partition: int, batch: Batch, outcome: Outcome) -> None:
        self.handed.append(Sent(partition, batch, outcome))

    def flush(self) -> None:
        handed, self.handed = self.handed, []
        for each in handed:
            answer = self.verdict(each.partition, each.batch)
            if answer is HOLD:
                self.held.append(each)
            elif answer is None:
                self.take(each)
            else:
                assert isinstance(answer, BaseException)
                each.outcome(answer)

    def take(self, sent: Sent, answer: bool = True) -> None:
        """Append a batch to its partition, and say so unless the acknowledgement is lost."""
        for batch in MemoryRecords(sent.batch.header(1, 0, 0) + sent.batch.body):
            assert batch.validate_crc()
            for message in batch:
                assert not message.headers
                self.taken[sent.partition].append((message.key, message.value, message.timestamp))
        if answer:
            sent.outcome(None)

    def release(self) -> None:
        """Take what was held back."""
        held, self.held = self.held, []
        for each in held:
            self.take(each)

    def fatal(self) -> BaseException | None:
        return self.broken

    def authentication_problem(self) -> str | None:
        return None

    def close(self, seconds: float) -> None:
        self.closed += 1
        error = kafka.errors.KafkaConnectionError("closed")
        for each in (*self.held, *self.handed):
            each.outcome(error)
        self.held, self.handed = [], []

    def values(self) -> dict[bytes, list[bytes]]:
        """What was taken, by key, in order of the partitions."""
        found: dict[bytes, list[bytes]] = defaultdict(list)
        for messages in self.taken.values():
            for key, value, _ in messages:
                found[key].append(value)
        return found


HOLD = object()


class Run:
    """A session over a log, turned by hand on a clock of its own."""

    def __init__(self, log: Log, cluster: Cluster, settings: KafkaSettings = SETTINGS) -> None:
        self.log, self.cluster, self.now = log, cluster, 100.0
        self.figures, self.said = BridgeFigures(), list[tuple[str, str]]()
        files = FileOperations()
        self.place = Place(log.directory, files, time.time)
        self.letters = DeadLetters(log.directory, 2 * MiB, files)
        self.session = Session(
            self.place,
            cluster,
            settings=settings,
            letters=self.letters,
            figures=self.figures,
            say=lambda kind, text: self.said.append((kind, text)),
            wakeup=Wakeup(),
            monotonic=lambda: self.now,
            wall=time.time,
        )

    def turn(self, count: int = 1, seconds: float = 0.1) -> None:
        for _ in range(count):
            self.session.turn()
            self.now += seconds

    def stop(self, cause: str = "stop") -> None:
        """End as a bridge that is stopped does."""
        self.session.finish(cause)
        self.kill()

    def kill(self) -> None:
        """End as a process that is killed does: nothing is saved."""
        self.session.close()
        self.place.close()
