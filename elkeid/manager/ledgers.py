"""The ledgers of all AgentCenters as one, and whether it balances.

Source: docs/protocol.md, "AgentCenter API".
"""

from collections.abc import Iterable

import msgspec


class ReaderLedger(msgspec.Struct):
    """What became of the records of a class for one reader."""

    acknowledged: int = 0
    set_aside: int = 0
    waiting: int = 0
    expired: dict[str, int] = {}  # reason -> records


class ClassLedger(msgspec.Struct):
    """What became of the records of a class."""

    read: int = 0
    appended: int = 0
    dropped: dict[str, int] = {}  # reason -> records
    readers: dict[str, ReaderLedger] = {}


class BeforeReading(msgspec.Struct):
    """What agents lost before it got to an AgentCenter, by their own counters."""

    dropped_in_buffer: int = 0
    lost_in_flight: int = 0


class LedgerAnswer(msgspec.Struct):
    """Body of ``GET /ledger`` of one AgentCenter."""

    data: dict[str, ClassLedger]
    before_reading: BeforeReading = msgspec.field(default_factory=BeforeReading)


def summed(ledgers: Iterable[LedgerAnswer]) -> LedgerAnswer:
    """The sum, class by class and reader by reader."""
    whole = LedgerAnswer({})
    for one in ledgers:
        whole.before_reading.dropped_in_buffer += one.before_reading.dropped_in_buffer
        whole.before_reading.lost_in_flight += one.before_reading.lost_in_flight
        for name, added in one.data.items():
            total = whole.data.setdefault(name, ClassLedger())
            total.read += added.read
            total.appended += added.appended
            total.dropped = _sum(total.dropped, added.dropped)
            for reader, taken in added.readers.items():
                so_far = total.readers.setdefault(reader, ReaderLedger())
                so_far.acknowledged += taken.acknowledged
                so_far.set_aside += taken.set_aside
                so_far.waiting += taken.waiting
                so_far.expired = _sum(so_far.expired, taken.expired)
    return whole


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def imbalances(ledger: LedgerAnswer) -> list[str]:
    """One sentence for each account of one AgentCenter that does not add up."""
    found: list[str] = []
    for name, each in ledger.data.items():
        kept = each.appended + sum(each.dropped.values())
        if each.read != kept:
            found.append(f"{name}: {each.read} read, {kept} appended or dropped")
        for reader, taken in each.readers.items():
            known = taken.acknowledged + taken.set_aside + taken.waiting
            known += sum(taken.expired.values())
            if known != each.appended:
                found.append(f"{name}, {reader}: {each.appended} appended, {known} accounted for")
    return found
