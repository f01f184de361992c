"""``/api/v6/asset-center``: hosts as consoles list and show them.

Source: docs/protocol.md, "Manager API", "Hosts".
"""

from typing import Annotated

import msgspec

from elkeid.manager.agents import AgentStatus
from elkeid.manager.codes import DATABASE_ERROR
from elkeid.manager.exports import Exports, Listing
from elkeid.manager.hosts import Hosts
from elkeid.manager.hostview import (
    EXPORT_HEADER,
    HostDetail,
    HostItem,
    detail_of,
    export_rows,
    items_of,
)
from elkeid.manager.pages import Paged, PageQuery, listed
from elkeid.manager.roles import AGENT_READERS, AGENT_WRITERS
from elkeid.manager.selection import (
    SELECTOR_BYTES,
    HostConditions,
    HostSelector,
    looked_at,
    selected,
)
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
    """

    routes = Routes("/api/v6/asset-center", auth=AuthKind.TOKEN)

    def __init__(self, agents: AgentStatus, threads: Threads) -> None:
        self._agents, self._threads = agents, threads

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
        page = await self._agents.page(looked_at(call.body), asked.offset, asked.page_size)
        items = await self._threads.run(items_of, page.items)
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


class RetiredCount(msgspec.Struct):
    """Answer of ``RetireHosts``."""

    count: int
    connected: int  # and therefore not retired


class RestoredCount(msgspec.Struct):
    """Answer of ``RestoreHosts``."""

    count: int


class RetireRoutes:
    """Hosts that are gone for good.

    Args:
        hosts: as last reported.
    """

    routes = Routes("/api/v6/asset-center", auth=AuthKind.TOKEN)

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    @routes.post(
        "/RetireHosts",
        body=HostSelector,
        limit=SELECTOR_BYTES,
        levels=AGENT_WRITERS,
        answer=RetiredCount,
        summary="Take hosts for gone for good, until they are heard again",
    )
    async def retire(self, call: Call[None, HostSelector]) -> object:
        """Those that are connected are passed over."""
        done = await self._hosts.retire(selected(call.body))
        return RetiredCount(done.count, done.connected)

    @routes.post(
        "/RestoreHosts",
        body=HostSelector,
        limit=SELECTOR_BYTES,
        levels=AGENT_WRITERS,
        answer=RestoredCount,
        summary="Take retired hosts for offline again",
    )
    async def restore(self, call: Call[None, HostSelector]) -> object:
        """Those that are not retired are passed over."""
        return RestoredCount(await self._hosts.restore(selected(call.body)))


class HostExportRoutes:
    """Lists of hosts to take along.

    Args:
        hosts: as last reported.
        exports: where the file goes.
    """

    routes = Routes("/api/v6/asset-center", auth=AuthKind.TOKEN)

    def __init__(self, hosts: Hosts, exports: Exports) -> None:
        self._hosts, self._exports = hosts, exports

    @routes.post(
        "/ExportHosts",
        body=HostSelector,
        limit=SELECTOR_BYTES,
        levels=AGENT_READERS,
        answer=bytes,
        media="text/event-stream",
        summary="Write selected hosts to a file for download",
    )
    async def export(self, call: Call[None, HostSelector]) -> object:
        """Server-sent events tell how far it is, and the file's name."""
        test = selected(call.body, reading=True)
        total = await self._hosts.count(test)
        documents = self._hosts.documents(test)
        listing = Listing("hosts", EXPORT_HEADER, total, documents, export_rows)
        return self._exports.begin(call.identity.user.id, listing)
