"""Stores for tests: real databases of both kinds, queries run where they are called.

`any_database` is a fixture: a test that takes it runs on each kind of database.
"""

import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager.documents import AgentReport, agent_report
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.engine import Database
from elkeid.manager.store.migrate import migrate
from elkeid.manager.store.sqlite import SqliteDatabase
from elkeid.manager.store.store import Store
from tests.integration.postgres import needs_postgres, shared_postgres


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
        database = SqliteDatabase(f"sqlite:///{path}")
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
    database = SqliteDatabase(f"sqlite:///{path}")
    database.open()
    try:
        yield database
    finally:
        database.close()
        shutil.rmtree(folder, ignore_errors=True)


KINDS = (
    "sqlite",
    pytest.param("postgresql", marks=[pytest.mark.integration, needs_postgres]),
)


@cache
def _migrated_template() -> str:
    server = shared_postgres()
    name = server.new_database(name="migrated")
    database = make_database(server.url(name))
    database.open()
    migrate(database)
    database.close()
    return name


@contextmanager
def migrated_url(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a database of this kind with the newest schema, of this test alone."""
    if kind == "sqlite":
        folder.mkdir(parents=True, exist_ok=True)
        migrated(folder / "manager.db")
        yield f"sqlite:///{folder / 'manager.db'}"
        return
    server = shared_postgres()
    name = server.new_database(_migrated_template())
    try:
        yield server.url(name)
    finally:
        server.drop_database(name)


class HeldStoreCase(SynchronousTestCase):
    """A store of a database of one kind, whose queries run when they are told to."""

    kind = "sqlite"

    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        url = self.enterContext(migrated_url(self.kind, folder))
        self.threads = HeldThreads()
        self.store = Store(make_database(url), self.threads)
        self.done(self.store.open())

    def tearDown(self) -> None:
        self.done(self.store.close())

    def done(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What it returns, once all queries that wait have run."""
        begun = Deferred.fromCoroutine(work)
        while self.threads.waiting:
            self.threads.go()
        return self.successResultOf(begun)


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """The database at a URL, open."""
    database = make_database(url)
    database.open()
    try:
        yield database
    finally:
        database.close()


@contextmanager
def database_of_kind(kind: str, folder: Path) -> Iterator[Database]:
    """An open, migrated database of this kind."""
    with migrated_url(kind, folder) as url, opened(url) as database:
        yield database


@pytest.fixture(params=KINDS)
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated database, of each kind in turn."""
    with migrated_url(request.param, tmp_path) as url:
        yield url


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with nothing in it, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'manager.db'}"
        return
    server = shared_postgres()
    name = server.new_database()
    try:
        yield server.url(name)
    finally:
        server.drop_database(name)


@pytest.fixture
def any_database(any_url: str) -> Iterator[Database]:
    """An open, migrated database, of each kind in turn."""
    database = make_database(any_url)
    database.open()
    try:
        yield database
    finally:
        database.close()


def store_at(folder: Path) -> Store:
    """A store that is not open yet, on a migrated file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manager.db"
    if not path.exists():
        migrated(path)
    return Store(SqliteDatabase(f"sqlite:///{path}"), InlineThreads())


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
