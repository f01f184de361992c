"""Keeping agents' status fresh: every AgentCenter is asked again and again, each on its own.

One that is slow or dead delays nobody else, and costs its agents only the word on whether they
are connected; what they reported last stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from elkeid.config import is_host
from elkeid.errors import StoreError
from elkeid.manager.documents import Source
from elkeid.manager.store.agents import Applied
from elkeid.metrics import ManagerMetrics
from elkeid.web.client import AnswerInvalid, CallFailed, JsonClient, Reply

AC_NAME = "hids_svr_http"
"""Under this name AgentCenters' HTTP APIs register with ServiceDiscovery."""

CALL_SECONDS = 15.0
"""For one answer; 10,000 agents are some 50 MB."""

ANSWER_BYTES = 256 << 20
"""Of one answer: 50,000 agents of an AC that knows no cursor; others answer in parts."""

WHOLE_SECONDS = 180.0
"""Pause for an AC that knows no cursor and sends everything each time: upstream's own pace."""

SKEW_SECONDS = 2.0
"""A smaller difference of clocks is within what a Date header, cut to seconds, can tell."""

FORGET_SECONDS = 10.0
"""An AC silent for so long: nobody knows any more which agents it holds."""

CURSOR_CHARACTERS = 256
"""A longer cursor is not sent back."""

AC_LIMIT = 1_000
"""AgentCenters polled; each serves thousands of agents."""


class Reports(Protocol):
    """Where reports go: to the store of agents, as a rule by way of `ClaimWatch`."""

    async def apply(
        self, source: Source, items: Sequence[msgspec.Raw], skew: float
    ) -> tuple[Applied, list[str]]:
        """Store entries of a report; see `AgentStatus.apply`."""

    async def left(self, source: Source, ids: Iterable[str]) -> None:
        """Agents have left an AC."""

    async def keep_only(self, source: Source, ids: Iterable[str]) -> None:
        """An AC has these agents and no others."""

    async def heard(self, source: Source, pause: float) -> None:
        """All that an AC said is stored; it is asked again after a pause, in seconds."""

    async def forget(self, source: Source) -> None:
        """An AC cannot be asked, so that nobody knows whom it has."""


class Instance(Protocol):
    """What ServiceDiscovery says of an AC, as far as it matters here."""

    @property
    def ip(self) -> str:
        """IPv4, IPv6 without brackets, or a name."""

    @property
    def port(self) -> int:
        """Of its HTTP API."""


@frozen
class PollState:
    """How the polling of one AC goes.

    Args:
        problem: why the last poll failed, or None.
        skew: its clock minus ours, seconds.
        silence: seconds since the last good answer; since the polling began, if there is none.
    """

    problem: str | None
    skew: float
    silence: float


class StatAnswer(msgspec.Struct):
    """Body of ``GET /conn/stat``. Upstream's has no ``cursor`` and is always complete.

    One with ``more`` goes on in the answer to its cursor, and is complete together with it.
    """

    code: int
    msg: str = ""
    data: list[msgspec.Raw] | None = None
    cursor: str | None = None
    gone: list[str] | None = None
    complete: bool | None = None
    more: bool | None = None


NOT_YET = "not polled yet"
"""Before the first answer."""


class AcPoller:
    """Polls one AgentCenter until it is stopped.

    Args:
        clock: for pauses.
        http: signs, and verifies the AC's certificate.
        source: the AC.
        agents: where the reports go.
        metrics: counts.
        poll_seconds: pause between an answer and the next query.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        http: JsonClient,
        source: Source,
        agents: Reports,
        metrics: ManagerMetrics,
        *,
        poll_seconds: float,
    ) -> None:
        self._clock, self._http, self._agents, self._metrics = clock, http, agents, metrics
        self.source, self._poll_seconds = source, poll_seconds
        self._cursor = ""  # an empty one says that we know what to do with cursors
        self._present: set[str] | None = None  # who is there, while everybody is being told
        self._stopped = False
        self._forgotten = True  # nobody is known to be connected
        self.silent_since = clock.seconds()
        self._running: Deferred[None] | None = None
        self._call: Deferred[Reply] | None = None
        self._next: IDelayedCall | None = None
        self.problem: str | None = NOT_YET
        self.skew = 0.0  # its clock minus ours, seconds

    def start(self) -> None:
        """Poll now, then again and again."""
        self._next = None
        self._running = Deferred.fromCoroutine(self._run())

    async def stop(self) -> None:
        """Poll no more; a report that is being stored is stored whole."""
        self._stopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._call is not None:
            self._call.cancel()
        if self._running is not None:
            await self._running

    async def _run(self) -> None:
        pause = self._poll_seconds
        try:
            pause = await self._poll()
        except CancelledError:
            return
        except (CallFailed, StoreError) as error:
            await self._failed(str(error))
        except Exception:
            self.log.failure("polling {ac} failed; trying on", ac=self.source)
            await self._failed("internal error, see the log")
        self._running = None
        if not self._stopped:
            self._next = self._clock.callLater(pause, self.start)

    async def _poll(self) -> float:
        self._call = Deferred.fromCoroutine(
            self._http.get(
                f"https://{self.source}/conn/stat",
                {"since": self._cursor},
                seconds=CALL_SECONDS,
                limit=ANSWER_BYTES,
            )
        )
        try:
            reply = await self._call
        finally:
            self._call = None
        answer = reply.decode(StatAnswer)
        if answer.code != 0:
            raise AnswerInvalid(f"https://{self.source}/conn/stat: code {answer.code}")
        self.skew = reply.skew or 0.0
        skew = self.skew if abs(self.skew) >= SKEW_SECONDS else 0.0
        applied, ids = await self._agents.apply(self.source, answer.data or [], skew)
        if answer.cursor is None or answer.complete:
            self._present = set()
        if self._present is not None:
            self._present.difference_update(answer.gone or ())
            self._present.update(ids)
            if not answer.more:
                await self._agents.keep_only(self.source, self._present)
                self._present = None
        elif answer.gone:
            await self._agents.left(self.source, answer.gone)
        # Only now: what could not be stored is asked for again.
        known = answer.cursor is not None and len(answer.cursor) <= CURSOR_CHARACTERS
        self._cursor = answer.cursor if known and answer.cursor else ""
        if known and answer.more:
            pause = 0.0
        else:
            pause = self._poll_seconds if known else max(self._poll_seconds, WHOLE_SECONDS)
        await self._agents.heard(self.source, pause)
        self._worked(applied)
        return pause

    def _worked(self, applied: Applied) -> None:
        self._metrics.polls.labels("answered").inc()
        for outcome in ("added", "changed", "unchanged", "stale", "malformed"):
            self._metrics.reports.labels(outcome).inc(getattr(applied, outcome))
        if self.problem is not None:
            self.log.info("AgentCenter {ac}: polled", ac=self.source)
        self.problem = None
        self._forgotten = False
        self.silent_since = self._clock.seconds()

    async def _failed(self, reason: str) -> None:
        self._metrics.polls.labels("failed").inc()
        if self.problem != reason:
            self.log.warn("AgentCenter {ac}: {reason}; trying on", ac=self.source, reason=reason)
        self.problem = reason
        silent = self._clock.seconds() - self.silent_since
        if silent < FORGET_SECONDS or self._forgotten or self._stopped:
            return
        try:
            await self._agents.forget(self.source)
        except StoreError:
            return  # next time
        self._forgotten, self._cursor = True, ""


class AcPoll:
    """Polls every AgentCenter that ServiceDiscovery lists.

    Args:
        clock: for pauses.
        http: signs, and verifies ACs' certificates.
        agents: where the reports go.
        metrics: counts.
        poll_seconds: pause between an answer and the next query.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        http: JsonClient,
        agents: Reports,
        metrics: ManagerMetrics,
        *,
        poll_seconds: float,
    ) -> None:
        self._clock, self._http, self._agents, self._metrics = clock, http, agents, metrics
        self._poll_seconds = poll_seconds
        self._pollers: dict[Source, AcPoller] = {}
        self._told = False  # ServiceDiscovery has answered
        self._ending: set[Deferred[None]] = set()

    def changed(self, records: Sequence[Instance]) -> None:
        """Poll these ACs from now on, and no others."""
        self._told = True
        wanted = {
            Source(record.ip, record.port)
            for record in records
            if is_host(record.ip) and 0 < record.port < 1 << 16
        }
        if len(wanted) > AC_LIMIT:
            self.log.error("more than {n} AgentCenters: some are not polled", n=AC_LIMIT)
            wanted = set(sorted(wanted, key=str)[:AC_LIMIT])
        for source in self._pollers.keys() - wanted:
            ending = Deferred.fromCoroutine(self._end(self._pollers.pop(source)))
            self._ending.add(ending)
            ending.addBoth(self._ended, ending)
        for source in wanted - self._pollers.keys():
            poller = AcPoller(
                self._clock,
                self._http,
                source,
                self._agents,
                self._metrics,
                poll_seconds=self._poll_seconds,
            )
            self._pollers[source] = poller
            poller.start()

    async def _end(self, poller: AcPoller) -> None:
        await poller.stop()
        try:
            await self._agents.forget(poller.source)
        except StoreError as error:
            self.log.warn("{ac} is gone: {error}", ac=poller.source, error=error)

    def _ended(self, result: object, ending: "Deferred[None]") -> None:
        self._ending.discard(ending)
        if result is not None:
            self.log.error("the end of a poll failed: {result}", result=result)

    def problems(self) -> list[str]:
        """What keeps agents' status from being fresh, for ``/ready``.

        Anybody may read it: it does not say where AgentCenters are.
        """
        if not self._told:
            return ["ServiceDiscovery has not told the AgentCenters yet"]
        if not self._pollers:
            return [f"ServiceDiscovery lists no AgentCenter ({AC_NAME})"]
        found = [each.problem for each in self._pollers.values() if each.problem is not None]
        of_all = f"of {len(self._pollers)} AgentCenters"
        problems = []
        if waiting := found.count(NOT_YET):
            problems.append(f"{waiting} {of_all} yet to be polled")
        if failing := len(found) - waiting:
            problems.append(f"{failing} {of_all} cannot be polled, the log says which and why")
        return problems

    def states(self) -> Mapping[Source, PollState]:
        """How the polling of each AC goes."""
        now = self._clock.seconds()
        return {
            source: PollState(poller.problem, poller.skew, now - poller.silent_since)
            for source, poller in self._pollers.items()
        }

    def skews(self) -> Mapping[str, float]:
        """AC address -> its clock minus ours, seconds."""
        return {str(source): poller.skew for source, poller in self._pollers.items()}

    async def stop(self) -> None:
        """Poll nobody any more."""
        pollers, self._pollers = list(self._pollers.values()), {}
        for poller in pollers:
            await poller.stop()
        for ending in list(self._ending):
            await ending
