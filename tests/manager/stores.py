"""Stores for tests: real SQLite files, queries run where they are called."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred

from elkeid.manager.documents import AgentReport, agent_report
from elkeid.manager.store.engine import Database
from elkeid.manager.store.migrate import migrate
from elkeid.manager.store.store import Store


class InlineThreads:
    """Runs functions at once, in the calling thread: deterministic."""

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run it."""
        return maybeDeferred(function, *args)


class HeldThreads:
    """Runs a function only when told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Keep it for `go`."""
        done: Deferred[Any] = Deferred()
        self.waiting.append(lambda: maybeDeferred(function, *args).chainDeferred(done))
        return done

    def go(self) -> None:
        """Run what waits now."""
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each()


def migrated(path: Path) -> None:
    """Make a database with the newest schema; the work of it is done once a test run."""
    global _template  # noqa: PLW0603 - a cache
    if _template is None:
        database = Database(f"sqlite:///{path}")
        database.open()
        migrate(database)
        database.close()
        _template = path.read_bytes()
    else:
        path.write_bytes(_template)


_template: bytes | None = None


@contextmanager
def database_at(folder: Path) -> Iterator[Database]:
    """An open, migrated database."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manager.db"
    if not path.exists():
        migrated(path)
    database = Database(f"sqlite:///{path}")
    database.open()
    try:
        yield database
    finally:
        database.close()
        shutil.rmtree(folder, ignore_errors=True)


def store_at(folder: Path) -> Store:
    """A store that is not open yet, on a migrated file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manager.db"
    if not path.exists():
        migrated(path)
    return Store(Database(f"sqlite:///{path}"), InlineThreads())


def report(agent_id: str, seen: int = 1_700_000_000, **fields: Any) -> AgentReport:
    """What an AC says of one agent."""
    plugins = fields.pop("plugins", [])
    info = {
        "agent_id": agent_id,
        "hostname": f"host-{agent_id}",
        "state": "running",
        "last_heartbeat_time": seen,
        **fields,
    }
    made = agent_report({"agent_info": info, "plugins_info": plugins})
    assert made is not None
    return made
