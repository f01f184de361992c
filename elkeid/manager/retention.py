"""Forgetting what was kept long enough, a little at a time.

Every Manager does it: of two that forget the same the second finds nothing.
"""

from collections.abc import Awaitable, Callable, Sequence

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elkeid.discovery.loops import Outage
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
        rounds: it is applied in one round of so many.
    """

    what: str
    seconds: float
    forget_some: Callable[[float], Awaitable[bool]]
    rounds: int = 1


class Retention:
    """Applies rules, again and again.

    Args:
        clock: for pauses.
        now: tells the time by which things are old, in unix seconds, or fails with `StoreError`;
            asked once a round.
        rules: what to forget.
    """

    log = Logger()

    def __init__(
        self, clock: IReactorTime, now: Callable[[], Awaitable[float]], rules: Sequence[Rule]
    ) -> None:
        self._now, self._rules = now, rules
        self._outage = Outage("what is old is kept")
        self._number = 0  # of the round
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
        self._number += 1
        try:
            now = await self._now()
        except StoreError as error:
            self._outage.failed(error)
        except Exception:  # a LoopingCall ends for good at the first error
            self.log.failure("nobody knows what is old, so it is kept; trying on")
        else:
            await self._apply(now)
        self._round = None

    async def _apply(self, now: float) -> None:
        failed = False
        for rule in self._rules:
            if self._number % rule.rounds or self._stopping:
                continue
            before = now - rule.seconds
            try:
                while not self._stopping and await rule.forget_some(before):
                    pass
            except StoreError as error:
                failed = True
                self._outage.failed(error)
            except Exception:  # as above
                self.log.failure("old {what} are kept; trying on", what=rule.what)
        if not failed:
            self._outage.worked()
