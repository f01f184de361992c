"""Places in lists that the database finds by an index, not by passing all rows before them."""

from collections.abc import Sequence
from typing import Any

from attrs import frozen
from sqlalchemy import ColumnElement, literal, tuple_


@frozen
class Start:
    """A place in a list, as far as is known.

    Attributes:
        offset: how many rows lie before it.
        key: of a row beside it, the values of what the list is ordered by.
        after: whether that row lies before it, not behind.
    """

    offset: int
    key: tuple[Any, ...]
    after: bool


def from_start(
    order: Sequence[ColumnElement[Any]], start: Start, *, descending: bool = False
) -> ColumnElement[bool]:
    """The condition that a row lies behind a place.

    Args:
        order: what the list is ordered by; no two rows are equal in all of it, none of it is NULL.
        start: the place.
        descending: whether by all of it from the greatest value down.
    """
    values = [literal(value, each.type) for value, each in zip(start.key, order, strict=True)]
    here: Any = order[0] if len(order) == 1 else tuple_(*order)
    there: Any = values[0] if len(order) == 1 else tuple_(*values)
    condition: ColumnElement[bool]
    if descending:
        condition = here < there if start.after else here <= there
    else:
        condition = here > there if start.after else here >= there
    return condition


def starts_of(offset: int, keys: Sequence[tuple[Any, ...]]) -> tuple[Start, ...]:
    """Where a page begins and where it ends.

    Args:
        offset: how many rows lie before the page.
        keys: of its rows.
    """
    if not keys:
        return ()
    first = Start(offset, keys[0], after=False)
    return first, Start(offset + len(keys), keys[-1], after=True)
