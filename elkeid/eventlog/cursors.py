"""Cursors: how far each named reader has come, one small file a reader, replaced atomically.

A cursor file holds two lines: JSON, and the CRC-32C of it in hex. Per class it keeps where the
reader stands and how it came there; at every moment
``position + ahead = acknowledged + set_aside + sum(expired)``. Only a reader with progress per
partition (`elkeid.kafka`) is ever ahead of its position: what a partition holds back is in
``held``, and everything else before `ClassCursor.read_to` is dealt with.
A reader starts at the oldest record there is; what was before that is its ``expired{before}``.
"""

import contextlib
import os
import re
from pathlib import Path

import msgspec
from crc32c import crc32c

from elkeid.errors import LogFormatError, OperatorError
from elkeid.eventlog.files import FileOperations, lock_file, replace_file
from elkeid.wire.datatypes import RecordClass

READERS_DIRECTORY = "readers"
CURSOR_VERSION = 1
UNUSED_SECONDS = 24 * 3600  # after so long without use a reader not in the settings is forgotten

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
_SUFFIX = ".cursor"
_LOCK_SUFFIX = ".lock"


class ClassCursor(msgspec.Struct):
    """Where a reader stands in one class."""

    position: int = 0  # offset of the first record it has not dealt with
    acknowledged: int = 0
    set_aside: int = 0
    expired: dict[str, int] = {}
    ahead: int = 0  # records from the position on that are dealt with nevertheless
    held: dict[str, tuple[int, int]] = {}
    """Partition -> offset of its first record that is not dealt with, and their number."""
    partitions: int = 0  # how many there were when ``held`` was written

    def expire(self, reason: str, count: int) -> None:
        """Move past records that can no longer be had."""
        self.expired[reason] = self.expired.get(reason, 0) + count
        self.position += count

    def acknowledge(self, count: int) -> None:
        """Move past records that the reader has dealt with."""
        self.acknowledged += count
        self.position += count

    def put_aside(self, count: int) -> None:
        """Move past records that the reader could not deal with and has kept elsewhere."""
        self.set_aside += count
        self.position += count

    @property
    def balanced(self) -> bool:
        """Whether the counts add up, as they do in any file we wrote."""
        counts = (self.acknowledged, self.set_aside, *self.expired.values())
        held = self.held.values()
        return (
            min(*counts, self.ahead, *(count for _, count in held)) >= 0
            and sum(counts) == self.position + self.ahead
            and all(offset >= self.position for offset, _ in held)
        )

    @property
    def owed(self) -> int:
        """Records before `read_to` that are not dealt with."""
        return sum(count for _, count in self.held.values())

    @property
    def read_to(self) -> int:
        """Offset before which everything is dealt with or in ``held``."""
        return self.position + self.ahead + self.owed


class Cursor(msgspec.Struct):
    """A reader's place in every class."""

    format: int = CURSOR_VERSION
    used_ms: int = 0  # when it was last saved, milliseconds since the epoch
    classes: dict[str, ClassCursor] = {}
    clean: bool = True  # nothing was under way when this was saved
    repeats: dict[str, int] = {}  # by cause: events after which records may have come twice

    def stale(self, now_ms: int) -> bool:
        """Say whether it has been unused for too long to be kept for an ad-hoc reader."""
        return now_ms - self.used_ms > UNUSED_SECONDS * 1000


class _AnyVersion(msgspec.Struct):
    format: int


class DamagedCursor(OperatorError):
    """A cursor file is not as it was written; the reader must begin anew."""


def check_name(name: str) -> None:
    """Refuse a reader's name that is no good file name.

    Raises:
        OperatorError: it is not a-z, then a-z, 0-9, _ and -, 63 characters in all.
    """
    if not _NAME.match(name):
        raise OperatorError(
            f"reader {name!r}: a name is a letter a-z, then a-z, 0-9, _ and -, at most 63 in all"
        )


def cursor_path(directory: Path, name: str) -> Path:
    """Where the cursor of a reader of the log in ``directory`` is kept."""
    return directory / READERS_DIRECTORY / (name + _SUFFIX)


def encode_cursor(cursor: Cursor) -> bytes:
    """The content of a cursor file."""
    text = msgspec.json.encode(cursor)
    return b"%s\n%08x\n" % (text, crc32c(text))


def decode_cursor(data: bytes, path: Path) -> Cursor:
    """Read the content of a cursor file.

    Raises:
        DamagedCursor: it is not as it was written.
        LogFormatError: it is of another format version.
    """
    text, _, rest = data.partition(b"\n")
    damaged = DamagedCursor(f"{path}: damaged; remove it to let this reader start at the oldest")
    if rest != b"%08x\n" % crc32c(text):
        raise damaged
    try:
        version = msgspec.json.decode(text, type=_AnyVersion).format
        if version != CURSOR_VERSION:
            raise LogFormatError(
                f"{path}: cursor format {version}, this version knows {CURSOR_VERSION}; "
                "run the version that wrote it, or move the file away"
            )
        cursor = msgspec.json.decode(text, type=Cursor)
    except msgspec.DecodeError as error:
        raise damaged from error
    if not all(each.balanced for each in cursor.classes.values()):
        raise damaged
    return cursor


def read_cursor(path: Path) -> Cursor | None:
    """Read a cursor file; None when there is none.

    Raises:
        DamagedCursor: it is not as it was written.
        LogFormatError: it is of another format version.
    """
    try:
        return decode_cursor(path.read_bytes(), path)
    except FileNotFoundError:
        return None


def save_cursor(files: FileOperations, path: Path, cursor: Cursor) -> None:
    """Replace a cursor file durably; `OSError` leaves the old one."""
    replace_file(files, path, encode_cursor(cursor))


def reader_names(directory: Path) -> list[str]:
    """Name the readers that have a cursor in the log at ``directory``."""
    try:
        with os.scandir(directory / READERS_DIRECTORY) as found:
            names = [each.name for each in found]
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return sorted(stem for stem in stems if _NAME.match(stem))


def read_cursors(directory: Path) -> tuple[dict[str, Cursor], dict[str, DamagedCursor]]:
    """Read all cursors of a log: the sound ones, and what is wrong with the others, by reader.

    Raises:
        LogFormatError: one is of another format version.
    """
    found: dict[str, Cursor] = {}
    damaged: dict[str, DamagedCursor] = {}
    for name in reader_names(directory):
        try:
            cursor = read_cursor(cursor_path(directory, name))
        except DamagedCursor as error:
            damaged[name] = error
            continue
        if cursor is not None:
            found[name] = cursor
    return found, damaged


def lock_reader(directory: Path, name: str) -> int | None:
    """Take the name of a reader for this process; None when another has it.

    Returns:
        The descriptor that holds it until closed.
    """
    (directory / READERS_DIRECTORY).mkdir(mode=0o700, exist_ok=True)
    return lock_file(directory / READERS_DIRECTORY / (name + _LOCK_SUFFIX))


def set_aside_damaged(path: Path) -> None:
    """Keep a damaged cursor file beside its place, where it harms nothing."""
    path.rename(path.with_name(path.name + ".damaged"))


def forget_unused(directory: Path, kept: frozenset[str], now_ms: int) -> list[str]:
    """Remove the cursors of readers not in ``kept`` and unused for a day; return their names."""
    forgotten = []
    for name in reader_names(directory):
        if name in kept:
            continue
        held = lock_reader(directory, name)
        if held is None:  # being used just now
            continue
        try:
            path = cursor_path(directory, name)
            try:
                cursor = read_cursor(path)
            except (DamagedCursor, LogFormatError):
                continue
            if cursor is not None and cursor.stale(now_ms):
                path.unlink()
                forgotten.append(name)
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(name + _LOCK_SUFFIX).unlink()
        finally:
            os.close(held)
    return forgotten


def furthest_position(cursors: dict[str, Cursor], record_class: RecordClass) -> int:
    """The furthest position of any reader in a class: no offset below may be given out again."""
    return max(
        (
            each.classes[record_class.label].read_to
            for each in cursors.values()
            if record_class.label in each.classes
        ),
        default=0,
    )
