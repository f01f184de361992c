"""Python's cyclic garbage collector in a process with hundreds of thousands of live objects.

A full collection looks at every object: 40 µs for each connected agent, so 0.4 s at 10,000, in
which nothing else happens; and while a fleet comes in, the collector's own rule starts one after
another. But what lives here lives for days, and what dies is freed by reference counts: parts
that refer to each other let go when a connection ends. So the survivors are frozen every few
seconds, which takes them out of the collector's sight, and only a look every few hours frees
what formed a cycle by then.
"""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

YOUNG_OBJECTS: Final = 5_000
"""Made and not freed before a look at the young: 1 ms of work."""

YOUNG_LOOKS: Final = 5
"""Looks at the young before one at the middle generation: 5 ms of work."""

NEVER: Final = 1_000_000
"""Looks at the middle generation before a full one, which is ours to start."""

FREEZE_SECONDS: Final = 5.0
"""Between two freezes. Meanwhile a fleet that comes in makes 200,000 objects."""

FULL_SECONDS: Final = 6 * 3600.0
"""Between two looks at everything."""


class Pauses:
    """How long collections held up everything else, by generation."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._began: float | None = None
        self.count = [0, 0, 0]
        self.seconds = [0.0, 0.0, 0.0]
        self.longest = 0.0  # seconds, of any

    def __call__(self, phase: str, info: Mapping[str, int]) -> None:
        """What `gc.callbacks` calls at the start and the end of a collection."""
        if phase == "start":
            self._began = self._monotonic()
        elif self._began is not None:
            took, self._began = self._monotonic() - self._began, None
            self.count[info["generation"]] += 1
            self.seconds[info["generation"]] += took
            self.longest = max(self.longest, took)


pauses = Pauses()
"""Of this process: there is one collector."""


class Keeper:
    """Keeps the collector's pauses short from `start` to `stop`.

    Args:
        clock: for the intervals above.
        collector: the module `gc`, or a stand-in.
    """

    def __init__(self, clock: IReactorTime, collector: Any = gc) -> None:
        self._clock, self._gc = clock, collector
        self._thresholds: tuple[int, int, int] | None = None
        self._call: IDelayedCall | None = None
        self._full_at = 0.0

    def start(self) -> None:
        """Take over: what was imported and set up so far is frozen after a full look."""
        if self._thresholds is not None:
            return
        self._thresholds = self._gc.get_threshold()
        self._gc.callbacks.append(pauses)
        self._gc.set_threshold(YOUNG_OBJECTS, YOUNG_LOOKS, NEVER)
        self._look_at_all()

    def _look_at_all(self) -> None:
        self._gc.unfreeze()
        self._gc.collect()
        self._full_at = self._clock.seconds() + FULL_SECONDS
        self._freeze()

    def _freeze(self) -> None:
        self._gc.freeze()
        self._call = self._clock.callLater(FREEZE_SECONDS, self._due)

    def _due(self) -> None:
        if self._clock.seconds() >= self._full_at:
            self._look_at_all()
            return
        self._gc.collect(1)  # the young, or what is dead of them would be frozen
        self._freeze()

    def stop(self) -> None:
        """Give the collector back as it was."""
        if self._thresholds is None:
            return
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._gc.callbacks.remove(pauses)
        self._gc.set_threshold(*self._thresholds)
        self._gc.unfreeze()
        self._thresholds = None
