"""Records that Kafka will never take, kept on disk with the reason.

One JSON object a line: ``class``, ``offset`` (of the event log), ``agent_id``, ``reason``,
``time_ms`` (when it was received) and ``value``, the MQData in base64. When the file has half of
what it may take it becomes ``dead-letters.old.jsonl``, whose predecessor is deleted.
"""

import contextlib
import os
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path

import msgspec

from elkeid.eventlog.files import FileOperations, sync_directory
from elkeid.wire.datatypes import RecordClass

FILE = "dead-letters.jsonl"
OLD_FILE = "dead-letters.old.jsonl"


class Letter(msgspec.Struct):
    """One record that was set aside."""

    class_label: str = msgspec.field(name="class")
    offset: int
    agent_id: str
    reason: str
    time_ms: int
    value: str


class DeadLetters:
    """Appends what is set aside, durably, and keeps the newest within a limit.

    Args:
        directory: the event log's folder.
        limit_bytes: of both files.
        files: the file operations; tests pass a set that fails.
    """

    def __init__(
        self, directory: Path, limit_bytes: int, files: FileOperations | None = None
    ) -> None:
        self._path, self._old = directory / FILE, directory / OLD_FILE
        self._limit = limit_bytes // 2
        self._files = FileOperations() if files is None else files

    def add(
        self,
        record_class: RecordClass,
        offset: int,
        *,
        agent_id: bytes,
        reason: str,
        time_ms: int,
        value: bytes,
    ) -> None:
        """Keep one record; returns when it is on the disk.

        Raises:
            OSError: the disk does not take it; nothing of it is there.
        """
        line = msgspec.json.encode(
            Letter(
                record_class.label,
                offset,
                agent_id.decode("utf-8", "replace"),
                reason,
                time_ms,
                b64encode(value).decode(),
            )
        )
        files = self._files
        fd = files.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(fd).st_size
            if size and size + len(line) > self._limit:
                self._path.replace(self._old)
                files.close(fd)
                fd = files.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                size = 0
            try:
                if files.writev(fd, (line, b"\n")) != len(line) + 1:
                    raise OSError("short write")
                files.fsync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    files.ftruncate(fd, size)
                raise
        finally:
            files.close(fd)
        if not size:
            sync_directory(files, self._path.parent)


def read_letters(directory: Path) -> Iterable[Letter]:
    """What is kept, oldest first; a line that a crash cut short is left out."""
    for name in (OLD_FILE, FILE):
        try:
            text = (directory / name).read_bytes()
        except FileNotFoundError:
            continue
        for line in text.splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line, type=Letter)
