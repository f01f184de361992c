"""``/api/v1/audit``: the audit log, for administrators.

Source: docs/protocol.md, "Manager API", "Audit log".
"""

from typing import Annotated

import msgspec

from elkeid.manager.audit import clean
from elkeid.manager.pages import PAGE_SIZE_LIMIT
from elkeid.manager.roles import ADMINS
from elkeid.manager.store.audit import Told, entries, head_of
from elkeid.manager.store.store import Store
from elkeid.web.answers import Enveloped
from elkeid.web.routes import AuthKind, Call, Routes

TIME_LIMIT = 1 << 40
"""Unix seconds; far beyond any."""

_Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_LIMIT)]


class AuditQuery(msgspec.Struct):
    """Which entries: of a user, of a path, from a time to before another (unix seconds).

    ``before`` is the ``next`` of the page before.
    """

    before: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)] | None = None
    page_size: Annotated[int, msgspec.Meta(ge=1, le=PAGE_SIZE_LIMIT)] = 100
    user: Annotated[str, msgspec.Meta(max_length=80)] | None = None
    path: Annotated[str, msgspec.Meta(max_length=512)] | None = None
    since: _Time | None = None
    until: _Time | None = None


class AuditRow(msgspec.Struct):
    """One entry, with what became of it; None is what is not known.

    ``kind`` is ``call``, ``refused`` or ``checkpoint``. ``body`` is JSON without secrets.
    """

    seq: int
    time_ms: int
    kind: str
    user: str
    level: int | None
    address: str
    method: str
    path: str
    status: int | None
    code: int | None
    objects: list[str]
    body: str
    note: str
    hash: str


class AuditHead(msgspec.Struct):
    """The newest entry of all, as ``elkeid audit verify --head SEQ:HASH`` takes it."""

    seq: int
    hash: str


class BesideAudit(msgspec.Struct):
    """What stands beside the entries; ``next`` is None on the last page."""

    head: AuditHead
    next: int | None


class AuditRoutes:
    """Reading the log.

    Args:
        store: open.
    """

    routes = Routes("/api/v1", auth=AuthKind.TOKEN)

    def __init__(self, store: Store) -> None:
        self._store = store

    @routes.get(
        "/audit",
        query=AuditQuery,
        levels=ADMINS,
        answer=list[AuditRow],
        beside=BesideAudit,
        summary="Show who did what, the newest first",
    )
    async def show(self, call: Call[AuditQuery, None]) -> object:
        """A page goes on where the one before ended, whatever was written in between."""
        asked = call.query
        found = await self._store.read(
            entries,
            before=asked.before,
            limit=asked.page_size,
            username=None if asked.user is None else clean(asked.user, 80),
            path=None if asked.path is None else clean(asked.path, 512),
            since_ms=None if asked.since is None else asked.since * 1000,
            until_ms=None if asked.until is None else asked.until * 1000,
        )
        head = await self._store.read(head_of)
        following = found[-1].link.seq if len(found) == asked.page_size else None
        beside = {"head": AuditHead(head.seq, head.hash), "next": following}
        return Enveloped([_row(told) for told in found], beside)


def _row(told: Told) -> AuditRow:
    entry = told.link.entry
    return AuditRow(
        seq=told.link.seq,
        time_ms=entry.at_ms,
        kind=entry.kind,
        user=entry.username,
        level=entry.level,
        address=entry.peer,
        method=entry.method,
        path=entry.path,
        status=told.status,
        code=told.code,
        objects=list(told.objects),
        body=entry.body,
        note=told.note,
        hash=told.link.hash,
    )
