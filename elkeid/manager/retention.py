"""Forgetting what was kept long enough, a little at a time.

Every Manager does it: of two that forget the same the second finds nothing.
"""

from collections.abc import Awaitable, Callable, Sequence

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elkeid.errors import StoreError

PAUSE_SECONDS = 600.0
"""Between two rounds: what is kept for days may stay ten minutes longer."""


@frozen
class Rule:
    """What is kept for how long.

    Attributes:
        what: for the log.
        seconds: how long.
        forget_some: forgets a bounded number of what is older than a unix time, in seconds, and
            says whether there may be more.
    """

    what: str
    seconds: float
    forget_some: Callable[[float], Awaitable[bool]]


class Retention:
    """Applies rules, again and again.

    Args:
        clock: for pauses.
        wall: seconds since the epoch.
        rules: what to forget.
    """

    log = Logger()

    def __init__(
        self, clock: IReactorTime, wall: Callable[[], float], rules: Sequence[Rule]
    ) -> None:
        self._wall, self._rules = wall, rules
        self._stopping = False
        self._round: Deferred[None] | None = None
        self._rounds = LoopingCall(self._begin)
        self._rounds.clock = clock

    def start(self) -> None:
        """Begin the first round after a pause."""
        self._rounds.start(PAUSE_SECONDS, now=False)

    async def stop(self) -> None:
        """Forget no more; what is being forgotten is forgotten whole."""
        self._stopping = True
        if self._rounds.running:
            self._rounds.stop()
        if self._round is not None:
            await self._round

    def _begin(self) -> "Deferred[None]":
        self._round = Deferred.fromCoroutine(self._once())
        return self._round

    async def _once(self) -> None:
        for rule in self._rules:
            before = self._wall() - rule.seconds
            try:
                while not self._stopping and await rule.forget_some(before):
                    pass
            except StoreError as error:
                self.log.warn("old {what} are kept: {error}", what=rule.what, error=error)
            except Exception:  # a LoopingCall ends for good at the first error
                self.log.failure("old {what} are kept; trying on", what=rule.what)
        self._round = None
