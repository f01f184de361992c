"""Hosts that are gone: they are removed in the end, so that no id stays for ever.

A host that operators retired goes some weeks later, one that was merely silent after much longer.
One that is heard in that moment stays, and one that is heard later is new.

Source: docs/protocol.md, "Manager API", "Hosts".
"""

from functools import partial
from typing import Final

from prometheus_client import Counter
from twisted.logger import Logger

from elkeid.config import ManagerSettings
from elkeid.manager.retention import Rule
from elkeid.manager.store.agents import OFFLINE, UNINSTALLED
from elkeid.manager.store.removal import hosts_gone, remove_hosts
from elkeid.manager.store.store import Store

HOSTS_PER_LOOK: Final = 1_000
"""Hosts of a state that one query looks at: 15 ms, measured."""

HOSTS_PER_REMOVAL: Final = 50
"""Hosts removed in one transaction, with a hundred events each: 20 ms, measured."""

ROUNDS: Final = 6
"""They are looked for in one round of so many, once an hour: days pass before one is due."""

REASONS: Final = {UNINSTALLED: "retired", OFFLINE: "silent"}
"""State of a host -> why it is removed."""


class _Walk:
    """Through all hosts of a state, by id."""

    def __init__(self) -> None:
        self.after, self.removed = "", 0


class HostRemoval:
    """Removes hosts.

    Args:
        store: open when a rule is applied.
        counter: of removed hosts, by reason.
        settings: after what time.
    """

    log = Logger()

    def __init__(self, store: Store, counter: Counter, settings: ManagerSettings) -> None:
        self._store, self._counter = store, counter
        self._seconds = {
            UNINSTALLED: settings.retired_host_seconds,
            OFFLINE: settings.silent_host_seconds,
        }
        self._walks = {state: _Walk() for state in REASONS}
        for reason in REASONS.values():
            counter.labels(reason)

    def rules(self) -> list[Rule]:
        """What is removed when; nothing where the setting is 0."""
        return [
            Rule(f"{REASONS[state]} hosts", seconds, partial(self._forget_some, state), ROUNDS)
            for state, seconds in self._seconds.items()
            if seconds
        ]

    async def _forget_some(self, state: str, before: float) -> bool:
        walk, reason = self._walks[state], REASONS[state]
        ids, last = await self._store.read(hosts_gone, state, before, walk.after, HOSTS_PER_LOOK)
        for start in range(0, len(ids), HOSTS_PER_REMOVAL):
            some = ids[start : start + HOSTS_PER_REMOVAL]
            removed = await self._store.write(remove_hosts, some, state, before)
            self._counter.labels(reason).inc(removed)
            walk.removed += removed
        if last is not None:
            walk.after = last
            return True
        if walk.removed:
            self.log.info(
                "{count} {reason} hosts removed: not heard of for {days:.3g} days",
                count=walk.removed,
                reason=reason,
                days=self._seconds[state] / 86400,
            )
        self._walks[state] = _Walk()
        return False
