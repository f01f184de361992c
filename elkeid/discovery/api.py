"""ServiceDiscovery's HTTP API, as AgentCenters, Managers, agents and peers use it.

Answers are ``{"data": ..., "msg": "ok"}``, or ``{"msg": "ok"}`` where there is nothing to say.
Reads need no signature: agents cannot sign.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import msgspec
from attrs import frozen
from twisted.web.resource import Resource
from twisted.web.server import Request

from elkeid.discovery.messages import (
    Difference,
    DifferenceAnswer,
    Digest,
    Evict,
    Ping,
    Register,
    Sync,
)
from elkeid.discovery.peers import Cluster
from elkeid.discovery.registry import Record, RegistrationInvalid, Registry, RegistryFull
from elkeid.discovery.replication import Outcome, answer_difference, receive
from elkeid.metrics import DiscoveryMetrics
from elkeid.web.answers import JSON_TYPE, Answer
from elkeid.web.api import Api
from elkeid.web.plain import Liveness, MetricsPage
from elkeid.web.rates import AddressRates
from elkeid.web.refusals import AuthenticationFailed, Busy, ParameterInvalid, Refusal
from elkeid.web.routes import AuthKind, Call, KiB, MiB, Route, Routes
from elkeid.web.signed import SignatureCheck

REGISTER_LIMIT = 64 * KiB  # bytes; an extra of the largest size, generously escaped
SYNC_LIMIT = 4 * MiB  # bytes; peers send at most 100 records a batch
DIFFERENCE_LIMIT = 16 * MiB  # bytes; 20,000 instances with long names
STEERED = "_grpc"  # names of this ending are for agents: where one is sent, it will come
FETCH_DEFAULT, FETCH_MOST = 5, 100
NO_NAME = "no server name"  # upstream's words for a read that names no service
_UNCOUNTED = ("/ping", "/ready", "/metrics")  # asked by machines every few seconds


class DetailQuery(msgspec.Struct):
    """Query of ``/registry/detail``; ``steer=no``: whoever asks looks around, no agent comes."""

    name: str = ""
    count: str = ""
    steer: str = ""


class FetchQuery(msgspec.Struct):
    """Query of ``/registry/fetch``; another mode than ``max`` and ``rand`` is ``min``."""

    name: str = ""
    mode: str = "min"
    count: str = ""


class TooMany(Refusal):
    """An address asks more often than it may."""

    status = 429

    def __init__(self) -> None:
        super().__init__("too many requests from this address")


class Admission:
    """Checks an address's rate, then a signature.

    Args:
        signed: checks signatures.
        rates: how often one address may send a signed request.
    """

    def __init__(self, signed: SignatureCheck, rates: AddressRates) -> None:
        self._signed, self._rates = signed, rates

    def __call__(self, call: Call) -> str:
        """Return the access key, or raise the refusal."""
        if not self._rates.take(call.peer):
            raise TooMany
        return self._signed(call)


class SdEnvelope:
    """ServiceDiscovery's way to say yes and no."""

    def success(self, data: Any, beside: Mapping[str, object]) -> object:
        """``data`` only where there is any."""
        return {"msg": "ok", **beside} if data is None else {"data": data, "msg": "ok", **beside}

    def failure(self, refusal: Refusal) -> tuple[int, object]:
        """Authentication has its own form; the others have the reason as ``data``."""
        if isinstance(refusal, AuthenticationFailed):
            return refusal.status, {"code": -1, "data": refusal.reason, "msg": "auth failed"}
        if isinstance(refusal, ParameterInvalid):
            return refusal.status, {"data": refusal.reason, "msg": "post data error"}
        return refusal.status, {"msg": refusal.reason}


@frozen
class Node:
    """This node, as its peers see it.

    Args:
        id: of this process, unlike every other one.
        host: ``address:port`` of this node.
        members: ``address:port`` of every node.
    """

    id: str
    host: str
    members: Sequence[str]


class RegistryRoutes:
    """The handlers.

    Args:
        registry: what they serve.
        node: who this is.
        cluster: the other nodes.
        metrics: what they count.
        wall: seconds since the epoch.
        monotonic: seconds that only go forward; leases age by it.
        random: for ``mode=rand``.
        zone: address of a client -> its zone, None where zones do not matter.
    """

    routes = Routes()

    def __init__(
        self,
        registry: Registry,
        node: Node,
        cluster: Cluster,
        metrics: DiscoveryMetrics,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        random: Random,
        zone: Callable[[str], str | None] | None = None,
    ) -> None:
        self._registry, self._node, self._cluster = registry, node, cluster
        self._metrics, self.zone = metrics, zone
        self._wall, self._monotonic, self._random = wall, monotonic, random

    @routes.post(
        "/registry/register",
        auth=AuthKind.SIGNED,
        repeats=True,
        body=Register,
        limit=REGISTER_LIMIT,
        summary="Take or renew the lease of an instance",
    )
    async def register(self, call: Call[None, Register]) -> None:
        """Applied in memory when it answers."""
        now, body = self._running(), call.body
        self._registry.register(
            body.name, body.ip, body.port, body.weight, body.extra, wall=self._wall(), now=now
        )
        self._cluster.changed((body.name, body.ip, body.port))

    @routes.post(
        "/registry/evict",
        auth=AuthKind.SIGNED,
        repeats=True,
        body=Evict,
        limit=REGISTER_LIMIT,
        summary="Drop the lease of an instance; an unknown one is fine",
    )
    async def evict(self, call: Call[None, Evict]) -> None:
        """Applied in memory when it answers."""
        body, now = call.body, self._monotonic()
        if self._registry.evict(body.name, body.ip, body.port, wall=self._wall(), now=now):
            self._metrics.evicted.labels("asked").inc()
        self._cluster.changed((body.name, body.ip, body.port))

    @routes.post(
        "/registry/sync",
        auth=AuthKind.SIGNED,
        repeats=True,
        body=Sync,
        limit=SYNC_LIMIT,
        summary="Take a peer's changes",
    )
    async def sync(self, call: Call[None, Sync]) -> None:
        """Apply what is newer than what is known here; one bad record spoils no other."""
        now, wall = self._running(), self._wall()
        for event in call.body.data or ():
            outcome = receive(self._registry, event, call.peer, wall=wall, now=now)
            if outcome is Outcome.EVICTED:
                self._metrics.evicted.labels("peer").inc()
            elif outcome is not Outcome.TAKEN:
                self._metrics.ignored_events.labels(outcome.value).inc()

    def _running(self) -> float:
        """The time; `Busy` if this process stood still: the request may have lain for as long.

        It would make an instance look alive that has died meanwhile.
        """
        now = self._monotonic()
        if self._registry.stalled(now):
            raise Busy("this node stood still and is catching up: try again")
        return now

    @routes.get(
        "/registry/digest",
        auth=AuthKind.SIGNED,
        summary="What this node knows, in a few numbers to compare",
        answer=Digest,
    )
    async def digest(self, call: Call) -> object:
        """Peers of our kind compare it with theirs."""
        return Digest(self._node.id, self._registry.digest.buckets)

    @routes.post(
        "/registry/difference",
        auth=AuthKind.SIGNED,
        repeats=True,
        body=Difference,
        limit=DIFFERENCE_LIMIT,
        summary="What this node knows better than a peer, and what it would like to know",
        answer=DifferenceAnswer,
    )
    async def difference(self, call: Call[None, Difference]) -> object:
        """Nothing is changed by it."""
        return answer_difference(self._registry, call.body, self._monotonic())

    @routes.get(
        "/endpoint/ping",
        summary="Who this node is, and its members",
        answer=Ping,
    )
    async def endpoint_ping(self, call: Call) -> object:
        """Peers probe with it."""
        node = self._node
        return Ping(node.host, list(node.members), node.id, self._cluster.steered)

    @routes.get("/endpoint/stat", summary="The members", answer=list[str])
    async def endpoint_stat(self, call: Call) -> object:
        """As configured."""
        return list(self._node.members)

    @routes.get("/registry/summary", summary="Instances by name", answer=dict[str, int])
    async def summary(self, call: Call) -> object:
        """Counts."""
        return self._registry.counts()

    @routes.get("/registry/list", summary="All names", answer=list[str])
    async def list_names(self, call: Call) -> object:
        """Sorted."""
        return self._registry.names()

    @routes.get(
        "/registry/detail",
        query=DetailQuery,
        summary="Instances of a name, those to try first at the front",
        answer=list[Record],
    )
    async def detail(self, call: Call[DetailQuery]) -> object:
        """The same as `DetailPage`, which serves it, makes."""
        query = call.query
        return Answer(200, self.detail_json(query.name, query.count, query.steer, call.peer))

    def detail_json(self, name: str, count: str, steer: str, peer: str) -> bytes:
        """The body of an answer; an unreadable ``count`` means all, as upstream takes it."""
        if not name:
            raise Refusal(NO_NAME)
        most = int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0
        charge = 0.0
        if name.endswith(STEERED) and steer != "no":
            charge = self._cluster.charge()
            self._cluster.steered += 1
        zone = self.zone(peer) if self.zone is not None else None
        records = self._registry.detail(name, self._monotonic(), most, charge=charge, zone=zone)
        return b'{"data":' + records + b',"msg":"ok"}'

    @routes.get(
        "/registry/fetch",
        query=FetchQuery,
        summary="Some instances of a name: lightest, heaviest or random",
        answer=list[Record],
    )
    async def fetch(self, call: Call[FetchQuery]) -> object:
        """Whatever their state."""
        query = call.query
        if not query.name:
            raise Refusal(NO_NAME)
        try:
            count = int(query.count) or FETCH_DEFAULT
        except ValueError:
            count = FETCH_DEFAULT
        if not 1 <= count <= FETCH_MOST:
            return Answer(400, {"msg": "fetch count out of limit"})
        records = self._registry.records(query.name, self._monotonic())
        if not records:
            raise Busy(f"fetch registry error: server {query.name} no instance")
        if query.mode == "rand":
            return self._random.sample(records, min(count, len(records)))
        records.sort(key=lambda record: record.weight, reverse=query.mode == "max")
        return records[:count]


class DetailPage(Resource):
    """``GET /registry/detail`` for every agent of a fleet: answered without routing.

    Args:
        routes: what makes the body.
        refusal: the face's way to refuse.
        metrics: what it counts.
        rates: how often one address may ask.
    """

    isLeaf = True

    def __init__(
        self,
        routes: RegistryRoutes,
        refusal: Callable[[Refusal], tuple[int, bytes]],
        metrics: DiscoveryMetrics,
        rates: AddressRates,
    ) -> None:
        super().__init__()
        self._routes, self._refusal, self._answers = routes, refusal, metrics.answers
        self._rates = rates

    def render_GET(self, request: Request) -> bytes:
        """Answer at once."""
        args = request.args or {}
        name, count, steer = args.get(b"name"), args.get(b"count"), args.get(b"steer")
        peer, status = getattr(request.getClientAddress(), "host", ""), 200
        try:
            if not self._rates.take(peer):
                raise TooMany
            body = self._routes.detail_json(
                name[0].decode("utf-8", "replace") if name else "",
                count[0].decode("latin-1") if count else "",
                steer[0].decode("latin-1") if steer else "",
                peer,
            )
        except Refusal as refusal:
            status, body = self._refusal(refusal)
            request.setResponseCode(status)
        self._answers.add("/registry/detail", str(status))
        request.setHeader(b"content-type", JSON_TYPE.encode())
        return body


def make_api(
    routes: RegistryRoutes,
    liveness: Liveness,
    signed: SignatureCheck,
    metrics: DiscoveryMetrics,
    metrics_networks: Sequence[str],
    *,
    reads: AddressRates,
    writes: AddressRates,
) -> Api:
    """Put the face together.

    Args:
        routes: the registry's handlers.
        liveness: ``/ping`` and ``/ready``.
        signed: who may change the registry.
        metrics: shown under ``/metrics``.
        metrics_networks: who may see them.
        reads: how often one address may ask for instances.
        writes: how often one address may send a signed request.
    """

    def observe(route: Route | None, status: int) -> None:
        path = route.path if route is not None else ""
        if path not in _UNCOUNTED:
            metrics.answers.add(path, str(status))

    api = Api(
        SdEnvelope(),
        [liveness, routes],
        {AuthKind.SIGNED: Admission(signed, writes)},
        {
            RegistrationInvalid: lambda error: ParameterInvalid(str(error)),
            RegistryFull: lambda error: Busy(str(error)),
        },
        observe,
    )
    api.mount("/registry/detail", DetailPage(routes, api.refusal, metrics, reads))
    api.mount("/metrics", MetricsPage(metrics.registry, metrics_networks, api.refusal))
    return api
