"""JSON calls to other roles: signed, with a deadline, never more bytes than expected."""

from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from secrets import token_urlsafe
from typing import IO, Any, TypeVar, cast
from urllib.parse import unquote, urlencode, urlsplit

import msgspec
from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Cooperator, deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from elkeid.errors import PeerError
from elkeid.web.answers import encode_json
from elkeid.wire.signature import body_hash, sign

KiB = 1 << 10
MiB = 1 << 20
TIMEOUT = 5.0  # seconds for a whole call
CONNECT_TIMEOUT = 3.0  # seconds; a host that is gone must not use up the call's deadline
ANSWER_LIMIT = 4 * MiB  # bytes; callers that expect a whole fleet's status ask for more
IDLE_SECONDS = 20  # a kept connection is dropped before the server drops it (30 s)
KEPT_CONNECTIONS = 2  # per host
FILE_PIECE = 64 * KiB  # of a body that is read from a file
NONCE_RANDOM = 16  # bytes of chance in the nonce of a signed request

T = TypeVar("T")


class CallFailed(PeerError):
    """A call to another role brought no usable answer; the text says why."""


class Unreachable(CallFailed):
    """No whole answer came: refused, broken off, or not in time."""


class AnswerInvalid(CallFailed):
    """An answer came that cannot be used."""


@frozen
class Credentials:
    """An access key and its secret key."""

    ak: str
    sk: str = field(repr=False)


@frozen
class Reply:
    """An answer, whatever its status.

    ``skew`` is the peer's clock minus ours in seconds, from its Date header (which has a
    resolution of 1 s), or None.
    """

    status: int
    body: bytes
    skew: float | None

    def decode(self, kind: type[T]) -> T:
        """Decode the JSON body; `AnswerInvalid` for a status other than 200 or another form."""
        if self.status != 200:
            raise AnswerInvalid(f"HTTP {self.status}: {self.excerpt()}")
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise AnswerInvalid(f"not the expected JSON: {error}") from error

    def excerpt(self) -> str:
        """The beginning of the body, for a log line."""
        return self.body[:200].decode("utf-8", "replace")


@implementer(IAgent)
class PooledAgent:
    """Makes requests over connections that it keeps until `close`.

    Args:
        agent: makes them, from ``pool``.
        pool: of the kept connections.
    """

    def __init__(self, agent: IAgent, pool: HTTPConnectionPool) -> None:
        self._agent, self._pool = agent, pool

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See `IAgent`."""
        return self._agent.request(method, uri, headers, bodyProducer)

    def close(self) -> Deferred[None]:
        """Close the kept connections, and end their timers."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


def http_agent(
    reactor: Any, policy: IPolicyForHTTPS | None = None, kept: int = KEPT_CONNECTIONS
) -> PooledAgent:
    """Make an agent that keeps connections; ``policy`` decides about TLS servers.

    ``kept`` connections to each host stay open: as many as it is asked things at once.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = kept
    pool.cachedConnectionTimeout = IDLE_SECONDS
    if policy is None:
        return PooledAgent(Agent(reactor, connectTimeout=CONNECT_TIMEOUT, pool=pool), pool)
    return PooledAgent(Agent(reactor, policy, connectTimeout=CONNECT_TIMEOUT, pool=pool), pool)


@frozen
class FileBody:
    """A request body that is read from a file while it is sent.

    ``head`` and ``tail`` stand before and behind the file's content; ``sha256`` is of all, in
    lower-case hex, ``size`` counts its bytes.
    """

    path: Path
    head: bytes
    tail: bytes
    size: int
    sha256: str


class JsonClient:
    """Calls JSON APIs.

    Args:
        clock: for deadlines.
        agent: makes the requests: `http_agent`, or one in memory.
        wall: seconds since the epoch, for signatures and to measure skew.
        credentials: sign every request with these, and with a nonce in its query that no other
            request has.
    """

    def __init__(
        self,
        clock: IReactorTime,
        agent: IAgent,
        wall: Callable[[], float],
        credentials: Credentials | None = None,
    ) -> None:
        self._clock, self._agent, self._wall = clock, agent, wall
        self._credentials = credentials

    async def close(self) -> None:
        """Give up kept connections; a client that is used again makes new ones."""
        if isinstance(self._agent, PooledAgent):
            # A connection returns to the pool just after its answer has been delivered.
            await deferLater(self._clock, 0)
            await self._agent.close()

    async def get(
        self,
        url: str,
        query: Mapping[str, str] | None = None,
        *,
        seconds: float = TIMEOUT,
        limit: int = ANSWER_LIMIT,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """GET; the rest as in `call`."""
        if query:
            url = f"{url}?{urlencode(query)}"
        return await self.call("GET", url, b"", seconds=seconds, limit=limit, headers=headers)

    async def post(
        self,
        url: str,
        body: object,
        *,
        seconds: float = TIMEOUT,
        limit: int = ANSWER_LIMIT,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """POST ``body`` as JSON; the rest as in `call`."""
        return await self.call(
            "POST", url, encode_json(body), seconds=seconds, limit=limit, headers=headers
        )

    async def call(
        self,
        method: str,
        url: str,
        body: bytes | FileBody,
        *,
        seconds: float = TIMEOUT,
        limit: int = ANSWER_LIMIT,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Make one request.

        Args:
            method: in capitals.
            url: whole, its query encoded.
            body: of the request.
            seconds: for everything, from connecting to the answer's last byte.
            limit: bytes of the answer; a larger one is broken off.
            headers: more headers.

        Raises:
            Unreachable: no whole answer came.
            AnswerInvalid: it was larger than ``limit``.
        """
        exchange = Deferred.fromCoroutine(self._exchange(method, url, body, limit, headers or {}))
        late = False

        def expire() -> None:
            nonlocal late
            late = True
            exchange.cancel()

        deadline = self._clock.callLater(seconds, expire)
        try:
            return await exchange
        except CallFailed:
            raise
        except Exception as error:
            if late:
                raise Unreachable(f"{url}: no answer within {seconds:g} s") from error
            cause = _cause(error)
            if isinstance(cause, CancelledError | ConnectingCancelledError):
                raise CancelledError from error  # whoever called does not wait any more
            raise Unreachable(f"{url}: {str(cause) or type(cause).__name__}") from error
        finally:
            if deadline.active():
                deadline.cancel()

    async def _exchange(
        self,
        method: str,
        url: str,
        body: bytes | FileBody,
        limit: int,
        more: Mapping[str, str],
    ) -> Reply:
        headers = Headers()
        for name, value in more.items():
            headers.setRawHeaders(name, [value])
        if body and not headers.hasHeader("content-type"):
            headers.setRawHeaders("content-type", ["application/json"])
        began = self._wall()
        target = url
        if self._credentials is not None:
            target += f"{'&' if '?' in url else '?'}nonce={token_urlsafe(NONCE_RANDOM)}"
            self._sign(headers, method, target, body, began)
        response = await self._agent.request(
            method.encode(), target.encode(), headers, self._producer(body)
        )
        content = await _collect(response, limit, url)
        return Reply(response.code, content, _skew(response, (began + self._wall()) / 2))

    def _producer(self, body: bytes | FileBody) -> IBodyProducer | None:
        if isinstance(body, bytes):
            return _Whole(body) if body else None
        clock = self._clock
        cooperator = Cooperator(scheduler=lambda step: clock.callLater(0, step))
        producer = FileBodyProducer(_Joined(body), cooperator, FILE_PIECE)
        producer.length = body.size
        return producer

    def _sign(
        self, headers: Headers, method: str, url: str, body: bytes | FileBody, at: float
    ) -> None:
        assert self._credentials is not None
        ak, sk = self._credentials.ak, self._credentials.sk
        parts, timestamp = urlsplit(url), str(int(at))
        hashed = body_hash(body) if isinstance(body, bytes) else body.sha256
        path = unquote(parts.path)
        signed = sign(method, path, parts.query, ak, sk, timestamp, hashed=hashed)
        for name, value in (("AccessKey", ak), ("TimeStamp", timestamp), ("Signature", signed)):
            headers.setRawHeaders(name, [value])


class _Joined:
    """Reads head, file and tail of a body as one file, which is opened when it is wanted.

    Reads do not wait for a disk: who just wrote the file left it in the page cache.
    """

    def __init__(self, body: FileBody) -> None:
        self._parts: list[Callable[[], IO[bytes]]] = [
            lambda: BytesIO(body.head),
            lambda: body.path.open("rb"),
            lambda: BytesIO(body.tail),
        ]
        self._part: IO[bytes] | None = None

    def read(self, size: int) -> bytes:
        while self._part or self._parts:
            if self._part is None:
                self._part = self._parts.pop(0)()
            piece = self._part.read(size)
            if piece:
                return piece
            self._part.close()
            self._part = None
        return b""

    def close(self) -> None:
        self._parts = []
        if self._part is not None:
            self._part.close()
            self._part = None


@implementer(IBodyProducer)
class _Whole:
    """A request body that is written at once."""

    def __init__(self, body: bytes) -> None:
        self._body, self.length = body, len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything is written already."""

    def resumeProducing(self) -> None:
        """Everything is written already."""

    def stopProducing(self) -> None:
        """Everything is written already."""


class _Collector(Protocol):
    """Keeps an answer's body, up to ``limit`` bytes."""

    def __init__(self, limit: int, url: str) -> None:
        self._limit, self._url, self._size = limit, url, 0
        self._pieces: list[bytes] = []
        self.done: Deferred[bytes] = Deferred(lambda _: self._abort())

    def dataReceived(self, data: bytes) -> None:
        if self._size > self._limit:
            return
        self._size += len(data)
        if self._size > self._limit:
            self._abort()
            self.done.errback(_too_large(self._limit, self._url))
            return
        self._pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # Without a length and chunks (HTTP/1.0) the end of the connection is the end.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._pieces))
        else:
            self.done.errback(reason)

    def _abort(self) -> None:
        self._pieces.clear()
        if self.transport is not None:
            self.transport.loseConnection()


async def _collect(response: IResponse, limit: int, url: str) -> bytes:
    collector = _Collector(limit, url)
    announced = response.length
    if isinstance(announced, int) and announced > limit:
        collector.done.addErrback(lambda _: None)
        response.deliverBody(collector)
        collector.done.cancel()
        raise _too_large(limit, url)
    response.deliverBody(collector)
    return await collector.done


def _too_large(limit: int, url: str) -> AnswerInvalid:
    return AnswerInvalid(f"{url}: the answer has more than {limit} bytes")


def _skew(response: IResponse, now: float) -> float | None:
    dates = cast(Headers, response.headers).getRawHeaders("date")
    if not dates:
        return None
    try:
        at = parsedate_to_datetime(dates[0]).timestamp()
    except (ValueError, OverflowError):
        return None
    return at + 0.5 - now  # the header is cut to whole seconds: on average half a second late


def _cause(error: BaseException) -> BaseException:
    """Twisted wraps the causes of a broken exchange in lists of failures."""
    reasons = getattr(error, "reasons", None)
    return _cause(reasons[0].value) if reasons else error
