"""Files that agents uploaded: kept in a folder, each named in the database once it is whole.

A file is written under a name of its own, told to the disk, noted in the database and only then
given its name; what a crash leaves of that order is put right at the next start.

Of several Managers each has a folder of its own, and they share the names: a file is served by the
Manager that took it, and whoever removes a name leaves the others' files to them.

Source: docs/protocol.md, "Manager API", "For AgentCenters".
"""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from hashlib import md5, sha256
from pathlib import Path
from typing import IO

from sqlalchemy import Connection
from twisted.logger import Logger

from elkeid.errors import RequestRefused
from elkeid.manager.store.store import Store, Threads
from elkeid.manager.store.uploads import (
    Upload,
    add_upload,
    find_upload,
    old_uploads,
    remove_uploads,
    same_upload,
    upload_names,
    uploads_bytes,
)
from elkeid.private_files import sync_folder
from elkeid.web.multipart import read_form

FORGOTTEN_AT_ONCE = 100
"""Old files removed in one go."""

PART = ".part"


class UploadRefused(RequestRefused):
    """A file cannot be taken; the text says why."""


class HashMissing(UploadRefused):
    """The form does not say what the file's MD5 is."""


class QuotaSpent(UploadRefused):
    """All files together would take more than they may."""


class Uploads:
    """The files.

    Args:
        folder: where they lie; made at the start, 0700.
        store: open.
        threads: where files are read and written.
        wall: seconds since the epoch.
        quota: bytes that all of them may take.
    """

    log = Logger()

    def __init__(
        self, folder: Path, store: Store, threads: Threads, wall: Callable[[], float], quota: int
    ) -> None:
        self.folder, self._store, self._threads = folder, store, threads
        self._wall, self._quota = wall, quota
        self._under_way = 0  # bytes of bodies that are being stored
        self._nameless: set[str] = set()  # that lay here at the last look

    async def start(self) -> None:
        """Make the folder, and put right what a crash has left."""
        names = await self._store.read(upload_names)
        await self._threads.run(self._tidy, names)

    def _tidy(self, names: set[str]) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.name not in names:
                self.log.info("{path} was never finished: removed", path=str(path))
                path.unlink()
        missing = sum(not (self.folder / name).exists() for name in names)
        if missing:
            self.log.warn(
                "{missing} of {count} files of agents are not in {folder}: other Managers have "
                "them, or they are lost",
                missing=missing,
                count=len(names),
                folder=str(self.folder),
            )

    async def forget_some(self, before: float) -> bool:
        """Remove files that were stored before a time, in unix seconds; whether there may be more.

        Names go first; in the end files go whose names another Manager has removed.
        """
        names = await self._store.read(old_uploads, before, FORGOTTEN_AT_ONCE)
        if names:
            await self._store.write(remove_uploads, names)
            await self._threads.run(self._remove_all, names)
        if len(names) == FORGOTTEN_AT_ONCE:
            return True
        await self._remove_nameless()
        return False

    async def _remove_nameless(self) -> None:
        """Remove files that had no name at the last look either: a new one gets it in between."""
        found = await self._threads.run(self._whole)
        named = await self._store.read(upload_names) if found else set()
        nameless = found - named
        await self._threads.run(self._remove_all, sorted(nameless & self._nameless))
        self._nameless = nameless - self._nameless

    def _whole(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.suffix != PART}

    def _remove_all(self, names: list[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    async def known(self, md5_hex: str) -> str | None:
        """The name of a stored file with this MD5."""
        found = await self._store.read(same_upload, md5_hex)
        if found is None or not await self._threads.run((self.folder / found.name).exists):
            return None
        return found.name

    async def take(self, body: IO[bytes], size: int, boundary: bytes) -> str:
        """Store the file of a form with ``hash``, the MD5 of its part ``file``.

        Args:
            body: of the request; closed here.
            size: of ``body``, bytes.
            boundary: of the form.

        Returns:
            The file's name. It is on the disk.

        Raises:
            UploadRefused: no hash, no such content, another hash, no room.
            ParameterInvalid: it is no form.
        """
        part = self.folder / f"{secrets.token_hex(16)}{PART}"
        self._under_way += size
        try:
            held = await self._store.read(uploads_bytes)
            if held + self._under_way > self._quota:
                body.close()
                raise QuotaSpent(f"files of agents take {held} of {self._quota} bytes already")
            said, digests, written = await self._threads.run(self._write, body, boundary, part)
            if digests is None:
                known = await self.known(said)
                if known is None:
                    raise UploadRefused("no file")
                return known
            if said != digests[0]:
                raise UploadRefused(f"hash: {said} was said, the file has {digests[0]}")
            same = await self._store.read(same_upload, *digests)
            if same is not None:
                await self._threads.run(self._put_back, part, same.name)
                return same.name
            stored = await self._store.write(self._add, digests, written, part)
            return stored.name
        finally:
            self._under_way -= size
            await self._threads.run(_remove, part)

    def _write(
        self, body: IO[bytes], boundary: bytes, part: Path
    ) -> tuple[str, tuple[str, str] | None, int]:
        """Copy the form's file to ``part``: what hash was said, what the file has, its size."""
        weak, strong, size = md5(usedforsecurity=False), sha256(), 0
        with (
            body,
            os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as to,
        ):

            def keep(piece: bytes) -> None:
                nonlocal size
                to.write(piece)
                weak.update(piece)
                strong.update(piece)
                size += len(piece)

            fields, found = read_form(body, boundary, "file", keep)
            to.flush()
            os.fsync(to.fileno())
        said = fields.get("hash", "").lower()
        if not said:
            raise HashMissing("no file hash")
        return said, (weak.hexdigest(), strong.hexdigest()) if found else None, size

    def _add(
        self, connection: Connection, digests: tuple[str, str], size: int, part: Path
    ) -> Upload:
        """Note the file and give it its name, before the transaction is committed."""
        stored = add_upload(connection, *digests, size, int(self._wall()))
        self._name(part, stored.name)
        return stored

    def _put_back(self, part: Path, name: str) -> None:
        """See to it that a file which was noted before is here: a backup has no files."""
        if not (self.folder / name).exists():
            self._name(part, name)

    def _name(self, part: Path, name: str) -> None:
        part.rename(self.folder / name)
        sync_folder(self.folder)

    async def open(self, name: str) -> tuple[IO[bytes], Upload] | None:
        """A stored file, to read; None where there is none of this name."""
        found = await self._store.read(find_upload, name)
        if found is None:
            return None
        try:
            return await self._threads.run(_open, self.folder / found.name), found
        except FileNotFoundError:
            self.log.warn(
                "{path} is not here: another Manager has it, or it is lost",
                path=str(self.folder / found.name),
            )
            return None


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")
