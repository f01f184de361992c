"""A small face with one route of every kind."""

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from elkeid.web.answers import Answer, CodeEnvelope, Enveloped
from elkeid.web.api import Api
from elkeid.web.refusals import (
    AnswerInstead,
    AuthenticationFailed,
    BodyTooLarge,
    CodedRefusal,
    ParameterInvalid,
)
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.web.signed import SignatureCheck

from .memory import NOW

AK, SK = "demoaccesskey01", "demo-secret-key-0123456789abcdef"
MESSAGES = {0: "success", 1: "auth failed", 2: "param invalid", 3: "some errors occurred"}


class Page(msgspec.Struct):
    """A query with numbers, a list, a flag."""

    page: int = 1
    tag: list[str] = []
    all: bool = False


class Item(msgspec.Struct):
    """A body with a nested list."""

    name: str
    ports: list[int] = []


class Lost(Exception):
    """An error of a domain that knows no HTTP."""


class SampleRoutes:
    """One route of every kind; ``waiting`` holds what the slow ones wait for."""

    routes = Routes("/x")

    def __init__(self) -> None:
        self.waiting: list[Deferred[Any]] = []
        self.cancelled = 0

    @routes.get("/page", query=Page, answer=list[Any], summary="Echo the query")
    async def page(self, call: Call[Page]) -> object:
        """Echo."""
        return [call.query.page, call.query.tag, call.query.all]

    @routes.post("/item", body=Item, limit=100, summary="Echo the body")
    async def item(self, call: Call[None, Item]) -> object:
        """Echo."""
        return Enveloped([call.body.name, call.body.ports], {"page_info": {"total": 1}})

    @routes.get("/item/<string:name>/<int:number>", summary="Echo the path")
    async def part(self, call: Call) -> object:
        """Echo."""
        return call.parts

    @routes.route("DELETE", "/item", auth=AuthKind.SIGNED, summary="Echo the identity")
    async def delete(self, call: Call) -> object:
        """Echo."""
        return call.identity

    @routes.post("/signed", auth=AuthKind.SIGNED, body=Item, summary="Echo the body")
    async def signed(self, call: Call[None, Item]) -> object:
        """Echo."""
        return call.body

    @routes.get("/token", auth=AuthKind.TOKEN, summary="Echo the user")
    async def token(self, call: Call) -> object:
        """Echo."""
        return call.identity

    @routes.get("/slow", summary="Wait twice")
    async def slow(self, call: Call) -> object:
        """Answer when told to."""
        total = 0
        for _ in range(2):
            waiting: Deferred[int] = Deferred(self._cancelled)
            self.waiting.append(waiting)
            total += await waiting
        return total

    @routes.get("/fail/<string:how>", summary="Fail")
    async def fail(self, call: Call) -> object:
        """Fail in the way asked for."""
        match call.parts["how"]:
            case "known":
                raise Lost("no such thing")
            case "coded":
                raise CodedRefusal(10, "held")
            case "instead":
                raise AnswerInstead(Answer(401, b"", {"user": "u"}))
            case "unencodable":
                return object()
            case _:
                raise ZeroDivisionError("secret detail")

    @routes.get("/whole", summary="An answer without envelope")
    async def whole(self, call: Call) -> object:
        """Headers too."""
        call.answer_headers["user"] = "root"
        return Answer(201, b"<p>", {"content-type": "text/html"})

    def _cancelled(self, waiting: Deferred[Any]) -> None:
        self.cancelled += 1


class Tokens:
    """Looks tokens up elsewhere: the answer comes later."""

    def __init__(self) -> None:
        self.asked: list[Deferred[str]] = []

    async def __call__(self, call: Call) -> str:
        """The user of the token."""
        if call.header("token") is None:
            raise AuthenticationFailed("no token")
        asked: Deferred[str] = Deferred()
        self.asked.append(asked)
        return await asked


class Sample:
    """The face and what its tests look into."""

    def __init__(self, now: Callable[[], float] = lambda: NOW) -> None:
        self.handlers, self.tokens = SampleRoutes(), Tokens()
        self.observed: list[tuple[str, int]] = []
        self.api = Api(
            CodeEnvelope(
                MESSAGES,
                {AuthenticationFailed: 1, ParameterInvalid: 2, BodyTooLarge: 2},
                other=3,
            ),
            [self.handlers],
            {
                AuthKind.SIGNED: SignatureCheck({AK: SK}, now),
                AuthKind.TOKEN: self.tokens,
            },
            {Lost: lambda error: CodedRefusal(3, str(error))},
            lambda route, status: self.observed.append((route.path if route else "", status)),
        )
