"""Telling gateways that something changed, so that they need not find out by themselves.

Source: docs/protocol.md, "Configs" and "Tags".
"""

from collections.abc import Collection, Iterable
from typing import Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.manager.acpoll import Instance
from elkeid.manager.documents import Source
from elkeid.web.client import AnswerInvalid, CallFailed, Reply

CONFIG_PATH: Final = "/config/refresh"
TAGS_PATH: Final = "/tags/refresh"

CALL_SECONDS: Final = 5.0

PAUSES: Final = (1.0, 30.0)
"""Between tries for a gateway that was not reached: first, and at most."""

TRIES: Final = 30
"""For one gateway, some 13 minutes; ServiceDiscovery forgets a dead one sooner."""

NO_ROUTE: Final = 404
"""Gateways of upstream have no such routes: they ask at their own pace."""

IDS_LIMIT: Final = 5_000
"""Hosts named in one call; news of more concern every host."""


RECENT_SECONDS: Final = 60.0
"""Since news was announced: a gateway that is listed within it is told too. Its agents may have
asked before, as it serves them some seconds before ServiceDiscovery lists it here."""


class Http(Protocol):
    """Makes signed calls; `JsonClient`."""

    async def post(self, url: str, body: object, *, seconds: float) -> Reply:
        """POST JSON."""


class _Untold:
    """What a gateway has not heard yet: some ids, or that everybody is concerned."""

    def __init__(self) -> None:
        self.ids: set[str] | None = set()

    def add(self, ids: Collection[str] | None) -> None:
        if ids is None or self.ids is None or len(self.ids) + len(ids) > IDS_LIMIT:
            self.ids = None
        else:
            self.ids.update(ids)


class News:
    """Tells every listed gateway, each on its own, until it has heard.

    Args:
        clock: for pauses.
        http: signs, and verifies the gateways' certificates.
        path: where gateways hear of it.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, http: Http, path: str) -> None:
        self._clock, self._http, self._path = clock, http, path
        self._listed: set[str] = set()
        self._telling: dict[str, Deferred[None]] = {}
        self._untold: dict[str, _Untold] = {}
        self._recent = _Untold()  # what was announced lately
        self._recent_until = 0.0

    def changed(self, instances: Iterable[Instance]) -> None:
        """Take note of the gateways that there are; tell new ones what was announced lately."""
        before = self._listed
        self._listed = {str(Source(each.ip, each.port)) for each in instances}
        if self._clock.seconds() < self._recent_until:
            for gateway in self._listed - before:
                self._note(gateway, self._recent.ids)

    def announce(self, agent_ids: Collection[str] | None = None) -> None:
        """Something changed for these hosts, or for all: tell every gateway."""
        now = self._clock.seconds()
        if now >= self._recent_until:
            self._recent = _Untold()
        self._recent.add(agent_ids)
        self._recent_until = now + RECENT_SECONDS
        for gateway in self._listed:
            self._note(gateway, agent_ids)

    def _note(self, gateway: str, agent_ids: Collection[str] | None) -> None:
        self._untold.setdefault(gateway, _Untold()).add(agent_ids)
        if gateway not in self._telling:
            self._begin(gateway)

    def stop(self) -> None:
        """Tell nobody any more."""
        self._untold.clear()
        self._recent_until = 0.0
        for telling in list(self._telling.values()):
            telling.cancel()

    def _begin(self, gateway: str) -> None:
        telling = self._telling[gateway] = Deferred.fromCoroutine(self._tell(gateway))
        telling.addBoth(self._told, gateway)

    def _told(self, result: object, gateway: str) -> None:
        self._telling.pop(gateway, None)
        if isinstance(result, Failure):
            self._untold.pop(gateway, None)
            if not result.check(CancelledError):
                self.log.failure("telling {ac} failed", result, ac=gateway)
        elif gateway in self._untold:
            self._begin(gateway)

    async def _tell(self, gateway: str) -> None:
        """Tell what is untold now; what comes meanwhile is told after it."""
        pause, most = PAUSES
        await deferLater(self._clock, 0)  # whoever announces goes on first
        for _ in range(TRIES):
            untold = self._untold.pop(gateway, None)
            if untold is None or gateway not in self._listed:
                return
            ids = None if untold.ids is None else sorted(untold.ids)
            try:
                reply = await self._http.post(
                    f"https://{gateway}{self._path}", {"agent_ids": ids}, seconds=CALL_SECONDS
                )
                if reply.status == NO_ROUTE:
                    return
                if reply.status != 200:
                    raise AnswerInvalid(f"HTTP {reply.status}: {reply.excerpt()}")
            except CallFailed as error:
                self._untold.setdefault(gateway, _Untold()).add(ids)
                self.log.warn("{ac}{path} is not told: {e}", ac=gateway, path=self._path, e=error)
                await deferLater(self._clock, pause)
                pause = min(most, 2 * pause)
            else:
                return
        self._untold.pop(gateway, None)
