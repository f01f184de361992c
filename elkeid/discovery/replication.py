"""How nodes keep each other informed, without I/O: what a peer is to be told, and what it told.

A node tells every peer what instances told it, and nothing that peers did: so nothing goes in
circles. Nothing is lost either: what a peer has not confirmed stays in its outbox, as the name of
the instance only, so that it is told the present state when it answers again. What was lost
nevertheless, with a node that died, the comparison of digests finds.
"""

from collections.abc import Iterable
from enum import StrEnum

from elkeid.discovery.digest import BUCKETS, bucket
from elkeid.discovery.messages import (
    EVICT,
    REGISTER,
    Difference,
    DifferenceAnswer,
    Event,
    event_of,
    fact_of,
)
from elkeid.discovery.registry import (
    LEASE,
    MAX_INSTANCES,
    MAX_TOMBSTONES,
    Instance,
    RegistrationInvalid,
    Registry,
    RegistryFull,
    Stamp,
)

BATCH = 100  # events in one push: upstream's own measure
OUTBOX = MAX_INSTANCES + MAX_TOMBSTONES  # instances; as many as a registry can know of


class Outcome(StrEnum):
    """What became of a peer's event."""

    TAKEN = "taken"
    EVICTED = "evicted"
    OLDER = "older"
    AGED = "aged"
    INVALID = "invalid"
    FULL = "full"
    UNKNOWN = "unknown"


class Outbox:
    """Instances of whose present state one peer is still to be told."""

    def __init__(self) -> None:
        self._waiting: dict[Instance, None] = {}
        self.overflowed = 0  # forgotten for want of room; the digests find them

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, instance: Instance) -> None:
        """The peer is to be told of it."""
        self._waiting[instance] = None
        while len(self._waiting) > OUTBOX:
            del self._waiting[next(iter(self._waiting))]
            self.overflowed += 1

    def take(self) -> list[Instance]:
        """Those for the next push, oldest first."""
        taken = [instance for instance, _ in zip(self._waiting, range(BATCH), strict=False)]
        for instance in taken:
            del self._waiting[instance]
        return taken

    def give_back(self, instances: Iterable[Instance]) -> None:
        """These could not be told: they come first again."""
        self._waiting = dict.fromkeys(instances) | self._waiting

    def clear(self) -> None:
        """Nobody is to be told any more."""
        self._waiting.clear()


def receive(registry: Registry, event: Event, source: str, *, wall: float, now: float) -> Outcome:
    """Apply a peer's event.

    Args:
        registry: to change.
        event: of a node of ours if it has a ``lease``, else of an upstream one.
        source: address of the peer that sent it.
        wall: seconds since the epoch.
        now: monotonic seconds.
    """
    record = event.registry
    try:
        fact = fact_of(event)
        if fact is not None:
            if not registry.merge(fact, now):
                return Outcome.OLDER
            return Outcome.TAKEN if fact.record is not None else Outcome.EVICTED
        if event.action == REGISTER:
            taken = registry.merge_upstream(record, source, now=now)
            return Outcome.TAKEN if taken else Outcome.OLDER
        if event.action == EVICT:
            # One that was asked for has zeros. One that comes of ageing has the times of the
            # record: but whether an instance is silent is for each node to hear for itself.
            if record.update_at:
                return Outcome.AGED
            known = registry.evict(record.name, record.ip, record.port, wall=wall, now=now)
            return Outcome.EVICTED if known else Outcome.OLDER
    except RegistrationInvalid:
        return Outcome.INVALID
    except RegistryFull:
        return Outcome.FULL
    return Outcome.UNKNOWN


def ask_difference(registry: Registry, buckets: Iterable[int]) -> Difference:
    """What to send to a peer whose digest differs in these buckets."""
    wanted = set(buckets)
    known = [
        (*instance, stamp.at, stamp.node)
        for instance, stamp in registry.instances()
        if bucket(instance) in wanted
    ]
    return Difference(sorted(wanted), known)


def ask_everything() -> Difference:
    """What to send to a peer for all it knows."""
    return Difference(list(range(BUCKETS)), [])


def answer_difference(registry: Registry, asked: Difference, now: float) -> DifferenceAnswer:
    """What this node knows better than the one that asks, and what that one knows better."""
    wanted = set(asked.buckets)
    theirs = {(name, ip, port): Stamp(at, node) for name, ip, port, at, node in asked.known}
    newer, known = [], set()
    for instance, stamp in registry.instances():
        if bucket(instance) not in wanted:
            continue
        other = theirs.get(instance)
        if other is None or stamp > other:
            newer.append(instance)
        if other is None or stamp >= other:
            known.add(instance)
    # A silence beyond the lease tells nothing: whoever does not know it would not take it.
    facts = [f for f in registry.facts(newer, now) if f.record is None or f.age <= LEASE]
    return DifferenceAnswer(
        [event_of(fact) for fact in facts],
        [instance for instance in theirs if instance not in known],
        registry.sure(now),
        list(registry.preserved()),
    )
