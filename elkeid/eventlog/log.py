"""The event log: one writer, one log a class, group commit, durable readers' places, the ledger."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from elkeid.config import EventLogSettings, GiB, KiB, MiB
from elkeid.errors import OperatorError
from elkeid.eventlog.backlog import Backlog, backlog
from elkeid.eventlog.classlog import ClassLog, OpenSegment
from elkeid.eventlog.cursors import (
    READERS_DIRECTORY,
    ClassCursor,
    Cursor,
    cursor_path,
    forget_unused,
    furthest_position,
    lock_reader,
    read_cursors,
    reader_names,
    save_cursor,
    set_aside_damaged,
)
from elkeid.eventlog.files import (
    FileOperations,
    Space,
    lock_file,
    sync_directory,
    try_writing,
)
from elkeid.eventlog.format import pack_entry
from elkeid.eventlog.ledger import class_account
from elkeid.eventlog.packed import forget_pack, pack, put_in_place
from elkeid.eventlog.recovery import Recovered, Segment, check_versions, recover
from elkeid.eventlog.room import Room, room_rate
from elkeid.eventlog.segment import list_segments
from elkeid.eventlog.wakeup import Wakeup
from elkeid.ledgers import Ledger
from elkeid.wire.datatypes import RecordClass
from elkeid.wire.mqdata import pieces

MAX_BUFFER_BYTES = 512 * KiB
"""Commit at once when a turn has brought so much. What is joined, summed and copied to the page
cache then still lies in the processor's cache: frames of some MiB cost half as much again a
record. It bounds memory and the length of a frame, too."""

RESERVE_BYTES = 16 * MiB
"""Kept allocated, given up when control records meet a full disk: half a minute of heartbeats
of 10,000 agents."""

HOUSEKEEPING_SECONDS = 10.0
"""Pause between two looks at age, caps, free space and unused readers while nothing is written."""

MAX_TELEMETRY_CAP_BYTES = 50 * GiB
MIN_FREE_SHARE = 0.05  # of the volume, when min_free_bytes is not set

PROBE_BYTES = 64 * KiB
"""Written where records could not be, to learn whether they can again when none come."""

PACK_AFTER_SECONDS = 10.0
"""A sealed segment that a reader of the settings has not begun after so long is packed."""

_RESERVE_FILE = "reserve"
_PROBE_FILE = "probe"
LOCK_FILE = "lock"
Backlogs = dict[tuple[str, str], Backlog]
"""By reader and class label."""

InThread = Callable[..., "Deferred[Any]"]
"""``in_thread(function, *args)`` runs it in a pool and fires with its result."""


@define
class _Sync:
    """One file to make durable, and what is durable once that has succeeded."""

    log: ClassLog
    segment: OpenSegment
    size: int
    end: int
    close: bool
    error: OSError | None = None


@define
class _Probe:
    """Whether a class can be written again whose last write failed."""

    log: ClassLog
    failures: int  # of its writes, when this was asked
    passed: bool = False


@define
class _Chores:
    """What a thread is to do for the log, and afterwards what came of it."""

    min_free: int
    syncs: list[_Sync] = field(factory=list)
    directories: set[Path] = field(factory=set)  # with new names; afterwards those that failed
    states: list[int] = field(factory=list)  # descriptors
    doomed: list[tuple[ClassLog, Path]] = field(factory=list)
    probes: list[_Probe] = field(factory=list)
    now_ms: int | None = None  # None: readers need no look now
    oldest: dict[str, int] = field(factory=dict)  # class label -> oldest offset
    gone: list[tuple[ClassLog, Path]] = field(factory=list)
    space: Space | None = None
    cursors: dict[str, Cursor] | None = None
    backlogs: Backlogs = field(factory=dict)
    problems: list[str] = field(factory=list)


@frozen
class ClassStats:
    """Figures of one class, for metrics."""

    bytes_on_disk: int
    cap_bytes: int
    segments: int
    oldest_offset: int
    next_offset: int
    read: int
    dropped: dict[str, int]
    write_failures: int
    sync_failures: int
    lost_tails: int
    lost_records: int
    lost_bytes: int


@frozen
class LogStats:
    """Figures of the whole log, for metrics."""

    classes: dict[RecordClass, ClassStats]
    free_bytes: int
    min_free_bytes: int
    buffered_bytes: int


def class_cap(
    settings: EventLogSettings, record_class: RecordClass, free: int, own: int, sharers: int = 1
) -> int:
    """What the segments of a class may take.

    Args:
        settings: section ``[eventlog]``.
        record_class: which one it is.
        free: bytes free on the volume.
        own: bytes that the log's telemetry takes already: they count as free, or the cap would
            shrink at every start.
        sharers: processes with a log of their own on the volume.
    """
    if record_class is RecordClass.CONTROL:
        return settings.control_cap_bytes
    if record_class is RecordClass.LOGS:
        return settings.logs_cap_bytes
    if settings.telemetry_cap_bytes is not None:
        return settings.telemetry_cap_bytes
    cap = min((free + own * sharers) // 2, MAX_TELEMETRY_CAP_BYTES)
    return max(cap // sharers, 16 * MiB)


class EventLog:
    """Appends records, so that what was committed survives ``kill -9`` of this process.

    `append` and `drop` only note things down; one commit per reactor turn writes one frame a
    class. All methods belong to the reactor thread; fsync and deletion run in ``in_thread``.

    Args:
        directory: the log's folder, made if missing.
        settings: section ``[eventlog]``.
        clock: for the commit at the end of the turn, and for wall-clock times.
        in_thread: ``deferToThreadPool`` with reactor and pool filled in, or a stand-in.
        files: the file operations; tests pass a set that fails.
        sharers: processes of this host that have a log on this volume: a cap that follows from
            the free space is shared out among them.
    """

    log = Logger()

    def __init__(
        self,
        directory: Path,
        settings: EventLogSettings,
        clock: IReactorTime,
        in_thread: InThread,
        files: FileOperations | None = None,
        *,
        sharers: int = 1,
    ) -> None:
        self._sharers = sharers
        self._directory, self._settings, self._clock = directory, settings, clock
        self._in_thread = in_thread
        self._files = FileOperations() if files is None else files
        self._kept = frozenset(settings.readers)
        self._logs: list[ClassLog] = []
        self._lock: int | None = None
        self._buffered = 0
        self._commit_call: IDelayedCall | None = None
        self._in_turn = False
        self._sync_call: IDelayedCall | None = None
        self._housekeeping_call: IDelayedCall | None = None
        self._chores = DeferredLock()  # one thread at a time works on the files
        self._chores_queued = False
        self._packing: Deferred[None] | None = None
        self._closed = False
        self._cursors: dict[str, Cursor] = {}
        self.backlogs: Backlogs = {}  # measured every `HOUSEKEEPING_SECONDS`
        self._readers_due = 0.0  # when cursors are to be looked at next
        self._space = Space(0, 0)
        self._min_free = 0
        # Looks at free space until the spent reserve can be back: the first may be an old one.
        self._reserve_rounds = 0
        self.wakeups: list[Wakeup] = []  # of readers in other threads of this process
        self.failures = 0  # commits that lost something, to tell whether a span of time had one
        # Commits what must be on disk no later than this log's records; tells whether all is.
        self.before_commit: Callable[[], bool] | None = None
        # Told of each look at the volume; drops by agent, which the log knows nothing of.
        self.looked: Callable[[Room], None] | None = None

    # -- opening and closing

    async def open(self) -> None:
        """Repair what the last process left, and get ready to append.

        Raises:
            LogFormatError: a file is of an unknown format version; nothing was changed.
            OperatorError: another process has this log, or the disk does not let us.
        """
        try:
            found = await self._in_thread(self._open_in_thread)
            self._adopt(found)
            try:
                await self._in_thread(self._begin_readers, self._oldest(), self._now_ms())
            except OSError as error:  # a full disk; tried again with the chores
                self.log.error("readers have no place yet: {error}", error=error)
        except OSError as error:
            self._release()
            raise OperatorError(
                f"{error.filename or self._directory}: {error.strerror or error}; "
                "server.data_dir must name a folder on a volume that this user can write"
            ) from error
        except BaseException:
            self._release()
            raise
        self._housekeeping_call = self._clock.callLater(0, self._housekeeping_due)

    def _open_in_thread(self) -> list[Recovered]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock_file(self._directory / LOCK_FILE)
        if self._lock is None:
            raise OperatorError(
                f"{self._directory}: another process writes this event log; "
                "stop it, or give this one a server.data_dir of its own"
            )
        for each in RecordClass:
            check_versions(self._directory / each.label)
        (self._directory / READERS_DIRECTORY).mkdir(mode=0o700, exist_ok=True)
        self._cursors, damaged = read_cursors(self._directory)
        for name, error in damaged.items():
            self.log.error("{error} (it was moved aside)", error=error)
            set_aside_damaged(cursor_path(self._directory, name))
        self._space = self._files.space(self._directory)
        minimum = self._settings.min_free_bytes
        self._min_free = int(self._space.total * MIN_FREE_SHARE) if minimum is None else minimum
        found = [
            recover(
                self._files,
                self._directory / each.label,
                each,
                furthest_position(self._cursors, each),
            )
            for each in RecordClass
        ]
        for path in (self._directory, self._directory.parent):  # the folders made above
            sync_directory(self._files, path)
        return found

    def _adopt(self, found: list[Recovered]) -> None:
        for each, recovered in zip(RecordClass, found, strict=True):
            self._logs.append(
                ClassLog(
                    self._files,
                    self._directory / each.label,
                    each,
                    recovered,
                    segment_bytes=self._settings.segment_bytes,
                    cap_bytes=self._cap(each, recovered),
                    make_room=self._make_room,
                )
            )
            self._logs[-1].write_state()

    def _cap(self, record_class: RecordClass, recovered: Recovered) -> int:
        own = sum(segment.size for segment in recovered.sealed) + recovered.active_size
        return class_cap(self._settings, record_class, self._space.free, own, self._sharers)

    def _begin_readers(self, oldest: dict[str, int], now_ms: int) -> None:
        """In a thread: give readers of the settings a place, so that it holds segments back."""
        for name in sorted(self._kept - set(reader_names(self._directory))):
            held = lock_reader(self._directory, name)
            if held is None:
                continue  # it runs, and does so itself
            try:
                cursor = Cursor(used_ms=now_ms)
                for label, offset in oldest.items():
                    place = cursor.classes[label] = ClassCursor()
                    if offset:
                        place.expire("before", offset)
                save_cursor(self._files, cursor_path(self._directory, name), cursor)
            finally:
                os.close(held)

    def _oldest(self) -> dict[str, int]:
        return {log.record_class.label: log.oldest_offset for log in self._logs}

    async def close(self) -> None:
        """Commit, make everything durable, let go of the files; no timer is left."""
        if self._logs:
            self.commit()
        self._closed = True
        for call in (self._sync_call, self._housekeeping_call):
            if call is not None:
                call.cancel()
        self._sync_call = self._housekeeping_call = None
        if self._packing is not None:
            await self._packing
        if self._logs:
            await self._chores.run(self._run_chores)
        self._release()

    def _release(self) -> None:
        for log in self._logs:
            log.release()
        self._logs = []
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- the hot path

    def append(self, cls: RecordClass, count: int, suffix: bytes, region: bytes) -> None:
        """Note records down for the commit at the end of this turn.

        Args:
            cls: the class of all of them.
            count: how many, at least 1.
            suffix: MQData fields 4 to 15, the same for all.
            region: the records back to back, each as tag 0x0a, varint length, record.
        """
        if len(region) > MAX_BUFFER_BYTES and count > 1:
            for some, piece in pieces(region, MAX_BUFFER_BYTES):
                self.append(cls, some, suffix, piece)
            return
        log = self._logs[cls]
        log.parts += (pack_entry(count, len(suffix), len(region)), suffix, region)
        log.records += count
        self._buffered += len(suffix) + len(region)
        if self._commit_call is None and not self._in_turn:
            self._commit_call = self._clock.callLater(0, self._end_of_turn)
        if self._buffered > MAX_BUFFER_BYTES:
            self.commit()

    def drop(self, cls: RecordClass, reason: str, count: int) -> None:
        """Count records that were read and will not be appended.

        Args:
            cls: the class of all of them.
            reason: one of a few fixed words, such as ``rate``.
            count: how many.
        """
        self._logs[cls].drop(reason, count)
        if self._commit_call is None and not self._in_turn:
            self._commit_call = self._clock.callLater(0, self._end_of_turn)

    def begin_turn(self) -> None:
        """Leave the commit to `end_turn`, which must be called before the reactor goes on.

        It costs less than the timer that ends a turn otherwise.
        """
        self._in_turn = True

    def end_turn(self) -> None:
        """Commit what was appended or dropped since `begin_turn`."""
        self._in_turn = False
        if any(log.parts or log.state_dirty for log in self._logs):
            self.commit()

    def _end_of_turn(self) -> None:
        self._commit_call = None
        self.commit()

    def commit(self) -> bool:
        """Write what was appended since the last commit, one frame a class.

        Returns:
            Whether all of it is in the log; what is not was counted as dropped.
        """
        if self._commit_call is not None:
            self._commit_call.cancel()
            self._commit_call = None
        self._buffered = 0
        now_ms = self._now_ms()
        whole, touched = self.before_commit is None or self.before_commit(), False
        for log in self._logs:
            if log.parts or log.state_dirty:
                whole &= log.commit(now_ms)
                touched = True
        if not whole:
            self.failures += 1
        for wakeup in self.wakeups:
            wakeup.committed()
        if touched and self._sync_call is None:
            self._sync_call = self._clock.callLater(self._settings.fsync, self._sync_due)
        return whole

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)

    # -- chores: fsync, deletion, space, unused readers

    def _sync_due(self) -> None:
        self._sync_call = None
        self._queue_chores()

    def _housekeeping_due(self) -> None:
        self._housekeeping_call = self._clock.callLater(
            HOUSEKEEPING_SECONDS, self._housekeeping_due
        )
        self._queue_chores()

    def _queue_chores(self) -> None:
        if not self._chores_queued:  # else what is due is done by the run that waits
            self._chores_queued = True
            done: Deferred[None] = self._chores.run(self._run_chores)
            done.addErrback(lambda failure: self.log.failure("event log upkeep failed", failure))

    def _run_chores(self) -> "Deferred[None]":
        return Deferred.fromCoroutine(self._chores_once())

    async def _chores_once(self) -> None:
        self._chores_queued = False
        chores = self._gather()
        await self._in_thread(self._work, chores)
        self._apply(chores)
        if not self._closed:
            self._enforce_limits()
            if self.looked is not None:
                self.looked(self._room())
            self._pack_one()

    def _room(self) -> Room:
        others = [log for log in self._logs if log.record_class is not RecordClass.CONTROL]
        written = sum(log.written for log in others)
        # Only `min_free_bytes` makes control records give way, too.
        if any(log.sealed for log in (self._logs if self._min_free else others)):
            return Room(inf, written)
        if all(log.refusing for log in others):
            return Room(0.0, written)
        left = self._space.free - self._min_free
        left += sum(sum(log.doomed.values()) for log in self._logs)
        to_seal = self._logs[RecordClass.TELEMETRY].to_seal
        return Room(room_rate(left, to_seal, self._sharers), written)

    def _pack_one(self) -> None:
        """Begin to pack the oldest segment that waits for a reader of the settings, if any does."""
        if self._packing is not None or not self._kept:
            return
        before_ms = self._now_ms() - int(PACK_AFTER_SECONDS * 1000)
        for log in self._by_worth():
            open_names = {each.name for each in log.to_close}
            needed = self._needed(log)
            for segment in log.sealed:
                if (
                    not segment.packed
                    and segment.name.base > needed
                    and segment.last_ms <= before_ms
                    and segment.name not in open_names
                    and self._space.free > self._min_free + segment.size  # it takes room first
                ):
                    self._packing = Deferred.fromCoroutine(self._pack(log, segment))
                    return

    async def _pack(self, log: ClassLog, segment: Segment) -> None:
        path = segment.path(log.directory)
        try:
            size = await self._in_thread(pack, self._files, path)
            if segment not in log.sealed:  # given up meanwhile
                forget_pack(self._files, path)
                return
            put_in_place(self._files, path)
            log.sealed_bytes += size - segment.size
            segment.size, segment.packed = size, True
            log.unsynced_directory = True
        except OSError as error:  # such as a full disk; the segment is as it was
            self.log.error("{path}: cannot be packed: {error}", path=path, error=error)
            return
        finally:
            self._packing = None
        if not self._closed:
            self._pack_one()

    def _gather(self) -> _Chores:
        """List what is to be done, as it stands now; the thread looks at nothing else."""
        chores = _Chores(min_free=self._min_free)
        for log in self._logs:
            for segment in log.to_close:
                chores.syncs.append(_Sync(log, segment, segment.size, segment.end, close=True))
            active = log.active
            if active is not None and active.synced < active.size:
                chores.syncs.append(_Sync(log, active, active.size, active.end, close=False))
            if log.unsynced_directory:
                log.unsynced_directory = False
                chores.directories.add(log.directory)
            if log.state_file.unsynced:
                log.state_file.unsynced = False
                chores.states.append(log.state_file.descriptor)
            chores.doomed += [(log, path) for path in log.doomed]
            if log.trouble is not None:
                chores.probes.append(_Probe(log, log.write_failures))
        if self._clock.seconds() >= self._readers_due:
            self._readers_due = self._clock.seconds() + HOUSEKEEPING_SECONDS
            chores.now_ms, chores.oldest = self._now_ms(), self._oldest()
        return chores

    def _work(self, chores: _Chores) -> None:
        """In a thread: do what is listed, note what failed."""
        files, directory = self._files, self._directory
        for sync in chores.syncs:
            try:
                if not sync.segment.failed:
                    files.fsync(sync.segment.fd)
            except OSError as error:
                sync.error = error
            if sync.close:
                sync.segment.close(files)
        for log, path in chores.doomed:
            try:
                files.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                chores.problems.append(f"{path}: cannot be deleted: {error}")
                continue
            chores.gone.append((log, path))
        for parent in {*chores.directories, *(path.parent for _, path in chores.gone)}:
            with _noting(chores.problems, parent):
                sync_directory(files, parent)
                chores.directories.discard(parent)
        for descriptor in chores.states:
            with _noting(chores.problems, directory):
                files.fsync(descriptor)
        for probe in chores.probes:
            with contextlib.suppress(OSError):  # it stays as it is, and was told before
                try_writing(files, probe.log.directory / _PROBE_FILE, PROBE_BYTES)
                probe.passed = True
        with _noting(chores.problems, directory):
            chores.space = files.space(directory)
            if chores.space.free > chores.min_free + RESERVE_BYTES:
                _fill_reserve(files, directory / _RESERVE_FILE)
        if chores.now_ms is not None:
            with _noting(chores.problems, directory / READERS_DIRECTORY):
                for name in forget_unused(directory, self._kept, chores.now_ms):
                    self.log.info("reader {name} was not used for a day: forgotten", name=name)
                self._begin_readers(chores.oldest, chores.now_ms)
                chores.cursors, damaged = read_cursors(directory)
                chores.backlogs = self._measure(chores.cursors, chores.now_ms)
                chores.problems += [str(error) for error in damaged.values()]

    def _measure(self, cursors: dict[str, Cursor], now_ms: int) -> Backlogs:
        """In a thread: what each reader has before it."""
        found: Backlogs = {}
        for log in self._logs:
            label = log.record_class.label
            names, end = list_segments(log.directory), log.state.next_offset
            for name, cursor in cursors.items():
                place = cursor.classes.get(label, ClassCursor())
                found[name, label] = backlog(
                    log.directory, names, end, place, now_ms=now_ms, cap_bytes=log.cap_bytes
                )
        return found

    def _apply(self, chores: _Chores) -> None:
        """Take over what came of the chores."""
        for problem in chores.problems:
            self.log.error("event log: {problem}", problem=problem)
        for sync in chores.syncs:
            log, segment = sync.log, sync.segment
            if sync.close:
                log.to_close.remove(segment)
            if sync.error is not None:
                # What the kernel could not write it may forget: nothing more goes into this file.
                self.log.error("{path}: fsync: {error}", path=segment.path, error=sync.error)
                log.state.sync_failures += 1
                segment.failed = True
                if log.active is segment:
                    log.seal(self._now_ms())
            elif not segment.failed:
                segment.synced = sync.size
                log.state.checkpoint = (segment.name.ident, sync.size, sync.end)
        for log in {id(sync.log): sync.log for sync in chores.syncs}.values():
            log.write_state()
        for log in self._logs:
            log.unsynced_directory |= log.directory in chores.directories
        for log, path in chores.gone:
            log.doomed.pop(path, None)
        for probe in chores.probes:
            if probe.passed and probe.log.write_failures == probe.failures:
                probe.log.recovered()
        if chores.space is not None:
            self._space = chores.space
        if chores.cursors is not None:
            self._cursors, self.backlogs = chores.cursors, chores.backlogs

    def _enforce_limits(self) -> None:
        """Give up segments by cap, age and free space; refuse records when that does not do."""
        now_ms = self._now_ms()
        horizon_ms = now_ms - int(self._settings.retention * 1000)
        before = sum(len(log.doomed) + len(log.to_close) for log in self._logs)
        for log in self._logs:
            while log.sealed and log.kept_bytes > log.cap_bytes:
                log.doom_oldest("cap")
            if log.active is not None and log.active.name.created_ms < horizon_ms:
                log.seal(now_ms)  # so that it can age
            needed = self._needed(log)
            while log.sealed and log.sealed[0].last_ms < horizon_ms and log.sealed[0].end <= needed:
                log.doom_oldest("retention")
        self._enforce_free_space()
        if sum(len(log.doomed) + len(log.to_close) for log in self._logs) > before:
            self._queue_chores()

    def _needed(self, log: ClassLog) -> int:
        """The first record that a reader of the settings has not dealt with."""
        label = log.record_class.label
        places = [self._cursors.get(name, Cursor()).classes.get(label) for name in self._kept]
        return min(
            (place.position if place else 0 for place in places), default=log.state.next_offset
        )

    def _enforce_free_space(self) -> None:
        short = self._min_free - self._space.free
        short -= sum(sum(log.doomed.values()) for log in self._logs)
        for log in self._by_worth():
            while short > 0 and log.sealed:
                short -= log.sealed[0].size
                log.doom_oldest("min_free")
        if self._reserve_rounds == 1 and self._space.free > self._min_free + RESERVE_BYTES:
            self._reserve_rounds = 0  # filled again
        self._reserve_rounds = min(self._reserve_rounds, 1)
        reason = "min_free" if short > 0 else "disk_full" if self._reserve_rounds else None
        for log in self._logs:
            if log.record_class is not RecordClass.CONTROL and log.refusing != reason:
                log.refusing = reason
                if reason == "disk_full":
                    self.log.error(
                        "{path}: {free} bytes free, and the reserve for control records is to be "
                        "refilled first: {label} records are dropped; make room",
                        path=self._directory,
                        free=self._space.free,
                        label=log.record_class.label,
                    )
                elif reason:
                    self.log.error(
                        "{path}: only {free} bytes free, {minimum} are kept free: {label} records "
                        "are dropped; make room, or lower eventlog.min_free_bytes",
                        path=self._directory,
                        free=self._space.free,
                        minimum=self._min_free,
                        label=log.record_class.label,
                    )
                else:
                    self.log.info("{label} records are kept again", label=log.record_class.label)

    def _by_worth(self) -> list[ClassLog]:
        """The logs, the one that is given up first in front."""
        order = (RecordClass.TELEMETRY, RecordClass.LOGS, RecordClass.CONTROL)
        return [self._logs[each] for each in order]

    def _make_room(self, cls: RecordClass) -> bool:
        """Delete something at once, because a write met a full disk; False if nothing is left.

        Telemetry and logs give way to control, never the other way round.
        """
        for log in self._by_worth():
            if any(self._unlinked(log, path) for path in list(log.doomed)):
                return True
            if log.record_class is RecordClass.CONTROL:
                if cls is not RecordClass.CONTROL:
                    continue
                if self._give_up_reserve():
                    return True
            if log.sealed and not any(
                each.name == log.sealed[0].name for each in log.to_close
            ):  # a file still open would give nothing back
                path = log.doom_oldest("disk_full")
                if self._unlinked(log, path):
                    return True
        return False

    def _give_up_reserve(self) -> bool:
        """Free the reserve for control records, and refuse all others until it is back."""
        reserve = self._directory / _RESERVE_FILE
        try:
            size = reserve.stat().st_size
            self._files.unlink(reserve)
        except OSError:
            return False
        if not size:
            return False
        self._reserve_rounds = 2
        self.log.error(
            "{path}: the disk is full: telemetry and logs are dropped, control records have the "
            "reserve; make room",
            path=self._directory,
        )
        for log in self._logs:
            if log.record_class is not RecordClass.CONTROL:
                log.refusing = log.refusing or "disk_full"
        return True

    def _unlinked(self, log: ClassLog, path: Path) -> bool:
        try:
            self._files.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.log.error("{path}: cannot be deleted: {error}", path=path, error=error)
            return False
        log.doomed.pop(path, None)
        return True

    # -- figures

    def ledger(self) -> Ledger:
        """Where every record went, by class label; what is buffered is committed first.

        Returns:
            ``{class: {read, appended, dropped: {reason: n}, readers: {name: {acknowledged,
            set_aside, waiting, expired: {reason: n}}}}}``, where read = appended + dropped and,
            for each reader, appended = acknowledged + set_aside + waiting + expired. A reader's
            counts begin at offset 0: what was gone before its first use is expired{before}.
        """
        self.commit()
        with contextlib.suppress(OSError, OperatorError):
            self._cursors = read_cursors(self._directory)[0]
        return {
            log.record_class.label: class_account(
                log.record_class.label, log.state, log.read, log.oldest_offset, self._cursors
            )
            for log in self._logs
        }

    def problems(self, classes: Iterable[RecordClass] = RecordClass) -> list[str]:
        """What keeps records of some classes from being kept, for ``/ready``."""
        return [
            f"{log.record_class.label} records are dropped: {log.refusing or log.trouble}; "
            f"free space on the volume of {self._directory}"
            for log in self._logs
            if log.record_class in classes and (log.refusing or log.trouble)
        ]

    def stats(self) -> LogStats:
        """Figures for metrics; costs a few microseconds."""
        return LogStats(
            {
                log.record_class: ClassStats(
                    bytes_on_disk=log.kept_bytes + sum(log.doomed.values()),
                    cap_bytes=log.cap_bytes,
                    segments=len(log.sealed) + (log.active is not None),
                    oldest_offset=log.oldest_offset,
                    next_offset=log.state.next_offset,
                    read=log.read,
                    dropped=dict(log.state.dropped),
                    write_failures=log.write_failures,
                    sync_failures=log.state.sync_failures,
                    lost_tails=log.state.lost_tails,
                    lost_records=log.state.lost_records,
                    lost_bytes=log.state.lost_bytes,
                )
                for log in self._logs
            },
            free_bytes=self._space.free,
            min_free_bytes=self._min_free,
            buffered_bytes=self._buffered,
        )


@contextlib.contextmanager
def _noting(problems: list[str], path: Path) -> Iterator[None]:
    """Turn a failing file operation into a line for the log."""
    try:
        yield
    except (OSError, OperatorError) as error:
        problems.append(f"{path}: {error}")


def _fill_reserve(files: FileOperations, path: Path) -> None:
    """Have `RESERVE_BYTES` of disk allocated at ``path``."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size >= RESERVE_BYTES:
            return
    fd = files.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        files.allocate(fd, RESERVE_BYTES)
    except OSError:  # a volume this small or this full does without
        files.ftruncate(fd, 0)
    finally:
        files.close(fd)
