"""Queries that show tasks, subtasks and runs as clients know them. They block."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Final

import msgspec
from attrs import frozen
from sqlalchemy import ColumnElement, Connection, Table, and_, func, or_, select

from elkeid.manager.filter import Test
from elkeid.manager.store.bulk import matching, sliced
from elkeid.manager.store.results import ENDING_TYPES
from elkeid.manager.store.schema import (
    agent,
    host_config,
    subtask,
    task,
    task_approval,
    task_body,
    task_job,
    task_resend,
    task_result,
)
from elkeid.manager.store.starts import Start, starts_of
from elkeid.manager.store.task_rows import CANCELLED, CREATED
from elkeid.manager.store.task_ways import Way, way_of_listed, way_of_subtasks, way_of_tasks
from elkeid.manager.store.task_work import AWAY
from elkeid.manager.task_selection import Selection, shown

IDS_SHOWN: Final = 1_000
"""Agent ids in one task document; the subtasks of a large task are pages of their own."""

AS_CREATED: Final = ("", False)
"""The order of tasks by default."""

PAGE_BYTES: Final = 32 << 20
"""What tasks are, whom they are for, and results, in one page: some may be megabytes each."""

_BODY: Final = ["data", "id_list", "filter", "conditions"]

Document = dict[str, Any]


@frozen
class Found:
    """A page of documents, how many match in all, and places in the list that were found."""

    total: int
    items: list[Document]
    starts: tuple[Start, ...] = ()


def inner_status(row: Any) -> str:
    """How far the release of a task's hosts is."""
    if row.status == CANCELLED:
        return CANCELLED
    if row.paused:
        return "paused"
    if row.distributed == 0:
        return CREATED
    return "running" if row.distributed < row.id_count else "finished"


def counters(row: Any) -> dict[str, int]:
    """The counters of a task's row, as clients know them: they add up to ``id_count``.

    Where an answer is awaited, what was sent is still running until it comes.
    """
    if row.awaits_result:
        running, succeed = row.n_running + row.n_succeed, row.n_result_succeed
    else:
        running, succeed = row.n_running, row.n_succeed + row.n_result_succeed
    return {
        "sub_task_created": row.n_created,
        "sub_task_running": running,
        "sub_task_failed": row.n_failed + row.n_result_failed,
        "sub_task_succeed": succeed,
        "sub_task_cancelled": row.n_cancelled,
    }


class _Room:
    """What is left of `PAGE_BYTES`."""

    def __init__(self) -> None:
        self._left = PAGE_BYTES

    def has(self, size: int) -> bool:
        """Take as much, if it is there."""
        if size > self._left:
            return False
        self._left -= size
        return True


def _size(connection: Connection, column: ColumnElement[str]) -> ColumnElement[int]:
    """How long a text is; PostgreSQL tells without looking at it."""
    name = "octet_length" if connection.dialect.name == "postgresql" else "length"
    size: ColumnElement[int] = getattr(func, name)(column)
    return size


def _document(
    row: Any, data: str | None, selection: str, jobs: list[str], todo: list[str]
) -> Document:
    """A task; ``data`` None: it and the selection did not fit."""
    if data is None:
        chosen, left_out = Selection(tag=row.tag), {"left_out": _BODY}
    else:
        chosen, left_out = msgspec.json.decode(selection, type=Selection), {}
    return {
        **shown(chosen, IDS_SHOWN),
        **left_out,
        "data": None if data is None else msgspec.json.decode(data),
        "task_name": row.task_name,
        "action": row.action,
        "task_user": row.task_user,
        "subtask_running_timeout": int(row.result_seconds),
        "wait_seconds": int(row.wait_seconds),
        "retries": row.resends,
        "task_id": row.task_id,
        "task_type": row.task_type,
        "inner_status": inner_status(row),
        "task_status": row.status,
        "todo_list": todo,
        "id_count": row.id_count,
        "distributed_count": row.distributed,
        "job_list": jobs,
        **counters(row),
        "paused": row.paused,
        "approval": row.approval,
        "preparing": row.selecting,
        "create_time": row.create_time,
        "update_time": row.update_time,
    }


def find_task(connection: Connection, task_id: str) -> Document | None:
    """One task; of long lists the first `IDS_SHOWN`."""
    row = connection.execute(
        select(task, task_body.c.data, task_body.c.selection)
        .join_from(task, task_body, task.c.number == task_body.c.task)
        .where(task.c.task_id == task_id, task.c.quick.is_(False))
    ).first()
    if row is None:
        return None
    jobs = connection.execute(
        select(task_job.c.job_id, task_job.c.upto)
        .where(task_job.c.task == row.number)
        .order_by(task_job.c.number)
    ).all()
    todo: list[str] = []
    if row.distributed < row.id_count:
        released = (jobs[-1].upto or "") if jobs else ""
        todo = list(
            connection.execute(
                select(subtask.c.agent_id)
                .where(subtask.c.task == row.number, subtask.c.agent_id > released)
                .order_by(subtask.c.agent_id)
                .limit(IDS_SHOWN)
            ).scalars()
        )
    return _document(row, row.data, row.selection, [each.job_id for each in jobs], todo)


def page_of_tasks(
    connection: Connection,
    test: Test,
    offset: int,
    limit: int,
    order: tuple[str, bool] = AS_CREATED,
    *,
    total: int | None = None,
    start: Start | None = None,
) -> Found:
    """A page of tasks, as documents without ``todo_list``.

    Args:
        connection: within one view, so that total and items agree.
        test: over `TASK_COLUMNS`.
        offset: how many to pass over.
        limit: how many at most.
        order: a key of `TASK_COLUMNS`, or nothing for the order of creation; and whether it
            descends.
        total: how many match, if that is known already.
        start: a place in this list, at most ``offset`` rows after its beginning.

    Raises:
        FilterError: a key is none of these.
    """
    total, keys = _page(
        connection, partial(way_of_tasks, connection, test, order), (offset, limit), total, start
    )
    numbers, found = [key[-1] for key in keys], dict[int, Any]()
    size = _size(connection, task_body.c.data) + _size(connection, task_body.c.selection)
    for some in sliced(numbers):
        rows = connection.execute(
            select(task, size.label("size"))
            .join_from(task, task_body, task.c.number == task_body.c.task)
            .where(task.c.number.in_(some))
        )
        found |= {row.number: row for row in rows}
    room, bodies = _Room(), dict[int, tuple[str, str]]()
    for some in sliced([number for number in numbers if room.has(found[number].size)]):
        chosen = select(task_body.c.task, task_body.c.data, task_body.c.selection)
        for row in connection.execute(chosen.where(task_body.c.task.in_(some))):
            bodies[row.task] = row.data, row.selection
    jobs = _jobs_of(connection, numbers)
    items = []
    for number in numbers:
        data, selection = bodies.get(number, (None, ""))
        items.append(_document(found[number], data, selection, jobs.get(number, []), []))
    return Found(total, items, starts_of(offset, keys))


def count_of_tasks(connection: Connection, test: Test) -> int:
    """How many tasks, but quick ones, satisfy a test over `TASK_COLUMNS`."""
    return way_of_tasks(connection, test, AS_CREATED).count(connection)


def _page(
    connection: Connection,
    way: Callable[[Start | None], Way],
    page: tuple[int, int],
    total: int | None,
    start: Start | None,
) -> tuple[int, list[tuple[Any, ...]]]:
    """How long a list is, and the keys of a page of it.

    Args:
        connection: any.
        way: to the list from a place on.
        page: how many rows to pass over, and how many at most.
        total: how long it is, if that is known already.
        start: a place at most as far as what is passed over.
    """
    offset, limit = page
    here = way(start)
    if total is None:
        total = (here if start is None else way(None)).count(connection)
    if offset >= total:
        return total, []
    return total, here.keys(connection, offset if start is None else offset - start.offset, limit)


def _jobs_of(connection: Connection, numbers: Sequence[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for some in sliced(numbers):
        rows = connection.execute(
            select(task_job.c.task, task_job.c.job_id)
            .where(task_job.c.task.in_(some))
            .order_by(task_job.c.number)
        )
        for row in rows:
            found.setdefault(row.task, []).append(row.job_id)
    return found


_SUBTASK = (
    select(
        subtask,
        task.c.number,
        task.c.task_id,
        task.c.task_type,
        task.c.task_data_type,
        task.c.result_seconds,
        task.c.create_time,
        task.c.quick,
        task_job.c.job_id,
    )
    .join_from(subtask, task, subtask.c.task == task.c.number)
    .join(task_job, subtask.c.job == task_job.c.number, isouter=True)
)


def subtasks_of(
    connection: Connection, task_id: str, offset: int, limit: int, start: Start | None = None
) -> Found | None:
    """A page of the subtasks of one task, by agent id; None if there is no such task.

    Args:
        connection: any.
        task_id: the task.
        offset: how many to pass over.
        limit: how many at most.
        start: a place in this list, at most ``offset`` rows after its beginning.
    """
    row = connection.execute(
        select(task.c.number, task.c.id_count).where(task.c.task_id == task_id)
    ).first()
    if row is None:
        return None
    if offset >= row.id_count:
        return Found(row.id_count, [])
    way = way_of_listed(connection, row.number, (), "", start)
    keys = way.keys(connection, offset if start is None else offset - start.offset, limit)
    rows = _rows_of(connection, keys)
    return Found(row.id_count, _subtasks(connection, rows), starts_of(offset, keys))


def page_of_subtasks(
    connection: Connection,
    test: Test,
    offset: int,
    limit: int,
    *,
    total: int | None = None,
    start: Start | None = None,
) -> Found:
    """A page of the subtasks that satisfy a test, by task and agent id.

    Args:
        connection: within one view, so that total and items agree.
        test: over `SUBTASK_COLUMNS`.
        offset: how many to pass over.
        limit: how many at most.
        total: how many match, if that is known already.
        start: a place in this list, at most ``offset`` rows after its beginning.

    Raises:
        FilterError: a key is none of these.
    """
    total, keys = _page(
        connection, partial(way_of_subtasks, connection, test), (offset, limit), total, start
    )
    rows = _rows_of(connection, keys)
    return Found(total, _subtasks(connection, rows), starts_of(offset, keys))


def count_of_subtasks(connection: Connection, test: Test) -> int:
    """How many subtasks satisfy a test over `SUBTASK_COLUMNS`."""
    return way_of_subtasks(connection, test).count(connection)


def _rows_of(connection: Connection, keys: Sequence[tuple[int, str]]) -> list[Any]:
    """The rows of these subtasks, together with those of their tasks and runs."""
    found: dict[tuple[int, str], Any] = {}
    for some in sliced(keys):
        condition, arrays = _of_subtasks(connection, subtask, some)
        rows = connection.execute(_SUBTASK.where(condition), arrays)
        found |= {(row.task, row.agent_id): row for row in rows}
    return [found[key] for key in keys]


def _of_subtasks(
    connection: Connection, table: Table, keys: Sequence[tuple[int, str]]
) -> tuple[ColumnElement[bool], dict[str, list[Any]]]:
    """The condition that rows are of these subtasks; and parameters for the statement."""
    if connection.dialect.name == "postgresql":
        names = "task", "agent_id"
        given = [dict(zip(names, key, strict=True)) for key in keys]
        conditions, arrays = matching(connection, table, names, given)
        return and_(*conditions), arrays
    # For a list of pairs SQLite would look at every row.
    by_task = defaultdict[int, list[str]](list)
    for number, agent_id in keys:
        by_task[number].append(agent_id)
    ways = [
        and_(table.c.task == number, table.c.agent_id.in_(ids)) for number, ids in by_task.items()
    ]
    return or_(*ways), {}


def _subtasks(connection: Connection, rows: Sequence[Any]) -> list[Document]:
    results = _results(connection, [row.token for row in rows if row.token is not None])
    resends = _resends(connection, rows)
    data = _data_shown(connection, Counter(row.task for row in rows))
    return [_subtask(row, results, resends, data) for row in rows]


def _data_shown(connection: Connection, counts: Mapping[int, int]) -> dict[int, Any]:
    """Task -> what it sends, where that fits for as many of its subtasks as are shown."""
    sizes, room = dict[int, int](), _Room()
    for some in sliced(list(counts)):
        query = select(task_body.c.task, _size(connection, task_body.c.data).label("size"))
        for row in connection.execute(query.where(task_body.c.task.in_(some))):
            sizes[row.task] = row.size
    return _data_of(connection, [each for each, n in counts.items() if room.has(n * sizes[each])])


def _subtask(
    row: Any,
    results: dict[str, Any],
    resends: dict[tuple[int, str], list[Document]],
    data: dict[int, Any],
) -> Document:
    sent = row.sent_to is not None
    fits = row.payload is not None or row.task in data
    late = row.due if row.status == "succeed" and row.due is not None else 0
    return {
        **({"left_out": ["task_data"]} if sent and not fits else {}),
        "_id": sha256(f"{row.task_id}/{row.agent_id}".encode()).hexdigest()[:24],
        "task_type": row.task_type,
        "task_data_type": row.task_data_type or 0,
        "agent_id": row.agent_id,
        "task_id": row.task_id,
        "job_id": row.job_id or "",
        "task_data": body_of(row.agent_id, row.token, data.get(row.task), row.payload)
        if sent and fits
        else None,
        "task_url": f"https://{row.sent_to}/command/" if sent else "",
        "token": row.token or "",
        "status": row.status,
        "status_msg": row.status_msg or ("its agent is not connected" if row.due == AWAY else ""),
        "task_result": results.get(row.token, ""),
        "task_resp": row.response or "",
        "append_data": None,
        "resends": resends.get((row.task, row.agent_id), []),
        "insert_time": row.create_time,
        "update_time": row.update_time,
        "job_start_time": row.started_at or 0,
        "job_time_out_time": int(late),
    }


def body_of(agent_id: str, token: str | None, data: Any, payload: str | None) -> Document:
    """The body that an AC is sent for one subtask.

    Args:
        agent_id: whose.
        token: what its result comes back by.
        data: of the task, as documents have it.
        payload: of a config task, the whole list in JSON.
    """
    command: Document = {}
    if payload is not None:
        command["config"] = msgspec.json.decode(payload)
    else:
        command["task"] = {**data["task"], "token": token or ""}
        if data.get("agent_ctrl"):
            command["agent_ctrl"] = data["agent_ctrl"]
    body: Document = {"agent_id": agent_id, "command": command}
    if command.get("config") == []:
        body["allow_empty"] = True
    return body


def _data_of(connection: Connection, numbers: Iterable[int]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for some in sliced(list(numbers)):
        rows = connection.execute(
            select(task_body.c.task, task_body.c.data).where(task_body.c.task.in_(some))
        )
        found |= {row.task: msgspec.json.decode(row.data) for row in rows}
    return found


def _results(connection: Connection, tokens: Sequence[str]) -> dict[str, Any]:
    """Token -> the result that is shown: the last one that says how it ended, or the last."""
    shown_: dict[str, tuple[bool, Any]] = {}
    for some in sliced(tokens):
        rows = connection.execute(
            select(task_result.c.token, task_result.c.content)
            .where(task_result.c.token.in_(some))
            .order_by(task_result.c.id)
        )
        for row in rows:
            content = msgspec.json.decode(row.content)
            ends = bool(content.get("status")) or str(content.get("data_type")) in ENDING_TYPES
            if ends or not shown_.get(row.token, (False, None))[0]:
                shown_[row.token] = ends, content
    return {token: content for token, (_, content) in shown_.items()}


def _resends(connection: Connection, rows: Sequence[Any]) -> dict[tuple[int, str], list[Document]]:
    found: dict[tuple[int, str], list[Document]] = {}
    for some in sliced([(row.task, row.agent_id) for row in rows]):
        condition, arrays = _of_subtasks(connection, task_resend, some)
        query = select(task_resend).where(condition).order_by(task_resend.c.id)
        for each in connection.execute(query, arrays):
            resend = {"time": each.at, "reason": each.reason}
            found.setdefault((each.task, each.agent_id), []).append(resend)
    return found


def listed_subtasks(
    connection: Connection,
    task_id: str,
    states: Sequence[str],
    hostname: str,
    page: tuple[int, int],
    *,
    total: int | None = None,
    start: Start | None = None,
) -> Found | None:
    """A page of one task's subtasks with their hosts' names; None if there is no such task.

    Args:
        connection: any.
        task_id: the task.
        states: only these; every state if there are none.
        hostname: only of hosts whose name matches this RE2 pattern; empty for all hosts.
        page: how many to pass over, and how many at most.
        total: how many match, if that is known already.
        start: a place in this list, at most as far as what is passed over.
    """
    number = connection.execute(select(task.c.number).where(task.c.task_id == task_id)).scalar()
    if number is None:
        return None
    way = partial(way_of_listed, connection, number, states, hostname)
    total, keys = _page(connection, way, page, total, start)
    found: dict[str, Document] = {}
    for some in sliced([agent_id for _, agent_id in keys]):
        rows = connection.execute(
            select(subtask.c.agent_id, subtask.c.status, agent.c.hostname, subtask.c.update_time)
            .join_from(subtask, agent, subtask.c.agent_id == agent.c.agent_id, isouter=True)
            .where(subtask.c.task == number, subtask.c.agent_id.in_(some))
        )
        for row in rows:
            found[row.agent_id] = {
                "task_id": task_id,
                "agent_id": row.agent_id,
                "status": row.status,
                "hostname": row.hostname or "",
                "update_time": row.update_time,
            }
    return Found(total, [found[each] for _, each in keys], starts_of(page[0], keys))


def count_of_listed(
    connection: Connection, task_id: str, states: Sequence[str], hostname: str
) -> int:
    """How many subtasks of one task `listed_subtasks` lists."""
    number = connection.execute(select(task.c.number).where(task.c.task_id == task_id)).scalar()
    if number is None:
        return 0
    return way_of_listed(connection, number, states, hostname).count(connection)


def find_job(connection: Connection, job_id: str) -> Document | None:
    """One run, with the states of its subtasks."""
    row = connection.execute(
        select(task_job, task.c.task_id, task.c.task_type)
        .join_from(task_job, task, task_job.c.task == task.c.number)
        .where(task_job.c.job_id == job_id)
    ).first()
    if row is None:
        return None
    states = {
        each.status: each.n
        for each in connection.execute(
            select(subtask.c.status, func.count().label("n"))
            .where(subtask.c.task == row.task, subtask.c.job == row.number)
            .group_by(subtask.c.status)
        )
    }
    return {
        "info": {
            "id": row.job_id,
            "name": row.task_type,
            "task_id": row.task_id,
            "con_num": row.concurrence,
            "count": row.count,
            "create_time": row.created_at,
        },
        "stat": {"taken_up": sum(states.values()), **dict(sorted(states.items()))},
    }


def approvals_waiting(connection: Connection, offset: int, limit: int) -> Found:
    """Tasks that wait for a second person, the oldest first."""
    condition = (
        (task.c.approval == "waiting") & (task.c.status == CREATED) & task.c.quick.is_(False)
    )
    total = connection.execute(select(func.count()).select_from(task).where(condition)).scalar_one()
    if offset >= total:
        return Found(total, [])
    rows = connection.execute(
        select(task).where(condition).order_by(task.c.number).offset(offset).limit(limit)
    )
    return Found(
        total,
        [
            {
                "task_id": row.task_id,
                "task_name": row.task_name,
                "task_type": row.task_type,
                "task_user": row.task_user,
                "id_count": row.id_count,
                "create_time": row.create_time,
            }
            for row in rows
        ],
    )


def decisions_on(connection: Connection, task_id: str) -> list[Document]:
    """What second persons said of a task."""
    rows = connection.execute(
        select(task_approval)
        .join_from(task_approval, task, task_approval.c.task == task.c.number)
        .where(task.c.task_id == task_id)
        .order_by(task_approval.c.id)
    )
    return [
        {
            "username": row.username,
            "approved": row.approved,
            "reason": row.reason,
            "time": row.at,
        }
        for row in rows
    ]


def stored_host_config(connection: Connection, agent_id: str) -> list[Document] | None:
    """What an operator stored for this one host."""
    items = connection.execute(
        select(host_config.c["items"]).where(host_config.c.agent_id == agent_id)
    ).scalar()
    return None if items is None else msgspec.json.decode(items, type=list[Document])


def whereabouts(connection: Connection, agent_id: str) -> Any:
    """``source_ip, source_port, connected`` of an agent; None if it was never reported."""
    return connection.execute(
        select(agent.c.source_ip, agent.c.source_port, agent.c.connected).where(
            agent.c.agent_id == agent_id
        )
    ).first()


def rows_of(connection: Connection, numbers: Sequence[int]) -> list[Any]:
    """The rows of these tasks."""
    found: list[Any] = []
    for some in sliced(numbers):
        found += connection.execute(select(task).where(task.c.number.in_(some))).all()
    return found


def task_data(connection: Connection, number: int) -> Any:
    """What a task sends, as documents have it; None if there is no such task."""
    return _data_of(connection, [number]).get(number)
