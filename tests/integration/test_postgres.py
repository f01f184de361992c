"""PostgreSQL as the Manager's database: outages, wrong settings, several Managers."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from elkeid.errors import StoreError
from elkeid.manager.documents import Source
from elkeid.manager.store.agents import apply_reports
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.migrate import migrate
from elkeid.manager.store.schema import HEAD_REVISION
from elkeid.manager.store.store import Store, StoreFailed
from elkeid.manager.store.task_work import CONFIG_TASK, Claimant, claim
from elkeid.manager.store.tasks import NewTask, Run, add_subtasks, create_task, run_task
from elkeid.manager.store.users import add_user, find_user
from tests.integration.postgres import (
    Postgres,
    needs_postgres,
    own_postgres,
    shared_postgres,
)
from tests.manager.stores import InlineThreads, database_of_kind, migrated_url, report

pytestmark = [pytest.mark.integration, needs_postgres]


@pytest.fixture
def server() -> Iterator[Postgres]:
    """A server that the test may end."""
    with own_postgres() as started:
        yield started


@pytest.fixture
def empty() -> Iterator[str]:
    """The URL of an empty database."""
    shared = shared_postgres()
    name = shared.new_database()
    yield shared.url(name)
    shared.drop_database(name)


def outcome(coroutine: Any) -> Any:
    """What a coroutine that has run to its end gave."""
    given: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(given.append)
    return given[0]


def test_server_that_goes_away_and_comes_back(
    server: Postgres, request: pytest.FixtureRequest
) -> None:
    """While it is away queries fail at once and ``/ready`` says why; then they work again."""
    store = Store(make_database(server.url(server.new_database())), InlineThreads())
    outcome(store.open())
    assert outcome(store.write(add_user, "alice", 3, "hash", 0)) is True
    server.stop()
    told: list[str] = []

    def keep(event: LogEvent) -> None:
        if "the database failed" in event.get("log_format", ""):
            told.append(formatEvent(event))

    globalLogPublisher.addObserver(keep)
    request.addfinalizer(lambda: globalLogPublisher.removeObserver(keep))
    for _ in range(3):
        failure = outcome(store.read(find_user, "alice"))
        assert failure.check(StoreFailed)
        assert outcome(store.write(add_user, "bob", 3, "hash", 0)).check(StoreFailed)
    # Anybody may read it: it does not say where the database is.
    assert store.problems() == ["the database cannot be used now, the log says why"]
    assert len(told) == 1
    assert str(server.port) in told[0]
    server.start()
    assert outcome(store.read(find_user, "alice")).username == "alice"
    assert outcome(store.write(add_user, "bob", 3, "hash", 0)) is True
    assert store.problems() == []
    outcome(store.close())


def test_restart_between_two_queries_is_not_noticed(server: Postgres) -> None:
    """A connection that died while nobody used it is replaced before a query meets it."""
    store = Store(make_database(server.url(server.new_database())), InlineThreads())
    outcome(store.open())
    server.stop()
    server.start()
    assert outcome(store.write(add_user, "alice", 3, "hash", 0)) is True
    assert outcome(store.read(find_user, "alice")).username == "alice"
    outcome(store.close())


def test_managers_that_start_at_once(empty: str) -> None:
    """One makes the tables, the others wait for it; none fails."""
    barrier, said = threading.Barrier(4), list[Any]()

    def start() -> None:
        database = make_database(empty)
        database.open()
        barrier.wait(30)
        try:
            said.append(migrate(database))
        except StoreError as error:
            said.append(error)
        database.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(isinstance(each, bool) for each in said), said
    database = make_database(empty)
    database.open()
    assert not migrate(database)
    with database.reading() as connection:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    assert found == HEAD_REVISION
    database.close()


def test_transactions_that_wait_for_each_other(tmp_path: Path) -> None:
    """Of two Managers' writes that lock the same rows crosswise both are done in the end."""
    with migrated_url("postgresql", tmp_path) as url:
        stores = [Store(make_database(url), InlineThreads()) for _ in range(2)]
        for each in stores:
            outcome(each.open())
        for name in ("a", "b"):
            outcome(stores[0].write(add_user, name, 3, "hash", 0))
        both = threading.Barrier(2)
        met: set[int] = set()

        def crosswise(connection: Connection, names: tuple[str, str]) -> None:
            change = text('UPDATE "user" SET level = level + 1 WHERE username = :name')
            connection.execute(change, {"name": names[0]})
            if threading.get_ident() not in met:
                met.add(threading.get_ident())
                both.wait(30)
            connection.execute(change, {"name": names[1]})

        threads = [
            threading.Thread(target=outcome, args=(store.write(crosswise, names),))
            for store, names in zip(stores, (("a", "b"), ("b", "a")), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [outcome(stores[0].read(find_user, name)).level for name in "ab"] == [5, 5]
        for each in stores:
            outcome(each.close())


def test_configs_that_two_managers_change_at_once(tmp_path: Path) -> None:
    """Of two tasks that change the list of one host, neither undoes what the other has changed."""
    now, source = 1_700_000_000.0, Source("10.0.0.1", 6752)

    def created(connection: Connection, name: str) -> int:
        new = NewTask(
            task_type=CONFIG_TASK,
            task_name=name,
            action="",
            task_user="",
            tag="",
            data={},
            selection={},
            task_data_type=None,
            awaits_result=False,
            result_seconds=60.0,
            wait_seconds=60.0,
            resends=0,
        )
        number, _ = create_task(connection, new, now)
        add_subtasks(connection, number, "", ["a"], now, last=True, approval_hosts=0)
        run_task(connection, number, Run(count=1, concurrence=1), now)
        return number

    def claimed(connection: Connection, number: int, name: str) -> list[str]:
        claimant = Claimant(owner=name, lease_seconds=60.0, drop_hosts=5, drop_seconds=600.0)
        changes = [{"name": name, "version": "1"}]
        found = claim(connection, number, name, changes, claimant, limit=5, now=now)
        return [item["name"] for item in found.orders[0].config or ()]

    with migrated_url("postgresql", tmp_path) as url:
        one, meanwhile = make_database(url), Store(make_database(url), InlineThreads())
        said: list[Any] = []
        one.open()
        outcome(meanwhile.open())
        with one.writing() as connection:
            apply_reports(connection, source, [report("a")])
            first, second = created(connection, "x"), created(connection, "y")
        thread = threading.Thread(
            target=lambda: said.append(outcome(meanwhile.write(claimed, second, "y")))
        )
        waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        with one.writing() as connection:
            assert claimed(connection, first, "x") == ["x"]
            thread.start()
            while thread.is_alive():
                with one.reading() as look:
                    if look.execute(waits).scalar_one():
                        break
                thread.join(0.02)
        thread.join()
        assert said == [["x", "y"]]
        outcome(meanwhile.close())
        one.close()


def test_password_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    """A refusal names the database, but neither the password of the URL nor that of the file."""
    secret = tmp_path / "password"
    secret.write_text("of-the-file\n")
    url = "postgresql://alice:of-the-url@127.0.0.1:1/elkeid"
    for database in (make_database(url), make_database(url, secret)):
        with pytest.raises(
            StoreError, match=r"postgresql://alice:\*\*\*@127\.0\.0\.1:1/elkeid"
        ) as e:
            database.open()
        assert "of-the" not in str(e.value)
        assert "manager.database_password_file" in str(e.value)
    secret.unlink()
    with pytest.raises(StoreError, match="must name a file with the password"):
        make_database(url, secret).open()
    used = make_database(url, secret)
    secret.write_text("of-the-file\r\n")
    assert used._with_password().password == "of-the-file"  # type: ignore[attr-defined]


def test_databases_that_are_refused(empty: str) -> None:
    """Another order of texts, and tables of another program, are told in a sentence."""
    shared = shared_postgres()
    shared.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(StoreError, match=r"encoding is LATIN1.*TEMPLATE template0 ENCODING 'UTF8'"):
        make_database(shared.url("latin")).open()
    shared.drop_database("latin")
    with pytest.raises(StoreError, match='"nowhere" does not exist'):
        make_database(shared.url("nowhere")).open()
    database = make_database(empty)
    database.open()
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE bookmarks (url TEXT)"))
    with pytest.raises(StoreError, match="another program"):
        migrate(database)
    database.close()


def test_reads_cannot_write(tmp_path: Path) -> None:
    """The server itself refuses a write in a read's transaction."""
    with database_of_kind("postgresql", tmp_path) as database:
        store = Store(database, InlineThreads())
        store._open = True
        failure = outcome(store.read(add_user, "alice", 3, "hash", 0))
        assert failure.check(StoreFailed)
