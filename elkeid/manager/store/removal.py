"""Queries that remove hosts which are gone. Every function takes a connection and blocks."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, or_, select

from elkeid.manager.store.agents import hold_documents, lock_agents, on_gateways
from elkeid.manager.store.bulk import is_among
from elkeid.manager.store.schema import agent, agent_beat, host_config, host_state


def hosts_gone(
    connection: Connection, state: str, before: float, after: str, limit: int
) -> tuple[list[str], str | None]:
    """Look at the next hosts of a state, by id, for those that have been gone for long.

    Args:
        connection: any.
        state: `OFFLINE`, or `UNINSTALLED` for those that operators retired.
        before: unix seconds; who was heard or retired since then stays.
        after: only ids after this one.
        limit: looks at so many.

    Returns:
        Ids, and the last one that was looked at; None when there are no more.
    """
    looked = list(
        connection.execute(
            select(agent.c.agent_id)
            .where(agent.c.agent_state == state, agent.c.agent_id > after)
            .order_by(agent.c.agent_id)
            .limit(limit)
        ).scalars()
    )
    gone = _gone(connection, looked, state, before)
    return gone, looked[-1] if len(looked) == limit else None


def remove_hosts(connection: Connection, ids: Sequence[str], state: str, before: float) -> int:
    """Remove those of some hosts that are still gone, with all that is kept of what they are.

    Whoever hears a host takes the same lock first: it is heard before this, and stays, or it is
    new. Subtasks are history of tasks and stay with these; figures go when their time is over.

    Args:
        connection: that writes.
        ids: as of `hosts_gone`.
        state: as there.
        before: as there.

    Returns:
        How many were removed.
    """
    locked = lock_agents(connection, ids)
    hold_documents(connection, locked)  # in the order of reports; tags are given under this lock
    gone = _gone(connection, locked, state, before)
    # A config was meant for that host; whoever comes with the id again gets the default one.
    connection.execute(
        delete(host_config).where(is_among(connection, host_config.c.agent_id, gone))
    )
    connection.execute(delete(agent).where(is_among(connection, agent.c.agent_id, gone)))
    return len(gone)


def _gone(connection: Connection, ids: Sequence[str], state: str, before: float) -> list[str]:
    query = (
        select(agent.c.agent_id)
        .join_from(agent, agent_beat, agent.c.agent_id == agent_beat.c.agent_id)
        .join(host_state, host_state.c.agent_id == agent.c.agent_id, isouter=True)
        .where(
            is_among(connection, agent.c.agent_id, ids),
            agent.c.agent_state == state,
            agent_beat.c.last_heartbeat_time < before,
            or_(host_state.c.retired_at.is_(None), host_state.c.retired_at < before),
        )
    )
    gone = list(connection.execute(query).scalars())
    connected = on_gateways(connection, gone)
    return [each for each in gone if each not in connected]
