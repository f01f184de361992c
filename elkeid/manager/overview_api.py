"""The fleet in numbers, for consoles' first pages.

Source: docs/protocol.md, "Manager API", "Overview".
"""

import msgspec

from elkeid.manager.overview import Fleet
from elkeid.manager.roles import AGENT_READERS, EVERY_USER
from elkeid.manager.store.fleet import all_idcs, all_kernel_versions, all_platforms
from elkeid.manager.store.store import Store
from elkeid.web.routes import AuthKind, Call, Routes


class HostStatistics(msgspec.Struct):
    """Answer of ``DescribeHostStatistics``.

    Findings (``vulnerable``, ``baseline``, ``alerted``) are 0: this release takes none in.
    """

    total: int
    running: int
    offline: int
    abnormal: int
    uninstalled: int
    protection: dict[str, int]
    vulnerable: int
    baseline: int
    alerted: int
    update_time: int  # unix seconds


class AssetOverview(msgspec.Struct):
    """Answer of ``DescribeAsset``; what is not taken in by this release is 0."""

    host: int
    cluster: int
    container: int
    injected_process: int
    update_time: int


class AgentOverview(msgspec.Struct):
    """Answer of ``DescribeAgent``: now, and the difference to a day ago."""

    running: int
    offline: int
    memory: float  # bytes, mean of agents
    cpu: float  # fraction of a machine, mean of agents
    running_diff: int
    offline_diff: int
    memory_diff: float
    cpu_diff: float
    update_time: int


class OverviewRoutes:
    """Numbers.

    Args:
        fleet: counts.
    """

    routes = Routes("/api/v6", auth=AuthKind.TOKEN)

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    @routes.get(
        "/asset-center/DescribeHostStatistics",
        levels=AGENT_READERS,
        answer=HostStatistics,
        summary="Count hosts by state and protection",
    )
    async def statistics(self, call: Call) -> object:
        """Those that are retired are in ``uninstalled`` alone."""
        counts = await self._fleet.counts()
        return HostStatistics(
            total=counts.total,
            running=counts.running,
            offline=counts.offline,
            abnormal=counts.abnormal,
            uninstalled=counts.uninstalled,
            protection=counts.protection,
            vulnerable=0,
            baseline=0,
            alerted=0,
            update_time=counts.at,
        )

    @routes.get(
        "/overview/DescribeAsset",
        levels=EVERY_USER,
        answer=AssetOverview,
        summary="Count what is looked after",
    )
    async def assets(self, call: Call) -> object:
        """Hosts that are not retired."""
        counts = await self._fleet.counts()
        return AssetOverview(counts.total, 0, 0, 0, counts.at)

    @routes.get(
        "/overview/DescribeAgent",
        levels=EVERY_USER,
        answer=AgentOverview,
        summary="Show how many agents run, what they take, and what changed within a day",
    )
    async def agents(self, call: Call) -> object:
        """Differences are 0 as long as nothing is known of a day ago."""
        shown = await self._fleet.overview()
        now, before = shown.now, shown.before or shown.now
        return AgentOverview(
            running=now.running,
            offline=now.offline,
            memory=now.memory,
            cpu=now.cpu,
            running_diff=now.running - before.running,
            offline_diff=now.offline - before.offline,
            memory_diff=now.memory - before.memory,
            cpu_diff=now.cpu - before.cpu,
            update_time=shown.counted_at,
        )


class HostValueRoutes:
    """What there is among hosts, for consoles' lists to choose from.

    Args:
        store: open.
    """

    routes = Routes("/api/v6/asset-center", auth=AuthKind.TOKEN)

    def __init__(self, store: Store) -> None:
        self._store = store

    @routes.get(
        "/DescribePlatform",
        levels=AGENT_READERS,
        answer=list[str],
        summary="List the platforms of hosts",
    )
    async def platforms(self, call: Call) -> object:
        """Each once."""
        return await self._store.read(all_platforms)

    @routes.get(
        "/DescribeIDC", levels=AGENT_READERS, answer=list[str], summary="List the sites of hosts"
    )
    async def idcs(self, call: Call) -> object:
        """Each once."""
        return await self._store.read(all_idcs)

    @routes.get(
        "/DescribeKernelVersion",
        levels=AGENT_READERS,
        answer=list[str],
        summary="List the kernels of hosts",
    )
    async def kernels(self, call: Call) -> object:
        """Each once."""
        return await self._store.read(all_kernel_versions)
