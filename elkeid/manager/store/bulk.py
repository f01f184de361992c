"""Statements over many rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Table,
    any_,
    bindparam,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from elkeid.manager.store.upsert import insert_missing

T = TypeVar("T")

IDS_PER_STATEMENT = 500
"""Ids bound in one statement; SQLite takes 32,766 parameters."""


def sliced(some: Sequence[T]) -> Iterator[Sequence[T]]:
    """Some for one statement each, in their order."""
    for start in range(0, len(some), IDS_PER_STATEMENT):
        yield some[start : start + IDS_PER_STATEMENT]


def by_keys(connection: Connection) -> None:
    """Let this transaction's statements find rows by keys, whatever the server thinks of tables.

    PostgreSQL knows nothing of a table that was filled a moment ago and would rather read it
    whole, and it keeps such a plan. The cost is one round trip.
    """
    if connection.dialect.name == "postgresql":
        names = "enable_seqscan", "enable_hashjoin", "enable_mergejoin"
        connection.execute(select(*(func.set_config(name, "off", True) for name in names)))


def is_among(connection: Connection, column: Column[Any], values: Sequence[Any]) -> Any:
    """The condition that a column has one of some values.

    PostgreSQL gets them as one array: a statement with hundreds of parameters takes longer to
    read than to run.
    """
    if connection.dialect.name == "postgresql":
        return column == any_(bindparam(None, values, type_=ARRAY(column.type), unique=True))
    return column.in_(values)


def update_same(
    connection: Connection,
    table: Table,
    ids: Sequence[Any],
    values: Mapping[str, Any],
    *,
    key: str,
    beside: Mapping[str, Any],
) -> None:
    """Set columns of rows to the same values.

    Args:
        connection: that writes.
        table: whose rows.
        ids: of the rows, in ``key``.
        values: column -> value.
        key: column that tells rows apart.
        beside: the other columns of the primary key, which all of the rows have in common.
    """
    for some in sliced(ids):
        rows = [{**beside, key: each} for each in some]
        found, arrays = matching(connection, table, [key, *beside], rows)
        connection.execute(update(table).where(*found).values(values), arrays)


def matching(
    connection: Connection, table: Table, names: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[ColumnElement[bool]], dict[str, list[Any]]]:
    """Conditions that find rows by the columns of a key; and parameters for the statement.

    They find all that have what one of ``rows`` has, and on SQLite also what has each column's
    value of a different one.

    Args:
        connection: where they are for.
        table: whose rows.
        names: of the columns, which are the first ones of an index.
        rows: at most `IDS_PER_STATEMENT`.
    """
    if connection.dialect.name == "postgresql":
        # Joined by the whole key: by a condition on each column it may walk along another index
        # for each row, or look for each combination.
        given, arrays = _given(table, names, rows)
        return [table.c[name] == given.c[name] for name in names], arrays
    columns = {name: list({row[name] for row in rows}) for name in names}
    return [table.c[name].in_(values) for name, values in columns.items()], {}


def _given(
    table: Table, names: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> tuple[Any, dict[str, list[Any]]]:
    """Rows as a table of PostgreSQL's, made of an array for each column; and the arrays."""
    given = func.unnest(
        *(bindparam(f"b_{name}", type_=ARRAY(table.c[name].type)) for name in names)
    ).table_valued(*(Column(name, table.c[name].type) for name in names))
    arrays = {f"b_{name}": [row[name] for row in rows] for name in names}
    return given.render_derived(name="given"), arrays


def update_rows(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    key: str,
    columns: Sequence[str],
    where: Mapping[str, str] | None = None,
) -> int:
    """Set columns of rows, each by its key and with values of its own.

    PostgreSQL takes all of them as arrays in one statement, which costs it a fifth of as many
    statements; SQLite has no round trips to save.

    Args:
        connection: that writes.
        table: whose rows.
        rows: with the key, the columns, and what ``where`` compares with.
        key: column that tells rows apart.
        columns: to set.
        where: column -> ``=`` or ``<``: rows are changed only where this holds between what is
            stored and what ``rows`` say.

    Returns:
        How many rows were changed.
    """
    if not rows:
        return 0
    compared = where or {}
    names = list(dict.fromkeys([key, *columns, *compared]))
    if connection.dialect.name == "postgresql":
        given, arrays = _given(table, names, rows)
        statement = update(table).where(table.c[key] == given.c[key])
        for name, relation in compared.items():
            statement = statement.where(table.c[name].op(relation)(given.c[name]))
        statement = statement.values({name: given.c[name] for name in columns})
        return connection.execute(statement, arrays).rowcount
    statement = update(table).where(table.c[key] == bindparam(f"b_{key}"))
    for name, relation in compared.items():
        statement = statement.where(table.c[name].op(relation)(bindparam(f"w_{name}")))
    statement = statement.values({name: bindparam(f"b_{name}") for name in columns})
    values = [
        {f"b_{name}": row[name] for name in (key, *columns)}
        | {f"w_{name}": row[name] for name in compared}
        for row in rows
    ]
    return connection.execute(statement, values).rowcount


def add_missing(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, keys: Sequence[str]
) -> None:
    """Add rows but those that are there already.

    Args:
        connection: that writes.
        table: where to.
        rows: all with the same columns.
        keys: columns of the unique constraint in question.
    """
    statement = insert_missing(connection, table, keys)
    for some in sliced(rows):
        if connection.dialect.name == "postgresql":
            names = list(some[0])
            given, arrays = _given(table, names, some)
            columns = select(*(given.c[name] for name in names))
            connection.execute(statement.from_select(names, columns), arrays)
        else:
            connection.execute(statement, some)
