"""A file that a host brings, zipped on its way to the disk, and the form that carries it on.

Blocking: for threads, one call at a time for each file.

Source: docs/protocol.md, "Uploads".
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from hashlib import md5, sha256
from pathlib import Path
from secrets import token_hex
from typing import IO, Final
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from elkeid.private_files import FILE_MODE, FOLDER_MODE
from elkeid.web.client import FileBody

PIECE_BYTES: Final = 256 << 10
_SUFFIX = ".upload"


def prepare_folder(folder: Path) -> None:
    """Make the folder of files under way, and remove what an earlier process left there.

    Raises:
        OSError: the disk does not let us.
    """
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)
    for left in folder.glob(f"*{_SUFFIX}"):
        left.unlink(missing_ok=True)


class UploadFile:
    """One archive with one deflated entry. Its name on disk is of our making.

    Args:
        folder: where it is kept.
        token: names the entry, and the file in the form.

    Raises:
        OSError: the disk does not let us; likewise in `write` and `finish`.
    """

    def __init__(self, folder: Path, token: str) -> None:
        self.path = folder / f"{token_hex(16)}{_SUFFIX}"
        self._token = token
        self._lock = threading.Lock()  # a call whose waiter has gone may still run
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file: IO[bytes] = os.fdopen(os.open(self.path, flags, FILE_MODE), "w+b")
        self._archive = ZipFile(self._file, "w", ZIP_DEFLATED)
        entry = ZipInfo(token)  # without a time: equal files make equal archives
        entry.compress_type = ZIP_DEFLATED
        entry.external_attr = FILE_MODE << 16
        self._entry: IO[bytes] = self._archive.open(entry, "w", force_zip64=True)

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append to the entry."""
        with self._lock:
            for piece in pieces:
                self._entry.write(piece)

    def finish(self) -> tuple[FileBody, str]:
        """Close the archive; give the form that carries it, and the form's content type."""
        with self._lock:
            return self._finish()

    def _finish(self) -> tuple[FileBody, str]:
        self._entry.close()
        self._archive.close()
        self._file.flush()
        boundary = token_hex(30)
        head = (
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="file"; filename="file/{self._token}.zip"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        whole, content = sha256(head), md5(usedforsecurity=False)
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        while piece := self._file.read(PIECE_BYTES):
            whole.update(piece)
            content.update(piece)
        tail = (
            f"\r\n--{boundary}\r\n"
            'Content-Disposition: form-data; name="hash"\r\n\r\n'
            f"{content.hexdigest()}\r\n--{boundary}--\r\n"
        ).encode()
        whole.update(tail)
        self._file.close()
        body = FileBody(self.path, head, tail, len(head) + size + len(tail), whole.hexdigest())
        return body, f"multipart/form-data; boundary={boundary}"

    def discard(self) -> None:
        """Remove it, whatever state it is in."""
        with self._lock:
            self.path.unlink(missing_ok=True)
            for part in (self._entry, self._archive, self._file):
                with contextlib.suppress(OSError, ValueError):  # a full disk, or closed already
                    part.close()
