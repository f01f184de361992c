"""``POST /conn/probe``: whether agents are really here.

A stream whose host vanished stays open for a while. A Manager that sees one id at two gateways
asks the elder stream's for a sign of life, as a gateway does when it sees both itself.

Source: docs/protocol.md, "Agent ids".
"""

from typing import Annotated, Final

import msgspec
from twisted.internet.defer import Deferred

from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.identity import ID_BYTES
from elkeid.agentcenter.transfer import TransferStream
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.wire.grpc import Status

PROBE_LIMIT: Final = 1_000
"""Agents probed by one call: some 20 ms of work."""


class ProbeBody(msgspec.Struct):
    """Whom to ask."""

    id_list: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=ID_BYTES)]],
        msgspec.Meta(max_length=PROBE_LIMIT),
    ]


class ProbeAnswer(msgspec.Struct):
    """Who gave a sign of life, each with its address and port; and who is not here, or did not."""

    alive: dict[str, str]
    gone: list[str]


class ProbeRoutes:
    """Asks agents for a sign of life.

    Args:
        gateway: whose agents.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @routes.post(
        "/conn/probe",
        body=ProbeBody,
        answer=ProbeAnswer,
        summary="Ask agents for a sign of life; streams without one are ended",
    )
    async def probe(self, call: Call[None, ProbeBody]) -> ProbeAnswer:
        """Answers within ``probe_seconds``."""
        ids = list(dict.fromkeys(call.body.id_list))
        asked = [self._ask(agent_id) for agent_id in ids]
        answer = ProbeAnswer({}, [])
        for agent_id, sign in zip(ids, asked, strict=True):
            peer = await sign
            if peer is None:
                answer.gone.append(agent_id)
            else:
                answer.alive[agent_id] = peer
        return answer

    def _ask(self, agent_id: str) -> Deferred[str | None]:
        """The address of the agent's stream, or None without a sign of life."""
        result: Deferred[str | None] = Deferred()
        agent = self._gateway.table.get(agent_id)
        if agent is None:
            result.callback(None)
            return result
        stream = agent.stream
        assert isinstance(stream, TransferStream)

        def told(alive: bool) -> None:
            if not alive:
                stream.end(Status.ABORTED, "this agent answered no longer, and is elsewhere")
                stream.abandon()
            result.callback(stream.peer_addr if alive else None)

        stream.probe(told)
        return result
