"""The registry: which instances of which names live, how well, and in which order to try them.

No I/O and no clock: callers pass seconds since the epoch (``wall``, shown to clients) and
seconds of a monotonic clock (``now``, which ages leases, so that a changed or skewed wall clock
kills nobody).
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from random import Random
from typing import Annotated, Any

import msgspec
from attrs import define, field, frozen

from elkeid.config import is_host
from elkeid.discovery.load import limit_of
from elkeid.errors import PeerError

# Seconds of silence up to which an instance has a state; beyond the last it is evicted.
# Instances renew every 30 s at most, so two lost renewals in a row leave one alive.
AGES = (45.0, 60.0, 75.0, 90.0, 105.0)
MAX_NAMES = 1_000  # a deployment has 3; a client that invents names must not fill memory
MAX_INSTANCES = 10_000  # of all names; at most 50 MB with extras of full size
MAX_NAME = 128  # characters
MAX_EXTRA = 4_096  # bytes of JSON
MAX_STALL = 10.0  # seconds a sweep may come late before leases are granted the difference
Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


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


@define
class _Lease:
    record: Record
    seen: float  # monotonic seconds of the latest registration
    limit: float | None  # what the instance can take, if its extra says so
    json: bytes = b""  # the record, encoded for ``status``


@frozen
class _Ranking:
    """The order of one name's instances, until something changes or ages into a new state."""

    tiers: list[list[bytes]]  # best first; within a tier any order is fair
    until: float  # monotonic seconds, inclusive as the ages are


@define
class _Name:
    leases: dict[tuple[str, int], _Lease] = field(factory=dict)
    ranking: _Ranking | None = None


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
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._names: dict[str, _Name] = {}
        self._size = 0
        self._swept: float | None = None

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
        wall: int,
        now: float,
    ) -> None:
        """Take or renew a lease.

        A renewal keeps ``create_at``, and ``extra`` where the request had none.

        Raises:
            RegistrationInvalid: the text names the field.
            RegistryFull: a new instance beyond the limits.
        """
        given = None if extra is msgspec.UNSET else extra
        check(name, ip, port, given)
        known = self._find(name, ip, port)
        if extra is msgspec.UNSET:
            extra = known.record.extra if known else {}
        self._put(
            Record(
                name=name,
                ip=ip,
                port=port,
                create_at=known.record.create_at if known else wall,
                update_at=wall,
                weight=weight,
                extra=extra,
            ),
            now,
        )

    def merge(self, record: Record, now: float) -> bool:
        """Take a peer's registration if it is newer than what is known here.

        It ages from ``now``, the local time of receipt: peers' clocks may be off.

        Returns:
            Whether it was taken.
        """
        check(record.name, record.ip, record.port, record.extra)
        known = self._find(record.name, record.ip, record.port)
        if known is not None and known.record.update_at >= record.update_at:
            return False
        self._put(msgspec.structs.replace(record, status=0), now)
        return True

    def evict(self, name: str, ip: str, port: int, not_after: int | None = None) -> bool:
        """Drop a lease; a name goes with its last one.

        Args:
            name: of the service.
            ip: of the instance.
            port: of the instance.
            not_after: keep it if it was renewed later than this, in seconds since the epoch.

        Returns:
            Whether it was dropped.
        """
        lease = self._find(name, ip, port)
        if lease is None or (not_after is not None and lease.record.update_at > not_after):
            return False
        self._drop(lease)
        return True

    def sweep(self, now: float) -> list[Record]:
        """Evict what has been silent for too long, and return it.

        If this process itself stood still, nobody could renew: then leases live on for as long.
        """
        late = 0.0 if self._swept is None else now - self._swept - MAX_STALL
        self._swept = now
        gone = []
        for lease in list(self._leases()):
            if late > 0:
                lease.seen += late
                self._names[lease.record.name].ranking = None
            if now - lease.seen > AGES[-1]:
                self._drop(lease)
                gone.append(lease.record)
        return gone

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
        return [self._fresh(lease, now).record for lease in entry.leases.values()]

    def detail(self, name: str, now: float, count: int = 0) -> list[bytes]:
        """The instances of a name as JSON, those to try first at the front.

        Healthier before less healthy, less loaded before more loaded, equals in random order.
        The load is the weight, or weight / limit if every instance's ``extra`` has a positive
        ``limit``. Never empty while an instance is known, however unwell.

        Args:
            name: of the service.
            now: monotonic seconds.
            count: at most so many; 0 for all.
        """
        entry = self._names.get(name)
        if entry is None:
            return []
        ranking = entry.ranking
        if ranking is None or now > ranking.until:
            ranking = entry.ranking = self._rank(entry.leases.values(), now)
        ordered: list[bytes] = []
        for tier in ranking.tiers:
            wanted = len(tier) if count <= 0 else min(len(tier), count - len(ordered))
            if wanted <= 0:
                break
            ordered += self._random.sample(tier, wanted) if len(tier) > 1 else tier
        return ordered

    def _rank(self, leases: Iterable[_Lease], now: float) -> _Ranking:
        fresh = [self._fresh(lease, now) for lease in leases]
        relative = all(lease.limit for lease in fresh)
        tiers: dict[tuple[int, float], list[bytes]] = {}
        until = float("inf")
        for lease in fresh:
            weight = lease.record.weight
            load = weight / lease.limit if relative and lease.limit else weight
            tiers.setdefault((lease.record.status, load), []).append(lease.json)
            ends = lease.seen + AGES[lease.record.status]
            if ends >= now:  # else the last state, which has no end but eviction
                until = min(until, ends)
        return _Ranking([tiers[key] for key in sorted(tiers)], until)

    def _fresh(self, lease: _Lease, now: float) -> _Lease:
        status = state(now - lease.seen)
        if status != lease.record.status or not lease.json:
            lease.record.status = int(status)
            lease.json = msgspec.json.encode(lease.record)
        return lease

    def _find(self, name: str, ip: str, port: int) -> _Lease | None:
        entry = self._names.get(name)
        return entry.leases.get((ip, port)) if entry else None

    def _put(self, record: Record, now: float) -> None:
        entry = self._names.get(record.name)
        key = record.ip, record.port
        if entry is None or key not in entry.leases:
            if self._size >= MAX_INSTANCES:
                raise RegistryFull(f"{MAX_INSTANCES} instances are registered: the limit")
            if entry is None:
                if len(self._names) >= MAX_NAMES:
                    raise RegistryFull(f"{MAX_NAMES} names are registered: the limit")
                entry = self._names[record.name] = _Name()
            self._size += 1
        entry.leases[key] = _Lease(record, now, limit_of(record.extra))
        entry.ranking = None

    def _drop(self, lease: _Lease) -> None:
        record = lease.record
        entry = self._names[record.name]
        del entry.leases[record.ip, record.port]
        entry.ranking = None
        self._size -= 1
        if not entry.leases:
            del self._names[record.name]

    def _leases(self) -> Iterator[_Lease]:
        for entry in self._names.values():
            yield from entry.leases.values()


def state(age: float) -> State:
    """The state after ``age`` seconds of silence; `State.RED` also beyond its end."""
    for number, end in enumerate(AGES):
        if age <= end:
            return State(number)
    return State.RED


def json_list(records: Sequence[bytes]) -> bytes:
    """Join encoded records to a JSON array."""
    return b"[" + b",".join(records) + b"]"
