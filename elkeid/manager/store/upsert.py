"""INSERT that meets rows which are there already, for either database.

With several Managers a row may appear between a look and an insert; only the database can decide.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_missing(connection: Connection, table: Table, keys: Sequence[str]) -> Insert:
    """``INSERT ... ON CONFLICT (keys) DO NOTHING``; its rowcount tells how many were new.

    Args:
        connection: tells which database it is for.
        table: where to.
        keys: columns of the unique constraint in question.
    """
    made: Insert = _insert(connection, table).on_conflict_do_nothing(index_elements=list(keys))
    return made


def upsert(
    connection: Connection,
    table: Table,
    keys: Sequence[str],
    changes: Sequence[str] | Mapping[str, Any],
    where: ColumnElement[bool] | None = None,
) -> Insert:
    """``INSERT ... ON CONFLICT (keys) DO UPDATE SET ... WHERE ...``.

    Args:
        connection: tells which database it is for.
        table: where to.
        keys: columns of the unique constraint in question.
        changes: columns that take the inserted row's values, or values by column.
        where: which rows that are there already to change; all by default. The row is
            ``table.c``; see `excluded` for the one that was to be inserted.
    """
    statement = _insert(connection, table)
    if not isinstance(changes, Mapping):
        changes = {name: statement.excluded[name] for name in changes}
    made: Insert = statement.on_conflict_do_update(
        index_elements=list(keys), set_=dict(changes), where=where
    )
    return made


def excluded(connection: Connection, table: Table, column: str) -> ColumnElement[Any]:
    """In `upsert`: the value that was to be inserted."""
    value: ColumnElement[Any] = _insert(connection, table).excluded[column]
    return value


def _insert(connection: Connection, table: Table) -> Any:
    kinds: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
    # Without returning the new rows, the count of them is at hand.
    return kinds[connection.dialect.name](table).inline().execution_options(preserve_rowcount=True)
