"""Heads of the audit log on their way to a syslog server."""

import errno
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet._resolver import HostResolution
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from elkeid import config
from elkeid.errors import ConfigError
from elkeid.manager.store.audit import Head
from elkeid.manager.syslog import LOOKUP_SECONDS, SEND_SECONDS, AuditSyslog, message
from elkeid.metrics import ManagerMetrics
from tests.web.memory import NOW

HASH = "ab" * 32


class Transport:
    """A UDP port."""

    def __init__(self, reactor: "DatagramReactor", interface: str) -> None:
        self._reactor, self._interface = reactor, interface

    def write(self, data: bytes, target: Any) -> None:
        """Send."""
        if self._interface in self._reactor.unreachable:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        self._reactor.sent.append((data, target))

    def stopListening(self) -> Deferred[None]:
        """Close the port."""
        self._reactor.interfaces.remove(self._interface)
        return succeed(None)


@implementer(IHostnameResolver)
class Names:
    """Knows one name."""

    def __init__(self) -> None:
        self.addresses = ["192.0.2.7"]
        self.asked = 0

    def resolveHostName(
        self, receiver: IResolutionReceiver, hostName: str, portNumber: int = 0, *_: Any, **__: Any
    ) -> IHostResolution:
        """Tell its addresses."""
        self.asked += 1
        resolution = HostResolution(hostName)
        receiver.resolutionBegan(resolution)
        for each in self.addresses:
            kind = IPv6Address if ":" in each else IPv4Address
            receiver.addressResolved(kind("UDP", each, portNumber))
        receiver.resolutionComplete()
        return resolution


class DatagramReactor(MemoryReactorClock):
    """Keeps what is sent by UDP."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[bytes, Any]] = []
        self.interfaces: list[str] = []  # of open ports
        self.unreachable: set[str] = set()
        self.names = Names()
        self.installNameResolver(self.names)

    def listenUDP(self, port: int, protocol: DatagramProtocol, *args: Any, **kwargs: Any) -> Any:
        """Open a port."""
        interface = kwargs.get("interface", "")
        self.interfaces.append(interface)
        protocol.transport = Transport(self, interface)  # type: ignore[assignment]


class SyslogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = DatagramReactor()
        self.registry = CollectorRegistry()
        self.metrics = ManagerMetrics(
            self.registry, lambda: 0, lambda: 0, dict, lambda: 0, bodies=dict
        )

    def syslog(self, url: str) -> AuditSyslog:
        """Started."""
        made = AuditSyslog(self.reactor, url, lambda: NOW + 0.25, self.metrics)
        made.start()
        return made

    def stop(self, syslog: AuditSyslog) -> None:
        """Stop it."""
        self.successResultOf(Deferred.fromCoroutine(syslog.stop()))

    def count(self, outcome: str) -> float:
        """Of the metric."""
        return (
            self.registry.get_sample_value("elkeid_manager_audit_heads_total", {"outcome": outcome})
            or 0
        )

    def test_message(self) -> None:
        """It is as RFC 5424 says."""
        data = message(Head(7, HASH), NOW + 0.25, "host é x", 12)
        self.assertEqual(
            data,
            b"<109>1 2023-11-14T22:13:20.250000Z hostx elkeid 12 audit - audit head 7:"
            + HASH.encode(),
        )
        self.assertIn(b"Z - elkeid", message(Head(7, HASH), NOW, "é", 12))

    def test_udp(self) -> None:
        """The newest head, at most once a second, and only if it is new."""
        syslog = self.syslog("udp://log.example:514")
        syslog.tell(Head(1, HASH))
        syslog.tell(Head(3, HASH))
        syslog.tell(Head(2, HASH))
        self.reactor.advance(SEND_SECONDS)
        self.reactor.advance(SEND_SECONDS)
        self.assertEqual(len(self.reactor.sent), 1)
        data, target = self.reactor.sent[0]
        self.assertEqual(target, ("192.0.2.7", 514))
        self.assertRegex(data, rb"audit head 3:(ab){32}$")
        syslog.tell(Head(4, HASH))
        self.stop(syslog)
        self.assertEqual(len(self.reactor.sent), 2)
        self.assertEqual(self.reactor.interfaces, [])
        self.assertEqual(self.count("sent"), 2)

    def test_udp_to_ipv6(self) -> None:
        """Nothing is looked up, and the port is one that can send there."""
        syslog = self.syslog("udp://[2001:db8::7]:514")
        syslog.tell(Head(1, HASH))
        self.reactor.advance(SEND_SECONDS)
        self.assertEqual([target for _, target in self.reactor.sent], [("2001:db8::7", 514)])
        self.assertEqual(self.reactor.interfaces, ["::"])
        self.assertEqual(self.reactor.names.asked, 0)
        self.stop(syslog)

    def send(self, syslog: AuditSyslog, seq: int, seconds: float = SEND_SECONDS) -> list[str]:
        """Tell a head; where it went."""
        self.reactor.sent.clear()
        syslog.tell(Head(seq, HASH))
        self.reactor.advance(seconds)
        return [host for _, (host, _) in self.reactor.sent]

    def test_name_of_either_family(self) -> None:
        """The first address that can be reached is taken, IPv6 or IPv4."""
        syslog = self.syslog("udp://log.example:514")
        self.reactor.names.addresses = ["2001:db8::7", "192.0.2.7"]
        self.assertEqual(self.send(syslog, 1), ["2001:db8::7"])
        self.reactor.unreachable = {"::"}
        self.assertEqual(self.send(syslog, 2), ["192.0.2.7"])
        self.assertEqual((self.reactor.interfaces, self.reactor.names.asked), (["::", ""], 1))
        self.stop(syslog)
        self.assertEqual(self.reactor.interfaces, [])

    def test_name_that_moves(self) -> None:
        """It is looked up anew after a while, and at once where its addresses lead nowhere."""
        syslog = self.syslog("udp://log.example:514")
        self.assertEqual(self.send(syslog, 1), ["192.0.2.7"])
        self.reactor.names.addresses = ["192.0.2.8"]
        self.assertEqual(self.send(syslog, 2), ["192.0.2.7"])
        self.assertEqual(self.send(syslog, 3, LOOKUP_SECONDS), ["192.0.2.8"])
        self.reactor.unreachable = {""}
        self.assertEqual(self.send(syslog, 4), [])
        self.reactor.names.addresses = ["2001:db8::8"]
        self.assertEqual(self.send(syslog, 5), ["2001:db8::8"])
        self.reactor.names.addresses = []
        self.assertEqual(self.send(syslog, 6, LOOKUP_SECONDS), [])
        self.assertEqual((self.count("sent"), self.count("failed")), (4, 2))

    def test_tcp(self) -> None:
        """One connection, each message with its length; what cannot be sent is tried again."""
        self.reactor.names.addresses = ["127.0.0.1"]
        syslog = self.syslog("tcp://127.0.0.1:601")
        syslog.tell(Head(1, HASH))
        self.reactor.advance(SEND_SECONDS)
        self.assertEqual(self.count("failed"), 1)
        [(host, port, factory, *_)] = self.reactor.tcpClients
        self.assertEqual((host, port), ("127.0.0.1", 601))
        protocol = factory.buildProtocol(None)
        wire = StringTransport()
        protocol.makeConnection(wire)
        self.reactor.advance(SEND_SECONDS)
        syslog.tell(Head(2, HASH))
        self.reactor.advance(SEND_SECONDS)
        rest, heads = wire.value(), []
        while rest:
            length, _, rest = rest.partition(b" ")
            text, rest = rest[: int(length)], rest[int(length) :]
            heads.append(text.split()[-1].partition(b":")[0])
        self.assertEqual(heads, [b"1", b"2"])
        stopping = Deferred.fromCoroutine(syslog.stop())
        self.assertTrue(wire.disconnecting)
        del stopping

    def test_outage(self) -> None:
        """Each try is counted, its begin and its end are told, once."""
        told: list[str] = []

        def keep(event: Any) -> None:
            if event.get("what") == "audit heads are not sent to syslog":
                told.append(event["log_level"].name)

        globalLogPublisher.addObserver(keep)
        self.addCleanup(globalLogPublisher.removeObserver, keep)
        syslog = self.syslog("tcp://127.0.0.1:601")
        syslog.tell(Head(1, HASH))
        for _ in range(3):
            self.reactor.advance(SEND_SECONDS)
        self.assertEqual((self.count("failed"), told), (3, ["warn"]))
        self.reactor.tcpClients[0][2].buildProtocol(None).makeConnection(StringTransport())
        for seq in (2, 3):
            syslog.tell(Head(seq, HASH))
            self.reactor.advance(SEND_SECONDS)
        self.assertEqual((self.count("sent"), told), (2, ["warn", "info"]))

    def test_unix(self) -> None:
        """A local socket; one that is not there costs a count and a line, nothing else."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "log"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
                server.bind(str(path))
                syslog = self.syslog(f"unix://{path}")
                syslog.tell(Head(1, HASH))
                self.reactor.advance(SEND_SECONDS)
                self.assertIn(b"audit head 1:", server.recv(1000))
            path.unlink()
            syslog.tell(Head(2, HASH))
            self.reactor.advance(SEND_SECONDS)
            self.assertEqual((self.count("sent"), self.count("failed")), (1, 1))
            self.stop(syslog)


@pytest.mark.parametrize("url", ["udp://h:514", "tcp://[::1]:601", "unix:///dev/log"])
def test_urls(url: str) -> None:
    """Where a server may be."""
    found = config.parse({"manager": {"audit_syslog": url}}, Path("/x"))
    assert found.manager.audit_syslog == url


@pytest.mark.parametrize("url", ["", "h:514", "udp://h", "tcp://", "unix://x", "http://h:1", 5])
def test_urls_that_are_none(url: object) -> None:
    """Anything else is refused at the start."""
    with pytest.raises(ConfigError, match="audit_syslog"):
        config.parse({"manager": {"audit_syslog": url}}, Path("/x"))
