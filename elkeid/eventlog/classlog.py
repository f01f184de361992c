"""The log of one class as its only writer sees it: buffer, frames, segments, totals."""

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from attrs import define
from twisted.logger import Logger

from elkeid.eventlog.files import FileOperations
from elkeid.eventlog.format import (
    FRAME_HEADER_BYTES,
    MAX_BODY_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    SegmentName,
    encode_frame_header,
    new_ident,
)
from elkeid.eventlog.recovery import Recovered, Segment
from elkeid.eventlog.state import STATE_FILE, StateFile
from elkeid.wire.datatypes import RecordClass

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
MAX_ROOM_TRIES = 4  # segments deleted for one frame; more would stall the reactor


class ShortWrite(OSError):
    """The disk took a part of a frame and then nothing."""


@define
class OpenSegment:
    """A segment with an open descriptor: the active one, or one that waits for its fsync."""

    name: SegmentName
    path: Path
    seed: int
    fd: int
    size: int  # bytes of header and whole frames
    end: int  # offset after its last record
    synced: int = 0  # bytes known to be durable
    failed: bool = False  # an fsync failed: nobody knows what of it is durable

    @property
    def empty(self) -> bool:
        """Whether it holds no frame."""
        return self.size <= SEGMENT_HEADER_BYTES

    def close(self, files: FileOperations) -> None:
        """Close the descriptor, once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                files.close(fd)


class ClassLog:
    """Appends the records of one class; everything here runs in the reactor thread.

    Args:
        files: the file operations.
        directory: of the class.
        record_class: which one it is.
        found: what `recover` found there.
        segment_bytes: a segment is sealed when a frame would take it beyond this.
        cap_bytes: what the segments of the class may take together.
        make_room: asked when the disk is full; deletes something and says whether it could.

    Raises:
        OSError: the state file or the active segment cannot be opened.
    """

    log = Logger()

    def __init__(
        self,
        files: FileOperations,
        directory: Path,
        record_class: RecordClass,
        found: Recovered,
        *,
        segment_bytes: int,
        cap_bytes: int,
        make_room: Callable[[RecordClass], bool],
    ) -> None:
        self._files, self._directory, self._make_room = files, directory, make_room
        self.record_class = record_class
        self.cap_bytes = cap_bytes
        # Several segments within the cap, or deleting the oldest would delete nearly all.
        self._segment_bytes = min(segment_bytes, cap_bytes // 4)
        self.state = found.state
        self.read = found.state.next_offset + sum(found.state.dropped.values())
        # The buffer, filled by EventLog.append.
        self.parts: list[bytes] = []
        self.records = 0
        # Segments, oldest first; `doomed` are forgotten here but may still take disk.
        self.sealed: deque[Segment] = deque(found.sealed)
        self.sealed_bytes = sum(segment.size for segment in found.sealed)
        self.doomed: dict[Path, int] = {}
        self.to_close: list[OpenSegment] = []
        self.active: OpenSegment | None = None
        self.refusing: str | None = None  # a reason to drop everything, while it lasts
        self.unsynced_directory = False
        self.write_failures = 0
        self.written = 0  # bytes of frames, since the start
        self.trouble: str | None = None  # why the last write failed
        self.state_dirty = True
        self._state_file = StateFile(files, directory / STATE_FILE, found.sequence)
        self._last_ident = max((each.name.ident for each in found.sealed), default=0)
        if found.active is not None:
            name, path = found.active, directory / str(found.active)
            try:
                fd = files.open(path, os.O_WRONLY | os.O_APPEND)
            except BaseException:
                self._state_file.close()
                raise
            size = found.active_size
            self.active = OpenSegment(name, path, name.seed, fd, size, self.state.next_offset)
            self._last_ident = max(self._last_ident, name.ident)

    @property
    def directory(self) -> Path:
        """Where the segments are."""
        return self._directory

    @property
    def state_file(self) -> StateFile:
        """The small file that holds on a full disk."""
        return self._state_file

    @property
    def oldest_offset(self) -> int:
        """The first record that can still be read, or the next one when there is none."""
        if self.sealed:
            return self.sealed[0].name.base
        return self.active.name.base if self.active else self.state.next_offset

    @property
    def kept_bytes(self) -> int:
        """What the segments take, without those that wait for deletion."""
        return self.sealed_bytes + (self.active.size if self.active else 0)

    @property
    def to_seal(self) -> int:
        """Bytes until the active segment is full, and another is begun."""
        return self._segment_bytes - (self.active.size if self.active else 0)

    def drop(self, reason: str, count: int) -> None:
        """Count records that were read and are not appended."""
        self.read += count
        self.state.drop(reason, count)
        self.state_dirty = True

    def commit(self, now_ms: int) -> bool:
        """Write the buffer as one frame, or count it as dropped.

        Returns:
            Whether every buffered record is in the log now.
        """
        parts = self.parts
        if not parts:
            if self.state_dirty:
                self.write_state()
            return True
        records, entries = self.records, len(parts) // 3
        self.parts, self.records = [], 0
        if self.refusing is not None:
            self.drop(self.refusing, records)
            self.write_state()
            return False
        body = b"".join(parts)
        if self.state_dirty:
            self.write_state()
        reason = self._append_frame(body, records, entries, now_ms)
        if reason is None:
            self.read += records
            self.recovered()
            return True
        self.write_failures += 1
        if reason != self.trouble:  # once, however long it lasts
            self.trouble = reason
            self.log.error(
                "{path}: {reason}: new records are dropped until the disk takes them",
                path=self._directory,
                reason=reason,
            )
        self.drop(reason, records)
        self.write_state()
        return False

    def recovered(self) -> None:
        """The disk takes what is written, as far as is known."""
        if self.trouble is not None:
            self.trouble = None
            self.log.info("{path}: records are stored again", path=self._directory)

    def _append_frame(self, body: bytes, records: int, entries: int, now_ms: int) -> str | None:
        """Write one frame; on failure return the reason, with the file as it was."""
        size = FRAME_HEADER_BYTES + len(body)
        if len(body) > MAX_BODY_BYTES:
            return "oversize"
        state = self.state
        tries = MAX_ROOM_TRIES
        moved = False
        while True:
            try:
                active = self.active
                if active is None or (
                    active.size + size > self._segment_bytes and not active.empty
                ):
                    active = self._roll(now_ms)
                header = encode_frame_header(
                    active.seed,
                    body,
                    first_offset=state.next_offset,
                    records=records,
                    entries=entries,
                    time_ms=now_ms,
                    read=self.read + records,
                    dropped=self.read - state.next_offset,
                )
                if self._files.writev(active.fd, (header, body)) != size:
                    self._finish(active, header + body)
            except OSError as error:
                self._cut_back()
                full = isinstance(error, ShortWrite) or error.errno in FULL
                if full and tries and self._make_room(self.record_class):
                    tries -= 1
                    continue
                if not full and not moved:  # this file is bad; another may do
                    moved = True
                    self.seal(now_ms)
                    continue
                return "disk_full" if full else "io_error"
            active.size += size
            self.written += size
            state.next_offset = active.end = state.next_offset + records
            return None

    def _finish(self, active: OpenSegment, frame: bytes) -> None:
        """Write what a short write left over; `OSError` when the disk takes no more."""
        done = os.fstat(active.fd).st_size - active.size
        while done < len(frame):
            written = self._files.writev(active.fd, (memoryview(frame)[done:],))
            if written <= 0:
                raise ShortWrite(errno.ENOSPC, os.strerror(errno.ENOSPC), str(active.path))
            done += written

    def _cut_back(self) -> None:
        """Leave whole frames only; a file that cannot be cut is not written again."""
        active = self.active
        if active is None:
            return
        try:
            if os.fstat(active.fd).st_size != active.size:
                self._files.ftruncate(active.fd, active.size)
        except OSError as error:
            self.log.error("{path}: cannot cut back: {error}", path=active.path, error=error)
            self.seal(active.name.created_ms)

    def _roll(self, now_ms: int) -> OpenSegment:
        """Begin a new segment, then seal the old; `OSError` leaves the old one active."""
        try:
            fresh = self._begin(now_ms)
        except OSError as error:
            if self.active is None:
                raise
            self.log.warn("{error}: the segment before is written on", error=error)
            return self.active
        self.seal(now_ms)
        self.active = fresh
        return fresh

    def _begin(self, now_ms: int) -> OpenSegment:
        base = self.state.next_offset
        name = SegmentName(base, new_ident(now_ms, self._last_ident))
        path = self._directory / str(name)
        header = SegmentHeader(
            self.record_class, name, now_ms, self.read, self.read - base
        ).encode()
        fd = self._files.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND)
        try:
            if self._files.writev(fd, (header,)) != len(header):
                raise ShortWrite(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except BaseException:
            self._files.close(fd)
            with contextlib.suppress(OSError):
                self._files.unlink(path)
            raise
        self._last_ident = name.ident
        self.unsynced_directory = True
        return OpenSegment(name, path, name.seed, fd, len(header), base)

    def seal(self, now_ms: int) -> None:
        """Write no more to the active segment; the next frame begins another."""
        active, self.active = self.active, None
        if active is None:
            return
        self.to_close.append(active)
        if active.empty:
            self.doomed[active.path] = active.size
        else:
            self.sealed.append(Segment(active.name, active.end, active.size, now_ms))
            self.sealed_bytes += active.size

    def doom_oldest(self, reason: str) -> Path:
        """Give up the oldest sealed segment; its file is to be unlinked by the caller."""
        segment = self.sealed.popleft()
        self.sealed_bytes -= segment.size
        path = segment.path(self._directory)
        self.doomed[path] = segment.size
        self.state.delete(segment.end, reason)
        self.write_state()
        return path

    def write_state(self) -> None:
        """Write the small file; a failure is logged and tried again at the next commit."""
        try:
            self._state_file.write(self.state)
        except OSError as error:
            self.state_dirty = True
            self.log.error("{path}: {error}", path=self._directory / STATE_FILE, error=error)
        else:
            self.state_dirty = False

    def release(self) -> None:
        """Close what is still open."""
        for segment in (*self.to_close, *([self.active] if self.active else ())):
            segment.close(self._files)
        self.to_close, self.active = [], None
        self._state_file.close()
