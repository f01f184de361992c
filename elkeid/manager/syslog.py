"""Telling the head of the audit log to a syslog server, where nobody here can change it.

Source: RFC 5424 (the message), RFC 6587 section 3.4.1 (framing on TCP).
"""

import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.task import LoopingCall

from elkeid.discovery.loops import Outage
from elkeid.manager.store.audit import Head
from elkeid.metrics import ManagerMetrics

PRIORITY = 13 * 8 + 5
"""Facility 13 (log audit), severity 5 (notice)."""

SEND_SECONDS = 1.0
"""The newest head is sent so often, if it changed: each covers all entries before it."""

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

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Nobody has to say anything here."""


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
        self._datagrams: Any = None  # of UDP
        self._target: str | None = None  # of UDP, once the name is known
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
            self._datagrams = _Datagrams()
            self._datagrams.noisy = False
            interface = ""
            if isIPv6Address(self._host):
                interface, self._target = "::", self._host
            self._reactor.listenUDP(0, self._datagrams, interface=interface)
        self._sending.start(SEND_SECONDS, now=False)

    async def stop(self) -> None:
        """Send the last head, then no more."""
        if not self._sending.running:
            return
        self._sending.stop()
        await self._send()
        if self._service is not None:
            await self._service.stopService()
        if self._datagrams is not None:
            stopped = self._datagrams.transport.stopListening()
            if isinstance(stopped, Deferred):
                await stopped

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
        elif self._datagrams is not None:
            if self._target is None:
                self._target = await self._reactor.resolve(self._host)
            self._datagrams.transport.write(data, (self._target, self._port))
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
