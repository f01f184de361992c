"""Queries on files that agents uploaded. Every function takes a connection and blocks."""

from collections.abc import Sequence
from typing import Any

from attrs import frozen
from sqlalchemy import Connection, delete, func, insert, select

from elkeid.manager.store.schema import upload


@frozen
class Upload:
    """A stored file."""

    name: str
    md5: str
    sha256: str
    size: int
    created_at: int


def find_upload(connection: Connection, name: str) -> Upload | None:
    """The file of this name."""
    return _first(connection, upload.c.name == name)


def same_upload(connection: Connection, md5: str, sha256: str | None = None) -> Upload | None:
    """A file of this content; by MD5 alone where the content itself is not at hand."""
    where = upload.c.md5 == md5
    return _first(connection, where if sha256 is None else where & (upload.c.sha256 == sha256))


def _first(connection: Connection, where: Any) -> Upload | None:
    row = connection.execute(select(upload).where(where).order_by(upload.c.created_at)).first()
    return None if row is None else Upload(*row)


def add_upload(connection: Connection, md5: str, sha256: str, size: int, now: int) -> Upload:
    """Note a file, under a name that no other has: ``upload-<unix seconds>-<md5>.zip``."""
    while find_upload(connection, name := f"upload-{now}-{md5}.zip") is not None:
        now += 1
    stored = Upload(name, md5, sha256, size, now)
    connection.execute(
        insert(upload).values(name=name, md5=md5, sha256=sha256, size=size, created_at=now)
    )
    return stored


def upload_names(connection: Connection) -> set[str]:
    """The names of all files."""
    return set(connection.execute(select(upload.c.name)).scalars())


def uploads_bytes(connection: Connection) -> int:
    """What all files take."""
    total: int = connection.execute(select(func.coalesce(func.sum(upload.c.size), 0))).scalar_one()
    return total


def old_uploads(connection: Connection, before: float, limit: int) -> list[str]:
    """The names of files that were stored before a time, in unix seconds, the oldest first."""
    query = select(upload.c.name).where(upload.c.created_at < before)
    return list(connection.execute(query.order_by(upload.c.created_at).limit(limit)).scalars())


def remove_uploads(connection: Connection, names: Sequence[str]) -> None:
    """Forget files."""
    connection.execute(delete(upload).where(upload.c.name.in_(names)))
