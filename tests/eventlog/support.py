"""A disk that can fail, and short names for what the tests of the log do all the time."""

import errno
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from elkeid.config import EventLogSettings
from elkeid.eventlog import Entry, EventLog, LogReader
from elkeid.eventlog.files import FileOperations, Space
from elkeid.wire.datatypes import RecordClass

CONTROL, TELEMETRY, LOGS = RecordClass
NOW = 1_700_000_000.0  # where the clock begins, seconds since the epoch
PLENTY = Space(1 << 40, 1 << 41)
FULL, BROKEN = errno.ENOSPC, errno.EIO
T = TypeVar("T")


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Killed(BaseException):
    """The process ends here, as by ``kill -9``."""


class Disk(FileOperations):
    """The real disk, unless a test says that an operation fails.

    ``failures[operation]`` is a list of what happens at the next calls: an errno; None for
    success; ``"kill"``: the process is gone; for ``writev`` also ``("short", n)``: n bytes only,
    and ``("kill", n)``: n bytes, then the process is gone. ``always[operation]`` is an errno for
    all calls.
    """

    def __init__(self) -> None:
        self.failures: dict[str, list[Any]] = {}
        self.always: dict[str, int] = {}
        self.calls: list[tuple[str, Any]] = []
        self.room = PLENTY
        self.root = Path()
        self.volume: int | None = None  # bytes that segments and reserve can take; None: plenty

    def _pass(self, operation: str, what: Any) -> Any:
        self.calls.append((operation, what))
        planned = self.failures.get(operation)
        fate = planned.pop(0) if planned else self.always.get(operation)
        if fate == "kill":
            raise Killed
        if isinstance(fate, int):
            raise OSError(fate, os.strerror(fate))
        return fate

    def count(self, operation: str) -> int:
        """How often it was called."""
        return sum(name == operation for name, _ in self.calls)

    def writev(self, fd: int, parts: Any) -> int:  # type: ignore[override]
        fate = self._pass("writev", fd)
        if fate is None and self.volume is not None:
            left = self.volume - self.used()
            if left <= 0:
                raise OSError(FULL, os.strerror(FULL))
            fate = ("short", left)
        if fate is None:
            return os.writev(fd, parts)
        how, count = fate
        data = b"".join(parts)[:count]
        written = os.write(fd, data) if data else 0
        if how == "kill":
            raise Killed
        return written

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:  # type: ignore[override]
        self._pass("pwrite", fd)
        return os.pwrite(fd, data, offset)

    def ftruncate(self, fd: int, size: int) -> None:  # type: ignore[override]
        self._pass("ftruncate", fd)
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:  # type: ignore[override]
        self._pass("fsync", fd)

    def unlink(self, path: Path) -> None:  # type: ignore[override]
        self._pass("unlink", path)
        path.unlink()

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT:
            self._pass("create", path)
        else:
            self._pass("open", path)
        return super().open(path, flags)

    def allocate(self, fd: int, size: int) -> None:
        self._pass("allocate", fd)
        if self.volume is not None and self.volume - self.used() < size:
            raise OSError(FULL, os.strerror(FULL))
        os.ftruncate(fd, size)

    def space(self, path: Path) -> Space:
        self._pass("space", path)
        if self.volume is not None:
            return Space(max(0, self.volume - self.used()), self.volume)
        return self.room

    def used(self) -> int:
        """Bytes of the volume that are taken."""
        files = (*self.root.glob("*/*.seg"), *self.root.glob("reserve"))
        return sum(path.stat().st_size for path in files)


def settings(**changes: Any) -> EventLogSettings:
    """Settings with limits as small as a test wants them."""
    with attrs.validators.disabled():
        return EventLogSettings(**{"min_free_bytes": 0, **changes})


def result_of(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of what needs no waiting."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    assert results, "it waits for something"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]  # type: ignore[no-any-return]


class Server:
    """A log that is open, as in a running server whose thread pool is instantaneous."""

    def __init__(
        self,
        directory: Path,
        clock: Clock | None = None,
        disk: Disk | None = None,
        **changes: Any,
    ) -> None:
        self.directory, self.disk = directory, disk or Disk()
        self.disk.root = directory
        if clock is None:
            clock = Clock()
            clock.advance(NOW)
        self.clock = clock
        self.log = EventLog(directory, settings(**changes), clock, execute, self.disk)
        result_of(self.log.open())

    def turn(self) -> None:
        """End the reactor's turn."""
        self.clock.advance(0)

    def put(self, *numbers: int, cls: RecordClass = TELEMETRY) -> None:
        """Append one entry of a record for each number, and commit."""
        self.log.append(cls, len(numbers), SUFFIX, region(*numbers))
        self.log.commit()

    def kill(self) -> None:
        """End as by ``kill -9``: the kernel closes the files, nothing else happens."""
        self.log._release()
        for call in list(self.clock.getDelayedCalls()):
            call.cancel()

    def close(self) -> None:
        """Stop in order."""
        result_of(self.log.close())

    def ledger(self, cls: RecordClass = TELEMETRY) -> dict[str, Any]:
        """The ledger of a class, after looking that it balances everywhere."""
        ledger = self.log.ledger()
        for account in ledger.values():
            assert account["read"] == account["appended"] + sum(account["dropped"].values())
            for name, each in account["readers"].items():
                total = each["acknowledged"] + each["set_aside"] + each["waiting"]
                assert account["appended"] == total + sum(each["expired"].values()), (name, account)
        return ledger[cls.label]

    def segments(self, cls: RecordClass = TELEMETRY) -> list[Path]:
        """The segment files of a class, oldest first."""
        return sorted((self.directory / cls.label).glob("*.seg"))


SUFFIX = b"\x22\x02a1"  # field 4, the agent id


def record(number: int) -> bytes:
    """A record of which ``number`` is the timestamp."""
    return b"\x08\x3b\x10" + _varint(number)


def region(*numbers: int) -> bytes:
    """Records as they stand in a batch."""
    found = (record(number) for number in numbers)
    return b"".join(b"\x0a" + _varint(len(each)) + each for each in found)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def numbers_of(entry: Entry) -> list[int]:
    """The numbers that `region` was made of."""
    found, at = [], 0
    data = entry.region
    while at < len(data):
        size = data[at + 1]
        number = 0
        for byte in reversed(data[at + 5 : at + 2 + size]):
            number = number << 7 | byte & 0x7F
        found.append(number)
        at += 2 + size
    assert entry.records == len(found)
    return found


def read_all(directory: Path, cls: RecordClass = TELEMETRY) -> list[tuple[int, int]]:
    """(offset, number) of every record of a class, as an anonymous reader gets them."""
    with LogReader(directory) as reader:
        return list(pairs(reader, cls))


def pairs(reader: LogReader, cls: RecordClass = TELEMETRY) -> Iterator[tuple[int, int]]:
    """(offset, number) of every record of a class that a reader yields now."""
    for entry in reader.entries():
        if entry.record_class is cls:
            yield from enumerate(numbers_of(entry), entry.first_offset)


SMALL: dict[str, Any] = {"segment_bytes": 400, "telemetry_cap_bytes": 1 << 20}
"""Settings of segments so small that a few frames fill one."""
