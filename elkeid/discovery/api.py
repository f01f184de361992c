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

from elkeid.discovery.registry import (
    Int64,
    Record,
    RegistrationInvalid,
    Registry,
    RegistryFull,
    json_list,
)
from elkeid.metrics import DiscoveryMetrics
from elkeid.web.answers import JSON_TYPE, Answer
from elkeid.web.api import Api
from elkeid.web.plain import Liveness, MetricsPage
from elkeid.web.refusals import AuthenticationFailed, Busy, ParameterInvalid, Refusal
from elkeid.web.routes import AuthKind, Call, KiB, MiB, Route, Routes
from elkeid.web.signed import SignatureCheck

REGISTER_LIMIT = 64 * KiB  # bytes; an extra of the largest size, generously escaped
SYNC_LIMIT = 4 * MiB  # bytes; peers send at most 100 records a batch
FETCH_DEFAULT, FETCH_MOST = 5, 100
NO_NAME = "no server name"  # upstream's words for a read that names no service
_UNCOUNTED = ("/ping", "/ready", "/metrics")  # asked by machines every few seconds


class Register(msgspec.Struct):
    """Body of ``/registry/register``; absent ``extra`` keeps what is known."""

    name: str = ""
    ip: str = ""
    port: int = 0
    weight: Int64 = 0
    extra: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


class Evict(msgspec.Struct):
    """Body of ``/registry/evict``."""

    name: str = ""
    ip: str = ""
    port: int = 0


class Event(msgspec.Struct):
    """One change at a peer; an unknown ``action`` is ignored."""

    action: str = ""
    registry: Record = msgspec.field(default_factory=Record)


class Sync(msgspec.Struct):
    """Body of ``/registry/sync``; ``source`` names the peer, for information."""

    source: str = ""
    data: list[Event] | None = None


class DetailQuery(msgspec.Struct):
    """Query of ``/registry/detail``."""

    name: str = ""
    count: str = ""


class FetchQuery(msgspec.Struct):
    """Query of ``/registry/fetch``; another mode than ``max`` and ``rand`` is ``min``."""

    name: str = ""
    mode: str = "min"
    count: str = ""


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
        host: ``address:port`` of this node.
        members: ``address:port`` of every node.
    """

    host: str
    members: Sequence[str]


class RegistryRoutes:
    """The handlers.

    Args:
        registry: what they serve.
        node: who this is.
        metrics: what they count.
        wall: seconds since the epoch.
        monotonic: seconds that only go forward; leases age by it.
        random: for ``mode=rand``.
    """

    routes = Routes()

    def __init__(
        self,
        registry: Registry,
        node: Node,
        metrics: DiscoveryMetrics,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        random: Random,
    ) -> None:
        self._registry, self._node, self._metrics = registry, node, metrics
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
        body = call.body
        self._registry.register(
            body.name,
            body.ip,
            body.port,
            body.weight,
            body.extra,
            wall=int(self._wall()),
            now=self._monotonic(),
        )

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
        body = call.body
        if self._registry.evict(body.name, body.ip, body.port):
            self._metrics.evicted.labels("asked").inc()

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
        now = self._monotonic()
        for event in call.body.data or ():
            self._apply(event, now)

    def _apply(self, event: Event, now: float) -> None:
        record, ignored = event.registry, self._metrics.ignored_events
        if event.action == "REGISTER":
            try:
                if not self._registry.merge(record, now):
                    ignored.labels("older").inc()
            except RegistrationInvalid:
                ignored.labels("invalid").inc()
            except RegistryFull:
                ignored.labels("full").inc()
        elif event.action == "EVICT":
            # A peer that was asked to evict sends zeros; one that evicts by age sends what it
            # had, which may be older than what the instance told us.
            not_after = record.update_at or None
            if self._registry.evict(record.name, record.ip, record.port, not_after):
                self._metrics.evicted.labels("peer").inc()
            else:
                ignored.labels("older").inc()
        else:
            ignored.labels("unknown").inc()

    @routes.get(
        "/endpoint/ping",
        summary="Who this node is, and its members",
        answer=dict[str, Any],
    )
    async def endpoint_ping(self, call: Call) -> object:
        """Peers probe with it."""
        return {"host": self._node.host, "members": list(self._node.members)}

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
        return Answer(200, self.detail_json(call.query.name, call.query.count))

    def detail_json(self, name: str, count: str) -> bytes:
        """The body of an answer; an unreadable ``count`` means all, as upstream takes it."""
        if not name:
            raise Refusal(NO_NAME)
        most = int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0
        records = self._registry.detail(name, self._monotonic(), most)
        return b'{"data":' + json_list(records) + b',"msg":"ok"}'

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
    """

    isLeaf = True

    def __init__(
        self,
        routes: RegistryRoutes,
        refusal: Callable[[Refusal], tuple[int, bytes]],
        metrics: DiscoveryMetrics,
    ) -> None:
        super().__init__()
        self._routes, self._refusal, self._answers = routes, refusal, metrics.answers

    def render_GET(self, request: Request) -> bytes:
        """Answer at once."""
        args = request.args or {}
        name, count = args.get(b"name"), args.get(b"count")
        status = 200
        try:
            body = self._routes.detail_json(
                name[0].decode("utf-8", "replace") if name else "",
                count[0].decode("latin-1") if count else "",
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
) -> Api:
    """Put the face together.

    Args:
        routes: the registry's handlers.
        liveness: ``/ping`` and ``/ready``.
        signed: who may change the registry.
        metrics: shown under ``/metrics``.
        metrics_networks: who may see them.
    """

    def observe(route: Route | None, status: int) -> None:
        path = route.path if route is not None else ""
        if path not in _UNCOUNTED:
            metrics.answers.add(path, str(status))

    api = Api(
        SdEnvelope(),
        [liveness, routes],
        {AuthKind.SIGNED: signed},
        {
            RegistrationInvalid: lambda error: ParameterInvalid(str(error)),
            RegistryFull: lambda error: Busy(str(error)),
        },
        observe,
    )
    api.mount("/registry/detail", DetailPage(routes, api.refusal, metrics))
    api.mount("/metrics", MetricsPage(metrics.registry, metrics_networks, api.refusal))
    return api
