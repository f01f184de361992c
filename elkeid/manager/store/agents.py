"""Queries on agents. Every function takes a connection and blocks."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import msgspec
from attrs import define, frozen
from sqlalchemy import (
    Connection,
    bindparam,
    func,
    insert,
    select,
    text,
    update,
)

from elkeid.manager.documents import AgentReport, Source, merged
from elkeid.manager.filter import EVERYTHING, Test
from elkeid.manager.store.filtersql import condition
from elkeid.manager.store.schema import agent, agent_detail

IDS_PER_STATEMENT = 500
"""Ids bound in one statement; SQLite takes 32,766 parameters."""

_HOT = (
    "hostname",
    "state",
    "version",
    "source_ip",
    "source_port",
    "first_heartbeat_time",
    "last_heartbeat_time",
)
"""Columns of ``agent`` that repeat fields of the document."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@frozen
class Page:
    """A page of agents: how many match, and the items, each a whole JSON object."""

    total: int
    items: list[msgspec.Raw]


@define
class Applied:
    """What became of a report."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    stale: int = 0  # another AC has heard the agent later
    malformed: int = 0

    def __iadd__(self, other: Self) -> Self:
        """Sum up."""
        self.added += other.added
        self.changed += other.changed
        self.unchanged += other.unchanged
        self.stale += other.stale
        self.malformed += other.malformed
        return self


def count_agents(connection: Connection) -> int:
    """How many agents there are."""
    return connection.execute(select(func.count()).select_from(agent)).scalar_one()


def _shown(row: Any, fresh_since: float) -> msgspec.Raw:
    """The stored document with what is computed when it is read."""
    if row.last_heartbeat_time < fresh_since:
        state = b"offline"
    else:
        state = b"abnormal" if row.state == "abnormal" else b"running"
    computed = b',"agent_state":"' + state + b'"'
    if row.connected is not None:
        computed += b',"connected":' + (b"true" if row.connected else b"false")
    return msgspec.Raw(row.document.encode()[:-1] + computed + b"}")


_SHOWN = (
    select(
        agent.c.agent_id,
        agent.c.state,
        agent.c.last_heartbeat_time,
        agent.c.connected,
        agent_detail.c.document,
    )
    .join_from(agent, agent_detail, agent.c.agent_id == agent_detail.c.agent_id)
    .order_by(agent.c.agent_id)
)


def find_agent(connection: Connection, agent_id: str, fresh_since: float) -> msgspec.Raw | None:
    """One agent's document, as JSON.

    Args:
        connection: any.
        agent_id: whose.
        fresh_since: unix seconds; an older last heartbeat means offline.
    """
    row = connection.execute(_SHOWN.where(agent.c.agent_id == agent_id)).first()
    return None if row is None else _shown(row, fresh_since)


def page_of_agents(
    connection: Connection,
    test: Test,
    offset: int,
    limit: int,
    fresh_since: float,
    *,
    total: int | None = None,
) -> Page:
    """A page of the agents that satisfy a test, in the order of their ids.

    Args:
        connection: within one view, so that total and items agree.
        test: see `elkeid.manager.filter.parse`.
        offset: how many to pass over.
        limit: how many at most.
        fresh_since: unix seconds; an older last heartbeat means offline.
        total: how many match, if that is known already.
    """
    ids = select(agent.c.agent_id)
    counted = select(func.count()).select_from(agent)
    if test != EVERYTHING:
        wanted = condition(test, fresh_since, connection.dialect.name)
        where = text(wanted.sql).bindparams(**wanted.parameters)
        if wanted.reads_documents:
            same = agent.c.agent_id == agent_detail.c.agent_id
            ids = ids.join_from(agent, agent_detail, same)
            counted = select(func.count()).select_from(agent.join(agent_detail, same))
        ids, counted = ids.where(where), counted.where(where)
    if total is None:
        total = connection.execute(counted).scalar_one()
    if offset >= total:
        return Page(total, [])
    chosen = (
        connection.execute(ids.order_by(agent.c.agent_id).offset(offset).limit(limit))
        .scalars()
        .all()
    )
    return Page(total, [_shown(row, fresh_since) for row in _details(connection, chosen)])


def _details(connection: Connection, ids: Sequence[str]) -> Iterable[Any]:
    for start in range(0, len(ids), IDS_PER_STATEMENT):
        some = ids[start : start + IDS_PER_STATEMENT]
        yield from connection.execute(_SHOWN.where(agent.c.agent_id.in_(some)))


_STORED = select(
    *(agent.c[name] for name in ("agent_id", "connected", *_HOT)), agent_detail.c.document
).join_from(agent, agent_detail, agent.c.agent_id == agent_detail.c.agent_id)


def apply_reports(
    connection: Connection, source: Source, reports: Iterable[AgentReport]
) -> Applied:
    """Store what one AC says of some agents, at most `IDS_PER_STATEMENT`.

    A report that is older than what another AC said stays out: an agent that moved is told of by
    both for a while.
    """
    latest = {report.agent_id: report for report in reports}
    result = Applied()
    known: dict[str, Any] = {
        row.agent_id: row
        for row in connection.execute(_STORED.where(agent.c.agent_id.in_(list(latest))))
    }
    new_rows: list[dict[str, Any]] = []
    new_documents: list[dict[str, Any]] = []
    beats: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    documents: list[dict[str, Any]] = []
    for agent_id, report in latest.items():
        row = known.get(agent_id)
        old = None if row is None else _decode(row.document)
        if (
            row is not None
            and (row.source_ip, row.source_port) != (source.ip, source.port)
            and report.last_heartbeat_time < row.last_heartbeat_time
        ):
            result.stale += 1
            continue
        document, written = merged(old, report, source)
        values = {"b_id": agent_id, "connected": True}
        values |= {name: document.get(name) for name in _HOT}
        if row is None:
            result.added += 1
            del values["b_id"]
            new_rows.append({"agent_id": agent_id, **values})
            new_documents.append({"agent_id": agent_id, "document": written})
            continue
        if written != row.document:
            documents.append({"b_id": agent_id, "b_document": written})
        elif row.connected:
            result.unchanged += 1
            continue
        result.changed += 1
        if row.connected and all(
            values[name] == getattr(row, name) for name in _HOT if name != "last_heartbeat_time"
        ):
            beats.append({"b_id": agent_id, "b_seen": report.last_heartbeat_time})
        else:
            rows.append(values)
    if new_rows:
        connection.execute(insert(agent), new_rows)
        connection.execute(insert(agent_detail), new_documents)
    if beats:  # the usual case: no index is touched
        connection.execute(_BEAT, beats)
    if rows:
        connection.execute(_CHANGE, rows)
    if documents:
        connection.execute(_DOCUMENT, documents)
    return result


_BEAT = (
    update(agent)
    .where(agent.c.agent_id == bindparam("b_id"))
    .values(last_heartbeat_time=bindparam("b_seen"))
)
_CHANGE = (
    update(agent)
    .where(agent.c.agent_id == bindparam("b_id"))
    .values({name: bindparam(name) for name in ("connected", *_HOT)})
)
_DOCUMENT = (
    update(agent_detail)
    .where(agent_detail.c.agent_id == bindparam("b_id"))
    .values(document=bindparam("b_document"))
)


def _of(source: Source) -> Any:
    return (agent.c.source_ip == source.ip) & (agent.c.source_port == source.port)


def disconnect(connection: Connection, source: Source, ids: Iterable[str]) -> int:
    """Note that agents left an AC; those that another AC has reported since are not touched."""
    left, wanted = 0, list(ids)
    for start in range(0, len(wanted), IDS_PER_STATEMENT):
        some = wanted[start : start + IDS_PER_STATEMENT]
        left += connection.execute(
            update(agent)
            .where(_of(source), agent.c.agent_id.in_(some), agent.c.connected.is_not(False))
            .values(connected=False)
        ).rowcount
    return left


def keep_only(connection: Connection, source: Source, ids: Iterable[str]) -> int:
    """Note that an AC has these agents and no others."""
    present = set(ids)
    rows = connection.execute(
        select(agent.c.agent_id).where(_of(source), agent.c.connected.is_not(False))
    ).scalars()
    return disconnect(connection, source, [each for each in rows if each not in present])


def forget_connections(connection: Connection, source: Source | None = None) -> int:
    """Note that nobody knows which agents are connected, of one AC or of all."""
    where = agent.c.connected.is_not(None)
    if source is not None:
        where &= _of(source)
    return connection.execute(update(agent).where(where).values(connected=None)).rowcount
