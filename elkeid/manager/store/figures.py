"""Queries on hosts' figures. Every function takes a connection and blocks."""

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import Connection, bindparam, delete, func, select

from elkeid.manager.figures import Rollup, joined, unpacked
from elkeid.manager.store.schema import agent, host_figure
from elkeid.manager.store.upsert import excluded, upsert

_KEY = ["span", "began", "agent_id"]


def keep_rollups(connection: Connection, span: int, rollups: Iterable[Rollup]) -> None:
    """Store these; of two for the same stretch the one with more heartbeats stands."""
    rows = [
        {
            "span": span,
            "began": each.began,
            "agent_id": each.agent_id,
            "beats": each.beats,
            "data": each.packed(),
        }
        for each in rollups
    ]
    if rows:
        more = excluded(connection, host_figure, "beats") > host_figure.c.beats
        connection.execute(upsert(connection, host_figure, _KEY, ["beats", "data"], more), rows)


def rollups_of(
    connection: Connection, agent_id: str, span: int, stretches: Collection[int]
) -> list[Rollup]:
    """A host's rollups of some stretches, by time."""
    rows = connection.execute(
        select(host_figure.c.began, host_figure.c.beats, host_figure.c.data)
        .where(
            host_figure.c.span == span,
            host_figure.c.began.in_(list(stretches)),
            host_figure.c.agent_id == agent_id,
        )
        .order_by(host_figure.c.began)
    )
    return [unpacked(agent_id, row.began, row.beats, row.data) for row in rows]


def newest_stretch(connection: Connection, span: int) -> int | None:
    """The begin of the latest stretch of which anything is stored."""
    query = select(func.max(host_figure.c.began)).where(host_figure.c.span == span)
    found: int | None = connection.execute(query).scalar()
    return found


def join_stretches(
    connection: Connection,
    after: str,
    limit: int,
    spans: tuple[int, int],
    began: int,
) -> str | None:
    """Roll up one longer stretch for the next hosts by id.

    Args:
        connection: that writes.
        after: the last host of the step before.
        limit: hosts of this step.
        spans: lengths of the short and of the long stretches, seconds.
        began: of the long stretch, unix seconds.

    Returns:
        The last host of this step; None when there are no more.
    """
    short, long = spans
    ids: Sequence[str] = (
        connection.execute(
            select(agent.c.agent_id)
            .where(agent.c.agent_id > after)
            .order_by(agent.c.agent_id)
            .limit(limit)
        )
        .scalars()
        .all()
    )
    if not ids:
        return None
    parts: dict[str, list[Rollup]] = {}
    for row in connection.execute(
        select(host_figure).where(
            host_figure.c.span == short,
            host_figure.c.began.in_(list(range(began, began + long, short))),
            host_figure.c.agent_id > after,
            host_figure.c.agent_id <= ids[-1],
        )
    ):
        rollup = unpacked(row.agent_id, row.began, row.beats, row.data)
        parts.setdefault(row.agent_id, []).append(rollup)
    whole = [joined(agent_id, began, several) for agent_id, several in sorted(parts.items())]
    keep_rollups(connection, long, whole)
    return ids[-1]


def forget_figures(connection: Connection, span: int, before: float, limit: int) -> int:
    """Remove some of the rollups that began before a time; return how many."""
    old: Sequence[tuple[int, str]] = [
        (row.began, row.agent_id)
        for row in connection.execute(
            select(host_figure.c.began, host_figure.c.agent_id)
            .where(host_figure.c.span == span, host_figure.c.began < before)
            .order_by(host_figure.c.began, host_figure.c.agent_id)
            .limit(limit)
        )
    ]
    if old:
        connection.execute(
            delete(host_figure).where(
                host_figure.c.span == span,
                host_figure.c.began == bindparam("b_began"),
                host_figure.c.agent_id == bindparam("b_id"),
            ),
            [{"b_began": began, "b_id": agent_id} for began, agent_id in old],
        )
    return len(old)
