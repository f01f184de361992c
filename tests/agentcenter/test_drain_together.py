"""Draining a host whose gateway is several processes: one call to any of them is for all."""

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.admin import AdminRoutes
from elkeid.agentcenter.api import ENVELOPE
from elkeid.agentcenter.drain import Drain, DrainState
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.siblings import Siblings
from elkeid.config import AgentCenterSettings, Settings
from elkeid.discovery.client import DiscoveryClient
from elkeid.discovery.service import DiscoveryRole
from elkeid.errors import OperatorError
from elkeid.web.api import Api
from elkeid.web.client import Credentials
from elkeid.web.routes import AuthKind
from elkeid.web.signed import SignatureCheck
from elkeid.web.site import FaceSite
from tests.agentcenter.host import WALL, MemoryLog
from tests.discovery.test_api import Keys
from tests.web.memory import MemoryNetwork
from tests.web.sample import AK, SK

NAME, SD = "hids_svr_grpc", 8088
HERE, THERE = ("10.0.0.1", 6751), ("10.0.0.2", 6751)
PORTS = (6752, 6762, 6772)


class TogetherTests(SynchronousTestCase):
    """Three workers, and ServiceDiscovery, in memory."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.clock = self.network.clock
        self.sd = DiscoveryRole(
            Settings(), Keys(), self.clock, wall=self.network.wall, monotonic=self.network.wall
        )
        self.network.ports[SD] = self.sd.site
        self.closed: list[int] = []
        self.left: list[int] = []
        self.port_fault: OperatorError | None = None
        self.drains = [self.worker(number) for number in range(len(PORTS))]
        self.http = self.network.client(Credentials(AK, SK))

    def discovery(self) -> DiscoveryClient:
        """A client of the registry."""
        http = self.network.client(Credentials(AK, SK))
        return DiscoveryClient(self.clock, http, [f"127.0.0.1:{SD}"])

    def worker(self, number: int) -> Drain:
        """Start one."""
        log: Any = MemoryLog()
        gateway = Gateway(AgentCenterSettings(), log, self.clock, lambda: WALL, self.clock.seconds)
        places = [f"127.0.0.1:{port}" for port in PORTS if port != PORTS[number]]
        siblings = Siblings(
            gateway,
            self.network.client(Credentials(AK, SK)),
            places,
            self.clock,
            self.clock.seconds,
        )
        discovery = self.discovery()
        discovery.watch(NAME, lambda records: None)

        async def close() -> None:
            self.closed.append(number)

        def open_port() -> None:
            if self.port_fault is not None and number == 2:
                raise self.port_fault

        drain = Drain(
            gateway,
            discovery,
            name=NAME,
            address=HERE,
            close_port=close,
            open_port=open_port,
            clock=self.clock,
            siblings=True,
        )
        leave = partial(self.left.append, number)
        routes = AdminRoutes(drain, gateway, leave, self.clock, siblings.ask)
        check = SignatureCheck({AK: SK}, self.network.wall)
        api = Api(ENVELOPE, [routes], {AuthKind.SIGNED: check})
        self.network.ports[PORTS[number]] = FaceSite(api, self.clock)
        return drain

    def other(self) -> None:
        """Another host's gateway comes up."""
        client = self.discovery()
        client.register(NAME, *THERE, lambda: (5, {"limit": 10}))
        self.network.advance(2.5)

    def ask(self, number: int, path: str, body: Any = None) -> tuple[int, int, Any]:
        """POST to a worker: HTTP status, code, data."""
        url = f"https://127.0.0.1:{PORTS[number]}{path}"
        reply = self.network.run(self.http.post(url, body or {}))
        answer = reply.decode(dict[str, Any]) if reply.status == 200 else {"code": 3, "data": ""}
        return reply.status, answer["code"], answer["data"]

    def states(self) -> list[str]:
        """Of each worker."""
        return [str(drain.state) for drain in self.drains]

    def test_one_call(self) -> None:
        """Any worker drains all of them, and takes all of them back; repeated, it is refused."""
        self.other()
        self.assertEqual(self.ask(1, "/admin/drain", {"deadline": 20})[:2], (200, 0))
        self.assertEqual(self.states(), ["drained"] * 3)
        self.assertEqual(sorted(self.closed), [0, 1, 2])
        self.assertEqual(self.ask(0, "/admin/drain")[0], 409)
        self.assertEqual(self.ask(2, "/admin/undrain")[:2], (200, 0))
        self.assertEqual(self.states(), ["serving"] * 3)

    def test_exit(self) -> None:
        """With ``exit`` each process ends."""
        self.other()
        self.ask(0, "/admin/drain", {"deadline": 5, "then": "exit"})
        self.network.advance(6)
        self.assertEqual(sorted(self.left), [0, 1, 2])

    def test_nobody_else_has_room(self) -> None:
        """No worker takes its siblings for somebody else: the ports stay open, and refuse."""
        self.ask(0, "/admin/drain", {"deadline": 5})
        self.network.advance(6)
        self.assertEqual((self.states(), self.closed), (["drained"] * 3, []))

    def test_one_worker(self) -> None:
        """Asked so, one alone leaves its agents to the others, whoever else has room."""
        self.ask(0, "/admin/drain?scope=worker", {"deadline": 5})
        self.network.advance(6)
        self.assertEqual(self.states(), ["drained", "serving", "serving"])
        self.assertEqual(self.closed, [0])
        self.ask(1, "/admin/drain", {"deadline": 5})  # for those that are left
        self.assertEqual(self.states(), ["drained"] * 3)
        self.ask(1, "/admin/undrain?scope=worker")
        self.assertEqual(self.states(), ["drained", "serving", "drained"])

    def test_undone_then_one_stops(self) -> None:
        """A process that ends after a host was taken back leaves its agents to the others."""
        self.ask(0, "/admin/drain", {"deadline": 5})
        self.network.advance(6)
        self.ask(0, "/admin/undrain")
        self.assertEqual((self.states(), self.closed), (["serving"] * 3, []))
        finished = Deferred.fromCoroutine(self.drains[1].finish(5))
        self.network.advance(6)
        self.successResultOf(finished)
        self.assertEqual(self.closed, [1])

    def test_not_all(self) -> None:
        """A worker that cannot be told is named; asked again, those that serve begin."""
        site = self.network.ports.pop(PORTS[2])
        status, code, text = self.ask(0, "/admin/drain", {"deadline": 5})
        self.assertEqual((status, code), (200, 3))
        self.assertRegex(text, "^done here, but not at every worker: .*:6772")
        self.network.ports[PORTS[2]] = site
        self.assertEqual(self.ask(0, "/admin/drain", {"deadline": 5})[:2], (200, 0))
        self.assertIsNot(self.drains[2].state, DrainState.SERVING)
        self.port_fault = OperatorError("agentcenter.grpc_port: 6751 is in use")
        status, code, text = self.ask(0, "/admin/undrain")
        self.assertEqual((status, code), (200, 3))
        self.assertIn("in use", text)

    def test_refused(self) -> None:
        """A scope that does not exist begins nothing."""
        self.assertEqual(self.ask(0, "/admin/drain?scope=all")[0], 400)
        self.assertEqual(self.states(), ["serving"] * 3)
