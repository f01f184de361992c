"""Lists of tasks and of subtasks: what they are filtered by, and which index they are read along.

A list is read as the merge of a few branches, each a stretch of one index that has the list's
order. The subtasks of two states are two branches, each as if there were that state alone.

Subtasks go by the number of their task, then by agent id. A condition on tasks or runs is looked
up first: if few satisfy it, the list is read task by task. Every function takes a connection and
blocks.
"""

from collections.abc import Sequence
from typing import Any, Final

from attrs import evolve, frozen
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    case,
    func,
    literal,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.sql.expression import UnaryExpression
from sqlalchemy.sql.operators import custom_op
from sqlalchemy.types import String

from elkeid.manager.filter import Every, IsIn, Matches, Not, Path, Some, Test
from elkeid.manager.store.filtersql import flattened
from elkeid.manager.store.schema import agent, subtask, task, task_job
from elkeid.manager.store.starts import Start, from_start
from elkeid.manager.store.task_filter import Columns, column_of, where
from elkeid.manager.store.task_rows import CANCELLED, CREATED

FEW: Final = 16
"""Branches that a list is merged of at most; a page behind the thousandth reads a thousand rows
of each."""

_INNER: ColumnElement[str] = case(
    (task.c.status == CANCELLED, literal(CANCELLED, String)),
    (task.c.paused != "", literal("paused", String)),
    (task.c.distributed == 0, literal(CREATED, String)),
    (task.c.distributed < task.c.id_count, literal("running", String)),
    else_=literal("finished", String),
)

TASK_COLUMNS: Columns = {
    "task_id": task.c.task_id,
    "task_type": task.c.task_type,
    "task_name": task.c.task_name,
    "action": task.c.action,
    "task_user": task.c.task_user,
    "tag": task.c.tag,
    "task_status": task.c.status,
    "inner_status": _INNER,
    "approval": task.c.approval,
    "id_count": task.c.id_count,
    "distributed_count": task.c.distributed,
    "create_time": task.c.create_time,
    "update_time": task.c.update_time,
}
"""What tasks are filtered and ordered by."""

_TASK_INDICES = (
    "task_id",
    "task_name",
    "tag",
    "action",
    "task_user",
    "approval",
    "task_status",
    "task_type",
)
"""What tasks are found by, what is likely to find the fewest first."""

_OF_TASKS: Columns = {
    "task_id": task.c.task_id,
    "task_type": task.c.task_type,
    "task_data_type": task.c.task_data_type,
    "insert_time": task.c.create_time,
}

SUBTASK_COLUMNS: Columns = {
    **_OF_TASKS,
    "job_id": task_job.c.job_id,
    "agent_id": subtask.c.agent_id,
    "status": subtask.c.status,
    "status_msg": subtask.c.status_msg,
    "token": subtask.c.token,
    "update_time": subtask.c.update_time,
    "job_start_time": subtask.c.started_at,
}
"""What subtasks are filtered by."""

_SUBTASK_KEY = (subtask.c.task, subtask.c.agent_id)


@frozen
class Way:
    """How to read a list.

    Attributes:
        order: what it is ordered by; no two rows are equal in all of it.
        branches: queries of that, unordered; no row is in two of them.
        descending: whether by all of ``order`` from the greatest value down.
    """

    order: tuple[ColumnElement[Any], ...]
    branches: tuple[Select[Any], ...]
    descending: bool = False

    def count(self, connection: Connection) -> int:
        """How many rows there are."""
        return sum(
            connection.execute(
                each.with_only_columns(func.count(), maintain_column_froms=True)
            ).scalar_one()
            for each in self.branches
        )

    def keys(self, connection: Connection, passed: int, limit: int) -> list[tuple[Any, ...]]:
        """What rows have in ``order``.

        Args:
            connection: any.
            passed: how many rows to pass over.
            limit: how many rows at most.
        """
        if not self.branches:
            return []
        columns = [each.label(f"k{at}") for at, each in enumerate(self.order)]
        named: list[ColumnElement[Any]] = [literal_column(each.name) for each in columns]
        order = [each.desc() if self.descending else each for each in named]
        several = [
            each.with_only_columns(*columns, maintain_column_froms=True).order_by(*order)
            for each in self.branches
        ]
        query: Any = several[0]
        if len(several) > 1:
            # Branches in order are merged as they are read: by PostgreSQL if each says by itself
            # how far it is read, by SQLite if none does.
            if connection.dialect.name == "postgresql":
                several = [each.limit(passed + limit) for each in several]
            heads = [select(each.subquery()) for each in several]
            query = union_all(*heads).order_by(*order)
        return [tuple(row) for row in connection.execute(query.offset(passed).limit(limit))]


@frozen
class _Part:
    """A part of a list.

    Attributes:
        conditions: that its rows satisfy.
        task: the number of the task that they all belong to, if that is known.
        begins: of them, what says where in its task it begins. Left out where a place behind that
            is known: databases may seek by either.
    """

    conditions: tuple[ColumnElement[bool], ...]
    task: int | None = None
    begins: tuple[ColumnElement[bool], ...] = ()


@frozen
class _Choice:
    """A condition: what satisfies it is in one of some parts, unless these are too many."""

    condition: ColumnElement[bool]
    parts: tuple[_Part, ...] | None


def way_of_tasks(
    connection: Connection, test: Test, order: tuple[str, bool], start: Start | None = None
) -> Way:
    """The way to the tasks, but quick ones, that satisfy a test.

    Args:
        connection: any.
        test: over `TASK_COLUMNS`.
        order: a key of `TASK_COLUMNS`, or nothing for the order of creation; and whether it
            descends.
        start: where the list is read from; its beginning by default.

    Raises:
        FilterError: a key is none of these.
    """
    key, descending = order
    tests = _conjuncts(test)
    columns: Columns = TASK_COLUMNS
    branches: list[ColumnElement[bool]] = [true()]
    for name in _TASK_INDICES:
        found = None if name == key else _few(tests, name)
        if found is not None:
            tests.remove(found)
            branches = [TASK_COLUMNS[name] == value for value in _texts(found)]
            columns = {each: _aside(connection, column) for each, column in columns.items()}
            break
    by = (task.c.number,) if not key else (column_of(key, TASK_COLUMNS), task.c.number)
    query = select(*by).where(
        task.c.quick.is_(False), *(where(each, columns, connection.dialect.name) for each in tests)
    )
    if start is not None:
        query = query.where(from_start(by, start, descending=descending))
    return Way(by, tuple(query.where(each) for each in branches), descending)


def way_of_subtasks(connection: Connection, test: Test, start: Start | None = None) -> Way:
    """The way to the subtasks that satisfy a test.

    Args:
        connection: any.
        test: over `SUBTASK_COLUMNS`.
        start: where the list is read from; its beginning by default.

    Raises:
        FilterError: a key is none of these.
    """
    tests, dialect = _conjuncts(test), connection.dialect.name
    of_tasks = [each for each in tests if _keys(each) <= _OF_TASKS.keys()]
    tests = [each for each in tests if each not in of_tasks]
    columns, choices = dict(SUBTASK_COLUMNS), list[_Choice]()
    for key in ("token", "agent_id"):
        found = _few(tests, key)
        if found is not None:
            tests.remove(found)
            choices.append(_among(columns[key], found))
    if choices:  # few have the same agent, many the same state
        columns["status"] = _aside(connection, subtask.c.status)
    states = _few(tests, "status")
    jobs = next((each for each in tests if _asks_for(each, "job_id")), None)
    rest = [each for each in tests if each not in (states, jobs)]
    query = _joined(frozenset[str]().union(*map(_keys, rest))).where(
        *(where(each, columns, dialect) for each in rest)
    )
    if jobs is not None:
        choices.append(_of_jobs(connection, where(jobs, SUBTASK_COLUMNS, dialect)))
    elif of_tasks:
        choices.append(_of_tasks(connection, where(Every(tuple(of_tasks)), _OF_TASKS, dialect)))
    if jobs is not None and of_tasks:
        numbers = select(task.c.number).where(where(Every(tuple(of_tasks)), _OF_TASKS, dialect))
        query = query.where(_aside(connection, subtask.c.task).in_(numbers))
    if states is not None:
        choices.append(_among(columns["status"], states))
    return _chosen(query, choices, start)


def way_of_listed(
    connection: Connection,
    number: int,
    states: Sequence[str],
    hostname: str,
    start: Start | None = None,
) -> Way:
    """The way to the subtasks of one task.

    Args:
        connection: any.
        number: the task's.
        states: only these; every state if there are none.
        hostname: only of hosts whose name matches this RE2 pattern; empty for all hosts.
        start: where the list is read from; its beginning by default.
    """
    query = select(*_SUBTASK_KEY)
    if hostname:
        query = query.join_from(
            subtask, agent, subtask.c.agent_id == agent.c.agent_id, isouter=True
        )
        matches = Matches(Path(("hostname",)), hostname)
        columns = {"hostname": agent.c.hostname}
        query = query.where(where(matches, columns, connection.dialect.name))
    choices = [_task_by_task([number])]
    if len(states) > FEW:
        query = query.where(subtask.c.status.in_(states))
    elif states:
        choices.append(_among(subtask.c.status, IsIn(Path(("status",)), tuple(states))))
    return _chosen(query, choices, start)


def _chosen(query: Select[Any], choices: Sequence[_Choice], start: Start | None) -> Way:
    """The way to what a query finds and all choices allow, from a place on."""
    chosen: list[tuple[_Part, ...]] = [()]
    for choice in choices:
        if choice.parts is None or len(chosen) * len(choice.parts) > FEW:
            query = query.where(choice.condition)
        else:
            chosen = [(*parts, part) for parts in chosen for part in choice.parts]
    branches = []
    for parts in chosen:
        branch = query.where(*(condition for part in parts for condition in part.conditions))
        begins = [condition for part in parts for condition in part.begins]
        number = next((part.task for part in parts if part.task is not None), None)
        if start is None or (number is not None and number > start.key[0]):
            branches.append(branch.where(*begins))
        elif number is None:
            branches.append(branch.where(from_start(_SUBTASK_KEY, start)))
        elif number == start.key[0]:  # databases seek by agent id only if it is all they are told
            there = evolve(start, key=start.key[1:])
            branches.append(branch.where(from_start(_SUBTASK_KEY[1:], there)))
    return Way(_SUBTASK_KEY, tuple(branches))


def _among(column: ColumnElement[Any], test: IsIn) -> _Choice:
    values = _texts(test)
    return _Choice(column.in_(values), tuple(_Part((column == each,)) for each in values))


def _task_by_task(numbers: Sequence[int]) -> _Choice:
    parts = tuple(_Part((subtask.c.task == each,), each) for each in numbers)
    return _Choice(subtask.c.task.in_(numbers), parts)


def _of_tasks(connection: Connection, condition: ColumnElement[bool]) -> _Choice:
    """The subtasks of the tasks that satisfy a condition."""
    found = select(task.c.number).where(condition)
    numbers = connection.execute(found.order_by(task.c.number).limit(FEW + 1)).scalars().all()
    if len(numbers) > FEW:
        return _Choice(subtask.c.task.in_(found), None)
    return _task_by_task(numbers)


def _of_jobs(connection: Connection, condition: ColumnElement[bool]) -> _Choice:
    """The subtasks that the runs that satisfy a condition have taken up.

    Each run takes up a stretch of its task's agents, behind the run before.
    """
    anyway = and_(
        subtask.c.task.in_(select(task_job.c.task).where(condition)),
        subtask.c.job.in_(select(task_job.c.number).where(condition)),
    )
    rows = connection.execute(
        select(task_job.c.number, task_job.c.task, task_job.c.upto).where(condition).limit(FEW + 1)
    ).all()
    if len(rows) > FEW:
        return _Choice(anyway, None)
    parts = []
    for row in rows:
        before = connection.execute(
            select(task_job.c.upto)
            .where(task_job.c.task == row.task, task_job.c.number < row.number)
            .order_by(task_job.c.number.desc())
            .limit(1)
        ).scalar()
        conditions = [subtask.c.task == row.task, subtask.c.job == row.number]
        if row.upto is not None:
            conditions.append(subtask.c.agent_id <= row.upto)
        begins = () if before is None else (subtask.c.agent_id > before,)
        parts.append(_Part(tuple(conditions), row.task, begins))
    return _Choice(anyway, tuple(parts))


def _joined(keys: frozenset[str]) -> Select[Any]:
    """A query of subtasks together with what these keys of `SUBTASK_COLUMNS` are columns of."""
    joined: FromClause = subtask
    if keys & _OF_TASKS.keys():
        joined = joined.join(task, subtask.c.task == task.c.number)
    if "job_id" in keys:
        joined = joined.join(task_job, subtask.c.job == task_job.c.number, isouter=True)
    return select(*_SUBTASK_KEY).select_from(joined)


def _conjuncts(test: Test) -> list[Test]:
    """Tests that all hold where this one does."""
    test = flattened(test)
    return list(test.tests) if isinstance(test, Every) else [test]


def _keys(test: Test) -> frozenset[str]:
    """Of all columns that a test looks at."""
    match test:
        case Every(tests) | Some(tests):
            return frozenset[str]().union(*map(_keys, tests))
        case Not(inner):
            return _keys(inner)
    return frozenset((str(test.path),))


def _asks_for(test: Test, key: str) -> bool:
    """Whether a test asks for some texts of a column."""
    return isinstance(test, IsIn) and str(test.path) == key and None not in test.values


def _few(tests: Sequence[Test], key: str) -> IsIn | None:
    """The first test that asks for few texts of a column."""
    for each in tests:
        if isinstance(each, IsIn) and _asks_for(each, key) and len(_texts(each)) <= FEW:
            return each
    return None


def _texts(test: IsIn) -> list[str]:
    return sorted({each for each in test.values if isinstance(each, str)})


def _aside(connection: Connection, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column whose index is not to be used.

    SQLite takes any index for as good as any other: it does not know how many rows have a value.
    """
    if connection.dialect.name != "sqlite":
        return column
    return UnaryExpression(column, operator=custom_op("+"), type_=column.type)
