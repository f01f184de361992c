"""Queries that create and control tasks. They take a connection and block."""

import random
import string
from collections.abc import Sequence
from typing import Any

import msgspec
from attrs import frozen
from sqlalchemy import Connection, insert, select

from elkeid.manager.store.schema import (
    subtask,
    task,
    task_approval,
    task_body,
    task_job,
)
from elkeid.manager.store.task_rows import CANCELLED, CREATED, FINISHED, RUNNING, lock_task

SLICE = 2_000
"""Subtasks written in one transaction: some 20 ms."""

WAITING, APPROVED, REFUSED = "waiting", "approved", "refused"
"""Of a task that needs a second person."""

Data = dict[str, Any]


class ControlRefused(Exception):
    """What was asked of a task cannot be done now; the text says why."""


@frozen(kw_only=True)
class NewTask:
    """A task to be created.

    Attributes:
        data: what agents are sent, JSON as documents show it.
        selection: whom, JSON.
        awaits_result: whether a subtask ends only when its agent has answered.
        result_seconds: for that answer.
        wait_seconds: for an agent to be connected, from each run on.
        resends: how often a command may be sent again when it is not known whether it arrived.
    """

    task_type: str
    task_name: str
    action: str
    task_user: str
    tag: str
    data: Data
    selection: Data
    task_data_type: int | None
    awaits_result: bool
    result_seconds: float
    wait_seconds: float
    resends: int
    allow_empty: bool = False
    drops_confirmed: bool = False
    approval: str = ""


def new_task_id(now: float) -> str:
    """Nanoseconds and six letters, as upstream's."""
    letters = "".join(random.SystemRandom().choices(string.ascii_letters, k=6))
    return f"{int(now * 1e9)}{letters}"


def create_task(connection: Connection, new: NewTask, now: float) -> tuple[int, str]:
    """Store a task whose hosts are still to be selected.

    Returns:
        Its number and its id.
    """
    return _insert(connection, new, now, new_task_id(now), selecting=True, quick=False)


def _insert(
    connection: Connection, new: NewTask, now: float, task_id: str, *, selecting: bool, quick: bool
) -> tuple[int, str]:
    result = connection.execute(
        insert(task).values(
            task_id=task_id,
            task_type=new.task_type,
            task_name=new.task_name,
            action=new.action,
            task_user=new.task_user,
            tag=new.tag,
            task_data_type=new.task_data_type,
            quick=quick,
            awaits_result=new.awaits_result,
            result_seconds=new.result_seconds,
            wait_seconds=new.wait_seconds,
            resends=new.resends,
            allow_empty=new.allow_empty,
            drops_confirmed=new.drops_confirmed,
            status=RUNNING if quick else CREATED,
            open=True,
            paused="",
            approval=new.approval,
            selecting=selecting,
            selected_upto="",
            id_count=0,
            distributed=0,
            create_time=int(now),
            update_time=int(now),
        )
    )
    key = result.inserted_primary_key
    assert key is not None
    number = int(key[0])
    connection.execute(
        insert(task_body).values(
            task=number,
            data=msgspec.json.encode(new.data).decode(),
            selection=msgspec.json.encode(new.selection).decode(),
        )
    )
    return number, task_id


@frozen
class Quick:
    """One host that is about to be sent a task.

    Attributes:
        token: what its result comes back by.
        sent_to: HTTP address of its AC.
        slice_id: see `task_work.begin_slice`.
    """

    agent_id: str
    token: str
    sent_to: str
    slice_id: str


def create_quick(connection: Connection, new: NewTask, to: Quick, now: float) -> tuple[int, str]:
    """Store a task for one host that is about to be sent; see `task_work.begin_slice`."""
    number, task_id = _insert(connection, new, now, f"task-{to.token}", selecting=False, quick=True)
    connection.execute(
        insert(subtask).values(
            task=number,
            agent_id=to.agent_id,
            status=RUNNING,
            token=to.token,
            slice=to.slice_id,
            sends=1,
            sent_to=to.sent_to,
            started_at=int(now),
            update_time=int(now),
        )
    )
    locked = lock_task(connection, number, now)
    assert locked is not None
    locked.values |= {"id_count": 1, "distributed": 1}
    locked.move(None, RUNNING, 1)
    locked.save(connection)
    return number, task_id


def add_subtasks(
    connection: Connection,
    number: int,
    after: str,
    ids: Sequence[str],
    now: float,
    *,
    last: bool,
    approval_hosts: int,
) -> bool:
    """Give a task its next hosts.

    Args:
        connection: within a transaction.
        number: the task's.
        after: the last host that it had when these were selected.
        ids: the next ones, ascending.
        now: unix seconds.
        last: whether there are no more.
        approval_hosts: a task of more needs a second person; 0: none does.

    Returns:
        Whether they were added; not if another Manager was faster, or the task was cancelled.
    """
    locked = lock_task(connection, number, now)
    if locked is None or not locked.row.selecting or locked.row.selected_upto != after:
        return False
    if ids:
        row = {"task": number, "status": CREATED, "update_time": int(now)}
        connection.execute(insert(subtask), [{**row, "agent_id": each} for each in ids])
        locked.move(None, CREATED, len(ids))
        locked.values["id_count"] = locked.row.id_count + len(ids)
        locked.values["selected_upto"] = ids[-1]
    if last:
        locked.values["selecting"] = False
        if not locked.row.approval and 0 < approval_hosts < locked.get("id_count"):
            locked.values["approval"] = WAITING
    locked.save(connection)
    return True


def number_of(connection: Connection, task_id: str) -> int | None:
    """The number of the task with this id."""
    return connection.execute(select(task.c.number).where(task.c.task_id == task_id)).scalar()


@frozen(kw_only=True)
class Run:
    """What a run asks for: a part of all hosts, or so many, and how many at once."""

    percent: float | None = None
    count: int | None = None
    concurrence: int


@frozen
class Begun:
    """A run that has begun."""

    job_id: str
    count: int


def run_task(connection: Connection, number: int, run: Run, now: float) -> Begun:
    """Release the next hosts of a task: from now on they are sent it.

    Raises:
        ControlRefused: there is nothing to release, or it must not be.
    """
    locked = lock_task(connection, number, now)
    if locked is None:
        raise ControlRefused("there is no such task")
    row = locked.row
    if row.selecting:
        raise ControlRefused("the task is still being prepared; try again in a moment")
    if row.status in (FINISHED, CANCELLED):
        raise ControlRefused(f"the task is {row.status}")
    if row.approval == WAITING:
        raise ControlRefused(NEEDS_APPROVAL)
    left = row.id_count - row.distributed
    if left <= 0:
        raise ControlRefused("every host of the task has been released already")
    wanted = run.count if run.percent is None else int(row.id_count * run.percent)
    count = min(max(1, wanted or 0), left)
    before = connection.execute(
        select(task_job.c.upto).where(task_job.c.task == number).order_by(task_job.c.number.desc())
    ).scalar()
    upto = None
    if count < left:
        upto = connection.execute(
            select(subtask.c.agent_id)
            .where(subtask.c.task == number, subtask.c.agent_id > (before or ""))
            .order_by(subtask.c.agent_id)
            .offset(count - 1)
            .limit(1)
        ).scalar_one()
    job_id = _new_job_id(connection, row.task_type, now)
    connection.execute(
        insert(task_job).values(
            job_id=job_id,
            task=number,
            count=count,
            concurrence=run.concurrence,
            cursor=before or "",
            upto=upto,
            drained=False,
            expired=False,
            created_at=int(now),
            deadline=now + row.wait_seconds,
        )
    )
    locked.values |= {"distributed": row.distributed + count, "status": RUNNING}
    locked.save(connection)
    return Begun(job_id, count)


def _new_job_id(connection: Connection, task_type: str, now: float) -> str:
    """The type and nanoseconds, as upstream's; of runs in the same nanosecond, later ones."""
    moment = int(now * 1e9)
    while True:
        job_id = f"id-{task_type}-{moment}"
        taken = select(task_job.c.number).where(task_job.c.job_id == job_id)
        if connection.execute(taken).first() is None:
            return job_id
        moment += 1


NEEDS_APPROVAL = "a second person must approve this task first: POST /api/v1/agent/approveTask"


def cancel_task(connection: Connection, number: int, now: float) -> None:
    """Let nothing more of a task be sent; what was sent goes on to its end.

    Raises:
        ControlRefused: it has ended.
    """
    locked = lock_task(connection, number, now)
    if locked is None:
        raise ControlRefused("there is no such task")
    if locked.row.status == FINISHED:
        raise ControlRefused("the task is finished")
    locked.values |= {"status": CANCELLED, "selecting": False, "paused": ""}
    locked.save(connection)


def pause_task(connection: Connection, number: int, reason: str, now: float) -> None:
    """Send no more of a task until it is resumed.

    Raises:
        ControlRefused: it is not running.
    """
    locked = lock_task(connection, number, now)
    if locked is None or locked.row.status != RUNNING:
        raise ControlRefused("only a running task can be paused")
    locked.values["paused"] = reason
    locked.save(connection)


def resume_task(connection: Connection, number: int, confirm_drops: bool, now: float) -> None:
    """Go on with a paused task.

    Raises:
        ControlRefused: it is not paused.
    """
    locked = lock_task(connection, number, now)
    if locked is None or locked.row.status != RUNNING or not locked.row.paused:
        raise ControlRefused("the task is not paused")
    locked.values["paused"] = ""
    if confirm_drops:
        locked.values["drops_confirmed"] = True
    locked.save(connection)


@frozen
class Decided:
    """What a second person said."""

    username: str
    approved: bool
    reason: str


def decide_approval(connection: Connection, number: int, decision: Decided, now: float) -> None:
    """Note a second person's word on a task; a refusal cancels it.

    Raises:
        ControlRefused: it does not wait for one, or this is its creator's.
    """
    locked = lock_task(connection, number, now)
    if locked is None:
        raise ControlRefused("there is no such task")
    if locked.row.approval != WAITING:
        raise ControlRefused("the task does not wait for approval")
    if locked.row.task_user == decision.username:
        raise ControlRefused("who created a task cannot approve or refuse it: cancel it instead")
    connection.execute(
        insert(task_approval).values(
            task=number,
            username=decision.username,
            approved=decision.approved,
            reason=decision.reason,
            at=int(now),
        )
    )
    locked.values["approval"] = APPROVED if decision.approved else REFUSED
    if not decision.approved:
        locked.values |= {"status": CANCELLED, "selecting": False}
    locked.save(connection)


def cancel_subtasks(connection: Connection, number: int, now: float) -> int:
    """Withdraw the next subtasks of a cancelled task that were not sent.

    Returns:
        How many; 0 when there are none left.
    """
    locked = lock_task(connection, number, now, skip_locked=True)
    if locked is None or locked.row.status != CANCELLED:
        return 0
    ids = (
        connection.execute(
            select(subtask.c.agent_id)
            .where(subtask.c.task == number, subtask.c.status == CREATED)
            .limit(SLICE)
        )
        .scalars()
        .all()
    )
    locked.set_subtasks(connection, ids, status=CANCELLED, due=None, update_time=int(now))
    locked.move(CREATED, CANCELLED, len(ids))
    locked.save(connection)
    return len(ids)
