"""``POST /conn/reset``: end agents' streams, so that they connect anew.

Source: docs/protocol.md, "AgentCenter API".
"""

from random import Random

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from elkeid.agentcenter.farewell import ROUND
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.table import Agent
from elkeid.agentcenter.transfer import TransferStream
from elkeid.web.refusals import CodedRefusal, ParameterInvalid
from elkeid.web.routes import AuthKind, Call, MiB, Routes

RESET_LIMIT = 4 * MiB  # bytes; 100,000 ids


class ResetBody(msgspec.Struct):
    """Body of ``/conn/reset``: ``count`` agents (``random``), or those of ``id_list``."""

    type: str | None = None
    id_list: list[str] | None = None
    count: int | None = None


class ResetAnswer(msgspec.Struct):
    """``count`` of the agents asked for, and what became of each."""

    count: int
    detail: dict[str, str]


class ResetRoutes:
    """Ends streams in peace: what an agent has sent is kept, and it is back after 5 s.

    Args:
        gateway: whose agents.
        clock: for letting others have their turn.
        random: chooses agents.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self, gateway: Gateway, clock: IReactorTime, random: Random) -> None:
        self._gateway, self._clock, self._random = gateway, clock, random

    @routes.post(
        "/conn/reset",
        body=ResetBody,
        limit=RESET_LIMIT,
        answer=ResetAnswer,
        summary="End the streams of some agents, so that they connect anew",
    )
    async def reset(self, call: Call[None, ResetBody]) -> ResetAnswer:
        """Answers once every stream has been told."""
        body, table = call.body, self._gateway.table
        if not body.type:
            raise ParameterInvalid("type: required, random or strict")
        if body.type == "random":
            count = min(max(body.count or 0, 0), len(table))
            ids = [agent.agent_id for agent in self._random.sample(list(table), count)]
        elif body.type == "strict":
            ids = body.id_list or []
        else:
            raise CodedRefusal(2, "type only support strict|random")
        detail: dict[str, str] = {}
        for number, agent_id in enumerate(ids, 1):
            detail[agent_id] = _end(table.get(agent_id))
            if number % ROUND == 0:
                await deferLater(self._clock, 0)
        return ResetAnswer(len(ids), detail)

    @routes.get("/kube/cluster/list", answer=list[str], summary="Kubernetes clusters heard of")
    async def clusters(self, call: Call) -> list[str]:
        """None: this release takes no audit events of Kubernetes."""
        return []


def _end(agent: Agent | None) -> str:
    if agent is None:
        return "agentID not found"
    assert isinstance(agent.stream, TransferStream)
    agent.stream.leave()
    return "ok"
