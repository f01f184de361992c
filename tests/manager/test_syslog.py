"""Heads of the audit log on their way to a syslog server."""

import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from elkeid import config
from elkeid.errors import ConfigError
from elkeid.manager.store.audit import Head
from elkeid.manager.syslog import SEND_SECONDS, AuditSyslog, message
from elkeid.metrics import ManagerMetrics
from tests.web.memory import NOW

HASH = "ab" * 32


class DatagramReactor(MemoryReactorClock):
    """Keeps what is sent by UDP."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[bytes, Any]] = []
        self.listening = 0
        self.interfaces: list[str] = []

    def listenUDP(self, port: int, protocol: DatagramProtocol, *args: Any, **kwargs: Any) -> Any:
        """Open a port."""
        self.listening += 1
        self.interfaces.append(kwargs.get("interface", ""))
        protocol.transport = self  # type: ignore[assignment]

    def write(self, data: bytes, target: Any) -> None:
        """Send."""
        self.sent.append((data, target))

    def stopListening(self) -> Deferred[None]:
        """Close the port."""
        self.listening -= 1
        return succeed(None)

    def resolve(self, name: str, timeout: Any = ()) -> Deferred[str]:
        """Every name is one address."""
        return succeed("192.0.2.7")


class SyslogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = DatagramReactor()
        self.registry = CollectorRegistry()
        self.metrics = ManagerMetrics(self.registry, lambda: 0, lambda: 0, dict, lambda: 0)

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
        self.assertEqual(self.reactor.listening, 0)
        self.assertEqual(self.count("sent"), 2)

    def test_udp_to_ipv6(self) -> None:
        """Nothing is looked up, and the port is one that can send there."""
        syslog = self.syslog("udp://[2001:db8::7]:514")
        syslog.tell(Head(1, HASH))
        self.reactor.advance(SEND_SECONDS)
        self.assertEqual([target for _, target in self.reactor.sent], [("2001:db8::7", 514)])
        self.assertEqual(self.reactor.interfaces, ["::"])
        self.stop(syslog)

    def test_tcp(self) -> None:
        """One connection, each message with its length; what cannot be sent is tried again."""
        self.reactor.resolve = lambda name, timeout=(): succeed(name)  # type: ignore[assignment]
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
