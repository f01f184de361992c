"""Whether a file that a host brings was asked for: here, by another gateway, or by a Manager.

Source: docs/protocol.md, "Uploads".
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from elkeid.agentcenter.manager_client import ManagerClient, ManagerRefused, NoSuchRoute
from elkeid.agentcenter.tokens import TokenBook
from elkeid.errors import PeerError
from elkeid.web.client import JsonClient
from elkeid.web.routes import AuthKind, Call, Routes

TOKEN_PATH: Final = "/upload/token"  # noqa: S105 - a path
MANAGER_PATH: Final = "/api/v1/inner/token"

CHECK_SECONDS: Final = 3.0
"""For all who are asked, together: the host waits meanwhile."""

UNCONFIRMED_RATE: Final = 1 / 60
UNCONFIRMED_BURST: Final = 60.0
"""Files a second, and at once, whose tokens nobody can confirm, as with a stock Manager."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_STOCK_TOKEN = re.compile(r"[0-9a-v]{20}\Z")


def well_formed(token: str) -> bool:
    """Say whether a text can be a token at all; only such ones are looked up or written down."""
    return bool(_TOKEN.match(token))


class TokenQuery(msgspec.Struct):
    """Query of ``GET /upload/token``."""

    token: str


class TokenKnown(msgspec.Struct):
    """Whether this gateway sent the token in a task, and it is not used up."""

    known: bool


class _PeerAnswer(msgspec.Struct):
    code: int
    data: TokenKnown


class _NotKnown(PeerError):
    """The one who was asked does not confirm a token."""


class UploadTokenRoutes:
    """Tells other gateways which tokens this one sent.

    Args:
        book: of this gateway.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self, book: TokenBook) -> None:
        self._book = book

    @routes.get(
        TOKEN_PATH,
        query=TokenQuery,
        answer=TokenKnown,
        summary="Whether this gateway sent the token of an upload",
    )
    async def token(self, call: Call[TokenQuery, None]) -> TokenKnown:
        """An agent may bring a file to another gateway than the one that asked for it."""
        return TokenKnown(self._book.agent_of(call.query.token) is not None)


class TokenCheck:
    """Confirms tokens.

    Args:
        book: of this gateway.
        manager: is asked for tokens that are not in it.
        peers: gives the addresses of the other gateways' APIs, as far as they are known.
        listed: the same as ServiceDiscovery lists them at this moment.
        http: asks them; signs, and verifies their certificates.
        clock: for the deadline.
        monotonic: seconds that only go forward.
    """

    log = Logger()

    def __init__(
        self,
        book: TokenBook,
        *,
        manager: ManagerClient,
        peers: Callable[[], Sequence[str]],
        listed: Callable[[], Awaitable[Sequence[str]]],
        http: JsonClient,
        clock: IReactorTime,
        monotonic: Callable[[], float],
    ) -> None:
        self._book, self._manager, self._http = book, manager, http
        self._peers, self._listed = peers, listed
        self._clock, self._monotonic = clock, monotonic
        self._left, self._counted_at = UNCONFIRMED_BURST, monotonic()

    async def valid(self, token: str) -> bool:
        """Say whether a file may come under this token."""
        if self._book.spent(token):
            return False
        if self._book.agent_of(token) is not None:
            return True
        stock: list[bool] = []
        peers = self._peers()
        questions = [
            Deferred.fromCoroutine(self._ask_manager(token, stock)),
            Deferred.fromCoroutine(self._ask_peers(token, peers)),
            Deferred.fromCoroutine(self._ask_newcomers(token, peers)),
        ]
        if await self._any(questions):
            return True
        if not stock or not _STOCK_TOKEN.match(token):
            return False
        return self._unconfirmed()

    def _unconfirmed(self) -> bool:
        """Take one file from the quota of those whose tokens nobody can confirm."""
        now = self._monotonic()
        earned = (now - self._counted_at) * UNCONFIRMED_RATE
        self._left, self._counted_at = min(UNCONFIRMED_BURST, self._left + earned), now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    async def _any(self, questions: "Sequence[Deferred[None]]") -> bool:
        """Say whether one of these succeeds in time; the others are given up then."""
        asked = DeferredList(questions, fireOnOneCallback=True, consumeErrors=True)
        timer = self._clock.callLater(CHECK_SECONDS, asked.cancel)  # each fails, then
        try:
            return isinstance(await asked, tuple)
        finally:
            if timer.active():
                timer.cancel()
            for question in questions:
                question.cancel()

    async def _ask_manager(self, token: str, stock: list[bool]) -> None:
        try:
            answer = await self._manager.post(MANAGER_PATH, {"token": token}, seconds=CHECK_SECONDS)
        except NoSuchRoute:
            stock.append(True)
            raise
        except ManagerRefused as error:
            raise _NotKnown(str(error)) from error
        if not (isinstance(answer.data, dict) and answer.data.get("known") is True):
            raise _NotKnown("not a token of the Manager")

    async def _ask_peers(self, token: str, peers: Sequence[str]) -> None:
        if not peers:
            raise _NotKnown("no other gateway")
        questions = [Deferred.fromCoroutine(self._ask_peer(peer, token)) for peer in peers]
        if not await self._any(questions):
            raise _NotKnown("not a token of another gateway")

    async def _ask_newcomers(self, token: str, known: Sequence[str]) -> None:
        """Ask who came up since the others were last listed: a file is brought only once."""
        listed = await self._listed()
        await self._ask_peers(token, [peer for peer in listed if peer not in known])

    async def _ask_peer(self, peer: str, token: str) -> None:
        reply = await self._http.get(
            f"https://{peer}{TOKEN_PATH}", {"token": token}, seconds=CHECK_SECONDS, limit=64 << 10
        )
        answer = reply.decode(_PeerAnswer)
        if answer.code or not answer.data.known:
            raise _NotKnown("not a token of this gateway")
