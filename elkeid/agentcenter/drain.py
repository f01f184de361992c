"""Leaving without losing a record: agents go elsewhere, what they sent is read to its end.

In this order, within a deadline:

1. ServiceDiscovery is told. If another AgentCenter has room, this one takes itself off the
   agents' list, and waits until every member that answers names another one first.
2. The agents' port is closed, if there is another AgentCenter: after a goodbye an agent dials
   the same address again. Else it stays open, and streams are refused: an agent that reaches no
   address at all counts failures, and ends itself at the seventh.
3. Every connection is told goodbye, spread over the time left, and read to its end.

Where several processes of a host share the port, one that drains alone leaves its agents to the
others. When all of them drain, each goes by what ServiceDiscovery lists, as a single process does.

A drain can be undone as long as the process lives: agents that were told goodbye stay away, new
ones are taken.

Source: docs/protocol.md, "AgentCenter API" and "What agents do".
"""

from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from elkeid.agentcenter.gateway import Gateway
from elkeid.discovery.client import DiscoveryClient
from elkeid.wire.grpc import Status

LISTED_SHARE: Final = 0.15
LISTED_SECONDS: Final = 10.0
"""Waited at most until others are named first: this share of all the time, and no longer."""

ASK_SECONDS: Final = 0.25  # pause between two looks at ServiceDiscovery's answer
LOOK_SECONDS: Final = 2.0  # the same when drained with the port open: another may come up
CLOSE_SECONDS: Final = 0.3  # beyond reading, for connections to close


class DrainState(StrEnum):
    """Where a drain stands."""

    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"


class Drain:
    """Takes one gateway out of service.

    Args:
        gateway: whose connections.
        discovery: where it is registered, and watches ``name``.
        name: under which agents look for it.
        address: under which it is registered; host and port.
        close_port: closes the agents' port; called again, it does nothing.
        open_port: opens it again, and registers it again, where either was undone.
        clock: for deadlines.
        siblings: whether other processes of this host share the port: they take its agents, and
            another process registers the address for all of them.
    """

    log = Logger()

    def __init__(
        self,
        gateway: Gateway,
        discovery: DiscoveryClient,
        *,
        name: str,
        address: tuple[str, int],
        close_port: Callable[[], Awaitable[None]],
        open_port: Callable[[], None],
        clock: IReactorTime,
        siblings: bool = False,
    ) -> None:
        self._siblings = siblings
        self._others_stay = siblings  # at the drain under way, or at one by `finish`
        self._gateway, self._discovery, self._clock = gateway, discovery, clock
        self._name, self._address = name, address
        self._close_port, self._open_port = close_port, open_port
        self.state = DrainState.SERVING
        self.end = 0.0  # seconds of the clock; when it must be over
        self._running: Deferred[None] | None = None

    def begin(
        self, seconds: float, then: Callable[[], None] | None = None, *, together: bool = False
    ) -> None:
        """Drain within ``seconds``; afterwards call ``then``, or stay as it is, drained.

        ``together`` says that the other processes of this host drain too.
        """
        self._others_stay = self._siblings and not together
        self._running = Deferred.fromCoroutine(self._run(seconds, then))
        self._running.addErrback(lambda failure: self.log.failure("drain failed", failure))

    def undo(self) -> None:
        """Take agents again, and tell ServiceDiscovery; where nothing is drained, do nothing.

        Raises:
            OperatorError: the agents' port cannot be opened; it stays as it is.
        """
        if self.state is DrainState.SERVING:
            return
        self._open_port()
        if self._running is not None:
            self._running.cancel()
        gateway = self._gateway
        gateway.draining, gateway.closed, gateway.farewell = None, False, None
        self.state, self._others_stay = DrainState.SERVING, self._siblings
        self.log.info("serving again; {n} connections stayed", n=len(gateway.links))
        told = Deferred.fromCoroutine(self._discovery.renew())
        told.addErrback(lambda failure: self.log.failure("cannot tell of it", failure))

    async def finish(self, seconds: float) -> None:
        """Drain within ``seconds`` because the process stops; one under way is cut short."""
        if self._running is not None:
            self._running.cancel()
        if self.state is not DrainState.DRAINED:
            await self._drain(seconds)

    async def _run(self, seconds: float, then: Callable[[], None] | None) -> None:
        try:
            await self._drain(seconds)
            if then is not None:
                then()
            elif not self._gateway.closed:
                await self._close_when_others_have_room()
        except CancelledError:
            return  # by `finish`

    async def _drain(self, seconds: float) -> None:
        self.state = DrainState.DRAINING
        gateway, now = self._gateway, self._clock.seconds()
        self.end = now + seconds
        self.log.info(
            "draining {n} connections within {seconds:g} s", n=len(gateway.links), seconds=seconds
        )
        await self._within(min(LISTED_SECONDS, seconds * LISTED_SHARE), self._go_off_the_list())
        if self._others_have_room():
            await self._close()
        gateway.draining = Status.UNAVAILABLE
        left = self.end - self._clock.seconds()
        reading = min(gateway.settings.drain_seconds + CLOSE_SECONDS, left)
        gone = gateway.take_leave(max(left - reading, 0.0))
        if not await self._within(max(left, 0.0), gone):
            assert gateway.farewell is not None
            self.log.warn(
                "{n} connections did not end in time and were reset", n=len(gateway.farewell)
            )
            gateway.abort()
        self.state = DrainState.DRAINED
        self.log.info("drained")

    async def _go_off_the_list(self) -> None:
        await self._discovery.renew()  # it knows now that we are draining
        if self._others_stay or not self._others_have_room():
            return
        await self._discovery.deregister(self._name)
        while not await self._discovery.leads_elsewhere(self._name, *self._address):
            await deferLater(self._clock, ASK_SECONDS)

    async def _close_when_others_have_room(self) -> None:
        while not self._others_have_room():
            await deferLater(self._clock, LOOK_SECONDS)
        await self._discovery.deregister(self._name)
        await self._close()
        self._gateway.abort()

    def _others_have_room(self) -> bool:
        return self._others_stay or self._discovery.room_elsewhere(self._name, *self._address)

    async def _close(self) -> None:
        self._gateway.closed = True
        await self._close_port()

    async def _within(
        self, seconds: float, work: Deferred[None] | Coroutine[Deferred[None], Any, None]
    ) -> bool:
        """Wait for ``work`` at most so long; say whether it is done."""
        running = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
        running.addTimeout(seconds, self._clock)
        try:
            await running
        except DeferredTimeout:
            return False
        return True
