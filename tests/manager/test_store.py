"""The database: where it lies, what it refuses, and that nothing waits for it on the reactor."""

import sqlite3
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.threadpool import ThreadPool

from elkeid.errors import StoreError
from elkeid.manager.documents import (
    DOCUMENT_BYTES,
    FIELD_LIMIT,
    MalformedItem,
    Source,
    agent_report,
    canonical,
    merged,
    text_of,
)
from elkeid.manager.store import engine, schema, store
from elkeid.manager.store.agents import apply_reports, find_agent
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.engine import READERS, Database, QueryTooLong
from elkeid.manager.store.migrate import SCRIPTS, migrate
from elkeid.manager.store.results import apply_results, issue_tokens
from elkeid.manager.store.sqlite import SqliteDatabase
from elkeid.manager.store.store import (
    SEARCHES_AT_ONCE,
    PoolThreads,
    Store,
    StoreBusy,
    StoreFailed,
)
from elkeid.manager.store.tokens import TOKENS_PER_USER, add_token, find_session
from elkeid.manager.store.upsert import excluded, insert_missing, upsert
from elkeid.manager.store.users import add_user, find_user
from tests.integration.postgres import needs_postgres

from .stored_results import results_of
from .stores import (
    HeldStoreCase,
    InlineThreads,
    migrated,
    report,
    store_at,
)

ENDLESS = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
)


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a database may be made."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "new", "manager.db")


def test_new_database_is_private(path: Path) -> None:
    """Only its owner reads the database and the files beside it."""
    database = SqliteDatabase(f"sqlite:///{path}")
    database.open()
    assert migrate(database)
    assert not migrate(database)
    files = list(path.parent.iterdir())
    assert len(files) == 3
    for each in files:
        assert stat.S_IMODE(each.stat().st_mode) == 0o600, each
    database.close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_migrations_make_the_schema(any_database: Database) -> None:
    """What migrations build is what the queries are written for."""
    with any_database.writing() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD_REVISION


@pytest.mark.parametrize("revision", ["9999", "0006", "head", "000", ""])
def test_database_of_an_unknown_revision_is_refused(any_database: Database, revision: str) -> None:
    """It is left alone, newer or not, with a sentence that says what to do."""
    with any_database.writing() as connection:
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    words = rf"another version \(schema {revision}, .*restore a backup .* start with a new one"
    with pytest.raises(StoreError, match=words):
        migrate(any_database)
    with any_database.reading() as connection:
        kept = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    assert kept == revision


def test_database_of_another_program_is_refused(path: Path) -> None:
    """A setting that points at something else harms nothing."""
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    database = SqliteDatabase(f"sqlite:///{path}")
    database.open()
    with pytest.raises(StoreError, match="another program"):
        migrate(database)
    database.close()


def test_file_that_is_no_database_is_refused(path: Path) -> None:
    """Rubbish is named as such, and kept."""
    path.parent.mkdir()
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(StoreError, match="no usable database"):
        SqliteDatabase(f"sqlite:///{path}").open()
    assert path.read_bytes() == b"hello" * 1000


def test_place_that_cannot_be_written_is_refused(path: Path) -> None:
    """The sentence names the settings to change."""
    path.parent.mkdir()
    path.mkdir()
    with pytest.raises(StoreError, match=r"server\.data_dir or manager\.database"):
        SqliteDatabase(f"sqlite:///{path}").open()


def test_two_processes_share_the_database(any_database: Database, any_url: str) -> None:
    """``elkeid user add`` works beside the running server."""
    command = make_database(any_url)
    command.open()
    with command.writing() as connection:
        assert add_user(connection, "alice", 3, "hash", 0)
        assert not add_user(connection, "alice", 0, "other", 0)
    command.close()
    with any_database.reading() as connection:
        found = find_user(connection, "alice")
        assert found is not None
        assert (found.level, found.password) == (3, "hash")
        assert find_user(connection, "ALICE") is None
        assert "hash" not in repr(found)


def test_read_sees_one_state(any_database: Database) -> None:
    """What commits while a page is put together does not change its total."""
    with any_database.reading() as reader:
        assert find_user(reader, "alice") is None
        with any_database.writing() as writer:
            add_user(writer, "alice", 3, "hash", 0)
        assert find_user(reader, "alice") is None
    with any_database.reading() as reader:
        assert find_user(reader, "alice") is not None


def test_read_that_takes_too_long_is_ended(any_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query over everything cannot hold a connection for ever."""
    database = make_database(any_url)
    database.open()
    database.close()
    monkeypatch.setattr(engine, "QUERY_SECONDS", 0.03)
    database.open()
    with pytest.raises(QueryTooLong), database.reading() as connection:
        connection.execute(ENDLESS)
    with database.reading() as connection:
        connection.execute(text("SELECT 1"))
    database.close()


def test_stop_does_not_wait_for_reads(any_database: Database) -> None:
    """A stop ends a long query instead of waiting for it."""
    threading.Timer(0.05, any_database.end_reads).start()
    with pytest.raises(QueryTooLong, match="stops"), any_database.reading() as connection:
        connection.execute(ENDLESS)


def test_tokens_of_one_user_are_bounded(any_database: Database) -> None:
    """A client that logs in for every call loses its oldest tokens, not the newest."""
    with any_database.writing() as connection:
        add_user(connection, "alice", 3, "hash", 0)
        user = find_user(connection, "alice")
        assert user is not None
        for number in range(TOKENS_PER_USER + 2):
            add_token(connection, f"t{number}", user.id, number, float(number))
        found = [find_session(connection, f"t{number}") is not None for number in (0, 1, 2, 3)]
        assert found == [False, False, True, True]
        assert find_session(connection, f"t{TOKENS_PER_USER + 1}") is not None


def test_upserts(any_database: Database) -> None:
    """A row that another process made meanwhile is met, changed or left, as asked."""
    table = schema.stored_config
    row = {"name": "a", "items": "[]", "drops_confirmed": False, "created_at": 1, "updated_at": 1}
    with any_database.writing() as connection:
        once = insert_missing(connection, table, ["name"])
        counts = [connection.execute(once.values(row)).rowcount for _ in range(2)]
        assert counts == [1, 0]
        newer = upsert(
            connection,
            table,
            ["name"],
            ["items", "updated_at"],
            where=table.c.updated_at < excluded(connection, table, "updated_at"),
        )
        for stamp, items in ((3, "[3]"), (2, "[2]")):
            connection.execute(newer, [row | {"items": items, "updated_at": stamp}])
        found = connection.execute(table.select()).one()
        assert (found.items, found.created_at, found.updated_at) == ("[3]", 1, 3)


class StoreTests(HeldStoreCase):
    def begin(self, kind: str, query: Any, *args: Any) -> Deferred[Any]:
        """Begin a query."""
        return Deferred.fromCoroutine(getattr(self.store, kind)(query, *args))

    def test_writes_take_turns(self) -> None:
        """Reads go at once, writes one after another in order."""
        log: list[str] = []

        def note(connection: Connection, name: str) -> None:
            log.append(name)

        for name in ("w1", "w2"):
            self.begin("write", note, name)
        for name in ("r1", "r2"):
            self.begin("read", note, name)
        self.threads.go()
        self.assertEqual(log, ["w1", "r1", "r2"])
        self.threads.go()
        self.assertEqual(log, ["w1", "r1", "r2", "w2"])

    def test_caller_that_gives_up(self) -> None:
        """A client that leaves neither undoes nor repeats a write, nor breaks the next."""
        first = self.begin("write", add_user, "alice", 3, "hash", 0)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        second = self.begin("write", add_user, "bob", 3, "hash", 0)
        self.threads.go()
        self.threads.go()
        self.assertTrue(self.successResultOf(second))
        found = self.begin("read", find_user, "alice")
        self.threads.go()
        self.assertIsNotNone(self.successResultOf(found))
        self.assertEqual(self.store.pending, 0)

    def test_too_many_queries(self) -> None:
        """Beyond the limit queries are refused at once instead of piling up."""
        self.patch(store, "WAITING_LIMIT", 2)
        waiting = [self.begin("read", find_user, "x") for _ in range(2)]
        self.failureResultOf(self.begin("read", find_user, "x"), StoreBusy)
        self.threads.go()
        for each in waiting:
            self.assertIsNone(self.successResultOf(each))
        again = self.begin("read", find_user, "x")
        self.threads.go()
        self.assertIsNone(self.successResultOf(again))

    def test_searches_leave_a_reader_free(self) -> None:
        """However many searches there are, other reads are not behind them."""
        self.patch(store, "SEARCHES_LIMIT", SEARCHES_AT_ONCE + 2)
        searches = [self.begin("search", find_user, "x") for _ in range(SEARCHES_AT_ONCE + 2)]
        self.failureResultOf(self.begin("search", find_user, "x"), StoreBusy)
        self.assertEqual(len(self.threads.waiting), SEARCHES_AT_ONCE)
        other = self.begin("read", find_user, "x")
        self.assertEqual(len(self.threads.waiting), READERS)
        searches[-1].cancel()
        self.failureResultOf(searches.pop(), CancelledError)
        self.threads.go()
        self.assertIsNone(self.successResultOf(other))
        self.assertEqual(len(self.threads.waiting), 1)  # of those that waited who still waits
        self.threads.go()
        for each in searches:
            self.assertIsNone(self.successResultOf(each))
        again = self.begin("search", find_user, "x")
        self.threads.go()
        self.assertIsNone(self.successResultOf(again))

    def test_searches_after_the_end(self) -> None:
        """Those that wait for their turn are refused when the store is closed."""
        searches = [self.begin("search", find_user, "x") for _ in range(SEARCHES_AT_ONCE + 1)]
        self.store._open = False
        self.threads.go()
        self.failureResultOf(searches.pop(), StoreBusy)
        for each in searches:
            self.assertIsNone(self.successResultOf(each))

    def test_failed_write(self) -> None:
        """What the database refuses is logged, shown as not ready, and changes nothing."""

        def broken(connection: Connection) -> None:
            add_user(connection, "alice", 3, "hash", 0)
            connection.execute(text("INSERT INTO nowhere VALUES (1)"))

        failed = self.begin("write", broken)
        self.threads.go()
        self.failureResultOf(failed, StoreFailed)
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        self.assertEqual(self.store.problems(), ["the database refused a query, see the log"])
        found = self.begin("read", find_user, "alice")
        self.threads.go()
        self.assertIsNone(self.successResultOf(found))
        better = self.begin("write", add_user, "bob", 3, "hash", 0)
        self.threads.go()
        self.successResultOf(better)
        self.assertEqual(self.store.problems(), [])

    def test_reads_cannot_write_behind_the_writers_back(self) -> None:
        """A read's transaction is never committed."""
        written = self.begin("read", add_user, "alice", 3, "hash", 0)
        self.threads.go()
        written.addErrback(lambda failure: failure.trap(StoreFailed))  # PostgreSQL refuses
        self.flushLoggedErrors()
        found = self.begin("read", find_user, "alice")
        self.threads.go()
        self.assertIsNone(self.successResultOf(found))

    def test_no_text_is_refused(self) -> None:
        """U+0000, which PostgreSQL cannot keep, neither fails a query nor undoes a batch."""

        def results(connection: Connection) -> list[str]:
            (token,) = issue_tokens(connection, ["a\0"], 1)
            items = [{"token": "\0", "status": "x"}, {"token": token, "status": "x", "msg": "\0"}]
            (done,) = apply_results(connection, [items], 1)
            assert (done.stored, done.unknown_token) == (1, 1)
            return results_of(connection, token)

        stored = self.begin("write", results)
        self.threads.go()
        self.assertEqual(len(self.successResultOf(stored)), 1)
        found = self.begin("read", find_agent, "\0")
        self.threads.go()
        self.assertIsNone(self.successResultOf(found))

    def test_close_waits(self) -> None:
        """What was begun ends before the database is closed; nothing new begins."""
        write = self.begin("write", add_user, "alice", 3, "hash", 0)
        closed = Deferred.fromCoroutine(self.store.close())
        self.assertNoResult(closed)
        self.failureResultOf(self.begin("read", find_user, "x"), StoreBusy)
        self.threads.go()
        self.assertTrue(self.successResultOf(write))
        self.threads.go()
        self.successResultOf(closed)


@pytest.mark.integration
@needs_postgres
class PostgresStoreTests(StoreTests):
    kind = "postgresql"


@pytest_twisted.ensureDeferred
async def test_queries_run_in_threads_of_the_pool(path: Path) -> None:
    """No query ever runs in the reactor's thread, nor does opening or closing."""
    migrated_at = path.parent
    migrated_at.mkdir()
    migrated(path)
    seen: set[int] = set()

    class Watched(SqliteDatabase):
        def open(self) -> None:
            seen.add(threading.get_ident())
            super().open()

        def close(self) -> None:
            seen.add(threading.get_ident())
            super().close()

    pool = ThreadPool(0, store.THREADS, "test")
    pool.start()
    try:
        opened = Store(Watched(f"sqlite:///{path}"), PoolThreads(reactor, pool))
        await opened.open()

        def where(connection: Connection) -> None:
            seen.add(threading.get_ident())

        for _ in range(3):
            await opened.read(where)
            await opened.write(where)
        await opened.close()
    finally:
        pool.stop()
    assert seen
    assert threading.get_ident() not in seen


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "agent_info",
                    "plugins_info",
                    "agent_id",
                    "last_heartbeat_time",
                    "name",
                    "_id",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
infos = st.builds(
    lambda more, seen: {"agent_id": "a", "last_heartbeat_time": seen, **more},
    st.dictionaries(st.sampled_from(["hostname", "state", "cpu", "tags", "\0"]), json_values),
    st.integers(1, 2_000_000_000),
)
items = st.one_of(
    st.dictionaries(st.sampled_from(["agent_info", "plugins_info", "x"]), json_values),
    st.builds(lambda info: {"agent_info": info, "plugins_info": None}, infos),
)


@settings(max_examples=200, deadline=None)
@given(items)
def test_any_entry_of_a_report(item: dict[str, Any]) -> None:
    """Whatever an AC sends for an agent becomes a canonical document, or is refused as such."""
    try:
        made = agent_report(item)
    except MalformedItem:
        return
    if made is None:
        return
    document, written = merged(None, made, Source("10.0.0.1", 6752))
    assert canonical(document) == document
    assert text_of(document) == written
    again, _ = merged(document, made, Source("10.0.0.1", 6752))
    assert again == document


def test_document_of_an_agent_that_renames_its_fields() -> None:
    """An agent that invents names for ever does not grow its document for ever."""
    source = Source("10.0.0.1", 6752)
    document: dict[str, Any] | None = None
    for number in range(100):
        fields = {f"k{number}_{each}": "x" * 100 for each in range(100)}
        document, written = merged(document, report("a", **fields), source)
        assert len(document) <= FIELD_LIMIT
        assert len(written) <= 2 * DOCUMENT_BYTES
        assert document["first_heartbeat_time"] == 1_700_000_000


def test_restart_keeps_agents(path: Path) -> None:
    """What was stored is there after the database was closed and opened again."""
    kept = store_at(path.parent)

    def run(coroutine: Any) -> Any:
        outcome: list[Any] = []
        Deferred.fromCoroutine(coroutine).addBoth(outcome.append)
        return outcome[0]

    run(kept.open())
    run(kept.write(apply_reports, Source("10.0.0.1", 6752), [report("a", cpu=1)]))
    run(kept.close())
    again = Store(SqliteDatabase(f"sqlite:///{path}"), InlineThreads())
    run(again.open())
    rows = run(again.read(lambda c: c.execute(text("SELECT fields FROM agent_hot")).all()))
    assert '"cpu":1' in rows[0][0]
    run(again.close())
