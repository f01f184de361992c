"""Lists of tasks and subtasks: what they select, pages from a place on, and their indices."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Table, delete, event, insert, text, update

from elkeid.manager.filter import EVERYTHING, Every, FilterError, Not, Some, Test, holds
from elkeid.manager.store import task_lists
from elkeid.manager.store.engine import Database
from elkeid.manager.store.schema import agent, subtask, task, task_body, task_job, task_token
from elkeid.manager.store.starts import Start
from elkeid.manager.store.task_lists import (
    Found,
    count_of_listed,
    count_of_subtasks,
    count_of_tasks,
    find_task,
    listed_subtasks,
    page_of_subtasks,
    page_of_tasks,
    subtasks_of,
)
from elkeid.manager.store.task_rows import STATES
from elkeid.manager.store.task_ways import FEW, SUBTASK_COLUMNS, TASK_COLUMNS

from .test_agent_store import asked

TASKS, AGENTS = 20, 9
ALL = 10_000
Order = tuple[str, bool]
AS_OFTEN: list[Order] = [("", False), ("", True), ("create_time", True)]
ORDERS: list[Order] = [
    (key, descends) for key in ("", *sorted(TASK_COLUMNS)) for descends in (False, True)
]


def _filled(table: Table, **given: Any) -> dict[str, Any]:
    """A row with something in each column that needs it."""
    empty = {str: "", int: 0, float: 0.0, bool: False}
    needed = [each for each in table.c if not each.nullable and each.server_default is None]
    return {each.name: empty[each.type.python_type] for each in needed} | given


def tasks() -> list[dict[str, Any]]:
    """Rows of tasks; every fourth is a quick one."""
    return [
        _filled(
            task,
            number=number,
            task_id=f"t{number}",
            task_type=("Agent_Task", "Agent_Config")[number % 2],
            task_name=f"name {number % 3}",
            action=("scan", "reboot", "")[number % 3],
            task_user=("admin", "bob")[number % 5 == 0],
            tag="prod" if number % 2 else "",
            task_data_type=None if number % 2 else 5051 + number % 3,
            quick=number % 4 == 0,
            status=("created", "running", "finished", "cancelled")[number % 4 - 1],
            approval="waiting" if number == 1 else "",
            paused="why" if number == 6 else "",
            id_count=AGENTS,
            distributed=(0, 4, AGENTS)[number % 3],
            create_time=1_000 + number // 3,
            update_time=2_000 - number,
        )
        for number in range(1, TASKS + 1)
    ]


def jobs() -> list[dict[str, Any]]:
    """Rows of runs: two of each other task, of the first agents and of the rest."""
    return [
        _filled(
            task_job,
            number=2 * number + which,
            task=number,
            job_id=f"j{number}.{which}",
            upto="a4" if which == 0 else None,
        )
        for number in range(1, TASKS + 1, 2)
        for which in (0, 1)
    ]


def subtasks() -> list[dict[str, Any]]:
    """Rows of subtasks; the first runs of tasks have taken up all but their last agent."""
    rows = []
    for number in range(1, TASKS + 1):
        for which in range(1, AGENTS + 1):
            taken_up = number % 2 == 1 and which != AGENTS
            token = f"k{number}.{which}" if which % 2 else None
            rows.append(
                _filled(
                    subtask,
                    task=number,
                    agent_id=f"a{which}",
                    status=STATES[(number + which) % len(STATES)],
                    status_msg="" if which % 3 else None,
                    job=2 * number + (which > 4) if taken_up else None,
                    token=token,
                    started_at=500 + which if taken_up else None,
                    update_time=3_000 + number * which,
                )
            )
    return rows


def fill(database: Database) -> None:
    """Have all of these, and the hosts but two."""
    with database.writing() as connection:
        connection.execute(insert(task), tasks())
        bodies = [
            _filled(task_body, task=number, data='{"task":{}}', selection="{}")
            for number in range(1, TASKS + 1)
        ]
        connection.execute(insert(task_body), bodies)
        connection.execute(insert(task_job), jobs())
        tokens = [each["token"] for each in subtasks() if each["token"]]
        connection.execute(insert(task_token), [_filled(task_token, token=each) for each in tokens])
        connection.execute(insert(subtask), subtasks())
        hosts = [
            _filled(agent, agent_id=f"a{which}", hostname=f"{'web' if which % 2 else 'db'}-{which}")
            for which in range(1, AGENTS - 1)
        ]
        connection.execute(insert(agent), hosts)


def inner(row: dict[str, Any]) -> str:
    """``inner_status`` of a task."""
    if row["status"] == "cancelled":
        return "cancelled"
    if row["paused"]:
        return "paused"
    if row["distributed"] == 0:
        return "created"
    return "running" if row["distributed"] < row["id_count"] else "finished"


def task_documents() -> list[dict[str, Any]]:
    """What filters see of tasks that lists have."""
    return [
        {
            **{key: row.get(key) for key in TASK_COLUMNS},
            "task_status": row["status"],
            "distributed_count": row["distributed"],
            "inner_status": inner(row),
            "number": row["number"],
        }
        for row in tasks()
        if not row["quick"]
    ]


def subtask_documents() -> list[dict[str, Any]]:
    """What filters see of subtasks; a NULL is no value."""
    runs = {row["number"]: row["job_id"] for row in jobs()}
    of = {row["number"]: row for row in tasks()}
    documents = []
    for row in subtasks():
        whole = {key: row.get(key) or of[row["task"]].get(key) for key in SUBTASK_COLUMNS} | {
            "job_id": runs.get(row["job"]),
            "status_msg": row["status_msg"],
            "insert_time": of[row["task"]]["create_time"],
            "update_time": row["update_time"],
            "job_start_time": row["started_at"],
        }
        documents.append({key: value for key, value in whole.items() if value is not None})
    return documents


def every(*tests: Test) -> Test:
    """All of these."""
    return Every(tests)


OF_TASKS: list[Test] = [
    EVERYTHING,
    *(
        asked(key, "$eq", value)
        for key, value in (
            ("task_id", "t7"),
            ("task_id", "t4"),  # a quick one
            ("task_type", "Agent_Task"),
            ("task_name", "name 1"),
            ("action", "scan"),
            ("task_user", "bob"),
            ("tag", "prod"),
            ("task_status", "running"),
            ("approval", "waiting"),
            ("inner_status", "running"),
            ("id_count", AGENTS),
            ("action", 5),
        )
    ),
    asked("action", "$in", ["scan", "", "nothing", 5, None, "scan"]),
    asked("action", "$in", []),
    asked("task_id", "$in", [f"t{number}" for number in range(FEW + 2)]),
    asked("task_name", "$regex", "[12]$"),
    asked("create_time", "$gte", 1_003),
    asked("update_time", "$lt", 1_990),
    asked("id_count", "$gt", 99_999_999_999),
    asked("id_count", "$lt", 10**30),
    asked("id_count", "$gte", -(10**30)),
    asked("id_count", "$gte", AGENTS - 0.5),
    asked("id_count", "$in", [AGENTS + 0.5, 10**30, float(AGENTS)]),
    asked("id_count", "$eq", 1 << 63),
    every(asked("action", "$in", ["scan", "reboot"]), asked("task_user", "$eq", "admin")),
    every(asked("tag", "$ne", "prod"), asked("task_status", "$in", ["running", "finished"])),
    every(asked("action", "$eq", "scan"), asked("action", "$eq", "reboot")),
    Some((asked("action", "$eq", "scan"), asked("tag", "$eq", "prod"))),
    Not(every(asked("action", "$eq", "scan"), asked("tag", "$eq", "prod"))),
]

OF_SUBTASKS: list[Test] = [
    EVERYTHING,
    *(
        asked(key, "$eq", value)
        for key, value in (
            ("task_id", "t3"),
            ("task_id", "t4"),
            ("task_id", "x"),
            ("task_type", "Agent_Task"),
            ("task_data_type", 5052),
            ("job_id", "j3.0"),
            ("job_id", "j3.1"),
            ("job_id", "x"),
            ("agent_id", "a5"),
            ("status", "failed"),
            ("status", 7),
            ("status_msg", ""),
            ("token", "k3.1"),
            ("insert_time", 1_004),
            ("update_time", 3_012),
        )
    ),
    asked("status", "$in", ["failed", "result_failed", "x"]),
    asked("status", "$in", []),
    asked("status", "$in", [*STATES, *(f"x{number}" for number in range(FEW))]),
    asked("task_id", "$in", ["t3", "t5", "t4"]),
    asked("task_id", "$in", [f"t{number}" for number in range(FEW + 4)]),
    asked("job_id", "$in", ["j3.1", "j1.0", "j5.0", "j3.0"]),
    asked("job_id", "$in", [row["job_id"] for row in jobs()[1:]]),
    asked("job_id", "$in", [None, "j3.0"]),
    asked("job_id", "$ne", "j3.0"),
    asked("agent_id", "$in", ["a5", "a1", "a7"]),
    asked("agent_id", "$regex", "[1-4]$"),
    asked("token", "$in", [None]),
    asked("token", "$in", ["k3.1", "k3.3", "k1.7", None]),
    asked("token", "$in", ["k9.1", "k3.3", "k1.7"]),
    asked("job_start_time", "$gt", 503),
    asked("job_start_time", "$lte", 503.5),
    asked("task_data_type", "$lt", 1 << 70),
    asked("task_data_type", "$in", [1 << 40, 5052, 5051.5]),
    every(asked("task_id", "$eq", "t3"), asked("status", "$in", ["failed", "created", "running"])),
    every(asked("task_id", "$in", ["t3", "t9"]), asked("status", "$in", list(STATES[:3]))),
    every(asked("task_id", "$in", ["t3", "t9"]), asked("agent_id", "$in", ["a1", "a2", "a3"])),
    every(
        asked("task_id", "$in", ["t3", "t9", "t1"]),
        asked("status", "$in", list(STATES)),
        asked("agent_id", "$in", [f"a{which}" for which in range(8)]),
    ),
    every(asked("agent_id", "$eq", "a5"), asked("status", "$eq", "failed")),
    every(asked("job_id", "$eq", "j3.1"), asked("task_id", "$eq", "t3")),
    every(asked("job_id", "$eq", "j3.1"), asked("task_id", "$eq", "t5")),
    every(asked("job_id", "$in", ["j3.1", "j5.0"]), asked("task_type", "$eq", "Agent_Config")),
    every(asked("job_id", "$in", ["j3.1", "j5.0"]), asked("status", "$ne", "failed")),
    every(asked("task_type", "$eq", "Agent_Task"), asked("status", "$eq", "failed")),
    every(asked("status", "$eq", "failed"), asked("update_time", "$gt", 3_020)),
    Some((asked("task_id", "$eq", "t3"), asked("agent_id", "$eq", "a2"))),
    Some((asked("job_id", "$eq", "j3.0"), asked("status", "$eq", "failed"))),
    Not(Some((asked("task_type", "$eq", "Agent_Task"), asked("status", "$eq", "failed")))),
]


@pytest.fixture
def filled(any_database: Database) -> Database:
    """With tasks."""
    fill(any_database)
    return any_database


Pages = Callable[..., Found | None]


def check_pages(pages: Pages, expected: list[Any], identity: Callable[[Any], Any]) -> None:
    """Whichever place a page is read from, it is the same stretch of the whole list."""

    def page(offset: int, size: int, **known: Any) -> Found:
        found = pages(offset, size, **known)
        assert found is not None
        got = [identity(each) for each in found.items]
        assert got == expected[offset : offset + size], (pages, known)
        assert found.total == len(expected), pages
        return found

    page(0, ALL)
    assert page(ALL * 5_000, 5).starts == ()
    size = max(1, len(expected) // 3)
    starts: list[Start] = []
    for offset in range(0, len(expected), size):
        starts += page(offset, size, total=len(expected)).starts
    for start in starts[1:]:
        page(start.offset, size, start=start)
        page(start.offset + 1, 2, start=start, total=len(expected))


def test_tasks(filled: Database) -> None:
    """By every order in both directions, and as created among equals; quick ones never."""
    for test in OF_TASKS:
        documents = [each for each in task_documents() if holds(test, each)]
        with filled.reading() as connection:
            assert count_of_tasks(connection, test) == len(documents), test
            for key, descends in ORDERS if test in OF_TASKS[:2] else AS_OFTEN:

                def place(each: dict[str, Any], key: str = key) -> tuple[Any, int]:
                    return each[key] if key else 0, each["number"]

                by = sorted(documents, key=place, reverse=descends)
                pages = partial(_tasks, connection, test, (key, descends))
                check_pages(pages, [each["task_id"] for each in by], lambda item: item["task_id"])


def _tasks(
    connection: Connection,
    test: Test,
    order: tuple[str, bool],
    offset: int,
    size: int,
    **known: Any,
) -> Found:
    return page_of_tasks(connection, test, offset, size, order, **known)


def test_subtasks(filled: Database) -> None:
    """By task and agent, whichever index a filter goes along."""
    for test in OF_SUBTASKS:
        expected = [
            (each["task_id"], each["agent_id"]) for each in subtask_documents() if holds(test, each)
        ]
        with filled.reading() as connection:
            assert count_of_subtasks(connection, test) == len(expected), test
            pages = partial(page_of_subtasks, connection, test)
            check_pages(pages, expected, lambda item: (item["task_id"], item["agent_id"]))


def test_what_a_subtask_is_shown_with(filled: Database) -> None:
    """Its own run and task."""
    with filled.reading() as connection:
        items = page_of_subtasks(connection, asked("agent_id", "$eq", "a5"), 0, ALL).items
    assert [each["job_id"] for each in items[:3]] == ["j1.1", "", "j3.1"]
    assert [each["task_type"] for each in items[:2]] == ["Agent_Config", "Agent_Task"]


def test_what_does_not_fit_into_a_page(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tasks send is left out where it does not fit, and said to be; one is shown whole."""
    long = '{"task":{"data":"' + 1_000 * "x" + '"}}'
    with filled.writing() as connection:
        connection.execute(update(task_body).where(task_body.c.task < 4).values(data=long))
        connection.execute(update(subtask).values(sent_to="10.0.0.1:6752"))
    monkeypatch.setattr(task_lists, "PAGE_BYTES", 2_400)
    with filled.reading() as connection:
        items = page_of_tasks(connection, EVERYTHING, 0, ALL).items
        found = {each["task_id"]: each for each in items}
        assert [each for each in found if "left_out" in found[each]] == ["t3"]
        assert found["t3"]["data"] is None
        assert (found["t3"]["id_list"], found["t3"]["tag"]) == ([], "prod")
        assert len(found["t1"]["data"]["task"]["data"]) == 1_000
        one = find_task(connection, "t3")
        assert one is not None
        assert one["data"] == found["t1"]["data"]
        test = asked("task_id", "$eq", "t1")
        two, three = (page_of_subtasks(connection, test, 0, size).items for size in (2, 3))
    assert all(each["task_data"]["command"]["task"]["data"] for each in two)
    assert [each["task_data"] for each in three] == [None] * 3
    assert all(each["left_out"] == ["task_data"] for each in three)


def test_subtasks_of_one_task(filled: Database) -> None:
    """By agent id, also those of hosts that are not known any more."""
    named = {"": None, "^web": ("a1", "a3", "a5", "a7"), "nobody": ()}
    with filled.reading() as connection:
        for states in ((), ("failed",), ("created", "failed", "x"), STATES):
            for hostname, ids in named.items():
                expected = [
                    each["agent_id"]
                    for each in subtask_documents()
                    if each["task_id"] == "t3"
                    and (not states or each["status"] in states)
                    and (ids is None or each["agent_id"] in ids)
                ]
                shown = states, hostname
                assert count_of_listed(connection, "t3", *shown) == len(expected)
                pages = partial(_listed, connection, shown)
                check_pages(pages, expected, lambda item: item["agent_id"])
                assert listed_subtasks(connection, "x", *shown, (0, 5)) is None
                assert count_of_listed(connection, "x", *shown) == 0


def _listed(
    connection: Connection,
    shown: tuple[Sequence[str], str],
    offset: int,
    size: int,
    **known: Any,
) -> Found | None:
    return listed_subtasks(connection, "t3", *shown, (offset, size), **known)


def test_all_subtasks_of_one_task(filled: Database) -> None:
    """The same, with their number from the task's row."""
    expected = [each["agent_id"] for each in subtask_documents() if each["task_id"] == "t3"]

    def pages(
        offset: int, size: int, total: int | None = None, start: Start | None = None
    ) -> Found | None:
        assert total in (None, AGENTS)
        return subtasks_of(connection, "t3", offset, size, start)

    with filled.reading() as connection:
        check_pages(pages, expected, lambda item: item["agent_id"])


def test_unknown_keys(filled: Database) -> None:
    """They are refused, whatever else would have been found."""
    nothing = asked("task_id", "$eq", "x")
    unknown = asked("password", "$eq", "x")
    with filled.reading() as connection:
        for test in (unknown, every(nothing, unknown), asked("task_id.x", "$eq", "x")):
            with pytest.raises(FilterError, match="no field here"):
                page_of_tasks(connection, test, 0, 5)
            with pytest.raises(FilterError, match="no field here"):
                page_of_subtasks(connection, test, 0, 5)
        with pytest.raises(FilterError, match="no field here"):
            page_of_tasks(connection, nothing, 0, 5, ("password", False))


@pytest.mark.parametrize(
    "test", [EVERYTHING, asked("status", "$in", ["failed", "created"])], ids=["all", "states"]
)
def test_rows_that_go(filled: Database, test: Test) -> None:
    """Whoever walks on misses no other one, even when the one a page ended with has gone."""

    def page(offset: int, start: Start | None = None) -> Found:
        with filled.reading() as connection:
            return page_of_subtasks(connection, test, offset, 10, start=start)

    def names(found: Found) -> list[tuple[str, str]]:
        return [(each["task_id"], each["agent_id"]) for each in found.items]

    first, after = page(0), page(10)
    gone = [names(first)[3], names(first)[-1], names(after)[0]]
    with filled.writing() as connection:
        for task_id, agent_id in gone:
            of = subtask.c.task == int(task_id[1:]), subtask.c.agent_id == agent_id
            connection.execute(delete(subtask).where(*of))
    assert names(page(10, first.starts[-1]))[:9] == names(after)[1:]
    assert names(page(0))[:8] == [each for each in names(first) if each not in gone]


@contextmanager
def plans(connection: Connection, *, few: bool = False) -> Iterator[list[str]]:
    """Queries meanwhile with how the database goes about each, if it avoids what it can.

    Args:
        connection: within one view.
        few: whether there are so few rows that they may be sorted.
    """
    found: list[str] = []
    postgres = connection.dialect.name == "postgresql"
    if postgres:
        # The table is so small that it would be read whole.
        for name in ("seqscan", "sort", "hashjoin", "mergejoin", "bitmapscan"):
            value = "on" if few and name == "sort" else "off"
            connection.execute(text(f"SET LOCAL enable_{name} = {value}"))
        explain = "EXPLAIN (COSTS OFF) "
    else:
        explain = "EXPLAIN QUERY PLAN "

    def see(_: Any, cursor: Any, sql: str, parameters: Any, *__: Any) -> None:
        beside = cursor.connection.cursor()
        beside.execute(explain + sql, parameters)
        found.append("\n".join([sql, *(str(row[-1]) for row in beside.fetchall())]))
        beside.close()

    event.listen(connection.engine, "before_cursor_execute", see)
    try:
        yield found
    finally:
        event.remove(connection.engine, "before_cursor_execute", see)


def check_plan(found: list[str], index: str, *, few: bool = False) -> None:
    """The keys of a page come from an index, in its order; and the rest is looked up by them."""
    whole = re.compile("(Seq Scan on|SCAN) (subtask|task_resend)")
    assert not [each for each in found if whole.search(each)]
    plan = next(each for each in found if "k0" in each)
    assert re.search(rf"{index}(?!\w)", plan), plan
    assert not re.search(r"Seq Scan|SCAN (sub)?task$", plan, re.MULTILINE), plan
    assert few or not re.search(r"Sort$|TEMP B-TREE", plan, re.MULTILINE), plan


PRIMARY = "PRIMARY KEY", "pk_subtask"
BY_STATE = "ix_subtask_status_task_agent_id"
BY_AGENT = "ix_subtask_agent_id_task"


OF_TWO_TASKS = asked("task_id", "$in", ["t3", "t5"])
TOKEN = r"\(token=\?\)", "uq_subtask_token"
OF_INDICES: list[tuple[Test, str | tuple[str, str]]] = [
    (asked("status", "$eq", "failed"), BY_STATE),
    (asked("status", "$in", ["failed", "running"]), BY_STATE),
    (asked("agent_id", "$eq", "a5"), BY_AGENT),
    (every(asked("agent_id", "$eq", "a5"), asked("status", "$eq", "failed")), BY_AGENT),
    (asked("task_id", "$eq", "t3"), PRIMARY),
    (OF_TWO_TASKS, PRIMARY),
    (every(asked("task_id", "$eq", "t3"), asked("status", "$eq", "failed")), BY_STATE),
    (asked("job_id", "$eq", "j3.1"), PRIMARY),
    (asked("token", "$eq", "k3.1"), TOKEN),
    (EVERYTHING, PRIMARY),
]


def test_indices_of_subtasks(filled: Database) -> None:
    """Each filter by what has an index is read along it, in the order of the list."""
    for test, index in OF_INDICES:
        with filled.reading() as connection:
            postgres = connection.dialect.name == "postgresql"
            few = postgres and (index == TOKEN or test == OF_TWO_TASKS)
            name = index if isinstance(index, str) else index[postgres]
            start = page_of_subtasks(connection, test, 0, 1).starts[-1]
            # Without a filter the beginning of the table is the beginning of the list.
            for known in (start,) if test == EVERYTHING else (None, start):
                with plans(connection, few=few) as found:
                    page_of_subtasks(connection, test, 1, 5, total=ALL, start=known)
                check_plan(found, name, few=few)


LISTED = "ix_task_listed"
TASK_INDICES: list[tuple[Test, str, str]] = [
    (EVERYTHING, "", LISTED),
    (EVERYTHING, "create_time", f"{LISTED}_create_time"),
    (EVERYTHING, "task_name", f"{LISTED}_task_name"),
    (EVERYTHING, "task_status", f"{LISTED}_status"),
    (asked("task_type", "$eq", "Agent_Task"), "", f"{LISTED}_task_type"),
    (asked("task_name", "$eq", "name 1"), "", f"{LISTED}_task_name"),
    (asked("action", "$eq", "scan"), "", f"{LISTED}_action"),
    (asked("task_user", "$eq", "admin"), "", f"{LISTED}_task_user"),
    (asked("tag", "$eq", "prod"), "", f"{LISTED}_tag"),
    (asked("approval", "$eq", ""), "", f"{LISTED}_approval"),
    (asked("task_status", "$eq", "running"), "", f"{LISTED}_status"),
]


def test_indices_of_tasks(filled: Database) -> None:
    """Each filter and order that an index is made for is read along it, in both directions."""
    for test, key, index in TASK_INDICES:
        for descends in (False, True):
            order = key, descends
            with filled.reading() as connection:
                start = page_of_tasks(connection, test, 0, 2, order).starts[-1]
                for known in (None, start):
                    with plans(connection) as found:
                        page_of_tasks(connection, test, 2, 5, order, total=ALL, start=known)
                    check_plan(found, index)
