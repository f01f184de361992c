"""Jobs that are done again and again, and what is said of those that fail for a while."""

from collections.abc import Awaitable, Callable, Sequence

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

AFTER_BUG_SECONDS = 5.0


class Loop:
    """Runs a job again and again; the job says after how many seconds."""

    log = Logger()

    def __init__(self, clock: IReactorTime, job: Callable[[], Awaitable[float]]) -> None:
        self._clock, self._job = clock, job
        self._call: IDelayedCall | None = None
        self._stopped = False
        self.running: Deferred[None] | None = None

    def start(self) -> None:
        """Run now."""
        self._call = None
        self.running = Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        try:
            pause = await self._job()
        except CancelledError:
            return
        except Exception:
            self.log.failure("a repeated job failed; it goes on")
            pause = AFTER_BUG_SECONDS
        self.running = None
        if not self._stopped:
            self._call = self._clock.callLater(pause, self.start)

    def stop(self) -> Deferred[None] | None:
        """Run no more; return what fires when a present run has ended, if there is one."""
        self._stopped = True
        if self._call is not None and self._call.active():
            self._call.cancel()
        return self.running


@define
class Outage:
    """Says once when something begins to fail, and once when it works again."""

    what: str
    failures: int = 0
    log = Logger()

    def failed(self, reason: object) -> None:
        """It failed."""
        if not self.failures:
            self.log.warn("{what}: {reason}; trying on", what=self.what, reason=reason)
        self.failures += 1

    def worked(self) -> None:
        """It worked."""
        if self.failures:
            self.log.info("{what}: works again", what=self.what)
        self.failures = 0

    def pause(self, usual: float, retries: Sequence[float]) -> float:
        """Seconds until the next try: as usual, or one of ``retries`` after so many failures."""
        if not self.failures:
            return usual
        return min(usual, retries[min(self.failures, len(retries)) - 1])
