"""``POST /conn/probe``: who gives a sign of life, for a Manager that sees an id twice."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.probe_api import PROBE_LIMIT, ProbeRoutes
from elkeid.wire.grpc import Status
from tests.agentcenter.face import Face
from tests.agentcenter.host import Host, batch, make_gateway


class ProbeTests(SynchronousTestCase):
    """A gateway with agents."""

    def setUp(self) -> None:
        self.gateway, self.log, self.clock = make_gateway()
        self.face = Face([ProbeRoutes(self.gateway)], self.clock)
        self.hosts: dict[str, Host] = {}

    def join(self, agent_id: str) -> Host:
        """Connect an agent."""
        host = Host(self.gateway, f"10.0.0.{len(self.hosts)}")
        host.send(host.open(), batch(agent_id, 1000))
        self.hosts[agent_id] = host
        return host

    def test_signs_of_life(self) -> None:
        """A living agent is told with its address; a vanished one after 5 s, and is ended."""
        self.join("here")
        self.join("vanished").frozen = True
        asked = self.face.begin("POST", "/conn/probe", {"id_list": ["here", "vanished", "never"]})
        found: list[Any] = []
        asked.addCallback(found.append)
        for _ in range(12):
            self.face.flush()
            for host in self.hosts.values():
                if not host.frozen:
                    host.pump()
            self.clock.advance(0.5)
        self.face.flush()
        ((status, body),) = found
        self.assertEqual(status, 200)
        (peer,) = body["data"]["alive"].values()
        self.assertTrue(peer.startswith("10.0.0.0:"), peer)
        self.assertEqual(sorted(body["data"]["gone"]), ["never", "vanished"])
        self.clock.advance(5.5)  # it is still read for a while
        self.assertIsNotNone(self.gateway.table.get("here"))
        self.assertIsNone(self.gateway.table.get("vanished"))
        self.assertIsNone(self.hosts["here"].ended(1))
        self.hosts["vanished"].frozen = False
        self.hosts["vanished"].pump()
        ended = self.hosts["vanished"].ended(1)
        self.assertTrue(ended is None or ended.status == Status.ABORTED)

    def test_refusals(self) -> None:
        """Too many at once, no list, no signature."""
        for body in ({"id_list": ["a"] * (PROBE_LIMIT + 1)}, {}, {"id_list": ["x" * 200]}):
            self.assertEqual(self.face.ask("POST", "/conn/probe", body)[0], 400)
        body = {"id_list": []}
        self.assertEqual(self.face.ask("POST", "/conn/probe", body, signed=False)[0], 403)
        self.assertEqual(self.face.ask("POST", "/conn/probe", body)[0], 200)
