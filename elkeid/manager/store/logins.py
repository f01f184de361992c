"""Queries on failed logins, which all Managers count together. They block."""

from collections.abc import Collection, Mapping

from attrs import frozen
from sqlalchemy import Connection, case, delete, select

from elkeid.manager.store.schema import login_failure
from elkeid.manager.store.upsert import upsert


@frozen
class Failures:
    """Failed logins in a row, and when the last was, unix seconds."""

    count: int
    last_at: int


def failures_of(connection: Connection, keys: Collection[str]) -> dict[str, Failures]:
    """What is remembered of these keys."""
    query = select(login_failure.c.key, login_failure.c.count, login_failure.c.last_at).where(
        login_failure.c.key.in_(keys)
    )
    return {key: Failures(count, last_at) for key, count, last_at in connection.execute(query)}


def note_failure(
    connection: Connection, keys: Mapping[str, str], now: int, forget_before: int
) -> None:
    """Count a failed login.

    Args:
        connection: within a transaction.
        keys: what is counted -> the subject that a forgiveness would name.
        now: unix seconds.
        forget_before: unix seconds; where the last failure is no newer, counting starts anew.
    """
    table = login_failure
    again = case((table.c.last_at <= forget_before, 1), else_=table.c.count + 1)
    rows = [
        {"key": key, "subject": subject, "count": 1, "last_at": now}
        for key, subject in sorted(keys.items())
    ]
    if rows:
        changes = {"count": again, "last_at": now}
        connection.execute(upsert(connection, table, ["key"], changes), rows)


def forget_failures(connection: Connection, keys: Collection[str]) -> None:
    """After a success."""
    connection.execute(delete(login_failure).where(login_failure.c.key.in_(keys)))


def purge_failures(connection: Connection, before: int) -> None:
    """Forget what happened before then, unix seconds."""
    connection.execute(delete(login_failure).where(login_failure.c.last_at < before))
