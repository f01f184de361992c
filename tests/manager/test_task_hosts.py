"""The hosts of a task: counted, and found slice by slice; on both databases."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, update

from elkeid.manager.documents import Source
from elkeid.manager.filter import FilterError, IsIn, Path
from elkeid.manager.store.agents import apply_reports
from elkeid.manager.store.backends import default_url
from elkeid.manager.store.engine import Database
from elkeid.manager.store.schema import agent, task_body
from elkeid.manager.store.task_hosts import (
    IDS_KEPT,
    LOOKED_UP_AT_ONCE,
    SORTED_AT_ONCE,
    Choices,
    Chosen,
    choose,
    chosen_after,
    chosen_of,
    presence_of,
)
from elkeid.manager.store.tasks import add_subtasks, cancel_task, create_task
from elkeid.manager.task_selection import Selection

from .stores import opened, report
from .task_case import TaskCase
from .test_task_deadlines import START, new_task

HOSTS = [f"a{number:02}" for number in range(20)]
RULE = {"operator": "$eq", "value": 1}
ONLINE = IsIn(Path(("agent_state",)), ("running", "abnormal"))


def fill(connection: Connection, ids: list[str]) -> None:
    """Have these hosts; the even ones are called web."""
    reports = [
        report(each, hostname="web" if number % 2 == 0 else "db") for number, each in enumerate(ids)
    ]
    apply_reports(connection, Source("127.0.0.1", 6752), reports)


def web() -> Any:
    """A filter for those that are called web."""
    rules = [{"operator": "$eq", "value": "web"}]
    block = {"key": "hostname", "condition": "$and", "rules": rules}
    return {"condition": "$and", "filter": [block]}


def selection(**fields: Any) -> Selection:
    """As decoded from a body."""
    return msgspec.convert(fields, Selection)


def walked(connection: Connection, chosen: Chosen, limit: int) -> list[str]:
    """All hosts, in slices."""
    found: list[str] = []
    while True:
        some = chosen_after(connection, chosen, found[-1] if found else "", limit)
        found += some
        if len(some) < limit:
            return found


def test_union_of_ids_and_others(any_database: Database) -> None:
    """Every host once, in order, whatever the slices; ids of nobody and repeated ones too."""
    with any_database.writing() as connection:
        fill(connection, HOSTS)
    evens = HOSTS[::2]

    @given(
        st.lists(st.sampled_from([*HOSTS, "nobody", "zzz", ""]), max_size=30),
        st.booleans(),
        st.integers(1, 7),
    )
    @settings(max_examples=30, deadline=None)
    def check(ids: list[str], filtered: bool, limit: int) -> None:
        made = selection(filter=web()) if filtered else Selection()
        made.id_list = ids
        wanted = sorted({*ids} & {*HOSTS} | ({*evens} if filtered else set()))
        with any_database.reading() as connection:
            chosen, count = choose(connection, made)
            assert count == len(wanted)
            assert walked(connection, chosen, limit) == wanted

    check()


def test_many_ids(any_database: Database) -> None:
    """More than are sorted or looked up at once, most of them unknown."""
    count = 2 * SORTED_AT_ONCE + 5
    ids = [f"b{number:06}" for number in reversed(range(count))]
    known = sorted(ids[:: LOOKED_UP_AT_ONCE + 1])
    with any_database.writing() as connection:
        fill(connection, known)
    with any_database.reading() as connection:
        chosen, found = choose(connection, Selection(id_list=[*ids, *ids[:9]]))
        assert chosen.ids == sorted(ids)
        assert found == len(known)
        assert walked(connection, chosen, 3) == known


def test_presence(any_database: Database) -> None:
    """Named hosts count whether they exist or not; online are those that are."""
    with any_database.writing() as connection:
        fill(connection, HOSTS)
        connection.execute(
            update(agent).where(agent.c.agent_id == "a00").values(agent_state="offline")
        )
    with any_database.reading() as connection:
        named = selection(id_list=["a00", "a01", "a01", "nobody"])
        assert presence_of(connection, named, ONLINE) == (3, 1)
        assert presence_of(connection, selection(filter=web()), ONLINE) == (10, 9)
        both = selection(filter=web(), id_list=["a00", "a01", "a02"])
        assert presence_of(connection, both, ONLINE) == (3, 10)
        assert presence_of(connection, selection(), ONLINE) == (0, 0)


def test_wrong_filter() -> None:
    """It is refused before anything is asked of the database."""
    block = {"key": "$where", "condition": "$and", "rules": [RULE]}
    with pytest.raises(FilterError):
        chosen_of(selection(filter={"filter": [block]}))


def prepared(database: Database, choices: Choices, number: int, limit: int) -> list[str]:
    """One slice."""
    with database.writing() as connection:
        found = choices.next_hosts(connection, number, limit)
        assert found is not None
        last = len(found.ids) < limit
        add_subtasks(connection, number, found.after, found.ids, START, last=last, approval_hosts=0)
        return found.ids


def test_another_manager_goes_on(any_database: Database) -> None:
    """One that has nothing ready reads what is stored; once ready, it is not read again."""
    with any_database.writing() as connection:
        fill(connection, HOSTS)
        number, _ = create_task(connection, new_task(selection={"id_list": HOSTS[::-1]}), START)
    first, second = Choices(), Choices()
    assert prepared(any_database, first, number, 3) == HOSTS[:3]
    assert prepared(any_database, second, number, 3) == HOSTS[3:6]
    with any_database.writing() as connection:
        connection.execute(update(task_body).values(selection="gone"))
    assert prepared(any_database, first, number, 3) == HOSTS[6:9]
    with any_database.reading() as connection, pytest.raises(msgspec.MsgspecError):
        Choices().next_hosts(connection, number, 3)
    assert prepared(any_database, second, number, 20) == HOSTS[9:]
    with any_database.reading() as connection:
        assert first.next_hosts(connection, number, 3) is None


def test_little_is_kept(any_database: Database) -> None:
    """Beyond so many ids those of the task that waited for longest are given up."""
    with any_database.writing() as connection:
        fill(connection, HOSTS)
        first, _ = create_task(connection, new_task(selection={"id_list": ["a01"]}), START)
        second, _ = create_task(connection, new_task(selection={"id_list": ["a02"]}), START)
        choices = Choices()
        choices.keep(first, Chosen(["a03"], None))
        choices.keep(second, Chosen(["a04"] * IDS_KEPT, None))
        kept = choices.next_hosts(connection, second, 1)
        assert kept is not None
        assert kept.ids == ["a04"]
        read = choices.next_hosts(connection, first, 1)
        assert read is not None
        assert read.ids == ["a01"]
        cancel_task(connection, second, START)
        assert choices.next_hosts(connection, second, 1) is None


class UnreadableTests(TaskCase):
    def test_selects_nobody(self) -> None:
        """A stored selection that cannot be used ends as one of no hosts, and is logged."""
        with (
            opened(default_url(self.deployment.settings.server.data_dir)) as database,
            database.writing() as connection,
        ):
            block = {"key": "$where", "condition": "$and", "rules": [RULE]}
            new = new_task(selection={"filter": {"filter": [block]}})
            _, task_id = create_task(connection, new, START)
        self.network.advance(3)
        self.assertEqual(len(self.flushLoggedErrors(FilterError)), 1)
        task = self.task(task_id)
        self.assertEqual((task["id_count"], task["preparing"]), (0, False))
