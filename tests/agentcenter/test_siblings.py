"""One agent id, one stream, across the gateway processes of one host."""

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.api import ENVELOPE
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.siblings import GATHER_SECONDS, Siblings
from elkeid.config import AgentCenterSettings, parse
from elkeid.web.api import Api
from elkeid.web.client import Credentials
from elkeid.web.routes import AuthKind
from elkeid.web.signed import SignatureCheck
from elkeid.web.site import FaceSite
from elkeid.wire.grpc import Status
from elkeid.workers import Worker, settings_of, siblings
from tests.agentcenter.host import WALL, Host, MemoryLog, batch
from tests.web.memory import MemoryNetwork
from tests.web.sample import AK, SK

PORTS = (6752, 6762, 6772)


class SiblingTests(SynchronousTestCase):
    """Three workers in memory."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.clock = self.network.clock
        self.logs: list[MemoryLog] = []
        self.gateways: list[Gateway] = []
        self.siblings: list[Siblings] = []
        for number in range(3):
            self.worker(number)

    def worker(self, number: int) -> None:
        """Start one."""
        log = MemoryLog()
        gateway = Gateway(
            AgentCenterSettings(),
            log,  # type: ignore[arg-type]
            self.clock,
            lambda: WALL,
            self.clock.seconds,
        )
        part = Siblings(
            gateway,
            self.network.client(Credentials(AK, SK)),
            [f"127.0.0.1:{port}" for port in PORTS if port != PORTS[number]],
            self.clock,
            self.clock.seconds,
        )
        gateway.follow(part)
        check = SignatureCheck({AK: SK}, self.network.wall)
        api = Api(ENVELOPE, [part], {AuthKind.SIGNED: check})
        self.network.ports[PORTS[number]] = FaceSite(api, self.clock)
        self.logs.append(log)
        self.gateways.append(gateway)
        self.siblings.append(part)

    def join(self, number: int, agent_id: str = "a1", address: str = "10.0.0.1") -> Host:
        """An agent's stream comes to a worker."""
        host = Host(self.gateways[number], address)
        host.send(host.open(), batch(agent_id, 59))
        return host

    def wait(self) -> None:
        """Let the others be told."""
        self.network.advance(2 * GATHER_SECONDS, GATHER_SECONDS)

    def ended(self, host: Host) -> int | None:
        """The status that an agent's stream was ended with."""
        if not host.lost:
            host.pump()
        event = host.ended(1)
        return None if event is None else event.status

    def test_from_the_same_address(self) -> None:
        """The newcomer at one process replaces the stream at another; what comes is kept."""
        old = self.join(0)
        self.wait()
        new = self.join(1)
        old.client.send_message(1, batch("a1", 60), False)
        late = old.client.data_to_send()
        self.wait()
        old.link.dataReceived(late)
        self.assertEqual((self.ended(old), self.ended(new)), (Status.ABORTED, None))
        self.assertEqual(self.logs[0].of("a1"), [59, 60])
        self.assertEqual([len(gateway.table) for gateway in self.gateways], [0, 1, 0])
        self.assertEqual(self.gateways[0].table.replaced, 1)
        (listed,) = self.gateways[0].table.claims.replaced.latest()
        self.assertEqual((listed.agent_id, listed.peer), ("a1", "10.0.0.1:40000"))

    def test_from_another_address(self) -> None:
        """It displaces nobody; the Manager sees both."""
        old = self.join(0)
        self.wait()
        new = self.join(1, address="10.0.0.2")
        self.wait()
        self.assertEqual((self.ended(old), self.ended(new)), (None, None))

    def test_moved_on_meanwhile(self) -> None:
        """Word of an older stream does not end a newer one."""
        first = self.join(0)
        self.clock.advance(GATHER_SECONDS / 2)
        second = self.join(1)
        self.wait()
        self.assertEqual((self.ended(first), self.ended(second)), (Status.ABORTED, None))

    def test_many_in_one_call(self) -> None:
        """A fleet that comes back costs a few calls, not one for each agent."""
        before = len(self.network.dialled)
        hosts = [self.join(0, f"a{n}", f"10.0.{n // 250}.{n % 250}") for n in range(1500)]
        self.wait()
        for number in range(1500):
            self.join(2, f"a{number}", f"10.0.{number // 250}.{number % 250}")
        self.wait()
        self.assertEqual({self.ended(host) for host in hosts}, {Status.ABORTED})
        self.assertLessEqual(len(self.network.dialled) - before, 4)

    def test_who_left_is_not_told(self) -> None:
        """An agent that is gone before the others are told needs no word."""
        host = self.join(0)
        other = self.join(1, "a1")
        host.drop()
        self.wait()
        self.assertIsNone(self.ended(other))

    def test_a_worker_that_is_away(self) -> None:
        """It holds no streams; the others are told all the same, and so is it when it is back."""
        site = self.network.ports.pop(PORTS[1])
        old = self.join(2)
        self.wait()
        moved = self.join(0)
        self.wait()
        self.assertEqual(self.ended(old), Status.ABORTED)
        self.network.ports[PORTS[1]] = site
        new = self.join(1)
        self.wait()
        self.assertEqual((self.ended(moved), self.ended(new)), (Status.ABORTED, None))
        self.assertEqual([len(gateway.table) for gateway in self.gateways], [0, 1, 0])

    def test_stop(self) -> None:
        """Nothing is left behind, told or untold."""
        self.join(0)
        self.network.silent.add(PORTS[2])
        self.wait()
        self.join(1)
        for part in self.siblings:
            done = Deferred.fromCoroutine(part.stop())
            self.network.flush()
            self.successResultOf(done)


def test_places() -> None:
    """A worker finds the others by its own settings."""
    host = parse({}, Path())
    worker = Worker(1, 3)
    places = siblings(worker, settings_of(worker, host))
    assert places == ["127.0.0.1:6752", "127.0.0.1:6772"]
    everywhere = parse(
        {"agentcenter": {"listen": "::"}, "server": {"advertise": "192.0.2.7"}}, Path()
    )
    assert siblings(Worker(0, 2), everywhere) == ["[::1]:6762"]
