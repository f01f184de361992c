"""``/admin/drain``: take a gateway out of service, see how far that is, and take it back.

Source: docs/protocol.md, "AgentCenter API".
"""

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from twisted.internet.interfaces import IReactorTime

from elkeid.agentcenter.drain import Drain, DrainState
from elkeid.agentcenter.gateway import Gateway
from elkeid.errors import OperatorError
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes

DRAIN_SECONDS = 60.0  # a fleet that leaves in a minute does not storm its next gateway


class DrainBody(msgspec.Struct):
    """Body of ``POST /admin/drain``; ``deadline`` is in seconds."""

    deadline: Annotated[float, msgspec.Meta(ge=1, le=3600)] = DRAIN_SECONDS
    then: Literal["stay", "exit"] = "stay"


class DrainAnswer(msgspec.Struct):
    """How far a drain is; ``seconds`` are left until its deadline."""

    state: str
    connections: int
    agents: int
    seconds: float


class AdminRoutes:
    """What operators do to one gateway process.

    Args:
        drain: takes it out of service.
        gateway: what is drained.
        leave: stops the process.
        clock: that of ``drain``.
    """

    routes = Routes("/admin", auth=AuthKind.SIGNED)

    def __init__(
        self, drain: Drain, gateway: Gateway, leave: Callable[[], None], clock: IReactorTime
    ) -> None:
        self._drain, self._gateway, self._leave, self._clock = drain, gateway, leave, clock

    @routes.post(
        "/drain",
        body=DrainBody,
        answer=DrainAnswer,
        summary="Send all agents elsewhere, then stay without any, or exit",
    )
    async def drain(self, call: Call[None, DrainBody]) -> DrainAnswer:
        """Answers when it has begun; 409 if it has before."""
        if self._drain.state is not DrainState.SERVING:
            now = self._show()
            raise CodedRefusal(
                3, f"{now.state} already: {now.connections} connections left", status=409
            )
        then = self._leave if call.body.then == "exit" else None
        self._drain.begin(call.body.deadline, then)
        return self._show()

    @routes.post("/undrain", answer=DrainAnswer, summary="Take agents again")
    async def undrain(self, call: Call) -> DrainAnswer:
        """At once, also in the middle of a drain; a gateway that serves goes on."""
        try:
            self._drain.undo()
        except OperatorError as error:
            raise CodedRefusal(3, str(error)) from error
        return self._show()

    @routes.get("/drain", answer=DrainAnswer, summary="How far a drain is")
    async def show(self, call: Call) -> DrainAnswer:
        """``serving`` if there is none."""
        return self._show()

    def _show(self) -> DrainAnswer:
        draining = self._drain.state is DrainState.DRAINING
        left = max(0.0, self._drain.end - self._clock.seconds()) if draining else 0.0
        return DrainAnswer(
            self._drain.state, len(self._gateway.links), len(self._gateway.table), round(left, 1)
        )
