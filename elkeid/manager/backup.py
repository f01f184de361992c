"""One file with what cannot be made again: the database, the keys, how far readers have come.

The file is a checksum followed by a compressed tar archive; it holds secrets and is for its
owner only. It is written beside a running server: the database is read in one consistent view.
Files of agents, exports and the event log itself are not in it.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Final

import msgspec
from sqlalchemy.exc import DBAPIError

from elkeid import __version__
from elkeid.config import Settings
from elkeid.errors import OperatorError
from elkeid.manager.store.backends import database_of
from elkeid.manager.store.copying import add_rows, clear, is_empty, rows_of, tables
from elkeid.manager.store.engine import Database
from elkeid.manager.store.migrate import is_known, migrate
from elkeid.manager.store.schema import HEAD_REVISION
from elkeid.private_files import make_private_folder, write_new_private

MAGIC: Final = b"elkeid backup 1\n"
_SUM_BYTES: Final = 32
_CHUNK: Final = 1 << 20
_MANIFEST: Final = "manifest.json"
_CURSORS: Final = "*.cursor"


_DAMAGE: Final = (EOFError, zlib.error, tarfile.TarError, msgspec.DecodeError, KeyError, ValueError)
"""What reading an archive ends in whose checksum is right all the same: a faulty writer's."""


class BackupRefused(OperatorError):
    """A backup cannot be written, or not be taken back."""


class Manifest(msgspec.Struct):
    """What a backup says of itself."""

    version: str  # of this program
    schema: str  # of the database
    created_at: int  # unix seconds


class _Writer:
    """An archive on its way into a file."""

    def __init__(self, target: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=target, mode="w:gz", compresslevel=6)  # noqa: SIM115

    def add(self, name: str, size: int, source: IO[bytes]) -> None:
        """Add a file."""
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o600, int(time.time())
        self._tar.addfile(info, source)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a small file."""
        self.add(name, len(data), BytesIO(data))

    def close(self) -> None:
        """Write the end."""
        self._tar.close()


def write_backup(settings: Settings, path: Path) -> int:
    """Write a backup to a new file of mode 0600; says how many bytes.

    Raises:
        BackupRefused: the file is there already, or cannot be written.
        StoreError: the database cannot be read.
    """
    if path.exists():
        raise BackupRefused(f"{path} is there already: name a new file")
    database = database_of(settings)
    database.open()
    try:
        migrate(database)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as target:
            target.write(MAGIC + bytes(_SUM_BYTES))
            _write_parts(settings, database, target.file)
            size = target.tell()
            target.flush()
            digest = _digest(target.file)
            target.seek(len(MAGIC))
            target.write(digest)
            target.flush()
            os.fsync(target.fileno())
            os.link(target.name, path)
    except DBAPIError as error:
        raise BackupRefused(f"{database.name} cannot be read: {error.orig}; try again") from error
    except OSError as error:
        raise BackupRefused(
            f"{path} cannot be written: {error.strerror}; choose another place"
        ) from error
    finally:
        database.close()
    return size


def _write_parts(settings: Settings, database: Database, target: IO[bytes]) -> None:
    archive = _Writer(target)
    manifest = Manifest(__version__, HEAD_REVISION, int(time.time()))
    archive.add_bytes(_MANIFEST, msgspec.json.encode(manifest))
    with database.copying() as connection:
        for table in tables():
            with tempfile.TemporaryFile() as rows:  # a tar entry begins with its size
                for line in rows_of(connection, table):
                    rows.write(line)
                size = rows.tell()
                rows.seek(0)
                archive.add(f"database/{table.name}.jsonl", size, rows)
    for folder, name, pattern in (
        (settings.server.keys_dir, "keys", "*"),
        (settings.server.data_dir, "data", _CURSORS),
    ):
        for each in sorted(folder.rglob(pattern)):
            if each.is_file() and not each.is_symlink():
                archive.add_bytes(f"{name}/{each.relative_to(folder)}", each.read_bytes())
    archive.close()


def _digest(file: IO[bytes]) -> bytes:
    """Of what follows the checksum."""
    file.seek(len(MAGIC) + _SUM_BYTES)
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.digest()


def read_backup(settings: Settings, path: Path) -> Manifest:
    """Take back a backup, into places that are empty.

    Raises:
        BackupRefused: the file is damaged or of a newer version, or something is there already;
            nothing was changed.
        StoreError: the database cannot be used.
    """
    keys_dir, data_dir = settings.server.keys_dir, settings.server.data_dir
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise BackupRefused(f"{path} is no backup: name a file of `elkeid backup`")
            if file.read(_SUM_BYTES) != _digest(file):
                raise BackupRefused(f"{path} is damaged: use another backup")
            file.seek(len(MAGIC) + _SUM_BYTES)
            with _unpacked(file) as whole, tarfile.open(fileobj=whole, mode="r:") as archive:
                manifest = _manifest(archive, path)
                _must_be_empty(keys_dir, "*")
                _must_be_empty(data_dir, _CURSORS)
                _restore_database(settings, archive, manifest)
                _restore_files(archive, "keys", keys_dir)
                _restore_files(archive, "data", data_dir)
    except OSError as error:
        raise BackupRefused(f"{error.filename or path}: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise BackupRefused(f"{path} is damaged ({error}): use another backup") from error
    return manifest


@contextmanager
def _unpacked(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The rest of a file, unpacked where parts of it are found at once; nobody else sees it."""
    with tempfile.TemporaryFile() as whole:
        with gzip.GzipFile(fileobj=file, mode="rb") as packed:
            shutil.copyfileobj(packed, whole, _CHUNK)
        whole.seek(0)
        yield whole


def _manifest(archive: tarfile.TarFile, path: Path) -> Manifest:
    member = archive.next()
    source = None if member is None else archive.extractfile(member)
    if member is None or member.name != _MANIFEST or source is None:
        raise BackupRefused(f"{path} is no backup of this program: use another one")
    manifest = msgspec.json.decode(source.read(), type=Manifest)
    if not is_known(manifest.schema):
        raise BackupRefused(
            f"{path} was written by version {manifest.version} with schema {manifest.schema}, "
            f"which this one (up to {HEAD_REVISION}) does not know: restore it with that version"
        )
    return manifest


def _must_be_empty(folder: Path, pattern: str) -> None:
    found = next((each for each in folder.rglob(pattern) if each.is_file()), None)
    if found is not None:
        raise BackupRefused(f"{found} is there already: a backup is restored into empty places")


def _restore_database(settings: Settings, archive: tarfile.TarFile, manifest: Manifest) -> None:
    database = database_of(settings)
    database.open()
    try:
        migrate(database)
        with database.migrating() as connection:
            if not is_empty(connection):
                raise BackupRefused(
                    f"{database.name} is not empty: a backup is restored into an empty database"
                )
            found = {table: _lines(archive, f"database/{table.name}.jsonl") for table in tables()}
            clear(connection, [table for table, lines in found.items() if lines is not None])
            for table, lines in found.items():
                if lines is not None:
                    add_rows(connection, table, lines)
    except DBAPIError as error:
        raise BackupRefused(
            f"{database.name} does not take the backup: {error.orig}; restore into an empty one"
        ) from error
    finally:
        database.close()


def _lines(archive: tarfile.TarFile, name: str) -> Iterator[bytes] | None:
    try:
        source = archive.extractfile(name)
    except KeyError:  # a table that the version of the backup had not yet
        return None
    return None if source is None else iter(source)


def _restore_files(archive: tarfile.TarFile, name: str, folder: Path) -> None:
    for member in archive.getmembers():
        parts = PurePosixPath(member.name).parts
        source = archive.extractfile(member)
        if parts[0] != name or source is None or ".." in parts:
            continue
        target = folder.joinpath(*parts[1:])
        for each in (folder, *reversed(target.relative_to(folder).parents[:-1])):
            make_private_folder(folder / each)
        write_new_private(target, source.read())
