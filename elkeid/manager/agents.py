"""What the Manager knows of agents: pages for operators, reports from AgentCenters, states.

With several Managers each polls every AC: any of them may vanish, and none has to be told what
another has heard. What they write is the same, and written where it is newer than what is there:
of two that bring the same heartbeat the second changes nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec
from sqlalchemy import Connection
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elkeid.discovery.loops import Outage
from elkeid.errors import StoreError
from elkeid.manager.beats import Sorted
from elkeid.manager.documents import AgentReport, Source
from elkeid.manager.filter import EVERYTHING, Test
from elkeid.manager.lists import LongLists
from elkeid.manager.store.agent_pages import (
    Page,
    count_of_agents,
    ids_of_agents,
    page_of_agents,
)
from elkeid.manager.store.agents import (
    Applied,
    apply_sorted,
    connected_to,
    count_agents,
    disconnect,
    find_agent,
    forget_gateway,
    forget_gateways,
    heard,
    shown_agents,
    silent_agents,
    silent_gateways,
    slices,
    sort_out,
    turn_offline,
)
from elkeid.manager.store.bulk import IDS_PER_STATEMENT
from elkeid.manager.store.starts import Start
from elkeid.manager.store.store import Store

REPORTS_PER_WRITE = 500
"""Agents per transaction: at most 50 ms, so that a login never waits long for a large report."""

SWEEP_SECONDS = 4.0
"""Pause between two looks for agents that have become silent: states are true within 5 s."""

HEARD_SECONDS = 10.0
"""An AC of which no Manager has heard for so long after it was due: nobody knows any more which
agents it holds."""


class Follower(Protocol):
    """Told of what is stored, of at most `IDS_PER_STATEMENT` agents at once, in the same
    transaction and thread."""

    def reported(
        self, connection: Connection, source: Source, reports: Sequence[AgentReport], skew: float
    ) -> None:
        """An AC told of these agents."""

    def left(self, connection: Connection, source: Source, ids: Sequence[str]) -> None:
        """These agents left an AC."""


class AgentStatus:
    """Agents as last reported.

    Args:
        store: open.
        clock: for pauses.
        wall: seconds since the epoch.
        offline_seconds: silence after which an agent is offline.
        follower: is told of every report.
        lists: remembers where pages of agents began, and how many match.
    """

    log = Logger()

    def __init__(
        self,
        store: Store,
        clock: IReactorTime,
        wall: Callable[[], float],
        offline_seconds: float,
        follower: Follower,
        *,
        lists: LongLists,
    ) -> None:
        self._follower, self._lists = follower, lists
        self._store, self._wall, self._offline_seconds = store, wall, offline_seconds
        self.total = 0  # agents, as last counted
        self._sweeps = LoopingCall(self._sweep)
        self._sweeps.clock = clock
        self._sweeping: Deferred[None] | None = None
        self._outage = Outage("agents' states are not brought up to date")
        self._heard: dict[Source, int] = {}  # not stored yet
        self._storing_heard = False

    async def start(self) -> None:
        """Read what is stored, and keep states true; who is connected is not known any more."""
        await self._store.write(forget_gateways)
        self.total = await self._store.read(count_agents)
        self._sweeps.start(SWEEP_SECONDS, now=False)

    async def stop(self) -> None:
        """Sweep no more."""
        if self._sweeps.running:
            self._sweeps.stop()
        if self._sweeping is not None:
            await self._sweeping

    @property
    def fresh_since(self) -> float:
        """Unix seconds; an agent whose last heartbeat is older is offline."""
        return self._wall() - self._offline_seconds

    async def page(self, test: Test, offset: int, limit: int) -> Page:
        """A page of the agents that satisfy a test; see `page_of_agents` and `LongLists.page`."""
        search = self._store.read if test == EVERYTHING else self._store.search

        async def look(total: int | None, start: Start | None) -> Page:
            return await search(page_of_agents, test, offset, limit, total=total, start=start)

        async def count() -> int:
            return await self._store.search(count_of_agents, test)

        return await self._lists.page(f"agents {test!r}", offset, look, count)

    async def following(self, test: Test, after: str, limit: int) -> list[msgspec.Raw]:
        """The next agents that satisfy a test, by id, from one id on; `after` is not among them.

        However far one goes, each step costs the same.
        """
        ids = await self.following_ids(test, after, limit)
        return await self._store.read(shown_agents, ids) if ids else []

    async def following_ids(self, test: Test, after: str, limit: int) -> list[str]:
        """The ids of the next agents that satisfy a test, by id, from one id on."""
        return await self._store.search(ids_of_agents, test, after, limit)

    async def find(self, agent_id: str) -> msgspec.Raw | None:
        """One agent's document."""
        return await self._store.read(find_agent, agent_id)

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
            # What takes longest does so where it holds nobody's writes up.
            found = await self._store.read(sort_out, source, some, skew)
            if found.beats or found.reports:
                applied = await self._store.write(self._apply, source, found, skew)
            else:
                applied = Applied(unchanged=found.unchanged, malformed=found.malformed)
            self.total += applied.added
            done += applied
            ids += found.ids
        return done, ids

    def _apply(self, connection: Connection, source: Source, found: Sorted, skew: float) -> Applied:
        applied = apply_sorted(connection, source, found, skew, self.fresh_since)
        reports = [report for report, _ in found.reports]
        self._follower.reported(connection, source, reports, skew)
        return applied

    async def left(self, source: Source, ids: Iterable[str]) -> None:
        """Note that agents have left an AC."""
        for some in slices(ids):
            await self._store.write(self._left, source, some)

    def _left(self, connection: Connection, source: Source, ids: Sequence[str]) -> None:
        disconnect(connection, source, ids)
        self._follower.left(connection, source, ids)

    async def keep_only(self, source: Source, ids: Iterable[str]) -> None:
        """Note that an AC has these agents and no others."""
        present = set(ids)
        had = await self._store.read(connected_to, source)
        await self.left(source, [each for each in had if each not in present])

    async def heard(self, source: Source, pause: float) -> None:
        """Note that an AC has answered, that all it said is stored, and when it is asked again.

        Args:
            source: the AC.
            pause: until then, seconds.
        """
        self._heard[source] = int(self._wall() + pause + HEARD_SECONDS)
        if self._storing_heard:
            return  # whoever is at it takes this one along
        self._storing_heard = True
        try:
            while self._heard:
                some, self._heard = self._heard, {}
                await self._store.write(heard, some)
        finally:
            self._storing_heard = False

    async def forget(self, source: Source) -> None:
        """Note that an AC cannot be asked, so that nobody knows whom it has."""
        await self._store.write(forget_gateway, source)

    def _sweep(self) -> "Deferred[None]":
        self._sweeping = Deferred.fromCoroutine(self._swept())
        return self._sweeping

    async def _swept(self) -> None:
        try:
            await self._find_silent()
            now = self._wall()
            if await self._store.read(silent_gateways, now):
                await self._store.write(forget_gateways, now)
            self.total = (await self.page(EVERYTHING, 0, 1)).total
            self._outage.worked()
        except StoreError as error:
            self._outage.failed(error)
        except Exception:
            self.log.failure("looking for silent agents failed; trying on")
        finally:
            self._sweeping = None

    async def _find_silent(self) -> None:
        after, fresh_since = "", self.fresh_since
        while True:
            ids = await self._store.read(silent_agents, fresh_since, after, IDS_PER_STATEMENT)
            if not ids:
                return
            await self._store.write(turn_offline, ids, fresh_since)
            if len(ids) < IDS_PER_STATEMENT:
                return
            after = ids[-1]
