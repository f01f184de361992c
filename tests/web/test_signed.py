"""Signed requests over the real site: what is accepted, and why others are refused."""

import json
from typing import Any

from treq.testing import StubTreq
from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.answers import CodeEnvelope
from elkeid.web.api import Api
from elkeid.web.refusals import AuthenticationFailed
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.web.signed import SD_REASONS, SignatureCheck
from elkeid.wire.signature import sign

from .memory import NOW
from .sample import AK, SK

BODY = b'{"name":"hids_svr_grpc","ip":"10.0.0.5","port":6751,"weight":0,"extra":null}'
VECTOR = "2e7aad050bb19b1079f8885fc5c114c00a6b319936b695b77684caae9c95df0f"


class Signed:
    """Routes that show who called."""

    routes = Routes(auth=AuthKind.SIGNED)

    @routes.post("/registry/register", repeats=True, summary="Echo")
    async def register(self, call: Call) -> object:
        """Echo."""
        return call.identity

    @routes.post("/command", summary="Echo")
    async def command(self, call: Call) -> object:
        """Echo."""
        return call.identity

    @routes.get("/conn/list", summary="Echo")
    async def conn_list(self, call: Call) -> object:
        """Echo."""
        return call.identity

    @routes.get("/a/<string:name>", summary="Echo")
    async def part(self, call: Call) -> object:
        """Echo."""
        return call.identity


class SignedTests(SynchronousTestCase):
    """At 1,700,000,000 s after the epoch."""

    def setUp(self) -> None:
        """Serve with one key."""
        self.http = self.serve()

    def serve(self, now: float = NOW, **words: Any) -> StubTreq:
        """A face in whose opinion it is ``now``."""
        self.check = check = SignatureCheck({AK: SK}, lambda: now, **words)
        envelope = CodeEnvelope({1: "auth failed"}, {AuthenticationFailed: 1}, 3)
        return StubTreq(Api(envelope, [Signed()], {AuthKind.SIGNED: check}))

    def ask(
        self, method: str, path: str, headers: dict[str, Any], body: bytes = b"", **more: Any
    ) -> tuple[int, Any]:
        """Make a request; return status and ``data``."""
        http = more.get("http", self.http)
        response = self.successResultOf(
            http.request(method, f"http://x{path}", headers=headers, data=body)
        )
        return response.code, json.loads(self.successResultOf(response.content()))["data"]

    def signed(self, method: str, path: str, query: str = "") -> tuple[int, Any]:
        """A soundly signed request."""
        signature = sign(method, path, query, AK, SK, NOW, b"")
        headers = {"AccessKey": AK, "TimeStamp": str(NOW), "Signature": signature}
        return self.ask(method, f"{path}?{query}" if query else path, headers)

    def register(self, http: StubTreq | None = None, **changed: Any) -> tuple[int, Any]:
        """The vector's request, with some headers changed."""
        headers: dict[str, Any] = {"AccessKey": AK, "TimeStamp": str(NOW), "Signature": VECTOR}
        headers.update(changed)
        headers = {name: value for name, value in headers.items() if value is not None}
        return self.ask("POST", "/registry/register", headers, BODY, http=http or self.http)

    def test_vector(self) -> None:
        """A signature made elsewhere is accepted; the case of key and headers is not told."""
        self.assertEqual(self.register(), (200, AK))
        self.assertEqual(self.register(AccessKey=AK.upper()), (200, AK))
        self.assertEqual(self.register(Signature=[VECTOR, "0"]), (200, AK))

    def test_refusals(self) -> None:
        """Each refusal has the reason that clients know, and the earliest check wins."""
        missed = "header missed: AccessKey|Signature|TimeStamp"
        for changed, reason in [
            ({"AccessKey": None}, missed),
            ({"Signature": None}, missed),
            ({"TimeStamp": None}, missed),
            ({"TimeStamp": "", "AccessKey": "nobody00"}, missed),
            ({"TimeStamp": "soon"}, "TimeStamp Error"),
            ({"TimeStamp": "1" * 400}, "TimeStamp Error"),
            ({"TimeStamp": "1700000000.0"}, "TimeStamp Error"),
            ({"TimeStamp": str(NOW - 60), "AccessKey": "nobody00"}, "timestamp error"),
            ({"AccessKey": "nobody00"}, "User not exist"),
            ({"Signature": VECTOR.upper()}, "signature error"),
            ({"Signature": "\xff"}, "signature error"),
            ({"Signature": ["0", VECTOR]}, "signature error"),
        ]:
            status, data = self.register(**changed)
            self.assertEqual(status, 403, changed)
            self.assertTrue(data.startswith(reason), (changed, data))

    def test_window(self) -> None:
        """59 s off is accepted, 60 s is not; the refusal names both times."""
        for off, status in [(-60, 403), (-59, 200), (0, 200), (59.9, 200), (60, 403)]:
            answer, data = self.register(self.serve(NOW + off))
            self.assertEqual(answer, status, off)
            if status == 403:
                self.assertIn(str(NOW), data)
                self.assertIn(str(int(NOW + off)), data)

    def test_words(self) -> None:
        """A face may have words of its own."""
        http = self.serve(words=SD_REASONS)
        self.assertEqual(self.register(http, Signature="0"), (403, "Signature Error"))
        late = self.serve(NOW + 99, words=SD_REASONS)
        self.assertTrue(self.register(late)[1].startswith("TimeStamp Error"))

    def test_paths_and_queries(self) -> None:
        """Signed are the decoded path and the query as sent."""
        for path, query, signed_path in [
            ("/conn/list", "b=2&a=1%20z", "/conn/list"),
            ("/conn/list/", "", "/conn/list"),
            ("/a/x%20%C3%A9", "", "/a/x é"),
        ]:
            signature = sign("GET", signed_path, query, AK, SK, NOW, b"")
            headers = {"AccessKey": AK, "TimeStamp": str(NOW), "Signature": signature}
            url = f"{path}?{query}" if query else path
            self.assertEqual(self.ask("GET", url, headers), (200, AK), path)

    def test_nonces(self) -> None:
        """A signed nonce is good once, on every route; upstream's routes do not look at it."""
        for method, path in [("POST", "/command"), ("GET", "/conn/list")]:
            self.assertEqual(self.signed(method, path, f"nonce={method}"), (200, AK))
            self.assertEqual(
                self.signed(method, path, f"nonce={method}"), (403, "nonce seen before")
            )
        self.assertEqual(self.signed("POST", "/registry/register", "a=1&nonce=x"), (200, AK))
        answer = self.signed("POST", "/registry/register", "a=1&nonce=x")
        self.assertEqual(answer, (403, "nonce seen before"))
        long = self.signed("POST", "/command", "nonce=" + "x" * 129)
        self.assertEqual(long, (403, "nonce unfit (more than 128 bytes)"))

    def test_repeats(self) -> None:
        """Without a nonce a change is taken once, in either spelling; what may repeat, often."""
        refused = (403, "request seen before: sign a nonce")
        self.assertEqual(self.signed("POST", "/command"), (200, AK))
        self.assertEqual(self.signed("POST", "/command"), refused)
        self.assertEqual(self.signed("POST", "/command/"), refused)
        for _ in range(2):
            self.assertEqual(self.signed("GET", "/conn/list"), (200, AK))
            self.assertEqual(self.register(), (200, AK))

    def test_unsigned_requests_are_not_remembered(self) -> None:
        """A peer without a key cannot fill what is remembered, nor use up another's nonce."""
        for number in range(100):
            headers = {"AccessKey": AK, "TimeStamp": str(NOW), "Signature": "0" * 64}
            answer = self.ask("POST", f"/command?nonce={number}", headers)
            self.assertEqual(answer, (403, "signature error"))
        self.assertEqual(len(self.check.seen), 0)
        self.assertEqual(self.signed("POST", "/command", "nonce=7"), (200, AK))
        self.assertEqual(len(self.check.seen), 1)
