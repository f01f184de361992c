"""The live feed over WebSocket.

Imported when the first listener comes, in a thread: the library takes a third of a second.

Source: docs/protocol.md, "Manager API", "Live feed"; RFC 6455.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from elkeid.errors import StoreError
from elkeid.manager.live import MESSAGE_BYTES, TOKEN_SECONDS, FeedFull, Listener, LiveFeed
from elkeid.web.answers import encode_json
from elkeid.web.refusals import Refusal

PING_SECONDS: Final = 20.0
"""Between two pings: shorter than proxies in between wait."""

PONG_SECONDS: Final = 20.0
"""For the answer to one; a listener without is gone."""

CLOSE_SECONDS: Final = 2.0
"""For its answer to a close."""

UNEXPECTED: Final = 4400
UNKNOWN_CALLER: Final = 4401
TRY_LATER: Final = 4503
"""Close codes, by the HTTP status that says the same."""

REASON_BYTES: Final = 123
"""Of a close, by RFC 6455."""


class _TokenMessage(msgspec.Struct):
    token: str


@implementer(IPushProducer)
class _Room:
    """Hears from the transport whether there is room."""

    def __init__(self, protocol: "LiveProtocol") -> None:
        self._protocol = protocol

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._protocol.full(True)

    def resumeProducing(self) -> None:
        """It has drained."""
        self._protocol.full(False)

    def stopProducing(self) -> None:
        """The connection is over, which the protocol hears by itself."""


class LiveProtocol(WebSocketServerProtocol):
    """One listener's connection.

    Args:
        feed: what is listened to.
        clock: for the token's deadline.
        make: makes the listener, given its sink: at once if the caller is known, else of the
            token in its first message.
        known: whether ``make`` needs no token.
    """

    log = Logger()
    transport: Any

    def __init__(
        self,
        feed: LiveFeed,
        clock: IReactorTime,
        make: Callable[["LiveProtocol", str | None], Awaitable[Listener]],
        known: bool,
    ) -> None:
        super().__init__()
        self._feed, self._clock, self._make, self._known = feed, clock, make, known
        self._listener: Listener | None = None
        self._joining: Deferred[None] | None = None
        self._deadline: IDelayedCall | None = None
        self._is_full = False

    def onOpen(self) -> None:
        """The handshake is over."""
        self._feed.strangers.add(self)
        self.transport.registerProducer(_Room(self), True)
        if self._known:
            self._join(None)
        else:
            self._deadline = self._clock.callLater(TOKEN_SECONDS, self._late)

    def _late(self) -> None:
        self._deadline = None
        self.close(UNKNOWN_CALLER, "no token came")

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """The token; nothing else is expected."""
        if self._deadline is None:
            self.close(UNEXPECTED, "a listener says nothing but its token")
            return
        self._deadline.cancel()
        self._deadline = None
        try:
            token = msgspec.json.decode(payload, type=_TokenMessage).token
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.close(UNEXPECTED, 'expected {"token":"..."}')
            return
        self._join(token)

    def _join(self, token: str | None) -> None:
        self._joining = Deferred.fromCoroutine(self._joined(token))
        self._joining.addErrback(lambda failure: self.log.failure("cannot listen", failure))

    async def _joined(self, token: str | None) -> None:
        try:
            listener = await self._make(self, token)
            if self.state != self.STATE_OPEN:
                return
            self._feed.join(listener)
        except CancelledError:
            return
        except FeedFull as error:
            self.close(TRY_LATER, str(error))
            return
        except Refusal as refusal:
            self.end(refusal.reason)
            return
        except StoreError:
            self.close(TRY_LATER, "the database does not answer")
            return
        finally:
            self._joining = None
            self._feed.strangers.discard(self)
        self._listener = listener
        if self._is_full:
            listener.pause()
        listener.tell(encode_json({"event": "ready"}))

    def full(self, is_full: bool) -> None:
        """The transport says whether there is room."""
        self._is_full = is_full
        if self._listener is None:
            return
        if is_full:
            self._listener.pause()
        else:
            self._listener.resume()

    def tell(self, event: bytes) -> None:
        """See `Sink`. A connection that is closing is told nothing more."""
        if self.state == self.STATE_OPEN:
            self.sendMessage(event)

    def end(self, reason: str) -> None:
        """See `Sink`."""
        self.close(UNKNOWN_CALLER, reason)

    def close(self, code: int, reason: str) -> None:
        """Say why, and close; nothing more is told."""
        if self._listener is not None:
            self._feed.leave(self._listener)
        if self.state == self.STATE_OPEN:
            text = reason.encode()[:REASON_BYTES].decode("utf-8", "ignore")
            self.sendClose(code, text)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is over."""
        self._feed.strangers.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._joining is not None:
            self._joining.cancel()
        if self._listener is not None:
            self._feed.leave(self._listener)


class _Later:
    """A call that may be cancelled at any time."""

    def __init__(self, call: IDelayedCall) -> None:
        self._call = call

    def cancel(self) -> None:
        """Do not make it, if it was not made yet."""
        if self._call.active():
            self._call.cancel()


class _Timer:
    """The library's timer, on our clock instead of the global reactor."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def call_later(self, seconds: float, call: Callable[..., Any], *args: Any) -> _Later:
        """Call later."""
        return _Later(self._clock.callLater(seconds, call, *args))


def factory(clock: Any) -> Any:
    """What connections share: limits, and pings for the silent."""
    made = WebSocketServerFactory(reactor=clock)
    made._batched_timer = _Timer(clock)
    made.setProtocolOptions(
        webStatus=False,
        maxFramePayloadSize=MESSAGE_BYTES,
        maxMessagePayloadSize=MESSAGE_BYTES,
        openHandshakeTimeout=TOKEN_SECONDS,
        closeHandshakeTimeout=CLOSE_SECONDS,
        autoPingInterval=PING_SECONDS,
        autoPingTimeout=PONG_SECONDS,
        autoPingSize=12,
        tcpNoDelay=True,
        failByDrop=False,
    )
    return made
