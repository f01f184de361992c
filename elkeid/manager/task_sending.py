"""Sending subtasks to AgentCenters: signed calls of ``POST /command/``, so many at once.

Source: docs/protocol.md, "Commands"; docs/tasks.md, "Sending".
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from attrs import define, field, frozen
from twisted.internet.defer import DeferredSemaphore
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IReactorTime
from twisted.web.client import ResponseNeverReceived

from elkeid.manager.documents import Source
from elkeid.manager.store.task_work import Verdict
from elkeid.web.client import AnswerInvalid, CallFailed, JsonClient, Unreachable

PATH: Final = "/command/"

CALL_SECONDS: Final = 15.0
"""For one call; an AgentCenter of ours answers within 4 s."""

PER_AC: Final = 64
"""Calls at once to one AgentCenter: it waits for agents, not for its processor."""

PER_MANAGER: Final = 256
"""Calls at once to all: each holds a connection, a few buffers and its body."""

DOWN_SECONDS: Final = 5.0
"""An AgentCenter that cannot be dialled is not dialled again for so long: agents go elsewhere."""

RESPONSE_CHARACTERS: Final = 500
"""Of an AC's answer that is kept beside a subtask."""

NOT_SENT: Final = ("not_connected", "queue_full", "withdrawn")
"""``outcome`` of our AgentCenters where nothing was sent."""

_NOT_SENT_WORDS: Final = ("agentID not found", "the sendPool of the agent is full")
"""``data`` of any AgentCenter where nothing was sent."""


@frozen
class Sent:
    """What an AC said, or why it said nothing."""

    verdict: Verdict
    reason: str = ""
    response: str | None = None


class Sender(Protocol):
    """Brings one command to the AC that has the agent."""

    async def send(self, source: Source, body: Callable[[], bytes]) -> Sent:
        """Send; ``body`` is made when its turn has come."""


class _Answer(msgspec.Struct):
    code: int
    msg: str = ""
    data: Any = None
    outcome: str = ""


@define
class _Gateway:
    turns: DeferredSemaphore = field(factory=lambda: DeferredSemaphore(PER_AC))
    down_until: float = 0.0
    users: int = 0


class HttpSender:
    """`Sender` over HTTPS.

    Args:
        clock: for how long an AC counts as down.
        http: signs, keeps connections, and verifies ACs' certificates.
        call_seconds: for one call.
    """

    def __init__(
        self, clock: IReactorTime, http: JsonClient, call_seconds: float = CALL_SECONDS
    ) -> None:
        self._clock, self._http, self._call_seconds = clock, http, call_seconds
        self._turns = DeferredSemaphore(PER_MANAGER)
        self._gateways: dict[Source, _Gateway] = {}

    async def send(self, source: Source, body: Callable[[], bytes]) -> Sent:
        """See `Sender`."""
        gateway = self._gateways.setdefault(source, _Gateway())
        gateway.users += 1
        try:
            await gateway.turns.acquire()
            try:
                await self._turns.acquire()
                try:
                    return await self._call(gateway, source, body)
                finally:
                    self._turns.release()
            finally:
                gateway.turns.release()
        finally:
            gateway.users -= 1
            if not gateway.users and gateway.down_until <= self._clock.seconds():
                self._gateways.pop(source, None)

    async def _call(self, gateway: _Gateway, source: Source, body: Callable[[], bytes]) -> Sent:
        if gateway.down_until > self._clock.seconds():
            return Sent(Verdict.NOT_SENT, f"AgentCenter {source} cannot be reached")
        url = f"https://{source}{PATH}"
        try:
            reply = await self._http.call("POST", url, body(), seconds=self._call_seconds)
            answer = reply.decode(_Answer)
        except Unreachable as error:
            if _never_connected(error):
                gateway.down_until = self._clock.seconds() + DOWN_SECONDS
                return Sent(Verdict.NOT_SENT, f"AgentCenter {source} cannot be reached", str(error))
            return Sent(Verdict.UNSURE, f"AgentCenter {source} gave no answer", str(error))
        except AnswerInvalid as error:
            text = str(error)[:RESPONSE_CHARACTERS]
            return Sent(Verdict.UNSURE, f"AgentCenter {source} gave no usable answer", text)
        except CallFailed as error:
            return Sent(Verdict.UNSURE, f"AgentCenter {source} gave no answer", str(error))
        gateway.down_until = 0.0
        return judged(answer, reply.body)


def judged(answer: _Answer, body: bytes) -> Sent:
    """What an AC's answer means."""
    if answer.code == 0:
        return Sent(Verdict.TAKEN)
    text = body[:RESPONSE_CHARACTERS].decode("utf-8", "replace")
    words = answer.data if isinstance(answer.data, str) else answer.msg
    if answer.code != 3:
        return Sent(Verdict.REFUSED, f"the AgentCenter refused it: {words or answer.msg}", text)
    if answer.outcome == "partly_written":
        # The rest follows by itself; if it does not, no result comes, which is noticed.
        return Sent(Verdict.TAKEN, "", text)
    if answer.outcome in NOT_SENT or (not answer.outcome and words in _NOT_SENT_WORDS):
        return Sent(Verdict.NOT_SENT, words, text)
    return Sent(Verdict.UNSURE, words, text)


def _never_connected(error: BaseException) -> bool:
    """Whether a call failed before a connection was there to send it over."""
    cause: BaseException | None = error
    while cause is not None:
        reasons = getattr(cause, "reasons", None)
        if isinstance(cause, ConnectError | DNSLookupError):
            return True
        if isinstance(cause, ResponseNeverReceived):
            return False
        cause = reasons[0].value if reasons else cause.__cause__
    return False
