"""Queries that forget old tasks. They take a connection and block."""

from sqlalchemy import Connection, delete, select

from elkeid.manager.store.bulk import IDS_PER_STATEMENT
from elkeid.manager.store.schema import subtask, task, task_token
from elkeid.manager.store.task_rows import lock_task


def forget_some(connection: Connection, before: float, now: float) -> bool:
    """Forget the next subtasks, with tokens and results, of a task that has ended long ago.

    Args:
        connection: within a transaction.
        before: unix seconds; tasks with work left, or that changed since then, stay.
        now: unix seconds.

    Returns:
        Whether there may be more to forget.
    """
    number = connection.execute(
        select(task.c.number)
        .where(task.c.open.is_(False), task.c.update_time < before)
        .order_by(task.c.number)
        .limit(1)
    ).scalar()
    if number is None:
        return False
    locked = lock_task(connection, number, now, skip_locked=True)
    if locked is None or locked.row.open or locked.row.update_time >= before:
        return False
    rows = connection.execute(
        select(subtask.c.agent_id, subtask.c.token)
        .where(subtask.c.task == number)
        .limit(IDS_PER_STATEMENT)
    ).all()
    if rows:
        tokens = [row.token for row in rows if row.token is not None]
        if tokens:  # their results go with them
            connection.execute(delete(task_token).where(task_token.c.token.in_(tokens)))
        ids = [row.agent_id for row in rows]
        connection.execute(
            delete(subtask).where(subtask.c.task == number, subtask.c.agent_id.in_(ids))
        )
    if len(rows) < IDS_PER_STATEMENT:
        connection.execute(delete(task).where(task.c.number == number))
    return True
