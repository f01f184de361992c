"""SQLite: the database as a file, opened and prepared per connection.

One writer: writes of this process queue for one connection; other processes (``elkeid user
add``) are waited for. Readers have connections of their own and see the last commit.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool

from elkeid.errors import StoreError
from elkeid.manager.filter import compiled
from elkeid.manager.store import engine as limits
from elkeid.manager.store.engine import BUSY_SECONDS, READERS, QueryTooLong
from elkeid.manager.store.filtersql import REGEXP

_STEPS = 50_000  # of SQLite's virtual machine between two looks at the clock: about 1 ms
_CACHE_KIB = 16 << 10  # page cache per connection

_OF_THE_DISK = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_READONLY", "SQLITE_CANTOPEN")


def _matches(pattern: str, text: str | None) -> bool:
    return text is not None and compiled(pattern).search(text) is not None


class SqliteDatabase:
    """`Database` over one file.

    Args:
        url: ``sqlite:///PATH``.
    """

    def __init__(self, url: str) -> None:
        self.path = Path(make_url(url).database or "")
        self.name = str(self.path)
        self._url = url
        self._writer: Engine | None = None
        self._reader: Engine | None = None
        self._ending = False

    def open(self) -> None:
        """Make the file if there is none (mode 0600), and check that it is a database.

        Raises:
            StoreError: one sentence that names the file.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self.path.chmod(0o600)  # SQLite gives its side files the mode of this one
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be used as the database: {error.strerror}; "
                "set server.data_dir or manager.database to a place this user may write"
            ) from error
        self._writer = self._engine(1, "BEGIN IMMEDIATE")
        self._reader = self._engine(READERS, "BEGIN")
        try:
            with self.reading() as connection:
                connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")
        except DBAPIError as error:
            self.close()
            raise StoreError(
                f"{self.path} is no usable database ({error.orig}): move it away, or restore a copy"
            ) from error

    def end_reads(self) -> None:
        """See `Database`."""
        self._ending = True

    def close(self) -> None:
        """See `Database`."""
        for engine in (self._reader, self._writer):
            if engine is not None:
                engine.dispose()
        self._reader = self._writer = None

    def _engine(self, size: int, begin: str) -> Engine:
        engine = create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=0,
            hide_parameters=True,  # hashes of passwords are among them
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, record: object) -> None:
            connection.isolation_level = None  # BEGIN is ours, below
            connection.create_function(REGEXP, 2, _matches, deterministic=True)
            connection.execute("PRAGMA journal_mode = WAL")
            # A commit is on the disk when it returns: code 0 means stored.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute("PRAGMA trusted_schema = OFF")

        @event.listens_for(engine, "begin")
        def start(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """See `Database`."""
        assert self._writer is not None, "not open"
        with self._writer.begin() as connection:
            yield connection

    @contextmanager
    def copying(self) -> Iterator[Connection]:
        """See `Database`."""
        assert self._reader is not None, "not open"
        with self._reader.connect() as connection:
            yield connection

    def migrating(self) -> AbstractContextManager[Connection]:
        """A write like any other: SQLite lets one process write at a time."""
        return self.writing()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """See `Database`."""
        assert self._reader is not None, "not open"
        with self._reader.connect() as connection:
            end = time.monotonic() + limits.QUERY_SECONDS
            raw: Any = connection.connection.dbapi_connection
            raw.set_progress_handler(lambda: self._ending or time.monotonic() > end, _STEPS)
            try:
                yield connection
            except OperationalError as error:
                if self._ending:
                    raise QueryTooLong.stopping() from error
                if time.monotonic() > end:
                    raise QueryTooLong.late() from error
                raise
            finally:
                raw.set_progress_handler(None, 0)

    def may_retry(self, error: DBAPIError) -> bool:
        """Never: a write waits for the others' locks before it begins."""
        return False

    def is_trouble(self, error: DBAPIError) -> bool:
        """See `Database`."""
        return str(getattr(error.orig, "sqlite_errorname", "")).startswith(_OF_THE_DISK)
