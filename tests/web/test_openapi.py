"""The OpenAPI document of a face, and the page to read it in."""

import re
from base64 import b64encode
from hashlib import sha256
from typing import Annotated, Any

import jsonschema_rs
import msgspec
from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.documentation import policy_of
from elkeid.web.openapi import About, document
from elkeid.web.routes import AuthKind, Call, Routes

ABOUT = About(title="t", version="1", description="d", codes={1: "auth failed", 5: "invalid"})


class Asked(msgspec.Struct):
    """A query."""

    name: str
    page: Annotated[int, msgspec.Meta(ge=1)] = 1


class Thing(msgspec.Struct):
    """A body and an answer."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z]+\Z")]


class Beside(msgspec.Struct):
    """Beside data."""

    more: bool


class Things:
    routes = Routes("/api/v1/thing")

    @routes.get(
        "/<string:name>/part/<int:number>",
        auth=AuthKind.TOKEN,
        levels=frozenset({3, 0}),
        query=Asked,
        answer=Thing,
        beside=Beside,
        summary="Show a thing",
    )
    async def show(self, call: Call) -> object:
        """In words."""

    @routes.post("", auth=AuthKind.SIGNED, body=Thing, limit=77, answer=None, summary="Take it")
    async def take(self, call: Call) -> object:
        """In words."""

    @routes.get("/file", answer=bytes, media="image/png", summary="A picture")
    async def file(self, call: Call) -> object:
        """In words."""

    @routes.get(
        "/raw", answer=Thing, enveloped=False, also={503: Thing}, summary="Without an envelope"
    )
    async def raw(self, call: Call) -> object:
        """In words."""


class DocumentTests(SynchronousTestCase):
    """What is made of declarations."""

    def setUp(self) -> None:
        """Make the document."""
        self.document = document(Things.routes.declared, ABOUT)

    def operation(self, method: str, path: str) -> Any:
        """One operation."""
        return self.document["paths"][path][method]

    def accepts(self, schema: Any, value: object) -> bool:
        """Whether a schema of the document takes a value."""
        whole = schema | {"components": self.document["components"]}
        return jsonschema_rs.Draft202012Validator(whole).is_valid(value)

    def test_parameters(self) -> None:
        """Parts of the path and fields of the query are parameters with their limits."""
        shown = self.operation("get", "/api/v1/thing/{name}/part/{number}")
        self.assertEqual(
            [(each["in"], each["name"], each["required"]) for each in shown["parameters"]],
            [
                ("path", "name", True),
                ("path", "number", True),
                ("query", "name", True),
                ("query", "page", False),
            ],
        )
        self.assertEqual(shown["parameters"][3]["schema"]["minimum"], 1)

    def test_who_may_call(self) -> None:
        """The kind of authentication, the levels, and the statuses that go with them."""
        shown = self.operation("get", "/api/v1/thing/{name}/part/{number}")
        self.assertEqual(shown["security"], [{"token": []}])
        self.assertEqual(shown["x-levels"], [0, 3])
        self.assertEqual(list(shown["responses"]), ["200", "400", "401", "403", "404", "503"])
        taken = self.operation("post", "/api/v1/thing")
        self.assertEqual(taken["security"], [{"AccessKey": [], "TimeStamp": [], "Signature": []}])
        self.assertEqual(list(taken["responses"]), ["200", "400", "401", "403", "413", "503"])
        self.assertIn("77 bytes", taken["responses"]["413"]["description"])
        self.assertEqual(self.operation("get", "/api/v1/thing/file")["security"], [])

    def test_answers(self) -> None:
        """A success has its data and what stands beside; any other code is a refusal."""
        shown = self.operation("get", "/api/v1/thing/{name}/part/{number}")
        schema = shown["responses"]["200"]["content"]["application/json"]["schema"]
        done = {"code": 0, "msg": "success", "data": {"name": "abc"}, "more": True}
        refused = {"code": 5, "msg": "invalid", "data": "name: wrong"}
        for value, valid in [
            (done, True),
            (refused, True),
            (done | {"data": {"name": 1}}, False),
            (done | {"data": {"name": "abc\n1"}}, False),
            ({key: done[key] for key in ("code", "msg", "data")}, False),
            (refused | {"code": 2}, False),
            (refused | {"data": None}, False),
        ]:
            self.assertEqual(self.accepts(schema, value), valid, value)
        taken = self.operation("post", "/api/v1/thing")["responses"]["200"]
        schema = taken["content"]["application/json"]["schema"]
        self.assertTrue(self.accepts(schema, {"code": 0, "msg": "success", "data": None}))
        self.assertFalse(self.accepts(schema, {"code": 0, "msg": "success", "data": 1}))

    def test_other_answers(self) -> None:
        """Other content types and statuses are told, and what comes without an envelope."""
        file = self.operation("get", "/api/v1/thing/file")["responses"]["200"]["content"]
        self.assertEqual(set(file), {"image/png", "application/json"})
        raw = self.operation("get", "/api/v1/thing/raw")["responses"]
        for status in ("200", "503"):
            schema = raw[status]["content"]["application/json"]["schema"]
            self.assertEqual(schema, {"$ref": "#/components/schemas/Thing"}, status)

    def test_patterns_are_portable(self) -> None:
        """No pattern has Python's own end of a text, which other readers take for a letter."""
        pattern = self.document["components"]["schemas"]["Thing"]["properties"]["name"]["pattern"]
        self.assertEqual(pattern, "^[a-z]+$")

    def test_the_same_each_time(self) -> None:
        """The order of routes makes no difference."""
        again = document(Things.routes.declared[::-1], ABOUT)
        self.assertEqual(msgspec.json.encode(again), msgspec.json.encode(self.document))


class PolicyTests(SynchronousTestCase):
    """What a page may do."""

    def test_only_its_own_scripts(self) -> None:
        """Each inline text is named by its hash; nothing else is allowed."""
        page = "<style>a{}</style><script>one()</script><script>two()</script>"
        policy = policy_of(page)
        for text in ("a{}", "one()", "two()"):
            digest = b64encode(sha256(text.encode()).digest()).decode()
            self.assertIn(f"'sha256-{digest}'", policy)
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("unsafe", policy)
        self.assertEqual(len(re.findall("sha256-", policy)), 3)
