"""How roles register with ServiceDiscovery and find each other, also when it is away."""

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from elkeid.config import Settings
from elkeid.discovery.client import DiscoveryClient, Unknown
from elkeid.discovery.registry import Record
from elkeid.discovery.service import DiscoveryRole
from elkeid.web.client import Credentials

from ..web.memory import MemoryNetwork, Scripted
from ..web.sample import AK, SK
from .test_api import Keys

A, B = 8088, 8089


class ClientTests(SynchronousTestCase):
    """One client, up to two nodes (each alone: they share nothing)."""

    def setUp(self) -> None:
        """Nobody runs yet."""
        self.network = MemoryNetwork()
        self.nodes: dict[int, DiscoveryRole] = {}
        self.weight = 3
        self.extra: dict[str, Any] = {"limit": 10}
        self.logged: list[tuple[LogLevel, str]] = []
        globalLogPublisher.addObserver(self.keep)
        self.addCleanup(globalLogPublisher.removeObserver, self.keep)

    def keep(self, event: Any) -> None:
        """Remember what the client says."""
        if "discovery.loops" in str(event.get("log_namespace")):
            format_, what = event["log_format"], event.get("what")
            self.logged.append((event["log_level"], format_.split(";")[0].format(**event, x=what)))

    def load(self) -> tuple[int, dict[str, Any] | None]:
        """The present load."""
        return self.weight, self.extra

    def node(self, port: int) -> DiscoveryRole:
        """Start a node."""
        network = self.network
        role = DiscoveryRole(
            Settings(),
            Keys(),  # type: ignore[arg-type]
            network.clock,
            wall=network.wall,
            monotonic=network.wall,
            agent=network.agent(),
        )
        network.ports[port] = role.site
        self.nodes[port] = role
        return role

    def down(self, port: int) -> None:
        """A node goes away, and so do its connections."""
        del self.network.ports[port]
        self.nodes[port].site.close()
        self.network.flush()

    def client(self, *ports: int, sk: str = SK) -> DiscoveryClient:
        """A client of these members."""
        http = self.network.client(Credentials(AK, sk))
        return DiscoveryClient(self.network.clock, http, [f"127.0.0.1:{port}" for port in ports])

    def at(self, port: int, name: str = "svc") -> list[Record]:
        """What a node knows."""
        return self.nodes[port].registry.records(name, self.network.wall())

    def test_registers_with_every_member(self) -> None:
        """Each member knows the instance at once, and its load a few seconds later."""
        self.node(A)
        self.node(B)
        client = self.client(A, B)
        client.register("svc", "10.0.0.1", 6751, self.load)
        self.network.flush()
        self.weight, self.extra = 4, {"limit": 20}
        for port in (A, B):
            (record,) = self.at(port)
            self.assertEqual((record.ip, record.port, record.weight), ("10.0.0.1", 6751, 3))
        self.assertEqual(client.problems(), [])
        self.network.advance(5.5)
        for port in (A, B):
            (record,) = self.at(port)
            self.assertEqual((record.weight, record.extra), (4, {"limit": 20, "renew": 5}))
        self.assertEqual(self.logged, [])

    def test_first_try_fails(self) -> None:
        """A client that starts before ServiceDiscovery is registered soon after it is up."""
        client = self.client(A)
        client.register("svc", "10.0.0.1", 6751, self.load)
        self.network.flush()
        self.assertEqual(client.problems(), ["registered with no ServiceDiscovery member"])
        self.node(A)
        self.network.advance(1)
        self.assertEqual(len(self.at(A)), 1)
        self.assertEqual(client.problems(), [])

    def test_outages(self) -> None:
        """An outage is said once, and once that it is over; the renewals go on all the time."""
        self.node(A)
        client = self.client(A)
        client.register("svc", "10.0.0.1", 6751, self.load)
        self.network.flush()
        for _ in range(2):
            self.down(A)
            self.network.advance(60)
            self.assertNotEqual(client.problems(), [])
            self.node(A)
            self.network.advance(6)
            self.assertEqual(len(self.at(A)), 1)
        levels = [level for level, _ in self.logged]
        self.assertEqual(levels, [LogLevel.warn, LogLevel.info] * 2)
        self.assertIn("cannot register svc at ServiceDiscovery 127.0.0.1:8088", self.logged[0][1])

    def test_refused(self) -> None:
        """An answer that is no success counts as none, and its reason is told."""
        self.node(A)
        client = self.client(A, sk="another-secret-key-000")
        client.register("svc", "10.0.0.1", 6751, self.load)
        self.network.advance(20)
        self.assertEqual(self.at(A), [])
        self.assertEqual(len(self.logged), 1)
        self.assertIn("HTTP 403", self.logged[0][1])
        self.assertIn("Signature Error", self.logged[0][1])

    def test_hanging_member(self) -> None:
        """A member that hangs delays no other, and calls to it do not pile up."""
        self.node(A)
        self.network.ports[B] = Factory.forProtocol(lambda: Scripted(b""))  # type: ignore[arg-type]
        client = self.client(A, B)
        client.register("svc", "10.0.0.1", 6751, self.load)
        for weight in range(10, 20):
            self.weight = weight
            self.network.advance(6)
            self.assertEqual(self.at(A)[0].weight, weight)
        self.assertLess(self.network.dialled.count(B), 20)

    def test_broken_load(self) -> None:
        """If the load cannot be told, that is logged, and the next renewal tries again."""
        self.node(A)
        client = self.client(A)
        loads = [0, 1]
        client.register("svc", "10.0.0.1", 6751, lambda: (7 // loads.pop(0), None))
        self.network.advance(5.5)
        self.assertEqual(self.at(A)[0].weight, 7)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stop_evicts(self) -> None:
        """After the stop no member lists the instance, and no timer is left."""
        self.node(A)
        self.node(B)
        client = self.client(A, B)
        client.register("svc", "10.0.0.1", 6751, self.load)
        client.register("web", "10.0.0.1", 6752, self.load)
        client.watch("svc", lambda _: None)
        self.network.flush()
        self.network.run(client.stop())
        for port in (A, B):
            self.assertEqual(self.nodes[port].registry.names(), [])
            self.nodes[port].site.close()
        self.network.flush()
        self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_stop_during_an_outage(self) -> None:
        """A silent or absent member cannot hold up the stop for long."""
        for silent in (False, True):
            self.network = MemoryNetwork()
            if silent:
                self.network.silent.add(A)
            client = self.client(A)
            client.register("svc", "10.0.0.1", 6751, self.load)
            client.watch("svc", lambda _: None)
            self.network.flush()
            stopped = Deferred.fromCoroutine(client.stop())
            self.network.advance(6.5)
            self.assertTrue(stopped.called)
            self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_lookup(self) -> None:
        """Instances come in the order that ServiceDiscovery gives."""
        self.node(A)
        for ip, weight in [("10.0.0.1", 5), ("10.0.0.2", 4)]:
            self.nodes[A].registry.register(
                "svc", ip, 1, weight, None, wall=0, now=self.network.wall()
            )
        records = self.network.run(self.client(A).lookup("svc"))
        self.assertEqual([record.ip for record in records], ["10.0.0.2", "10.0.0.1"])
        self.assertEqual(self.network.run(self.client(A).lookup("other")), [])

    def test_lookup_asks_the_next_member(self) -> None:
        """One member that answers is enough."""
        self.node(B)
        self.nodes[B].registry.register("svc", "h", 1, 0, None, wall=0, now=self.network.wall())
        client = self.client(A, B)
        for _ in range(3):
            self.assertEqual(len(self.network.run(client.lookup("svc"))), 1)
        self.assertEqual(self.network.dialled, [A, B])

    def test_lookup_keeps_the_last_known(self) -> None:
        """What was known stays in use while nobody answers, however long."""
        self.node(A)
        self.nodes[A].registry.register("svc", "h", 1, 0, None, wall=0, now=self.network.wall())
        client = self.client(A)
        self.network.run(client.lookup("svc"))
        self.down(A)
        self.network.advance(3600, step=60)
        self.assertEqual([r.ip for r in self.network.run(client.lookup("svc"))], ["h"])
        with self.assertRaisesRegex(Unknown, "no ServiceDiscovery member answers"):
            self.network.run(client.lookup("other"))

    def test_lookup_at_a_member_without_memory(self) -> None:
        """A restarted registry is empty at first: its word counts only after a while."""
        self.node(A)
        self.nodes[A].registry.register("svc", "h", 1, 0, None, wall=0, now=self.network.wall())
        client = self.client(A)
        self.network.run(client.lookup("svc"))
        self.down(A)
        self.node(A)
        self.network.advance(59)
        self.assertEqual(len(self.network.run(client.lookup("svc"))), 1)
        self.network.advance(2)
        self.assertEqual(self.network.run(client.lookup("svc")), [])

    def test_watch(self) -> None:
        """A watcher is told what there is, then what comes and goes, and no more than that."""
        self.node(A)
        registry, told = self.nodes[A].registry, []
        self.client(A).watch("svc", lambda records: told.append([r.ip for r in records]))
        self.network.flush()

        def put(ip: str, weight: int) -> None:
            registry.register("svc", ip, 1, weight, None, wall=0, now=self.network.wall())
            self.network.advance(2.5)

        put("a", 0)
        put("a", 9)
        put("b", 0)
        self.down(A)
        self.network.advance(30)
        self.assertEqual(told, [[], ["a"], ["b", "a"]])

    def test_broken_watcher(self) -> None:
        """A watcher that fails is logged and told the next change."""
        self.node(A)
        told: list[int] = []

        def watcher(records: list[Record]) -> None:
            told.append(len(records))
            if not records:
                raise ZeroDivisionError

        self.client(A).watch("svc", watcher)
        self.network.flush()
        self.nodes[A].registry.register("svc", "h", 1, 0, None, wall=0, now=self.network.wall())
        self.network.advance(6)
        self.assertEqual(told, [0, 1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_new_member_knows_little(self) -> None:
        """What one member misses while another still lists it as fresh has not gone."""
        for port in (A, B):
            self.node(port)
            self.put(port, "a")
            self.put(port, "b", 1)
        told: list[list[str]] = []
        self.client(A, B).watch("svc", lambda records: told.append([r.ip for r in records]))
        self.network.flush()
        self.down(A)
        self.node(A)
        self.put(A, "a")
        self.network.advance(5)
        self.assertEqual(told, [["a", "b"]])
        self.nodes[B].registry.evict("svc", "b", 1, wall=0, now=self.network.wall())
        self.network.advance(5)
        self.assertEqual(told, [["a", "b"], ["a"]])

    def put(self, port: int, ip: str, weight: int = 0, extra: Any = None) -> None:
        """Register at one node."""
        self.nodes[port].registry.register(
            "svc", ip, 1, weight, extra, wall=0, now=self.network.wall()
        )

    def test_known(self) -> None:
        """A watched name can be looked at without asking."""
        self.node(A)
        client = self.client(A)
        self.assertIsNone(client.known("svc"))
        self.put(A, "a", 1)
        client.watch("svc", lambda _: None)
        self.network.flush()
        self.put(A, "a", 2)
        self.network.advance(2.5)
        known = client.known("svc")
        assert known is not None
        self.assertEqual([(r.ip, r.weight) for r in known.records], [("a", 2)])
        self.assertLess(self.network.wall() - known.at, 2.5)

    def test_answers(self) -> None:
        """Every member says what it lists now; one that is silent says nothing."""
        self.node(A)
        self.put(A, "a")
        client = self.client(A, B)
        answers = self.network.run(client.answers("svc"))
        first, second = answers.values()
        self.assertEqual([r.ip for r in first or ()], ["a"])
        self.assertIsNone(second)

    def test_leads_elsewhere(self) -> None:
        """Others lead once every member that answers names one of them first."""
        client = self.client(A, B)

        def leads() -> bool:
            return self.network.run(client.leads_elsewhere("svc", "a", 1))

        self.assertFalse(leads())
        self.node(A)
        self.assertFalse(leads())
        self.put(A, "a", 1)
        self.assertFalse(leads())
        self.put(A, "b", 2)
        self.assertFalse(leads())
        self.put(A, "b", 0)
        self.assertTrue(leads())
        self.node(B)
        self.put(B, "a", 0)
        self.assertFalse(leads())

    def test_room_elsewhere(self) -> None:
        """Room is elsewhere when another instance is fresh, not draining, below its limit."""
        self.node(A)
        client = self.client(A)
        self.assertFalse(client.room_elsewhere("svc", "a", 1))
        for weight, extra, room in [
            (0, {"limit": 10}, True),
            (9, {"limit": 10, "draining": False}, True),
            (10, {"limit": 10}, False),
            (0, {"limit": 10, "draining": True}, False),
            (99, None, True),
            (99, {"limit": "many", "draining": "no"}, True),
        ]:
            self.put(A, "a")
            self.put(A, "b", weight, extra)
            self.network.run(client.lookup("svc"))
            self.assertEqual(client.room_elsewhere("svc", "a", 1), room, extra)
            self.assertTrue(client.room_elsewhere("svc", "b", 1))

    def test_renew(self) -> None:
        """A load that matters now is told at once, not with the next renewal."""
        self.node(A)
        client = self.client(A, B)
        client.register("svc", "10.0.0.1", 6751, self.load)
        self.network.flush()
        self.extra = {"draining": True}
        self.network.run(client.renew())
        self.assertEqual(self.at(A)[0].extra, {"draining": True, "renew": 5})

    def test_started_before(self) -> None:
        """Who was there before ServiceDiscovery is registered within 5 s of its start."""
        client = self.client(A, B)
        client.register("svc", "10.0.0.1", 6751, self.load)
        self.network.advance(300)
        self.node(B)
        self.network.advance(4.5)
        self.assertEqual(len(self.at(B)), 1)

    def test_odd_answers(self) -> None:
        """Answers that make no sense are an outage, not a crash; null means none."""
        for body, outcome in [
            ({"data": [{"ip": 5}]}, None),
            ({"data": {}}, None),
            ([], None),
            ({"data": None}, []),
            ({"data": [{"ip": "h", "port": 1, "new": 1, "extra": None}]}, [("h", 1)]),
        ]:
            raw = json.dumps(body).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(raw)
            self.network.ports[A] = Factory.forProtocol(lambda a=head + raw: Scripted(a))  # type: ignore[misc]
            client = self.client(A)
            if outcome is None:
                with self.assertRaises(Unknown):
                    self.network.run(client.lookup("svc"))
            else:
                records = self.network.run(client.lookup("svc"))
                self.assertEqual([(r.ip, r.port) for r in records], outcome)

    def test_ipv6_members(self) -> None:
        """A member's IPv6 address stands in brackets in URLs."""
        http = self.network.client()
        client = DiscoveryClient(self.network.clock, http, ["[::1]:8088"])
        self.node(A)
        self.assertEqual(self.network.run(client.lookup("svc")), [])
