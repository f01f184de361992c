"""Ledgers, of whichever gateway or process: added up, and whether one balances; no I/O.

For each class read = appended + dropped; for each reader appended = acknowledged + set_aside +
waiting + expired. docs/eventlog.md names the reasons.
"""

from collections.abc import Iterable
from typing import Any

Ledger = dict[str, dict[str, Any]]
"""``{class: {read, appended, dropped: {reason: n}, readers: {name: {acknowledged, set_aside,
waiting, expired: {reason: n}}}}}``"""


def sum_ledgers(ledgers: Iterable[Ledger]) -> Ledger:
    """Add ledgers up, number by number."""
    total: dict[str, Any] = {}
    for each in ledgers:
        _add(total, each)
    return total


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value


def imbalances(found: Ledger) -> list[str]:
    """A sentence for each sum that does not agree; none in a sound ledger."""
    faults = []
    for label, account in found.items():
        read, appended = account["read"], account["appended"]
        dropped = sum(account["dropped"].values())
        if read != appended + dropped:
            faults.append(f"{label}: {read} read, but {appended} appended and {dropped} dropped")
        for name, reader in account["readers"].items():
            expired = sum(reader["expired"].values())
            total = reader["acknowledged"] + reader["set_aside"] + reader["waiting"] + expired
            if total != appended:
                faults.append(f"{label}, {name}: {total} accounted for, {appended} appended")
    return faults
