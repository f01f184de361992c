"""What concerns hosts, put together: their history, protection, tags, lists and exports."""

from collections.abc import Callable
from typing import Any

from elkeid.config import Settings
from elkeid.manager.agents import AgentStatus
from elkeid.manager.exports import Exports
from elkeid.manager.figures import Figures
from elkeid.manager.history import History
from elkeid.manager.history_api import HistoryRoutes, MonitorRoutes
from elkeid.manager.host_api import HostExportRoutes, HostRoutes, RetireRoutes
from elkeid.manager.hosts import Hosts
from elkeid.manager.license_api import LicenseRoutes
from elkeid.manager.news import News
from elkeid.manager.overview import Fleet
from elkeid.manager.overview_api import HostValueRoutes, OverviewRoutes
from elkeid.manager.store.store import Store, Threads
from elkeid.manager.tag_api import TagRoutes
from elkeid.manager.watch import HostWatch
from elkeid.web.api import Group


class HostParts:
    """Parts of the Manager.

    Args:
        settings: of this process.
        store: not open yet.
        threads: where files are written and documents are read.
        reactor: for timers.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        threads: Threads,
        reactor: Any,
        wall: Callable[[], float],
    ) -> None:
        manager = settings.manager
        self._store, self._threads, self._wall = store, threads, wall
        self._ring = manager.history_events
        self.fleet = Fleet(store, wall, reactor)
        figures = Figures()
        self.history = History(
            store,
            figures,
            reactor,
            wall,
            self.fleet.measured,
            fine_seconds=manager.history_fine_seconds,
            coarse_seconds=manager.history_coarse_seconds,
            event_seconds=manager.history_event_seconds,
            ring=manager.history_events,
        )
        self.watch = HostWatch(
            figures,
            wall,
            quiet_seconds=manager.kernel_quiet_seconds,
            silent_seconds=manager.offline_seconds,
            ring=manager.history_events,
        )
        self.exports = Exports(
            settings.server.data_dir / "exports",
            store,
            threads,
            reactor,
            wall=wall,
            quota=manager.export_quota_bytes,
            seconds=manager.export_seconds,
        )

    def groups(self, agents: AgentStatus, tag_news: News) -> list[Group]:
        """The routes.

        Args:
            agents: as last reported.
            tag_news: tells gateways that tags changed.
        """
        hosts = Hosts(agents, self._store, tag_news, wall=self._wall, ring=self._ring)
        return [
            TagRoutes(hosts, self._store),
            HostRoutes(agents, self._threads),
            HostExportRoutes(hosts, self.exports),
            HostValueRoutes(self._store),
            RetireRoutes(hosts),
            OverviewRoutes(self.fleet),
            HistoryRoutes(self.history),
            MonitorRoutes(self.history),
            LicenseRoutes(self._wall),
        ]

    async def start(self) -> None:
        """Once the store is open."""
        await self.exports.start()
        self.history.start()

    async def stop(self) -> None:
        """Before the store closes, after the polls have ended."""
        await self.exports.stop()
        await self.history.stop()
