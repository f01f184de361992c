"""Queries on hosts' states and history. Every function takes a connection and blocks.

The last events of a host are a ring: event number n lies in place n modulo the ring's length, so
a host that comes and goes all day takes no more room than another.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from attrs import define, frozen
from sqlalchemy import (
    Connection,
    Select,
    bindparam,
    delete,
    func,
    select,
)

from elkeid.manager.store.agents import on_gateways, retire, unretire
from elkeid.manager.store.schema import host_event, host_state
from elkeid.manager.store.upsert import upsert

_FIELDS = tuple(column.name for column in host_state.columns)


@define
class HostState:
    """What is kept of a host; it changes seldom."""

    agent_id: str
    gateway: str  # host:port of the AC that has it, or had it last
    connected: bool
    connected_at: int  # unix seconds
    protection: str  # while it beats
    reason: str
    protection_since: int
    doubted_at: int | None = None  # since when what proves the protection was not seen
    retired_at: int | None = None
    kernel_version: str = ""
    events: int = 0  # in its history, those that are over included


@frozen
class HostEvent:
    """One entry of a host's history."""

    agent_id: str
    number: int
    at: int  # unix seconds
    kind: str
    detail: Mapping[str, Any]


def host_states(
    connection: Connection, ids: Collection[str], *, locked: bool = False
) -> dict[str, HostState]:
    """What is kept of these hosts, at most `IDS_PER_STATEMENT`; locked until the end if wanted."""
    query = select(host_state).where(host_state.c.agent_id.in_(list(ids)))
    return _states(connection, query, locked)


def _states(connection: Connection, query: Select[Any], locked: bool) -> dict[str, HostState]:
    if locked:
        query = query.order_by(host_state.c.agent_id).with_for_update()
    return {row[0]: HostState(*row) for row in connection.execute(query)}


def keep_states(connection: Connection, states: Iterable[HostState]) -> None:
    """Store these, whether they are new or not."""
    rows = [{name: getattr(state, name) for name in _FIELDS} for state in states]
    if rows:
        connection.execute(upsert(connection, host_state, ["agent_id"], _FIELDS[1:]), rows)


def add_events(connection: Connection, events: Iterable[HostEvent], ring: int) -> None:
    """Append to hosts' histories.

    Args:
        connection: that writes.
        events: numbered, see `HostState.events`.
        ring: events kept of each host.
    """
    rows = [
        {
            "agent_id": event.agent_id,
            "place": event.number % ring,
            "number": event.number,
            "at": event.at,
            "kind": event.kind,
            "detail": msgspec.json.encode(event.detail).decode(),
        }
        for event in events
    ]
    if rows:
        changes = ["number", "at", "kind", "detail"]
        connection.execute(upsert(connection, host_event, ["agent_id", "place"], changes), rows)


def retire_hosts(
    connection: Connection, ids: Collection[str], now: int, ring: int
) -> tuple[int, int]:
    """Note of hosts that they are gone for good; those that are connected are not.

    Returns:
        How many are now retired that were not, and how many are connected.
    """
    connected = on_gateways(connection, ids)
    gone = [each for each in ids if each not in connected]
    retire(connection, gone)
    states = host_states(connection, gone, locked=True)
    newly = [state for state in states.values() if state.retired_at is None]
    for state in newly:
        state.retired_at = now
    _note(connection, newly, now, "retired", ring)
    return len(newly), len(connected)


def restore_hosts(connection: Connection, ids: Collection[str], now: int, ring: int) -> int:
    """Note of hosts that they are not gone after all; return how many were retired."""
    unretire(connection, ids)
    states = host_states(connection, ids, locked=True)
    retired = [state for state in states.values() if state.retired_at is not None]
    for state in retired:
        state.retired_at = None
    _note(connection, retired, now, "returned", ring)
    return len(retired)


def _note(
    connection: Connection, states: Sequence[HostState], at: int, kind: str, ring: int
) -> None:
    events = [HostEvent(state.agent_id, state.events, at, kind, {}) for state in states]
    for state in states:
        state.events += 1
    keep_states(connection, states)
    add_events(connection, events, ring)


def history_of(
    connection: Connection, agent_id: str, ring: int, since: float, *, offset: int, limit: int
) -> tuple[int, list[HostEvent]]:
    """A page of a host's history, the newest first, and how long it is."""
    newest = select(func.max(host_event.c.number)).where(host_event.c.agent_id == agent_id)
    last = connection.execute(newest).scalar()
    if last is None:
        return 0, []
    kept = (
        (host_event.c.agent_id == agent_id)
        & (host_event.c.number > last - ring)
        & (host_event.c.at >= since)
    )
    total = connection.execute(
        select(func.count()).select_from(host_event).where(kept)
    ).scalar_one()
    if offset >= total:
        return total, []
    rows = connection.execute(
        select(host_event)
        .where(kept)
        .order_by(host_event.c.number.desc())
        .offset(offset)
        .limit(limit)
    )
    return total, [
        HostEvent(row.agent_id, row.number, row.at, row.kind, msgspec.json.decode(row.detail))
        for row in rows
    ]


def forget_events(connection: Connection, before: float, limit: int) -> int:
    """Remove some of the events from before a time; return how many."""
    old = connection.execute(
        select(host_event.c.agent_id, host_event.c.place)
        .where(host_event.c.at < before)
        .order_by(host_event.c.at)
        .limit(limit)
    ).all()
    if old:
        connection.execute(
            delete(host_event).where(
                host_event.c.agent_id == bindparam("b_id"),
                host_event.c.place == bindparam("b_place"),
                host_event.c.at < before,
            ),
            [{"b_id": row.agent_id, "b_place": row.place} for row in old],
        )
    return len(old)
