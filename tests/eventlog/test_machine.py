"""Any order of appends, turns, failures, kills, restarts, reads and deletions, against a model."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.task import Clock

from elkeid.eventlog import LogReader
from elkeid.wire.datatypes import RecordClass
from tests.eventlog.support import (
    BROKEN,
    CONTROL,
    FULL,
    LOGS,
    NOW,
    SUFFIX,
    TELEMETRY,
    Disk,
    Killed,
    Server,
    numbers_of,
    region,
)

CLASSES = st.sampled_from([CONTROL, TELEMETRY, TELEMETRY, LOGS])
FATES = st.sampled_from(
    [FULL, BROKEN, None, ("short", 0), ("short", 1), ("short", 40), ("short", 70), ("short", 150)]
)


class LogMachine(RuleBasedStateMachine):
    """The model: what was stored at which offset, what was dropped, and where readers are."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="eventlog"))
        self.clock = Clock()
        self.clock.advance(NOW)
        self.stored: dict[RecordClass, dict[int, int]] = {cls: {} for cls in RecordClass}
        self.next: dict[RecordClass, int] = dict.fromkeys(RecordClass, 0)
        self.dropped: dict[RecordClass, int] = dict.fromkeys(RecordClass, 0)
        self.pending: dict[RecordClass, list[int]] = {cls: [] for cls in RecordClass}
        self.last_number = 0
        self.acknowledged: dict[RecordClass, int] = dict.fromkeys(RecordClass, 0)
        self.server: Server | None = None
        self.follower: LogReader | None = None
        self.followed: dict[RecordClass, int] = dict.fromkeys(RecordClass, 0)

    def teardown(self) -> None:
        """Leave nothing behind."""
        if self.server is not None:
            self.server.close()
        if self.follower is not None:
            self.follower.close()
        shutil.rmtree(self.directory)

    @initialize()
    def first_start(self) -> None:
        """The server starts for the first time."""
        self.start()

    def start(self) -> None:
        """Start; what was buffered when the last process died is gone."""
        self.server = Server(
            self.directory,
            self.clock,
            Disk(),
            segment_bytes=600,
            telemetry_cap_bytes=4000,
            logs_cap_bytes=3000,
            control_cap_bytes=1 << 20,
            retention=86400.0,
            readers=("kafka",),
        )

    def settle(self) -> None:
        """After a commit: what was pending is stored or dropped, as a whole."""
        assert self.server is not None
        stats = self.server.log.stats().classes
        for cls, numbers in self.pending.items():
            if stats[cls].next_offset > self.next[cls]:
                assert stats[cls].next_offset == self.next[cls] + len(numbers)
                self.stored[cls].update(enumerate(numbers, self.next[cls]))
                self.next[cls] += len(numbers)
            else:
                self.dropped[cls] += len(numbers)
            self.pending[cls] = []

    @precondition(lambda self: self.server is None)
    @rule()
    def restart(self) -> None:
        """The server starts again."""
        self.start()
        assert self.server is not None
        for cls, stats in self.server.log.stats().classes.items():
            assert stats.next_offset == self.next[cls]

    @precondition(lambda self: self.server is not None)
    @rule(cls=CLASSES, count=st.integers(1, 12))
    def append(self, cls: RecordClass, count: int) -> None:
        """An agent's batch."""
        assert self.server is not None
        numbers = list(range(self.last_number + 1, self.last_number + count + 1))
        self.last_number += count
        self.server.log.append(cls, count, SUFFIX, region(*numbers))
        self.pending[cls] += numbers

    @precondition(lambda self: self.server is not None)
    @rule(cls=CLASSES, count=st.integers(1, 5))
    def drop(self, cls: RecordClass, count: int) -> None:
        """Records above a rate."""
        assert self.server is not None
        self.server.log.drop(cls, "rate", count)
        self.server.turn()
        self.settle()
        self.dropped[cls] += count

    @precondition(lambda self: self.server is not None)
    @rule()
    def turn(self) -> None:
        """The reactor's turn ends."""
        assert self.server is not None
        self.server.turn()
        self.settle()

    @precondition(lambda self: self.server is not None)
    @rule(seconds=st.sampled_from([0.5, 1.0, 30.0]))
    def wait(self, seconds: float) -> None:
        """Time passes: fsync, checkpoint, deletion."""
        assert self.server is not None
        self.turn()
        self.clock.advance(seconds)

    @precondition(lambda self: self.server is not None)
    @rule(
        operation=st.sampled_from(["writev", "fsync", "ftruncate", "pwrite", "unlink", "create"]),
        error=st.sampled_from([FULL, BROKEN]),
        fates=st.lists(FATES, min_size=1, max_size=4),
    )
    def failing_turn(self, operation: str, error: int, fates: list[Any]) -> None:
        """The disk fails in some way while a turn ends; afterwards it works again."""
        assert self.server is not None
        disk = self.server.disk
        if operation == "writev":
            disk.failures["writev"] = fates
        else:
            disk.failures["writev"] = [("short", 30), FULL] if operation == "ftruncate" else []
            disk.failures[operation] = [error]
        self.turn()
        self.clock.advance(1)
        disk.failures.clear()

    @precondition(lambda self: self.server is not None)
    @rule()
    def full_disk(self) -> None:
        """There is no room at all for a turn."""
        assert self.server is not None
        self.server.disk.volume = self.server.disk.used()
        self.turn()
        self.server.disk.volume = None

    @precondition(lambda self: self.server is not None)
    @rule()
    def kill(self) -> None:
        """``kill -9`` between two turns: what was not committed was never read."""
        assert self.server is not None
        self.server.kill()
        self.server = None
        for numbers in self.pending.values():
            numbers.clear()

    @precondition(lambda self: self.server is not None)
    @rule(written=st.integers(0, 400))
    def kill_in_write(self, written: int) -> None:
        """``kill -9`` in the middle of a commit."""
        assert self.server is not None
        disk = self.server.disk
        disk.failures["writev"] = [("kill", written)]
        before = {cls: self.size(cls) for cls in RecordClass}
        try:
            self.server.log.commit()
        except Killed:
            torn = next(cls for cls in RecordClass if self.pending[cls])
            self.server.kill()
            self.server = None
            self.start()
            assert self.server is not None
            stats = self.server.log.stats().classes[torn]
            numbers, self.pending[torn] = self.pending[torn], []
            if stats.next_offset > self.next[torn]:
                assert written >= self.size(torn) - before[torn] > 0
                self.stored[torn].update(enumerate(numbers, self.next[torn]))
                self.next[torn] += len(numbers)
            else:
                lost = stats.read - self.next[torn] - self.dropped[torn]
                assert lost in (0, len(numbers))  # known if the frame's header was written
                self.dropped[torn] += lost
        else:
            disk.failures.clear()
            self.settle()
            self.server.kill()
            self.server = None
        for numbers in self.pending.values():
            numbers.clear()

    def size(self, cls: RecordClass) -> int:
        """Bytes in the segments of a class."""
        files = (self.directory / cls.label).glob("*.seg")
        return sum(path.stat().st_size for path in files)

    @precondition(lambda self: self.server is not None)
    @rule()
    def stop(self) -> None:
        """An orderly stop."""
        assert self.server is not None
        self.turn()
        self.server.close()
        assert self.clock.getDelayedCalls() == []
        self.server = None

    @rule(limit=st.integers(1, 30), save=st.booleans(), inside=st.booleans())
    def read(self, limit: int, save: bool, inside: bool) -> None:
        """The reader of the settings reads on from where it was, maybe into a batch's middle."""
        with LogReader(self.directory, "kafka", kept=True, files=Disk()) as reader:
            seen = dict(self.acknowledged)
            for entry in reader.entries():
                cls, numbers = entry.record_class, numbers_of(entry)
                assert entry.first_offset >= seen[cls]
                if inside:
                    numbers = numbers[: max(1, len(numbers) // 2)]
                for offset, number in enumerate(numbers, entry.first_offset):
                    assert self.stored[cls][offset] == number
                seen[cls] = entry.first_offset + len(numbers)
                reader.acknowledge(cls, seen[cls])
                limit -= len(numbers)
                if limit < 0 or inside:
                    break
            if save:
                reader.save()
                for cls in RecordClass:
                    place = reader.place(cls)
                    assert place.balanced
                    assert place.position >= seen[cls]
                    self.acknowledged[cls] = place.position

    @rule()
    def follow(self) -> None:
        """A reader that stays beside the server sees each record once, in order."""
        if self.follower is None:
            self.follower = LogReader(self.directory)
        for entry in self.follower.entries():
            cls = entry.record_class
            assert entry.first_offset >= self.followed[cls]
            self.followed[cls] = entry.end_offset
            for offset, number in enumerate(numbers_of(entry), entry.first_offset):
                assert self.stored[cls][offset] == number
        for cls in RecordClass:
            assert self.followed[cls] in (self.next[cls], 0) or self.gone(cls)

    def gone(self, cls: RecordClass) -> bool:
        """Whether the end of the class was deleted, so that a follower waits below it."""
        return not list((self.directory / cls.label).glob("*.seg"))

    @precondition(lambda self: self.server is not None)
    @invariant()
    def everything_is_there(self) -> None:
        """What was not deleted is read as it was stored; the ledger balances."""
        assert self.server is not None
        if any(self.pending.values()):
            return
        oldest = {cls: s.oldest_offset for cls, s in self.server.log.stats().classes.items()}
        got: dict[RecordClass, dict[int, int]] = {cls: {} for cls in RecordClass}
        with LogReader(self.directory) as reader:
            for entry in reader.entries():
                got[entry.record_class].update(enumerate(numbers_of(entry), entry.first_offset))
        for cls in RecordClass:
            expected = {n: v for n, v in self.stored[cls].items() if n >= oldest[cls]}
            found = {n: v for n, v in got[cls].items() if n >= oldest[cls]}
            assert found == expected
            account = self.server.ledger(cls)
            assert account["appended"] == self.next[cls] == len(self.stored[cls])
            assert sum(account["dropped"].values()) == self.dropped[cls]


LogMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLogMachine = LogMachine.TestCase
TestLogMachine.__doc__ = "The log behaves as its model in any order of events."
