"""Queries on exported files. Every function takes a connection and blocks."""

from collections.abc import Collection

from attrs import asdict, frozen
from sqlalchemy import Connection, delete, insert, select

from elkeid.manager.store.schema import export_file


@frozen
class Export:
    """An exported file."""

    name: str
    user_id: int  # whose it is
    size: int  # bytes
    created_at: int  # unix seconds
    expires_at: int


def add_export(connection: Connection, export: Export) -> None:
    """Note a file."""
    connection.execute(insert(export_file).values(asdict(export)))


def find_export(connection: Connection, name: str, now: float) -> Export | None:
    """The file of this name, unless it has expired."""
    row = connection.execute(
        select(export_file).where(export_file.c.name == name, export_file.c.expires_at > now)
    ).first()
    return None if row is None else Export(*row)


def all_exports(connection: Connection) -> list[Export]:
    """Every file, the oldest first."""
    rows = connection.execute(select(export_file).order_by(export_file.c.created_at))
    return [Export(*row) for row in rows]


def remove_exports(connection: Connection, names: Collection[str]) -> None:
    """Forget files."""
    for name in names:
        connection.execute(delete(export_file).where(export_file.c.name == name))
