"""The instances that make up the server: what is asked of them, and what operators may tell them.

What ServiceDiscovery lists and what polls tell is known at once; how far drains are, ledgers and
disputes about ids are asked of every AgentCenter when somebody wants to know. One of upstream
knows little of this and is shown with what it gives.

Source: docs/protocol.md, "Manager API", "Cluster".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from elkeid.discovery.client import DiscoveryClient
from elkeid.discovery.load import (
    cpu_of,
    has_room,
    is_draining,
    limit_of,
    version_of,
)
from elkeid.discovery.members import Zones, netloc
from elkeid.discovery.registry import Record, State
from elkeid.errors import RequestRefused
from elkeid.manager.acpoll import AC_NAME, AcPoll, PollState
from elkeid.manager.claim_watch import AcrossConflict
from elkeid.manager.cluster_views import (
    ConflictView,
    DiscoveryView,
    Disputes,
    Distribution,
    DrainState,
    GatewayView,
    Instances,
    LedgerView,
    ManagerView,
    ReplacementView,
    ResetDone,
    Share,
    Silent,
    UnidentifiedView,
)
from elkeid.manager.costly import Shared
from elkeid.manager.documents import Source
from elkeid.manager.fanout import ANSWER_SECONDS, Answers, Gateways, NoSuchThing
from elkeid.manager.ledgers import LedgerAnswer, imbalances, summed
from elkeid.web.client import CallFailed, JsonClient

T = TypeVar("T")

MANAGER_NAME: Final = "hids_manage"
"""Under this name Managers register with ServiceDiscovery."""

GRPC_NAME: Final = "hids_svr_grpc"
"""Under this name AgentCenters' ports for agents register with ServiceDiscovery."""

RESET_SECONDS: Final = 15.0
"""For ending streams: 10,000 take a few."""

ENTRIES: Final = 2_000
"""The latest entries of each list of disputes; an AgentCenter keeps 1,000."""


class TargetRefused(RequestRefused):
    """Nothing was done: the AgentCenter is not known, or it would do harm."""


class RemoteFailed(RequestRefused):
    """The AgentCenter did not answer, or refused; the text says which."""


class _Disputed(msgspec.Struct):
    conflicts: list[ConflictView] = []
    replaced: list[ReplacementView] = []


class _Node(msgspec.Struct):
    node: str | None = None
    members: list[str] | None = None


class _Ping(msgspec.Struct):
    data: _Node


class Cluster:
    """Knows the instances.

    Args:
        clock: for deadlines.
        gateways: asks AgentCenters.
        discovery: told by `watch` which names to keep known.
        polls: of agents' status.
        http: asks members of ServiceDiscovery.
        members: ``host:port`` of these.
        zones: networks of zones, as ServiceDiscovery has them; for instances that name none.
        across: gives what was judged across AgentCenters.
    """

    def __init__(
        self,
        clock: IReactorTime,
        gateways: Gateways,
        discovery: DiscoveryClient,
        polls: AcPoll,
        *,
        http: JsonClient,
        members: Sequence[str],
        zones: Sequence[str],
        across: Callable[[], list[AcrossConflict]],
    ) -> None:
        self._gateways, self._discovery, self._polls = gateways, discovery, polls
        self._http, self._members, self._across = http, members, across
        self._zones = Zones(zones)
        self._drains = Shared(clock, self._ask_drains)
        self._ledger = Shared(clock, self._ask_ledgers)
        self._disputes = Shared(clock, self._ask_disputes)
        self._discoveries = Shared(clock, self._ask_members)

    def watch(self) -> None:
        """Keep known what is asked about beside AgentCenters' APIs, which polls watch."""
        for name in (MANAGER_NAME, GRPC_NAME):
            self._discovery.watch(name, lambda records: None)

    # --- what there is

    def _records(self, name: str) -> Mapping[Source, Record]:
        known = self._discovery.known(name)
        records = [] if known is None else known.records
        return {Source(each.ip, each.port): each for each in records}

    def _sources(self) -> list[Source]:
        return sorted(self._records(AC_NAME), key=str)

    async def instances(self) -> Instances:
        """All of them."""
        drains = await self._drains.get()
        states = self._polls.states()
        return Instances(
            [
                _gateway(source, record, self._zones.of_record(record), drains, states.get(source))
                for source, record in sorted(self._records(AC_NAME).items(), key=_by_address)
            ],
            await self._discoveries.get(),
            [
                ManagerView(
                    str(source),
                    _health(record),
                    record.create_at,
                    record.update_at,
                    version_of(record.extra),
                )
                for source, record in sorted(self._records(MANAGER_NAME).items(), key=_by_address)
            ],
        )

    async def _ask_members(self) -> list[DiscoveryView]:
        asked = [Deferred.fromCoroutine(self._ask_member(netloc(each))) for each in self._members]
        return [await each for each in asked]

    async def _ask_member(self, member: str) -> DiscoveryView:
        try:
            reply = await self._http.get(f"http://{member}/endpoint/ping", seconds=ANSWER_SECONDS)
            ping = reply.decode(_Ping).data
        except CallFailed as error:
            return DiscoveryView(member, None, None, [str(error)])
        return DiscoveryView(member, ping.node, ping.members, [])

    async def _ask_drains(self) -> Answers[DrainState | int]:
        return await self._gateways.ask_all(self._sources(), self._drain_or_count)

    async def _drain_or_count(self, source: Source) -> DrainState | int:
        """What it tells of itself; one of upstream knows only how many agents it has."""
        try:
            return await self._gateways.ask(source, "/admin/drain", DrainState)
        except NoSuchThing:
            return await self._gateways.ask(source, "/conn/count", int)

    async def distribution(self) -> Distribution:
        """Where agents are, as AgentCenters say it now."""
        drains, records = await self._drains.get(), self._records(AC_NAME)
        agents = {source: _agents(told) for source, told in drains.answered.items()}
        total = sum(agents.values())
        limits = {source: limit_of(record.extra) for source, record in records.items()}
        zones: dict[str, list[Source]] = {}
        for source in agents:
            record = records.get(source)
            zone = None if record is None else self._zones.of_record(record)
            zones.setdefault(zone or "", []).append(source)
        return Distribution(
            total,
            _shares({str(each): [each] for each in agents}, agents, limits),
            _shares(zones, agents, limits),
            _silent(drains),
        )

    # --- what became of records

    async def ledger(self) -> LedgerView:
        """Of all AgentCenters together."""
        return await self._ledger.get()

    async def _ask_ledgers(self) -> LedgerView:
        async def ask(source: Source) -> LedgerAnswer:
            return await self._gateways.ask(source, "/ledger", LedgerAnswer, whole=True)

        answers = await self._gateways.ask_all(self._sources(), ask)
        sums = summed(answers.answered.values())
        return LedgerView(
            sums.data,
            sums.before_reading,
            sorted(map(str, answers.answered)),
            _silent(answers),
            [
                f"{source}: {fault}"
                for source, ledger in sorted(answers.answered.items(), key=_by_address)
                for fault in imbalances(ledger)
            ],
        )

    # --- disputes

    async def disputes(self) -> Disputes:
        """About agents' ids."""
        told = await self._disputes.get()
        told.across = self._across()
        return told

    async def _ask_disputes(self) -> Disputes:
        async def ask(source: Source) -> tuple[_Disputed, list[UnidentifiedView]]:
            return (
                await self._gateways.ask(source, "/conn/conflicts", _Disputed),
                await self._gateways.ask(source, "/conn/unidentified", list[UnidentifiedView]),
            )

        answers = await self._gateways.ask_all(self._sources(), ask)
        found = Disputes([], [], [], [], _silent(answers))
        for source, (disputed, unidentified) in answers.answered.items():
            entries: Sequence[ConflictView | ReplacementView | UnidentifiedView]
            for entries in (disputed.conflicts, disputed.replaced, unidentified):
                for entry in entries:
                    entry.gateway = str(source)
            found.conflicts += disputed.conflicts
            found.replaced += disputed.replaced
            found.unidentified += unidentified
        found.conflicts = _latest(found.conflicts, lambda entry: entry.last_at)
        found.replaced = _latest(found.replaced, lambda entry: entry.last_at)
        found.unidentified = _latest(found.unidentified, lambda entry: entry.host.last_at)
        return found

    # --- what operators do

    def _target(self, address: str) -> Source:
        for source in self._records(AC_NAME):
            if str(source) == address:
                return source
        raise TargetRefused(f"address: ServiceDiscovery lists no AgentCenter {address}")

    async def _tell(self, source: Source, path: str, body: object, kind: type[T]) -> T:
        try:
            return await self._gateways.ask(source, path, kind, body, seconds=RESET_SECONDS)
        except NoSuchThing as error:
            raise RemoteFailed(f"{source}: this AgentCenter cannot do that") from error
        except CallFailed as error:
            raise RemoteFailed(str(error)) from error

    async def drain(
        self, address: str, seconds: float, then: Literal["stay", "exit"], force: bool
    ) -> DrainState:
        """Send the agents of an AgentCenter elsewhere.

        Args:
            address: of its API, as listed.
            seconds: for all of it.
            then: stay without agents, or exit.
            force: also if no other AgentCenter has room.

        Raises:
            TargetRefused: it is not listed, or agents would have nowhere to go.
            RemoteFailed: it did not do it.
        """
        source = self._target(address)
        if not force and not self._room_beside(source):
            raise TargetRefused(
                "no other AgentCenter has room, and agents that find none end themselves after "
                '40 s; send "force": true if that is meant'
            )
        body = {"deadline": seconds, "then": then}
        return await self._tell(source, "/admin/drain", body, DrainState)

    def _room_beside(self, source: Source) -> bool:
        """Whether agents find room when the whole host of this API takes none any more.

        Agents' ports are listed once a host, however many processes share one.
        """
        ports = [each for each in self._records(GRPC_NAME).values() if has_room(each)]
        return len(ports) > 1 or any(each.ip != source.ip for each in ports)

    async def undrain(self, address: str) -> DrainState:
        """Let an AgentCenter take agents again; errors as of `drain`."""
        source = self._target(address)
        return await self._tell(source, "/admin/undrain", {}, DrainState)

    async def reset(
        self, address: str, count: int | None, id_list: Sequence[str] | None
    ) -> ResetDone:
        """End streams of an AgentCenter, so that these agents connect anew; errors as of `drain`.

        Args:
            address: of its API, as listed.
            count: so many, chosen at random, unless there is ``id_list``.
            id_list: these.
        """
        source = self._target(address)
        body: dict[str, Any] = {"type": "random", "count": count}
        if id_list is not None:
            body = {"type": "strict", "id_list": id_list}
        return await self._tell(source, "/conn/reset", body, ResetDone)


def _by_address(item: tuple[Source, object]) -> str:
    return str(item[0])


def _health(record: Record) -> str:
    return State(record.status).name.lower() if 0 <= record.status < len(State) else "unknown"


def _agents(told: DrainState | int) -> int:
    return told if isinstance(told, int) else told.agents


def _silent(answers: Answers[Any]) -> list[Silent]:
    return [Silent(str(each), why) for each, why in sorted(answers.failed.items(), key=_by_address)]


def _latest(entries: list[T], at: Callable[[T], int]) -> list[T]:
    return sorted(entries, key=at, reverse=True)[:ENTRIES]


def _gateway(
    source: Source,
    record: Record,
    zone: str | None,
    drains: Answers[DrainState | int],
    poll: PollState | None,
) -> GatewayView:
    told = drains.answered.get(source)
    drain = told if isinstance(told, DrainState) else None
    problems = [each for each in (drains.failed.get(source),) if each is not None]
    if poll is not None and poll.problem is not None:
        problems.append(poll.problem)
    return GatewayView(
        address=str(source),
        health=_health(record),
        registered_at=record.create_at,
        heard_at=record.update_at,
        weight=record.weight,
        limit=limit_of(record.extra),
        cpu=cpu_of(record.extra),
        version=version_of(record.extra),
        zone=zone,
        state=drain.state if drain is not None else _told_state(record),
        connections=None if drain is None else drain.connections,
        agents=None if told is None else _agents(told),
        drain_seconds=None if drain is None else drain.seconds,
        clock_skew=None if poll is None else poll.skew,
        polled_ago=None if poll is None else round(poll.silence, 1),
        problems=problems,
    )


def _told_state(record: Record) -> str | None:
    return "draining" if is_draining(record.extra) else None


def _shares(
    places: Mapping[str, Sequence[Source]],
    agents: Mapping[Source, int],
    limits: Mapping[Source, float | None],
) -> list[Share]:
    total = sum(agents.values())
    found = []
    for name, sources in places.items():
        count = sum(agents[each] for each in sources)
        known = [limit for each in sources if (limit := limits.get(each)) is not None]
        limit = sum(known) if len(known) == len(sources) else None
        found.append(
            Share(
                name,
                count,
                round(count / total, 4) if total else 0.0,
                limit,
                round(count / limit, 4) if limit else None,
            )
        )
    return sorted(found, key=lambda share: (-(share.filled or 0.0), -share.agents, share.name))
