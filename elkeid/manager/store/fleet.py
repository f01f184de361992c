"""Queries on the fleet as a whole. Every function takes a connection and blocks."""

from typing import Any

from attrs import Factory, asdict, define, frozen
from sqlalchemy import Connection, delete, func, select

from elkeid.manager.protection import Protection
from elkeid.manager.store.agents import UNINSTALLED
from elkeid.manager.store.schema import agent, fleet_figure, host_state
from elkeid.manager.store.upsert import excluded, upsert


@define
class HostCounts:
    """Hosts by ``agent_state``; those that are retired count nowhere else."""

    at: int  # unix seconds
    running: int = 0
    abnormal: int = 0
    offline: int = 0
    uninstalled: int = 0
    protection: dict[str, int] = Factory(lambda: dict.fromkeys(map(str, Protection), 0))

    @property
    def total(self) -> int:
        """Without those that are retired."""
        return self.running + self.abnormal + self.offline


@frozen
class FleetFigure:
    """The fleet in a stretch of time."""

    began: int  # unix seconds
    hosts: int  # of which figures are known
    running: int
    offline: int
    cpu: float  # mean of their agents, fraction of a machine
    memory: float  # mean of their agents, bytes


def count_hosts(connection: Connection, now: int) -> HostCounts:
    """Count hosts."""
    counts = HostCounts(now)
    for state, protection, count in connection.execute(
        select(agent.c.agent_state, agent.c.protection, func.count()).group_by(
            agent.c.agent_state, agent.c.protection
        )
    ):
        setattr(counts, state, getattr(counts, state) + count)
        if state != UNINSTALLED and protection is not None:
            counts.protection[protection] += count
    return counts


def keep_figure(connection: Connection, figure: FleetFigure) -> None:
    """Store one; of two of a stretch the one of more hosts stands."""
    more = excluded(connection, fleet_figure, "hosts") > fleet_figure.c.hosts
    changes = ["hosts", "running", "offline", "cpu", "memory"]
    connection.execute(upsert(connection, fleet_figure, ["began"], changes, more), asdict(figure))


def newest_figure(connection: Connection) -> FleetFigure | None:
    """The latest one."""
    return _first(connection, select(fleet_figure))


def figure_before(connection: Connection, time: int) -> FleetFigure | None:
    """The latest one that began by then."""
    return _first(connection, select(fleet_figure).where(fleet_figure.c.began <= time))


def _first(connection: Connection, query: Any) -> FleetFigure | None:
    row = connection.execute(query.order_by(fleet_figure.c.began.desc()).limit(1)).first()
    return None if row is None else FleetFigure(*row)


def forget_fleet(connection: Connection, before: float, limit: int) -> int:
    """Remove some of those from before a time; return how many."""
    old = connection.execute(
        select(fleet_figure.c.began).where(fleet_figure.c.began < before).limit(limit)
    )
    begun = list(old.scalars())
    connection.execute(delete(fleet_figure).where(fleet_figure.c.began.in_(begun)))
    return len(begun)


def distinct_values(connection: Connection, column: Any) -> list[str]:
    """Every value but the empty one of an indexed column of texts, sorted.

    It takes a step through the index for each.
    """
    found: list[str] = []
    query = select(column).order_by(column).limit(1)
    value = connection.execute(query.where(column > "")).scalar()
    while value is not None:
        found.append(value)
        value = connection.execute(query.where(column > value)).scalar()
    return found


def all_platforms(connection: Connection) -> list[str]:
    """Those that hosts report."""
    return distinct_values(connection, agent.c.platform)


def all_idcs(connection: Connection) -> list[str]:
    """Those that hosts report."""
    return distinct_values(connection, agent.c.idc)


def all_kernel_versions(connection: Connection) -> list[str]:
    """Those that hosts report."""
    return distinct_values(connection, host_state.c.kernel_version)
