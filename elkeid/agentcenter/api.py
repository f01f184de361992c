"""The gateway's HTTP API: who is connected, and what is known of them.

Source: docs/protocol.md, "AgentCenter API".
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from elkeid.agentcenter.claims import Conflict, Replacement, Unidentified
from elkeid.agentcenter.configs import ConfigState
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.heartbeats import plugin_info
from elkeid.agentcenter.table import Agent
from elkeid.web.answers import CodeEnvelope, Enveloped, encode_json
from elkeid.web.refusals import AuthenticationFailed, ParameterInvalid
from elkeid.web.routes import AuthKind, Call, Routes

ENVELOPE = CodeEnvelope(
    messages={0: "success", 1: "auth failed", 2: "param invalid", 3: "some errors occurred"},
    codes={AuthenticationFailed: 1, ParameterInvalid: 2},
    other=3,
)

SLICE = 50
"""Agents put into JSON in one reactor turn: about 5 ms of work."""


class StatQuery(msgspec.Struct):
    """Query of ``GET /conn/stat``; ``since`` is the cursor of an earlier answer."""

    since: str | None = None


class AgentStatus(msgspec.Struct):
    """One agent: both parts empty until its first heartbeat."""

    agent_info: dict[str, Any]
    plugins_info: list[dict[str, Any]]


class Disputes(msgspec.Struct):
    """Answer of ``GET /conn/conflicts``."""

    conflicts: list[Conflict]
    replaced: list[Replacement]


class Nameless(msgspec.Struct):
    """One entry of ``GET /conn/unidentified``."""

    connected: bool
    host: Unidentified


def status_of(agent: Agent) -> dict[str, Any]:
    """The status of one agent as ``/conn/stat`` shows it."""
    info = agent.info()
    if info:
        info["config"] = (agent.config or ConfigState()).shown()
        info |= agent.stream.arrivals.shown()
    return {
        "agent_info": info,
        "plugins_info": [plugin_info(body, at) for body, at in agent.plugins.values()],
    }


class ConnectionRoutes:
    """Reads of the agent table, for Managers.

    Args:
        gateway: whose table.
        clock: for yielding between slices of a large answer.
        ledger: what was read, kept and dropped, per class.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(
        self, gateway: Gateway, clock: IReactorTime, ledger: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._gateway, self._clock, self._ledger = gateway, clock, ledger

    @routes.get(
        "/conn/stat",
        query=StatQuery,
        answer=list[AgentStatus],
        summary="Status of every connected agent, or of those that changed since a cursor",
    )
    async def stat(self, call: Call[StatQuery, None]) -> object:
        """``complete`` tells whether ``data`` is everybody; else only what changed."""
        changes = self._gateway.table.changes(call.query.since)
        beside = {"cursor": changes.cursor, "gone": changes.gone, "complete": changes.complete}
        return Enveloped(await self._encoded(changes.agents), beside)

    async def _encoded(self, agents: Iterable[Agent]) -> msgspec.Raw:
        parts: list[bytes] = []
        for number, agent in enumerate(agents, 1):
            parts.append(encode_json(status_of(agent)))
            if number % SLICE == 0:
                await deferLater(self._clock, 0)
        return msgspec.Raw(b"[" + b",".join(parts) + b"]")

    @routes.get("/conn/list", answer=list[str], summary="Ids of the connected agents")
    async def ids(self, call: Call) -> object:
        """The ids, in no order."""
        return [agent.agent_id for agent in self._gateway.table]

    @routes.get("/conn/count", answer=int, summary="Number of connected agents")
    async def count(self, call: Call) -> object:
        """Their number."""
        return len(self._gateway.table)

    @routes.get("/conn/conflicts", answer=Disputes, summary="The latest disputes about agent ids")
    async def conflicts(self, call: Call) -> object:
        """Who lost a claim, and who is replaced again and again; the latest first."""
        claims = self._gateway.table.claims
        return Disputes(claims.conflicts.latest(), claims.replaced.latest())

    @routes.get(
        "/conn/unidentified",
        answer=list[Nameless],
        summary="Hosts whose agents send no id, the latest first",
    )
    async def unidentified(self, call: Call) -> object:
        """Each with the id that was derived for it, and whether it is connected."""
        table = self._gateway.table
        return [
            Nameless(table.get(entry.agent_id) is not None, entry)
            for entry in table.claims.unidentified.latest()
        ]

    @routes.get("/ledger", answer=dict[str, Any], summary="What was read, kept, dropped and taken")
    async def ledger(self, call: Call) -> object:
        """Per class: read, appended, dropped by reason, and each reader's progress.

        Beside it stands what agents lost before it got here, by their own counters.
        """
        arrivals = self._gateway.arrivals
        lost = {"dropped_in_buffer": arrivals.dropped, "lost_in_flight": arrivals.in_flight}
        return Enveloped(self._ledger(), {"before_reading": lost})
