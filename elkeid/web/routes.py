"""Declarations: each route is stated once, on its handler, and everything follows from that.

    class Users:
        routes = Routes("/api/v1/user")

        @routes.post("/login", body=Login, answer=Token, summary="Log in")
        async def login(self, call: Call[None, Login]) -> Token: ...

Validation, limits, authentication and documentation read the same `Route`.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, Generic

import msgspec
from attrs import Factory, define, frozen
from twisted.web.http_headers import Headers
from typing_extensions import TypeVar

from elkeid.web.schemas import BodySchema, QuerySchema
from elkeid.web.spool import Spool

KiB = 1 << 10
MiB = 1 << 20
BODY_LIMIT = MiB  # bytes; a JSON request of any face is far below
PART = re.compile(r"<(?:(?P<kind>\w+)(?:\([^)]*\))?:)?(?P<name>\w+)>")
"""What a declared path has in place of a part."""

Query = TypeVar("Query", default=Any)
Body = TypeVar("Body", default=Any)


class AuthKind(StrEnum):
    """How a route establishes who asks; each face brings the checks for the kinds it uses."""

    NONE = "none"
    SIGNED = "signed"  # AK/SK
    TOKEN = "token"  # noqa: S105 - the name of a kind


class Undeclared(Enum):
    """Says that a route does not tell what it answers."""

    UNDECLARED = "undeclared"


UNDECLARED = Undeclared.UNDECLARED


@define
class Call(Generic[Query, Body]):
    """One request, as a handler sees it.

    ``query`` and ``body`` are what the route's schemas made of ``raw_query`` and ``raw_body``
    (None without a schema). ``peer`` is the client's IP address without a port; ``identity``
    is what the authentication returned: an access key, a user, or None.
    """

    method: str
    path: bytes  # as sent, percent-encoded
    raw_query: bytes  # the bytes after "?"
    headers: Headers
    peer: str
    raw_body: bytes = b""
    spool: Spool | None = None  # the body of a route that keeps it on disk
    parts: Mapping[str, str] = Factory(dict)
    identity: Any = None
    query: Query = None  # type: ignore[assignment]
    body: Body = None  # type: ignore[assignment]
    answer_headers: dict[str, str] = Factory(dict)  # sent with whatever the answer will be
    route: "Route | None" = None  # the one that serves this request

    def header(self, name: str) -> str | None:
        """The first value of a header, or None; bytes that are not UTF-8 become surrogates."""
        values = self.headers.getRawHeaders(name.encode())
        return values[0].decode("utf-8", "surrogateescape") if values else None


Handler = Callable[[Any, Any], Awaitable[object]]


@frozen(eq=False)
class Route:
    """One declared route.

    ``path`` is in Klein's syntax (``/shared/Download/<string:name>``), whole, and without a
    trailing slash: both spellings are served. ``limit`` is the largest body in bytes.
    ``answer`` is the type of ``data`` in a success, None for null, and ``beside`` a struct of
    what stands beside ``data``. A route that is not ``enveloped`` answers exactly its ``answer``;
    one of another ``media`` type answers that, or a refusal in JSON. ``also`` are types of
    answers with other HTTP statuses. A success of one that ``upgrades`` makes the connection a
    WebSocket whose messages are ``answer``. All of these are for documentation. ``levels`` are
    those of the users that may call a route of kind ``TOKEN``; without any, nobody may.
    ``repeats`` says that a signed request without a nonce may come again as it is: it changes
    nothing the second time, and stock clients send it so. ``reads`` says that a POST changes
    nothing: its body is a filter; ``acts`` that a GET changes something all the same. The body
    of a ``spooled`` route is kept on disk, in `Call.spool`, and not decoded.
    """

    method: str
    path: str
    auth: AuthKind
    summary: str
    handler: Handler
    query: QuerySchema | None = None
    body: BodySchema | None = None
    limit: int = BODY_LIMIT
    answer: Any = UNDECLARED
    beside: type[msgspec.Struct] | None = None
    enveloped: bool = True
    media: str = "application/json"
    also: Mapping[int, Any] = Factory(dict)
    upgrades: bool = False
    levels: frozenset[int] = frozenset()
    repeats: bool = False
    reads: bool = False
    acts: bool = False
    spooled: bool = False

    @property
    def changes(self) -> bool:
        """Whether a call may change something."""
        return self.acts or (self.method not in ("GET", "HEAD") and not self.reads)

    def path_with(self, fill: Callable[[str], str]) -> str:
        """The path with what ``fill`` makes of the name of each part in its place."""
        return PART.sub(lambda part: fill(part["name"]), self.path)


class Routes:
    """The declared routes of one group of handlers: a class attribute named ``routes``.

    Args:
        prefix: put before every path.
        auth: the kind of routes that name none.
    """

    def __init__(self, prefix: str = "", auth: AuthKind = AuthKind.NONE) -> None:
        self.prefix, self.auth = prefix, auth
        self.declared: list[Route] = []

    def route(
        self,
        method: str,
        path: str,
        *,
        summary: str,
        auth: AuthKind | None = None,
        query: type[msgspec.Struct] | None = None,
        body: Any = None,
        limit: int = BODY_LIMIT,
        answer: Any = UNDECLARED,
        beside: type[msgspec.Struct] | None = None,
        enveloped: bool = True,
        media: str = "application/json",
        also: Mapping[int, Any] = MappingProxyType({}),
        upgrades: bool = False,
        levels: frozenset[int] = frozenset(),
        repeats: bool = False,
        reads: bool = False,
        acts: bool = False,
        spooled: bool = False,
    ) -> Callable[[Handler], Handler]:
        """Declare the decorated handler under ``method`` and ``path``."""

        def declare(handler: Handler) -> Handler:
            self.declared.append(
                Route(
                    method=method,
                    path=(self.prefix + path).rstrip("/") or "/",
                    auth=self.auth if auth is None else auth,
                    summary=summary,
                    handler=handler,
                    query=None if query is None else QuerySchema(query),
                    body=None if body is None else BodySchema(body),
                    limit=limit,
                    answer=answer,
                    beside=beside,
                    enveloped=enveloped,
                    media=media,
                    also=also,
                    upgrades=upgrades,
                    levels=levels,
                    repeats=repeats,
                    reads=reads,
                    acts=acts,
                    spooled=spooled,
                )
            )
            return handler

        return declare

    def get(self, path: str, *, summary: str, **declared: Any) -> Callable[[Handler], Handler]:
        """Declare a GET; the rest as in `route`."""
        return self.route("GET", path, summary=summary, **declared)

    def post(self, path: str, *, summary: str, **declared: Any) -> Callable[[Handler], Handler]:
        """Declare a POST; the rest as in `route`."""
        return self.route("POST", path, summary=summary, **declared)
