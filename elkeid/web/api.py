"""One HTTP face: declared routes, an envelope and authentication, as one twisted.web resource."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from inspect import isawaitable
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request
from werkzeug.exceptions import HTTPException
from zope.interface import implementer

from elkeid.web.answers import (
    JSON_TYPE,
    Answer,
    Envelope,
    Enveloped,
    EventStream,
    FileAnswer,
    Source,
    Takeover,
    encode_json,
)
from elkeid.web.peers import Networks, client_behind
from elkeid.web.refusals import (
    AnswerInstead,
    BodyTooLarge,
    InternalFault,
    NoSuchRoute,
    Refusal,
)
from elkeid.web.routes import AuthKind, Call, Route, Routes
from elkeid.web.spool import Spool

FILE_PIECE = 64 << 10
"""Bytes of a file that are read at once: some 20 µs, from the system's cache."""

EVENTS_TYPE = "text/event-stream; charset=utf-8"

Authenticator = Callable[[Call], Any]
"""Returns the caller's identity, at once or awaitable, or raises a `Refusal`."""


Gate = Callable[[str], None]
"""Raises a `Refusal` for an IP address that is not served, whatever it brings."""


class Witness(Protocol):
    """Is told of every authenticated call to a route that changes something."""

    async def before(self, call: Call) -> object:
        """Before anything is done; what it raises refuses the call."""

    async def after(self, begun: object, answer: Answer | None) -> None:
        """What `before` returned, and the answer; None if the client left before there was one."""


class Group(Protocol):
    """An object whose methods serve the routes of its class."""

    routes: Routes


class Api(Resource):
    """Serves the routes of some groups; also knows their limits before a body is read.

    Args:
        envelope: how this face wraps results and refusals.
        groups: objects with ``routes``.
        authenticators: one per `AuthKind` that the routes use; ``NONE`` needs none.
        errors: domain error class -> maker of the refusal, or the answer, that a client gets.
        observe: called with route and HTTP status for every answer; route is None where no
            declared one was met.
        witness: told of calls that change something; nobody by default.
        proxies: networks of proxies whose word on who the client is counts; none by default.
        gates: for kinds whose routes not every address may call: refuses one, before a body is
            read.
    """

    isLeaf = True
    log = Logger()

    def __init__(
        self,
        envelope: Envelope,
        groups: Iterable[Group],
        authenticators: Mapping[AuthKind, Authenticator] | None = None,
        errors: Mapping[type[Exception], Callable[[Any], Refusal | AnswerInstead]] | None = None,
        observe: Callable[[Route | None, int], None] = lambda route, status: None,
        *,
        witness: Witness | None = None,
        proxies: Iterable[str] = (),
        gates: Mapping[AuthKind, Gate] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._witness, self.proxies, self._gates = witness, Networks(proxies), gates
        self.routes: list[Route] = []
        self._envelope, self._errors, self.observe = envelope, errors or {}, observe
        self._authenticators = {AuthKind.NONE: _anyone, **(authenticators or {})}
        self._mounted: dict[bytes, IResource] = {}
        self._declared: dict[tuple[str, str], Route] = {}
        self._app = Klein()
        self._app.url_map.merge_slashes = False
        self._app.handle_errors(HTTPException)(self._unrouted)
        self._app.handle_errors(Exception)(self._broken)
        for group in groups:
            for route in group.routes.declared:
                self._add(route, group)
        self._klein = self._app.resource()

    def _add(self, route: Route, group: Group) -> None:
        if route.auth not in self._authenticators:
            raise ValueError(f"{route.method} {route.path}: nothing checks {route.auth}")
        endpoint = f"{route.method} {route.path}"
        if endpoint in self._app.endpoints:
            raise ValueError(f"{endpoint}: declared twice")
        handler = getattr(group, route.handler.__name__)

        def execute(request: IRequest, **parts: str) -> Awaitable[Any]:
            return self._serve(route, handler, request, parts)

        self._app.route(route.path, methods=[route.method], endpoint=endpoint)(execute)
        self.routes.append(route)
        self._declared[route.method, route.path] = route

    def mount(self, path: str, resource: IResource) -> None:
        """Serve GET and HEAD of ``path`` by a resource of its own: fast, or no JSON."""
        self._mounted[path.encode()] = resource

    def route_of(self, method: bytes, target: bytes) -> Route | None:
        """The declared route that a request line means, known as soon as its headers are."""
        try:
            path = unquote_to_bytes(target.partition(b"?")[0]).decode()
        except UnicodeDecodeError:
            return None
        path = path.rstrip("/") or "/"
        verb = method.decode("latin-1")
        route = self._declared.get((verb, path))
        if route is not None:
            return route
        try:
            endpoint, _ = self._app.url_map.bind("").match(path, method=verb)
        except Exception:
            return None
        verb, _, path = str(endpoint).partition(" ")
        return self._declared[verb, path]

    def turned_away(self, route: Route, address: str) -> Refusal | None:
        """Why a route serves nobody at an IP address, known before a body is read; or None."""
        gate = self._gates.get(route.auth)
        if gate is not None:
            try:
                gate(address)
            except Refusal as refusal:
                return refusal
        return None

    def refusal(self, refusal: Refusal) -> tuple[int, bytes]:
        """HTTP status and JSON bytes of a refusal."""
        status, body = self._envelope.failure(refusal)
        return status, Answer(status, body).encoded()

    def render(self, request: Request) -> Any:
        """Serve a mounted resource or a declared route; anything else is 404 in JSON."""
        path: bytes = request.path
        if len(path) > 1 and path.endswith(b"/"):
            path = path[:-1]
            if request.postpath:
                request.postpath.pop()
        mounted = self._mounted.get(path)
        if mounted is not None and request.method in (b"GET", b"HEAD"):
            return mounted.render(request)
        try:
            b"/".join(request.postpath or []).decode("utf-8")
        except UnicodeDecodeError:
            return self._send(request, None, *self._refused(NoSuchRoute("path: not UTF-8")))
        return self._klein.render(request)

    async def _serve(
        self,
        route: Route,
        handler: Callable[[Call], Awaitable[object]],
        request: Any,
        parts: Mapping[str, str],
    ) -> Any:
        peer = client_behind(request, self.proxies)
        _, _, query = request.uri.partition(b"?")
        call: Call = Call(
            route.method,
            request.path,
            query,
            request.requestHeaders,
            peer,
            parts=parts,
            route=route,
        )
        begun: object = None
        try:
            if isinstance(request.content, Spool):
                call.spool = request.content
            else:
                call.raw_body = request.content.read()
                if len(call.raw_body) > route.limit:
                    raise BodyTooLarge(route.limit)
            identity = self._authenticators[route.auth](call)
            call.identity = await identity if isawaitable(identity) else identity
            if self._witness is not None and route.changes:
                begun = await self._witness.before(call)
            if route.query is not None:
                call.query = route.query.decode(call.raw_query)
            if route.body is not None:
                call.body = route.body.decode(call.raw_body)
            result = await handler(call)
            if isinstance(result, FileAnswer | EventStream):
                await self._told(begun, Answer(200))
            if isinstance(result, FileAnswer):
                self.observe(route, 200)
                return _FileResource(result, call.answer_headers)
            if isinstance(result, EventStream):
                self.observe(route, 200)
                return _EventResource(result, call.answer_headers)
            if isinstance(result, Takeover):
                self.observe(route, 101)
                return _TakeoverResource(result)
            answer = self._succeeded(result)
            body = answer.encoded()
        except CancelledError:  # the client has left, nobody waits for an answer
            Deferred.fromCoroutine(self._told(begun, None))
            raise
        except Exception as error:
            answer, body = self._refused(error, f"{route.method} {route.path}")
        await self._told(begun, answer)
        for name, value in call.answer_headers.items():
            request.setHeader(name, value)
        return self._send(request, route, answer, body)

    async def _told(self, begun: object, answer: Answer | None) -> None:
        if self._witness is not None and begun is not None:
            await self._witness.after(begun, answer)

    def _succeeded(self, result: object) -> Answer:
        if isinstance(result, Answer):
            return result
        if isinstance(result, Enveloped):
            body = self._envelope.success(result.data, result.beside)
            return Answer(200, body, result.headers)
        return Answer(200, self._envelope.success(result, {}))

    def _refused(self, error: BaseException | None, what: str = "") -> tuple[Answer, bytes]:
        if not isinstance(error, Refusal | AnswerInstead):
            known = next((k for k in type(error).__mro__ if k in self._errors), None)
            if known is None:
                self.log.failure("{what} failed", Failure(error), what=what)
                error = InternalFault()
            else:
                error = self._errors[known](error)
        if isinstance(error, AnswerInstead):
            return error.answer, error.answer.encoded()
        answer = Answer(*self._envelope.failure(error))
        return answer, answer.encoded()

    def _send(self, request: Any, route: Route | None, answer: Answer, body: bytes) -> bytes:
        request.setResponseCode(answer.status)
        if body or answer.status == 200:
            request.setHeader("content-type", JSON_TYPE)
        for name, value in answer.headers.items():
            request.setHeader(name, value)
        request.setHeader("content-length", str(len(body)))
        self.observe(route, answer.status)
        return body

    def _unrouted(self, request: IRequest, failure: Failure) -> bytes:
        return self._send(request, None, *self._refused(NoSuchRoute("no such route")))

    def _broken(self, request: IRequest, failure: Failure) -> bytes:
        return self._send(request, None, *self._refused(failure.value, repr(request)))


@implementer(IPushProducer)
class _FileProducer:
    """Writes a file to a request for as long as the client takes it."""

    def __init__(self, request: Request, file: Source) -> None:
        self._request, self._file = request, file
        self._paused = self._over = False

    def start(self) -> None:
        self._request.registerProducer(self, True)
        if not self._paused:
            self.resumeProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        while not (self._paused or self._over):
            data = self._file.read(FILE_PIECE)
            if data:
                self._request.write(data)
                continue
            self._request.unregisterProducer()
            self.stopProducing()
            self._request.finish()

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._over = True
        self._file.close()


class _FileResource(Resource):
    """Sends a file."""

    isLeaf = True

    def __init__(self, answer: FileAnswer, headers: Mapping[str, str]) -> None:
        super().__init__()
        self._answer, self._headers = answer, headers

    def render(self, request: Request) -> int:
        answer = self._answer
        request.setHeader("content-length", str(answer.size))
        for name, value in {**self._headers, **answer.headers}.items():
            request.setHeader(name, value)
        _FileProducer(request, answer.file).start()
        return NOT_DONE_YET


class _Sink:
    """Events of one request."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.gone = False
        request.notifyFinish().addErrback(self._left)

    def _left(self, reason: Failure) -> None:
        self.gone = True

    def send(self, name: str, data: object) -> None:
        if not self.gone:
            self._request.write(b"event: %s\ndata: %s\n\n" % (name.encode(), encode_json(data)))


class _EventResource(Resource):
    """Sends events until there are no more."""

    isLeaf = True
    log = Logger()

    def __init__(self, stream: EventStream, headers: Mapping[str, str]) -> None:
        super().__init__()
        self._stream, self._headers = stream, headers

    def render(self, request: Request) -> int:
        kind = {"content-type": EVENTS_TYPE, "cache-control": "no-store"}
        for name, value in {**self._headers, **kind}.items():
            request.setHeader(name, value)
        sink = _Sink(request)
        running = Deferred.fromCoroutine(self._run(sink))
        running.addCallbacks(
            lambda _: self._ended(request, sink), lambda reason: self._failed(reason, request, sink)
        )
        return NOT_DONE_YET

    async def _run(self, sink: _Sink) -> None:
        await self._stream.run(sink)

    def _ended(self, request: Request, sink: _Sink) -> None:
        if not sink.gone:
            request.finish()

    def _failed(self, failure: Failure, request: Request, sink: _Sink) -> None:
        self.log.failure("events of {path} failed", failure, path=request.path)
        if not sink.gone:  # an answer that was cut must not look whole
            request.loseConnection()


class _TakeoverResource(Resource):
    """Hands the connection over."""

    isLeaf = True

    def __init__(self, answer: Takeover) -> None:
        super().__init__()
        self._answer = answer

    def render(self, request: Request) -> int:
        channel: Any = request.channel  # a BoundedChannel
        channel.hand_over(request, self._answer.protocol)
        return NOT_DONE_YET


def _anyone(call: Call) -> None:
    """Authenticate nobody."""
