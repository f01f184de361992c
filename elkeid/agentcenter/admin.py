"""``/admin/drain``: take a gateway out of service, see how far that is, and take it back.

Where several processes are the gateway of a host, a call to one of them is for all of them.

Source: docs/protocol.md, "AgentCenter API".
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

import msgspec
from twisted.internet.interfaces import IReactorTime

from elkeid.agentcenter.drain import Drain, DrainState
from elkeid.agentcenter.gateway import Gateway
from elkeid.errors import OperatorError
from elkeid.web.client import CallFailed, Reply
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes

DRAIN_SECONDS = 60.0  # a fleet that leaves in a minute does not storm its next gateway


class DrainBody(msgspec.Struct):
    """Body of ``POST /admin/drain``; ``deadline`` is in seconds."""

    deadline: Annotated[float, msgspec.Meta(ge=1, le=3600)] = DRAIN_SECONDS
    then: Literal["stay", "exit"] = "stay"


class _Code(msgspec.Struct):
    code: int


class DrainAnswer(msgspec.Struct):
    """How far a drain is; ``seconds`` are left until its deadline."""

    state: str
    connections: int
    agents: int
    seconds: float


class ScopeQuery(msgspec.Struct):
    """Query of what changes a drain: who does.

    All gateway processes of this host, the one asked alone, or the one asked because another
    one, which was asked for all, tells it so.
    """

    scope: Literal["host", "worker", "told"] = "host"


OthersAsk = Callable[[str, object], Awaitable[list[Reply | CallFailed]]]
"""Makes a POST to the other gateway processes of this host; their answers."""


class AdminRoutes:
    """What operators do to the gateway of a host.

    Args:
        drain: takes it out of service.
        gateway: what is drained.
        leave: stops the process.
        clock: that of ``drain``.
        others: asks the other processes of this host; None if there are none.
    """

    routes = Routes("/admin", auth=AuthKind.SIGNED)

    def __init__(
        self,
        drain: Drain,
        gateway: Gateway,
        leave: Callable[[], None],
        clock: IReactorTime,
        others: OthersAsk | None = None,
    ) -> None:
        self._drain, self._gateway, self._leave, self._clock = drain, gateway, leave, clock
        self._others = others

    @routes.post(
        "/drain",
        query=ScopeQuery,
        body=DrainBody,
        answer=DrainAnswer,
        summary="Send all agents elsewhere, then stay without any, or exit",
    )
    async def drain(self, call: Call[ScopeQuery, DrainBody]) -> DrainAnswer:
        """Answers when it has begun; 409 if it has before, at every process asked."""
        body, begun = call.body, self._drain.state is DrainState.SERVING
        if begun:
            then = self._leave if body.then == "exit" else None
            self._drain.begin(body.deadline, then, together=call.query.scope != "worker")
        told = await self._tell_others("/admin/drain", call.query, body)
        if not begun and not any(reply.status == 200 for reply in told):
            now = self._show()
            raise CodedRefusal(
                3, f"{now.state} already: {now.connections} connections left", status=409
            )
        return self._show()

    @routes.post("/undrain", query=ScopeQuery, answer=DrainAnswer, summary="Take agents again")
    async def undrain(self, call: Call[ScopeQuery, None]) -> DrainAnswer:
        """At once, also in the middle of a drain; a gateway that serves goes on."""
        try:
            self._drain.undo()
        except OperatorError as error:
            raise CodedRefusal(3, str(error)) from error
        await self._tell_others("/admin/undrain", call.query, {})
        return self._show()

    @routes.get("/drain", answer=DrainAnswer, summary="How far a drain is")
    async def show(self, call: Call) -> DrainAnswer:
        """``serving`` if there is none."""
        return self._show()

    async def _tell_others(self, path: str, query: ScopeQuery, body: object) -> list[Reply]:
        """Ask the same of the other processes of this host, if it is for all of them.

        Raises:
            CodedRefusal: one of them did not do it.
        """
        if self._others is None or query.scope != "host":
            return []
        replies, faults = [], []
        for answer in await self._others(f"{path}?scope=told", body):
            if isinstance(answer, CallFailed):
                faults.append(str(answer))
            elif answer.status == 409 or (answer.status == 200 and answer.decode(_Code).code == 0):
                replies.append(answer)
            else:
                faults.append(answer.excerpt())
        if faults:
            raise CodedRefusal(3, f"done here, but not at every worker: {'; '.join(faults)}")
        return replies

    def _show(self) -> DrainAnswer:
        draining = self._drain.state is DrainState.DRAINING
        left = max(0.0, self._drain.end - self._clock.seconds()) if draining else 0.0
        return DrainAnswer(
            self._drain.state, len(self._gateway.links), len(self._gateway.table), round(left, 1)
        )
