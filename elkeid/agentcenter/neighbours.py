"""What ServiceDiscovery says of the other AgentCenters: whether agents can go there instead."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from elkeid.discovery.client import Known
from elkeid.discovery.load import has_room
from elkeid.discovery.registry import Record
from elkeid.web.client import CallFailed

LOOK_SECONDS: Final = 5.0
"""Between two looks: as often as instances renew what they say."""

KNOWN_SECONDS: Final = 15.0
"""An answer is believed so long. Without ServiceDiscovery agents find no other AgentCenter."""


class Neighbours:
    """Looks again and again.

    Args:
        clock: for the pauses.
        lookup: gives all AgentCenters that ServiceDiscovery knows; fails with `CallFailed`.
        known: what a ServiceDiscovery last answered to it, and when by ``clock``.
        ip: by which ServiceDiscovery knows this one.
        port: the same.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        lookup: Callable[[], Awaitable[Sequence[Record]]],
        known: Callable[[], Known | None],
        ip: str,
        port: int,
    ) -> None:
        self._clock, self._lookup, self._known = clock, lookup, known
        self._own = (ip, port)
        self._timer: IDelayedCall | None = None
        self._looking: Deferred[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """Look now, and from then on."""
        self._timer = None
        self._looking = Deferred.fromCoroutine(self._look())

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._looking is not None:
            self._looking.cancel()

    def have_room(self) -> bool:
        """Whether agents that look now find another AgentCenter that can take them."""
        known = self._known()
        if known is None or self._clock.seconds() - known.at > KNOWN_SECONDS:
            return False
        return any(
            has_room(record) and (record.ip, record.port) != self._own for record in known.records
        )

    async def _look(self) -> None:
        try:
            await self._lookup()
        except CancelledError:
            return
        except CallFailed:
            pass  # the client has told the log already
        except Exception:
            self.log.failure("cannot tell which AgentCenters have room; trying on")
        if not self._stopped:
            self._timer = self._clock.callLater(LOOK_SECONDS, self.start)
