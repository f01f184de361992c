"""What ServiceDiscovery says of the other AgentCenters: whether agents can go there instead."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from elkeid.discovery.client import Known
from elkeid.discovery.load import has_room
from elkeid.discovery.registry import Record
from elkeid.web.client import CallFailed

LOOK_SECONDS: Final = 5.0
"""Between two looks: as often as instances renew what they say."""

KNOWN_SECONDS: Final = 15.0
"""An answer is believed so long. Without ServiceDiscovery agents find no other AgentCenter."""


DIAL_SECONDS: Final = 1.0
DIALS: Final = 3
"""Others tried in one look; agents try ten."""


async def reaches(reactor: Any, host: str, port: int) -> bool:
    """Whether a connection can be made; it is reset at once."""
    endpoint = HostnameEndpoint(reactor, host, port, timeout=DIAL_SECONDS)
    try:
        protocol: Any = await endpoint.connect(Factory.forProtocol(Protocol))
    except CancelledError:
        raise
    except Exception:  # whatever the reason, agents do not reach it either
        return False
    protocol.transport.abortConnection()
    return True


class Neighbours:
    """Looks again and again.

    Args:
        clock: for the pauses.
        lookup: gives all AgentCenters that ServiceDiscovery knows; fails with `CallFailed`.
        known: what a ServiceDiscovery last answered to it, and when by ``clock``.
        own: address and port by which ServiceDiscovery knows this one.
        reach: whether an address and port take a connection.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        lookup: Callable[[], Awaitable[Sequence[Record]]],
        known: Callable[[], Known | None],
        own: tuple[str, int],
        reach: Callable[[str, int], Awaitable[bool]],
    ) -> None:
        self._clock, self._lookup, self._known = clock, lookup, known
        self._own = own
        self._reach = reach
        self._reached: tuple[str, int] | None = None  # the last that took a connection
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
        return self._reached in self._with_room(known.records)

    def _with_room(self, records: Sequence[Record]) -> list[tuple[str, int]]:
        addresses = [(record.ip, record.port) for record in records if has_room(record)]
        return [address for address in addresses if address != self._own]

    async def _dial(self, records: Sequence[Record]) -> None:
        """Find one that can be reached: of one that crashed ServiceDiscovery learns late."""
        for address in self._with_room(records)[:DIALS]:
            if await self._reach(*address):
                self._reached = address
                return
        self._reached = None

    async def _look(self) -> None:
        try:
            await self._dial(await self._lookup())
        except CancelledError:
            return
        except CallFailed:
            pass  # the client has told the log already
        except Exception:
            self.log.failure("cannot tell which AgentCenters have room; trying on")
        if not self._stopped:
            self._timer = self._clock.callLater(LOOK_SECONDS, self.start)
