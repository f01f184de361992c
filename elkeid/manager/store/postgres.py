"""PostgreSQL: one database for several Managers.

Reads are REPEATABLE READ and read-only, so that every statement of one sees the same data.
Writes are READ COMMITTED. A connection that the server has ended is replaced by the next query.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.abc import Buffer
from psycopg.types.array import ListBinaryDumper
from psycopg.types.string import StrBinaryDumper, StrDumperUnknown
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from elkeid.errors import StoreError
from elkeid.manager.store import engine as limits
from elkeid.manager.store.engine import BUSY_SECONDS, CONNECT_SECONDS, READERS, QueryTooLong

OLDEST: Final = 12
"""Major version; all that are supported by their makers are newer."""

MIGRATION_LOCK: Final = 0x656C6B656964
"""Key of the advisory lock: "elkeid"."""

_CONNECTION: Final = {
    "application_name": "elkeid-manager",
    "connect_timeout": str(CONNECT_SECONDS),
    # A server that vanished without a word is noticed within 10 s.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}

_RETRY: Final = ("40P01", "40001")  # deadlock, serialization failure

_TROUBLE: Final = ("08", "53", "57P", "58")  # connection, resources, shutdown, system errors


class _TextDumper(StrDumperUnknown):
    """Gives texts to the server, which knows no U+0000: U+FFFD stands for it.

    Agents and clients can send one wherever they send a text. So it is found nowhere, and harms
    no batch of results that it comes in.
    """

    def dump(self, obj: str) -> Buffer | None:
        """The bytes of a text."""
        return super().dump(_known(obj))


class _ElementDumper(StrBinaryDumper):
    """The same for the texts in an array."""

    def dump(self, obj: str) -> Buffer | None:
        """The bytes of a text."""
        return super().dump(_known(obj))


def _known(text: str) -> str:
    return text.replace("\0", "\ufffd") if "\0" in text else text


class PostgresDatabase:
    """`Database` over a server.

    Args:
        url: ``postgresql://user[:password]@host[:port]/database[?option=value]``.
        password_file: its first line is the password; see `OperatorError` texts.
    """

    def __init__(self, url: str, password_file: Path | None = None) -> None:
        self._url: URL = make_url(url).set(drivername="postgresql+psycopg")
        shown = self._url.set(drivername="postgresql", query={})
        self.name = shown.render_as_string(hide_password=True)
        self._password_file = password_file
        self._writer: Engine | None = None
        self._reader: Engine | None = None
        self._ending = False
        self._reads: set[Any] = set()  # psycopg connections
        self._lock = threading.Lock()  # of `_reads`

    def open(self) -> None:
        """See `Database`."""
        url = self._with_password()
        # Set before the first statement, so that every BEGIN says it.
        self._writer = _engine(url, 1, psycopg.IsolationLevel.READ_COMMITTED, read_only=False)
        self._reader = _engine(url, READERS, psycopg.IsolationLevel.REPEATABLE_READ, read_only=True)
        try:
            with self.reading() as connection:
                number = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
                encoding, order = connection.exec_driver_sql(
                    "SELECT pg_encoding_to_char(encoding), datcollate FROM pg_database"
                    " WHERE datname = current_database()"
                ).one()
        except DBAPIError as error:
            self.close()
            raise StoreError(
                f"{self.name} cannot be used as the database ({_reason(error)}): check that the "
                "server runs, manager.database and manager.database_password_file"
            ) from error
        fault = None
        if int(number) < OLDEST * 10_000:
            fault = f"PostgreSQL {int(number) // 10_000} is too old: use {OLDEST} or later"
        elif encoding != "UTF8" or order not in ("C", "POSIX"):
            # Texts order by code point, as everywhere else here; no upgrade of the system's
            # locales can disorder an index.
            fault = (
                f"its encoding is {encoding} and its order {order}: make it by CREATE DATABASE "
                "... TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
            )
        if fault is not None:
            self.close()
            raise StoreError(f"{self.name} cannot be used as the database: {fault}")

    def _with_password(self) -> URL:
        if self._password_file is None:
            return self._url
        try:
            text = self._password_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise StoreError(
                f"{self._password_file}: {reason}; manager.database_password_file must name a "
                "file with the password"
            ) from error
        return self._url.set(password=text.partition("\n")[0].rstrip("\r"))

    def end_reads(self) -> None:
        """See `Database`."""
        self._ending = True
        # Each takes a connection of its own to ask for.
        threading.Thread(target=self._cancel_reads, daemon=True).start()

    def _cancel_reads(self) -> None:
        with self._lock:
            reads = list(self._reads)
        for each in reads:
            try:
                each.cancel_safe(timeout=CONNECT_SECONDS)
            except psycopg.Error:
                continue  # its end is near all the same: the statement's own limit

    def close(self) -> None:
        """See `Database`."""
        for engine in (self._reader, self._writer):
            if engine is not None:
                engine.dispose()
        self._reader = self._writer = None

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
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            yield connection

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """See `Database`."""
        with self.writing() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """See `Database`."""
        assert self._reader is not None, "not open"
        with self._reader.connect() as connection:
            raw = connection.connection.dbapi_connection
            with self._lock:
                self._reads.add(raw)
            try:
                if self._ending:
                    raise QueryTooLong.stopping()
                yield connection
            except DBAPIError as error:
                if isinstance(error.orig, psycopg.errors.QueryCanceled):
                    if self._ending:
                        raise QueryTooLong.stopping() from error
                    raise QueryTooLong.late() from error
                raise
            finally:
                with self._lock:
                    self._reads.discard(raw)

    def may_retry(self, error: DBAPIError) -> bool:
        """See `Database`."""
        return _state(error) in _RETRY

    def is_trouble(self, error: DBAPIError) -> bool:
        """See `Database`."""
        state = _state(error)
        if state is None:  # it never came to a statement
            return isinstance(error.orig, psycopg.OperationalError)
        return error.connection_invalidated or state.startswith(_TROUBLE)


def _engine(url: URL, size: int, isolation: psycopg.IsolationLevel, *, read_only: bool) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        hide_parameters=True,  # hashes of passwords are among them
        pool_pre_ping=True,  # a restart of the server costs no query
        connect_args={k: v for k, v in _CONNECTION.items() if k not in url.query},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: "psycopg.Connection[Any]", record: object) -> None:
        adapters = connection.adapters
        adapters.register_dumper(str, _ElementDumper)
        adapters.register_dumper(str, _TextDumper)  # the last one is for single texts
        # As texts, arrays of JSON would spend half of a write on quotes and backslashes.
        adapters.register_dumper(list, ListBinaryDumper)
        connection.autocommit = True
        milliseconds = max(1, round(limits.QUERY_SECONDS * 1000))
        connection.execute(f"SET statement_timeout = {milliseconds}")
        connection.execute(f"SET lock_timeout = {round(BUSY_SECONDS * 1000)}")
        # A process that stands still in a transaction must not hold its locks for ever.
        connection.execute(f"SET idle_in_transaction_session_timeout = {2 * milliseconds}")
        connection.execute("SET timezone = 'UTC'")
        # What is touched is in memory or on a disk without heads. By the default of 4, a table
        # that is new is read whole for every few hundred ids.
        connection.execute("SET random_page_cost = 1.1")
        # Compiling a filter's hundreds of expressions takes longer than running them.
        connection.execute("SET jit = off")
        # A count of a long list takes one core; whoever waits for a page finds the others free.
        connection.execute("SET max_parallel_workers_per_gather = 0")
        connection.autocommit = False
        connection.isolation_level = isolation
        connection.read_only = read_only

    return engine


def _state(error: DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state


def _reason(error: DBAPIError) -> str:
    """The server's or the library's words, in one line; they never hold the password."""
    return " ".join(str(error.orig).split())
