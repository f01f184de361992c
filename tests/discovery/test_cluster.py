"""Nodes that keep each other alike, on a simulated network that fails as a seed says."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.config import parse
from elkeid.discovery.client import DiscoveryClient
from elkeid.discovery.members import Zones, is_local, other_members
from elkeid.discovery.peers import Kind
from elkeid.discovery.registry import Record

from .faults import MEMBERS, NODES, run
from .simulation import Node, Place, World

A, B, C = NODES
SVC = "hids_svr_grpc"


def seed_of_today() -> int:
    """A new seed each time, or that of ``ELKEID_SEED``."""
    return int(os.environ.get("ELKEID_SEED") or int.from_bytes(os.urandom(4)))


def test_faults() -> None:
    """Nodes are killed, paused, cut off, slowed and skewed: what they answer stays true."""
    seed = seed_of_today()
    print(f"ELKEID_SEED={seed}")
    checker, nemesis = run(seed, 900)
    assert sum(nemesis.done.values()) > 15
    assert checker.orders > 0


@pytest.mark.soak
def test_faults_for_an_hour() -> None:
    """The same for an hour of real time, ten thousand simulated seconds a seed."""
    end = time.monotonic() + 3600
    while time.monotonic() < end:
        seed = seed_of_today()
        print(f"ELKEID_SEED={seed}", flush=True)
        checker, nemesis = run(seed, 10_000)
        print(f"{checker.answers} lists checked, {checker.orders} orders; {nemesis.done}")


class Upstream(Place):
    """A node as upstream's: overwrites blindly, pushes what it is told, and no more than that."""

    def __init__(self, world: World, name: str, members: list[str], skew: float = 0.0) -> None:
        super().__init__(world, name)
        self.up, self.members, self.skew = True, [m for m in members if name not in m], skew
        self.records: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.odd: list[str] = []  # paths that it does not know
        self.http = world.client(name)
        self._flush()

    def _wall(self) -> int:
        return int(self.world.wall() + self.skew)

    def serve(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Any:
        """Answer as upstream does."""
        path, _, _query = target.partition("?")
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self._wall()))
        answer: Any = {"msg": "ok"}
        told = json.loads(body) if body else {}
        if path == "/registry/register":
            self._register(told)
        elif path == "/registry/evict":
            self.records.pop(told["ip"], None)
            zeros = {"status": 0, "create_at": 0, "update_at": 0, "weight": 0, "extra": None}
            record = {**zeros, **{key: told[key] for key in ("name", "ip", "port")}}
            self.events.append({"action": "EVICT", "registry": record})
        elif path == "/registry/sync":
            self._sync(told)
        elif path == "/endpoint/ping":
            answer = {"data": {"host": "0.0.0.0:8088", "members": self.members}, "msg": "ok"}
        elif path == "/registry/list":
            answer = {"data": [SVC] if self.records else [], "msg": "ok"}
        elif path == "/registry/detail":
            answer = {"data": list(self.records.values()), "msg": "ok"}
        else:
            self.odd.append(path)
            return 404, {"date": date}, b"404 page not found"
        return 200, {"date": date}, json.dumps(answer).encode()

    def _register(self, told: dict[str, Any]) -> None:
        known, now = self.records.get(told["ip"]), self._wall()
        record = known or {
            "name": told["name"],
            "ip": told["ip"],
            "port": told["port"],
            "status": 0,
            "create_at": now,
            "extra": told.get("extra", {}),
        }
        record |= {"update_at": now, "weight": told["weight"]}
        self.records[told["ip"]] = record
        self.events.append({"action": "REGISTER", "registry": dict(record)})

    def _sync(self, told: dict[str, Any]) -> None:
        assert len(told["data"]) <= 100
        for event in told["data"]:
            record = event["registry"]
            assert list(record) == [
                *("name", "ip", "port", "status", "create_at", "update_at", "weight", "extra")
            ]
            if event["action"] == "REGISTER":
                self.records[record["ip"]] = record
            elif event["action"] == "EVICT":
                self.records.pop(record["ip"], None)

    def sweep(self) -> None:
        """Evict by age, and tell everybody."""
        for ip, record in list(self.records.items()):
            if self._wall() - record["update_at"] > 120:
                del self.records[ip]
                self.events.append({"action": "EVICT", "registry": record})

    def _flush(self) -> None:
        batch, self.events = self.events[:100], self.events[100:]
        if batch:
            for member in self.members:
                call = self.http.post(
                    f"http://{member}/registry/sync", {"source": "0.0.0.0:8088", "data": batch}
                )
                Deferred.fromCoroutine(call).addErrback(lambda _: None)
        self.world.later(2, self._flush)


class ClusterTests(SynchronousTestCase):
    """One behaviour each, three nodes at most."""

    def setUp(self) -> None:
        """Nobody runs yet."""
        self.world = World(7)
        self.nodes = {name: Node(self.world, name, MEMBERS) for name in NODES}

    def start(self, *names: str) -> None:
        """Start nodes, and wait until those that find nobody have given up looking."""
        for name in names:
            self.nodes[name].start()
        self.world.run(4)

    def register(self, node: str, ip: str, weight: int = 0, extra: Any = None) -> None:
        """Register at one node, once."""
        body = json.dumps(
            {"name": SVC, "ip": ip, "port": 6751, "weight": weight, "extra": extra}
        ).encode()
        self.post(node, "/registry/register", body)

    def post(self, node: str, path: str, body: bytes) -> int:
        """A signed POST."""
        http = self.world.client("i")
        done: list[int] = []

        async def call() -> None:
            done.append((await http.call("POST", f"http://{node}:8088{path}", body)).status)

        Deferred.fromCoroutine(call())
        self.world.run(0.3)
        return done[0]

    def known(self, node: str) -> dict[str, Record]:
        """What a node knows, by address."""
        registry = self.nodes[node].role.registry
        return {record.ip: record for record in registry.records(SVC, self.world.now)}

    def test_told_at_once(self) -> None:
        """What one node hears the others know a second later, an eviction too."""
        self.start(A, B, C)
        self.register(A, "i1", 7, {"limit": 9})
        self.world.run(1.2)
        for name in NODES:
            self.assertEqual(self.known(name)["i1"].weight, 7)
            self.assertEqual(self.known(name)["i1"].extra, {"limit": 9})
        self.post(B, "/registry/evict", b'{"name":"hids_svr_grpc","ip":"i1","port":6751}')
        self.world.run(1.2)
        for name in NODES:
            self.assertEqual(self.known(name), {})

    def test_start_with_what_others_know(self) -> None:
        """A restarted node opens its port with everything that its peers know, silences too."""
        self.start(A, B)
        self.register(A, "i1")
        self.world.run(50)
        self.register(A, "i2")
        self.nodes[B].kill()
        self.nodes[B].start()
        self.world.run(1)
        self.assertTrue(self.nodes[B].serving)
        self.assertEqual(set(self.known(B)), {"i1", "i2"})
        self.world.run(20)
        self.assertEqual({ip: r.status for ip, r in self.known(B).items()}, {"i1": 1, "i2": 0})

    def test_start_without_peers(self) -> None:
        """A node that finds no peer serves after 3 s, and says so to operators."""
        self.nodes[A].start()
        self.world.run(2.4)
        self.assertFalse(self.nodes[A].serving)
        self.world.run(0.8)
        self.assertTrue(self.nodes[A].serving)
        self.world.run(6)
        status = json.loads(self.nodes[A].get("/ready"))
        self.assertTrue(status["ready"])
        self.assertIn("10.9.0.2:8088 does not answer", status["remarks"][0])
        self.assertIn("found no other one", status["remarks"][-1])

    def test_start_that_is_given_up(self) -> None:
        """A node that is told to stop while it still asks its peers opens no port any more."""
        for number in range(25):
            node = Node(self.world, "10.9.0.9", MEMBERS)
            self.world.random.seed(number)
            node.start()
            self.world.run(0.1 * number)
            node.starting.cancel()
            Deferred.fromCoroutine(node.role.stop())
            self.world.run(5)
            self.assertEqual((node.clock.tcpServers, node.clock.getDelayedCalls()), ([], []))

    def test_stop(self) -> None:
        """A node that stops tells its peers what it has just heard, and leaves no timer."""
        self.start(A, B)
        node = self.nodes[A]
        self.world.run(6)
        self.register(A, "i1")
        self.world.run(2)
        self.post(A, "/registry/evict", b'{"name":"hids_svr_grpc","ip":"i1","port":6751}')
        self.register(A, "i2")
        stopped = Deferred.fromCoroutine(node.role.stop())
        self.world.run(0.6)
        self.assertTrue(stopped.called)
        self.assertEqual(node.clock.getDelayedCalls(), [])
        self.assertEqual(set(self.known(B)), {"i2"})

    def test_stop_beside_silent_peers(self) -> None:
        """Peers that do not answer hold up no stop."""
        self.start(A, B)
        self.world.run(6)
        self.world.cuts.add(frozenset((A, B)))
        self.register(A, "i1")
        self.world.run(1)
        stopped = Deferred.fromCoroutine(self.nodes[A].role.stop())
        self.world.run(0.7)
        self.assertTrue(stopped.called)
        self.assertEqual(self.nodes[A].clock.getDelayedCalls(), [])

    def test_shares(self) -> None:
        """A node learns how many agents ask the others, for each that asks it."""
        self.start(A, B, C)
        cluster = self.nodes[A].role.cluster
        self.world.run(6)
        self.assertEqual(cluster.charge(), 3.0)
        for node, agents in [(A, 190), (B, 90)]:
            for _ in range(agents):
                self.nodes[node].get(f"/registry/detail?name={SVC}&count=10")
        self.world.run(5.5)
        self.assertAlmostEqual(cluster.charge(), 1 + 0.5 + 0.05)
        self.nodes[C].kill()
        self.world.run(12)
        self.assertEqual(cluster.charge(), 2.0)

    def test_lost_news_are_found(self) -> None:
        """What died with the node that heard it before all knew is found by comparing."""
        self.start(A, B, C)
        self.world.cuts.add(frozenset((A, C)))
        self.register(A, "i1")
        self.world.run(2)
        self.nodes[A].kill()
        self.world.run(6)
        self.assertEqual(set(self.known(C)), {"i1"})

    def test_told_when_back(self) -> None:
        """A peer that was away is told the present state, not the past."""
        self.start(A, B, C)
        self.world.cuts |= {frozenset((A, B)), frozenset((C, B))}
        for weight in range(5):
            self.register(A, "i1", weight)
            self.world.run(5)
        self.register(A, "i2")
        self.post(A, "/registry/evict", b'{"name":"hids_svr_grpc","ip":"i2","port":6751}')
        self.assertEqual(self.known(B), {})
        self.world.cuts.clear()
        self.world.run(5)
        self.assertEqual({ip: r.weight for ip, r in self.known(B).items()}, {"i1": 4})

    def test_clocks_are_no_matter(self) -> None:
        """The later fact holds though the clock of the node that tells it is behind."""
        self.start(A, B)
        self.nodes[A].skew = 25.0
        self.nodes[B].skew = -25.0
        for node, weight in [(A, 1), (B, 2), (A, 3), (B, 4)]:
            self.register(node, "i1", weight)
            self.world.run(2)
            self.assertEqual([self.known(n)["i1"].weight for n in (A, B)], [weight] * 2)
        self.post(B, "/registry/evict", b'{"name":"hids_svr_grpc","ip":"i1","port":6751}')
        self.world.run(2)
        self.assertEqual((self.known(A), self.known(B)), ({}, {}))

    def test_own_node_under_another_name(self) -> None:
        """A node that is configured under a name it does not know finds out that it is itself."""
        node = Node(self.world, "sd.example", ["sd-alias.example:8088"])
        self.world.places["sd-alias.example"] = node
        node.start()
        self.world.run(12)
        (peer,) = node.role.cluster.peers
        self.assertEqual(peer.kind, Kind.SELF)
        node.role.cluster.changed((SVC, "i1", 1))
        self.assertEqual(len(peer.outbox), 0)
        self.assertEqual(node.role.cluster.charge(), 1.0)

    def test_self_preservation(self) -> None:
        """A node that hears nobody keeps everybody, says so, and lets go when it hears again."""
        self.start(A, B)
        clients = []
        for number in range(5):
            client = DiscoveryClient(self.world.clients, self.world.client(f"i{number}"), MEMBERS)
            client.register(SVC, f"i{number}", 6751, lambda: (0, None))
            clients.append(client)
        self.world.run(5)
        everyone = [B, *(f"i{number}" for number in range(5))]
        self.world.cuts |= {frozenset((A, other)) for other in everyone}
        self.world.run(60)
        for renewal in clients[0]._renewals:
            renewal.loop.stop()
        self.world.run(200)
        self.assertEqual(len(self.known(A)), 5)
        self.assertEqual(len(self.known(B)), 4)
        (remark,) = [r for r in json.loads(self.nodes[A].get("/ready"))["remarks"] if SVC in r]
        self.assertIn("5 of 5 instances fell silent together and are kept", remark)
        self.assertIn(
            f'elkeid_sd_preserved{{name="{SVC}"}} 5.0',
            self.nodes[A].serve("GET", "/metrics", {"x-from": "10.0.0.1"}, b"")[2].decode(),
        )
        self.world.cuts.clear()
        self.world.run(10)
        self.assertEqual(
            {ip: r.status for ip, r in self.known(A).items() if r.status == 0}.keys(),
            {"i1", "i2", "i3", "i4"},
        )
        self.assertEqual(set(self.known(A)), {"i1", "i2", "i3", "i4"})
        self.assertNotIn(SVC, self.nodes[A].get("/ready").decode())

    def test_after_standing_still(self) -> None:
        """A registration that lay in a paused node's buffers is refused: its sender may be dead."""
        self.start(A, B)
        self.nodes[A].pause()
        http, seen = self.world.client("i"), []

        async def call() -> None:
            body = {"name": SVC, "ip": "i1", "port": 1}
            reply = await http.post(f"http://{A}:8088/registry/register", body, seconds=100)
            seen.append((reply.status, json.loads(reply.body)))

        Deferred.fromCoroutine(call())
        self.world.run(20)
        self.nodes[A].resume()
        self.world.run(0.5)
        self.assertEqual(seen[0][0], 503)
        self.assertIn("stood still", seen[0][1]["msg"])
        self.world.run(2)
        self.register(A, "i1")
        self.assertEqual(set(self.known(A)), {"i1"})

    def test_unusable_peers(self) -> None:
        """A member that is no ServiceDiscovery at all harms nobody."""

        class Odd(Place):
            def serve(self, *_: Any) -> Any:
                return 200, {}, b'{"data":[]}'

        odd = Odd(self.world, B)
        odd.up = True
        self.start(A)
        self.register(A, "i1")
        self.world.run(10)
        self.assertEqual(set(self.known(A)), {"i1"})

    def test_both_ways_with_upstream(self) -> None:
        """With an upstream node in the cluster, whose clock is off, all end up alike."""
        for skew in (0.0, 40.0, -40.0):
            self.setUp()
            upstream = Upstream(self.world, C, MEMBERS, skew)
            self.register_at(upstream, "old", 3)
            self.start(A)
            self.assertEqual(set(self.known(A)), {"old"})
            self.start(B)
            self.register(A, "i1", 5, {"limit": 10})
            self.register_at(upstream, "i2", 6)
            self.world.run(6)
            for name in (A, B):
                weights = {ip: r.weight for ip, r in self.known(name).items()}
                self.assertEqual(weights, {"old": 3, "i1": 5, "i2": 6})
            self.assertEqual(
                {ip: r["weight"] for ip, r in upstream.records.items()},
                {"old": 3, "i1": 5, "i2": 6},
            )
            self.assertLess(abs(upstream.records["i1"]["update_at"] - upstream._wall() + 6), 4)
            for turn in range(8):  # an instance that renews now here, now there
                if turn % 2:
                    self.register(A, "i1", turn)
                else:
                    self.register_at(upstream, "i1", turn)
                self.world.run(30)
                for name in (A, B):
                    self.assertEqual(self.known(name)["i1"].weight, turn)
                    self.assertEqual(self.known(name)["i1"].status, 0)
                self.assertEqual(upstream.records["i1"]["weight"], turn)
            self.assertEqual(set(self.known(B)), {"i1"})
            upstream.sweep()
            self.post(A, "/registry/evict", b'{"name":"hids_svr_grpc","ip":"i1","port":6751}')
            self.register(B, "i3")
            self.register_at(upstream, "i4")
            self.evict_at(upstream, "i4")
            self.world.run(6)
            self.assertEqual(set(upstream.records), {"i3"})
            self.assertEqual((set(self.known(A)), set(self.known(B))), ({"i3"}, {"i3"}))
            self.assertEqual(upstream.odd, [])

    def test_upstream_evicts_for_itself_only(self) -> None:
        """An upstream node that lost touch and evicts by age takes nobody from us."""
        upstream = Upstream(self.world, C, MEMBERS)
        self.start(A, B)
        self.register(A, "i1")
        self.world.run(3)
        self.world.cuts |= {frozenset((C, A)), frozenset((C, B))}
        for _ in range(5):
            self.world.run(30)
            self.register(A, "i1")
        upstream.sweep()
        self.assertEqual(upstream.records, {})
        self.world.cuts.clear()
        self.world.run(5)
        self.assertEqual((set(self.known(A)), set(self.known(B))), ({"i1"}, {"i1"}))

    def register_at(self, upstream: Upstream, ip: str, weight: int = 0) -> None:
        """Register at the upstream node, as AgentCenter of upstream does."""
        body = {"name": SVC, "ip": ip, "port": 6751, "weight": weight, "extra": None}
        upstream.serve("POST", "/registry/register", {}, json.dumps(body).encode())

    def evict_at(self, upstream: Upstream, ip: str) -> None:
        """Evict at the upstream node."""
        body = {"name": SVC, "ip": ip, "port": 6751}
        upstream.serve("POST", "/registry/evict", {}, json.dumps(body).encode())

    def test_one_of_two_dead(self) -> None:
        """With one of two nodes dead nobody flaps: watchers are told nothing, all stay green."""
        self.start(A, B)
        told: list[list[str]] = []
        clients = []
        for number in range(4):
            client = DiscoveryClient(
                self.world.clients, self.world.client(f"i{number}"), MEMBERS[:2]
            )
            client.register(SVC, f"i{number}", 6751, lambda: (0, None))
            client.watch(SVC, lambda records: told.append(sorted(r.ip for r in records)))
            clients.append(client)
        self.world.run(10)
        told.clear()
        self.nodes[A].kill()
        self.world.run(120)
        self.assertEqual([client.problems() for client in clients], [[]] * 4)
        self.assertEqual({r.status for r in self.known(B).values()}, {0})
        self.nodes[A].start()
        self.world.run(2)
        self.nodes[B].kill()
        self.world.run(120)
        self.assertEqual([client.problems() for client in clients], [[]] * 4)
        self.assertEqual(told, [])


class MemberTests(SynchronousTestCase):
    """Which members are others, and where addresses lie."""

    def others(self, advertised: str, *members: str, **discovery: Any) -> list[str]:
        """The other members of a node."""
        settings = parse(
            {
                "server": {"advertise": "10.0.0.5"},
                "discovery": {"members": list(members), **discovery},
            },
            base=Path(),
        )
        return other_members(settings.discovery, advertised, lambda ip: ip == "10.0.0.6")

    def test_own_addresses(self) -> None:
        """A node is known by its address, any local one if it listens on all, and its port."""
        members = ["10.0.0.5:8088", "10.0.0.6:8088", "10.0.0.7:8088", "10.0.0.5:8089"]
        self.assertEqual(
            self.others("10.0.0.5", *members, listen="0.0.0.0"),
            ["10.0.0.7:8088", "10.0.0.5:8089"],
        )
        self.assertEqual(
            self.others("10.0.0.5", *members, listen="10.0.0.5"),
            ["10.0.0.6:8088", "10.0.0.7:8088", "10.0.0.5:8089"],
        )
        self.assertEqual(
            self.others("sd.example", "sd.example:8088", "[fd00::1]:8088", "other:8088"),
            ["[fd00::1]:8088", "other:8088"],
        )
        self.assertEqual(self.others("127.0.0.1", "localhost:8088", "127.0.0.1:8088"), [])

    def test_local_addresses(self) -> None:
        """Loopback is this machine's, an address for documents is not."""
        found = [is_local(address) for address in ("127.0.0.1", "192.0.2.1", "2001:db8::1")]
        self.assertEqual(found, [True, False, False])

    def test_zones(self) -> None:
        """The smallest network counts; an instance may name its zone."""
        zones = Zones(["a=10.0.0.0/8", "b=10.1.0.0/16", "six=fd00::/8"])
        for address, zone in [
            ("10.2.0.1", "a"),
            ("10.1.0.1", "b"),
            ("::ffff:10.1.0.1", "b"),
            ("fd00::1", "six"),
            ("192.0.2.1", None),
            ("name", None),
        ]:
            self.assertEqual(zones.of_address(address), zone)
        self.assertEqual(zones.of_record(Record("s", "10.1.0.1", 1, extra={"zone": "c"})), "c")
        self.assertEqual(zones.of_record(Record("s", "10.1.0.1", 1, extra={"zone": 1})), "b")
