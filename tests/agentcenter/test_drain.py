"""Taking a gateway out of service: who is told what, in which order, within which time."""

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.admin import AdminRoutes
from elkeid.agentcenter.drain import Drain, DrainState
from elkeid.agentcenter.gateway import Gateway
from elkeid.config import AgentCenterSettings, Settings
from elkeid.discovery.client import DiscoveryClient
from elkeid.discovery.load import report
from elkeid.discovery.service import DiscoveryRole
from elkeid.errors import OperatorError
from elkeid.web.client import Credentials
from elkeid.wire.grpc import Status
from tests.agentcenter.face import Face
from tests.agentcenter.host import WALL, Host, MemoryLog, batch
from tests.discovery.test_api import Keys
from tests.web.memory import MemoryNetwork
from tests.web.sample import AK, SK

NAME = "hids_svr_grpc"
HERE, THERE = ("10.0.0.1", 6751), ("10.0.0.2", 6751)
SD = 8088


class DrainTests(SynchronousTestCase):
    """One gateway, ServiceDiscovery in memory, and perhaps another gateway that is listed."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.clock = self.network.clock
        self.sd = DiscoveryRole(
            Settings(), Keys(), self.clock, wall=self.network.wall, monotonic=self.network.wall
        )
        self.network.ports[SD] = self.sd.site
        self.log = MemoryLog()
        log_like: Any = self.log
        self.gateway = Gateway(
            AgentCenterSettings(), log_like, self.clock, lambda: WALL, self.clock.seconds
        )
        self.closed_at: list[float] = []
        self.opened_at: list[float] = []
        self.port_fault: OperatorError | None = None
        self.discovery = self.client()
        self.drain = Drain(
            self.gateway,
            self.discovery,
            name=NAME,
            address=HERE,
            close_port=self.close_port,
            open_port=self.open_port,
            clock=self.clock,
        )
        self.discovery.register(NAME, *HERE, self.load)
        self.discovery.register("hids_svr_http", HERE[0], 6752, self.load)
        self.discovery.watch(NAME, lambda records: None)
        self.network.flush()
        self.began = self.clock.seconds()
        self.left: list[float] = []
        self.face = Face(
            [AdminRoutes(self.drain, self.gateway, self.leave, self.clock)], self.clock
        )
        self.hosts: list[Host] = []

    def client(self) -> DiscoveryClient:
        """A client of the registry."""
        http = self.network.client(Credentials(AK, SK))
        return DiscoveryClient(self.clock, http, [f"127.0.0.1:{SD}"])

    def load(self) -> tuple[int, dict[str, Any] | None]:
        """As the role tells it."""
        draining = self.drain.state is not DrainState.SERVING
        return len(self.gateway.table), report(10, 0, draining)

    async def close_port(self) -> None:
        """Note when."""
        self.closed_at.append(self.seconds())

    def open_port(self) -> None:
        """Note when, and be registered again."""
        if self.port_fault is not None:
            raise self.port_fault
        self.opened_at.append(self.seconds())
        if not self.discovery.registers(NAME):
            self.discovery.register(NAME, *HERE, self.load)

    def leave(self) -> None:
        """Note when the process would stop."""
        self.left.append(self.seconds())

    def seconds(self) -> float:
        """Since the beginning of the test."""
        return self.clock.seconds() - self.began

    def other(self, **extra: Any) -> None:
        """Another gateway comes up, and this one has heard of it."""
        client = self.client()
        client.register(NAME, *THERE, lambda: (5, {"limit": 10, **extra}))
        self.network.flush()
        self.network.advance(2.1)
        self.began = self.clock.seconds()

    def join(self, count: int) -> None:
        """Connect agents."""
        for number in range(count):
            host = Host(self.gateway, f"10.1.0.{number % 250}")
            host.send(host.open(), batch(f"a{number}", 59))
            self.hosts.append(host)

    def advance(self, seconds: float) -> None:
        """Let time pass; agents hear what they are told."""
        while seconds > 0:
            self.network.advance(min(0.1, seconds), 0.1)
            for host in self.hosts:
                if not host.lost:
                    host.pump()
            seconds -= 0.1

    def listed(self, name: str = NAME) -> list[str]:
        """Addresses in the order that agents get them."""
        now = self.network.wall()
        return [each["ip"] for each in json.loads(self.sd.registry.detail(name, now))]

    def gone(self) -> int:
        """Agents that were told goodbye, and are gone."""
        return sum(host.lost and host.client.going_away for host in self.hosts)

    def finish(self, seconds: float) -> Deferred[None]:
        """The process stops."""
        return Deferred.fromCoroutine(self.drain.finish(seconds))

    def test_in_order(self) -> None:
        """Off the list, the port closed, goodbyes spread over the time; then it stays drained."""
        self.other()
        self.join(50)
        self.assertEqual(sorted(self.listed()), [HERE[0], THERE[0]])
        self.drain.begin(60)
        self.network.flush()
        self.assertEqual(self.drain.state, DrainState.DRAINING)
        self.assertEqual(self.listed(), [THERE[0]])
        self.assertEqual(self.listed("hids_svr_http"), [HERE[0]])  # commands still reach agents
        self.assertEqual(self.closed_at, [0.0])
        self.assertTrue(self.gateway.closed)
        self.advance(27)
        self.assertTrue(20 < self.gone() < 30, self.gone())
        self.advance(34)
        self.assertEqual(self.gone(), 50)
        self.assertEqual(self.drain.state, DrainState.DRAINED)
        ended = [host.ended(1) for host in self.hosts]
        self.assertEqual({event.status for event in ended if event}, {Status.OK})
        self.assertEqual(self.left, [])
        self.advance(30)
        self.assertEqual(self.closed_at, [0.0])
        self.assertEqual(self.listed(), [THERE[0]])

    def test_nobody_else(self) -> None:
        """Without another gateway it stays listed, its port open, and refuses streams."""
        self.join(2)
        self.drain.begin(10)
        self.network.flush()
        new = Host(self.gateway)
        stream = new.open()
        ended = new.ended(stream)
        assert ended is not None
        self.assertEqual(ended.status, Status.UNAVAILABLE)
        self.assertFalse(new.lost)
        self.advance(10)
        self.assertEqual(self.drain.state, DrainState.DRAINED)
        self.assertEqual(self.gone(), 2)
        self.assertEqual((self.closed_at, self.listed()), ([], [HERE[0]]))
        (record,) = self.sd.registry.records(NAME, self.network.wall())
        self.assertIs((record.extra or {})["draining"], True)
        self.assertFalse(new.lost)
        self.other()  # comes up later: agents are sent there
        self.advance(3)
        self.assertEqual(len(self.closed_at), 1)
        self.assertEqual(self.listed(), [THERE[0]])
        self.assertTrue(new.transport.disconnected)

    def test_others_without_room(self) -> None:
        """A gateway that is full or draining itself is no place to send agents to."""
        for extra in ({"draining": True}, {"limit": 5}):
            self.other(**extra)
            self.drain.begin(5)
            self.advance(6)
            self.assertEqual(self.closed_at, [])

    def test_registry_silent(self) -> None:
        """While ServiceDiscovery is silent the drain goes on after its share of the time."""
        self.other()
        self.join(1)
        self.network.ports.pop(SD)
        self.sd.site.close()
        self.network.silent.add(SD)
        self.drain.begin(60)
        self.advance(8.9)
        self.assertEqual((self.closed_at, self.gone()), ([], 0))
        self.advance(0.3)
        self.assertEqual(len(self.closed_at), 1)
        self.advance(51)
        self.assertEqual(self.drain.state, DrainState.DRAINED)
        self.assertEqual(self.gone(), 1)

    def test_registry_names_us_still(self) -> None:
        """A registry that names this gateway first, as it did not hear us leave, is waited for."""
        self.other()
        self.network.ports.pop(SD)
        self.sd.site.close()
        self.drain.begin(60)
        self.advance(1)
        self.network.ports[SD] = self.sd.site
        self.advance(2)
        self.assertEqual(self.listed()[0], HERE[0])
        self.assertEqual(self.closed_at, [])
        self.network.run(
            self.network.client(Credentials(AK, SK)).post(
                f"http://127.0.0.1:{SD}/registry/evict",
                {"name": NAME, "ip": HERE[0], "port": HERE[1]},
            )
        )
        self.advance(0.5)
        self.assertEqual(len(self.closed_at), 1)

    def test_silent_agents(self) -> None:
        """An agent that does not end its stream is read for five seconds, then reset."""
        self.other()
        self.join(2)
        self.hosts[0].frozen = True
        self.drain.begin(7)
        self.advance(1.8)  # one is told at once, the other halfway to the last five seconds
        self.assertEqual(self.gone(), 1)
        self.hosts[0].client.send_message(1, batch("a0", 60), False)
        self.hosts[0].link.dataReceived(self.hosts[0].client.data_to_send())
        self.advance(5.3)
        self.assertEqual(self.drain.state, DrainState.DRAINED)
        self.assertTrue(self.hosts[0].transport.disconnected)
        self.assertEqual(self.log.of("a0"), [59, 60])

    def test_worker(self) -> None:
        """One of several processes of a host closes its share of the port; the host is listed."""
        self.join(3)
        self.drain._siblings = True
        self.drain.begin(10)
        self.network.flush()
        self.assertEqual(len(self.closed_at), 1)
        self.assertEqual(self.listed(), [HERE[0]])
        self.advance(10)
        self.assertEqual((self.gone(), self.drain.state), (3, DrainState.DRAINED))

    def test_stop(self) -> None:
        """A stop is a drain of a few seconds, over as soon as the last agent is gone."""
        self.other()
        self.join(20)
        done = self.finish(6.3)
        self.advance(1.2)
        self.successResultOf(done)
        self.assertEqual(self.gone(), 20)
        self.assertEqual(len(self.closed_at), 1)

    def test_stop_cuts_a_drain_short(self) -> None:
        """A stop during a drain has the time of a stop; what `then` was, is not done."""
        self.other()
        self.join(20)
        self.drain.begin(600, self.leave)
        self.advance(10)
        self.assertLess(self.gone(), 3)
        done = self.finish(6.3)
        self.advance(1.2)
        self.successResultOf(done)
        self.assertEqual(self.gone(), 20)
        self.advance(700)
        self.assertEqual(self.left, [])
        self.successResultOf(self.finish(6.3))  # drained already

    def test_undone_when_drained(self) -> None:
        """It is listed again, its port open, and takes agents; it can be drained once more."""
        self.other()
        self.join(3)
        self.drain.begin(10)
        self.advance(11)
        self.assertEqual((self.drain.state, self.listed()), (DrainState.DRAINED, [THERE[0]]))
        self.drain.undo()
        self.network.flush()
        self.assertEqual((self.drain.state, len(self.opened_at)), (DrainState.SERVING, 1))
        self.assertEqual(sorted(self.listed()), [HERE[0], THERE[0]])
        (record,) = [
            each
            for each in self.sd.registry.records(NAME, self.network.wall())
            if each.ip == HERE[0]
        ]
        self.assertIs((record.extra or {})["draining"], False)
        new = Host(self.gateway)
        stream = new.open()
        new.send(stream, batch("new", 1))
        self.assertIsNone(new.ended(stream))
        self.hosts.append(new)
        self.advance(70)
        self.assertFalse(new.lost)
        self.drain.begin(10)
        self.advance(11)
        self.assertEqual(self.drain.state, DrainState.DRAINED)
        self.assertTrue(new.lost)
        self.assertEqual(len(self.closed_at), 2)

    def test_undone_on_the_way(self) -> None:
        """Agents that were not told goodbye yet stay, and nothing is done at the deadline."""
        self.other()
        self.join(50)
        self.drain.begin(60, self.leave)
        self.advance(27)
        self.drain.undo()
        gone = self.gone()
        self.assertTrue(20 < gone < 30, gone)
        self.advance(60)
        self.assertEqual((self.gone(), self.left), (gone, []))
        self.assertEqual(self.drain.state, DrainState.SERVING)

    def test_undone_where_no_other_had_room(self) -> None:
        """The port was open and refused streams; it takes them again."""
        self.join(1)
        self.drain.begin(5)
        self.advance(6)
        self.drain.undo()
        new = Host(self.gateway)
        stream = new.open()
        self.assertIsNone(new.ended(stream))
        self.other()  # no longer a reason to close the port
        self.advance(5)
        self.assertEqual(self.closed_at, [])

    def test_api_undrain(self) -> None:
        """It answers how things are now; a port that cannot be opened leaves them as they were."""
        status, body = self.face.ask("POST", "/admin/undrain")
        self.assertEqual((status, body["data"]["state"], self.opened_at), (200, "serving", []))
        self.other()
        self.face.ask("POST", "/admin/drain", {"deadline": 1})
        self.advance(2)
        self.port_fault = OperatorError("agentcenter.grpc_port: 6751 is in use")
        status, body = self.face.ask("POST", "/admin/undrain")
        self.assertEqual((status, body["code"]), (200, 3))
        self.assertIn("in use", body["data"])
        self.assertEqual(self.face.ask("GET", "/admin/drain")[1]["data"]["state"], "drained")
        self.port_fault = None
        self.assertEqual(self.face.ask("POST", "/admin/undrain")[0], 200)
        self.assertEqual(self.drain.state, DrainState.SERVING)
        self.assertEqual(self.face.ask("POST", "/admin/undrain", signed=False)[0], 403)

    def test_api(self) -> None:
        """Begun once, then 409; progress can be asked for."""
        self.other()
        self.join(4)
        serving = {"state": "serving", "connections": 4, "agents": 4, "seconds": 0.0}
        self.assertEqual(self.face.ask("GET", "/admin/drain")[1]["data"], serving)
        status, body = self.face.ask("POST", "/admin/drain", {})
        self.assertEqual((status, body["code"]), (200, 0))
        self.assertEqual(
            body["data"], {"state": "draining", "connections": 4, "agents": 4, "seconds": 60.0}
        )
        self.advance(20)
        status, body = self.face.ask("POST", "/admin/drain", {"deadline": 5})
        self.assertEqual((status, body["code"]), (409, 3))
        self.assertRegex(body["data"], "draining already: [123] connections left")
        self.assertEqual(self.face.ask("GET", "/admin/drain")[1]["data"]["seconds"], 40.0)
        self.advance(41)
        status, body = self.face.ask("POST", "/admin/drain", {"then": "exit"})
        self.assertEqual((status, body["data"]), (409, "drained already: 0 connections left"))
        self.assertEqual(self.left, [])

    def test_api_exit(self) -> None:
        """With ``exit`` the process stops when the agents are gone."""
        self.other()
        self.join(1)
        self.face.ask("POST", "/admin/drain", {"deadline": 10, "then": "exit"})
        self.assertEqual(self.left, [])
        self.advance(10)
        self.assertEqual(len(self.left), 1)

    def test_api_refusals(self) -> None:
        """Bad bodies and failed signatures begin nothing."""
        for body in ({"deadline": 0}, {"deadline": 3601}, {"deadline": "1"}, {"then": "x"}, b""):
            status, answer = self.face.ask("POST", "/admin/drain", body)
            self.assertEqual((status, answer["code"]), (400, 2), body)
        self.assertEqual(self.face.ask("POST", "/admin/drain", {}, signed=False)[0], 403)
        self.assertEqual(self.drain.state, DrainState.SERVING)
