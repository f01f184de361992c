"""``/api/v1/agent/getStatus``: agents as last reported."""

from typing import Any

from elkeid.manager.agents import AgentStatus
from elkeid.manager.codes import DATABASE_ERROR
from elkeid.manager.filter import EVERYTHING, FilterBody, Test, parse
from elkeid.manager.pages import ModelPage, PageQuery, model_page
from elkeid.manager.roles import EVERY_USER
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes


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
        reads=True,
        levels=EVERY_USER,
        answer=ModelPage,
        summary="List the agents that satisfy a filter",
    )
    async def list_some(self, call: Call[PageQuery, FilterBody | None]) -> object:
        """By agent id."""
        return await self._page(parse(call.body), call.query)

    async def _page(self, test: Test, asked: PageQuery) -> ModelPage:
        found = await self._agents.page(test, asked.offset, asked.page_size)
        return model_page(asked, found.total, found.items)
