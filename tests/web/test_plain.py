"""Liveness, readiness and metrics."""

import json

from prometheus_client import CollectorRegistry, Gauge
from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.answers import CodeEnvelope
from elkeid.web.api import Api
from elkeid.web.peers import Networks
from elkeid.web.plain import Liveness, MetricsPage
from elkeid.web.site import FaceSite

from .memory import MemoryNetwork, RawConnection


class PlainTests(SynchronousTestCase):
    """What every face has."""

    def setUp(self) -> None:
        """Serve nothing else."""
        self.problems: list[str] = []
        self.api = Api(CodeEnvelope({}, {}, 3), [Liveness(lambda: self.problems)])
        self.site = FaceSite(self.api, MemoryNetwork().clock)

    def get(self, path: str, method: str = "GET") -> tuple[bytes, bytes]:
        """Make a request; return head and body."""
        answer = RawConnection(self.site).send(f"{method} {path} HTTP/1.1\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return head, body

    def test_ping(self) -> None:
        """``/ping`` says that the process is alive, whatever else."""
        self.problems.append("lame")
        head, body = self.get("/ping")
        self.assertIn(b" 200 ", head)
        self.assertEqual(body, b'{"message":"pong"}')

    def test_ready(self) -> None:
        """``/ready`` says yes, or 503 with every reason."""
        head, body = self.get("/ready")
        self.assertEqual((head[:12], body), (b"HTTP/1.1 200", b'{"ready":true}'))
        self.problems += ["lame", "deaf"]
        head, body = self.get("/ready")
        self.assertEqual(head[:12], b"HTTP/1.1 503")
        self.assertEqual(json.loads(body), {"ready": False, "reasons": ["lame", "deaf"]})

    def test_metrics(self) -> None:
        """``/metrics`` is for the networks it is for, and for reading."""
        registry = CollectorRegistry()
        Gauge("answer", "To everything", registry=registry).set(42)
        for networks, status in [(["127.0.0.0/8"], 200), (["10.0.0.0/8"], 403), ([], 403)]:
            self.api.mount("/metrics", MetricsPage(registry, networks, self.api.refusal))
            for path in ["/metrics", "/metrics/"]:
                head, body = self.get(path)
                self.assertTrue(head.startswith(b"HTTP/1.1 %d " % status))
                self.assertEqual(b"answer 42.0" in body, status == 200)
                self.assertIn(b"Date: ", head)
        self.assertIn(b" 404 ", self.get("/metrics", "POST")[0])

    def test_networks(self) -> None:
        """An IPv4 address that came over an IPv6 socket counts as IPv4."""
        private = Networks(["10.0.0.0/8", "fc00::/7"])
        for address, inside in [
            ("10.1.2.3", True),
            ("::ffff:10.1.2.3", True),
            ("fd00::1", True),
            ("11.0.0.1", False),
            ("::1", False),
            ("no address", False),
        ]:
            self.assertEqual(address in private, inside, address)
