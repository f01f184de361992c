"""Asking every AgentCenter the same thing at once: one that is dead costs only its own answer."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar

import msgspec
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from elkeid.manager.documents import Source
from elkeid.web.client import AnswerInvalid, CallFailed, JsonClient

T = TypeVar("T")

ANSWER_SECONDS: Final = 2.0
"""For one AgentCenter: a living one answers in milliseconds."""

ALL_SECONDS: Final = 8.0
"""For all of them: an operator waits, and a browser gives up later."""

AT_ONCE: Final = 32
"""Asked side by side: with a TLS handshake each, some 50 ms of work for the reactor."""

ANSWER_BYTES: Final = 4 << 20
"""Of one answer: three lists of a thousand entries are below 1 MiB."""


class NoSuchThing(AnswerInvalid):
    """The AgentCenter has no such route: it is one of upstream, or older."""


class _Envelope(msgspec.Struct):
    code: int
    msg: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


@frozen
class Answers(Generic[T]):
    """What the ones said, and why the others did not."""

    answered: Mapping[Source, T]
    failed: Mapping[Source, str]


class Gateways:
    """Asks AgentCenters.

    Args:
        clock: for deadlines.
        http: signs, and verifies AgentCenters' certificates.
    """

    def __init__(self, clock: IReactorTime, http: JsonClient) -> None:
        self._clock, self._http = clock, http

    async def ask(
        self,
        source: Source,
        path: str,
        kind: type[T],
        body: object = None,
        *,
        seconds: float = ANSWER_SECONDS,
        whole: bool = False,
    ) -> T:
        """Ask one: GET without a body, else POST.

        Args:
            source: whom.
            path: of the route.
            kind: the type of ``data``, or of the answer with what stands beside it.
            body: to become JSON.
            seconds: until it is given up.
            whole: ``kind`` is that of the answer.

        Raises:
            NoSuchThing: it has no such route.
            CallFailed: it does not answer, or not with code 0; the text says which.
        """
        url = f"https://{source}{path}"
        if body is None:
            reply = await self._http.get(url, seconds=seconds, limit=ANSWER_BYTES)
        else:
            reply = await self._http.post(url, body, seconds=seconds, limit=ANSWER_BYTES)
        if reply.status == 404:
            raise NoSuchThing(f"{url}: there is no such route")
        try:
            answer = msgspec.json.decode(reply.body, type=_Envelope)
            if answer.code == 0 and reply.status == 200:
                return msgspec.json.decode(reply.body if whole else answer.data, type=kind)
            reason = msgspec.json.decode(answer.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise AnswerInvalid(f"{url}: not the expected JSON: {error}") from error
        words = reason if isinstance(reason, str) and reason else answer.msg
        raise AnswerInvalid(f"{source}: {words} (code {answer.code})")

    async def ask_all(
        self, sources: Iterable[Source], ask: Callable[[Source], Awaitable[T]]
    ) -> Answers[T]:
        """Ask many, `AT_ONCE` side by side, within `ALL_SECONDS`.

        Args:
            sources: whom.
            ask: asks one.
        """
        waiting = list(sources)[::-1]
        answered: dict[Source, T] = {}
        failed: dict[Source, str] = {}
        until = self._clock.seconds() + ALL_SECONDS

        async def take_turns() -> None:
            while waiting:
                source = waiting.pop()
                if self._clock.seconds() >= until:
                    failed[source] = "not asked: the others took too long"
                    continue
                try:
                    answered[source] = await ask(source)
                except CallFailed as error:
                    failed[source] = str(error)

        turns = [Deferred.fromCoroutine(take_turns()) for _ in range(min(AT_ONCE, len(waiting)))]
        for turn in turns:
            await turn
        return Answers(answered, failed)
