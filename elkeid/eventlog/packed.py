"""Sealed segments compressed: the same bytes, in pieces that can be read one by one.

A packed segment ends in ``.seg.zst``. It is a series of zstd frames, each of `PIECE_BYTES` of the
segment (the last of the rest), then a table of their sizes in the layout of zstd's seekable
format, so that ``zstd -d`` gives the segment back.
"""

import contextlib
import os
from pathlib import Path
from struct import Struct
from typing import Final

import cramjam

from elkeid.eventlog.files import FileOperations

SUFFIX: Final = ".zst"
PIECE_BYTES: Final = 1 << 20
"""What one read decompresses; smaller pieces compress less."""

LEVEL: Final = 1
"""The fastest: on gateways' records it saves nearly as much as slower ones."""

_SKIPPABLE = Struct("<II")  # magic, bytes that follow
_SKIPPABLE_MAGIC: Final = 0x184D2A5E
_ENTRY = Struct("<II")  # bytes compressed, bytes decompressed
_FOOTER = Struct("<IBI")  # entries, descriptor, magic
_FOOTER_MAGIC: Final = 0x8F92EAB1
MAX_PIECES: Final = 1 << 16  # 64 GiB


def packed_path(path: Path) -> Path:
    """Where the packed form of a segment is."""
    return path.with_name(path.name + SUFFIX)


def pack(files: FileOperations, path: Path) -> int:
    """Write the packed form beside a sealed segment, durably, under a name that nobody reads yet.

    Returns:
        Its size, bytes.

    Raises:
        OSError: the disk does not let us; nothing of it is left.
    """
    fresh = packed_path(path).with_name(path.name + SUFFIX + ".new")
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = files.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        try:
            table: list[bytes] = []
            total = 0
            while piece := os.pread(source, PIECE_BYTES, len(table) * PIECE_BYTES):
                packed = bytes(cramjam.zstd.compress(piece, level=LEVEL))
                total += _write(files, target, packed)
                table.append(_ENTRY.pack(len(packed), len(piece)))
            body = b"".join((*table, _FOOTER.pack(len(table), 0, _FOOTER_MAGIC)))
            total += _write(files, target, _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(body)) + body)
            files.fsync(target)
            return total
        finally:
            files.close(target)
    except OSError:
        with contextlib.suppress(OSError):
            files.unlink(fresh)
        raise
    finally:
        os.close(source)


def _write(files: FileOperations, fd: int, data: bytes) -> int:
    if files.writev(fd, (data,)) != len(data):
        raise OSError("short write")
    return len(data)


def put_in_place(files: FileOperations, path: Path) -> None:
    """Let what `pack` wrote take the segment's place; `OSError` leaves the segment."""
    target = packed_path(path)
    target.with_name(target.name + ".new").replace(target)
    files.unlink(path)


def forget_pack(files: FileOperations, path: Path) -> None:
    """Remove what `pack` wrote, because the segment is gone."""
    with contextlib.suppress(OSError):
        files.unlink(packed_path(path).with_name(path.name + SUFFIX + ".new"))


class PlainFile:
    """A segment as it was written.

    Raises:
        FileNotFoundError: there is none.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def pread(self, count: int, at: int) -> bytes:
        """Bytes from a place on, fewer at the end."""
        return os.pread(self._fd, count, at)

    def size(self) -> int:
        """Bytes now."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class PackedFile(PlainFile):
    """A packed segment, read as if it were not; a piece that is damaged reads as zeros."""

    def __init__(self, path: Path) -> None:
        super().__init__(packed_path(path))
        self._starts = [0]  # of each piece in the file, and where the last one ends
        self._size = 0
        self._number, self._piece = -1, b""
        try:
            self._read_table()
        except BaseException:
            self.close()
            raise

    def _read_table(self) -> None:
        length = super().size()
        footer = super().pread(_FOOTER.size, max(0, length - _FOOTER.size))
        if len(footer) < _FOOTER.size:
            return
        count, _, magic = _FOOTER.unpack(footer)
        if magic != _FOOTER_MAGIC or count > MAX_PIECES:
            return  # not as it was written: it reads as empty
        table = super().pread(count * _ENTRY.size, length - _FOOTER.size - count * _ENTRY.size)
        for packed, plain in _ENTRY.iter_unpack(table):
            self._starts.append(self._starts[-1] + packed)
            self._size += plain

    def size(self) -> int:
        """Bytes of the segment."""
        return self._size

    def pread(self, count: int, at: int) -> bytes:
        """Bytes of the segment from a place on, fewer at its end."""
        parts = []
        end = min(at + count, self._size)
        while at < end:
            number, start = divmod(at, PIECE_BYTES)
            part = self._plain(number)[start : start + end - at]
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def _plain(self, number: int) -> bytes:
        if number != self._number:
            start, end = self._starts[number : number + 2]
            wanted = min(PIECE_BYTES, self._size - number * PIECE_BYTES)
            try:
                piece = bytes(
                    cramjam.zstd.decompress(super().pread(end - start, start), output_len=wanted)
                )
            except (cramjam.DecompressionError, ValueError, OverflowError):
                piece = b""
            self._number = number
            self._piece = piece if len(piece) == wanted else bytes(wanted)
        return self._piece


def open_segment(path: Path) -> PlainFile:
    """Open a segment, packed or not.

    Raises:
        FileNotFoundError: there is neither.
    """
    try:
        return PlainFile(path)
    except FileNotFoundError:
        return PackedFile(path)


def file_size(path: Path) -> int:
    """Bytes on disk of a segment, packed or not; `FileNotFoundError` when there is neither."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return packed_path(path).stat().st_size
