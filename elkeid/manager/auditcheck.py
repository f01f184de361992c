"""Walking over the audit log, to see whether it is what was written."""

from attrs import frozen
from sqlalchemy import Connection
from sqlalchemy.exc import NoResultFound

from elkeid.manager.store.audit import NO_HASH, Head, Link, Removed, head_of, links_after, removals
from elkeid.manager.store.engine import Database

SLICE = 2_000
"""Entries read at once: some megabytes, and a read of milliseconds."""


class AuditBroken(Exception):
    """The log is not what was written; the text names the first entry at fault."""


@frozen
class Verdict:
    """A log that is whole: its first entry, how many there are, and the newest."""

    first: int
    count: int
    head: Head


def verify(database: Database, expected: tuple[int, str] | None = None) -> Verdict:
    """Check every entry, and the links between them; blocks.

    Args:
        database: open.
        expected: number and hash of an entry, noted elsewhere.

    Raises:
        AuditBroken: at the first entry that is not what was written.
    """
    with database.reading() as connection:
        noted_head = _noted_head(connection)
        links = links_after(connection, 0, SLICE)
        removed = removals(connection)
    if not links:
        if noted_head.seq or expected:
            raise AuditBroken(f"entry {noted_head.seq or 1} and all before it are gone")
        return Verdict(0, 0, noted_head)
    before = _begin(links[0], removed)
    first, count, seen = links[0].seq, 0, False
    while links:
        for link in links:
            _check(link, before)
            before = Head(link.seq, link.hash)
            count += 1
            if expected is not None and expected[0] == link.seq:
                seen = True
                if expected[1] != link.hash:
                    raise AuditBroken(f"entry {link.seq} is another one than was noted")
        with database.reading() as connection:
            links = links_after(connection, before.seq, SLICE)
            noted_head = _noted_head(connection)
    if before.seq < noted_head.seq:
        raise AuditBroken(f"entry {before.seq + 1} and all after it are gone")
    if before != noted_head:
        raise AuditBroken(f"entry {before.seq} is another one than was appended last")
    if expected is not None and not seen:
        kept = "after the last one" if expected[0] > before.seq else "older than what is kept"
        raise AuditBroken(f"entry {expected[0]} is not there: it is {kept}")
    return Verdict(first, count, before)


def _noted_head(connection: Connection) -> Head:
    """The newest entry, as appenders know it."""
    try:
        return head_of(connection)
    except NoResultFound:
        raise AuditBroken("the note of the newest entry is gone, so none can be added") from None


def _begin(link: Link, removed: list[Removed]) -> Head:
    """What the first entry must go on from."""
    if link.seq == 1:
        return Head(0, NO_HASH)
    for each in removed:
        if each.through == link.seq - 1:
            return Head(each.through, each.hash)
    raise AuditBroken(f"entry {link.seq - 1} is gone, and no checkpoint says that it was removed")


def _check(link: Link, before: Head) -> None:
    if link.seq != before.seq + 1:
        raise AuditBroken(f"entry {before.seq + 1} is gone")
    if link.prev != before.hash:
        raise AuditBroken(f"entry {link.seq} does not go on from the one before it")
    if link.digest() != link.hash:
        raise AuditBroken(f"entry {link.seq} was changed")
