"""How roles use ServiceDiscovery: register instances, keep them alive, look others up.

What was last known stays in use while no member answers: a silent registry stops nothing.

    client.register(name, ip, port, load)   kept registered at every member until `stop`
    client.watch(name, changed)             told what there is, then who comes and goes
    client.known(name)                      the last known good answer, at once, with its age
    await client.lookup(name)               the instances of a name; last known good at need
    await client.answers(name)              each member's present order, None where it is silent
    await client.leads_elsewhere(name, ip, port)    do all members name another one first?
    client.room_elsewhere(name, ip, port)   does the last known good answer list room elsewhere?
    client.registers(name)                  is an instance of a name kept registered?
    await client.renew()                    tell every member the present load at once
    await client.deregister(name)           give back the leases of one name

Names are ``hids_svr_grpc`` (agents' port), ``hids_svr_http`` (API of an AgentCenter) and
``hids_manage``. A `Record` has the ``weight`` and ``extra`` that the instance told; what
``extra`` means, and `has_room`, are in `elkeid.discovery.load`. A watched name is asked again
every 2 s, so `known` of it is as fresh as that while any member answers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from attrs import frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.discovery.load import RENEW, has_room
from elkeid.discovery.loops import Loop, Outage
from elkeid.discovery.members import netloc
from elkeid.discovery.registry import Record
from elkeid.web.client import CallFailed, JsonClient

RENEW_SECONDS = 5.0  # upstream's 30 s leaves loads stale for as long; a lease lasts 105 s
# After the first failures, and then on: whoever started before ServiceDiscovery is registered
# within 5 s of its start, also if a dial was just under way (3 s).
RETRY_SECONDS = (0.5, 1.0, 2.0)
CALL_SECONDS = 4.0  # for one call; below the renewal's pause
WATCH_SECONDS = 2.0
EMPTY_SECONDS = 60.0  # a restarted registry is empty until everyone has renewed, 30 s at most
STOP_SECONDS = 0.7  # for what is under way, then for evicting; agents wait for the rest of a stop
ANSWER_BYTES = 8 << 20  # 10,000 instances with common extras

Load = Callable[[], tuple[int, dict[str, Any] | None]]
"""Returns weight and extra of an instance, as they are now."""


class Unknown(CallFailed):
    """No member of ServiceDiscovery answered, and nothing is known from before."""


class _Detail(msgspec.Struct):
    data: list[Record] | None = None


class _Done(msgspec.Struct):
    msg: str = ""


class _Renewal:
    """Keeps one instance registered at one member."""

    def __init__(
        self, clock: IReactorTime, http: JsonClient, member: str, body: dict[str, Any], load: Load
    ) -> None:
        self._http, self._member, self._body, self._load = http, member, body, load
        self._outage = Outage(f"cannot register {body['name']} at ServiceDiscovery {member}")
        self.loop = Loop(clock, self._renew)
        self.name: str = body["name"]
        self.held = False

    async def _renew(self) -> float:
        weight, extra = self._load()
        try:
            reply = await self._http.post(
                f"http://{self._member}/registry/register",
                {**self._body, "weight": weight, "extra": {**(extra or {}), RENEW: RENEW_SECONDS}},
                seconds=CALL_SECONDS,
            )
            reply.decode(_Done)
        except CallFailed as error:
            self.held = False
            self._outage.failed(error)
        else:
            self.held = True
            self._outage.worked()
        return self._outage.pause(RENEW_SECONDS, RETRY_SECONDS)

    async def renew(self) -> None:
        """Tell the member the present load now; does not change when the next renewal is due."""
        await self._renew()

    async def evict(self) -> None:
        """Give the lease back; a member that does not answer lets it age out."""
        try:
            await self._http.post(
                f"http://{self._member}/registry/evict", self._body, seconds=STOP_SECONDS
            )
        except CallFailed as error:
            self._outage.failed(error)


@frozen
class Known:
    """The last answer that named an instance.

    Args:
        records: in the order to try them.
        at: when it came, in seconds of the clock.
    """

    records: list[Record]
    at: float


class DiscoveryClient:
    """Registers, looks up and watches. Registers with every member; reads from any.

    Args:
        clock: for timers.
        http: signs with a key that every member knows; closed by `stop`.
        members: ``host:port`` of each.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, http: JsonClient, members: Sequence[str]) -> None:
        self._clock, self._http = clock, http
        self._members = [netloc(member) for member in members]
        self._first = 0  # the member to ask first: the last that answered
        self._renewals: list[_Renewal] = []
        self._watches: list[Loop] = []
        self._known: dict[str, Known] = {}

    def register(self, name: str, ip: str, port: int, load: Load) -> None:
        """Keep an instance registered from now until `stop`.

        Args:
            name: such as ``hids_svr_grpc``.
            ip: what others dial: IPv4, IPv6 without brackets, or a name.
            port: what others dial.
            load: asked before every renewal.
        """
        body = {"name": name, "ip": ip, "port": port}
        for member in self._members:
            renewal = _Renewal(self._clock, self._http, member, body, load)
            self._renewals.append(renewal)
            renewal.loop.start()

    def registers(self, name: str) -> bool:
        """Whether an instance of a name is being kept registered."""
        return any(renewal.name == name for renewal in self._renewals)

    async def renew(self) -> None:
        """Tell every member the present loads, and return when each has answered or failed."""
        await DeferredList(
            [Deferred.fromCoroutine(renewal.renew()) for renewal in self._renewals],
            consumeErrors=True,
        )

    def problems(self) -> list[str]:
        """Why others cannot find this role, for ``/ready``; empty if they can."""
        if not self._renewals or any(renewal.held for renewal in self._renewals):
            return []
        return ["registered with no ServiceDiscovery member"]

    async def lookup(self, name: str) -> list[Record]:
        """The instances of a name, in the order to try them.

        While no member answers, or all have just lost their memory, this is what they said last.

        Raises:
            Unknown: no member answered, and none ever has.
        """
        answered, errors = False, []
        for offset in range(len(self._members)):
            number = (self._first + offset) % len(self._members)
            try:
                records = await self._detail(self._members[number], name)
            except CallFailed as error:
                errors.append(str(error))
                continue
            answered = True
            if records:
                self._first = number
                self._known[name] = Known(records, self._clock.seconds())
                return records
        known = self._known.get(name)
        if answered and (known is None or self._clock.seconds() - known.at > EMPTY_SECONDS):
            self._known.pop(name, None)
            return []
        if known is None:
            raise Unknown(f"no ServiceDiscovery member answers: {'; '.join(errors)}")
        return known.records

    def known(self, name: str) -> Known | None:
        """The last known good answer of `lookup` or a watch, or None if there never was one."""
        return self._known.get(name)

    async def answers(self, name: str) -> Mapping[str, list[Record] | None]:
        """Ask every member at once for its present order of a name; nothing is remembered.

        Returns:
            Member as configured -> what it lists, or None if it does not answer.
        """

        async def ask(member: str) -> list[Record] | None:
            try:
                return await self._detail(member, name)
            except CallFailed:
                return None

        asked = [Deferred.fromCoroutine(ask(member)) for member in self._members]
        return {member: await answer for member, answer in zip(self._members, asked, strict=True)}

    async def leads_elsewhere(self, name: str, ip: str, port: int) -> bool:
        """Say whether every member that answers now names another instance first.

        Without any answer it is False: agents then dial what they learned before.
        """
        lists = [records for records in (await self.answers(name)).values() if records is not None]
        return bool(lists) and all(
            records and (records[0].ip, records[0].port) != (ip, port) for records in lists
        )

    def room_elsewhere(self, name: str, ip: str, port: int) -> bool:
        """Say whether the last known good answer lists another instance with room."""
        known = self._known.get(name)
        return known is not None and any(
            (record.ip, record.port) != (ip, port) and has_room(record) for record in known.records
        )

    async def _confirmed(
        self, name: str, records: list[Record], missing: set[tuple[str, int]]
    ) -> list[Record]:
        """Add what the asked member misses and another one still lists as fresh.

        A member that has just started may not know everybody yet.
        """
        found = {
            (record.ip, record.port): record
            for each in (await self.answers(name)).values()
            for record in each or ()
            if record.status == 0 and (record.ip, record.port) in missing
        }
        return [*records, *found.values()]

    async def _detail(self, member: str, name: str) -> list[Record]:
        # "steer=no": a role that looks around must not count as an agent that will come.
        reply = await self._http.get(
            f"http://{member}/registry/detail",
            {"name": name, "steer": "no"},
            seconds=CALL_SECONDS,
            limit=ANSWER_BYTES,
        )
        return reply.decode(_Detail).data or []

    def watch(self, name: str, changed: Callable[[list[Record]], None]) -> None:
        """Tell ``changed`` the instances of a name: first what there is, then every change.

        Only instances that come and go count as changes, not their loads or states.
        """
        outage = Outage(f"cannot look up {name}")
        told: set[tuple[str, int]] | None = None

        async def poll() -> float:
            nonlocal told
            try:
                records = await self.lookup(name)
            except CallFailed as error:
                outage.failed(error)
                return outage.pause(WATCH_SECONDS, RETRY_SECONDS)
            outage.worked()
            addresses = {(record.ip, record.port) for record in records}
            if told is not None and told - addresses:
                records = await self._confirmed(name, records, told - addresses)
                addresses = {(record.ip, record.port) for record in records}
            if addresses != told:
                told = addresses
                changed(records)
            return WATCH_SECONDS

        loop = Loop(self._clock, poll)
        self._watches.append(loop)
        loop.start()

    async def stop(self) -> None:
        """End all timers, then give the leases back; takes at most two `STOP_SECONDS`."""
        for loop in self._watches:
            running = loop.stop()
            if running is not None:
                running.cancel()
        await self._evict(self._renewals)
        self._renewals.clear()
        self._watches.clear()
        await self._http.close()

    async def deregister(self, name: str) -> None:
        """Give back the leases of one name; takes at most two `STOP_SECONDS`."""
        leaving = [renewal for renewal in self._renewals if renewal.name == name]
        self._renewals = [renewal for renewal in self._renewals if renewal.name != name]
        await self._evict(leaving)

    async def _evict(self, renewals: Sequence[_Renewal]) -> None:
        # A renewal must not arrive after the eviction: let those under way end first.
        under_way = [renewal.loop.stop() for renewal in renewals]
        for running in under_way:
            if running is not None:
                running.addTimeout(STOP_SECONDS, self._clock)
                running.addErrback(_ignore)
        await DeferredList([running for running in under_way if running is not None])
        await DeferredList(
            [Deferred.fromCoroutine(renewal.evict()) for renewal in renewals],
            consumeErrors=True,
        )


def _ignore(failure: Failure) -> None:
    """A renewal that does not end in time has been cancelled."""
