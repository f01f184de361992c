"""Ordered, awaited start and stop, each with a deadline.

Twisted's own services start and stop in one reactor turn and drop what their children return;
ours open logs, migrate databases and drain streams, which takes turns and can fail.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from elkeid.errors import OperatorError

STOP_SECONDS = 9.0  # for one role; the whole process must exit within 10 s of SIGTERM


class Role(Protocol):
    """A part that starts and stops once; ``name`` is the role name or that of a helper."""

    name: str

    async def start(self) -> None:
        """Open files and ports; return when ready to serve, raise when that cannot be."""

    async def stop(self) -> None:
        """Finish what was accepted, release everything; called once, after a failed start too."""


class OrderedRoles(Service):
    """Start roles one after another, stop them in reverse; one failing stop skips no other.

    Args:
        clock: for deadlines.
        roles: in start order.
        ready: called once when all have started.
        fatal: called with the error when one cannot start; the others are stopped first.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        roles: Sequence[Role],
        ready: Callable[[], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._clock, self._roles, self._ready, self._fatal = clock, roles, ready, fatal
        self._started: list[Role] = []
        self._starting: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin the start; its end is told to ``ready`` or ``fatal``."""
        super().startService()
        self._starting = Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        try:
            for role in self._roles:
                self._started.append(role)
                await role.start()
                if not self.running:
                    return
            self._ready()
        except BaseException as error:
            if not self.running:  # stopped meanwhile; the stop below does the rest
                return
            if isinstance(error, OperatorError):
                self.log.error("{error}", error=error)
            else:
                self.log.failure("start failed")
            await self._stop()
            self._fatal(error)

    def stopService(self) -> Deferred[None]:
        """Stop what was started, last first."""
        super().stopService()
        if self._starting is not None:
            self._starting.cancel()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._started:
            role = self._started.pop()
            try:
                stopping = Deferred.fromCoroutine(role.stop())
                stopping.addTimeout(STOP_SECONDS, self._clock)
                await stopping
            except DeferredTimeout:
                self.log.error("{name}: did not stop within {n} s", name=role.name, n=STOP_SECONDS)
            except Exception:
                self.log.failure("{name}: stop failed", name=role.name)
