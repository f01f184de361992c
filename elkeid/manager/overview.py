"""The fleet in a few numbers: hosts by state and protection, what agents take, and since yesterday.

Counting a million hosts takes a second or so; whoever asks meanwhile gets the numbers of before.

Source: docs/protocol.md, "Manager API", "Overview".
"""

from collections.abc import Callable
from typing import Final

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from elkeid.manager.store.fleet import (
    FleetFigure,
    HostCounts,
    count_hosts,
    figure_before,
    keep_figure,
    newest_figure,
)
from elkeid.manager.store.store import Store

COUNT_SECONDS: Final = 3.0
"""Numbers are no older, as far as counting is quick."""

COUNT_SHARE: Final = 20
"""Counting takes at most one part in so many of a thread's time."""

DAY_SECONDS: Final = 86_400


@frozen
class Overview:
    """What is shown of the fleet, now and a day ago.

    ``memory`` (bytes) and ``cpu`` (fraction of a machine) are means over hosts.
    """

    now: FleetFigure
    before: FleetFigure | None


class Fleet:
    """Counts hosts.

    Args:
        store: open.
        wall: seconds since the epoch.
        monotonic: seconds that only go forward.
    """

    log = Logger()

    def __init__(
        self, store: Store, wall: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._store, self._wall, self._monotonic = store, wall, monotonic
        self._counts: HostCounts | None = None
        self._good_until = 0.0
        self._waiting: list[Deferred[HostCounts]] | None = None  # while it is counted

    async def counts(self) -> HostCounts:
        """Hosts by state and protection, a few seconds old at most while counting is quick."""
        if self._counts is not None and self._monotonic() < self._good_until:
            return self._counts
        if self._waiting is not None:
            if self._counts is not None:
                return self._counts
            waiting: Deferred[HostCounts] = Deferred()
            self._waiting.append(waiting)
            return await waiting
        self._waiting = []
        began = self._monotonic()
        try:
            self._counts = await self._store.read(count_hosts, int(self._wall()))
        except BaseException as error:
            waiting_ones, self._waiting = self._waiting, None
            for each in waiting_ones:
                each.errback(error)
            raise
        took = self._monotonic() - began
        self._good_until = self._monotonic() + max(COUNT_SECONDS, COUNT_SHARE * took)
        waiting_ones, self._waiting = self._waiting, None
        for each in waiting_ones:
            each.callback(self._counts)
        return self._counts

    async def measured(self, began: int, hosts: int, cpu: float, memory: float) -> None:
        """Keep what agents took in a stretch of time.

        Args:
            began: of the stretch, unix seconds.
            hosts: of which figures are known.
            cpu: mean, fraction of a machine.
            memory: mean, bytes.
        """
        counts = await self.counts()
        figure = FleetFigure(began, hosts, counts.running, counts.offline, cpu, memory)
        await self._store.write(keep_figure, figure)

    async def overview(self) -> Overview:
        """What agents take, and how that and their number differ from a day ago."""
        counts = await self.counts()
        newest = await self._store.read(newest_figure)
        if newest is None:
            return Overview(FleetFigure(0, 0, counts.running, counts.offline, 0, 0), None)
        before = await self._store.read(figure_before, newest.began - DAY_SECONDS)
        now = evolve(newest, running=counts.running, offline=counts.offline)
        return Overview(now, before)
