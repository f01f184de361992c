"""Whose records are dropped while the disk is short of room: those of the heaviest agents.

The event log says how many bytes a second it may still take. They are shared out so that each
agent gets what it needs, up to a level that is the same for all: who stays below it loses
nothing, who sends more is cut to it. As long as the log has room, nothing is measured and no
agent is looked at.
"""

from collections.abc import Callable, Iterable
from math import exp, inf
from typing import Final

from twisted.logger import Logger

from elkeid.eventlog.room import Room

LOOK_SECONDS: Final = 0.5
"""Looks at the disk that follow each other more closely say too little about rates."""

MEMORY_SECONDS: Final = 10.0
"""Over which the rate of an agent is smoothed, and which its burst may hold: agents' batches are
uneven."""

LARGEST_SECONDS: Final = 3.0
"""Of the whole log's rate: a larger batch would spend at once what is there for all."""

CALM_SECONDS: Final = 60.0
"""Without a need to drop anything; then nothing is measured any more."""

Who = tuple[str, bytes]
"""Address of a peer, and the id it goes by: nobody spends the share of a namesake elsewhere."""


class _Account:
    """One agent's."""

    __slots__ = ("came", "credit", "rate", "shed")

    def __init__(self, credit: float) -> None:
        self.came = 0  # bytes since the last look
        self.rate = -1.0  # bytes a second, smoothed; negative before the first look
        self.credit = credit  # bytes that it may still store
        self.shed = False  # something of it was dropped since the last look


class Shedder:
    """Says which batches of telemetry and logs are kept.

    Args:
        monotonic: seconds that only go forward.

    Attributes:
        active: whether `admits` must be asked.
        level: bytes a second that each agent may store; infinite while there is room for all.
        agents: those that lost records between the last two looks.
    """

    log = Logger()

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._accounts: dict[Who, _Account] = {}
        self._looked_at = monotonic()
        self._written = 0  # by the log, until then
        self._largest = inf  # bytes of a batch
        self._calm_since: float | None = None
        self.active = False
        self.level = inf
        self.agents = 0

    def admits(self, who: Who, size: int) -> bool:
        """Whether a batch is to be stored; one that the log refuses is left to it.

        Args:
            who: sent it.
            size: bytes that it takes in the log.
        """
        account = self._accounts.get(who)
        if account is None:
            account = self._accounts[who] = _Account(0.0 if self.level == inf else self.level)
        account.came += size
        if self.level == inf:
            return True
        if account.credit > 0 and size <= self._largest:
            account.credit -= size
            return True
        account.shed = True
        return False

    def look(self, room: Room) -> None:
        """Share out what the log may take until the next look."""
        now = self._monotonic()
        passed = now - self._looked_at
        if passed < LOOK_SECONDS:
            return
        written = (room.written - self._written) / passed
        self._looked_at, self._written = now, room.written
        if self.active:
            self._share_out(room.rate, passed)
            self._end_if_calm(room.rate, now)
        elif room.rate < written or room.rate == 0:
            self.active = True
            self.log.warn(
                "the disk has room for {rate} bytes a second, and {written} come: records of the "
                "heaviest agents are dropped first; make room",
                rate=int(room.rate),
                written=int(written),
            )

    def _share_out(self, rate: float, passed: float) -> None:
        weight = 1 - exp(-passed / MEMORY_SECONDS)
        gone, agents = [], 0
        for who, account in self._accounts.items():
            came, account.came = account.came / passed, 0
            account.rate += (came - account.rate) * (1 if account.rate < 0 else weight)
            agents += account.shed
            account.shed = False
            if account.rate < 1:
                gone.append(who)
        for who in gone:
            del self._accounts[who]
        self.agents = agents
        before = self.level
        # Refused by the log, all are alike; then nobody is to be blamed here.
        self.level = level(rate, (each.rate for each in self._accounts.values())) if rate else inf
        self._largest = rate * LARGEST_SECONDS
        if self.level == inf:
            return
        for account in self._accounts.values():
            credit = 0.0 if before == inf else account.credit
            account.credit = min(credit + self.level * passed, self.level * MEMORY_SECONDS)

    def _end_if_calm(self, rate: float, now: float) -> None:
        if not rate or self.level != inf:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= CALM_SECONDS:
            self._calm_since, self.active = None, False
            self._accounts.clear()
            self.log.info("the disk has room for the records of all agents again")

    def problems(self) -> list[str]:
        """What keeps records from being kept, for ``/ready``."""
        if self.level == inf:
            return []
        return [
            f"records of agents that send more than {int(self.level)} bytes a second are dropped: "
            "the volume of the event log is nearly full; make room"
        ]


def level(room: float, rates: Iterable[float]) -> float:
    """The most that each may take, so that all together take no more than ``room``.

    Args:
        room: to share out.
        rates: what each would take.

    Returns:
        The level; infinite when there is enough for all.
    """
    wanted = sorted(rates)
    for index, rate in enumerate(wanted):
        share = room / (len(wanted) - index)
        if rate > share:
            return share
        room -= rate
    return inf
