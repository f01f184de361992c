"""CSV in a ZIP, written row by row, safe to open in a spreadsheet. Blocking: for threads."""

import csv
import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

BOM: Final = b"\xef\xbb\xbf"
"""Without it spreadsheets take the text for another encoding."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def cell(value: object) -> str:
    """The text of a value: lists joined by commas, and nothing that a spreadsheet would run.

    Texts come from hosts, and one that begins like a formula is one where it is opened; an
    apostrophe before it makes it text.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        value = ",".join(str(each) for each in value)
    text = "" if value is None else str(value)
    text = text.replace("\0", "").encode("utf-8", "replace").decode()
    return "'" + text if text.startswith(_FORMULA) or text.lstrip(" ").startswith("=") else text


class CsvArchive:
    """One CSV file in one ZIP file.

    Args:
        path: made here, 0600.
        name: of the file within.
        header: its first row.
    """

    def __init__(self, path: Path, name: str, header: Sequence[str]) -> None:
        self.path = path
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED)
        self._entry = self._archive.open(name, "w", force_zip64=True)
        try:
            self._entry.write(BOM)
            self.add([header])
        except OSError:
            self.discard()
            raise

    def add(self, rows: Iterable[Sequence[object]]) -> int:
        """Write rows; return the archive's bytes so far."""
        text = io.StringIO()
        csv.writer(text).writerows([cell(value) for value in row] for row in rows)
        self._entry.write(text.getvalue().encode())
        return self._file.tell()

    def finish(self) -> int:
        """Put the whole on the disk; return its bytes."""
        self._entry.close()
        self._archive.close()
        self._file.flush()
        size = self._file.tell()
        os.fsync(self._file.fileno())
        self._file.close()
        return size

    def discard(self) -> None:
        """Remove it, finished or not."""
        # The archive insists on being whole when it is closed.
        for close in (self._entry.close, self._archive.close, self._file.close):
            with suppress(OSError, ValueError):
                close()
        self.path.unlink(missing_ok=True)
