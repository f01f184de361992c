"""Agents' tags on disk, so that a restarted gateway knows them while no Manager answers."""

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from twisted.logger import Logger

from elkeid.agentcenter.database import open_database

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS tags (agent_id TEXT PRIMARY KEY, tags BLOB NOT NULL) WITHOUT ROWID;
"""


class TagStore:
    """A small database. Blocking: for threads; calls from several wait for each other.

    What is in it can be asked for again, so a damaged one is moved aside and begun anew.

    Args:
        path: of the database.
    """

    log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def open(self) -> dict[str, bytes]:
        """Open the database, made if missing; return what is in it.

        Raises:
            OSError, sqlite3.Error: the disk does not let us.
        """
        with self._lock:
            self._database = open_database(self._path, _SCHEMA, self.log)
            return dict(self._database.execute("SELECT agent_id, tags FROM tags"))

    def save(self, changed: Mapping[str, bytes], gone: Iterable[str]) -> None:
        """Keep new tags, and forget agents, in one transaction.

        Raises:
            sqlite3.Error: the disk does not let us; nothing was changed.
        """
        with self._lock:
            if self._database is None:
                return
            with self._database as transaction:
                transaction.executemany("REPLACE INTO tags VALUES (?, ?)", changed.items())
                transaction.executemany(
                    "DELETE FROM tags WHERE agent_id = ?", [(agent_id,) for agent_id in gone]
                )

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None
