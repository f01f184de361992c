"""The fleet in a few numbers: hosts by state and protection, what agents take, and since yesterday.

Counting a million hosts takes a second or so; whoever asks meanwhile gets the numbers of before.

Source: docs/protocol.md, "Manager API", "Overview".
"""

from collections.abc import Callable
from typing import Final

from attrs import evolve, frozen
from twisted.internet.interfaces import IReactorTime

from elkeid.manager.costly import Shared
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

    counted_at: int  # unix seconds; when the hosts of `now` were counted
    now: FleetFigure
    before: FleetFigure | None


class Fleet:
    """Counts hosts.

    Args:
        store: open.
        wall: seconds since the epoch.
        clock: for the age of numbers.
    """

    def __init__(self, store: Store, wall: Callable[[], float], clock: IReactorTime) -> None:
        self._store, self._wall = store, wall
        self._counts = Shared(
            clock, self._count, seconds=COUNT_SECONDS, share=COUNT_SHARE, patient=False
        )

    async def counts(self) -> HostCounts:
        """Hosts by state and protection, a few seconds old at most while counting is quick."""
        return await self._counts.get()

    async def _count(self) -> HostCounts:
        return await self._store.read(count_hosts, int(self._wall()))

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
            nothing = FleetFigure(0, 0, counts.running, counts.offline, 0, 0)
            return Overview(counts.at, nothing, None)
        before = await self._store.read(figure_before, newest.began - DAY_SECONDS)
        now = evolve(newest, running=counts.running, offline=counts.offline)
        return Overview(counts.at, now, before)
