"""What hosts were sent last, by this AgentCenter or another one: the newest delivery counts.

ServiceDiscovery may send a host to another AgentCenter than the one that knows it. So when the
Manager is away all are asked, and of what they know the latest is used.

Source: docs/protocol.md, "Configs".
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol
from urllib.parse import urlencode

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.agentcenter.config_store import ConfigStore, Delivered
from elkeid.agentcenter.configs import Config, ConfigInvalid, Entry, config_of, entries_of
from elkeid.config import join_endpoint
from elkeid.web.answers import Enveloped
from elkeid.web.client import CallFailed, JsonClient
from elkeid.web.refusals import ParameterInvalid
from elkeid.web.routes import AuthKind, Call, Routes

PATH: Final = "/config/last"

PEER_SECONDS: Final = 2.0
"""For a peer's answer."""

SEARCH_SECONDS: Final = 4.0
"""For all answers of one peer, which may tell little in each: what came by then counts. A host
that waits is to have its config within 10 s."""

PEER_LIMIT: Final = 64
"""Peers that are asked anything; each serves thousands of hosts."""

REST_SECONDS: Final = 10.0
"""A peer that did not answer is left alone so long: hosts wait for the slowest."""

GATHER_SECONDS: Final = 0.05
"""Hosts that come together are asked for together."""

BATCH: Final = 100
"""Ids of one question: a request line has room for some 300 UUIDs."""

BATCHES: Final = 8
"""Questions under way at once, to each peer."""

ANSWER_BYTES: Final = 32 << 20
"""Of one answer: a config of 4 MiB beside `TELL_BYTES` of others, in JSON."""

TELL_BYTES: Final = 8 << 20
"""Of the configs in one answer, encoded; hosts beyond are named, to be asked for again."""

SKEW_SECONDS: Final = 2.0
"""A smaller difference of clocks is within what a Date header can tell."""


class Instance(Protocol):
    """What ServiceDiscovery says of an AgentCenter, as far as it matters here."""

    @property
    def ip(self) -> str:
        """IPv4, IPv6 without brackets, or a name."""

    @property
    def port(self) -> int:
        """Of its HTTP API."""


class LastConfig(msgspec.Struct):
    """The last delivery to one host, as peers tell it; times are unix seconds.

    An empty config counts only where ``allow_empty`` says that it is meant.
    """

    agent_id: str
    delivered_at: float
    config: list[Entry]
    allow_empty: bool = False


class _Answer(msgspec.Struct):
    code: int
    data: list[LastConfig] | None = None
    more: list[str] | None = None


class LastQuery(msgspec.Struct):
    """Query of ``GET /config/last``; the id may be given many times."""

    agent_id: list[str]


class Peers:
    """Asks the other AgentCenters.

    Args:
        clock: for pauses.
        http: signs, and verifies their certificates.
        own: ``host:port`` of this one's API, as ServiceDiscovery lists it.
        wall: unix seconds.
    """

    log = Logger()

    def __init__(
        self, clock: IReactorTime, http: JsonClient, own: str, wall: Callable[[], float]
    ) -> None:
        self._clock, self._http, self._own, self._wall = clock, http, own, wall
        self._addresses: list[str] = []
        self._resting: dict[str, float] = {}  # address -> when it is asked again
        self.failures = 0

    def changed(self, instances: Sequence[Instance]) -> None:
        """Take note of who is there, as ServiceDiscovery says."""
        self._addresses = self.others(instances)

    def others(self, instances: Sequence[Instance]) -> list[str]:
        """``host:port`` of the APIs of all of these but this one, as many as are asked."""
        addresses = {join_endpoint(each.ip, each.port) for each in instances}
        return sorted(addresses - {self._own})[:PEER_LIMIT]

    @property
    def addresses(self) -> Sequence[str]:
        """``host:port`` of the others' APIs."""
        return self._addresses

    async def ask(self, agent_ids: Sequence[str]) -> dict[str, Delivered]:
        """The newest delivery to each of these hosts that any peer knows of."""
        now = self._clock.seconds()
        awake = [each for each in self._addresses if self._resting.get(each, 0.0) <= now]
        asked = [Deferred.fromCoroutine(self._ask(each, agent_ids)) for each in awake]
        newest: dict[str, Delivered] = {}
        for answer in asked:
            for agent_id, delivered in (await answer).items():
                if agent_id not in newest or delivered.at > newest[agent_id].at:
                    newest[agent_id] = delivered
        return newest

    async def _ask(self, address: str, agent_ids: Sequence[str]) -> dict[str, Delivered]:
        found: dict[str, Delivered] = {}
        left = list(agent_ids)
        until = self._clock.seconds() + SEARCH_SECONDS
        while left and (seconds := min(PEER_SECONDS, until - self._clock.seconds())) > 0:
            try:
                told, more = await self._ask_once(address, left, seconds)
            except CallFailed as error:
                self.failures += 1
                self._resting[address] = self._clock.seconds() + REST_SECONDS
                self.log.info("{peer}: no last configs: {error}", peer=address, error=error)
                break
            found |= told
            left = [agent_id for agent_id in left if agent_id in more and agent_id not in told]
            if not told:
                break
        return found

    async def _ask_once(
        self, address: str, agent_ids: Sequence[str], seconds: float
    ) -> tuple[dict[str, Delivered], set[str]]:
        """What a peer tells of these hosts, and those that it has no room for."""
        query = urlencode([("agent_id", agent_id) for agent_id in agent_ids])
        reply = await self._http.get(
            f"https://{address}{PATH}?{query}", seconds=seconds, limit=ANSWER_BYTES
        )
        answer = reply.decode(_Answer)
        skew = reply.skew if reply.skew is not None and abs(reply.skew) > SKEW_SECONDS else 0.0
        asked, told = set(agent_ids), dict[str, Delivered]()
        for each in answer.data or ():
            if each.agent_id not in asked or not (each.config or each.allow_empty):
                continue
            try:
                config = config_of(each.config)
            except ConfigInvalid as error:
                self.log.warn("{peer}: {error}", peer=address, error=error)
                continue
            # No clock of another shall make an old config newer than one of a moment ago.
            told[each.agent_id] = Delivered(config, min(each.delivered_at - skew, self._wall()))
        return told, set(answer.more or ())


class LastConfigs:
    """Remembers deliveries, and finds the newest there is.

    Args:
        store: of this AgentCenter.
        peers: the others.
        clock: for gathering.
        wall: unix seconds.
    """

    log = Logger()

    def __init__(
        self, store: ConfigStore, peers: Peers, clock: IReactorTime, wall: Callable[[], float]
    ) -> None:
        self._store, self._peers, self._clock, self._wall = store, peers, clock, wall
        self._waiting: dict[str, list[Deferred[Config | None]]] = {}
        self._gathering: IDelayedCall | None = None
        self._batches = 0

    def delivered(self, agent_id: str, config: Config) -> None:
        """A host was sent its present config."""
        self._store.save(agent_id, Delivered(config, self._wall()))

    def newest(self, agent_id: str) -> Deferred[Config | None]:
        """What a host was sent last, here or at a peer; never fails."""
        answer: Deferred[Config | None] = Deferred()
        self._waiting.setdefault(agent_id, []).append(answer)
        if self._gathering is None:
            self._gathering = self._clock.callLater(GATHER_SECONDS, self._gathered)
        return answer

    def stop(self) -> None:
        """Look for nothing more."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        self._waiting.clear()

    def _gathered(self) -> None:
        self._gathering = None
        while self._waiting and self._batches < BATCHES:
            ids = list(self._waiting)[:BATCH]
            batch = {agent_id: self._waiting.pop(agent_id) for agent_id in ids}
            self._batches += 1
            Deferred.fromCoroutine(self._find(batch)).addBoth(self._done, batch)

    def _done(self, result: object, batch: dict[str, list[Deferred[Config | None]]]) -> None:
        self._batches -= 1
        found: dict[str, Delivered] = {}
        if isinstance(result, Failure):
            self.log.failure("looking for last configs failed", result)
        elif isinstance(result, dict):
            found = result
        for agent_id, answers in batch.items():
            delivered = found.get(agent_id)
            for answer in answers:
                answer.callback(None if delivered is None else delivered.config)
        if self._gathering is None:
            self._gathered()

    async def _find(self, batch: dict[str, list[Deferred[Config | None]]]) -> dict[str, Delivered]:
        ids = list(batch)
        peers = Deferred.fromCoroutine(self._peers.ask(ids))
        own = await self._store.get(ids)
        found = dict(own)
        for agent_id, delivered in (await peers).items():
            mine = own.get(agent_id)
            if mine is None or delivered.at > mine.at:
                found[agent_id] = delivered
                self._store.save(agent_id, delivered)
        return found


class LastConfigRoutes:
    """Tells peers, and whoever else asks, what hosts were sent last.

    Args:
        store: of this AgentCenter.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self, store: ConfigStore) -> None:
        self._store = store

    @routes.get(
        PATH,
        query=LastQuery,
        answer=list[LastConfig],
        summary="The last config that hosts were sent by this AgentCenter",
    )
    async def last(self, call: Call[LastQuery, None]) -> object:
        """Those hosts that are known, in no order; ``more`` are ids that had no room."""
        ids = list(dict.fromkeys(call.query.agent_id))
        if len(ids) > BATCH:
            raise ParameterInvalid(f"agent_id: {len(ids)} ids; limit {BATCH}")
        found = await self._store.get(ids)
        told: list[dict[str, Any]] = []
        entries: dict[bytes, list[dict[str, Any]]] = {}  # most hosts have the same config
        size = 0
        more = list(found)
        while more and (not told or size < TELL_BYTES):
            agent_id = more.pop(0)
            config = found[agent_id].config
            if config.digest not in entries:
                entries[config.digest] = entries_of(config)
            size += len(config.command)
            told.append(
                {
                    "agent_id": agent_id,
                    "delivered_at": found[agent_id].at,
                    "config": entries[config.digest],
                    "allow_empty": not entries[config.digest],
                }
            )
        return Enveloped(told, {"more": more})
