"""Places in lists that the database finds by an index, not by passing all rows before them."""

from collections.abc import Sequence
from typing import Any

from attrs import frozen
from sqlalchemy import ColumnElement, tuple_


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


def from_start(order: Sequence[ColumnElement[Any]], start: Start) -> ColumnElement[bool]:
    """The condition that a row lies behind a place.

    Args:
        order: what the list is ordered by, ascending; no two rows are equal in all of it.
        start: the place.
    """
    here: Any = order[0] if len(order) == 1 else tuple_(*order)
    there: Any = start.key[0] if len(order) == 1 else tuple_(*start.key)
    condition: ColumnElement[bool] = here > there if start.after else here >= there
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
