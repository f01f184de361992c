"""The registry: leases, states, order, limits."""

from collections import Counter
from random import Random
from typing import Any

import msgspec
import pytest
from twisted.trial.unittest import SynchronousTestCase

from elkeid.discovery import registry as module
from elkeid.discovery.registry import (
    Fact,
    Record,
    RegistrationInvalid,
    Registry,
    RegistryFull,
    Stamp,
)

WALL = 1_700_000_000


def make(seed: int = 0) -> Registry:
    """An empty registry with repeatable ties."""
    return Registry(Random(seed))


def put(  # noqa: PLR0917 - the fields of a registration
    registry: Registry,
    ip: str,
    weight: int = 0,
    extra: Any = None,
    now: float = 0,
    name: str = "svc",
    port: int = 80,
) -> None:
    """Register with defaults."""
    registry.register(name, ip, port, weight, extra, wall=WALL + int(now), now=now)


def shown(registry: Registry, now: float = 0, count: int = 0, name: str = "svc") -> list[Record]:
    """What clients see, in their order."""
    return msgspec.json.decode(registry.detail(name, now, count), type=list[Record])


def order(registry: Registry, now: float = 0, count: int = 0) -> list[str]:
    """The addresses that clients see, in their order."""
    return [record.ip for record in shown(registry, now, count)]


class RegistryTests(SynchronousTestCase):
    """One rule each."""

    def test_exact_json(self) -> None:
        """A record has exactly the fields that clients know, in their order."""
        registry = make()
        registry.register("svc", "10.0.0.1", 80, 9, {"a": 1}, wall=WALL, now=5)
        registry.register("svc", "10.0.0.1", 80, 8, msgspec.UNSET, wall=WALL + 30, now=35)
        self.assertEqual(
            registry.detail("svc", 35),
            b'[{"name":"svc","ip":"10.0.0.1","port":80,"status":0,"create_at":1700000000,'
            b'"update_at":1700000030,"weight":8,"extra":{"a":1}}]',
        )

    def test_renewal(self) -> None:
        """A renewal changes weight, extra and time; the first registration is remembered."""
        registry = make()
        for extra, expected in [
            (msgspec.UNSET, {}),
            ({"limit": 5}, {"limit": 5}),
            (msgspec.UNSET, {"limit": 5}),
            (None, None),
            (msgspec.UNSET, None),
        ]:
            put(registry, "10.0.0.1", 3, extra, now=7)
            (record,) = shown(registry, 7)
            self.assertEqual((record.extra, record.create_at), (expected, WALL + 7))
        self.assertEqual(len(registry), 1)

    def test_states(self) -> None:
        """States follow the true age; a lease that is renewed every 30 s never leaves green."""
        registry = make()
        for silence, expected in [
            (0, 0),
            (35, 0),
            (35.1, 1),
            (65, 1),
            (75, 1),
            (75.1, 2),
            (85, 2),
            (95, 3),
            (95.1, 4),
            (105, 4),
            (3000, 4),
        ]:
            for extra in (None, {"renew": 5}, {"renew": 30}, {"renew": "5"}):
                registry = make()
                put(registry, "10.0.0.1", extra=extra, now=1000)
                fast = extra == {"renew": 5}
                is_green = expected == 0 or (silence <= 65 and not fast)
                status = shown(registry, 1000 + silence)[0].status
                self.assertEqual(status, 0 if is_green else expected, (silence, extra))

    def test_states_between_changes(self) -> None:
        """Ageing is seen without any registration in between, at the right moment."""
        registry = make()
        put(registry, "10.0.0.1", now=0)
        put(registry, "10.0.0.2", now=10)
        statuses = [[r.status for r in shown(registry, now)] for now in (65, 65.5, 75, 75.5)]
        self.assertEqual(statuses, [[0, 0], [0, 1], [0, 1], [1, 2]])

    def test_eviction_by_age(self) -> None:
        """After more than 105 s of silence an instance goes, and its name with the last."""
        registry = make()
        put(registry, "10.0.0.1", now=0)
        put(registry, "10.0.0.2", now=1)
        for now in range(0, 106, 5):
            self.assertEqual(registry.sweep(now), [])
        self.assertEqual([r.ip for r in registry.sweep(105.5)], ["10.0.0.1"])
        self.assertEqual(registry.counts(), {"svc": 1})
        self.assertEqual([r.ip for r in registry.sweep(110)], ["10.0.0.2"])
        self.assertEqual((registry.names(), registry.counts(), len(registry)), ([], {}, 0))

    def test_stalled_process(self) -> None:
        """If the registry itself stood still, nobody is dropped until all can have renewed."""
        registry = make()
        put(registry, "10.0.0.1", now=0)
        put(registry, "10.0.0.2", now=0)
        registry.sweep(0)
        self.assertFalse(registry.stalled(1))
        self.assertTrue(registry.stalled(599))
        self.assertEqual(registry.sweep(600), [])
        self.assertTrue(registry.stalled(600.5))
        self.assertFalse(registry.stalled(601))
        self.assertEqual(registry.preserved(), {"svc": (2, 2)})
        put(registry, "10.0.0.1", now=630)
        for now in range(601, 636):
            self.assertEqual(registry.sweep(now), [])
        self.assertEqual([r.ip for r in registry.sweep(636)], ["10.0.0.2"])
        self.assertEqual(registry.preserved(), {})

    def test_preservation(self) -> None:
        """When most fall silent together all are kept; they go when most are heard again."""
        registry = make()
        for number in range(4):
            put(registry, f"10.0.0.{number}", now=number)
        for now in range(200):
            self.assertEqual(registry.sweep(now), [])
        self.assertEqual(registry.preserved(), {"svc": (4, 4)})
        self.assertEqual([r.status for r in shown(registry, 199)], [4] * 4)
        gone = []
        for now in range(200, 305):
            for number in range(2):
                put(registry, f"10.0.0.{number}", now=now)
            if now == 200:
                self.assertEqual(registry.preserved(), {"svc": (2, 4)})
            gone += [(now, record.ip) for record in registry.sweep(now)]
        self.assertEqual(gone, [(260, "10.0.0.2"), (260, "10.0.0.3")])

    def test_kept_while_a_peer_tells_of_silence(self) -> None:
        """A shorter silence that is longer than a lease is no sign of life: it is only kept on."""
        registry = make()
        for number in range(3):
            put(registry, f"10.0.0.{number}")
        for now in range(120):
            registry.sweep(now)
        (record,) = [each for each in registry.records("svc", 119) if each.ip == "10.0.0.1"]
        instance = ("svc", "10.0.0.1", 80)
        for at, age, kept in ((1, 118.5, 3), (1 << 52, 118.2, 3), (1, 90, 2)):
            registry.merge(Fact(instance, record, Stamp(at, "peer"), age), 119)
            self.assertEqual(registry.preserved(), {"svc": (kept, 3)})

    def test_two_may_well_have_died(self) -> None:
        """Fewer than three, or no more than half, are dropped as any other."""
        registry = make()
        for number in range(2):
            put(registry, f"10.0.0.{number}", name="two")
        for number in range(6):
            put(registry, f"10.0.0.{number}", name="half")
        for now in range(106):
            for number in range(3):
                put(registry, f"10.0.0.{number}", now=now, name="half")
            self.assertEqual(registry.sweep(now), [])
        self.assertEqual(len(registry.sweep(106)), 5)
        self.assertEqual(registry.counts(), {"half": 3})

    def test_release(self) -> None:
        """Who is only kept goes when a peer that is sure lacks it, but for a deaf node."""
        registry = make()
        for number in range(4):
            put(registry, f"10.0.0.{number}", now=0)
        for now in range(150):
            registry.sweep(now)
        self.assertTrue(registry.sure(149))
        instance = ("svc", "10.0.0.3", 80)
        self.assertFalse(registry.release(instance, 149))
        put(registry, "10.0.0.0", now=149)
        put(registry, "10.0.0.1", now=149)
        self.assertFalse(registry.release(("svc", "10.0.0.1", 80), 149))
        self.assertFalse(registry.release(("svc", "10.0.0.9", 80), 149))
        self.assertTrue(registry.release(instance, 149))
        self.assertEqual(sorted(order(registry, 149)), ["10.0.0.0", "10.0.0.1", "10.0.0.2"])

    def test_sure(self) -> None:
        """A node is sure once it has run for long enough without standing still."""
        registry = make()
        self.assertFalse(registry.sure(1000))
        for now in range(36):
            registry.sweep(now)
        self.assertFalse(registry.sure(35))
        self.assertTrue(registry.sure(36))
        registry.sweep(60)
        self.assertFalse(registry.sure(60))

    def test_order(self) -> None:
        """Healthy first, then the least loaded."""
        registry = make()
        put(registry, "10.0.0.1", weight=0, now=0)
        put(registry, "10.0.0.2", weight=50, now=50)
        put(registry, "10.0.0.3", weight=7, now=50)
        put(registry, "10.0.0.4", weight=100, now=30)
        self.assertEqual([ip[-1] for ip in order(registry, 65)], ["1", "3", "2", "4"])
        self.assertEqual([ip[-1] for ip in order(registry, 70)], ["3", "2", "4", "1"])
        self.assertEqual([ip[-1] for ip in order(registry, 100)], ["3", "2", "4", "1"])
        self.assertEqual([ip[-1] for ip in order(registry, 1000)], ["1", "3", "2", "4"])

    def test_order_by_room(self) -> None:
        """If all say what they can take, their load is relative to it; else absolute."""
        registry = make()
        put(registry, "10.0.0.1", 500, {"limit": 10_000})
        put(registry, "10.0.0.2", 100, {"limit": 200})
        self.assertEqual(order(registry), ["10.0.0.1", "10.0.0.2"])
        for useless in [None, {}, {"limit": 0}, {"limit": True}, {"limit": "9"}, {"limit": 1e300}]:
            put(registry, "10.0.0.3", 1, useless)
            self.assertEqual(order(registry), ["10.0.0.3", "10.0.0.2", "10.0.0.1"], useless)

    def test_ties_are_random(self) -> None:
        """Equals come first equally often: agents dial in the order they get."""
        registry = make()
        for number in range(4):
            put(registry, f"10.0.0.{number}")
        first = Counter(order(registry)[0] for _ in range(4000))
        for times in first.values():
            self.assertTrue(900 < times < 1100, first)

    def test_count(self) -> None:
        """As many as asked for, the best; never none while there is one."""
        registry = make()
        for number in range(5):
            put(registry, f"10.0.0.{number}", weight=number)
        for count, expected in [(0, 5), (1, 1), (3, 3), (10, 5), (-1, 5)]:
            self.assertEqual(order(registry, 0, count), [f"10.0.0.{n}" for n in range(expected)])

    def test_red_is_still_listed(self) -> None:
        """The only instance is handed out however unwell it is."""
        registry = make()
        put(registry, "10.0.0.1")
        self.assertEqual(order(registry, 1e6), ["10.0.0.1"])

    def test_evict(self) -> None:
        """Evicting what is unknown is fine."""
        registry = make()
        put(registry, "10.0.0.1")
        for ip, port, gone in [("10.0.0.2", 80, False), ("10.0.0.1", 81, False)]:
            self.assertEqual(registry.evict("svc", ip, port, wall=WALL, now=0), gone)
        self.assertFalse(registry.evict("other", "10.0.0.1", 80, wall=WALL, now=0))
        self.assertTrue(registry.evict("svc", "10.0.0.1", 80, wall=WALL, now=0))
        self.assertFalse(registry.evict("svc", "10.0.0.1", 80, wall=WALL, now=0))
        self.assertEqual(registry.names(), [])

    def test_validation(self) -> None:
        """What nobody could use is refused by the name of its field; nothing is kept of it."""
        registry = make()
        good: dict[str, Any] = {"name": "svc", "ip": "10.0.0.1", "port": 80, "extra": {}}
        for field, values in {
            "name": ["", " svc", "svc\n", "a\x00b", "x" * 129],
            "ip": ["", "[::1]", "10.0.0.1:80", "10.0.0.1 ", "a/b", "x" * 254, "a..b\n"],
            "port": [0, -1, 65536, 10**30],
            "extra": [{"a": "x" * 5000}, {"a": float("nan"), "b": object()}],
        }.items():
            for value in values:
                with self.assertRaisesRegex(RegistrationInvalid, f"^{field}: "):
                    fields = {**good, field: value}
                    registry.register(weight=0, wall=WALL, now=0, **fields)
        self.assertEqual((len(registry), registry.names()), (0, []))

    def test_everything_real(self) -> None:
        """Addresses of every kind that instances have are taken."""
        registry = make()
        for ip in ["10.0.0.1", "fd00::1", "ac-1.example.com", "localhost", "a_b"]:
            put(registry, ip)
        self.assertEqual(len(registry), 5)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full registry refuses the new and renews the old."""
    monkeypatch.setattr(module, "MAX_NAMES", 2)
    monkeypatch.setattr(module, "MAX_INSTANCES", 3)
    registry = make()
    put(registry, "10.0.0.1", name="a")
    put(registry, "10.0.0.1", name="b")
    with pytest.raises(RegistryFull, match="names"):
        put(registry, "10.0.0.1", name="c")
    put(registry, "10.0.0.2", name="b")
    with pytest.raises(RegistryFull, match="instances"):
        put(registry, "10.0.0.3", name="a")
    put(registry, "10.0.0.1", name="a", weight=5)
    registry.evict("b", "10.0.0.1", 80, wall=WALL, now=0)
    put(registry, "10.0.0.3", name="a")
    assert registry.counts() == {"a": 2, "b": 1}
