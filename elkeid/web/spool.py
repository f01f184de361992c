"""Request bodies too large for memory: kept in a file without a name, hashed as they come."""

import os
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import IO


class Spool:
    """A body on disk, as `twisted.web` writes and rewinds it.

    Args:
        folder: where the file lies; it has no name there and is gone when the last holder closes
            it, also after a crash.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed below
        self._hash = sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        """Add a piece; `OSError` when the disk takes no more."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes so far."""
        return self._size

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position for whoever reads."""
        return self._file.seek(offset, whence)

    def close(self) -> None:
        """Let go of the file; a `reader` keeps it."""
        self._file.close()

    @property
    def body_hash(self) -> str:
        """SHA-256 in lower-case hex, as signatures have it: nothing for an empty body."""
        return self._hash.hexdigest() if self._size else ""

    def reader(self) -> IO[bytes]:
        """The whole body, from its beginning, for as long as the reader is open."""
        self._file.seek(0)
        return os.fdopen(os.dup(self._file.fileno()), "rb")
