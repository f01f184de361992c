"""The other nodes of ServiceDiscovery: told what is new here, compared with, asked at the start.

Three calls to each peer, each again and again: ``/endpoint/ping`` tells whether it lives, what
kind it is and whether it is this very node under another address; ``/registry/sync`` tells it
what instances told this node; ``/registry/digest`` finds what was lost between nodes of our kind.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Generic, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.discovery.loops import Loop, Outage
from elkeid.discovery.messages import (
    Difference,
    DifferenceAnswer,
    Digest,
    Ping,
    Sync,
    event_of,
    upstream_event_of,
)
from elkeid.discovery.registry import (
    Instance,
    Record,
    RegistrationInvalid,
    Registry,
    RegistryFull,
)
from elkeid.discovery.replication import (
    Outbox,
    ask_difference,
    ask_everything,
    receive,
)
from elkeid.metrics import DiscoveryMetrics
from elkeid.web.client import CallFailed, JsonClient

PROBE_SECONDS, PROBE_TIMEOUT = 5.0, 1.0  # upstream's own measure
FLUSH_SECONDS = 1.0  # upstream flushes every 2 s
CALL_SECONDS = 2.0  # upstream's own measure; a slow peer holds up nobody else
COMPARE_SECONDS = 3.0
LAST_SECONDS = 0.5  # for what waits when this node ends
RETRIES = (0.5, 1.0, 2.0)  # seconds until the next push after so many failures
START_SECONDS = 3.0  # for finding a peer that tells what it knows, before serving without
START_PAUSE = 0.5  # seconds between two rounds of asking all peers at the start
ANSWER_BYTES = 64 << 20  # 10,000 instances with extras of full size
SKEW_SECONDS = 2.0  # a smaller difference of clocks is within what a Date header tells
PRIOR = 10.0  # answers between two probes below which these say little

T = TypeVar("T")


class Kind(Enum):
    """What stands behind a member's address."""

    UNKNOWN = "unknown"
    OURS = "ours"
    UPSTREAM = "upstream"
    SELF = "self"


class _Data(msgspec.Struct, Generic[T]):
    data: T


class _Done(msgspec.Struct):
    msg: str = ""


class _Detail(msgspec.Struct):
    data: list[Record] | None = None


class _Names(msgspec.Struct):
    data: list[str] | None = None


class Peer:
    """One other member.

    Args:
        address: ``host:port`` as it stands in a URL.
        cluster: this node's side.
    """

    def __init__(self, address: str, cluster: "Cluster") -> None:
        self.address, self._cluster = address, cluster
        self.kind = Kind.UNKNOWN
        self.alive = False
        self.share = 1.0  # agents that asked it between two probes, for each that asked here
        self.outbox = Outbox()
        self._skew = 0.0  # its clock minus ours, seconds
        self._steered = 0, 0  # by it and by this node, at the latest probe
        self._outage = Outage(f"ServiceDiscovery {address} does not answer")
        self._pushing = Outage(f"ServiceDiscovery {address} takes no changes")
        self._comparing = Outage(f"ServiceDiscovery {address} cannot be compared with")
        clock = cluster.clock
        self.loops = [Loop(clock, self._probe), Loop(clock, self._push), Loop(clock, self._compare)]

    async def ping(self) -> None:
        """Learn who this is; `CallFailed` if it does not answer."""
        reply = await self._cluster.http.get(self._url("/endpoint/ping"), seconds=PROBE_TIMEOUT)
        answer = reply.decode(_Data[Ping]).data
        skew = reply.skew or 0.0
        self._skew = skew if abs(skew) > SKEW_SECONDS else 0.0
        before, own_before = self._steered
        own = self._cluster.steered
        self.share = (max(0, answer.steered - before) + PRIOR) / (own - own_before + PRIOR)
        self._steered = answer.steered, own
        if answer.node is None:
            self.kind = Kind.UPSTREAM
        else:
            self.kind = Kind.SELF if answer.node == self._cluster.node else Kind.OURS

    async def _probe(self) -> float:
        try:
            await self.ping()
        except CallFailed as error:
            self.alive = False
            self._outage.failed(error)
        else:
            self.alive = True
            self._outage.worked()
        return PROBE_SECONDS

    async def _push(self) -> float:
        """Tell what waits, batch after batch, until nothing waits or a push fails."""
        if self.kind is Kind.SELF:
            self.outbox.clear()
        pushes = self._cluster.metrics.pushes
        while instances := self.outbox.take():
            try:
                await self._tell(instances)
            except CallFailed as error:
                self.outbox.give_back(instances)
                self._pushing.failed(error)
                pushes.labels("failed").inc()
                break
            except BaseException:  # cancelled
                self.outbox.give_back(instances)
                raise
            pushes.labels("taken").inc()
            self._pushing.worked()
        if self._pushing.failures:
            return self._pushing.pause(RETRIES[-1], RETRIES)
        return FLUSH_SECONDS

    async def last_words(self) -> None:
        """Tell what waits before this node ends, as far as that goes at once."""
        waiting = self.outbox.take() if self.alive and self.kind is not Kind.SELF else []
        if waiting:
            try:
                await self._tell(waiting, LAST_SECONDS)
            except CallFailed:
                self.outbox.give_back(waiting)

    async def _tell(self, instances: Sequence[Instance], seconds: float = CALL_SECONDS) -> None:
        cluster = self._cluster
        facts = cluster.registry.facts(instances, cluster.monotonic())
        if self.kind is Kind.UPSTREAM:
            peers_time = cluster.wall() + self._skew
            events = [upstream_event_of(fact, peers_time) for fact in facts]
        else:
            events = [event_of(fact) for fact in facts]
        reply = await cluster.http.post(
            self._url("/registry/sync"), Sync(cluster.host, events), seconds=seconds
        )
        reply.decode(_Done)

    async def _compare(self) -> float:
        """Find what either side knows better; what was just told is not worth comparing."""
        if self.kind is not Kind.OURS or not self.alive:
            return COMPARE_SECONDS
        registry = self._cluster.registry
        try:
            reply = await self._cluster.http.get(
                self._url("/registry/digest"), seconds=CALL_SECONDS
            )
            buckets = registry.digest.differing(reply.decode(_Data[Digest]).data.buckets)
            if buckets:
                answer = await self.learn(ask_difference(registry, buckets))
                for instance in answer.wanted:
                    self._wants(instance, answer)
        except CallFailed as error:
            self._comparing.failed(error)
        else:
            self._comparing.worked()
        return COMPARE_SECONDS

    def _wants(self, instance: Instance, answer: DifferenceAnswer) -> None:
        """Tell the peer what it lacks, unless it has every reason to lack it."""
        registry, now = self._cluster.registry, self._cluster.monotonic()
        gone = answer.sure and instance[0] not in answer.keeps and registry.release(instance, now)
        if not gone and registry.stamp(instance) is not None:
            self.outbox.add(instance)

    async def learn(self, asked: Difference, seconds: float = CALL_SECONDS) -> DifferenceAnswer:
        """Ask a node of our kind what it knows better, and take that.

        Raises:
            CallFailed: it did not answer.
        """
        cluster, began = self._cluster, self._cluster.monotonic()
        reply = await cluster.http.post(
            self._url("/registry/difference"), asked, seconds=seconds, limit=ANSWER_BYTES
        )
        answer = reply.decode(_Data[DifferenceAnswer]).data
        now, wall = cluster.monotonic(), cluster.wall()
        for event in answer.newer:
            if event.lease is not None:
                event.lease.age += now - began  # at most so long it was on its way
            outcome = receive(cluster.registry, event, self.address, wall=wall, now=now)
            cluster.metrics.repairs.labels(outcome.value).inc()
        return answer

    async def learn_upstream(self) -> None:
        """Ask an upstream node for all it knows; `CallFailed` if it does not answer."""
        cluster = self._cluster
        names = await cluster.http.get(self._url("/registry/list"), seconds=CALL_SECONDS)
        for name in names.decode(_Names).data or ():
            reply = await cluster.http.get(
                self._url("/registry/detail"), {"name": name}, seconds=CALL_SECONDS
            )
            now = cluster.monotonic()
            peers_time = cluster.wall() + self._skew
            for record in reply.decode(_Detail).data or ():
                age = max(0.0, peers_time - record.update_at)
                try:
                    cluster.registry.merge_upstream(record, self.address, now=now, age=age)
                except (RegistrationInvalid, RegistryFull):
                    cluster.metrics.repairs.labels("invalid").inc()

    def _url(self, path: str) -> str:
        return f"http://{self.address}{path}"


class Cluster:
    """This node's side of all peers.

    Args:
        registry: to keep alike.
        clock: for timers.
        http: signs with a key that every member knows.
        node: this node, unlike every other one.
        host: ``host:port`` of this node, told to peers for information.
        members: ``host:port`` of the others, as in a URL.
        wall: seconds since the epoch.
        monotonic: seconds that only go forward.
        metrics: counts.
    """

    log = Logger()

    def __init__(
        self,
        registry: Registry,
        clock: IReactorTime,
        http: JsonClient,
        *,
        node: str,
        host: str,
        members: Iterable[str],
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        metrics: DiscoveryMetrics,
    ) -> None:
        self.registry, self.clock, self.http = registry, clock, http
        self.node, self.host, self.metrics = node, host, metrics
        self.wall, self.monotonic = wall, monotonic
        self.peers = [Peer(member, self) for member in members]
        self.steered = 0  # answers of this node that named an instance for an agent
        self._alone_at_start = False

    def changed(self, instance: Instance) -> None:
        """An instance, or who speaks for it, told this node something new."""
        for peer in self.peers:
            if peer.kind is not Kind.SELF:
                peer.outbox.add(instance)

    def charge(self) -> float:
        """How many agents are likely to have been named an instance, for each that is here.

        The other nodes name the same one meanwhile. How agents spread over nodes is seen from
        the totals that probes bring; while few ask they are taken to spread evenly.
        """
        return 1.0 + sum(peer.share for peer in self.peers if peer.alive and peer.kind is Kind.OURS)

    async def snapshot(self) -> None:
        """Take what the peers know, before anyone is served; returns after `START_SECONDS`."""
        if not self.peers:
            return
        end = self.clock.seconds() + START_SECONDS
        while True:
            asked = [Deferred.fromCoroutine(self._snapshot_of(peer)) for peer in self.peers]
            for each in asked:
                each.addTimeout(max(0.01, end - self.clock.seconds()), self.clock)
                each.addErrback(_unanswered)
            results = await DeferredList(asked, fireOnOneErrback=True, consumeErrors=True)
            if any(learned for _, learned in results):
                return
            if self.clock.seconds() + START_PAUSE > end:
                self._alone_at_start = True
                self.log.warn(
                    "no other ServiceDiscovery told what it knows: serving what this one hears"
                )
                return
            await deferLater(self.clock, START_PAUSE)

    async def _snapshot_of(self, peer: Peer) -> bool:
        try:
            await peer.ping()
            if peer.kind is Kind.OURS:
                await peer.learn(ask_everything(), START_SECONDS)
            elif peer.kind is Kind.UPSTREAM:
                await peer.learn_upstream()
        except CallFailed:
            return False
        except CancelledError:
            raise
        except Exception:
            self.log.failure("{peer} cannot be learned from", peer=peer.address)
            return False
        return peer.kind is not Kind.SELF

    def start(self) -> None:
        """Begin to tell, probe and compare."""
        for peer in self.peers:
            for loop in peer.loops:
                loop.start()

    async def stop(self) -> None:
        """Tell what waits, as far as that goes at once, and end every timer and call."""
        running = []
        for peer in self.peers:
            for loop in peer.loops:
                under_way = loop.stop()
                if under_way is not None:
                    under_way.cancel()
                    running.append(under_way)
        await DeferredList(running, consumeErrors=True)
        await DeferredList([Deferred.fromCoroutine(peer.last_words()) for peer in self.peers])
        await self.http.close()

    def remarks(self) -> list[str]:
        """What an operator should know of the peers, for ``/ready``."""
        silent = [
            f"ServiceDiscovery {peer.address} does not answer"
            for peer in self.peers
            if not peer.alive
        ]
        if silent and self._alone_at_start:
            silent.append("at its start this node found no other one to learn from")
        return silent


def _unanswered(failure: Failure) -> bool:
    """A peer that takes too long at the start tells nothing; a cancelled start is over."""
    failure.trap(DeferredTimeout)
    return False
