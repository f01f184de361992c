"""Filters on tasks and subtasks: the filter language over a fixed set of columns."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    String,
    and_,
    false,
    func,
    literal,
    not_,
    null,
    or_,
    true,
)

from elkeid.manager.filter import (
    Every,
    FilterError,
    IsIn,
    Matches,
    Not,
    Orders,
    Some,
    Test,
    kind_of,
)
from elkeid.manager.store.filtersql import REGEXP, whole_bound
from elkeid.manager.store.postgres_regex import ere_of

_NUMBERS: Final = (1 << 63) - 1

Columns = Mapping[str, ColumnElement[Any]]


def where(test: Test, columns: Columns, dialect: str) -> ColumnElement[bool]:
    """The condition under which a row satisfies a test.

    Args:
        test: see `elkeid.manager.filter.parse`.
        columns: by the keys that there are.
        dialect: name of the database's.

    Raises:
        FilterError: a key is none of these.
    """
    match test:
        case Every(tests):
            return and_(true(), *(where(each, columns, dialect) for each in tests))
        case Some(tests):
            return or_(false(), *(where(each, columns, dialect) for each in tests))
        case Not(inner):
            return not_(func.coalesce(where(inner, columns, dialect), false()))
    column = column_of(str(test.path), columns)
    kind = "text" if column.type.python_type is str else "number"
    match test:
        case IsIn(values=values):
            wanted = [value for value in values if kind_of(value) == kind]
            if kind == "number":  # of columns that are whole numbers, all of them
                wanted = [int(value) for value in wanted if value == int(value)]
                wanted = [value for value in wanted if abs(value) < _NUMBERS]
            # PostgreSQL takes the column's own type for parameters, and no larger number.
            listed = [
                literal(value, BigInteger if kind == "number" else String) for value in wanted
            ]
            ways: list[ColumnElement[bool]] = [column.in_(listed)] if wanted else []
            if None in values:
                ways.append(column == null())
            return or_(false(), *ways)
        case Orders(relation=relation, bound=bound):
            if kind_of(bound) != kind:
                return false()
            if isinstance(bound, str):
                return column.op(relation)(bound)
            number = whole_bound(relation, bound, _NUMBERS)
            return column.op(relation)(literal(number, BigInteger))
        case Matches(pattern=pattern):
            if kind != "text":
                return false()
            if dialect == "sqlite":
                matches: ColumnElement[bool] = getattr(func, REGEXP)(pattern, column)
                return matches
            return column.regexp_match(ere_of(pattern))


def column_of(key: str, columns: Columns) -> ColumnElement[Any]:
    """The column with this key.

    Raises:
        FilterError: there is none; it names those that there are.
    """
    column = columns.get(key)
    if column is None:
        raise FilterError(f"{key[:64]!r} is no field here: use {', '.join(sorted(columns))}")
    return column
