"""Reading one segment: whole, checked frames in order, past damage, up to the torn tail."""

import os
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from elkeid.eventlog.format import (
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    KEEP_LOCK,
    SEGMENT_HEADER_BYTES,
    FrameHeader,
    Row,
    SegmentHeader,
    SegmentName,
    add_entries,
    decode_frame_header,
    decode_segment_header,
    parse_segment_name,
)
from elkeid.eventlog.packed import open_segment
from elkeid.wire.datatypes import RecordClass

CHUNK_BYTES = 256 * 1024
"""One read: many small frames, or a good part of a large one. What is made of it stays in a
processor's cache."""


class Frame(NamedTuple):
    """A whole frame whose CRCs hold."""

    header: FrameHeader
    body: bytes
    start: int  # its place in the file, bytes
    end: int


def list_segments(directory: Path) -> list[SegmentName]:
    """Name the segments of a class in the order of writing; none when there is no folder."""
    try:
        with os.scandir(directory) as found:
            names = [each.name for each in found]
    except FileNotFoundError:
        return []
    return sorted({each for name in names if (each := parse_segment_name(name))})


def read_segment_header(path: Path) -> SegmentHeader | None:
    """Read a segment's header; None when it is short or damaged.

    Raises:
        LogFormatError: it is of another format version.
        OSError: the file cannot be read.
    """
    source = open_segment(path)
    try:
        return decode_segment_header(source.pread(SEGMENT_HEADER_BYTES, 0), path)
    finally:
        source.close()


class SegmentReader:
    """Walks the frames of one segment, which may still grow or be cut back at its tail.

    Args:
        path: the segment's file.
        name: its parsed file name, which seeds the CRCs, so a damaged header loses no frame.
        position: where to begin, bytes; a frame begins there unless the file is damaged.

    Raises:
        FileNotFoundError: it was deleted.
        LogFormatError: it is of another format version.
    """

    def __init__(self, path: Path, name: SegmentName, position: int = SEGMENT_HEADER_BYTES) -> None:
        self.path, self.name, self.position = path, name, position
        self.damaged_bytes = 0  # skipped so far
        self._seed = name.seed
        self._chunk, self._chunk_at = b"", 0
        self._last_bytes = 0  # of the body of the last frame that `take` returned
        self._seen_size = 0  # of the file, when it was looked at last
        self._source = open_segment(path)
        try:
            self.header = decode_segment_header(self._source.pread(SEGMENT_HEADER_BYTES, 0), path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def size(self) -> int:
        """Bytes in the file now."""
        return self._source.size()

    def forget(self) -> None:
        """Drop what was read ahead, since the tail may have changed since."""
        self._chunk = b""

    def next(self) -> Frame | None:
        """Return the next whole frame, skipping damage that whole frames follow.

        None means that no whole frame follows now: this is the end, or a frame being written,
        or a torn tail.
        """
        frame = self._frame_at(self.position)
        if frame is None:
            self.forget()
            frame = self._frame_at(self.position)
        if frame is None and self._search(self.position) is not None:
            # A later frame is whole, so by now all before it is written: look again, since the
            # one here may have been finished while the search went past it.
            self.forget()
            frame = self._frame_at(self.position) or self._search(self.position)
            if frame is not None:
                self.damaged_bytes += frame.start - self.position
        if frame is None:
            return None
        self.position = frame.end
        return frame

    def take(self, record_class: RecordClass, offset: int, byte_limit: int) -> list[Row]:
        """Return what whole frames at the position hold, as far as they need no second thought.

        Args:
            record_class: of the segment.
            offset: the first frame must begin with this one, and each frame where the one before
                ends.
            byte_limit: of frames; the last one may reach beyond. Also what one read fetches.

        Returns:
            Their entries. None at all says nothing of what follows: `next` does.
        """
        entries: list[Row] = []
        index = self.position - self._chunk_at
        if 0 <= index < len(self._chunk):
            index = self._scan(entries, record_class, offset, index, byte_limit)
        # The chunk ends within a frame, or the writer has got further. Each call to the system
        # lets other threads go first, so there are few: one for a large frame among others.
        if not entries and self._grown_to(self.position + FRAME_HEADER_BYTES):
            count = max(byte_limit, CHUNK_BYTES)
            if self._last_bytes > CHUNK_BYTES // 2:  # one at a time, and the header of the next
                front, at = self._chunk, index
                if not 0 <= index <= len(front) - FRAME_HEADER_BYTES:
                    front, at = self._source.pread(FRAME_HEADER_BYTES, self.position), 0
                if (header := decode_frame_header(front, at, self._seed)) is not None:
                    count = FRAME_HEADER_BYTES + header.body_bytes + FRAME_HEADER_BYTES
            if not self._grown_to(self.position + count):
                count = max(0, self._seen_size - self.position)  # it may have been cut back
            self._chunk_at, index = self.position, 0
            self._chunk = self._source.pread(count, self.position)
            index = self._scan(entries, record_class, offset, index, byte_limit)
        if entries:
            self.position = self._chunk_at + index
        return entries

    def _grown_to(self, end: int) -> bool:
        """Whether the file goes as far as that; looked up unless it did when last looked up."""
        if self._seen_size < end:
            self._seen_size = self.size()
        return self._seen_size >= end

    def _scan(
        self,
        entries: list[Row],
        record_class: RecordClass,
        offset: int,
        index: int,
        byte_limit: int,
    ) -> int:
        """Add what is in the chunk from an index on; return where the first frame left begins."""
        chunk, seed = self._chunk, self._seed
        size, limit = len(chunk), index + byte_limit
        with memoryview(chunk) as view:
            while index < limit:
                header = decode_frame_header(chunk, index, seed)
                if header is None or header[2] != offset:
                    break
                body = index + FRAME_HEADER_BYTES
                end = body + header[0]
                if end > size or crc32c(view[body:end], 0, KEEP_LOCK) != header[1]:
                    break
                if not add_entries(entries, record_class, header, chunk, body):
                    break
                offset += header[3]
                self._last_bytes, index = header[0], end
        return index

    def skip_to(self, offset: int) -> int:
        """Move past frames that end at or before ``offset``, by their headers alone.

        Returns:
            Where the last of them ends, 0 if none was passed.
        """
        last = 0
        while True:
            header = self._header_at(self.position)
            if header is None or header.end_offset > offset:
                return last
            end = self.position + FRAME_HEADER_BYTES + header.body_bytes
            if end > self.size():
                return last
            self.position, last = end, header.end_offset

    def tail_header(self) -> FrameHeader | None:
        """The sound header of a frame that is not whole, at the position; else None."""
        return self._header_at(self.position)

    def _read(self, at: int, count: int) -> int:
        """Have ``count`` bytes from ``at`` in the chunk; return their index, or -1 if fewer."""
        index = at - self._chunk_at
        if not 0 <= index <= len(self._chunk) - count:
            self._chunk = self._source.pread(max(count, CHUNK_BYTES), at)
            self._chunk_at, index = at, 0
            if len(self._chunk) < count:
                return -1
        return index

    def _header_at(self, at: int) -> FrameHeader | None:
        index = self._read(at, FRAME_HEADER_BYTES)
        return decode_frame_header(self._chunk, index, self._seed) if index >= 0 else None

    def _frame_at(self, at: int) -> Frame | None:
        header = self._header_at(at)
        if header is None:
            return None
        start = at + FRAME_HEADER_BYTES
        end = start + header.body_bytes
        if end > self._chunk_at + len(self._chunk) and end > self.size():
            return None  # before memory is taken for it
        index = self._read(start, header.body_bytes)
        if index < 0:
            return None
        body = self._chunk[index : index + header.body_bytes]
        if crc32c(body, 0, KEEP_LOCK) != header.body_crc:
            return None
        return Frame(header, body, at, end)

    def _search(self, at: int) -> Frame | None:
        """Find the first whole frame after a place where none is."""
        while True:
            window = self._source.pread(CHUNK_BYTES, at)
            if len(window) < FRAME_HEADER_BYTES:
                return None
            found = window.find(FRAME_MAGIC)
            while found >= 0:
                if len(window) - found < FRAME_HEADER_BYTES and found > 0:
                    break  # read on from here
                if decode_frame_header(window, found, self._seed):
                    frame = self._frame_at(at + found)
                    if frame is not None:
                        return frame
                found = window.find(FRAME_MAGIC, found + 1)
            at += found if found > 0 else max(len(window) - len(FRAME_MAGIC) + 1, 1)
