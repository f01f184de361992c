"""Opening a class after any end of the last process: what is there, what the next offset is.

Only the last segment is walked, from the last checkpoint on; the ends of the others follow from
the names of their successors. So the time does not grow with the backlog.
"""

import os
from itertools import pairwise
from pathlib import Path

from attrs import define, field
from twisted.logger import Logger

from elkeid.eventlog.files import FileOperations
from elkeid.eventlog.format import SEGMENT_HEADER_BYTES, SegmentName
from elkeid.eventlog.packed import file_size, packed_path
from elkeid.eventlog.segment import SegmentReader, list_segments, read_segment_header
from elkeid.eventlog.state import STATE_FILE, LogState, read_state
from elkeid.wire.datatypes import RecordClass

_log = Logger()


@define
class Segment:
    """A segment that is no longer written."""

    name: SegmentName
    end: int  # offset after its last record
    size: int  # bytes of its file
    last_ms: int  # when it was sealed, milliseconds since the epoch
    packed: bool = False

    def path(self, directory: Path) -> Path:
        """Where its file is."""
        plain = directory / str(self.name)
        return packed_path(plain) if self.packed else plain


@define
class Recovered:
    """What is on disk of one class, its tail repaired."""

    state: LogState
    sequence: int  # of the slot the state came from
    sealed: list[Segment] = field(factory=list)
    active: SegmentName | None = None  # to be written on; None: begin a new one
    active_size: int = 0


@define
class _Tail:
    """What the walk over the last segment found."""

    position: int  # where the last whole frame ends, bytes
    end: int  # offset after the last record
    dropped: int  # running total
    torn_records: int = 0  # of a frame begun but not finished


def check_versions(directory: Path) -> None:
    """Refuse a class that another version wrote, before anything is changed.

    Raises:
        LogFormatError: a segment or the state is of an unknown format version.
    """
    read_state(directory / STATE_FILE)
    for name in list_segments(directory):
        read_segment_header(directory / str(name))


def _walk(path: Path, name: SegmentName, checkpoint: tuple[int, int, int]) -> _Tail:
    """Find the end of a segment, from the checkpoint on if that leads to a frame or the end."""
    reader = SegmentReader(path, name)
    try:
        tail = _Tail(SEGMENT_HEADER_BYTES, name.base, 0)
        size = reader.size()
        ident, position, end = checkpoint
        if reader.header is not None:
            tail.dropped = reader.header.dropped
        if ident == name.ident and SEGMENT_HEADER_BYTES <= position <= size:
            tail.end = end
            if reader.header is not None:
                reader.position = tail.position = position
        frame = reader.next()
        if frame is None and tail.position < size:
            # Torn just here, or bytes are missing before: only the whole segment tells.
            reader.position = tail.position = SEGMENT_HEADER_BYTES
            frame = reader.next()
        while frame is not None:
            tail.position, tail.end = frame.end, max(tail.end, frame.header.end_offset)
            tail.dropped = frame.header.dropped
            frame = reader.next()
        torn = reader.tail_header()
        if torn is not None and torn.first_offset >= tail.end:
            tail.torn_records = torn.records
        if reader.damaged_bytes:
            _log.error(
                "{path}: {n} bytes are damaged; their records are lost, the rest is kept",
                path=path,
                n=reader.damaged_bytes,
            )
        return tail
    finally:
        reader.close()


def _remove(files: FileOperations, path: Path) -> None:
    try:
        files.unlink(path)
    except OSError as error:  # it only takes room; the next start tries again
        _log.error("{path}: cannot be deleted: {error}", path=path, error=error)


def _cut(files: FileOperations, path: Path, size: int) -> bool:
    try:
        fd = files.open(path, os.O_WRONLY)
        try:
            files.ftruncate(fd, size)
        finally:
            files.close(fd)
    except OSError as error:
        _log.error("{path}: cannot cut back: {error}", path=path, error=error)
        return False
    return True


def _tidy_packed(
    files: FileOperations, directory: Path, names: list[SegmentName]
) -> set[SegmentName]:
    """Finish what was begun of packing; say which segments are packed."""
    packed = set()
    for path in directory.glob("*.seg.zst.new"):
        _remove(files, path)
    for name in names:
        path = directory / str(name)
        if packed_path(path).exists():  # whole and durable: only then it got its name
            packed.add(name)
            if path.exists():
                _remove(files, path)
    return packed


def recover(
    files: FileOperations, directory: Path, record_class: RecordClass, furthest: int
) -> Recovered:
    """Repair what the last process left of a class, and say where to go on.

    Args:
        files: the file operations.
        directory: of the class; made if missing.
        record_class: which one it is.
        furthest: no offset below this may be given out: the furthest any reader has come.

    Raises:
        LogFormatError: see `check_versions`.
        OSError: the disk does not let us.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    sequence, state = read_state(directory / STATE_FILE) or (0, LogState())
    result = Recovered(state, sequence)
    names = list_segments(directory)
    packed = _tidy_packed(files, directory, names)
    durable = next((n for n in names if n.ident == state.checkpoint[0]), None)
    lost_between = 0
    for name, following in pairwise(names):
        path = directory / str(name)
        if following.base <= state.deleted_to or following.base == name.base:
            _remove(
                files, packed_path(path) if name in packed else path
            )  # its deletion was decided, or it holds no record
            continue
        size = file_size(path)
        result.sealed.append(
            Segment(name, following.base, size, following.created_ms, name in packed)
        )
        if durable is not None and name >= durable:  # sealed, but perhaps not all of it written
            end = _walk(path, name, state.checkpoint).end
            lost_between += max(0, following.base - end)
    tail, torn_bytes = _Tail(0, state.deleted_to, 0), 0
    if names:
        last, path = names[-1], directory / str(names[-1])
        stat = (packed_path(path) if last in packed else path).stat()
        tail.end = last.base
        if last in packed:
            tail = _walk(path, last, state.checkpoint)
            last_ms = int(stat.st_mtime * 1000)
            result.sealed.append(Segment(last, tail.end, stat.st_size, last_ms, packed=True))
        elif stat.st_size < SEGMENT_HEADER_BYTES:  # killed while beginning it
            _remove(files, path)
        else:
            tail = _walk(path, last, state.checkpoint)
            torn_bytes = stat.st_size - tail.position
            # Never write on behind a damaged header, or a tail that will not be cut.
            sound = read_segment_header(path) is not None
            if sound and (not torn_bytes or _cut(files, path, tail.position)):
                result.active, result.active_size = last, tail.position
            else:
                last_ms = int(stat.st_mtime * 1000)
                result.sealed.append(Segment(last, tail.end, stat.st_size, last_ms))
                torn_bytes = tail.torn_records = 0  # still there, to be counted when cut
    unrecorded = tail.dropped - sum(state.dropped.values())
    if unrecorded > 0:  # the state was damaged; the frames know the sum, not the reasons
        state.drop("unrecorded", unrecorded)
    _account(
        state,
        record_class,
        log_end=tail.end,
        furthest=furthest,
        torn_bytes=torn_bytes,
        torn_records=tail.torn_records,
        lost_between=lost_between,
    )
    return result


def _account(
    state: LogState,
    record_class: RecordClass,
    *,
    log_end: int,
    furthest: int,
    torn_bytes: int,
    torn_records: int,
    lost_between: int,
) -> None:
    """Set the next offset, and count what is known to have been lost at the tail."""
    next_offset = max(log_end, state.next_offset, furthest)
    # Records of a torn frame were read; unless their offsets were given out they never got any.
    unstored = max(0, torn_records - (next_offset - log_end))
    if unstored:
        state.drop("lost_tail", unstored)
    lost = next_offset - log_end + unstored + lost_between
    if lost or torn_bytes:
        state.lost_tails += 1
        state.lost_records += lost
        state.lost_bytes += torn_bytes
        _log.warn(
            "event log {label}: the tail was lost: {n} bytes cut off, {records} records known lost;"
            " the next offset is {offset}",
            label=record_class.label,
            n=torn_bytes,
            records=lost,
            offset=next_offset,
        )
    state.next_offset = next_offset
