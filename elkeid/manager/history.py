"""Keeps hosts' histories: writes figures that are ready, rolls up hours, says what is old when.

Everything is done in slices of some ten milliseconds, one after another.

Source: docs/protocol.md, "Manager API", "History".
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from sqlalchemy import Connection
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elkeid.discovery.loops import Outage
from elkeid.errors import StoreError
from elkeid.manager.figures import (
    COARSE_SECONDS,
    FINE_SECONDS,
    LATE_SECONDS,
    NAMES,
    Figures,
    Rollup,
    joined,
    rolled_up,
)
from elkeid.manager.retention import Rule
from elkeid.manager.store.figures import (
    forget_figures,
    join_stretches,
    keep_rollups,
    newest_stretch,
    rollups_of,
)
from elkeid.manager.store.fleet import forget_fleet
from elkeid.manager.store.hosts import HostEvent, forget_events, history_of, host_states
from elkeid.manager.store.store import Store

PACE_SECONDS = 60.0
"""Between two rounds."""

ROWS_PER_WRITE = 500
"""Rollups in one transaction: about 15 ms."""

HOSTS_PER_STEP = 250
"""Hosts whose hour is rolled up in one transaction: their 3,000 rows take about 30 ms."""

FLEET_SECONDS = 400 * 86_400
"""How long the fleet's own figures are kept: a year and a little, 60 bytes for five minutes."""

_CPU, _MEMORY = NAMES.index("cpu"), NAMES.index("rss")

SPANS = (FINE_SECONDS, COARSE_SECONDS)


def _events(
    connection: Connection, agent_id: str, ring: int, since: float, *page: int
) -> tuple[int, list[HostEvent]] | None:
    if not host_states(connection, [agent_id]):
        return None
    offset, limit = page
    return history_of(connection, agent_id, ring, since, offset=offset, limit=limit)


def _keep(
    connection: Connection, over: Sequence[tuple[str, int, bytes]]
) -> dict[int, tuple[int, float, float]]:
    """Store rollups; give, by stretch, how many hosts told both of CPU and memory, and the sums."""
    rollups = [rolled_up(*each) for each in over]
    keep_rollups(connection, FINE_SECONDS, rollups)
    sums: dict[int, tuple[int, float, float]] = {}
    for each in rollups:
        cpu, memory = each.mean[_CPU], each.mean[_MEMORY]
        if not math.isnan(cpu + memory):
            hosts, cpus, memories = sums.get(each.began, (0, 0.0, 0.0))
            sums[each.began] = (hosts + 1, cpus + cpu, memories + memory)
    return sums


class History:
    """Works in the background.

    Args:
        store: open.
        figures: what heartbeats measured.
        clock: for the pace.
        wall: seconds since the epoch.
        measured: is told of each stretch that is over: its begin, how many hosts there are figures
            of, the means of what their agents took of a processor and of memory.
        fine_seconds: how long figures of five minutes are kept.
        coarse_seconds: how long figures of an hour are kept.
        event_seconds: how long events of hosts are kept.
        ring: how many of each.
    """

    log = Logger()

    def __init__(
        self,
        store: Store,
        figures: Figures,
        clock: IReactorTime,
        wall: Callable[[], float],
        measured: Callable[[int, int, float, float], Awaitable[None]],
        *,
        fine_seconds: float,
        coarse_seconds: float,
        event_seconds: float,
        ring: int,
    ) -> None:
        self._store, self._figures, self._wall = store, figures, wall
        self._measured = measured
        self._fine_seconds, self._coarse_seconds = fine_seconds, coarse_seconds
        self._event_seconds, self._ring = event_seconds, ring
        self._hour: int | None = None  # the next one to roll up
        self._stopping = False
        self._outage = Outage("histories of hosts wait for the database")
        self._loop = LoopingCall(self._round)
        self._loop.clock = clock
        self._ended: Deferred[LoopingCall] | None = None

    def start(self) -> None:
        """Work from now on."""
        self._ended = self._loop.start(PACE_SECONDS, now=False)

    async def stop(self) -> None:
        """End what is under way, and write what is in memory."""
        self._stopping = True
        if self._loop.running and self._ended is not None:
            self._loop.stop()
            await self._ended
            await self._attempt(self._write, True)

    async def events(
        self, agent_id: str, offset: int, limit: int
    ) -> tuple[int, list[HostEvent]] | None:
        """A page of a host's events, the newest first, and their number; None if never reported."""
        return await self._store.read(
            _events, agent_id, self._ring, self._wall() - self._event_seconds, offset, limit
        )

    async def figures(self, agent_id: str, start: float, end: float, step: int) -> list[Rollup]:
        """A host's figures from ``start`` to ``end``, in steps of ``step`` seconds at least.

        Those of five minutes, as far back as they are kept; else those of an hour.
        """
        now = self._wall()
        fine = start >= now - self._fine_seconds and step < COARSE_SECONDS
        span = FINE_SECONDS if fine else COARSE_SECONDS
        kept = self._fine_seconds if fine else self._coarse_seconds
        first = int(max(start, now - kept))
        stretches = range(first - first % span, int(min(end, now)) + 1, span)
        found = await self._store.read(rollups_of, agent_id, span, stretches)
        step = -(-step // span) * span
        steps: dict[int, list[Rollup]] = {}
        for each in found:
            steps.setdefault(each.began - each.began % step, []).append(each)
        return [joined(agent_id, began, several) for began, several in steps.items()]

    async def _round(self) -> None:
        asked = [await self._attempt(self._write, False), await self._attempt(self._roll_up)]
        if None not in asked and any(asked):
            self._outage.worked()

    async def _attempt(
        self, work: Callable[..., Awaitable[bool]], *arguments: object
    ) -> bool | None:
        """Whether the database was asked for anything; None if it failed."""
        try:
            return await work(*arguments)
        except StoreError as error:
            self._outage.failed(error)
        except Exception:  # a LoopingCall ends for good at the first error
            self.log.failure("history failed; trying on")
        return None

    async def _write(self, everything: bool) -> bool:
        """Store what is over, if anything is.

        What cannot be stored is lost, so that memory stays bounded.
        """
        over = self._figures.over(self._wall(), everything=everything)
        sums: dict[int, tuple[int, float, float]] = {}
        for start in range(0, len(over), ROWS_PER_WRITE):
            some = over[start : start + ROWS_PER_WRITE]
            for began, sum_ in (await self._store.write(_keep, some)).items():
                known = sums.get(began, (0, 0.0, 0.0))
                sums[began] = (known[0] + sum_[0], known[1] + sum_[1], known[2] + sum_[2])
        for began, (hosts, cpu, memory) in sums.items():
            await self._measured(began, hosts, cpu / hosts, memory / hosts)
        return bool(over)

    async def _roll_up(self) -> bool:
        """Roll up hours that are over, one after another, from where some Manager was."""
        asked = False
        now = self._wall()
        past = now - self._fine_seconds
        earliest = int(past - past % COARSE_SECONDS) + COARSE_SECONDS
        if self._hour is None or self._hour > now:  # at the start, or the clock was set back
            asked = True
            newest = await self._store.read(newest_stretch, COARSE_SECONDS) or 0
            # The newest may have been cut off in the middle; what is done is not done twice.
            self._hour = newest if newest <= now else 0
        self._hour = max(self._hour, earliest)  # a clock that jumps ahead skips what has no figures
        while self._hour + COARSE_SECONDS + FINE_SECONDS + 2 * LATE_SECONDS <= self._wall():
            asked = True
            last: str | None = ""
            while last is not None:
                if self._stopping:
                    return asked
                last = await self._store.write(
                    join_stretches, last, HOSTS_PER_STEP, SPANS, self._hour
                )
            self._hour += COARSE_SECONDS
        return asked

    def rules(self) -> list[Rule]:
        """What is forgotten when."""
        fine = partial(self._forget_some, forget_figures, FINE_SECONDS)
        coarse = partial(self._forget_some, forget_figures, COARSE_SECONDS)
        events = partial(self._forget_some, forget_events)
        fleet = partial(self._forget_some, forget_fleet)
        return [
            Rule("figures of five minutes", self._fine_seconds, fine),
            Rule("figures of hours", self._coarse_seconds, coarse),
            Rule("events of hosts", self._event_seconds, events),
            Rule("figures of the fleet", FLEET_SECONDS, fleet),
        ]

    async def _forget_some(self, forget: Callable[..., int], *arguments: float) -> bool:
        return await self._store.write(forget, *arguments, ROWS_PER_WRITE) == ROWS_PER_WRITE
