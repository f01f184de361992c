"""Declared routes: what a client sends, and what it gets."""

import json
from typing import Any
from urllib.parse import urlencode

from treq.testing import StubTreq
from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.answers import CodeEnvelope
from elkeid.web.api import Api
from elkeid.web.routes import BODY_LIMIT, Call, Routes
from elkeid.web.site import FaceSite

from .memory import MemoryNetwork, RawConnection
from .sample import Sample

OK = {"code": 0, "msg": "success"}


class ApiTests(SynchronousTestCase):
    """Over the resource, with a real client."""

    def setUp(self) -> None:
        """Serve the sample."""
        self.sample = Sample()
        self.http = StubTreq(self.sample.api)

    def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Make a request; its JSON must be compact and say that it is JSON."""
        response = self.successResultOf(self.http.request(method, f"http://x{path}", **more))
        body = self.successResultOf(response.content())
        self.assertTrue(response.headers.getRawHeaders("date"), path)
        if not body:
            return response.code, None
        kind = response.headers.getRawHeaders("content-type")
        self.assertEqual(kind, ["application/json; charset=utf-8"], path)
        self.assertEqual(response.length, len(body))
        return response.code, json.loads(body)

    def test_queries(self) -> None:
        """Numbers and flags are read from texts; of a repeated key the first counts."""
        for query, expected in [
            ("", [1, [], False]),
            ("?page=7&page=8&nobody=knows", [7, [], False]),
            ("?tag=a&tag=b%20c&tag=", [1, ["a", "b c", ""], False]),
            ("?all=true", [1, [], True]),
        ]:
            self.assertEqual(
                self.ask("GET", f"/x/page{query}"), (200, {**OK, "data": expected}), query
            )

    def test_bad_queries(self) -> None:
        """The answer names the field that is wrong."""
        for query, field in [
            ("?page=", "page"),
            ("?page=1.5", "page"),
            ("?page=x", "page"),
            ("?all=maybe", "all"),
            ("?" + "&".join(["a=1"] * 500), "query"),
        ]:
            status, body = self.ask("GET", f"/x/page{query}")
            self.assertEqual((status, body["code"], body["msg"]), (400, 2, "param invalid"))
            self.assertTrue(body["data"].startswith(f"{field}: "), body)

    def test_bodies(self) -> None:
        """A body is JSON whatever its type says; unknown fields are ignored."""
        text = b'{"name":"n","ports":[1],"unknown":{}}'
        for kind in ["application/json", "text/plain", "application/x-www-form-urlencoded"]:
            answer = self.ask("POST", "/x/item", data=text, headers={"content-type": kind})
            expected = {**OK, "data": ["n", [1]], "page_info": {"total": 1}}
            self.assertEqual(answer, (200, expected), kind)

    def test_bad_bodies(self) -> None:
        """Each fault is told by the name of its field, and costs nothing else."""
        for text, field in [
            (b"", "body"),
            (b"nothing", "body"),
            (b"[]", "body"),
            (b'{"name":"n"', "body"),
            (b"{}", "body"),
            (b'{"name":1}', "name"),
            (b'{"name":null}', "name"),
            (b'{"name":"n","ports":[1,"2"]}', "ports[1]"),
            (b'{"name":"n","ports":[true]}', "ports[0]"),
            (b'{"name":"\xff"}', "body"),
            (b"[" * 99, "body"),
        ]:
            status, body = self.ask("POST", "/x/item", data=text)
            self.assertEqual((status, body["code"]), (400, 2), text)
            self.assertTrue(body["data"].startswith(f"{field}: "), (text, body))

    def test_deep_bodies(self) -> None:
        """Nesting beyond all reason is a fault of the request, not of the server."""

        class Anything:
            routes = Routes()

            @routes.post("/any", body=dict[str, Any], summary="Take anything")
            async def take(self, call: Call) -> object:
                """Take it."""
                return None

        api = Api(CodeEnvelope({}, {}, 3), [Anything()])
        deep = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
        response = self.successResultOf(StubTreq(api).post("http://x/any", data=deep))
        self.assertEqual(response.code, 400)

    def test_too_large(self) -> None:
        """A body above the route's limit is refused, also behind a plain site."""
        body = b'{"name":"' + b"n" * 100 + b'"}'
        status, answer = self.ask("POST", "/x/item", data=body)
        self.assertEqual((status, answer["data"]), (413, "body: more than 100 bytes"))

    def test_parts_and_slashes(self) -> None:
        """Path parts reach the handler; a trailing slash makes no difference."""
        for path in ["/x/item/a%20b/7", "/x/item/a%20b/7/"]:
            self.assertEqual(
                self.ask("GET", path), (200, {**OK, "data": {"name": "a b", "number": 7}})
            )
        self.assertEqual(self.ask("GET", "/x/page/?page=2")[0], 200)

    def test_nowhere(self) -> None:
        """Unknown paths and wrong methods are 404 in JSON; nobody is redirected."""
        for method, path in [
            ("GET", "/"),
            ("GET", "/nowhere"),
            ("GET", "/x/item"),
            ("PUT", "/x/page"),
            ("BREW", "/x/page"),
            ("GET", "/x/item/a/b"),
            ("GET", "/%ff%fe"),
            ("GET", "/x/page/%ff"),
            ("GET", "/x//page"),
        ]:
            status, body = self.ask(method, path)
            self.assertEqual((status, body["code"]), (404, 3), (method, path))

    def test_failures(self) -> None:
        """A known error has its answer; a bug is logged whole and shown as nothing."""
        for how, expected in [
            ("known", (200, {"code": 3, "msg": "some errors occurred", "data": "no such thing"})),
            ("coded", (200, {"code": 10, "msg": "", "data": "held"})),
            ("instead", (401, None)),
        ]:
            self.assertEqual(self.ask("GET", f"/x/fail/{how}"), expected)
        for how, error in [("bug", ZeroDivisionError), ("unencodable", TypeError)]:
            status, body = self.ask("GET", f"/x/fail/{how}")
            self.assertEqual((status, body["data"]), (500, "internal error"))
            self.assertEqual(len(self.flushLoggedErrors(error)), 1)

    def test_whole_answer(self) -> None:
        """A handler may send any status, type and headers."""
        response = self.successResultOf(self.http.get("http://x/x/whole"))
        headers = response.headers
        self.assertEqual(
            (response.code, headers.getRawHeaders("content-type"), headers.getRawHeaders("user")),
            (201, ["text/html"], ["root"]),
        )

    def test_head(self) -> None:
        """HEAD answers as GET does, without the body."""
        response = self.successResultOf(self.http.head("http://x/x/page"))
        self.assertEqual(response.code, 200)
        self.assertEqual(self.successResultOf(response.content()), b"")

    def test_slow_authentication(self) -> None:
        """Who asks may be looked up elsewhere; the handler runs once that is known."""
        waiting = self.http.get("http://x/x/token", headers={"token": "t"})
        self.assertNoResult(waiting)
        self.sample.tokens.asked[0].callback("ann")
        self.http.flush()
        response = self.successResultOf(waiting)
        content = self.successResultOf(response.content())
        self.assertEqual(json.loads(content), {**OK, "data": "ann"})
        self.assertEqual(self.ask("GET", "/x/token")[0], 403)

    def test_observed(self) -> None:
        """Every answer is counted by its route and status."""
        for path in ["/x/page", "/x/item/a/1", "/x/fail/coded", "/nowhere"]:
            self.ask("GET", path)
        self.assertEqual(
            self.sample.observed,
            [
                ("/x/page", 200),
                ("/x/item/<string:name>/<int:number>", 200),
                ("/x/fail/<string:how>", 200),
                ("", 404),
            ],
        )

    def test_declarations(self) -> None:
        """What is declared can be inspected; a mistake is told when the face is made."""
        routes = {(route.method, route.path): route for route in self.sample.api.routes}
        item = routes["POST", "/x/item"]
        self.assertEqual((item.summary, item.limit), ("Echo the body", 100))
        with self.assertRaisesRegex(ValueError, "nothing checks"):
            Api(CodeEnvelope({}, {}, 3), [self.sample.handlers])

        class Twice:
            routes = Routes()

            @routes.get("/a", summary="One")
            @routes.get("/a/", summary="Two")
            async def one(self, call: Call) -> object:
                """Nothing."""
                return None

        with self.assertRaisesRegex(ValueError, "declared twice"):
            Api(CodeEnvelope({}, {}, 3), [Twice()])

    def test_limits_before_the_body(self) -> None:
        """A route's limit is known from its request line."""
        for method, target, limit in [
            (b"POST", b"/x/item", 100),
            (b"POST", b"/x/item/?" + urlencode({"a": "b"}).encode(), 100),
            (b"GET", b"/x/item/a/1", 1 << 20),
            (b"POST", b"/nowhere", 1 << 20),
            (b"POST", b"/\xff", 1 << 20),
            (b"POST", b"*", 1 << 20),
        ]:
            route = self.sample.api.route_of(method, target)
            self.assertEqual(BODY_LIMIT if route is None else route.limit, limit, target)


class LeavingTests(SynchronousTestCase):
    """Clients that go away."""

    def test_client_leaves_at_each_await(self) -> None:
        """A handler whose client has gone is stopped where it waits, without a word."""
        for awaits in range(2):
            sample, network = Sample(), MemoryNetwork()
            client = RawConnection(FaceSite(sample.api, network.clock))
            client.send(b"GET /x/slow HTTP/1.1\r\nHost: x\r\n\r\n")
            for number in range(awaits):
                sample.handlers.waiting[number].callback(1)
            client.lose()
            self.assertEqual(sample.handlers.cancelled, 1)
            self.assertEqual(sample.observed, [])
            self.assertEqual(network.clock.getDelayedCalls(), [])

    def test_slow_answer(self) -> None:
        """A client that waits gets its answer, however long that takes."""
        sample, network = Sample(), MemoryNetwork()
        client = RawConnection(FaceSite(sample.api, network.clock))
        client.send(b"GET /x/slow HTTP/1.1\r\nHost: x\r\n\r\n")
        network.clock.advance(3600)
        for number in range(2):
            sample.handlers.waiting[number].callback(20 + number)
        self.assertIn(b'"data":41', client.wire.value())
