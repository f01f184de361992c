"""Queries on the time until which things have aged. They take a connection and block."""

from sqlalchemy import Connection, select, update

from elkeid.manager.store.schema import aging
from elkeid.manager.store.upsert import insert_missing

_ONE = 1
"""The only row's id."""


def aged_until(connection: Connection, now: float) -> float:
    """Unix seconds; in a new database ``now``, which is kept then."""
    connection.execute(insert_missing(connection, aging, ["id"]), {"id": _ONE, "until": now})
    kept: float = connection.execute(select(aging.c.until).where(aging.c.id == _ONE)).scalar_one()
    return kept


def set_aged_until(connection: Connection, until: float) -> None:
    """Keep a later time, in unix seconds; of several Managers' the latest stands."""
    later = aging.c.id == _ONE, aging.c.until < until
    connection.execute(update(aging).where(*later).values(until=until))
