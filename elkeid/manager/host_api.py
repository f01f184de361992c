"""``/api/v6/asset-center``: hosts as consoles list and show them.

Source: docs/protocol.md, "Manager API", "Hosts".
"""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from elkeid.manager.agents import AgentStatus
from elkeid.manager.codes import DATABASE_ERROR
from elkeid.manager.hostview import HostDetail, HostItem, detail_of, items_of
from elkeid.manager.pages import Paged, PageQuery, listed
from elkeid.manager.roles import AGENT_READERS
from elkeid.manager.selection import HostConditions, conditions_test
from elkeid.manager.store.store import Threads
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes


class HostQuery(msgspec.Struct):
    """Which host."""

    agent_id: Annotated[str, msgspec.Meta(min_length=1)]


class HostRoutes:
    """What users who look after hosts see of them.

    Args:
        agents: as last reported.
        threads: where documents become what is shown.
        wall: seconds since the epoch.
    """

    routes = Routes("/api/v6/asset-center", auth=AuthKind.TOKEN)

    def __init__(self, agents: AgentStatus, threads: Threads, wall: Callable[[], float]) -> None:
        self._agents, self._threads, self._wall = agents, threads, wall

    @routes.post(
        "/DescribeHosts",
        query=PageQuery,
        body=HostConditions,
        reads=True,
        levels=AGENT_READERS,
        answer=list[HostItem],
        beside=Paged,
        summary="List hosts that meet conditions",
    )
    async def describe(self, call: Call[PageQuery, HostConditions]) -> object:
        """By agent id."""
        asked = call.query
        page = await self._agents.page(conditions_test(call.body), asked.offset, asked.page_size)
        items: Any = await self._threads.run(items_of, page.items)
        return listed(asked, page.total, items)

    @routes.get(
        "/DescribeHostDetail",
        query=HostQuery,
        levels=AGENT_READERS,
        answer=HostDetail,
        summary="Show one host",
    )
    async def detail(self, call: Call[HostQuery]) -> object:
        """Code 3 for a host never heard of."""
        found = await self._agents.find(call.query.agent_id)
        if found is None:
            raise CodedRefusal(DATABASE_ERROR, "no host with this id has ever been reported")
        return detail_of(found, self._agents.fresh_since)
