"""An agent's TCP connection to a gateway: dialled, wrapped in TLS, and its bytes moved.

Source: docs/protocol.md, "What agents do".
"""

from collections.abc import Callable
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IOpenSSLClientConnectionCreator,
    IPushProducer,
    IReactorTCP,
    IReactorTime,
)
from twisted.internet.protocol import ClientFactory, Factory
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from elkeid.errors import PeerError
from elkeid.fleet.grpc_client import (
    CallEnded,
    ConnectionBroken,
    ConnectionReady,
    GoAwayReceived,
    GrpcClientConnection,
    MessageReceived,
)
from elkeid.wire.grpc import Status

DIAL_SECONDS = 15.0  # an agent's budget for one address: TCP, TLS and the first SETTINGS
QUEUED_BYTES = 65_536  # what an agent's library queues of a stream before a send has to wait


class DialFailed(PeerError):
    """No usable connection came of dialling one address."""


@frozen
class Address:
    """Where a gateway is.

    Attributes:
        host: IPv4, IPv6 without brackets, or a name.
        port: TCP port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class StreamOwner(Protocol):
    """What a link tells of one of its streams."""

    def message_received(self, compressed: bool, body: bytes) -> None:
        """The server sent a message."""

    def stream_ended(self, ended: CallEnded) -> None:
        """The stream is over, for whatever reason."""


@implementer(IPushProducer)
class AgentLink(TwistedProtocol):
    """Moves bytes between one agent and the gateway: one Transfer stream, and uploads beside it.

    Args:
        authority: as dialled, for the request headers.
        settled: called once with None when the gateway's SETTINGS came, or with the reason why
            they never will.
    """

    transport: Any

    def __init__(self, authority: str, settled: Callable[[Failure | None], None]) -> None:
        self._http2 = GrpcClientConnection(authority)
        self._settled: Callable[[Failure | None], None] | None = settled
        self._owners: dict[int, StreamOwner] = {}  # stream id -> whose it is
        self._stream_id = 0  # of the Transfer stream
        self._paused = False
        self._lost = False
        self.orderly_loss = False

    # --- for the agent

    @property
    def usable(self) -> bool:
        """Whether a new stream can be opened here."""
        return not self._lost and not self._http2.going_away and self._settled is None

    @property
    def blocked(self) -> bool:
        """Whether a send would have to wait for the gateway."""
        return self._paused or self._http2.waiting_on(self._stream_id) > QUEUED_BYTES

    def open_stream(self, owner: StreamOwner) -> None:
        """Open the Transfer stream; its end is told to ``owner`` exactly once."""
        self._stream_id = self._http2.open_call()
        self._owners[self._stream_id] = owner
        self._flush()

    def open_call(self, owner: StreamOwner, path: str, timeout: str) -> int:
        """Open another stream; its end is told to ``owner`` exactly once.

        Args:
            owner: hears of it.
            path: of the method.
            timeout: as gRPC writes it.

        Returns:
            Its number, for `send_on` and `half_close_call`.
        """
        stream_id = self._http2.open_call(path, timeout)
        self._owners[stream_id] = owner
        self._flush()
        return stream_id

    def send_on(self, stream_id: int, body: bytes) -> None:
        """Send one compressed message on a stream."""
        self._http2.send_message(stream_id, body)
        self._flush()

    def half_close_call(self, stream_id: int) -> None:
        """Say that nothing more comes on a stream."""
        self._http2.half_close(stream_id)
        self._flush()

    def send(self, body: bytes) -> None:
        """Send one compressed message on the Transfer stream."""
        self.send_on(self._stream_id, body)

    def half_close(self) -> None:
        """Say that nothing more comes on the Transfer stream; its status follows."""
        self.half_close_call(self._stream_id)

    def cancel_stream(self, reason: str) -> None:
        """Reset the stream; its owner hears so."""
        self._http2.cancel_call(self._stream_id)
        self._flush()
        self._end(CallEnded(self._stream_id, Status.CANCELLED, reason, False, False))

    def close(self) -> None:
        """Close the connection in an orderly way."""
        if not self._lost:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        if not self._lost and self.transport is not None:
            self.transport.abortConnection()

    # --- for Twisted

    def connectionMade(self) -> None:
        """Send the preface, which TLS holds back until its handshake is over."""
        self.transport.registerProducer(self, True)
        self._flush()

    def dataReceived(self, data: bytes) -> None:
        """Read what the gateway sent."""
        for event in self._http2.receive_data(data):
            if type(event) is MessageReceived:
                owner = self._owners.get(event.stream_id)
                if owner is not None:
                    owner.message_received(event.compressed, event.body)
            elif type(event) is CallEnded:
                self._end(event)
            elif type(event) is ConnectionReady:
                self._settle(None)
            elif type(event) is GoAwayReceived:
                if not self._http2.open_calls:
                    self.close()
            elif type(event) is ConnectionBroken:
                self._flush()
                self.close()
        self._flush()

    def tcp_lost(self, reason: Failure) -> None:
        """Note how the connection ended below TLS, which tells agents what to do next."""
        self.orderly_loss = reason.check(ConnectionDone) is not None

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """Tell the owners that their streams are gone."""
        self._lost = True
        self._settle(reason)
        for each in list(self._owners):
            self._end(CallEnded(each, Status.UNAVAILABLE, "connection lost", False, False))

    def pauseProducing(self) -> None:
        """See `IPushProducer`: the socket takes no more."""
        self._paused = True

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self._paused = False

    def stopProducing(self) -> None:
        """See `IPushProducer`: the connection is lost; `connectionLost` tells."""

    def _flush(self) -> None:
        data = self._http2.data_to_send()
        if data and not self._lost:
            self.transport.write(data)

    def _settle(self, reason: Failure | None) -> None:
        settled, self._settled = self._settled, None
        if settled is not None:
            settled(reason)

    def _end(self, ended: CallEnded) -> None:
        owner = self._owners.pop(ended.stream_id, None)
        if self._http2.going_away and not self._http2.open_calls:
            self.close()
        if owner is not None:
            owner.stream_ended(ended)


class _AgentTLS(TLSMemoryBIOProtocol):
    """TLS that lets the link see whether TCP ended by FIN or by reset."""

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        assert isinstance(self.wrappedProtocol, AgentLink)
        self.wrappedProtocol.tcp_lost(reason)
        super().connectionLost(reason)


class _AgentTLSFactory(TLSMemoryBIOFactory):
    """Without Twisted's gathering of small writes: an agent writes once a tick as it is."""

    protocol = _AgentTLS
    noisy = False


class _Dial(ClientFactory):
    """One attempt at one address; ``done`` fires with the link or fails."""

    noisy = False

    def __init__(
        self, address: Address, tls: IOpenSSLClientConnectionCreator, clock: IReactorTime
    ) -> None:
        self._address, self._clock = address, clock
        self._failed: Failure | None = None
        self.done: Deferred[AgentLink] = Deferred(self._cancel)
        self._link = AgentLink(str(address), self._settled)
        inner = Factory.forProtocol(lambda: self._link)
        inner.noisy = False
        self._tls = _AgentTLSFactory(tls, True, inner, clock)
        self._budget: IDelayedCall | None = clock.callLater(DIAL_SECONDS, self._spent)
        self._connector: Any = None
        self._given_up = False

    def startedConnecting(self, connector: Any) -> None:
        """Keep what can stop the attempt."""
        self._connector = connector

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """TLS around the link."""
        return self._tls.buildProtocol(addr)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        """Refused, unreachable or reset: the next address can be tried at once."""
        self._finish(reason)

    def _settled(self, reason: Failure | None) -> None:
        if reason is None:
            self._finish(None)
        elif self._link.orderly_loss and reason.check(ConnectionDone, ConnectionLost):
            # An agent's library keeps trying an address that closes politely until the budget
            # is spent; waiting it out costs the server less and the agent as much.
            self._failed = reason
        else:
            self._finish(reason)

    def _spent(self) -> None:
        self._budget = None
        late = DialFailed(f"nothing usable within {DIAL_SECONDS:g} s")
        self._finish(self._failed or Failure(late))
        self._hang_up()

    def _cancel(self, _: object) -> None:
        self._given_up = True  # the Deferred itself fails, once this returns
        self._stop_budget()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._link.transport is not None:
            self._link.abort()
        else:
            self._connector.stopConnecting()

    def _stop_budget(self) -> None:
        if self._budget is not None:
            self._budget.cancel()
            self._budget = None

    def _finish(self, reason: Failure | None) -> None:
        self._stop_budget()
        if self.done.called or self._given_up:
            return
        if reason is None:
            self.done.callback(self._link)
        else:
            text = reason.getErrorMessage().rstrip(".") or type(reason.value).__name__
            self.done.errback(DialFailed(f"{self._address}: {text}"))


class Dialler:
    """Makes links.

    Args:
        reactor: for TCP and time.
        tls: an agent's side of TLS, shared by all.
    """

    def __init__(self, reactor: Any, tls: IOpenSSLClientConnectionCreator) -> None:
        self._tcp: IReactorTCP = reactor
        self._clock: IReactorTime = reactor
        self._tls = tls

    def dial(self, address: Address) -> Deferred[AgentLink]:
        """Connect; fire with a link that a stream can be opened on.

        Fails with `DialFailed`: at once when the address refuses or resets, after the budget of
        15 s when it stays silent or closes in an orderly way. Cancelling gives up.
        """
        dial = _Dial(address, self._tls, self._clock)
        # The dial's own budget covers TCP as well.
        self._tcp.connectTCP(address.host, address.port, dial, timeout=None)  # type: ignore[arg-type]
        return dial.done
