"""Task results that a Manager refuses for reasons of its own: aside, so that others get past.

Those of one token stay in order: while one is here, those that follow it come here, too.

Source: docs/protocol.md, "Task results".
"""

import sqlite3
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from attrs import define, field, frozen
from twisted.logger import Logger

from elkeid.agentcenter.database import open_database

KEPT_FILE: Final = "kept-aside.db"

KEPT_ITEMS: Final = 1000
"""Results kept aside; beyond, the ones behind wait. In memory they are at most 16 MiB."""

KEPT_BYTES: Final = 16 << 20

FIRST_PAUSE_SECONDS: Final = 30.0
LAST_PAUSE_SECONDS: Final = 300.0
"""Pauses of one token double from the first to the last."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (id INTEGER PRIMARY KEY, fields BLOB NOT NULL);
PRAGMA user_version = 1;
"""


@frozen
class Kept:
    """One result, and its row."""

    row: int
    fields: dict[str, str]
    size: int  # bytes as JSON


@define
class _Queue:
    """Of one token."""

    due: float
    pause: float = FIRST_PAUSE_SECONDS
    results: deque[Kept] = field(factory=deque)


class KeptResults:
    """The results, by token, in memory and on disk.

    `open`, `keep` and `remove` are blocking: for threads, one call at a time.

    Args:
        path: of the database.
    """

    log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # a call whose waiter has gone may still run
        self._database: sqlite3.Connection | None = None
        self._queues: dict[str, _Queue] = {}
        self._bytes = 0
        self._items = 0

    def open(self) -> None:
        """Read what an earlier run kept; all of it is due at once.

        Raises:
            OSError, sqlite3.Error: the disk does not let us.
        """
        with self._lock:
            self._database = open_database(self._path, _SCHEMA, self.log, durable=True)
            try:
                for row, data in self._database.execute("SELECT id, fields FROM kept ORDER BY id"):
                    fields = msgspec.json.decode(data, type=dict[str, str])
                    self._add(Kept(row, fields, len(data)), 0.0)
            except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:  # must not end a start
                self.log.error("{path}: {error}; the rest is lost", path=self._path, error=error)

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def __len__(self) -> int:
        return self._items

    @property
    def full(self) -> bool:
        """Whether no more is kept."""
        return self._items >= KEPT_ITEMS or self._bytes >= KEPT_BYTES

    def holds(self, fields: Mapping[str, str]) -> bool:
        """Whether one of the same token is here, so that this one must not pass it."""
        return bool(fields) and fields.get("token", "") in self._queues

    def keep(self, results: Sequence[Mapping[str, str]], now: float) -> None:
        """Keep results behind those of their tokens.

        Raises:
            sqlite3.Error: the disk does not let us; nothing was kept.
        """
        added: list[Kept] = []
        with self._lock:
            if self._database is None:
                return
            with self._database as transaction:
                for fields in results:
                    data = msgspec.json.encode(fields)
                    row = transaction.execute("INSERT INTO kept (fields) VALUES (?)", (data,))
                    added.append(Kept(row.lastrowid or 0, dict(fields), len(data)))
            for each in added:
                self._add(each, now + FIRST_PAUSE_SECONDS)

    def _add(self, kept: Kept, due: float) -> None:
        queue = self._queues.setdefault(kept.fields.get("token", ""), _Queue(due))
        queue.results.append(kept)
        self._bytes += kept.size
        self._items += 1

    def remove(self, kept: Kept) -> None:
        """Forget the first of its token: it is dealt with, and the next one is due.

        Raises:
            sqlite3.Error: the disk does not let us; it is tried again after a restart.
        """
        token = kept.fields.get("token", "")
        with self._lock:
            queue = self._queues[token]
            queue.results.popleft()
            queue.pause = FIRST_PAUSE_SECONDS
            if not queue.results:
                del self._queues[token]
            self._bytes -= kept.size
            self._items -= 1
            if self._database is not None:
                with self._database as transaction:
                    transaction.execute("DELETE FROM kept WHERE id = ?", (kept.row,))

    # --- when

    def due(self, now: float) -> Kept | None:
        """The one that has waited longest of those to be tried now."""
        if not self._queues:
            return None
        queue = min(self._queues.values(), key=lambda each: each.due)
        return queue.results[0] if queue.due <= now else None

    def next_due(self) -> float | None:
        """When one is to be tried."""
        return min((each.due for each in self._queues.values()), default=None)

    def refused_again(self, kept: Kept, now: float) -> None:
        """Try this one, and those behind it, later and less often."""
        queue = self._queues[kept.fields.get("token", "")]
        queue.due = now + queue.pause
        queue.pause = min(2 * queue.pause, LAST_PAUSE_SECONDS)

    def postpone(self, now: float) -> None:
        """Try nothing before the first pause has passed: nobody is there to take it."""
        for queue in self._queues.values():
            queue.due = max(queue.due, now + FIRST_PAUSE_SECONDS)
