"""The ledgers of all AgentCenters as one, and whether it balances.

Source: docs/protocol.md, "AgentCenter API".
"""

from collections.abc import Iterable

import msgspec

from elkeid import ledgers as balances


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
    whole = balances.sum_ledgers(msgspec.to_builtins(each) for each in ledgers)
    return msgspec.convert({"data": {}} | whole, LedgerAnswer)


def imbalances(ledger: LedgerAnswer) -> list[str]:
    """One sentence for each account of one AgentCenter that does not add up."""
    return balances.imbalances(msgspec.to_builtins(ledger.data))
