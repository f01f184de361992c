"""Calls to other roles: signed, bounded in time and size, with the peer's clock measured."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.client import AnswerInvalid, CallFailed, Credentials, FileBody, Unreachable
from elkeid.web.site import FaceSite

from ..eventlog.support import open_descriptors
from .memory import NOW, MemoryNetwork, Scripted
from .sample import AK, SK, Sample

DATED = b"Date: Tue, 14 Nov 2023 22:15:20 GMT\r\n"  # 120 s after NOW


class ClientTests(SynchronousTestCase):
    """Against the real site, and against peers that misbehave."""

    def setUp(self) -> None:
        """One honest server at port 80."""
        self.network = MemoryNetwork()
        self.network.ports[80] = FaceSite(Sample().api, self.network.clock)
        self.http = self.network.client(Credentials(AK, SK))

    def serve(self, answer: bytes, close: bool = False) -> None:
        """Let port 81 answer always the same."""
        self.network.ports[81] = Factory.forProtocol(lambda: Scripted(answer, close))  # type: ignore[arg-type]

    def fails(self, kind: type[CallFailed], text: str, **more: Any) -> None:
        """A call to port 81 fails in this way, and keeps nothing."""
        with self.assertRaises(kind) as caught:
            self.network.run(self.http.get("http://127.0.0.1:81/", **more))
        self.assertIn(text, str(caught.exception))

    def test_signed(self) -> None:
        """Every request is signed: path decoded, query as sent, body as sent."""
        reply = self.network.run(
            self.http.post("http://127.0.0.1:80/x/signed?b=2&a=1%20z", {"name": "é<"})
        )
        self.assertEqual(reply.decode(dict[str, Any])["data"], {"name": "é<", "ports": []})
        reply = self.network.run(self.http.call("DELETE", "http://127.0.0.1:80/x/item", b""))
        self.assertEqual(reply.decode(dict[str, Any])["data"], AK)

    def file_body(self, content: bytes) -> FileBody:
        """A JSON body, most of which is in a file."""
        head, tail = b'{"name":"', b'"}'
        path = Path(self.mktemp())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        whole = head + content + tail
        return FileBody(path, head, tail, len(whole), hashlib.sha256(whole).hexdigest())

    def test_a_body_from_a_file(self) -> None:
        """It is read while it is sent, and signed as any other."""
        body = self.file_body(b"x" * 200_000)
        reply = self.network.run(
            self.http.call("POST", "http://127.0.0.1:80/x/signed?n=1", body, seconds=60)
        )
        self.assertEqual(reply.decode(dict[str, Any])["data"]["name"], "x" * 200_000)

    def test_a_body_from_a_file_given_up(self) -> None:
        """A peer that takes nothing ends the call in time, and the file is let go."""
        self.network.silent.add(82)
        before = open_descriptors()
        call = Deferred.fromCoroutine(
            self.http.call("POST", "http://127.0.0.1:82/", self.file_body(b"x"), seconds=2)
        )
        self.network.advance(3)
        self.failureResultOf(call, Unreachable)
        self.assertEqual(open_descriptors(), before)
        self.network.ports[83] = Factory.forProtocol(Protocol)  # type: ignore[arg-type]
        call = Deferred.fromCoroutine(
            self.http.call("POST", "http://127.0.0.1:83/", self.file_body(b"x" * 10**6), seconds=2)
        )
        self.network.advance(3)
        self.failureResultOf(call, Unreachable)
        self.assertEqual(open_descriptors(), before)

    def test_queries(self) -> None:
        """A query is encoded."""
        reply = self.network.run(
            self.http.get("http://127.0.0.1:80/x/page", {"page": "3", "tag": "a&b=é"})
        )
        self.assertEqual(reply.decode(dict[str, Any])["data"], [3, ["a&b=é"], False])

    def test_connections_are_kept(self) -> None:
        """Calls one after another share a connection."""
        for _ in range(3):
            self.network.run(self.http.get("http://127.0.0.1:80/x/page"))
        self.assertEqual(self.network.dialled, [80])

    def test_statuses(self) -> None:
        """An answer of any status is an answer; only 200 can be decoded."""
        reply = self.network.run(self.http.get("http://127.0.0.1:80/nowhere"))
        self.assertEqual(reply.status, 404)
        with self.assertRaisesRegex(AnswerInvalid, "HTTP 404: .*no such route"):
            reply.decode(dict[str, Any])

    def test_other_form(self) -> None:
        """JSON of another form than expected, or no JSON, is told as such."""
        for body in [b'{"code":"0"}', b"<html>", b"", b"\xff", b"[" * 100_000]:
            self.serve(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            reply = self.network.run(self.http.get("http://127.0.0.1:81/"))

            class Coded(msgspec.Struct):
                code: int

            with self.assertRaisesRegex(AnswerInvalid, "not the expected JSON"):
                reply.decode(Coded)

    def test_refused(self) -> None:
        """Nobody listens: told at once."""
        self.fails(Unreachable, "Connection was refused")
        self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_broken_off(self) -> None:
        """A peer that closes early is unreachable, wherever it does."""
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        for cut in range(1, len(whole)):
            self.serve(whole[:cut], close=True)
            self.fails(Unreachable, "http://127.0.0.1:81/: ")
            self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_silent(self) -> None:
        """A deadline covers connecting, waiting and reading."""
        for answer in [None, b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{"]:
            self.network.silent.discard(81)
            if answer is None:
                self.network.silent.add(81)
            else:
                self.serve(answer)
            failed: list[Any] = []
            call = Deferred.fromCoroutine(
                self.http.get("http://127.0.0.1:81/", seconds=3)
            ).addErrback(failed.append)
            self.network.advance(2.9)
            self.assertEqual(failed, [])
            self.network.advance(0.2)
            self.assertIn("no answer within 3 s", str(failed[0].value))
            self.assertIsInstance(failed[0].value, Unreachable)
            self.assertTrue(call.called)
            self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_too_large(self) -> None:
        """An answer above the limit is broken off, announced or not."""
        for head in [b"Content-Length: 1001\r\n", b"", b"Transfer-Encoding: chunked\r\n"]:
            body = b"x" * 1001
            if b"chunked" in head:
                body = b"3e9\r\n" + body + b"\r\n"
            self.serve(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)
            self.fails(AnswerInvalid, "more than 1000 bytes", limit=1000)
            self.network.flush()
            self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_just_large_enough(self) -> None:
        """An answer of exactly the limit is taken, also one that ends with its connection."""
        body = b"x" * 1000
        for head, close in [(b"Content-Length: 1000\r\n", False), (b"", True)]:
            self.serve(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body, close)
            reply = self.network.run(self.http.get("http://127.0.0.1:81/", limit=1000))
            self.assertEqual(reply.body, body)

    def test_skew(self) -> None:
        """The peer's clock is measured; a peer that tells no usable time has none."""
        for head, skew in [
            (DATED, 120.5),
            (b"", None),
            (b"Date: tomorrow\r\n", None),
            (b"Date: Tue, 99 Nov 9999999 22:15:20 GMT\r\n", None),
        ]:
            self.serve(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + head + b"\r\n", True)
            reply = self.network.run(self.http.get("http://127.0.0.1:81/"))
            self.assertEqual(reply.skew, skew, head)
        self.assertEqual(NOW, 1_700_000_000)

    def test_cancelled(self) -> None:
        """A call that nobody waits for any more is given up."""
        self.serve(b"")
        call = Deferred.fromCoroutine(self.http.get("http://127.0.0.1:81/"))
        self.network.flush()
        call.cancel()
        self.failureResultOf(call, CancelledError)
        self.network.flush()
        self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_secrets_stay_secret(self) -> None:
        """Printing credentials shows no secret."""
        self.assertNotIn(SK, repr(Credentials(AK, SK)))
