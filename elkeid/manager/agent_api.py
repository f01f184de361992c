"""``/api/v1/agent/getStatus``: agents as last reported."""

from typing import Annotated, Any

import msgspec

from elkeid.manager.agents import AgentStatus
from elkeid.manager.codes import DATABASE_ERROR
from elkeid.manager.filter import EVERYTHING, FilterBody, Test, parse
from elkeid.manager.roles import EVERY_USER
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes

PAGE_LIMIT = 1 << 53  # a page number; beyond, it is no number for many clients


class PageQuery(msgspec.Struct):
    """Which page of a list; the order is that of agent ids, whatever is asked."""

    page: Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT)] = 1
    page_size: Annotated[int, msgspec.Meta(ge=1, le=5000)] = 100
    order_key: str = ""
    order_value: int = 0


class ModelPage(msgspec.Struct):
    """One page of a list."""

    total: int  # that match
    count: int  # in this page
    pages: int
    page: int
    page_size: int
    has_prev: bool
    has_next: bool
    items: list[Any]


class AgentRoutes:
    """What every user may see of agents.

    Args:
        agents: as last reported.
    """

    routes = Routes("/api/v1/agent", auth=AuthKind.TOKEN)

    def __init__(self, agents: AgentStatus) -> None:
        self._agents = agents

    @routes.get(
        "/getStatus",
        query=PageQuery,
        levels=EVERY_USER,
        answer=ModelPage,
        summary="List all agents",
    )
    async def list_all(self, call: Call[PageQuery, None]) -> object:
        """By agent id."""
        return await self._page(EVERYTHING, call.query)

    @routes.get(
        "/getStatus/<string:agent_id>",
        levels=EVERY_USER,
        answer=dict[str, Any],
        summary="Show one agent",
    )
    async def show(self, call: Call) -> object:
        """Code 3 for an agent never heard of."""
        found = await self._agents.find(call.parts["agent_id"])
        if found is None:
            raise CodedRefusal(DATABASE_ERROR, "no agent with this id has ever been reported")
        return found

    @routes.post(
        "/getStatus/filter",
        query=PageQuery,
        body=FilterBody | None,
        levels=EVERY_USER,
        answer=ModelPage,
        summary="List the agents that satisfy a filter",
    )
    async def list_some(self, call: Call[PageQuery, FilterBody | None]) -> object:
        """By agent id."""
        return await self._page(parse(call.body), call.query)

    async def _page(self, test: Test, asked: PageQuery) -> ModelPage:
        size = asked.page_size
        found = await self._agents.page(test, (asked.page - 1) * size, size)
        pages = -(-found.total // size)
        return ModelPage(
            total=found.total,
            count=len(found.items),
            pages=pages,
            page=asked.page,
            page_size=size,
            has_prev=asked.page > 1,
            has_next=asked.page < pages,
            items=found.items,
        )
