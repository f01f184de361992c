"""The registry: which instances of which names live, how well, and in which order to try them.

No I/O and no clock: callers pass seconds since the epoch (``wall``, shown to clients) and
seconds of a monotonic clock (``now``, which ages leases, so that a changed or skewed wall clock
kills nobody).

Two facts about one instance, a registration or an eviction, are ordered by their `Stamp`: a
hybrid logical clock, so that what a node says after it has heard another fact is the newer one
whatever the wall clocks show. How long an instance has been silent is told as an age, which no
clock can spoil, and of two answers to that the shorter silence holds.

Ageing is local: an instance that falls silent here is dropped here, and nobody is told. If many
fall silent together it is likelier that this node hears nothing than that all have died: then
they are kept, as the last to try.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from random import Random
from typing import Annotated, Any, NamedTuple

import msgspec
from attrs import define, field, frozen

from elkeid.config import is_host
from elkeid.discovery.digest import Digest
from elkeid.discovery.load import renew_seconds
from elkeid.discovery.steering import Candidate, Order, candidate
from elkeid.errors import PeerError

# Seconds of silence up to which an instance is green, if it renews every 5 s as ours do, and if
# it does not say so: upstream's clients renew every 30 s. Ten seconds short of 45 and 75, as
# what peers tell is late by some seconds.
GREEN_FAST, GREEN_SLOW = 35.0, 65.0
FAST_RENEWAL = 10.0  # seconds between renewals up to which an instance counts as fast
# Seconds up to which it is blue, yellow, orange and red; beyond the last it is dropped. Two lost
# renewals of 30 s leave an instance alive.
AGES = (75.0, 85.0, 95.0, 105.0)
LEASE = AGES[-1]
MAX_NAMES = 1_000  # a deployment has 3; a client that invents names must not fill memory
MAX_INSTANCES = 10_000  # of all names; at most 50 MB with extras of full size
MAX_TOMBSTONES = 10_000  # remembered evictions; beyond, the oldest are forgotten
MAX_NAME = 128  # characters
MAX_EXTRA = 4_096  # bytes of JSON
MAX_STAMP = 1 << 53  # what every JSON reader can hold; milliseconds until the year 287396
MAX_SOURCES = 8  # upstream peers remembered for each instance
TOMBSTONE_SECONDS = 300.0  # longer than any fact lives that an eviction must hold down
# An upstream peer tells a registration up to 4 s late: an eviction that came meanwhile stands.
SETTLE_SECONDS = 5.0
# Two nodes that hear the same report think it came at slightly different times.
SAME_REPORT = 1.0
MAX_STALL = 5.0  # seconds between two sweeps; if more, this node heard nobody meanwhile
HOLD_SECONDS = 35.0  # after such a stall nobody is dropped until all can have renewed
# Seconds between two sweeps from which on what arrives may have lain in this node's buffers for
# too long: two nodes may add to the delay of one message.
MAX_LAIN = 2.0
CATCH_UP_SECONDS = 1.0  # until all that lay there has been read
Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]

Instance = tuple[str, str, int]
"""Name, ip and port: what an instance is known by."""


class RegistrationInvalid(PeerError):
    """A registration breaks a rule; the text begins with the field."""


class RegistryFull(PeerError):
    """No more names or instances are taken."""


class State(IntEnum):
    """Health by silence, best first."""

    GREEN = 0
    BLUE = 1
    YELLOW = 2
    ORANGE = 3
    RED = 4


class Record(msgspec.Struct):
    """An instance as clients and peers see it, in the order of fields they see.

    ``create_at`` and ``update_at`` are seconds since the epoch.
    """

    name: str = ""
    ip: str = ""
    port: int = 0
    status: int = 0
    create_at: Int64 = 0
    update_at: Int64 = 0
    weight: Int64 = 0
    extra: dict[str, Any] | None = None


class Stamp(NamedTuple):
    """Orders the facts about one instance: milliseconds of a hybrid clock, then the node."""

    at: int
    node: str


@frozen
class Fact:
    """What a node knows of one instance, as it tells a peer.

    Args:
        record: of a registration; None: it was evicted.
        stamp: of the registration or eviction.
        age: seconds of silence, or since the eviction.
    """

    instance: Instance
    record: Record | None
    stamp: Stamp
    age: float


@frozen
class Preservation:
    """When silent instances of a name are kept: this many, and more than this share of them.

    Args:
        least: number of instances.
        share: of all instances of the name.
        seconds: within which they fall silent, and for which they are kept beyond the end of it.
    """

    least: int = 3
    share: float = 0.5
    seconds: float = 60.0


@define(eq=False)
class _Lease:
    record: Record
    stamp: Stamp
    seen: float  # monotonic seconds of the latest sign of life
    green: float  # seconds of silence up to which it is green
    zone: str | None
    candidate: Candidate
    preserved: bool = False
    sources: dict[str, int] = field(factory=dict)  # upstream peer -> latest update_at it told


@frozen
class _Tombstone:
    stamp: Stamp
    at: float  # monotonic seconds


@define
class _Name:
    leases: dict[tuple[str, int], _Lease] = field(factory=dict)
    orders: dict[str | None, Order] = field(factory=dict)  # by the zone of those who ask
    until: float = float("inf")  # monotonic seconds, inclusive: until then no state changes by age
    preserving_until: float | None = None


def check(name: str, ip: str, port: int, extra: object = None) -> None:
    """Raise `RegistrationInvalid` for what no client could use."""
    if not name or len(name) > MAX_NAME or not name.isprintable() or name != name.strip():
        raise RegistrationInvalid(f"name: must be 1 to {MAX_NAME} printable characters")
    if not is_host(ip):
        raise RegistrationInvalid("ip: must be an IP address without brackets, or a host name")
    if not 1 <= port <= 65535:
        raise RegistrationInvalid("port: must be 1 to 65535")
    if extra:
        try:
            size = len(msgspec.json.encode(extra))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise RegistrationInvalid("extra: cannot be kept") from error
        if size > MAX_EXTRA:
            raise RegistrationInvalid(f"extra: {size} bytes of JSON, at most {MAX_EXTRA}")


class Registry:
    """All leases of this node.

    Args:
        random: breaks ties between equally good instances.
        node: this node, unlike every other one.
        preservation: when silent instances are kept.
        zone: where an instance stands, from its record; None if unknown.
    """

    def __init__(
        self,
        random: Random,
        node: str = "",
        preservation: Preservation | None = None,
        zone: Callable[[Record], str | None] = lambda record: None,
    ) -> None:
        self._random, self._node, self._zone = random, node, zone
        self._preservation = preservation or Preservation()
        self._names: dict[str, _Name] = {}
        self._tombstones: dict[Instance, _Tombstone] = {}  # oldest first
        self._size = 0
        self._clock = 0  # of the stamps
        self._begun: float | None = None  # the first sweep
        self._swept: float | None = None  # the latest
        self._held_until: float | None = None
        self._refusing_until = 0.0
        self.digest = Digest()

    def __len__(self) -> int:
        return self._size

    def register(
        self,
        name: str,
        ip: str,
        port: int,
        weight: int,
        extra: dict[str, Any] | msgspec.UnsetType | None,
        *,
        wall: float,
        now: float,
    ) -> None:
        """Take or renew a lease, as the instance itself asks.

        A renewal keeps ``create_at``, and ``extra`` where the request had none.

        Raises:
            RegistrationInvalid: the text names the field.
            RegistryFull: a new instance beyond the limits.
        """
        given = None if extra is msgspec.UNSET else extra
        check(name, ip, port, given)
        known = self._find((name, ip, port))
        if extra is msgspec.UNSET:
            extra = known.record.extra if known else {}
        at = int(wall)
        created = known.record.create_at if known else at
        record = Record(name, ip, port, 0, created, at, weight, extra)
        self._put(record, self._next_stamp(wall), now, now)

    def evict(self, name: str, ip: str, port: int, *, wall: float, now: float) -> bool:
        """Drop a lease, as somebody asks; a name goes with its last one.

        It is remembered for some minutes also of an instance that is not known here, so that
        what peers still tell of it does not bring it back.

        Returns:
            Whether there was a lease.
        """
        try:
            check(name, ip, port)
        except RegistrationInvalid:
            return False  # there can be no such instance
        instance = name, ip, port
        lease = self._find(instance)
        self._bury(instance, self._next_stamp(wall), now)
        return lease is not None

    def merge(self, fact: Fact, now: float) -> bool:
        """Take what a peer of our kind knows, if it is newer than what is known here.

        Of an older fact only the shorter silence is taken.

        Returns:
            Whether it was newer.

        Raises:
            RegistrationInvalid: the text names the field.
            RegistryFull: a new instance beyond the limits.
        """
        instance, stamp = fact.instance, fact.stamp
        if not 0 <= stamp.at <= MAX_STAMP:
            raise RegistrationInvalid(f"stamp: must be 0 to {MAX_STAMP}")
        record = fact.record
        check(*instance, None if record is None else record.extra)
        lease, tombstone = self._find(instance), self._tombstones.get(instance)
        known = lease.stamp if lease else tombstone.stamp if tombstone else None
        at = now - max(0.0, fact.age)
        newer = known is None or stamp > known
        if record is None:
            if newer and now - at <= TOMBSTONE_SECONDS:
                self._bury(instance, stamp, at)
                return True
            return False
        if lease is not None and at > lease.seen:
            self._hear(lease, at, now)
        if not newer or (lease is None and now - at > LEASE):
            return False
        seen = at if lease is None else max(at, lease.seen)
        self._put(record, stamp, seen, now)
        return True

    def merge_upstream(self, record: Record, source: str, *, now: float, age: float = 0.0) -> bool:
        """Take a registration that an upstream peer tells.

        Its clock is compared with nothing but itself: ``update_at`` must have grown since what
        the same peer told before.

        Args:
            record: as told.
            source: the peer.
            now: monotonic seconds.
            age: seconds since the registration; upstream's peers tell one at once.

        Returns:
            Whether it was taken.

        Raises:
            RegistrationInvalid: the text names the field.
            RegistryFull: a new instance beyond the limits.
        """
        check(record.name, record.ip, record.port, record.extra)
        instance = record.name, record.ip, record.port
        lease, tombstone = self._find(instance), self._tombstones.get(instance)
        sources = lease.sources if lease else {}
        if record.update_at <= sources.get(source, record.update_at - 1):
            return False
        seen = now - age
        if age > LEASE or (tombstone is not None and seen - tombstone.at < SETTLE_SECONDS):
            return False
        # Two of our nodes that know the same and are told the same make the same stamp of it.
        known = lease.stamp if lease else tombstone.stamp if tombstone else None
        at = min(max(record.update_at * 1000, known.at + 1 if known else 0), MAX_STAMP)
        self._put(record, Stamp(at, source), max(seen, lease.seen) if lease else seen, now)
        lease = self._find(instance)
        assert lease is not None
        lease.sources = {**sources, source: record.update_at}
        while len(lease.sources) > MAX_SOURCES:
            del lease.sources[next(iter(lease.sources))]
        return True

    def sweep(self, now: float) -> list[Record]:
        """Drop what has been silent for too long, and return it; to be called every second.

        If this process itself stood still nobody could renew: then all are kept for a while.
        """
        if self._swept is not None:
            if now - self._swept > MAX_STALL:
                self._held_until = now + HOLD_SECONDS
            if now - self._swept > MAX_LAIN:
                self._refusing_until = now + CATCH_UP_SECONDS
        if self._held_until is not None and now > self._held_until:
            self._held_until = None
        self._begun = now if self._begun is None else self._begun
        self._swept = now
        gone = []
        for entry in list(self._names.values()):
            gone += self._sweep_name(entry, now)
        for instance, tombstone in list(self._tombstones.items()):
            if now - tombstone.at > TOMBSTONE_SECONDS:
                self._forget(instance)
        return gone

    def _sweep_name(self, entry: _Name, now: float) -> list[Record]:
        expired = [each for each in entry.leases.values() if now - each.seen > LEASE]
        if not expired:
            return []
        if self._silent_together(entry, now):
            entry.preserving_until = now + self._preservation.seconds
        kept = self._held_until is not None or (
            entry.preserving_until is not None and now <= entry.preserving_until
        )
        if not kept:
            entry.preserving_until = None
            for lease in expired:
                self._drop(lease)
            return [lease.record for lease in expired]
        for lease in expired:
            lease.preserved = True
        return []

    def _silent_together(self, entry: _Name, now: float) -> bool:
        rule = self._preservation
        silent = sum(now - each.seen > LEASE - rule.seconds for each in entry.leases.values())
        return silent >= rule.least and silent > rule.share * len(entry.leases)

    def sure(self, now: float) -> bool:
        """Whether what this node does not know can be taken as gone: it runs for long enough."""
        begun = self._begun is not None and now - self._begun > HOLD_SECONDS
        return begun and self._held_until is None

    def release(self, instance: Instance, now: float) -> bool:
        """Drop an instance that is only kept, as a peer that is sure does not know it any more.

        Not so while this node hears so few of that name that it is likelier to be deaf.

        Returns:
            Whether it was dropped.
        """
        lease = self._find(instance)
        if lease is None or now - lease.seen <= LEASE:
            return False
        if self._silent_together(self._names[instance[0]], now):
            return False
        self._drop(lease)
        return True

    def stalled(self, now: float) -> bool:
        """Whether this process stood still until just now: what arrives may have lain for long."""
        late = self._swept is not None and now - self._swept > MAX_LAIN
        return late or now < self._refusing_until

    def preserved(self) -> dict[str, tuple[int, int]]:
        """Name -> silent instances that are kept, all instances; names without any left out."""
        found = {}
        for name, entry in self._names.items():
            kept = sum(lease.preserved for lease in entry.leases.values())
            if kept:
                found[name] = kept, len(entry.leases)
        return found

    def names(self) -> list[str]:
        """Names that have instances, sorted."""
        return sorted(self._names)

    def counts(self) -> dict[str, int]:
        """Name -> number of instances."""
        return {name: len(self._names[name].leases) for name in self.names()}

    def records(self, name: str, now: float) -> list[Record]:
        """The instances of a name, in no particular order, with their present states."""
        entry = self._names.get(name)
        if entry is None:
            return []
        if now > entry.until:
            self._age_name(entry, now)
        return [lease.record for lease in entry.leases.values()]

    def detail(
        self, name: str, now: float, count: int = 0, *, charge: float = 0.0, zone: str | None = None
    ) -> bytes:
        """The instances of a name as a JSON array, those to try first at the front.

        Never empty while an instance is known, however unwell. See `elkeid.discovery.steering`.

        Args:
            name: of the service.
            now: monotonic seconds.
            count: at most so many; 0 for all.
            charge: what this answer adds to the load of the instance that it names first.
            zone: of the one who asks, if zones matter.
        """
        entry = self._names.get(name)
        if entry is None:
            return b"[]"
        if now > entry.until:
            self._age_name(entry, now)
        order = entry.orders.get(zone)
        if order is None:
            candidates = [lease.candidate for lease in entry.leases.values()]
            order = entry.orders[zone] = Order(candidates, zone, self._random)
        shown = order.json(count if count < len(entry.leases) else 0)
        order.name_first(charge)
        if charge and len(entry.orders) > 1:
            entry.orders = {zone: order}
        return shown

    def facts(self, instances: Iterable[Instance], now: float) -> list[Fact]:
        """What is known of these; nothing of those that are unknown."""
        found = (self._fact(instance, now) for instance in instances)
        return [fact for fact in found if fact is not None]

    def instances(self) -> Iterator[tuple[Instance, Stamp]]:
        """Everything a digest covers: leases and remembered evictions."""
        for lease in self._leases():
            yield _instance(lease.record), lease.stamp
        for instance, tombstone in self._tombstones.items():
            yield instance, tombstone.stamp

    def stamp(self, instance: Instance) -> Stamp | None:
        """The stamp of what is known of an instance."""
        lease = self._find(instance)
        if lease is not None:
            return lease.stamp
        tombstone = self._tombstones.get(instance)
        return tombstone.stamp if tombstone else None

    def _fact(self, instance: Instance, now: float) -> Fact | None:
        lease = self._find(instance)
        if lease is not None:
            return Fact(instance, lease.record, lease.stamp, now - lease.seen)
        tombstone = self._tombstones.get(instance)
        if tombstone is not None:
            return Fact(instance, None, tombstone.stamp, now - tombstone.at)
        return None

    def _next_stamp(self, wall: float) -> Stamp:
        self._clock = max(int(wall * 1000), self._clock + 1)
        return Stamp(self._clock, self._node)

    def _age_name(self, entry: _Name, now: float) -> None:
        entry.until = float("inf")
        for lease in entry.leases.values():
            self._age(lease, now)
            entry.until = min(entry.until, self._state_ends(lease, now))
        entry.orders.clear()

    def _state_ends(self, lease: _Lease, now: float) -> float:
        for end in (lease.green, *AGES):
            if lease.seen + end >= now:
                return lease.seen + end
        return float("inf")

    def _age(self, lease: _Lease, now: float) -> None:
        status = state(now - lease.seen, lease.green)
        if status != lease.record.status:
            lease.record.status = int(status)
            self._rate(lease, lease.candidate.named)

    def _rate(self, lease: _Lease, named: float) -> None:
        record = lease.record
        lease.candidate = candidate(
            msgspec.json.encode(record), record.status, record.weight, record.extra, lease.zone
        )
        lease.candidate.named = named

    def _hear(self, lease: _Lease, seen: float, now: float) -> None:
        """Note a sign of life that says nothing new about the instance."""
        # A peer may tell of a silence that is shorter, and still longer than a lease.
        lease.seen, lease.preserved = seen, lease.preserved and now - seen > LEASE
        before, former = lease.record.status, lease.candidate
        self._age(lease, now)
        if lease.record.status != before:
            entry = self._names[lease.record.name]
            entry.until = min(entry.until, self._state_ends(lease, now))
            self._reorder(lease, former)

    def _reorder(self, lease: _Lease, former: Candidate | None) -> None:
        entry = self._names[lease.record.name]
        for zone, order in list(entry.orders.items()):
            if not order.put(lease.candidate, former):
                del entry.orders[zone]

    def _find(self, instance: Instance) -> _Lease | None:
        name, ip, port = instance
        entry = self._names.get(name)
        return entry.leases.get((ip, port)) if entry else None

    def _put(self, record: Record, stamp: Stamp, seen: float, now: float) -> None:
        instance = _instance(record)
        entry = self._names.get(record.name)
        former = entry.leases.get((record.ip, record.port)) if entry else None
        if former is None:
            if self._size >= MAX_INSTANCES:
                raise RegistryFull(f"{MAX_INSTANCES} instances are registered: the limit")
            if entry is None and len(self._names) >= MAX_NAMES:
                raise RegistryFull(f"{MAX_NAMES} names are registered: the limit")
            self._size += 1
        if entry is None:
            entry = self._names[record.name] = _Name()
        self._forget(instance)
        renew = renew_seconds(record.extra)
        green = GREEN_FAST if renew is not None and renew <= FAST_RENEWAL else GREEN_SLOW
        record = msgspec.structs.replace(record, status=int(state(now - seen, green)))
        zone = self._zone(record)
        shown = candidate(
            msgspec.json.encode(record), record.status, record.weight, record.extra, zone
        )
        lease = _Lease(record, stamp, seen, green, zone, shown)
        if former is not None:
            lease.sources = former.sources
            lease.preserved = former.preserved and now - seen > LEASE
            if seen - former.seen < SAME_REPORT:
                shown.named = former.candidate.named
            self.digest.toggle(instance, former.stamp)
        entry.leases[record.ip, record.port] = lease
        entry.until = min(entry.until, self._state_ends(lease, now))
        self._clock = max(self._clock, stamp.at)
        self.digest.toggle(instance, stamp)
        self._reorder(lease, former.candidate if former else None)

    def _bury(self, instance: Instance, stamp: Stamp, at: float) -> None:
        lease = self._find(instance)
        if lease is not None:
            self._drop(lease)
        self._forget(instance)
        while len(self._tombstones) >= MAX_TOMBSTONES:
            self._forget(next(iter(self._tombstones)))
        self._clock = max(self._clock, stamp.at)
        self._tombstones[instance] = _Tombstone(stamp, at)
        self.digest.toggle(instance, stamp)

    def _forget(self, instance: Instance) -> None:
        tombstone = self._tombstones.pop(instance, None)
        if tombstone is not None:
            self.digest.toggle(instance, tombstone.stamp)

    def _drop(self, lease: _Lease) -> None:
        record = lease.record
        entry = self._names[record.name]
        del entry.leases[record.ip, record.port]
        entry.orders.clear()
        self._size -= 1
        self.digest.toggle(_instance(record), lease.stamp)
        if not entry.leases:
            del self._names[record.name]

    def _leases(self) -> Iterator[_Lease]:
        for entry in self._names.values():
            yield from entry.leases.values()


def state(age: float, green: float = GREEN_SLOW) -> State:
    """The state after ``age`` seconds of silence; `State.RED` also beyond its end."""
    for number, end in enumerate((green, *AGES[:-1])):
        if age <= end:
            return State(number)
    return State.RED


def _instance(record: Record) -> Instance:
    return record.name, record.ip, record.port
