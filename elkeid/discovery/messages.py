"""Bodies of the registry's API, as clients and peers send them.

What upstream's peers do not know stands in fields that they ignore: ``node`` and ``lease``.

Source: docs/protocol.md, "ServiceDiscovery API".
"""

from typing import Annotated, Any

import msgspec

from elkeid.discovery.registry import MAX_STAMP, Fact, Instance, Int64, Record, Stamp

Count = Annotated[int, msgspec.Meta(ge=0)]
NodeName = Annotated[str, msgspec.Meta(max_length=64)]

REGISTER, EVICT = "REGISTER", "EVICT"  # actions of an event


class Register(msgspec.Struct):
    """Body of ``/registry/register``; absent ``extra`` keeps what is known."""

    name: str = ""
    ip: str = ""
    port: int = 0
    weight: Int64 = 0
    extra: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


class Evict(msgspec.Struct):
    """Body of ``/registry/evict``."""

    name: str = ""
    ip: str = ""
    port: int = 0


class Lease(msgspec.Struct):
    """What our own nodes tell of a fact beside the record.

    ``at`` and ``node`` are its stamp, ``age`` is in seconds.
    """

    at: Annotated[int, msgspec.Meta(ge=0, le=MAX_STAMP)]
    node: NodeName
    age: Annotated[float, msgspec.Meta(ge=0)]


class Event(msgspec.Struct, omit_defaults=True):
    """One change at a peer; an unknown ``action`` is ignored."""

    action: str = ""
    registry: Record = msgspec.field(default_factory=Record)
    lease: Lease | None = None


class Sync(msgspec.Struct, omit_defaults=True):
    """Body of ``/registry/sync``; ``source`` names the peer, for information."""

    source: str = ""
    data: list[Event] | None = None


class Ping(msgspec.Struct):
    """``data`` of ``/endpoint/ping``; an upstream node has no ``node``."""

    host: str = ""
    members: list[str] | None = None
    node: NodeName | None = None
    steered: Count = 0


class Digest(msgspec.Struct):
    """``data`` of ``/registry/digest``."""

    node: NodeName
    buckets: list[Count]


Known = tuple[str, str, int, Count, NodeName]
"""Name, ip, port, and the stamp of what the asking node knows of it."""


class Difference(msgspec.Struct):
    """Body of ``/registry/difference``: what is known in these buckets."""

    buckets: list[Count]
    known: list[Known]


class DifferenceAnswer(msgspec.Struct):
    """``data`` of ``/registry/difference``.

    ``newer``: what the asked node knows better. ``wanted``: what the asking one does.
    ``sure``: whether what the asked node does not know can be taken as gone, ``keeps``: but for
    these names, of which it keeps silent instances itself.
    """

    newer: list[Event]
    wanted: list[tuple[str, str, int]]
    sure: bool = False
    keeps: list[str] = []


def event_of(fact: Fact) -> Event:
    """A fact as our own nodes tell it; an upstream node finds an event of its own kind."""
    name, ip, port = fact.instance
    action, record = REGISTER, fact.record
    if record is None:
        action, record = EVICT, Record(name, ip, port)
    return Event(action, record, Lease(fact.stamp.at, fact.stamp.node, max(0.0, fact.age)))


def upstream_event_of(fact: Fact, peers_time: float) -> Event:
    """A fact as upstream nodes tell it, its times by the clock of the peer that is told.

    Args:
        fact: to tell.
        peers_time: what the peer's clock shows, in seconds since the epoch.
    """
    event = event_of(fact)
    record = event.registry
    if fact.record is not None:
        at = int(peers_time - fact.age)
        record = msgspec.structs.replace(record, update_at=at)
    return Event(event.action, record)


def fact_of(event: Event) -> Fact | None:
    """The fact that a node of our kind tells; None if the event is none of these."""
    lease, record = event.lease, event.registry
    if lease is None or event.action not in (REGISTER, EVICT):
        return None
    instance: Instance = record.name, record.ip, record.port
    known = record if event.action == REGISTER else None
    return Fact(instance, known, Stamp(lease.at, lease.node), lease.age)
