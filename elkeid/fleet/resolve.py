"""How an agent learns where gateways are: it asks service discovery, then falls back.

Source: docs/protocol.md, "What agents do".
"""

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import msgspec
from attrs import frozen
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from elkeid.errors import PeerError
from elkeid.fleet.link import Address

LOOKUP = "/registry/detail?name=hids_svr_grpc&count=10"
ANSWER_BYTES = 1 << 20  # ten instances take 2 KiB; more than this is no answer of a registry


class LookupFailed(PeerError):
    """Service discovery gave no address."""


class _Instance(msgspec.Struct):
    """One gateway as listed; an answer with any other type in these keys is void as a whole."""

    ip: str
    port: int
    weight: int = 0


class _Answer(msgspec.Struct):
    data: list[_Instance]
    code: int = 0


def parse_answer(body: bytes) -> list[Address]:
    """Read the answer to `LOOKUP` as agents do: types strict, status and weight without effect.

    Raises:
        LookupFailed: it is no such answer, or lists nothing.
    """
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except msgspec.MsgspecError as error:
        raise LookupFailed(f"service discovery: {error}") from error
    if not answer.data:
        raise LookupFailed("service discovery lists no gateway")
    return [Address(each.ip, each.port) for each in answer.data]


class Lookup(Protocol):
    """Asks one service discovery node."""

    def __call__(self, member: str) -> Deferred[list[Address]]:
        """Fire with addresses in the order received, or fail; ``member`` is ``host:port``."""


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Dials addresses as they are; Twisted's own way looks each up in a thread, like a name."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        host = uri.host.decode("ascii")
        if isIPAddress(host):
            return TCP4ClientEndpoint(self._reactor, host, uri.port)
        if isIPv6Address(host):
            return TCP6ClientEndpoint(self._reactor, host, uri.port)
        return HostnameEndpoint(self._reactor, host, uri.port)


class HttpLookup:
    """Asks over HTTP, without a timeout and whatever the status, as agents do.

    Args:
        reactor: for TCP, names and time.
    """

    def __init__(self, reactor: Any) -> None:
        self._agent: IAgent = Agent.usingEndpointFactory(reactor, _Endpoints(reactor))
        self._headers = Headers({b"user-agent": [b"Go-http-client/1.1"]})

    def __call__(self, member: str) -> Deferred[list[Address]]:
        """Fail with `LookupFailed` when nothing usable comes."""
        url = f"http://{member}{LOOKUP}".encode()
        asked: Deferred[Any] = self._agent.request(b"GET", url, self._headers)
        asked.addCallback(_read)
        asked.addCallback(parse_answer)
        asked.addErrback(_as_lookup_failed)
        return asked


def _as_lookup_failed(failure: Failure) -> NoReturn:
    if failure.check(LookupFailed, CancelledError):
        failure.raiseException()
    raise LookupFailed(
        f"service discovery: {failure.getErrorMessage().rstrip('.')}"
    ) from failure.value


class _BoundedBody(TwistedProtocol):
    """Collects a body, and hangs up on an endless one."""

    transport: Any

    def __init__(self) -> None:
        self._body = bytearray()
        self.done: Deferred[bytes] = Deferred(lambda _: self.transport.loseConnection())

    def dataReceived(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > ANSWER_BYTES:
            self._body.clear()
            self._fail(LookupFailed(f"service discovery: more than {ANSWER_BYTES} bytes"))
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(bytes(self._body))
        else:
            self._fail(LookupFailed(f"service discovery: {reason.getErrorMessage()}"))

    def _fail(self, error: Exception) -> None:
        if not self.done.called:
            self.done.errback(error)


def _read(response: Any) -> Deferred[bytes]:
    body = _BoundedBody()
    response.deliverBody(body)
    return body.done


@frozen
class AddressBook:
    """Where one agent looks for gateways.

    Attributes:
        member: its service discovery node, ``host:port``; None when it asks none.
        private: addresses built into it, tried when service discovery gives none that works.
    """

    member: str | None
    private: Sequence[Address] = ()
