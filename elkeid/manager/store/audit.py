"""Queries on the audit log. Every function takes a connection and blocks.

The log is a chain: the hash of an entry covers its content and the hash of the one before, so
that an entry which was changed, removed or put in between shows. Whoever appends holds the row
of ``audit_head``, so that several Managers append one after the other.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec
from attrs import evolve, field, frozen
from sqlalchemy import Connection, Row, delete, insert, select, update

from elkeid.manager.store.schema import audit, audit_head

CALL = "call"
"""About to be carried out; with a status, what was carried out in the same transaction."""

OUTCOME = "outcome"
"""What became of the call ``of``."""

REFUSED = "refused"
"""Not carried out."""

CHECKPOINT = "checkpoint"
"""Older entries were removed: ``body`` names the last one, whose hash the chain goes on from."""

NO_HASH = "0" * 64
"""What the first entry has for the hash of the one before."""

_encode = msgspec.json.Encoder(order="sorted").encode


@frozen
class Entry:
    """One thing that happened. ``at_ms`` is unix milliseconds; None is what is not known."""

    at_ms: int
    kind: str
    username: str
    peer: str
    method: str
    path: str
    level: int | None = None
    status: int | None = None
    code: int | None = None
    objects: Sequence[str] = ()
    body: str = ""
    note: str = ""
    of: int | None = None


@frozen
class Head:
    """The newest entry: its number and hash."""

    seq: int
    hash: str


@frozen
class Link:
    """An entry in its place in the chain."""

    seq: int
    prev: str
    hash: str
    entry: Entry = field(repr=False)

    def digest(self) -> str:
        """What ``hash`` must be."""
        return _digest(self.seq, self.prev, self.entry)


@frozen
class Told:
    """An entry as it is shown: with what became of it."""

    link: Link
    status: int | None
    code: int | None
    objects: tuple[str, ...]
    note: str


@frozen
class Removed:
    """What a checkpoint says: up to this entry all were removed."""

    through: int
    hash: str


def _digest(seq: int, prev: str, entry: Entry) -> str:
    content = {
        "seq": seq,
        "prev": prev,
        "at_ms": entry.at_ms,
        "kind": entry.kind,
        "of": entry.of,
        "username": entry.username,
        "level": entry.level,
        "peer": entry.peer,
        "method": entry.method,
        "path": entry.path,
        "status": entry.status,
        "code": entry.code,
        "objects": list(entry.objects),
        "body": entry.body,
        "note": entry.note,
    }
    return sha256(_encode(content)).hexdigest()


def append(connection: Connection, entry: Entry) -> Head:
    """Append an entry; others who append wait until this transaction ends."""
    locked = select(audit_head.c.seq, audit_head.c.hash).where(audit_head.c.id == 1)
    before = connection.execute(locked.with_for_update()).one()
    seq = before.seq + 1
    head = Head(seq, _digest(seq, before.hash, entry))
    connection.execute(
        insert(audit).values(
            seq=seq,
            at_ms=entry.at_ms,
            kind=entry.kind,
            of=entry.of,
            username=entry.username,
            level=entry.level,
            peer=entry.peer,
            method=entry.method,
            path=entry.path,
            status=entry.status,
            code=entry.code,
            objects=_encode(list(entry.objects)).decode(),
            body=entry.body,
            note=entry.note,
            prev=before.hash,
            hash=head.hash,
        )
    )
    connection.execute(
        update(audit_head).where(audit_head.c.id == 1).values(seq=seq, hash=head.hash)
    )
    return head


def head_of(connection: Connection) -> Head:
    """The newest entry, as appenders know it."""
    row = connection.execute(select(audit_head.c.seq, audit_head.c.hash)).one()
    return Head(row.seq, row.hash)


def _link(row: Row[Any]) -> Link:
    entry = Entry(
        at_ms=row.at_ms,
        kind=row.kind,
        username=row.username,
        peer=row.peer,
        method=row.method,
        path=row.path,
        level=row.level,
        status=row.status,
        code=row.code,
        objects=_objects(row.objects),
        body=row.body,
        note=row.note,
        of=row.of,
    )
    return Link(row.seq, row.prev, row.hash, entry)


def _objects(text: str) -> tuple[str, ...]:
    try:
        return tuple(msgspec.json.decode(text, type=list[str]))
    except msgspec.DecodeError:
        return (text,)  # changed by somebody: the hash will tell


def links_after(connection: Connection, seq: int, limit: int) -> list[Link]:
    """Entries in the order of the chain."""
    query = select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(limit)
    return [_link(row) for row in connection.execute(query)]


def removals(connection: Connection) -> list[Removed]:
    """What the checkpoints that are there say was removed, the newest first."""
    query = select(audit.c.body).where(audit.c.kind == CHECKPOINT).order_by(audit.c.seq.desc())
    found = []
    for (body,) in connection.execute(query):
        try:
            found.append(msgspec.json.decode(body, type=_Checkpoint).removed())
        except msgspec.DecodeError:
            continue  # changed by somebody: the hash will tell
    return found


class _Checkpoint(msgspec.Struct):
    through: int
    hash: str

    def removed(self) -> Removed:
        return Removed(self.through, self.hash)


def entries(
    connection: Connection,
    *,
    before: int | None,
    limit: int,
    username: str | None = None,
    path: str | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
) -> list[Told]:
    """Entries but outcomes, the newest first, with what became of them.

    Args:
        connection: reads.
        before: only entries with a smaller number.
        limit: at most so many.
        username: only this user's.
        path: only those of this path.
        since_ms: unix milliseconds; not older.
        until_ms: unix milliseconds; older than that.
    """
    query = select(audit).where(audit.c.kind != OUTCOME)
    if before is not None:
        query = query.where(audit.c.seq < before)
    if username is not None:
        query = query.where(audit.c.username == username)
    if path is not None:
        query = query.where(audit.c.path == path)
    if since_ms is not None:
        query = query.where(audit.c.at_ms >= since_ms)
    if until_ms is not None:
        query = query.where(audit.c.at_ms < until_ms)
    links = [
        _link(row) for row in connection.execute(query.order_by(audit.c.seq.desc()).limit(limit))
    ]
    outcomes: dict[int, Any] = {}
    numbers = [link.seq for link in links if link.entry.status is None]
    if numbers:
        found = select(audit.c.of, audit.c.status, audit.c.code, audit.c.objects, audit.c.note)
        for row in connection.execute(found.where(audit.c.of.in_(numbers))):
            outcomes[row.of] = row
    return [_told(link, outcomes.get(link.seq)) for link in links]


def _told(link: Link, outcome: Any) -> Told:
    entry = link.entry
    if outcome is None:
        return Told(link, entry.status, entry.code, tuple(entry.objects), entry.note)
    more = [each for each in _objects(outcome.objects) if each not in entry.objects]
    return Told(
        link, outcome.status, outcome.code, (*entry.objects, *more), entry.note or outcome.note
    )


def remove_before(connection: Connection, at_ms: int, limit: int, checkpoint: Entry) -> int:
    """Remove the oldest entries, and say so in the log.

    What is older than ``at_ms`` goes, up to the first entry that is not. An entry of a time that
    has not come yet is of a clock that ran ahead: it is as old as what follows it, so it goes
    with the next entry that is old, and keeps nothing that follows it. Only such entries are
    doubted: one of a clock that was behind must not make old what was written before it.

    Args:
        connection: within a transaction.
        at_ms: unix milliseconds.
        limit: at most so many.
        checkpoint: the entry that is appended, without its body; its time is now.

    Returns:
        How many were removed.
    """
    locked = select(audit_head.c.seq).where(audit_head.c.id == 1)
    connection.execute(locked.with_for_update()).one()
    last = _last_old(connection, at_ms, checkpoint.at_ms, limit)
    if last is None:
        return 0
    its_hash = connection.execute(select(audit.c.hash).where(audit.c.seq == last)).scalar_one()
    body = _encode({"through": last, "hash": its_hash}).decode()
    append(connection, evolve(checkpoint, kind=CHECKPOINT, body=body))
    return connection.execute(delete(audit).where(audit.c.seq <= last)).rowcount


def _last_old(connection: Connection, at_ms: int, now_ms: int, limit: int) -> int | None:
    """The last of the oldest ``limit`` entries that may go; None if all stay."""
    of = audit.c
    seq = 0
    last: int | None = None
    for seq, made_ms in connection.execute(select(of.seq, of.at_ms).order_by(of.seq).limit(limit)):
        if made_ms < at_ms:
            last = seq
        elif made_ms <= now_ms:
            return last
    if last is not None:
        return last
    # All of these are of a clock that ran ahead: the next one of another tells how old they are.
    # By number, whatever index a database would choose for the time.
    follows = select(of.at_ms).where(of.seq > seq, of.at_ms + 0 <= now_ms)
    next_ms = connection.execute(follows.order_by(of.seq).limit(1)).scalar()
    return seq if next_ms is not None and next_ms < at_ms else None
