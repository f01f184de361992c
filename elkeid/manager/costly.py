"""What is costly to get, got once for everybody who asks at about the same time."""

from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

T = TypeVar("T")

FRESH_SECONDS: Final = 1.0
"""An answer that is no older serves everybody who asks, unless told otherwise."""


class Shared(Generic[T]):
    """An answer that is costly to get, for everybody who asks while it is fresh.

    Args:
        clock: for its age.
        make: gets it.
        seconds: an answer that is no older is fresh.
        share: getting it takes at most one part in so many of the time: an answer that took long
            is fresh for longer.
        patient: whether who asks while it is got anew waits; else the one before will do.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        make: Callable[[], Coroutine[Any, Any, T]],
        *,
        seconds: float = FRESH_SECONDS,
        share: float = 0,
        patient: bool = True,
    ) -> None:
        self._clock, self._make = clock, make
        self._seconds, self._share, self._patient = seconds, share, patient
        self._waiting: list[Deferred[T]] | None = None  # None: nobody is getting it
        self._value: T | None = None
        self._begun = self._fresh_until = 0.0

    async def get(self) -> T:
        """The answer, at once or when it is there."""
        now, begin = self._clock.seconds(), self._waiting is None
        if self._value is not None and (now < self._fresh_until or not (begin or self._patient)):
            return self._value
        waiting = self._waiting = self._waiting or []
        answer: Deferred[T] = Deferred(waiting.remove)
        waiting.append(answer)
        if begin:
            self._begun = now
            Deferred.fromCoroutine(self._make()).addBoth(self._got)
        return await answer

    def _got(self, result: Any) -> None:
        waiting, self._waiting = self._waiting or [], None
        if isinstance(result, Failure):
            if not waiting:
                self.log.failure("nobody waits for this failure", result)
            for each in list(waiting):
                each.errback(result)
            return
        now = self._clock.seconds()
        self._value = result
        self._fresh_until = now + max(self._seconds, self._share * (now - self._begun))
        for each in list(waiting):
            each.callback(result)
