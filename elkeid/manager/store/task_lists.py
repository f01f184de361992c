"""Queries that show tasks, subtasks and runs as clients know them. They block."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec
from attrs import frozen
from sqlalchemy import ColumnElement, Connection, String, case, func, literal, select

from elkeid.manager.filter import EVERYTHING, Matches, Path, Test
from elkeid.manager.store.bulk import sliced
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
from elkeid.manager.store.starts import Start, from_start, starts_of
from elkeid.manager.store.task_filter import Columns, column_of, where
from elkeid.manager.store.task_rows import CANCELLED, CREATED
from elkeid.manager.store.task_work import AWAY
from elkeid.manager.task_selection import Selection, shown

IDS_SHOWN: Final = 1_000
"""Agent ids in one task document; the subtasks of a large task are pages of their own."""

Document = dict[str, Any]

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

SUBTASK_COLUMNS: Columns = {
    "task_id": task.c.task_id,
    "task_type": task.c.task_type,
    "task_data_type": task.c.task_data_type,
    "job_id": task_job.c.job_id,
    "agent_id": subtask.c.agent_id,
    "status": subtask.c.status,
    "status_msg": subtask.c.status_msg,
    "token": subtask.c.token,
    "insert_time": task.c.create_time,
    "update_time": subtask.c.update_time,
    "job_start_time": subtask.c.started_at,
}
"""What subtasks are filtered by."""


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


def _document(row: Any, data: str, selection: str, jobs: list[str], todo: list[str]) -> Document:
    chosen = msgspec.json.decode(selection, type=Selection)
    return {
        **shown(chosen, IDS_SHOWN),
        "data": msgspec.json.decode(data),
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
    order: tuple[str, bool] | None,
) -> Found:
    """A page of tasks, as documents without ``todo_list``.

    Args:
        connection: any.
        test: over `TASK_COLUMNS`.
        offset: how many to pass over.
        limit: how many at most.
        order: a key of `TASK_COLUMNS` and whether it descends; as created by default.

    Raises:
        FilterError: a key is none of these.
    """
    condition: ColumnElement[bool] = task.c.quick.is_(False)
    if test != EVERYTHING:
        condition &= where(test, TASK_COLUMNS, connection.dialect.name)
    ordered: list[Any] = [task.c.number]
    if order is not None:
        column = column_of(order[0], TASK_COLUMNS)
        ordered.insert(0, column.desc() if order[1] else column)
        if order[1]:
            ordered[1] = task.c.number.desc()
    total = connection.execute(select(func.count()).select_from(task).where(condition)).scalar_one()
    rows = connection.execute(
        select(task, task_body.c.data, task_body.c.selection)
        .join_from(task, task_body, task.c.number == task_body.c.task)
        .where(condition)
        .order_by(*ordered)
        .offset(offset)
        .limit(limit)
    ).all()
    jobs = _jobs_of(connection, [row.number for row in rows])
    return Found(
        total,
        [_document(row, row.data, row.selection, jobs.get(row.number, []), []) for row in rows],
    )


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
    order, passed = (subtask.c.agent_id,), offset
    # By themselves: what is passed over is not joined with anything.
    ids = select(subtask.c.agent_id).where(subtask.c.task == row.number)
    if start is not None:
        ids, passed = ids.where(from_start(order, start)), offset - start.offset
    page = ids.order_by(*order).offset(passed).limit(limit)
    rows = connection.execute(
        _SUBTASK.where(subtask.c.task == row.number, subtask.c.agent_id.in_(page)).order_by(*order)
    ).all()
    starts = starts_of(offset, [(each.agent_id,) for each in rows])
    return Found(row.id_count, _subtasks(connection, rows), starts)


def page_of_subtasks(connection: Connection, test: Test, offset: int, limit: int) -> Found:
    """A page of the subtasks that satisfy a test over `SUBTASK_COLUMNS`, by task and agent id.

    Raises:
        FilterError: a key is none of these.
    """
    condition = where(test, SUBTASK_COLUMNS, connection.dialect.name)
    joined = subtask.join(task, subtask.c.task == task.c.number).join(
        task_job, subtask.c.job == task_job.c.number, isouter=True
    )
    total = connection.execute(
        select(func.count()).select_from(joined).where(condition)
    ).scalar_one()
    rows = connection.execute(
        _SUBTASK.where(condition)
        .order_by(subtask.c.task, subtask.c.agent_id)
        .offset(offset)
        .limit(limit)
    ).all()
    return Found(total, _subtasks(connection, rows))


def _subtasks(connection: Connection, rows: Sequence[Any]) -> list[Document]:
    results = _results(connection, [row.token for row in rows if row.token is not None])
    resends = _resends(connection, rows)
    data = _data_of(connection, {row.task for row in rows})
    return [_subtask(row, results, resends, data) for row in rows]


def _subtask(
    row: Any,
    results: dict[str, Any],
    resends: dict[tuple[int, str], list[Document]],
    data: dict[int, Any],
) -> Document:
    sent = row.sent_to is not None
    late = row.due if row.status == "succeed" and row.due is not None else 0
    return {
        "_id": sha256(f"{row.task_id}/{row.agent_id}".encode()).hexdigest()[:24],
        "task_type": row.task_type,
        "task_data_type": row.task_data_type or 0,
        "agent_id": row.agent_id,
        "task_id": row.task_id,
        "job_id": row.job_id or "",
        "task_data": body_of(row.agent_id, row.token, data[row.task], row.payload)
        if sent
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
    by_task: dict[int, list[str]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row.agent_id)
    for number, ids in by_task.items():
        for some in sliced(ids):
            resent = connection.execute(
                select(task_resend)
                .where(task_resend.c.task == number, task_resend.c.agent_id.in_(some))
                .order_by(task_resend.c.id)
            )
            for each in resent:
                found.setdefault((number, each.agent_id), []).append(
                    {"time": each.at, "reason": each.reason}
                )
    return found


def listed_subtasks(
    connection: Connection,
    task_id: str,
    states: Sequence[str],
    hostname: str,
    page: tuple[int, int],
    *,
    start: Start | None = None,
) -> Found | None:
    """A page of one task's subtasks with their hosts' names; None if there is no such task.

    Args:
        connection: any.
        task_id: the task.
        states: only these; every state if there are none.
        hostname: only of hosts whose name matches this RE2 pattern; empty for all hosts.
        page: how many to pass over, and how many at most.
        start: a place in this list, at most as far as what is passed over.
    """
    number = connection.execute(select(task.c.number).where(task.c.task_id == task_id)).scalar()
    if number is None:
        return None
    joined = subtask.join(agent, subtask.c.agent_id == agent.c.agent_id, isouter=True)
    condition: ColumnElement[bool] = subtask.c.task == number
    if states:
        condition &= subtask.c.status.in_(states)
    if hostname:
        test = Matches(Path(("hostname",)), hostname)
        condition &= where(test, {"hostname": agent.c.hostname}, connection.dialect.name)
    counted = joined if hostname else subtask
    total = connection.execute(
        select(func.count()).select_from(counted).where(condition)
    ).scalar_one()
    order, passed = (subtask.c.agent_id,), page[0]
    if start is not None:
        condition &= from_start(order, start)
        passed -= start.offset
    rows = connection.execute(
        select(subtask.c.agent_id, subtask.c.status, agent.c.hostname, subtask.c.update_time)
        .select_from(joined)
        .where(condition)
        .order_by(*order)
        .offset(passed)
        .limit(page[1])
    ).all()
    items = [
        {
            "task_id": task_id,
            "agent_id": row.agent_id,
            "status": row.status,
            "hostname": row.hostname or "",
            "update_time": row.update_time,
        }
        for row in rows
    ]
    starts = starts_of(page[0], [(row.agent_id,) for row in rows])
    return Found(total, items, starts)


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
    condition = (task.c.approval == "waiting") & (task.c.status == CREATED)
    total = connection.execute(select(func.count()).select_from(task).where(condition)).scalar_one()
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
