"""Where agents are sent: the order, ties, zones, and how a whole fleet spreads."""

import json
from collections import Counter
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from elkeid.discovery.registry import Registry

from .faults import MEMBERS, NODES
from .simulation import Node, World

GRPC = "hids_svr_grpc"


def make(zone: Any = None) -> Registry:
    """An empty registry with repeatable ties."""
    return Registry(Random(5), zone=zone or (lambda record: None))


def put(registry: Registry, ip: str, weight: int = 0, extra: Any = None, now: float = 0) -> None:
    """Register."""
    registry.register(GRPC, ip, 6751, weight, extra, wall=now, now=now)


def order(registry: Registry, charge: float = 0, zone: str | None = None, now: float = 0) -> str:
    """The addresses that an agent sees."""
    records = json.loads(registry.detail(GRPC, now, charge=charge, zone=zone))
    return "".join(record["ip"] for record in records)


class OrderTests(SynchronousTestCase):
    """One rule each."""

    def test_draining_last(self) -> None:
        """Who is leaving comes after everybody else, even after the unwell."""
        registry = make()
        put(registry, "a", 0, {"draining": True}, now=60)
        put(registry, "b", 9, now=60)
        put(registry, "c", 0, {"renew": 5}, now=0)
        put(registry, "d", 0, {"draining": "yes"}, now=60)
        self.assertEqual(order(registry, now=60), "dbca")

    def test_only_draining(self) -> None:
        """When all are leaving they are named nevertheless."""
        registry = make()
        put(registry, "a", 5, {"draining": True})
        put(registry, "b", 3, {"draining": True})
        self.assertEqual(order(registry), "ba")

    def test_answers_count(self) -> None:
        """Each answer adds to who was named first, until its next report."""
        registry = make()
        put(registry, "a", 0)
        put(registry, "b", 2)
        named = "".join(order(registry, 1)[0] for _ in range(2))
        self.assertEqual(named, "aa")
        third, fourth = order(registry, 1)[0], order(registry, 1)[0]
        self.assertEqual({third, fourth}, {"a", "b"})
        put(registry, "a", 1, now=5)
        self.assertEqual(order(registry, 1, now=5)[0], "a")

    def test_the_same_report_from_a_peer(self) -> None:
        """A peer that tells of the report that came here too does not make answers forgotten."""
        registry, peer = make(), Registry(Random(1), "peer")
        for each in (registry, peer):
            each.register(GRPC, "a", 1, 0, None, wall=0, now=0)
            each.register(GRPC, "b", 1, 3, None, wall=0, now=0)
        for _ in range(3):
            order(registry, 1)
        for fact in peer.facts([(GRPC, "a", 1)], 2):
            self.assertTrue(registry.merge(fact, 2))
        self.assertNotEqual(order(registry, 1, now=2)[0], order(registry, 1, now=2)[0])

    def test_relative_to_limits(self) -> None:
        """Answers count by what an instance can take."""
        registry = make()
        put(registry, "a", 0, {"limit": 100})
        put(registry, "b", 0, {"limit": 300})
        named = Counter(order(registry, 1)[0] for _ in range(400))
        self.assertEqual(named, {"a": 100, "b": 300})

    def test_limits_come_and_go(self) -> None:
        """When one has no limit the plain loads count, for all, and at once."""
        registry = make()
        put(registry, "a", 50, {"limit": 1000})
        put(registry, "b", 10, {"limit": 100})
        self.assertEqual(order(registry), "ab")
        put(registry, "c", 99, None)
        self.assertEqual(order(registry), "bac")
        put(registry, "c", 99, {"limit": 100})
        self.assertEqual(order(registry), "abc")

    def test_a_cached_answer_changes(self) -> None:
        """What was answered before is answered again only as long as it is still true."""
        registry = make()
        for number, ip in enumerate("abc"):
            put(registry, ip, 10 * number)
        self.assertEqual(order(registry), "abc")
        put(registry, "a", 15)
        self.assertEqual(order(registry), "bac")
        registry.evict(GRPC, "b", 6751, wall=0, now=0)
        self.assertEqual(order(registry), "ac")
        put(registry, "c", 0, now=1)
        self.assertEqual(order(registry, now=1), "ca")
        self.assertIn(b'"status":1', registry.detail(GRPC, 66))

    def test_zones(self) -> None:
        """Those of one's own place come first as long as they have room and are well."""
        registry = make(lambda record: str(record.extra["zone"]) if record.extra else None)
        put(registry, "a", 90, {"limit": 100, "zone": "x"})
        put(registry, "b", 10, {"limit": 100, "zone": "y"})
        put(registry, "c", 20, {"limit": 100, "zone": "x", "draining": True})
        self.assertEqual(order(registry), "bac")
        self.assertEqual(order(registry, zone="x"), "abc")
        self.assertEqual(order(registry, zone="y"), "bac")
        self.assertEqual(order(registry, zone="z"), "bac")
        named = Counter(order(registry, 1, zone="x")[0] for _ in range(20))
        self.assertEqual(named, {"a": 10, "b": 10})
        self.assertEqual(order(registry, zone="y"), "bac")


class Fleet:
    """Agents that reconnect over gateways which report as ours do.

    Args:
        world: with its nodes.
        nodes: that agents ask, each one of them by chance.
    """

    def __init__(self, world: World, nodes: list[Node]) -> None:
        self.world, self.nodes = world, nodes
        self.agents: Counter[str] = Counter()
        self.draining: set[str] = set()
        self.limits: dict[str, int] = {}

    def join(self, ip: str, agents: int, limit: int = 10_000) -> None:
        """A gateway with so many agents registers."""
        self.agents[ip], self.limits[ip] = agents, limit
        self.report(ip)

    def report(self, *ips: str) -> None:
        """Gateways report to every node, as our client does."""
        for ip in ips or tuple(self.agents):
            extra = {"limit": self.limits[ip], "draining": ip in self.draining, "renew": 5}
            for node in self.nodes:
                node.role.registry.register(
                    GRPC,
                    ip,
                    6751,
                    self.agents[ip],
                    extra,
                    wall=self.world.wall(),
                    now=self.world.now,
                )
                node.role.cluster.changed((GRPC, ip, 6751))

    def reconnect(self, agents: int, seconds: float, *, each: int | None = None) -> None:
        """So many agents ask and go where they are sent, evenly over some time."""
        for number in range(agents):
            node = self.nodes[each if each is not None else self.world.random.randrange(3)]
            body = json.loads(node.get(f"/registry/detail?name={GRPC}&count=10"))
            self.agents[body["data"][0]["ip"]] += 1
            if (number + 1) % max(1, round(agents * 0.1 / seconds)) == 0:
                self.world.step()

    def ideal(self, agents: int, start: dict[str, int]) -> dict[str, float]:
        """How so many more would spread if each saw all loads."""
        open_ = [ip for ip in start if ip not in self.draining]
        low, high = 0.0, 10.0
        for _ in range(60):  # the level to which the emptier ones are filled
            level = (low + high) / 2
            taken = sum(max(0.0, level * self.limits[ip] - start[ip]) for ip in open_)
            low, high = (level, high) if taken < agents else (low, level)
        return {
            ip: max(start[ip], low * self.limits[ip]) if ip in open_ else start[ip] for ip in start
        }


class FleetTests(SynchronousTestCase):
    """Ten thousand agents over three gateways of different load end within 10 % of the ideal."""

    def setUp(self) -> None:
        """Three nodes run."""
        self.world = World(3)
        nodes = [Node(self.world, name, MEMBERS) for name in NODES]
        for node in nodes:
            node.start()
        self.world.run(12)
        self.fleet = Fleet(self.world, nodes)
        for ip, agents in [("a", 0), ("b", 1000), ("c", 3000)]:
            self.fleet.join(ip, agents)

    def check(self, agents: int, start: dict[str, int]) -> None:
        """Within 10 % of the ideal."""
        for ip, ideal in self.fleet.ideal(agents, start).items():
            self.assertLess(
                abs(self.fleet.agents[ip] - ideal), max(0.1 * ideal, 50), self.fleet.agents
            )

    def test_within_a_second(self) -> None:
        """All at once, before anyone has reported again."""
        start = dict(self.fleet.agents)
        self.fleet.reconnect(10_000, 1)
        self.check(10_000, start)

    def test_with_reports(self) -> None:
        """Over half a minute, while gateways report every 5 s."""
        start = dict(self.fleet.agents)
        for _ in range(6):
            self.fleet.reconnect(1667, 5)
            self.fleet.report()
        self.check(10_000, start)

    def test_at_one_node(self) -> None:
        """All ask the same node: after its first 5 s it knows, and makes good for them."""
        start = dict(self.fleet.agents)
        for _ in range(6):
            self.fleet.reconnect(1667, 5, each=0)
            self.fleet.report()
        self.check(10_000, start)

    def test_limits(self) -> None:
        """Gateways of different size are filled alike."""
        self.fleet.join("d", 0, limit=30_000)
        start = dict(self.fleet.agents)
        self.fleet.reconnect(10_000, 2)
        self.check(10_000, start)

    def test_joins_drains_and_stale_weights(self) -> None:
        """One joins, one drains, one does not report for 20 s."""
        fleet = self.fleet
        fleet.reconnect(3000, 5)
        fleet.report()
        fleet.join("d", 0)
        start = dict(fleet.agents)
        fleet.reconnect(2000, 4)
        self.check(2000, start)
        fleet.draining.add("a")
        fleet.report()
        start = dict(fleet.agents)
        for _ in range(4):
            fleet.reconnect(1250, 5)
            fleet.report("b", "c")  # d is silent
        self.check(5000, start)
        self.assertEqual(fleet.agents["a"], start["a"])
