"""What the store needs of a database, whichever it is. See `backends` for which there are.

Reading and writing are separate: a read sees one consistent view and is never committed, and
ends by itself when it takes too long. Blocking: used in threads only.
"""

from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from elkeid.errors import StoreError

READERS = 3
"""Connections for reading at once; more threads than cores only wait for each other."""

BUSY_SECONDS = 5.0
"""How long a write waits for another process's write; those are short."""

QUERY_SECONDS = 20.0
"""Longest read; a filter over every document of a large fleet ends with an error instead."""

CONNECT_SECONDS = 5
"""Until a server that does not answer is given up."""


class QueryTooLong(StoreError):
    """A read took longer than `QUERY_SECONDS`, or than this process runs, and was ended."""

    @classmethod
    def stopping(cls) -> "QueryTooLong":
        """For a read that the stop of this process cut short."""
        return cls("the query was ended: this process stops")

    @classmethod
    def late(cls) -> "QueryTooLong":
        """For a read that took too long."""
        return cls(f"the query took more than {QUERY_SECONDS:g} s and was ended")


class Database(Protocol):
    """Engines on one database."""

    @property
    def name(self) -> str:
        """How sentences for operators call it: a path, or a URL without its password."""

    def open(self) -> None:
        """Connect, and check that it can be used.

        Raises:
            StoreError: one sentence that names the database and the fix.
        """

    def end_reads(self) -> None:
        """Let reads in progress end with `QueryTooLong`; returns at once, from any thread."""

    def close(self) -> None:
        """Close every connection."""

    def writing(self) -> AbstractContextManager[Connection]:
        """One transaction that writes; committed at the end, rolled back on any error."""

    def reading(self) -> AbstractContextManager[Connection]:
        """One consistent view; a statement that runs too long ends in `QueryTooLong`."""

    def copying(self) -> AbstractContextManager[Connection]:
        """One consistent view, for as long as it takes to copy all there is."""

    def migrating(self) -> AbstractContextManager[Connection]:
        """One transaction that may take long; no other process has one at the same time."""

    def may_retry(self, error: DBAPIError) -> bool:
        """Say whether a write failed only because of another one's locks."""

    def is_trouble(self, error: DBAPIError) -> bool:
        """Say whether it is the disk or the server that failed, and no query of ours."""
