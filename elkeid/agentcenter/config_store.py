"""The last config of each host, on disk: what a host gets while the Manager is away.

Equal configs are kept once. Writes are gathered for a second, and made in a thread.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.agentcenter.configs import Config, stored_config
from elkeid.agentcenter.database import open_database
from elkeid.errors import OperatorError, WireError

FLUSH_SECONDS: Final = 1.0
"""Deliveries are gathered so long; a killed process forgets no more."""

RETRY_SECONDS: Final = 10.0
"""Until writing is tried again after it failed."""

KEEP_SECONDS: Final = 90 * 86_400
"""A host that was not here for so long is forgotten."""

ROW_LIMIT: Final = 500_000
"""Hosts remembered; beyond, those seen longest ago are forgotten. Ids are hosts' to choose."""

PURGE_SECONDS: Final = 86_400.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS config (
    digest BLOB PRIMARY KEY, command BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS delivered (
    agent_id TEXT PRIMARY KEY,
    digest BLOB NOT NULL REFERENCES config (digest),
    delivered_at REAL NOT NULL,
    seen_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS delivered_by_age ON delivered (seen_at);
PRAGMA user_version = 1;
"""
_SAVE = """
INSERT INTO delivered (agent_id, digest, delivered_at, seen_at) VALUES (?, ?, ?, ?)
ON CONFLICT (agent_id) DO UPDATE SET
    digest = excluded.digest, delivered_at = excluded.delivered_at, seen_at = excluded.seen_at
WHERE excluded.delivered_at >= delivered.delivered_at
"""
_GET = """
SELECT agent_id, delivered_at, command FROM delivered JOIN config USING (digest)
WHERE agent_id IN ({})
"""


@frozen
class Delivered:
    """A config, and when a host was sent it (unix seconds, the clock of whoever sent it)."""

    config: Config
    at: float


class ConfigStore:
    """Keeps deliveries in a SQLite file.

    Args:
        path: the file.
        clock: for the pauses between writes.
        in_thread: runs a function in the one thread that this store has.
        wall: unix seconds.
        present: ids of the connected agents, which do not age.
    """

    log = Logger()

    def __init__(
        self,
        path: Path,
        clock: IReactorTime,
        in_thread: Callable[..., Deferred[Any]],
        wall: Callable[[], float],
        present: Callable[[], Iterable[str]],
    ) -> None:
        self._path, self._clock, self._in_thread = path, clock, in_thread
        self._wall, self._present = wall, present
        self._database: sqlite3.Connection | None = None
        self._pending: dict[str, Delivered] = {}
        self._writing: dict[str, Delivered] = {}  # under way
        self._flush_at: IDelayedCall | None = None
        self._purge_at: IDelayedCall | None = None
        self._flushing: Deferred[None] | None = None  # the last one
        self._busy = False
        self.failures = 0  # of writing, since the start

    async def open(self) -> None:
        """Open the file; a damaged one is moved aside: it is a copy, and agents come first.

        Raises:
            OperatorError: there can be no file at this place.
        """
        await self._in_thread(self._open)
        self._purge_at = self._clock.callLater(0, self._purge)

    async def close(self) -> None:
        """Write what waits, and close."""
        self._stop_timers()
        if self._database is None:
            return
        if self._flushing is not None:
            await self._flushing
        await self._flush()
        self._stop_timers()
        database, self._database = self._database, None
        await self._in_thread(database.close)

    def _stop_timers(self) -> None:
        for timer in (self._flush_at, self._purge_at):
            if timer is not None and timer.active():
                timer.cancel()

    def save(self, agent_id: str, delivered: Delivered) -> None:
        """Remember a delivery, unless a newer one of this host is known."""
        known = self._pending.get(agent_id)
        if known is None or delivered.at >= known.at:
            self._pending[agent_id] = delivered
        self._plan(FLUSH_SECONDS)

    async def get(self, agent_ids: Sequence[str]) -> dict[str, Delivered]:
        """The last deliveries to these hosts; those that are not known are left out."""
        found: dict[str, Delivered] = {}
        if self._database is not None:
            try:
                found = await self._in_thread(self._read, agent_ids)
            except (sqlite3.Error, WireError) as error:
                self.log.error("{path}: {error}", path=self._path, error=error)
        for waiting in (self._writing, self._pending):
            for agent_id in agent_ids:
                fresh = waiting.get(agent_id)
                if fresh is not None and (agent_id not in found or fresh.at >= found[agent_id].at):
                    found[agent_id] = fresh
        return found

    # --- in the reactor

    def _plan(self, seconds: float) -> None:
        if not self._busy and (self._flush_at is None or not self._flush_at.active()):
            self._flush_at = self._clock.callLater(seconds, self._begin_flush)

    def _begin_flush(self) -> None:
        self._flushing = Deferred.fromCoroutine(self._flush())
        self._flushing.addErrback(self._bug)

    def _failed(self, error: sqlite3.Error) -> None:
        if not self.failures:
            self.log.error("{path}: {error}; trying on", path=self._path, error=error)
        self.failures += 1

    def _bug(self, failure: Failure) -> None:
        if isinstance(failure.value, sqlite3.Error):
            self._failed(failure.value)
        else:
            self.log.failure("the store of last configs failed", failure)

    async def _flush(self) -> None:
        self._busy = True
        self._writing, self._pending = self._pending, {}
        pause = FLUSH_SECONDS
        try:
            if self._writing and self._database is not None:
                await self._in_thread(self._write, self._writing, self._wall())
        except sqlite3.Error as error:
            self._failed(error)
            self._pending = self._writing | self._pending
            pause = RETRY_SECONDS
        finally:
            self._writing = {}
            self._busy = False
        if self._pending:
            self._plan(pause)

    def _purge(self) -> None:
        self._purge_at = self._clock.callLater(PURGE_SECONDS, self._purge)
        forgotten = self._in_thread(self._forget, list(self._present()), self._wall())
        forgotten.addErrback(self._bug)

    # --- in the thread

    def _open(self) -> None:
        try:
            self._database = open_database(self._path, _SCHEMA, self.log)
        except (OSError, sqlite3.Error) as error:
            raise OperatorError(
                f"{self._path} cannot be written: {getattr(error, 'strerror', None) or error}; "
                "set server.data_dir to a place this user may write"
            ) from error

    def _write(self, deliveries: dict[str, Delivered], now: float) -> None:
        assert self._database is not None
        configs = {each.config.digest: each.config.command for each in deliveries.values()}
        with self._database as transaction:
            transaction.executemany(
                "INSERT OR IGNORE INTO config (digest, command) VALUES (?, ?)", configs.items()
            )
            transaction.executemany(
                _SAVE,
                [
                    (agent_id, each.config.digest, each.at, now)
                    for agent_id, each in deliveries.items()
                ],
            )

    def _read(self, agent_ids: Sequence[str]) -> dict[str, Delivered]:
        if self._database is None:
            return {}
        query = _GET.format(",".join("?" * len(agent_ids)))
        return {
            agent_id: Delivered(stored_config(command), at)
            for agent_id, at, command in self._database.execute(query, list(agent_ids))
        }

    def _forget(self, present: list[str], now: float) -> None:
        if self._database is None:
            return
        with self._database as transaction:
            transaction.executemany(
                "UPDATE delivered SET seen_at = ? WHERE agent_id = ?",
                [(now, agent_id) for agent_id in present],
            )
            transaction.execute("DELETE FROM delivered WHERE seen_at < ?", (now - KEEP_SECONDS,))
            transaction.execute(
                "DELETE FROM delivered WHERE agent_id IN (SELECT agent_id FROM delivered "
                "ORDER BY seen_at DESC LIMIT -1 OFFSET ?)",
                (ROW_LIMIT,),
            )
            transaction.execute(
                "DELETE FROM config WHERE digest NOT IN (SELECT digest FROM delivered)"
            )
