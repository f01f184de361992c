"""Calls to the Manager's inner routes: any of its members, signed, with a deadline.

Source: docs/protocol.md, "What AgentCenter asks of a Manager".
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from attrs import evolve

from elkeid.errors import PeerError
from elkeid.web.client import CallFailed, FileBody, JsonClient, Reply

FINAL_STATUSES = (400, 413)
PARAM_INVALID = 5
"""The Manager's code for a body that breaks the schema; the same body would be refused again."""


class ManagerRefused(PeerError):
    """A Manager answered with a code other than 0; another member would answer alike.

    ``final`` tells that the same request would be refused whenever it came.
    """

    def __init__(self, code: int, reason: str, status: int = 200) -> None:
        super().__init__(f"the Manager answered code {code}: {reason}")
        self.code = code
        self.final = code == PARAM_INVALID or status in FINAL_STATUSES


class NoSuchRoute(CallFailed):
    """A Manager does not know the route, as a stock one those that are ours alone."""


class ManagerAnswer(msgspec.Struct):
    """What every inner route answers; ``data`` is as the route has it."""

    code: int
    msg: str = ""
    data: Any = None
    allow_empty: bool = False  # beside ``data``: an empty config is meant


class ManagerClient:
    """Asks one member, and on no answer the next.

    Args:
        http: makes the calls, and signs them.
        members: ``host:port`` of every Manager.
    """

    def __init__(self, http: JsonClient, members: Sequence[str]) -> None:
        self._http = http
        self._members = list(members)

    async def post(
        self, path: str, body: object, *, seconds: float, limit: int = 4 << 20
    ) -> ManagerAnswer:
        """POST ``body`` as JSON.

        Args:
            path: such as ``/api/v1/agent/queryInfo``.
            body: to become JSON.
            seconds: for the whole call, over all members.
            limit: bytes of the answer.

        Raises:
            ManagerRefused: it answered, with a code other than 0.
            CallFailed: no member gave a usable answer.
        """

        async def call(url: str, share: float) -> Reply:
            return await self._http.post(url, body, seconds=share, limit=limit)

        return await self._each(path, seconds, call)

    async def upload(
        self, path: str, body: FileBody, content_type: str, *, seconds: float
    ) -> ManagerAnswer:
        """POST what is in a file; the rest as in `post`."""

        async def call(url: str, share: float) -> Reply:
            headers = {"content-type": content_type}
            return await self._http.call("POST", url, body, seconds=share, headers=headers)

        return await self._each(path, seconds, call)

    async def _each(
        self, path: str, seconds: float, call: Callable[[str, float], Awaitable[Reply]]
    ) -> ManagerAnswer:
        share = seconds / len(self._members)
        failure: CallFailed | None = None
        for member in list(self._members):
            try:
                return _answer(await call(f"http://{member}{path}", share))
            except CallFailed as error:
                failure = error
                # The one that fails is asked last from now on.
                self._members.remove(member)
                self._members.append(member)
        assert failure is not None
        raise failure


def _answer(reply: Reply) -> ManagerAnswer:
    """Take an answer, also one that stands under HTTP 400 or 413."""
    if reply.status == 404:
        raise NoSuchRoute(f"HTTP 404: {reply.excerpt()}")
    refused = reply.status in FINAL_STATUSES
    answer = evolve(reply, status=200).decode(ManagerAnswer) if refused else None
    if answer is None or not answer.code:
        answer = reply.decode(ManagerAnswer)
    if answer.code:
        reason = answer.data if isinstance(answer.data, str) else answer.msg
        raise ManagerRefused(answer.code, reason, reply.status)
    return answer
