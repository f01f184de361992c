"""Ordered, awaited start and stop, each with a deadline.

Twisted's own services start and stop in one reactor turn and drop what their children return;
ours open logs, migrate databases and drain streams, which takes turns and can fail.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.errors import OperatorError

STOP_SECONDS = 9.0  # for all roles together: the process must exit within 10 s of SIGTERM
RESERVED_SECONDS = 0.3  # kept back for each role still to stop, so that one that hangs costs
# the others their comfort, not their chance; a role that needs more says so
LET_GO_SECONDS = 1.0  # for a start that was cancelled to close what it had opened


class Role(Protocol):
    """A part that starts and stops once; ``name`` is the role name or that of a helper.

    ``stop_seconds``, if it has one, is kept back for its stop while others stop before it.
    ``renew_keys``, if it has one, is called with the keys that were loaded again at SIGHUP.
    """

    name: str

    async def start(self) -> None:
        """Open files and ports; return when ready to serve, raise when that cannot be."""

    async def stop(self) -> None:
        """Finish what was accepted, release everything; called once, after a failed start too."""


class StopTimeout(Exception):
    """A role took longer to stop than it may."""


def sentence(error: BaseException) -> str | None:
    """What to tell the operator of an error that is known to end a start; None of a bug."""
    if isinstance(error, OperatorError):
        return str(error)
    if isinstance(error, CannotListenError):
        reason = getattr(error.socketError, "strerror", None) or error.socketError
        where = f"{error.interface or '*'}:{error.port}"
        return (
            f"cannot listen on {where}: {reason}; stop the process that holds the port, "
            "or choose another address or port in the settings"
        )
    return None


async def stop_each(log: Logger, *steps: Callable[[], Any]) -> None:
    """Take the steps of a stop one after another; one that fails is logged and skips no other.

    Args:
        log: of what stops.
        steps: plain functions, or ones that return something to wait for.

    Raises:
        CancelledError: time is up; the steps that were not begun are left out.
    """
    for step in steps:
        try:
            await maybeDeferred(step)
        except CancelledError:
            raise
        except Exception:
            log.failure("stopping: {step} failed", step=getattr(step, "__qualname__", step))


class OrderedRoles(Service):
    """Start roles one after another, stop them in reverse; one failing stop skips no other.

    Args:
        clock: for deadlines.
        makers: in start order; each makes its role when the ones before have started.
        ready: called once when all have started.
        fatal: called with the error when one cannot start; the others are stopped first.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        makers: Sequence[Callable[[], Role]],
        ready: Callable[[], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._clock, self._makers, self._ready, self._fatal = clock, makers, ready, fatal
        self._started: list[Role] = []
        self._starting: Deferred[None] | None = None  # None again when it is over
        self._stopping: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin the start; its end is told to ``ready`` or ``fatal``."""
        super().startService()
        self._starting = starting = Deferred.fromCoroutine(self._start())
        starting.addBoth(self._start_over)

    def stopService(self) -> Deferred[None]:
        """Stop what was started, last first; a start under way is abandoned."""
        super().stopService()
        if self._starting is not None:
            self._starting.cancel()
        return self._stop()

    async def _start(self) -> None:
        for make in self._makers:
            role = make()
            self._started.append(role)
            await role.start()
            if not self.running:
                return
        self._ready()

    def _start_over(self, result: Failure | None) -> None:
        self._starting = None
        if isinstance(result, Failure) and self.running:
            self._failed(result)  # else abandoned by stopService, which does the rest

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        assert error is not None
        if (text := sentence(error)) is not None:
            self.log.error("{text}", text=text)
        else:
            self.log.failure("start failed", failure)

        def tell(_: None) -> None:
            self._fatal(error)

        self._stop().addCallback(tell)

    def _stop(self) -> Deferred[None]:
        """Begin to stop, or join a stop under way; fires when it is over, never fails."""
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._stop_all())
        joined: Deferred[None] = Deferred()
        self._stopping.addCallback(lambda _: joined.callback(None))
        return joined

    async def _stop_all(self) -> None:
        end = self._clock.seconds() + STOP_SECONDS
        if self._starting is not None:
            # The start was cancelled, but its role does not let go at once.
            try:
                await self._within(LET_GO_SECONDS, self._starting)
            except StopTimeout:
                self.log.error("{name}: start does not end", name=self._started[-1].name)
        while self._started:
            role = self._started.pop()
            reserved = sum(
                getattr(each, "stop_seconds", RESERVED_SECONDS) for each in self._started
            )
            left = end - self._clock.seconds() - reserved
            try:
                await self._within(max(left, 0.0), Deferred.fromCoroutine(role.stop()))
            except StopTimeout:
                self.log.error("{name}: did not stop within {n:.1f} s", name=role.name, n=left)
            except Exception:
                self.log.failure("{name}: stop failed", name=role.name)

    def _within(self, seconds: float, work: Deferred[None]) -> Deferred[None]:
        """Fire as ``work`` ends, or fail with `StopTimeout`, even if ``work`` ignores that."""
        done: Deferred[None] = Deferred()

        def late() -> None:
            work.cancel()
            done.errback(StopTimeout())

        timer = self._clock.callLater(seconds, late)

        def ended(result: Any) -> None:
            if timer.active():
                timer.cancel()
                if isinstance(result, Failure):
                    done.errback(result)
                else:
                    done.callback(result)

        work.addBoth(ended)
        return done
