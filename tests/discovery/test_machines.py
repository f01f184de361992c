"""Any sequence of events, against plain models."""

from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from elkeid.discovery.digest import Digest
from elkeid.discovery.messages import Event, event_of
from elkeid.discovery.registry import (
    HOLD_SECONDS,
    LEASE,
    TOMBSTONE_SECONDS,
    Fact,
    Instance,
    Preservation,
    Record,
    Registry,
    Stamp,
    state,
)
from elkeid.discovery.replication import answer_difference, ask_difference, receive

WALL = 1_700_000_000
NAMES = st.sampled_from(["a", "b_grpc"])
PORTS = st.integers(1, 5)
WEIGHTS = st.integers(0, 3)
SKEWS = (0.0, 40.0, -40.0)


def put(  # noqa: PLR0917 - the fields of a registration
    registry: Registry, name: str, port: int, weight: int, now: float, skew: float = 0
) -> None:
    """An instance registers."""
    registry.register(name, "h", port, weight, None, wall=WALL + now + skew, now=now)


def drop(registry: Registry, name: str, port: int, now: float, skew: float = 0) -> bool:
    """An instance leaves."""
    return registry.evict(name, "h", port, wall=WALL + now + skew, now=now)


class RegistryMachine(RuleBasedStateMachine):
    """One registry, and a dictionary of what is known: stamp, time, and weight unless evicted."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(Random(0), "me", Preservation(least=99))
        self.now = 0.0
        self.held_until = -1.0
        self.model: dict[Instance, tuple[Stamp, float, int | None]] = {}
        self.registry.sweep(0)

    def _own(self, instance: Instance) -> Stamp:
        """The stamp that the registry has just given; it must beat what was known."""
        stamp = self.registry.stamp(instance)
        assert stamp is not None
        assert stamp.node == "me"
        if instance in self.model:
            assert stamp > self.model[instance][0]
        return stamp

    @rule(name=NAMES, port=PORTS, weight=WEIGHTS, skew=st.sampled_from(SKEWS))
    def register(self, name: str, port: int, weight: int, skew: float) -> None:
        """An instance registers or renews; the wall clock may jump."""
        put(self.registry, name, port, weight, self.now, skew)
        instance = (name, "h", port)
        self.model[instance] = (self._own(instance), self.now, weight)

    @rule(name=NAMES, port=PORTS, skew=st.sampled_from(SKEWS))
    def evict(self, name: str, port: int, skew: float) -> None:
        """Somebody evicts."""
        instance = (name, "h", port)
        known = self.model.get(instance)
        there = known is not None and known[2] is not None
        assert drop(self.registry, name, port, self.now, skew) == there
        self.model[instance] = (self._own(instance), self.now, None)

    @rule(
        name=NAMES,
        port=PORTS,
        off=st.integers(-60_000, 60_000),
        weight=st.none() | WEIGHTS,
        age=st.sampled_from([0.0, 3.0, 40.0, 104.0, 200.0, 400.0]),
    )
    def merge(self, name: str, port: int, off: int, weight: int | None, age: float) -> None:
        """A peer tells what it knows, its clock may be off."""
        instance = (name, "h", port)
        stamp = Stamp(int((WALL + self.now) * 1000) + off, "peer")
        record = None if weight is None else Record(name, "h", port, weight=weight)
        known = self.model.get(instance)
        taken = self.registry.merge(Fact(instance, record, stamp, age), self.now)
        newer, at = known is None or stamp > known[0], self.now - age
        if weight is None:
            assert taken == (newer and age <= TOMBSTONE_SECONDS)
            if taken:
                self.model[instance] = (stamp, at, None)
            return
        if known is not None and known[2] is not None:
            at = max(at, known[1])
            self.model[instance] = (known[0], at, known[2])
            assert taken == newer
        else:
            assert taken == (newer and age <= LEASE)
        if taken:
            self.model[instance] = (stamp, at, weight)

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds: int) -> None:
        """Time passes and the sweep runs in time."""
        self.now += seconds
        gone = {(r.name, r.ip, r.port) for r in self.registry.sweep(self.now)}
        held = self.now <= self.held_until
        for instance, (_, at, weight) in list(self.model.items()):
            if weight is None:
                if self.now - at > TOMBSTONE_SECONDS:
                    del self.model[instance]
            elif self.now - at > LEASE and not held:
                assert instance in gone
                del self.model[instance]
                gone.remove(instance)
        assert not gone

    @rule(times=st.integers(1, 12))
    def wait_longer(self, times: int) -> None:
        """Much time passes."""
        for _ in range(times):
            self.wait(5)

    @rule(seconds=st.integers(6, 200))
    def stand_still(self, seconds: int) -> None:
        """The process is stopped for a while: nobody is dropped for the first time after."""
        self.now += seconds - 5
        assert self.registry.stalled(self.now + 5)
        self.held_until = self.now + 5 + HOLD_SECONDS
        self.wait(5)

    @invariant()
    def shows_the_model(self) -> None:
        """What is shown is what is known, in the order promised, and the digest tells it."""
        leases = {key: value for key, value in self.model.items() if value[2] is not None}
        assert len(self.registry) == len(leases)
        assert self.registry.names() == sorted({name for name, _, _ in leases})
        digest = Digest()
        for instance, (stamp, _, _) in self.model.items():
            digest.toggle(instance, stamp)
        assert digest.buckets == self.registry.digest.buckets
        assert dict(self.registry.instances()) == {k: v[0] for k, v in self.model.items()}
        for name in ("a", "b_grpc"):
            raw = self.registry.detail(name, self.now)
            records = msgspec.json.decode(raw, type=list[Record])
            assert {(r.name, r.ip, r.port): r.weight for r in records} == {
                key: value[2] for key, value in leases.items() if key[0] == name
            }
            for record in records:
                seen = leases[record.name, record.ip, record.port][1]
                assert record.status == state(self.now - seen)
            keys = [(record.status, record.weight) for record in records]
            assert keys == sorted(keys)


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class ReplicasMachine(RuleBasedStateMachine):
    """Three registries whose wall clocks are apart, and events that come in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = [
            Registry(Random(number), f"n{number}", Preservation(least=99)) for number in range(3)
        ]
        self.now = 0.0
        self.told: list[Event] = []  # by anybody, at any time; each may be delivered again

    node = st.integers(0, 2)

    @rule(at=node, name=NAMES, port=PORTS, weight=WEIGHTS)
    def register(self, at: int, name: str, port: int, weight: int) -> None:
        """An instance registers somewhere."""
        put(self.nodes[at], name, port, weight, self.now, SKEWS[at])
        self.told += map(event_of, self.nodes[at].facts([(name, "h", port)], self.now))

    @rule(at=node, name=NAMES, port=PORTS)
    def evict(self, at: int, name: str, port: int) -> None:
        """An instance leaves somewhere."""
        drop(self.nodes[at], name, port, self.now, SKEWS[at])
        self.told += map(event_of, self.nodes[at].facts([(name, "h", port)], self.now))

    @rule(at=node, data=st.data())
    def deliver(self, at: int, data: st.DataObject) -> None:
        """Any event arrives, be it for the first time or again."""
        if self.told:
            event = data.draw(st.sampled_from(self.told))
            before = self.nodes[at].stamp(
                (event.registry.name, event.registry.ip, event.registry.port)
            )
            receive(self.nodes[at], event, "x", wall=WALL + self.now, now=self.now)
            after = self.nodes[at].stamp(
                (event.registry.name, event.registry.ip, event.registry.port)
            )
            assert before is None or (after is not None and after >= before)

    @rule(seconds=st.integers(0, 4))
    def wait(self, seconds: int) -> None:
        """Time passes; nobody is silent for long enough to be dropped."""
        self.now += seconds

    def compare(self, one: Registry, other: Registry) -> None:
        """As nodes do every few seconds."""
        buckets = one.digest.differing(other.digest.buckets)
        answer = answer_difference(other, ask_difference(one, buckets), self.now)
        wanted = [event_of(fact) for fact in one.facts(answer.wanted, self.now)]
        for events, registry in [(answer.newer, one), (wanted, other)]:
            for event in events:
                receive(registry, event, "x", wall=WALL + self.now, now=self.now)
        assert one.digest.differing(other.digest.buckets) == []
        assert dict(one.instances()) == dict(other.instances())

    @rule(one=node, other=node)
    def compare_two(self, one: int, other: int) -> None:
        """Two nodes are alike after one comparison."""
        self.compare(self.nodes[one], self.nodes[other])

    def teardown(self) -> None:
        """All nodes are alike after each has compared with the next, and the next again."""
        first, second, third = self.nodes
        for one, other in [(first, second), (second, third), (third, first), (first, second)]:
            self.compare(one, other)
        for name in ("a", "b_grpc"):
            shown = [
                {r.port: r.weight for r in node.records(name, self.now)} for node in self.nodes
            ]
            assert shown[0] == shown[1] == shown[2]


TestReplicasMachine = ReplicasMachine.TestCase
TestReplicasMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
