"""One timer for all agents: a wheel of short slots instead of a timer for each.

A reactor's own timers live in one heap, and thousands of agents that tick ten times a second
would keep it busy with nothing but itself.
"""

from math import ceil

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

SLOT_SECONDS = 0.01  # how exactly a tick is kept; real agents' tick is 0.1 s


class Ticked:
    """What the wheel calls: one slot at a time, the last one asked for."""

    __slots__ = ("due_slot",)

    def __init__(self) -> None:
        self.due_slot = -1

    def tick(self, now: float) -> float | None:
        """Work, and say when next (seconds on the clock); None: not until asked for again."""
        raise NotImplementedError

    def tick_failed(self) -> None:
        """`tick` raised; it will not be called again unless asked for."""
        raise NotImplementedError


class TimerWheel:
    """Calls each `Ticked` at the slot it asked for.

    Args:
        clock: for time and for the one timer of the wheel.

    Attributes:
        worst_lag: seconds by which the latest call was late; above a second or so the process
            has more to do than it can, and what it measures means nothing.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._slots: dict[int, list[Ticked]] = {}
        self._done = self._slot(clock.seconds())
        self._loop = LoopingCall(self._turn)
        self._loop.clock = clock
        self.worst_lag = 0.0

    @staticmethod
    def _slot(when: float) -> int:
        return ceil(when / SLOT_SECONDS - 1e-6)

    def start(self) -> None:
        """Begin to turn."""
        self._loop.start(SLOT_SECONDS, now=False)

    def stop(self) -> None:
        """Stop turning; whatever was asked for is forgotten."""
        if self._loop.running:
            self._loop.stop()
        self._slots.clear()

    def schedule(self, item: Ticked, when: float) -> None:
        """Call ``item`` at ``when`` (seconds on the clock) instead of whenever it was due."""
        slot = max(self._slot(when), self._done + 1)
        if item.due_slot != slot:
            item.due_slot = slot
            self._slots.setdefault(slot, []).append(item)

    def _turn(self) -> None:
        now = self._clock.seconds()
        current = int(now / SLOT_SECONDS + 1e-6)
        first = self._done + 1
        if current - first > 0:
            self.worst_lag = max(self.worst_lag, now - first * SLOT_SECONDS)
        for slot in range(first, current + 1):
            self._done = slot
            for item in self._slots.pop(slot, ()):
                if item.due_slot == slot:
                    item.due_slot = -1
                    self._call(item, now)

    def _call(self, item: Ticked, now: float) -> None:
        try:
            when = item.tick(now)
        except Exception:  # one agent's fault must not stop the others
            self.log.failure("a tick failed")
            item.tick_failed()
            return
        if when is not None:
            self.schedule(item, when)
