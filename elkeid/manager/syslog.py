"""Telling the head of the audit log to a syslog server, where nobody here can change it.

A name is looked up again and again, and may have addresses of either family.

Source: RFC 5424 (the message), RFC 6587 section 3.4.1 (framing on TCP).
"""

import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from elkeid.discovery.loops import Outage
from elkeid.manager.store.audit import Head
from elkeid.metrics import ManagerMetrics

PRIORITY = 13 * 8 + 5
"""Facility 13 (log audit), severity 5 (notice)."""

SEND_SECONDS = 1.0
"""The newest head is sent so often, if it changed: each covers all entries before it."""

LOOKUP_SECONDS = 60.0
"""The addresses of a name are used for so long; then it is looked up anew."""

CONNECT_SECONDS = 10.0
RETRY_SECONDS = 30.0


def message(head: Head, now: float, host: str, pid: int) -> bytes:
    """One message; ``now`` is unix seconds."""
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    host = "".join(each for each in host if "!" <= each <= "~")[:255] or "-"
    text = f"audit head {head.seq}:{head.hash}"
    return f"<{PRIORITY}>1 {stamp} {host} elkeid {pid} audit - {text}".encode("ascii")


class _Quiet(Protocol):
    """Sends; what a syslog server says is not read."""


class _Datagrams(DatagramProtocol):
    """Sends."""

    noisy = False

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Nobody has to say anything here."""


@implementer(IResolutionReceiver)
class _Found:
    """Collects the addresses of a name, in the order of the system."""

    def __init__(self) -> None:
        self._addresses: list[str] = []
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """See `IResolutionReceiver`."""

    def addressResolved(self, address: IAddress) -> None:
        """See `IResolutionReceiver`."""
        if isinstance(address, IPv4Address | IPv6Address):
            self._addresses.append(address.host)

    def resolutionComplete(self) -> None:
        """See `IResolutionReceiver`."""
        self.done.callback(list(dict.fromkeys(self._addresses)))


class _UdpOut:
    """Sends to a host by UDP.

    Args:
        reactor: for sockets, time and names.
        host: a name or an address.
        port: of the server.
    """

    def __init__(self, reactor: Any, host: str, port: int) -> None:
        self._reactor, self._host, self._port = reactor, host, port
        self._addresses: list[str] = []
        self._known_until = 0.0  # of the reactor
        self._sockets: dict[str, _Datagrams] = {}  # by the interface that tells the family

    async def send(self, data: bytes) -> None:
        """Send to the first address that takes it.

        Raises:
            OSError: none does, or there is none.
        """
        if not self._addresses or self._reactor.seconds() >= self._known_until:
            self._addresses = await self._look_up()
            self._known_until = self._reactor.seconds() + LOOKUP_SECONDS
        failed: OSError = ConnectionError(f"{self._host} has no address")
        for address in self._addresses:
            try:
                transport: Any = self._socket(address).transport
                transport.write(data, (address, self._port))
                return
            except OSError as error:  # no way there from this machine
                failed = error
        self._addresses = []
        raise failed

    async def _look_up(self) -> list[str]:
        if isIPAddress(self._host) or isIPv6Address(self._host):
            return [self._host]
        found = _Found()
        self._reactor.nameResolver.resolveHostName(
            found, self._host, self._port, transportSemantics="UDP"
        )
        return await found.done

    def _socket(self, address: str) -> _Datagrams:
        interface = "::" if isIPv6Address(address) else ""
        if interface not in self._sockets:
            made = _Datagrams()
            self._reactor.listenUDP(0, made, interface=interface)
            self._sockets[interface] = made
        return self._sockets[interface]

    async def close(self) -> None:
        """Close the sockets."""
        sockets, self._sockets = self._sockets, {}
        for each in sockets.values():
            transport: Any = each.transport
            stopped = transport.stopListening()
            if isinstance(stopped, Deferred):
                await stopped


class AuditSyslog:
    """Sends heads, at most one a second.

    Args:
        reactor: for sockets and timers.
        url: ``udp://HOST:PORT``, ``tcp://HOST:PORT`` or ``unix:///PATH``.
        wall: seconds since the epoch.
        metrics: counts.
    """

    def __init__(
        self, reactor: Any, url: str, wall: Callable[[], float], metrics: ManagerMetrics
    ) -> None:
        self._reactor, self._wall, self._metrics = reactor, wall, metrics
        parts = urlsplit(url)
        self._kind, self._path = parts.scheme, parts.path
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._newest: Head | None = None
        self._service: ClientService | None = None
        self._udp: _UdpOut | None = None
        self._outage = Outage("audit heads are not sent to syslog")
        self._sending = LoopingCall(self._send)
        self._sending.clock = reactor

    def tell(self, head: Head) -> None:
        """Send this head, unless a newer one comes first."""
        if self._newest is None or head.seq > self._newest.seq:
            self._newest = head

    def start(self) -> None:
        """Begin to send."""
        if self._kind == "tcp":
            endpoint = HostnameEndpoint(
                self._reactor, self._host, self._port, timeout=CONNECT_SECONDS
            )
            factory = Factory.forProtocol(_Quiet)
            factory.noisy = False
            self._service = ClientService(
                endpoint, factory, backoffPolicy(maxDelay=RETRY_SECONDS), self._reactor
            )
            self._service.startService()
        elif self._kind == "udp":
            self._udp = _UdpOut(self._reactor, self._host, self._port)
        self._sending.start(SEND_SECONDS, now=False)

    async def stop(self) -> None:
        """Send the last head, then no more."""
        if not self._sending.running:
            return
        self._sending.stop()
        await self._send()
        if self._service is not None:
            await self._service.stopService()
        if self._udp is not None:
            await self._udp.close()

    async def _send(self) -> None:
        head = self._newest
        if head is None:
            return
        data = message(head, self._wall(), socket.gethostname(), os.getpid())
        try:
            await self._deliver(data)
        except Exception as error:  # of the network: it may work next time
            self._metrics.audit_heads.labels("failed").inc()
            self._outage.failed(error)
            return
        self._metrics.audit_heads.labels("sent").inc()
        self._outage.worked()
        if self._newest is head:
            self._newest = None

    async def _deliver(self, data: bytes) -> None:
        if self._service is not None:
            await self._stream_out(self._service, data)
        elif self._udp is not None:
            await self._udp.send(data)
        else:
            self._unix_out(data)

    async def _stream_out(self, service: ClientService, data: bytes) -> None:
        waiting = service.whenConnected(failAfterFailures=1)
        if not waiting.called:
            waiting.addErrback(lambda failure: None)
            waiting.cancel()
            raise ConnectionError("no connection")
        connection: Any = await waiting
        connection.transport.write(b"%d %s" % (len(data), data))

    def _unix_out(self, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(data, self._path)
