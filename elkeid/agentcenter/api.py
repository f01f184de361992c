"""The gateway's HTTP API: who is connected, and what is known of them.

Source: docs/protocol.md, "AgentCenter API".
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from elkeid.agentcenter.claims import Conflict, Replacement, Unidentified
from elkeid.agentcenter.configs import ConfigState
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.heartbeats import plugin_info
from elkeid.agentcenter.table import Agent
from elkeid.web.answers import JSON_TYPE, CodeEnvelope, Enveloped, FileAnswer, Pieces, encode_json
from elkeid.web.refusals import AuthenticationFailed, ParameterInvalid
from elkeid.web.routes import AuthKind, Call, MiB, Routes

ENVELOPE = CodeEnvelope(
    messages={0: "success", 1: "auth failed", 2: "param invalid", 3: "some errors occurred"},
    codes={AuthenticationFailed: 1, ParameterInvalid: 2},
    other=3,
)

SLICE_SECONDS: Final = 0.01
"""Of putting agents into JSON in one reactor turn."""

STATUS_BYTES: Final = 2 * MiB
"""Of one answer to a Manager that knows cursors, beyond its first agent: 500 usual agents."""


class StatQuery(msgspec.Struct):
    """Query of ``GET /conn/stat``; ``since`` is the cursor of an earlier answer, or empty."""

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
        """``complete`` tells whether ``data`` is everybody; else only what changed.

        With ``since``, even an empty one, an answer is bounded: ``more`` tells that the next one
        goes on where it ends. Without, it is everybody, however many.
        """
        changes = self._gateway.table.changes(call.query.since)
        bounded = call.query.since is not None
        parts = await self._encoded(changes.agents, STATUS_BYTES if bounded else inf)
        more = len(parts) < len(changes.agents)
        beside = {
            "cursor": changes.cursor_after(len(parts)) if more else changes.cursor,
            "gone": changes.gone,
            "complete": changes.complete,
            "more": more,
        }
        if bounded:
            return Enveloped(msgspec.Raw(b"[" + b",".join(parts) + b"]"), beside)
        whole = encode_json(ENVELOPE.success(msgspec.Raw(b"[]"), beside))
        head, tail = whole.split(b"[]", 1)
        for number in range(1, len(parts)):
            parts[number] = b"," + parts[number]
        pieces = [head, b"[", *parts, b"]", tail]
        size = sum(len(piece) for piece in pieces)
        return FileAnswer(Pieces(pieces), size, {"content-type": JSON_TYPE})

    async def _encoded(self, agents: Sequence[Agent], most: float) -> list[bytes]:
        """The first of these agents in JSON, up to so many bytes beyond the first one's."""
        parts: list[bytes] = []
        size, monotonic = 0, self._gateway.monotonic
        until = monotonic() + SLICE_SECONDS
        for agent in agents:
            part = encode_json(status_of(agent))
            if parts and size + len(part) > most:
                break
            parts.append(part)
            size += len(part)
            if monotonic() > until:
                await deferLater(self._clock, 0)
                until = monotonic() + SLICE_SECONDS
        return parts

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
