"""Serving a face: bounded requests over HTTP/1.1, and ports that open with a clear word.

Twisted buffers a request's body whole, in memory or in a temporary file, before anyone may
object. Here the limit of the route is known when the headers are complete: a body that is
announced too large is refused before it is read, one that grows too large is cut, and a peer
that sends too slowly is dropped. Room is held for what has arrived, see `elkeid.web.bodies`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from attrs import frozen
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IDelayedCall,
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTCP,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel, datetimeToString
from twisted.web.http_headers import Headers
from twisted.web.server import Request, Site

from elkeid.errors import OperatorError
from elkeid.web.answers import JSON_TYPE
from elkeid.web.api import Api
from elkeid.web.bodies import BodyRoom
from elkeid.web.peers import address_of, forwarded
from elkeid.web.refusals import BodyTooLarge, Busy, InternalFault, ParameterInvalid, Refusal
from elkeid.web.routes import BODY_LIMIT, MiB, Route
from elkeid.web.spool import Spool

_FULL = "too many large requests at once"


@frozen(kw_only=True)
class FaceLimits:
    """Limits of one face; a peer that breaks one loses its connection.

    ``idle_seconds``: without a byte, between requests or within one; agents keep a connection
    to ServiceDiscovery open for nothing. ``request_seconds``: for one request to arrive whole.
    ``drain_seconds``, ``drain_bytes``: how long and how much is read after a refusal, so that
    the peer sees the answer instead of a reset. ``connections``: at once; beyond, the oldest that
    has asked for nothing yet makes room, else the new one is closed. ``bodies_bytes``,
    ``bodies_share``: what bodies hold in memory at once, all together and those from one address,
    as far as they have arrived. ``spool_bytes``, ``spool_share``, ``spool_seconds``: likewise on
    disk, and for one of these to arrive whole (300 MiB in 5 minutes is 1 MiB/s).
    """

    idle_seconds: float = 30.0
    request_seconds: float = 30.0
    drain_seconds: float = 5.0
    drain_bytes: int = 16 * MiB
    connections: int = 10_000
    bodies_bytes: int = 128 * MiB
    bodies_share: int = 32 * MiB
    spool_bytes: int = 1024 * MiB
    spool_share: int = 512 * MiB
    spool_seconds: float = 300.0


class BoundedRequest(Request):
    """A request whose body is kept in memory, or on disk, up to its route's limit."""

    log = Logger()
    channel: Any  # the untyped BoundedChannel; None once the connection is lost
    content: Any  # a BytesIO or Spool, once the headers are complete
    defaultContentType = None

    _refused = False
    _route: Route | None = None
    _limit = 0
    _address = ""  # whose share the body takes
    _room: BodyRoom
    _held = 0  # bytes of the body that have arrived and are kept
    _discarded = 0
    _drain: IDelayedCall | None = None

    def getRequestHostname(self) -> bytes:
        """Routes do not depend on the Host header, so a bad one breaks nothing."""
        return b"localhost"

    def gotLength(self, length: int | None) -> None:
        """Decide about the body: ``length`` is 0, what was announced, or None for chunks."""
        self.content = BytesIO()
        if length == 0:
            return
        site: FaceSite = self.channel.site
        self._route = route = site.api.route_of(self.channel._command, self.channel._path)
        self._limit = BODY_LIMIT if route is None else route.limit
        self._room = site.disk if route is not None and route.spooled else site.memory
        client, self._address = self.channel.client_of(self.requestHeaders)
        unwelcome = None if route is None else site.api.turned_away(route, client)
        size = length or 0
        if unwelcome is not None:
            self._refuse(unwelcome)
        elif size > self._limit:
            self._refuse(BodyTooLarge(self._limit))
        elif not self._room.has(self._address, size, size):
            self._refuse(Busy(_FULL))
        elif self._room is site.disk:
            self.channel.request_seconds = site.limits.spool_seconds

    def _admit(self, more: int) -> bool:
        """Refuse unless ``more`` bytes of the body may be kept."""
        size = self._held + more
        if size > self._limit:
            self._refuse(BodyTooLarge(self._limit))
        elif self._room.take(self._address, more, size):
            self._held = size
        else:
            self._refuse(Busy(_FULL))
        return not self._refused

    def _disk_full(self, error: OSError) -> None:
        self.log.error("a large request cannot be kept: {error}", error=error)
        self._refuse(Busy("no room for large requests"))

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body, or discard it after a refusal."""
        if not data:
            return
        if not self._refused and self._admit(len(data)):
            site: FaceSite = self.channel.site
            try:
                if self._room is site.disk and not isinstance(self.content, Spool):
                    self.content = Spool(site.spool_dir)  # one that only announces gets no file
                self.content.write(data)
            except OSError as error:
                self._disk_full(error)
            return
        self._discarded += len(data)
        if self._discarded > self.channel.site.limits.drain_bytes:
            self.channel.abort()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer while the body is still under way, then read on for a while and close."""
        self._refused = True
        self.requestHeaders.removeHeader(b"expect")  # no "100 Continue" after the answer
        self._release()
        self.content.close()
        self.content = BytesIO()
        channel = self.channel
        channel.persistent = False
        channel.answer_and_close(refusal, self._route, close=False)
        limits: FaceLimits = channel.site.limits
        self._drain = channel.callLater(limits.drain_seconds, channel.abort)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is whole: serve the request, unless it was refused on the way."""
        if self._refused:
            self.channel.loseConnection()
            return
        super().requestReceived(command, path, version)

    def process(self) -> None:
        """Hand over to the face; there is one resource, and no traversal."""
        self.site = self.channel.site
        self.responseHeaders.setRawHeaders(b"date", [datetimeToString()])
        self.prepath = []
        self.postpath = [unquote_to_bytes(part) for part in self.path[1:].split(b"/")]
        try:
            self.render(self.site.resource)
        except Exception:
            self.processingFailed(Failure())

    def processingFailed(self, reason: Failure) -> Failure:
        """Log a bug whole and tell the peer only that there was one."""
        self.log.failure("{method} {uri} failed", reason, method=self.method, uri=self.uri)
        if self.channel is None or self.startedWriting:
            if self.channel is not None:
                self.channel.abort()
            return reason
        status, body = self.channel.site.api.refusal(InternalFault())
        self.channel.site.api.observe(self._route, status)
        self.setResponseCode(status)
        self.setHeader("content-type", JSON_TYPE)
        self.setHeader("content-length", str(len(body)))
        self.write(body)
        self.finish()
        return reason

    def finish(self) -> None:
        """The answer is complete."""
        self._release()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        """The peer is gone."""
        self._release()
        if self._drain is not None and self._drain.active():
            self._drain.cancel()
        super().connectionLost(reason)

    def _release(self) -> None:
        if self._held:
            self._room.give_back(self._address, self._held)
            self._held = 0


class BoundedChannel(HTTPChannel):
    """One connection: at most so many, none of them slow for long; every answer has a Date."""

    site: "FaceSite"
    transport: Any  # plain TCP or TLS
    _began: float | None = None  # when the first byte of the current request came
    _over = False  # nothing more is read
    request_seconds = 0.0  # for the current request to arrive whole; set with its headers
    _client: tuple[str, str] | None = None  # see `client_of`
    _proxied = False  # the peer speaks for others
    _heir: IProtocol | None = None  # has the connection now

    def connectionMade(self) -> None:
        """Take the connection, unless the face has too many that are of use."""
        super().connectionMade()
        site = self.site
        if len(site.channels) >= site.limits.connections:
            if not site.silent:
                self.abort()
                return
            next(iter(site.silent)).give_way()
        site.channels.add(self)
        site.silent[self] = None

    def client_of(self, headers: Headers) -> tuple[str, str]:
        """The IP address that a request comes from, and what that counts as: a network of IPv6."""
        if self._client is None:
            peer: str = getattr(self.getPeer(), "host", "")
            self._proxied = peer in self.site.api.proxies
            self._client = peer, address_of(peer)
        if self._proxied:
            client = forwarded(self._client[0], headers, self.site.api.proxies)
            return client, address_of(client)
        return self._client

    def give_way(self) -> None:
        """Close at once, and leave the place to another connection."""
        self._forget()
        self.abort()

    @property
    def handed_over(self) -> bool:
        """Whether another protocol has the connection."""
        return self._heir is not None

    def _forget(self) -> None:
        self.site.channels.discard(self)
        self.site.silent.pop(self, None)

    def dataReceived(self, data: bytes) -> None:
        """Take bytes; a request that has been under way for too long ends the connection."""
        if self._heir is not None:
            self._heir.dataReceived(data)
            return
        if self._over:
            return
        if not self._handlingRequest:
            now = self.site.reactor.seconds()
            if self._began is None:
                self._began = now
            elif now - self._began > (self.request_seconds or self.site.limits.request_seconds):
                self.abort()
                return
        super().dataReceived(data)

    def rawDataReceived(self, data: bytes) -> None:
        """Take what came together with a request."""
        if self._heir is not None:
            self._heir.dataReceived(data)
        else:
            super().rawDataReceived(data)

    def loseConnection(self) -> None:
        """Close once everything is written."""
        if not self._over:
            self._over = True
            super().loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self._over = True
        self.transport.abortConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a header line above 16 KiB."""
        self._respondToBadRequestAndDisconnect()

    def allContentReceived(self) -> None:
        """A request is whole."""
        self._began = None
        self.request_seconds = 0.0
        self.site.silent.pop(self, None)
        super().allContentReceived()

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.answer_and_close(ParameterInvalid("request: not valid HTTP, or headers too large"))

    def answer_and_close(
        self, refusal: Refusal, route: Route | None = None, close: bool = True
    ) -> None:
        """Answer what is no whole request; the connection serves nothing more."""
        status, body = self.site.api.refusal(refusal)
        self.site.api.observe(route, status)
        headers = Headers(
            {
                "date": [datetimeToString().decode()],
                "content-type": [JSON_TYPE],
                "content-length": [str(len(body))],
                "connection": ["close"],
            }
        )
        self.writeHeaders(b"HTTP/1.1", b"%d" % status, RESPONSES.get(status, b""), headers)
        self.transport.write(body)
        if close:
            self.loseConnection()

    def hand_over(self, request: Request, protocol: IProtocol) -> None:
        """Give the connection to another protocol, beginning with the head of ``request``.

        It counts among the site's connections until it is gone, and its time is the protocol's.
        """
        self.setTimeout(None)
        producer: Any = self._networkProducer
        producer.unregisterProducer()
        head = [b"%s %s HTTP/1.1" % (request.method, request.uri)]
        for name, values in request.requestHeaders.getAllRawHeaders():
            head += [b"%s: %s" % (name, value) for value in values]
        self._heir = protocol
        protocol.makeConnection(self.transport)
        protocol.dataReceived(b"\r\n".join([*head, b"", b""]))
        early, self._dataBuffer = b"".join(self._dataBuffer), []
        if early:
            protocol.dataReceived(early)
        producer.resumeProducing()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The connection is gone."""
        self._forget()
        if self._heir is not None:
            self._heir.connectionLost(reason)
        super().connectionLost(reason)


class FaceSite(Site):
    """Listens for one `Api`. HTTP/1.1 only, no access log, no sessions, no timer of its own.

    Args:
        api: what to serve.
        reactor: for timeouts.
        limits: see `FaceLimits`.
        spool_dir: where bodies of spooled routes are kept; such routes need one.
    """

    protocol: Any = BoundedChannel  # not the proxy that could turn into HTTP/2
    noisy = False

    def __init__(
        self,
        api: Api,
        reactor: IReactorTime,
        limits: FaceLimits | None = None,
        spool_dir: Path | None = None,
    ) -> None:
        if spool_dir is None and any(route.spooled for route in api.routes):
            raise ValueError("routes that keep bodies on disk need spool_dir")
        self.spool_dir = spool_dir or Path()
        self.api, self.limits = api, limits or FaceLimits()
        self.memory = BodyRoom(self.limits.bodies_bytes, self.limits.bodies_share)
        self.disk = BodyRoom(self.limits.spool_bytes, self.limits.spool_share)
        self.channels: set[BoundedChannel] = set()  # open connections
        self.silent: dict[BoundedChannel, None] = {}  # of these, without a whole request yet
        super().__init__(
            api,
            BoundedRequest,
            timeout=self.limits.idle_seconds,
            reactor=reactor,
            parsePOSTFormSubmission=False,
        )

    def close(self) -> None:
        """Close every connection once the request that it serves, if any, is answered."""
        for channel in list(self.channels):
            channel.persistent = False
            if channel.handed_over:
                channel.transport.loseConnection()
            elif not channel._handlingRequest:
                channel.loseConnection()

    def acceptableProtocols(self) -> list[bytes]:
        """Offer no HTTP/2: the limits here are those of HTTP/1.1."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """Open no access log."""

    def stopFactory(self) -> None:
        """There is nothing to close."""

    def log(self, request: object) -> None:
        """Keep no access log: counts are in the metrics, refusals with reasons at the peer."""


def listen(
    reactor: IReactorTCP,
    site: IProtocolFactory,
    interface: str,
    port: int,
    *,
    setting: str,
    tls: IOpenSSLServerConnectionCreator | None = None,
    backlog: int = 128,
) -> IListeningPort:
    """Open a port for a face, or for another server of a role.

    Args:
        reactor: where.
        site: what to serve.
        interface: IP address; ``::`` is every address.
        port: 0 lets the system choose.
        setting: such as ``agentcenter.http_port``, for the error's text.
        tls: a TLS context factory of ours, or None for plain text.
        backlog: connections that the system holds until we accept them.

    Raises:
        OperatorError: the port or address cannot be used; the text says what to change.
    """
    factory: Any = site if tls is None else TLSMemoryBIOFactory(tls, False, site)
    with listening(setting, interface, port):
        return reactor.listenTCP(port, factory, backlog=backlog, interface=interface)


@contextmanager
def listening(setting: str, interface: str, port: int) -> Iterator[None]:
    """Turn a failure to open a port into a sentence that names the setting to change.

    Raises:
        OperatorError: the port or address cannot be used.
    """
    try:
        yield
    except CannotListenError as error:
        raise OperatorError(_cannot_listen(error, setting, interface, port)) from error


def _cannot_listen(error: CannotListenError, setting: str, interface: str, port: int) -> str:
    number = getattr(error.socketError, "errno", None)
    if number == errno.EADDRINUSE:
        return (
            f"{setting}: {port} is in use on {interface}: stop the program that has it, "
            "or choose another port"
        )
    if number == errno.EACCES:
        return f"{setting}: {port} needs privileges: choose a port above 1023"
    if number == errno.EADDRNOTAVAIL:
        section = setting.partition(".")[0]
        return f"{section}.listen: {interface} is no address of this machine"
    return f"{setting}: cannot listen on {interface}, port {port}: {error.socketError}"
