"""Telling gateways that configs changed, so that connected hosts need not come anew to get them.

Source: docs/protocol.md, "Configs".
"""

from collections.abc import Iterable
from typing import Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.manager.acpoll import Instance
from elkeid.manager.documents import Source
from elkeid.web.client import AnswerInvalid, CallFailed, Reply

PATH: Final = "/config/refresh"

CALL_SECONDS: Final = 5.0

PAUSES: Final = (1.0, 30.0)
"""Between tries for a gateway that was not reached: first, and at most."""

TRIES: Final = 30
"""For one gateway, some 13 minutes; ServiceDiscovery forgets a dead one sooner."""

NO_ROUTE: Final = 404
"""Gateways of upstream have no such route: their hosts are told when they connect next."""


class Http(Protocol):
    """Makes signed calls; `JsonClient`."""

    async def post(self, url: str, body: object, *, seconds: float) -> Reply:
        """POST JSON."""


class ConfigNews:
    """Tells every listed gateway, each on its own, until it has heard.

    Args:
        clock: for pauses.
        http: signs, and verifies the gateways' certificates.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, http: Http) -> None:
        self._clock, self._http = clock, http
        self._listed: set[str] = set()
        self._telling: dict[str, Deferred[None]] = {}
        self._again: set[str] = set()  # something changed while these were being told

    def changed(self, instances: Iterable[Instance]) -> None:
        """Take note of the gateways that there are; hosts of new ones ask anyway."""
        self._listed = {str(Source(each.ip, each.port)) for each in instances}

    def announce(self) -> None:
        """Configs changed: tell every gateway."""
        for gateway in self._listed:
            if gateway in self._telling:
                self._again.add(gateway)
            else:
                self._begin(gateway)

    def stop(self) -> None:
        """Tell nobody any more."""
        self._again.clear()
        for telling in list(self._telling.values()):
            telling.cancel()

    def _begin(self, gateway: str) -> None:
        telling = self._telling[gateway] = Deferred.fromCoroutine(self._tell(gateway))
        telling.addBoth(self._told, gateway)

    def _told(self, result: object, gateway: str) -> None:
        self._telling.pop(gateway, None)
        if isinstance(result, Failure):
            if not result.check(CancelledError):
                self.log.failure("telling {ac} failed", result, ac=gateway)
        elif gateway in self._again:
            self._again.discard(gateway)
            self._begin(gateway)

    async def _tell(self, gateway: str) -> None:
        pause, most = PAUSES
        await deferLater(self._clock, 0)  # whoever announces goes on first
        for _ in range(TRIES):
            if gateway not in self._listed:
                return
            self._again.discard(gateway)
            try:
                reply = await self._http.post(
                    f"https://{gateway}{PATH}", {"agent_ids": None}, seconds=CALL_SECONDS
                )
                if reply.status == NO_ROUTE:
                    return
                if reply.status != 200:
                    raise AnswerInvalid(f"HTTP {reply.status}: {reply.excerpt()}")
            except CallFailed as error:
                self.log.warn("{ac} does not hear of new configs: {e}", ac=gateway, e=error)
                await deferLater(self._clock, pause)
                pause = min(most, 2 * pause)
            else:
                return
