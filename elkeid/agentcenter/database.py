"""Small SQLite files that hold copies, or what waits: opened so that damage never stops a start."""

import os
import sqlite3
from pathlib import Path

from twisted.logger import Logger

_BESIDE = ("-wal", "-shm")
"""Endings of the files that SQLite keeps beside a database."""


def open_database(
    path: Path, schema: str, log: Logger, *, durable: bool = False
) -> sqlite3.Connection:
    """Open a database, made if missing; a damaged one is moved aside and begun anew.

    Blocking. The connection may be used from any thread, by one at a time.

    Args:
        path: of the database; its folder is made, too.
        schema: statements that change nothing where they were run before.
        log: told of damage.
        durable: whether a power cut may cost nothing, instead of the last transactions.

    Raises:
        OSError, sqlite3.OperationalError: the disk does not let us.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    try:
        return _connect(path, schema, durable)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        aside = path.with_name(f"{path.name}.damaged")
        log.error(
            "{path}: {error}; moved to {aside}, and begun anew",
            path=path,
            error=error,
            aside=aside.name,
        )
        path.replace(aside)
        for ending in _BESIDE:
            Path(f"{path}{ending}").unlink(missing_ok=True)
        return _connect(path, schema, durable)


def _connect(path: Path, schema: str, durable: bool) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        database.executescript(schema)
    except BaseException:
        database.close()
        raise
    return database
