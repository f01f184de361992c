"""Reading a log from any process, beside its writer: whole entries in order, each record once."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import define
from twisted.logger import Logger

from elkeid.errors import OperatorError
from elkeid.eventlog.cursors import (
    ClassCursor,
    Cursor,
    DamagedCursor,
    check_name,
    cursor_path,
    lock_reader,
    read_cursor,
    save_cursor,
    set_aside_damaged,
)
from elkeid.eventlog.files import FileOperations
from elkeid.eventlog.format import Entry, Row, SegmentName, add_entries, skip_records
from elkeid.eventlog.packed import open_segment
from elkeid.eventlog.segment import Frame, SegmentReader, list_segments
from elkeid.eventlog.state import STATE_FILE, LogState, read_state
from elkeid.wire.datatypes import RecordClass

LOOK_AGAIN_BYTES = 256 * 1024
"""After so much of other classes, look at those again that had nothing: control waits no longer
than that, and small frames do not pay for a look each."""

SETTLED_SECONDS = 2.0
"""A folder that has not changed for so long has a time of change that the next one will not have:
file systems count it in ticks, of some milliseconds mostly."""

Extent = Mapping[RecordClass, tuple[SegmentName, int]]
"""Per class the last segment and its bytes at some moment; classes without one are left out."""


@define
class Gap:
    """Records that cannot be had."""

    start: int
    end: int
    reason: str


class ClassReader:
    """Reads one class from an offset on.

    Args:
        directory: of the class.
        record_class: which one it is.
        position: offset of the first record wanted.
    """

    log = Logger()

    def __init__(self, directory: Path, record_class: RecordClass, position: int) -> None:
        self._directory, self.record_class = directory, record_class
        self.position = position  # offset after the last record that was returned
        self.gaps: list[Gap] = []  # in order, not yet accounted for
        self.damaged_bytes = 0
        self._damage_since_frame = False
        self._quiet_at: int | None = None  # `_stamp` when no segment followed
        self._segment: SegmentReader | None = None

    def close(self) -> None:
        """Let go of the segment."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def next(self, until: tuple[SegmentName, int] | None) -> list[Entry]:
        """The entries of the next whole frame, from the position on; none when there is none."""
        while True:
            if self._segment is None and not self._open_at_position():
                return []
            segment = self._segment
            assert segment is not None
            if until is not None and (segment.name, segment.position) >= until:
                return []
            frame = self._next_frame(segment)
            if frame is None:
                following = self._following(segment.name)
                if following is None:
                    return []
                # The writer begins a segment only after the last frame of the one before.
                frame = self._next_frame(segment)
                if frame is None:
                    self._note_damage(segment.size() - segment.position)
                    self.close()
                    self._open(following)
                    continue
            entries = self._wanted(frame)
            if entries:
                return entries

    def take(self, byte_limit: int) -> Sequence[Row]:
        """The entries of the next frames, about so many bytes of them; none when there is none.

        What follows `position` without a gap is had in one go; anything else frame by frame.
        """
        segment = self._segment
        if segment is not None and not self._damage_since_frame:
            rows = segment.take(self.record_class, self.position, byte_limit)
            if rows:
                _, offset, count, _, _, _ = rows[-1]
                self.position = offset + count
                return rows
        stamp = self._stamp()
        if stamp == self._quiet_at and (segment is None or segment.position >= segment.size()):
            return []
        entries = self.next(None)
        if not entries:
            settled = time.time() - stamp / 1e9 > SETTLED_SECONDS
            self._quiet_at = stamp if settled and segment is self._segment else None
        return entries

    def _stamp(self) -> int:
        """When a segment was last made, deleted or packed, nanoseconds; 0 before the first."""
        try:
            return self._directory.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _next_frame(self, segment: SegmentReader) -> Frame | None:
        before = segment.damaged_bytes
        frame = segment.next()
        self._note_damage(segment.damaged_bytes - before)
        return frame

    def _note_damage(self, count: int) -> None:
        if count > 0:
            self.damaged_bytes += count
            self._damage_since_frame = True

    def _wanted(self, frame: Frame) -> list[Entry]:
        header = frame.header
        if header.end_offset <= self.position:
            return []
        rows: list[Row] = []
        if not add_entries(rows, self.record_class, header, frame.body, 0):
            self._note_damage(frame.end - frame.start)
            return []
        if header.first_offset > self.position:
            self._note_gap(
                header.first_offset, "damaged" if self._damage_since_frame else "lost_tail"
            )
        self._damage_since_frame = False
        start, self.position = self.position, header.end_offset
        entries = [Entry._make(each) for each in rows]
        if header.first_offset < start:
            entries = [cut_entry(each, start) for each in entries if each.end_offset > start]
        return entries

    def _note_gap(self, end: int, otherwise: str) -> None:
        """Note that the records before ``end`` are not there: deleted, or ``otherwise``."""
        found = read_state(self._directory / STATE_FILE)
        state = found[1] if found else LogState()
        for reason, count in state.expired(self.position, min(end, state.deleted_to)).items():
            self._add_gap(self.position + count, reason)
        if self.position < end:
            self._add_gap(end, otherwise)

    def _add_gap(self, end: int, reason: str) -> None:
        self.log.warn(
            "{label}: records {start} to {end} cannot be read: {reason}",
            label=self.record_class.label,
            start=self.position,
            end=end - 1,
            reason=reason,
        )
        self.gaps.append(Gap(self.position, end, reason))
        self.position = end

    def _open_at_position(self) -> bool:
        names = list_segments(self._directory)
        if not names:
            return False
        chosen = names[0]
        for each in names:
            if each.base <= self.position:
                chosen = each
        if not self._open(chosen):
            return False
        if chosen.base > self.position:  # the oldest there is
            self._note_gap(chosen.base, "missing")
        return True

    def _open(self, name: SegmentName) -> bool:
        """Open a segment; False when it was deleted meanwhile."""
        try:
            self._segment = SegmentReader(self._directory / str(name), name)
        except FileNotFoundError:
            return False
        self._segment.skip_to(self.position)
        return True

    def _following(self, name: SegmentName) -> SegmentName | None:
        return next((each for each in list_segments(self._directory) if each > name), None)


def cut_entry(entry: Entry, start: int) -> Entry:
    """Leave the records before ``start`` out of an entry."""
    skip = start - entry.first_offset
    if skip <= 0:
        return entry
    region = skip_records(entry.region, skip)
    if region is None:  # no records as we know them: rather twice than never
        return entry
    return Entry(
        entry.record_class, start, entry.records - skip, entry.suffix, region, entry.time_ms
    )


class LogReader:
    """Reads a log, from the oldest record or from where a reader of this name has come.

    Works from any process, beside a running server or without one; blocking, for one thread.
    A named reader has its place kept on disk by `save`, and its name to itself. One that is not
    in the settings holds no segment back, and is forgotten after a day without use.

    Args:
        directory: the log's folder.
        name: None for an anonymous reader, which leaves no trace.
        kept: the name is in the settings, so that its place is never forgotten.
        wall: seconds since the epoch.
        files: the file operations; tests pass a set that fails.

    Raises:
        OperatorError: there is no log, or another process reads by this name.
        LogFormatError: the log or the cursor is of an unknown format version.
    """

    log = Logger()

    def __init__(
        self,
        directory: Path,
        name: str | None = None,
        *,
        kept: bool = False,
        wall: Callable[[], float] = time.time,
        files: FileOperations | None = None,
    ) -> None:
        self._directory, self._name, self._wall = directory, name, wall
        self._files = FileOperations() if files is None else files
        self._held: int | None = None
        cursor = None
        if name is not None:
            self._held, cursor = take_place(directory, name)
            if cursor is not None and not kept and cursor.stale(int(wall() * 1000)):
                cursor = None
        elif not directory.is_dir():
            raise _no_log(directory)
        self._cursor = cursor or Cursor()
        self._readers: dict[RecordClass, ClassReader] = {}
        self._ready: dict[RecordClass, deque[Entry]] = {each: deque() for each in RecordClass}
        try:
            for each in RecordClass:
                folder = directory / each.label
                place = self._cursor.classes.get(each.label)
                if place is None:
                    place = self._cursor.classes[each.label] = ClassCursor()
                    oldest = oldest_offset(folder)
                    if oldest:
                        place.expire("before", oldest)
                self._readers[each] = ClassReader(folder, each, place.position)
            if name is not None and cursor is None:
                self.save()  # from now on the ledger shows it
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the log and of the name; the place stays as last saved."""
        for each in self._readers.values():
            each.close()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @property
    def damaged_bytes(self) -> int:
        """Bytes passed over so far because their checksums do not hold."""
        return sum(each.damaged_bytes for each in self._readers.values())

    def extent(self) -> Extent:
        """Say how far the log goes now, for ``until``."""
        found: dict[RecordClass, tuple[SegmentName, int]] = {}
        for each in RecordClass:
            folder = self._directory / each.label
            for name in reversed(list_segments(folder)):
                try:
                    source = open_segment(folder / str(name))
                except FileNotFoundError:
                    continue
                found[each] = (name, source.size())
                source.close()
                break
        return found

    def entries(self, until: Extent | None = None) -> Iterator[Entry]:
        """Yield what is there and was not yielded yet; call again later for more.

        Control comes before all else; telemetry and logs come by the time they were written.

        Args:
            until: where to end although the log goes on: see `extent`.

        Raises:
            LogFormatError: a segment is of an unknown format version.
            OSError: the disk cannot be read.
        """
        ready = self._ready
        looked: set[RecordClass] = set()
        budget = LOOK_AGAIN_BYTES
        while True:
            for each in RecordClass:
                if not ready[each] and each not in looked:
                    looked.add(each)
                    ready[each].extend(self._look(each, until))
            waiting = [each for each in RecordClass if ready[each]]
            if not waiting:
                return
            if waiting[0] is not RecordClass.CONTROL:
                waiting.sort(key=lambda each: ready[each][0].time_ms)
            queue = ready[waiting[0]]
            while queue:
                entry = queue.popleft()
                budget -= len(entry.region)
                yield entry
            looked.discard(waiting[0])
            if budget < 0:
                looked.clear()
                budget = LOOK_AGAIN_BYTES

    def _look(self, record_class: RecordClass, until: Extent | None) -> list[Entry]:
        if until is not None and record_class not in until:
            return []
        return self._readers[record_class].next(until[record_class] if until else None)

    def acknowledge(self, record_class: RecordClass, end_offset: int) -> None:
        """Note that all records before ``end_offset`` are dealt with; `save` makes it last."""
        self._advance(record_class, end_offset, ClassCursor.acknowledge)

    def set_aside(self, record_class: RecordClass, end_offset: int) -> None:
        """Note that those before ``end_offset`` could not be dealt with and are kept elsewhere."""
        self._advance(record_class, end_offset, ClassCursor.put_aside)

    def _advance(
        self, record_class: RecordClass, end_offset: int, how: Callable[[ClassCursor, int], None]
    ) -> None:
        reader, place = self._readers[record_class], self._cursor.classes[record_class.label]
        if end_offset > reader.position:
            raise ValueError(f"{record_class.label} {end_offset}: not read yet")
        gaps = reader.gaps
        while True:
            if gaps and gaps[0].start <= place.position:
                gap = gaps.pop(0)
                place.expire(gap.reason, gap.end - place.position)
                continue
            stop = min(end_offset, gaps[0].start) if gaps else end_offset
            if stop <= place.position:
                return
            how(place, stop - place.position)

    def place(self, record_class: RecordClass) -> ClassCursor:
        """Where this reader stands in a class."""
        return self._cursor.classes[record_class.label]

    def save(self) -> None:
        """Make the place durable; nothing for an anonymous reader.

        Raises:
            OSError: the disk does not let us; the place saved before holds.
        """
        for each in RecordClass:
            self._advance(each, 0, ClassCursor.acknowledge)  # gaps that nothing precedes
        if self._name is None:
            return
        self._cursor.used_ms = int(self._wall() * 1000)
        save_cursor(self._files, cursor_path(self._directory, self._name), self._cursor)


def _no_log(directory: Path) -> OperatorError:
    return OperatorError(
        f"{directory}: there is no event log; start the server first, "
        "or name its settings file with --config"
    )


def take_place(directory: Path, name: str) -> tuple[int, Cursor | None]:
    """Take the name of a reader for this process, and see where it stood.

    Returns:
        The descriptor that holds the name until closed, and the cursor if there is a sound one.

    Raises:
        OperatorError: there is no log, or another process reads by this name.
        LogFormatError: the cursor is of an unknown format version.
    """
    if not directory.is_dir():
        raise _no_log(directory)
    check_name(name)
    held = lock_reader(directory, name)
    if held is None:
        raise OperatorError(
            f"reader {name!r}: another process reads by this name; stop it, or choose another name"
        )
    path = cursor_path(directory, name)
    try:
        return held, read_cursor(path)
    except DamagedCursor as error:
        LogReader.log.error("{error} (it was moved aside)", error=error)
        set_aside_damaged(path)
        return held, None
    except BaseException:
        os.close(held)
        raise


def oldest_offset(directory: Path) -> int:
    """The first offset of a class that can be read, or the next one when it holds none."""
    names = list_segments(directory)
    if names:
        return names[0].base
    found = read_state(directory / STATE_FILE)
    return found[1].next_offset if found else 0
