"""Reports of AgentCenters on their way to the store: what a stream says that has no right to its
id goes no further, its AgentCenter is told to end it, and operators see it.

Source: docs/protocol.md, "Agent ids".
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from elkeid.errors import StoreError
from elkeid.manager.acpoll import Reports
from elkeid.manager.claims import Claim, ClaimTable, Verdict, is_elder
from elkeid.manager.documents import Source
from elkeid.manager.fanout import Gateways, NoSuchThing
from elkeid.manager.live import EventName
from elkeid.manager.store.agents import Applied
from elkeid.manager.store.store import Threads
from elkeid.web.client import CallFailed

SLICE: Final = 500
"""Reports looked at in one go: a few milliseconds."""

NAMES_SLICE: Final = 20_000
"""Ids compared in one go, when an AgentCenter tells of all its agents: some 5 ms."""

DISPUTES: Final = 10_000
"""Claims that wait for a sign of life of another stream, each with the report it came with."""

DISPUTE_BYTES: Final = 32 << 20
"""Of these reports; an agent's has some 4 KiB."""

PROBE_BATCH: Final = 1_000
"""Agents asked for by one call."""

PROBE_SECONDS: Final = 8.0
"""For such a call: a gateway gives its agents 5 s."""

UNKNOWN_SECONDS: Final = 10.0
"""An AgentCenter that cannot be asked for so long: nobody knows whether the elder stream lives."""

CHANGE_SECONDS: Final = 60.0
"""An id changes hands once in so long, unless the stream that had it is known to be gone."""

OUTCOMES: Final = ("moved", "stale", "refused", "taken", "unproven", "surplus")
"""What may become of a claim to an id that another AgentCenter has."""

RETRY_SECONDS: Final = 2.0
END_SECONDS: Final = 0.5  # losers of so long are told together
LISTED: Final = 1_000  # of the latest conflicts; some 400 KB


class AcrossConflict(msgspec.Struct):
    """A stream that lost an id which another AgentCenter has."""

    agent_id: str
    gateway: str  # of the loser
    address: str  # of the loser, without a port; empty if this Manager did not see it
    holder_gateway: str
    holder: str  # address and port of the stream that has the id
    count: int
    first_at: int  # unix seconds
    last_at: int


class _Info(msgspec.Struct):
    agent_id: str = ""
    agent_addr: str = ""
    create_at: int = 0


class _Head(msgspec.Struct):
    agent_info: _Info | None = None


class _Alive(msgspec.Struct):
    alive: dict[str, str]
    gone: list[str]


_decode_head = msgspec.json.Decoder(_Head).decode


@define
class _Dispute:
    """A claim beside the stream that is remembered as holder."""

    claim: Claim
    elder: Source  # the AgentCenter of the elder stream of the two
    item: msgspec.Raw  # what it reported
    skew: float
    at: float  # seconds of the clock
    probing: bool = False


class ClaimWatch:
    """Stands before the store of agents, and is fed by polls like that.

    Args:
        inner: the store of agents.
        gateways: asks AgentCenters, and tells them.
        clock: for pauses.
        wall: seconds since the epoch.
        threads: where reports are looked into.
        tell: the live feed.
    """

    log = Logger()

    def __init__(
        self,
        inner: Reports,
        gateways: Gateways,
        clock: IReactorTime,
        *,
        wall: Callable[[], float],
        threads: Threads,
        tell: Callable[..., None],
    ) -> None:
        self._inner, self._gateways, self._clock = inner, gateways, clock
        self._wall, self._threads, self._tell = wall, threads, tell
        self.table = ClaimTable()
        self._told_all: set[Source] = set()  # have told of all their agents once
        self._disputes: dict[str, _Dispute] = {}
        self._bytes = 0
        self._probes: dict[Source, Deferred[None]] = {}
        self._losers: dict[Source, set[str]] = {}
        self._ending: Deferred[None] | None = None
        self._changed: dict[str, float] = {}  # id -> when it changed hands without proof
        self._conflicts: dict[tuple[str, Source], AcrossConflict] = {}
        self.counts: Counter[str] = Counter()

    async def stop(self) -> None:
        """Ask and tell nobody any more."""
        for running in [*self._probes.values(), self._ending]:
            if running is not None:
                running.cancel()

    def conflicts(self) -> list[AcrossConflict]:
        """The latest ones, the latest first."""
        return list(self._conflicts.values())[::-1]

    def figures(self) -> tuple[int, dict[str, int]]:
        """For metrics: claims that wait, and what became of claims."""
        return len(self._disputes), {name: self.counts[name] for name in OUTCOMES}

    # --- what polls say

    async def apply(
        self, source: Source, items: Sequence[msgspec.Raw], skew: float
    ) -> tuple[Applied, list[str]]:
        """Store what may be; see `AgentStatus.apply`."""
        done, ids = Applied(), list[str]()
        for start in range(0, len(items), SLICE):
            some = items[start : start + SLICE]
            heads = await self._threads.run(_heads, some, source, skew)
            kept = [
                item
                for item, head in zip(some, heads, strict=True)
                if head is None or self._admits(head[0], head[1], item, skew)
            ]
            applied, stored = await self._inner.apply(source, kept, skew)
            done += applied
            ids += stored
            if len(kept) < len(some):
                ids += [head[0] for head in heads if head is not None]
        return done, ids

    async def left(self, source: Source, ids: Iterable[str]) -> None:
        """Agents have left."""
        gone = list(ids)
        await self._inner.left(source, gone)
        await self._gone(source, gone)

    async def keep_only(self, source: Source, ids: Iterable[str]) -> None:
        """An AgentCenter has these agents and no others."""
        present = set(ids)
        await self._inner.keep_only(source, present)
        await self._gone(
            source, [each for each in await self._names_of(source) if each not in present]
        )
        self._told_all.add(source)

    async def heard(self, source: Source, pause: float) -> None:
        """See `AgentStatus`."""
        await self._inner.heard(source, pause)

    async def forget(self, source: Source) -> None:
        """Nobody knows whom an AgentCenter has."""
        self._told_all.discard(source)
        await self._inner.forget(source)
        for agent_id in await self._names_of(source):
            self.table.release(agent_id, source)

    async def _names_of(self, source: Source) -> list[str]:
        names, found = self.table.names(), list[str]()
        for start in range(0, len(names), NAMES_SLICE):
            found += self.table.of(source, names[start : start + NAMES_SLICE])
            if start + NAMES_SLICE < len(names):
                await deferLater(self._clock, 0)
        return found

    async def _gone(self, source: Source, ids: Iterable[str]) -> None:
        for agent_id in ids:
            if self.table.release(agent_id, source):
                self._event("offline", agent_id, source)
            dispute = self._disputes.get(agent_id)
            if dispute is None:
                continue
            if dispute.claim.source == source:
                self._forget(agent_id)
            elif self.table.holder(agent_id) is None:
                await self._give(agent_id, dispute)

    # --- the rule

    def _admits(self, agent_id: str, claim: Claim, item: msgspec.Raw, skew: float) -> bool:
        verdict = self.table.judge(agent_id, claim)
        if verdict is Verdict.CONTESTED:
            self._contest(agent_id, claim, item, skew)
            return False
        if verdict is Verdict.STALE:
            self.counts["stale"] += 1
            self._end(agent_id, claim.source)
            return False
        held = self.table.holder(agent_id) if verdict is Verdict.MOVED else None
        self.table.take(agent_id, claim)
        if verdict is Verdict.NEW and claim.source in self._told_all:
            self._event("online", agent_id, claim.source)
        elif held is not None:
            self.counts["moved"] += 1
            self._event("moved", agent_id, claim.source, before=str(held.source))
        return True

    def _contest(self, agent_id: str, claim: Claim, item: msgspec.Raw, skew: float) -> None:
        held = self.table.holder(agent_id)
        assert held is not None
        known = self._disputes.get(agent_id)
        if known is not None and known.claim.source != claim.source:
            self._lost(agent_id, claim.source, claim.address, held.source, "")
            return
        size = len(item) - (0 if known is None else len(known.item))
        full = known is None and len(self._disputes) >= DISPUTES
        if full or self._bytes + size > DISPUTE_BYTES:
            self.counts["surplus"] += 1  # it reports again
            return
        self._bytes += size
        if known is not None:
            known.claim, known.item, known.skew = claim, item, skew
            return
        elder = claim.source if is_elder(claim, held) else held.source
        self._disputes[agent_id] = _Dispute(claim, elder, item, skew, self._clock.seconds())
        if elder not in self._probes:
            probe = self._probes[elder] = Deferred.fromCoroutine(self._probe(elder))
            probe.addErrback(lambda failure: self.log.failure("a probe failed", failure))

    def _forget(self, agent_id: str) -> None:
        dispute = self._disputes.pop(agent_id, None)
        if dispute is not None:
            self._bytes -= len(dispute.item)

    async def _probe(self, source: Source) -> None:
        """Ask an AgentCenter for signs of life, as long as claims wait for its agents."""
        try:
            await deferLater(self._clock, 0)  # with all that this report brings
            while True:
                ids = [key for key, each in self._disputes.items() if each.elder == source]
                if not ids:
                    return
                ids = ids[:PROBE_BATCH]
                try:
                    alive = await self._ask(source, ids)
                except CallFailed as error:
                    self.log.info("{ac}: {error}", ac=source, error=error)
                    await self._unproven(ids)
                    await deferLater(self._clock, RETRY_SECONDS)
                    continue
                for agent_id in ids:
                    await self._settle(agent_id, source, alive.get(agent_id))
        except CancelledError:
            return
        finally:
            self._probes.pop(source, None)

    async def _ask(self, source: Source, ids: Sequence[str]) -> dict[str, str]:
        """Who lives there, with addresses; one of upstream knows only who is connected."""
        try:
            answer = await self._gateways.ask(
                source, "/conn/probe", _Alive, {"id_list": ids}, seconds=PROBE_SECONDS
            )
        except NoSuchThing:
            there = set(await self._gateways.ask(source, "/conn/list", list[str]))
            return {agent_id: "" for agent_id in ids if agent_id in there}
        return answer.alive

    async def _settle(self, agent_id: str, elder: Source, peer: str | None) -> None:
        """The elder stream gave a sign of life, from ``peer``, or none (None)."""
        dispute, held = self._disputes.get(agent_id), self.table.holder(agent_id)
        if dispute is None or dispute.elder != elder:
            return
        claim = dispute.claim
        if held is None or (peer is None and held.source == elder):
            await self._give(agent_id, dispute)
        elif peer is None:  # the claim was the elder one, and is gone
            self._forget(agent_id)
        elif held.source == elder:
            self._forget(agent_id)
            self._lost(agent_id, claim.source, claim.address, held.source, peer)
        else:
            self._lost(agent_id, held.source, "", elder, peer)
            await self._give(agent_id, dispute)

    async def _unproven(self, ids: Sequence[str]) -> None:
        """The elder streams' AgentCenter does not answer."""
        now = self._clock.seconds()
        for agent_id in ids:
            dispute, held = self._disputes.get(agent_id), self.table.holder(agent_id)
            if dispute is None or now - dispute.at < UNKNOWN_SECONDS:
                continue
            if held is not None and held.source != dispute.elder:
                self._forget(agent_id)  # the holder's reports go on
                continue
            changed = self._changed.pop(agent_id, None)
            if changed is not None and now - changed < CHANGE_SECONDS:
                self._changed[agent_id] = changed
                self._forget(agent_id)
                continue
            self._changed[agent_id] = now
            if len(self._changed) > DISPUTES:
                del self._changed[next(iter(self._changed))]
            self.counts["unproven"] += 1
            await self._give(agent_id, dispute)

    async def _give(self, agent_id: str, dispute: _Dispute) -> None:
        """The id is the claim's now, and what it reported is stored."""
        held = self.table.holder(agent_id)
        self._forget(agent_id)
        self.table.take(agent_id, dispute.claim)
        self.counts["taken"] += 1
        source = dispute.claim.source
        if held is None:
            self._event("online", agent_id, source)
        else:
            self._event("moved", agent_id, source, before=str(held.source))
        try:
            await self._inner.apply(source, [dispute.item], dispute.skew)
        except StoreError as error:
            self.log.warn("{agent}: {error}; its next report tells", agent=agent_id, error=error)

    def _lost(self, agent_id: str, source: Source, address: str, holder: Source, peer: str) -> None:
        self.counts["refused"] += 1
        key, now = (agent_id, source), int(self._wall())
        entry = self._conflicts.pop(key, None) or AcrossConflict(
            agent_id, str(source), address, str(holder), peer, 0, now, now
        )
        entry.address, entry.holder_gateway = address or entry.address, str(holder)
        entry.holder = peer or entry.holder
        entry.count += 1
        entry.last_at = now
        self._conflicts[key] = entry
        if len(self._conflicts) > LISTED:
            del self._conflicts[next(iter(self._conflicts))]
        self._event("conflict", agent_id, source, address=address, holder=peer)
        self._end(agent_id, source)

    def _event(self, name: EventName, agent_id: str, source: Source, **more: str) -> None:
        self._tell(name, agent_id=agent_id, gateway=str(source), **more)

    def _end(self, agent_id: str, source: Source) -> None:
        """Let an AgentCenter end a stream that has no right to its id."""
        self._losers.setdefault(source, set()).add(agent_id)
        if self._ending is None:
            self._ending = Deferred.fromCoroutine(self._end_all())
            self._ending.addErrback(lambda failure: self.log.failure("no reset", failure))

    async def _end_all(self) -> None:
        try:
            await deferLater(self._clock, END_SECONDS)
            while self._losers:
                source, ids = self._losers.popitem()
                body = {"type": "strict", "id_list": sorted(ids)}
                try:
                    await self._gateways.ask(source, "/conn/reset", msgspec.Raw, body)
                except CallFailed as error:
                    self.log.info("{ac}: {error}", ac=source, error=error)
        except CancelledError:
            return
        finally:
            self._ending = None


def _heads(
    items: Sequence[msgspec.Raw], source: Source, skew: float
) -> list[tuple[str, Claim] | None]:
    """Whose each entry is, and of which stream; None where that cannot be told."""
    found: list[tuple[str, Claim] | None] = []
    for item in items:
        try:
            info = _decode_head(item).agent_info
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            info = None  # the store counts it as malformed, if it is
        if info is None or not info.agent_id:
            found.append(None)
            continue
        since = round(info.create_at - skew) if info.create_at else 0
        found.append((info.agent_id, Claim(source, _host(info.agent_addr), since)))
    return found


def _host(address: str) -> str:
    """``host:port`` or ``[v6]:port`` without the port; whatever it is, equal texts stay equal."""
    host = address.rpartition(":")[0]
    return host[1:-1] if host[:1] == "[" else host
