"""What the Manager knows of agents: pages for operators, reports from AgentCenters."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection

from elkeid.manager.documents import AgentReport, MalformedItem, Source, agent_report
from elkeid.manager.filter import EVERYTHING, Every, Orders, Path, Test
from elkeid.manager.store.agents import (
    Applied,
    Page,
    apply_reports,
    count_agents,
    disconnect,
    find_agent,
    forget_connections,
    keep_only,
    page_of_agents,
)
from elkeid.manager.store.store import Store

REPORTS_PER_WRITE = 500
"""Agents per transaction: about 50 ms, so that a login never waits long for a large report."""


class Follower(Protocol):
    """Told of what is stored, in the same transaction and thread."""

    def reported(
        self, connection: Connection, source: Source, reports: Sequence[AgentReport], skew: float
    ) -> None:
        """An AC told of these agents."""

    def left(self, connection: Connection, source: Source, ids: Iterable[str]) -> None:
        """These agents left an AC."""

    def kept(self, connection: Connection, source: Source, ids: Collection[str]) -> None:
        """An AC has these agents and no others."""


class AgentStatus:
    """Agents as last reported.

    Args:
        store: open.
        wall: seconds since the epoch.
        offline_seconds: silence after which an agent is offline.
        follower: is told of every report.
    """

    def __init__(
        self,
        store: Store,
        wall: Callable[[], float],
        offline_seconds: float,
        follower: Follower,
    ) -> None:
        self._store, self._wall, self._offline_seconds = store, wall, offline_seconds
        self._follower = follower
        self.total = 0  # agents; kept here, since counting a million rows takes time

    async def start(self) -> None:
        """Read what is stored; who is connected is not known any more."""
        await self._store.write(forget_connections)
        self.total = await self._store.read(count_agents)

    @property
    def fresh_since(self) -> float:
        """Unix seconds; an agent whose last heartbeat is older is offline."""
        return self._wall() - self._offline_seconds

    async def page(self, test: Test, offset: int, limit: int) -> Page:
        """A page of the agents that satisfy a test, by id; see `page_of_agents`."""
        total = self.total if test == EVERYTHING else None
        return await self._store.read(
            page_of_agents, test, offset, limit, self.fresh_since, total=total
        )

    async def following(self, test: Test, after: str, limit: int) -> list[msgspec.Raw]:
        """The next agents that satisfy a test, by id, from one id on; `after` is not among them.

        However far one goes, each step costs the same.
        """
        later = Every((test, Orders(Path(("agent_id",)), ">", after)))
        page = await self._store.read(
            page_of_agents, later, 0, limit, self.fresh_since, total=limit
        )
        return page.items

    async def find(self, agent_id: str) -> msgspec.Raw | None:
        """One agent's document."""
        return await self._store.read(find_agent, agent_id, self.fresh_since)

    async def apply(
        self, source: Source, items: Sequence[msgspec.Raw], skew: float
    ) -> tuple[Applied, list[str]]:
        """Store entries of an AC's report.

        Args:
            source: the AC.
            items: entries as sent, not decoded.
            skew: how far the AC's clock is ahead, seconds.

        Returns:
            What became of them, and the ids that they speak of.
        """
        done, ids = Applied(), list[str]()
        for start in range(0, len(items), REPORTS_PER_WRITE):
            some = items[start : start + REPORTS_PER_WRITE]
            applied, present = await self._store.write(_apply, source, some, skew, self._follower)
            self.total += applied.added
            done += applied
            ids += present
        return done, ids

    async def left(self, source: Source, ids: Iterable[str]) -> None:
        """Note that agents have left an AC."""
        await self._store.write(_left, source, list(ids), self._follower)

    async def keep_only(self, source: Source, ids: Iterable[str]) -> None:
        """Note that an AC has these agents and no others."""
        await self._store.write(_kept, source, set(ids), self._follower)

    async def forget(self, source: Source) -> None:
        """Note that an AC cannot be asked, so that nobody knows whom it has."""
        await self._store.write(forget_connections, source)


def _left(connection: Connection, source: Source, ids: Sequence[str], follower: Follower) -> None:
    disconnect(connection, source, ids)
    follower.left(connection, source, ids)


def _kept(connection: Connection, source: Source, ids: set[str], follower: Follower) -> None:
    keep_only(connection, source, ids)
    follower.kept(connection, source, ids)


def _apply(
    connection: Connection,
    source: Source,
    items: Sequence[msgspec.Raw],
    skew: float,
    follower: Follower,
) -> tuple[Applied, list[str]]:
    """Decode and store, in a thread; an entry that cannot be used costs no other."""
    reports: list[AgentReport] = []
    malformed = 0
    for item in items:
        try:
            entry: Any = msgspec.json.decode(item)
            if not isinstance(entry, dict):
                raise MalformedItem("no object")
            report = agent_report(entry, skew)
        except (MalformedItem, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            malformed += 1
            continue
        if report is not None:
            reports.append(report)
    applied = apply_reports(connection, source, reports)
    follower.reported(connection, source, reports, skew)
    applied.malformed = malformed
    return applied, [report.agent_id for report in reports]
