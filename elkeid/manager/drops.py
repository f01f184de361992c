"""Holding back a config that would take most plugins from many hosts at once.

A config is the whole list of what a host shall run, so one mistake in it disarms the fleet.
"""

from collections.abc import Callable, Set

TRACKED_HOSTS = 100_000
"""Hosts counted as held; beyond, they are held all the same."""


class DropGuard:
    """Lets a few hosts lose most of their plugins, and holds the others' configs.

    Args:
        wall: seconds since the epoch.
        hosts: how many hosts may lose more than half of their plugins within ``seconds``.
        seconds: see ``hosts``.
    """

    def __init__(self, wall: Callable[[], float], hosts: int, seconds: float) -> None:
        self._wall, self._hosts, self._seconds = wall, hosts, seconds
        self._let: dict[str, float] = {}  # host -> when it was let, in that order
        self._held: dict[str, None] = {}

    @property
    def held(self) -> int:
        """Hosts whose config is held back."""
        return len(self._held)

    def allows(self, agent_id: str, reported: Set[str], listed: Set[str]) -> bool:
        """Say whether this host may get this list.

        Args:
            agent_id: the host's.
            reported: plugins that it runs.
            listed: plugins that it shall run.
        """
        if 2 * len(reported - listed) <= len(reported):
            self._held.pop(agent_id, None)
            return True
        now = self._wall()
        for each, when in list(self._let.items()):
            if now - when < self._seconds:
                break
            del self._let[each]
        if agent_id in self._let or len(self._let) < self._hosts:
            self._let.setdefault(agent_id, now)
            self._held.pop(agent_id, None)
            return True
        if len(self._held) < TRACKED_HOSTS:
            self._held[agent_id] = None
        return False

    def confirmed(self) -> None:
        """An operator has looked at the config that there is now."""
        self._held.clear()
        self._let.clear()
