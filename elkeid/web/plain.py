"""What every face has beside its own routes: liveness, readiness, metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from twisted.web.resource import Resource
from twisted.web.server import Request

from elkeid.web.answers import JSON_TYPE, Answer, encode_json
from elkeid.web.peers import Networks, client_behind
from elkeid.web.refusals import AccessDenied, Refusal
from elkeid.web.routes import Call, Routes

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # what every scraper understands


class Readiness(msgspec.Struct, omit_defaults=True):
    """Body of ``GET /ready``.

    ``reasons``: what keeps the role from its job. ``remarks``: what does not, but should be known.
    """

    ready: bool
    reasons: list[str] = []
    remarks: list[str] = []


class Liveness:
    """``GET /ping`` and ``GET /ready``, without authentication.

    Args:
        problems: one sentence for each thing that keeps this role from doing its job.
        pong: body of ``/ping``; without one ``{"message": "pong"}``.
        remarks: one sentence for each thing that an operator should know, though the job is done.
    """

    routes = Routes()

    def __init__(
        self,
        problems: Callable[[], Sequence[str]],
        pong: Mapping[str, str] | None = None,
        remarks: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._problems, self._pong = problems, pong or {"message": "pong"}
        self._remarks = remarks

    @routes.get(
        "/ping",
        answer=dict[str, str],
        enveloped=False,
        summary="Say that the process is alive",
    )
    async def ping(self, call: Call) -> object:
        """Answer at once."""
        return Answer(200, self._pong)

    @routes.get(
        "/ready",
        answer=Readiness,
        enveloped=False,
        also={503: Readiness},
        summary="Say whether the role can do its job",
    )
    async def ready(self, call: Call) -> object:
        """200, or 503 with the reasons."""
        reasons = list(self._problems())
        answer = Readiness(not reasons, reasons, list(self._remarks()))
        return Answer(503 if reasons else 200, answer)


class MetricsPage(Resource):
    """``GET /metrics`` in Prometheus' text format, for some networks.

    Args:
        registry: what to show.
        networks: who may see it; others get 403.
        refusal: the face's own way to refuse: `elkeid.web.api.Api.refusal`.
        proxies: networks of proxies in front.
    """

    isLeaf = True

    def __init__(
        self,
        registry: CollectorRegistry,
        networks: Iterable[str],
        refusal: Callable[[Refusal], tuple[int, bytes]],
        proxies: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self._proxies = Networks(proxies)
        self._registry, self._allowed = registry, Networks(networks)
        self._refusal = refusal

    def render(self, request: Request) -> Any:
        """Make the page."""
        peer = client_behind(request, self._proxies)
        if peer not in self._allowed:
            refusal = AccessDenied(f"{peer} is in none of metrics_networks")
            return send_json(request, *self._refusal(refusal))
        request.setHeader("content-type", METRICS_TYPE)
        return generate_latest(self._registry)


def send_json(request: Request, status: int, body: object) -> bytes:
    """Set up a plain resource's JSON answer and return its bytes."""
    request.setResponseCode(status)
    request.setHeader("content-type", JSON_TYPE)
    return body if isinstance(body, bytes) else encode_json(body)
