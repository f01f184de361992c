"""What a peer is to be told, without a network."""

from random import Random
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from elkeid.discovery import registry as registry_module
from elkeid.discovery import replication as module
from elkeid.discovery.digest import BUCKETS, Digest
from elkeid.discovery.messages import event_of, fact_of, upstream_event_of
from elkeid.discovery.registry import MAX_SOURCES, Record, Registry
from elkeid.discovery.replication import Outbox, Outcome, receive

WALL = 1_700_000_000


class OutboxTests(SynchronousTestCase):
    """What waits for one peer."""

    def test_batches(self) -> None:
        """At most 100 at once, oldest first, each only once however often it changed."""
        outbox = Outbox()
        for _ in range(3):
            for number in range(150):
                outbox.add(("svc", "h", number))
        first = outbox.take()
        self.assertEqual([port for _, _, port in first], list(range(100)))
        self.assertEqual([port for _, _, port in outbox.take()], list(range(100, 150)))
        self.assertEqual((outbox.take(), len(outbox)), ([], 0))

    def test_given_back(self) -> None:
        """What could not be told comes first again, with what has come meanwhile behind it."""
        outbox = Outbox()
        outbox.add(("svc", "h", 1))
        taken = outbox.take()
        outbox.add(("svc", "h", 2))
        outbox.add(("svc", "h", 1))
        outbox.give_back(taken)
        self.assertEqual([port for _, _, port in outbox.take()], [1, 2])


def test_outbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is away for long costs so much memory and no more; what is lost is counted."""
    monkeypatch.setattr(module, "OUTBOX", 10)
    outbox = Outbox()
    for number in range(25):
        outbox.add(("svc", "h", number))
    assert len(outbox) == 10
    assert outbox.overflowed == 15


class EventTests(SynchronousTestCase):
    """Facts as events, and back."""

    def setUp(self) -> None:
        """A registry that knows one instance and one eviction."""
        self.registry = Registry(Random(1), "n1")
        self.registry.register("svc", "a", 1, 7, {"limit": 9}, wall=WALL, now=100)
        self.registry.evict("svc", "b", 2, wall=WALL, now=100)
        self.facts = self.registry.facts([("svc", "a", 1), ("svc", "b", 2), ("x", "y", 3)], 130)

    def test_there_and_back(self) -> None:
        """What one node tells another one takes as it is, its age included."""
        for fact in self.facts:
            again = fact_of(event_of(fact))
            assert again is not None
            self.assertEqual(again, fact)
            self.assertEqual(again.age, 30)

    def test_for_upstream(self) -> None:
        """An upstream node gets the times by its own clock, zeros for an eviction, no more."""
        told, evicted = (upstream_event_of(fact, WALL + 1000.9) for fact in self.facts)
        self.assertEqual((told.action, told.lease), ("REGISTER", None))
        self.assertEqual(told.registry.update_at, WALL + 970)
        self.assertEqual(told.registry.create_at, WALL)
        self.assertEqual((evicted.action, evicted.lease), ("EVICT", None))
        self.assertEqual(evicted.registry, Record("svc", "b", 2))

    def test_upstream_sources(self) -> None:
        """Of an upstream peer's events only later ones count; other peers have other clocks."""

        def tell(source: str, at: int, now: float, **more: Any) -> Outcome:
            event = upstream_event_of(self.facts[0], 0)
            record = Record("svc", "a", 1, update_at=at, weight=at % 100, **more)
            event.registry = record
            return receive(self.registry, event, source, wall=WALL, now=now)

        self.assertEqual(tell("p", WALL - 500, 131), Outcome.TAKEN)
        self.assertEqual(tell("p", WALL - 500, 132), Outcome.OLDER)
        self.assertEqual(tell("p", WALL - 501, 132), Outcome.OLDER)
        self.assertEqual(tell("q", WALL + 900, 133), Outcome.TAKEN)
        self.assertEqual(tell("p", WALL - 499, 134), Outcome.TAKEN)
        for number in range(3 * MAX_SOURCES):
            self.assertEqual(tell(f"s{number}", WALL, 135 + number), Outcome.TAKEN)
        (record,) = self.registry.records("svc", 160)
        self.assertEqual(record.status, 0)

    def test_full(self) -> None:
        """A registry that is full takes no more from peers either, and says why."""
        other = Registry(Random(1), "n2")
        self.patch(registry_module, "MAX_INSTANCES", 0)
        outcomes = [receive(other, event_of(f), "p", wall=WALL, now=0) for f in self.facts]
        self.assertEqual(outcomes, [Outcome.FULL, Outcome.EVICTED])

    def test_tombstones_are_bounded(self) -> None:
        """Of evictions the oldest are forgotten when there are too many."""
        self.patch(registry_module, "MAX_TOMBSTONES", 3)
        for number in range(1, 6):
            self.registry.evict("svc", "h", number, wall=WALL, now=100)
        known = {instance for instance, _ in self.registry.instances()}
        self.assertEqual(known, {("svc", "a", 1), *(("svc", "h", n) for n in (3, 4, 5))})

    def test_digest_of_another_form(self) -> None:
        """A peer with another number of buckets is compared with in full."""
        self.assertEqual(Digest().differing([0] * 7), list(range(BUCKETS)))
        self.assertEqual(Digest().differing([0] * BUCKETS), [])
