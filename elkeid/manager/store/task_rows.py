"""Subtasks' states, and the one way to change them: with the task's row locked, and counted.

Every change of a subtask's state happens while its task's row is locked by the same transaction,
so the counters in that row are exact, and two Managers cannot both move one subtask. Who locks
several tasks does so in the order of their numbers.

    created -> running -> succeed -> result_succeed | result_failed
    created -> cancelled | failed        running -> created (surely not sent, or sent again)
    running -> failed | result_succeed | result_failed (a result may come before its send is noted)
"""

from collections.abc import Sequence
from typing import Any

from attrs import Factory, define
from sqlalchemy import Connection, select, update

from elkeid.manager.store.bulk import by_keys, update_same
from elkeid.manager.store.schema import subtask, task

CREATED = "created"
RUNNING = "running"
SUCCEED = "succeed"
FAILED = "failed"
RESULT_SUCCEED = "result_succeed"
RESULT_FAILED = "result_failed"
CANCELLED = "cancelled"

STATES = (CREATED, RUNNING, SUCCEED, FAILED, RESULT_SUCCEED, RESULT_FAILED, CANCELLED)
"""Of a subtask."""

FINISHED = "finished"
"""Of a task, beside ``created``, ``running`` and ``cancelled``."""


@define
class LockedTask:
    """A task's row, locked until the transaction ends, and what changes in it.

    Attributes:
        row: as it was when it was locked.
        now: unix seconds.
        counts: subtasks by state, with the moves so far.
        values: further columns to set.
    """

    row: Any
    now: float
    counts: dict[str, int]
    values: dict[str, Any] = Factory(dict)

    @property
    def number(self) -> int:
        """Of the task."""
        number: int = self.row.number
        return number

    def get(self, column: str) -> Any:
        """The value of a column as it will be."""
        return self.values.get(column, getattr(self.row, column))

    def move(self, before: str | None, after: str, count: int) -> None:
        """Note that subtasks went from one state (None: from nowhere) to another."""
        if before is not None:
            self.counts[before] -= count
        self.counts[after] += count

    def set_subtasks(self, connection: Connection, ids: Sequence[str], **values: Any) -> None:
        """Set columns of some of its subtasks; see `move` for what is counted."""
        task_number = {"task": self.number}
        update_same(connection, subtask, ids, values, key="agent_id", beside=task_number)

    def save(self, connection: Connection) -> None:
        """Write what changed; a task whose last subtask has ended ends with it."""
        counts = self.counts
        values: dict[str, Any] = {f"n_{name}": count for name, count in counts.items()}
        values = {key: value for key, value in values.items() if value != getattr(self.row, key)}
        values |= self.values
        under_way = counts[CREATED] + counts[RUNNING]
        if self.row.awaits_result:
            under_way += counts[SUCCEED]
        ended = under_way == 0 and not self.get("selecting")
        if ended and self.get("status") == RUNNING:
            values["status"] = FINISHED
        status = values.get("status", self.row.status)
        is_open = bool(
            self.get("selecting") or status == RUNNING or (status == CANCELLED and not ended)
        )
        if is_open != self.row.open:
            values["open"] = is_open
        if values:
            values["update_time"] = int(self.now)
            connection.execute(update(task).where(task.c.number == self.number).values(values))


def lock_task(
    connection: Connection, number: int, now: float, *, skip_locked: bool = False
) -> LockedTask | None:
    """Lock a task until the transaction ends.

    Args:
        connection: within a transaction.
        number: the task's.
        now: unix seconds.
        skip_locked: rather give up than wait for another Manager.

    Returns:
        None if there is no such task, or it is locked and that was not to be waited for.
    """
    by_keys(connection)
    row = connection.execute(
        select(task).where(task.c.number == number).with_for_update(skip_locked=skip_locked)
    ).first()
    if row is None:
        return None
    return LockedTask(row, now, {name: getattr(row, f"n_{name}") for name in STATES})
