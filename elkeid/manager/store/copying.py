"""All rows of a database, table by table, as text that either kind of database takes back.

A row is a JSON object a line; bytes are in base64.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, LargeBinary, Table, delete, func, insert, select

from elkeid.manager.store.schema import agent, metadata, user

ROWS = 1_000
"""Read, and written, at a time."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def tables() -> list[Table]:
    """All tables, those that others refer to first."""
    return list(metadata.sorted_tables)


def rows_of(connection: Connection, table: Table) -> Iterator[bytes]:
    """The rows of a table, a line each."""
    query = select(table).order_by(*table.primary_key.columns)
    streamed = connection.execution_options(yield_per=ROWS).execute(query)
    for row in streamed.mappings():
        yield _encode(dict(row)) + b"\n"


def add_rows(connection: Connection, table: Table, lines: Iterable[bytes]) -> int:
    """Put rows back into an empty table; says how many.

    Raises:
        msgspec.DecodeError: a line is no row.
    """
    binary = [column.name for column in table.columns if isinstance(column.type, LargeBinary)]
    count, batch = 0, list[dict[str, Any]]()
    for line in lines:
        row = _decode(line)
        for name in binary:
            if row.get(name) is not None:
                row[name] = base64.b64decode(row[name])
        batch.append(row)
        count += 1
        if len(batch) == ROWS:
            connection.execute(insert(table), batch)
            batch = []
    if batch:
        connection.execute(insert(table), batch)
    if count:
        _continue_numbers(connection, table)
    return count


def _continue_numbers(connection: Connection, table: Table) -> None:
    """Let PostgreSQL go on numbering after the rows that are there; SQLite does by itself."""
    column = table.autoincrement_column
    if connection.dialect.name != "postgresql" or column is None:
        return
    name = connection.dialect.identifier_preparer.quote(table.name)
    sequence = func.pg_get_serial_sequence(name, column.name)
    connection.execute(select(func.setval(sequence, func.max(column))).select_from(table))


def is_empty(connection: Connection) -> bool:
    """Say whether nobody has used a database: it has neither users nor agents."""
    return all(
        connection.execute(select(table).limit(1)).first() is None for table in (user, agent)
    )


def clear(connection: Connection, some: Sequence[Table]) -> None:
    """Remove the rows that migrations made, of tables in the order of `tables`."""
    for table in reversed(some):
        connection.execute(delete(table))
