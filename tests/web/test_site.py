"""Bounded requests: what is too large, too slow or no HTTP costs its sender the connection."""

import errno
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.errors import OperatorError
from elkeid.web.site import FaceLimits, FaceSite, listen

from .memory import MemoryNetwork, RawConnection
from .sample import Sample

ITEM = b'{"name":"n"}'


def post(body: bytes, *headers: bytes, path: bytes = b"/x/item") -> bytes:
    """A POST without a length unless ``headers`` have one."""
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", *headers, b"", b""]
    return b"\r\n".join(lines) + body


def chunked(*chunks: bytes) -> bytes:
    """A chunked POST."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    return post(body, b"Transfer-Encoding: chunked")


class SiteTests(SynchronousTestCase):
    """Raw bytes against the real site."""

    def setUp(self) -> None:
        """Serve the sample with small limits."""
        self.sample, self.clock = Sample(), MemoryNetwork().clock
        self.limits = FaceLimits(drain_bytes=1000, connections=3, bodies_bytes=150)
        self.site = FaceSite(self.sample.api, self.clock, self.limits)

    def connect(self) -> RawConnection:
        """One more client."""
        return RawConnection(self.site)

    def timers(self) -> list[IDelayedCall]:
        """What would still happen."""
        return list(self.clock.getDelayedCalls())

    def refusal(self, answer: bytes, status: int) -> None:
        """Check a refusal: JSON, dated, and the last on its connection."""
        head, _, body = answer.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 %d " % status), answer)
        for header in (b"Date: ", b"Connection: close", b"Content-Type: application/json"):
            self.assertIn(header, head)
        self.assertIn(b"Content-Length: %d" % len(body), head)
        self.assertEqual(json.loads(body)["msg"], "param invalid" if status < 500 else MSG)

    def test_small_bodies(self) -> None:
        """Bodies within the limit are served, one after another on one connection."""
        client = self.connect()
        for request in [
            post(ITEM, b"Content-Length: 12"),
            chunked(ITEM),
            chunked(ITEM[:3], ITEM[3:]),
            post(ITEM, b"Content-Length: 12", path=b"/x/item/"),
        ]:
            self.assertIn(b'"data":["n",[]]', client.send(request))
        self.assertEqual(self.site.memory.held, 0)

    def test_announced_too_large(self) -> None:
        """A body that is announced too large is refused before any of it is read."""
        client = self.connect()
        self.refusal(client.send(post(b"", b"Content-Length: 10000000")), 413)
        self.assertEqual(client.send(b"x" * 500), b"")
        self.assertFalse(client.wire.disconnecting)  # so that the answer can be read
        client.send(b"x" * 600)
        self.assertTrue(client.wire.disconnecting)
        self.assertEqual(self.sample.handlers.routes.declared[1].limit, 100)
        self.assertEqual(self.site.memory.held, 0)

    def test_refused_sender_gets_no_continue(self) -> None:
        """One that asks before it sends is told no, and nothing after that."""
        client = self.connect()
        answer = client.send(post(b"", b"Content-Length: 999", b"Expect: 100-continue"))
        self.refusal(answer, 413)
        allowed = self.connect().send(
            post(b"", b"Content-Length: 12", b"Expect: 100-continue"),
        )
        self.assertEqual(allowed, b"HTTP/1.1 100 Continue\r\n\r\n")

    def test_refused_sender_finishes(self) -> None:
        """One that sends on to its end is then disconnected in order."""
        client = self.connect()
        self.refusal(client.send(post(b"", b"Content-Length: 200")), 413)
        client.send(b"x" * 200)
        self.assertTrue(client.wire.disconnecting)
        client.lose()
        self.assertEqual(self.timers(), [])

    def test_refused_sender_stalls(self) -> None:
        """One that neither sends nor leaves is dropped after a while."""
        client = self.connect()
        client.send(post(b"", b"Content-Length: 200"))
        self.clock.advance(self.limits.drain_seconds + 0.1)
        self.assertTrue(client.wire.disconnecting)

    def test_chunks_too_large(self) -> None:
        """A body of unknown length is cut where it exceeds the limit."""
        for request in [chunked(b"x" * 60, b"x" * 41), chunked(b"x" * 101)]:
            client = self.connect()
            self.refusal(client.send(request), 413)
            client.lose()
        self.assertEqual(self.site.memory.held, 0)

    def test_every_split(self) -> None:
        """However the bytes arrive, the answer is the same."""
        for request, expected in [
            (post(ITEM, b"Content-Length: 12"), b'"data":["n",[]]'),
            (chunked(ITEM[:5], ITEM[5:]), b'"data":["n",[]]'),
            (chunked(b"x" * 60, b"x" * 41), b"more than 100 bytes"),
            (post(b"x" * 101, b"Content-Length: 101"), b"more than 100 bytes"),
        ]:
            for cut in range(1, len(request)):
                client = self.connect()
                answer = client.send(request[:cut]) + client.send(request[cut:])
                self.assertIn(expected, answer)
                self.assertEqual(answer.count(b"HTTP/1.1"), 1)
                client.lose()
                self.assertEqual((self.site.memory.held, self.timers()), (0, []))

    def test_cut_anywhere(self) -> None:
        """A client may vanish after any byte; nothing of it stays."""
        request = post(ITEM, b"Content-Length: 12")
        for cut in range(len(request)):
            client = self.connect()
            client.send(request[:cut])
            client.lose()
            self.assertEqual((self.site.memory.held, self.timers()), (0, []))
        self.assertEqual(len(self.site.channels), 0)

    def test_all_bodies_together(self) -> None:
        """Bodies under way share one budget: beyond it newcomers are told to come later."""
        first, second = self.connect(), self.connect()
        first.send(post(b"x" * 80, b"Content-Length: 90"))
        self.refusal(second.send(post(b"", b"Content-Length: 90")), 503)
        second.lose()
        first.lose()
        self.assertEqual(self.site.memory.held, 0)
        third = self.connect()
        self.assertIn(b" 400 ", third.send(post(b"x" * 90, b"Content-Length: 90")))
        self.assertEqual(self.site.memory.held, 0)

    def test_full_in_the_middle(self) -> None:
        """A body for which the others leave no room is refused where that shows."""
        first, second = self.connect(), self.connect()
        for client in (first, second):
            self.assertEqual(client.send(post(b"x" * 50, b"Content-Length: 90")), b"")
        self.assertEqual(first.send(b"x" * 39), b"")
        self.refusal(second.send(b"x" * 39), 503)
        self.assertEqual(self.site.memory.held, 89)  # what it had sent is let go at once
        self.assertIn(b" 400 ", first.send(b"x"))
        self.assertEqual(self.site.memory.held, 0)

    def test_announcements_hold_nothing(self) -> None:
        """Who announces and sends nothing takes no room, and is closed after a while."""
        clients = [self.connect() for _ in range(3)]
        for client in clients:
            self.assertEqual(client.send(post(b"", b"Content-Length: 100")), b"")
        self.assertEqual(self.site.memory.held, 0)
        self.clock.advance(self.limits.idle_seconds + 0.1)
        self.assertEqual([each.wire.disconnecting for each in clients], [True] * 3)

    def test_refusals_before_the_end_are_counted(self) -> None:
        """What is refused while its body is under way counts among the answers of its route."""
        seen: list[tuple[str, int]] = []
        self.sample.api.observe = lambda route, status: seen.append((route.path, status))
        self.connect().send(post(b"", b"Content-Length: 999"))
        self.assertEqual(seen, [("/x/item", 413)])

    def test_no_http(self) -> None:
        """What is no HTTP, or has headers beyond reason, gets 400 and is disconnected."""
        for data in [
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 600 + b"\r\n",
            b"GET / HTTP/1.1\r\n" + (b"A: " + b"x" * 1000 + b"\r\n") * 20 + b"\r\n",
            b"GET /" + b"x" * 20_000,
            post(b"", b"Content-Length: -1"),
            post(b"", b"Content-Length: 1", b"Content-Length: 2"),
            post(b"", b"Content-Length: 1", b"Transfer-Encoding: chunked"),
            post(b"zz\r\n", b"Transfer-Encoding: chunked"),
            post(b"1" * 2000, b"Transfer-Encoding: chunked"),
        ]:
            client = self.connect()
            self.refusal(client.send(data), 400)
            self.assertTrue(client.wire.disconnecting, data[:60])
            client.lose()
        self.assertEqual(self.timers(), [])

    def test_odd_hosts(self) -> None:
        """The Host header plays no part, so no value of it can break anything."""
        client = self.connect()
        for host in [b"\xff\xfe", b"xn--", b"a" * 300, b"[::1", b"..", b""]:
            answer = client.send(b"GET /x/page HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), host)

    def test_star(self) -> None:
        """Requests for no path are 404 like any unknown path."""
        client = self.connect()
        for line in [b"OPTIONS *", b"CONNECT a:1", b"GET http://a/x/page"]:
            answer = client.send(line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertTrue(answer.startswith(b"HTTP/1.1 404 "), line)

    def test_slow_sender(self) -> None:
        """A request has to arrive whole within its time, however busily it drips."""
        client = self.connect()
        client.send(b"GET /x/page HTTP/1.1\r\n")
        for _ in range(7):
            self.clock.advance(5)
            client.send(b"A: b\r\n")
        self.assertTrue(client.wire.disconnecting)

    def test_idle(self) -> None:
        """A connection without a byte is closed after a while; a used one lives on."""
        client, used = self.connect(), self.connect()
        for _ in range(3):
            self.clock.advance(self.limits.idle_seconds / 2)
            self.assertIn(b" 200 ", used.send(b"GET /x/page HTTP/1.1\r\n\r\n"))
        self.assertTrue(client.wire.disconnecting)
        self.assertFalse(used.wire.disconnecting)

    def test_connection_limit(self) -> None:
        """Beyond the limit a connection is dropped at once; room comes back."""
        clients = [self.connect() for _ in range(3)]
        for each in clients:
            self.assertIn(b" 200 ", each.send(b"GET /x/page HTTP/1.1\r\n\r\n"))
        extra = self.connect()
        self.assertTrue(extra.wire.disconnecting)
        extra.lose()
        self.assertEqual(len(self.site.channels), 3)
        clients[0].lose()
        self.assertFalse(self.connect().wire.disconnecting)

    def test_silent_connections_make_room(self) -> None:
        """Who opens connections and asks for nothing keeps nobody out, and no slow sender does."""
        used = self.connect()
        self.assertIn(b" 200 ", used.send(b"GET /x/page HTTP/1.1\r\n\r\n"))
        silent, slow = self.connect(), self.connect()
        slow.send(b"POST /x/item HTTP/1.1\r\nContent-Length: 100\r\n\r\nx")
        for oldest in (silent, slow):
            extra = self.connect()
            self.assertTrue(oldest.wire.disconnecting)
            self.assertIn(b" 200 ", extra.send(b"GET /x/page HTTP/1.1\r\n\r\n"))
            oldest.lose()
        self.assertFalse(used.wire.disconnecting)
        self.assertEqual((len(self.site.channels), len(self.site.silent)), (3, 0))
        self.assertEqual(self.site.memory.held, 0)

    def test_close(self) -> None:
        """Closing a site ends idle connections now and busy ones after their answer."""
        idle, busy = self.connect(), self.connect()
        busy.send(b"GET /x/slow HTTP/1.1\r\n\r\n")
        self.site.close()
        self.assertTrue(idle.wire.disconnecting)
        self.assertFalse(busy.wire.disconnecting)
        for number in range(2):
            self.sample.handlers.waiting[number].callback(1)
        self.assertIn(b'"data":2', busy.wire.value())
        self.assertTrue(busy.wire.disconnecting)

    def test_broken_resource(self) -> None:
        """A bug outside the handlers is logged whole, and shown as nothing."""

        class Broken:
            def render(self, request: object) -> bytes:
                """Fail."""
                raise ZeroDivisionError("secret")

        self.sample.api.mount("/broken", Broken())  # type: ignore[arg-type]
        answer = self.connect().send(b"GET /broken HTTP/1.1\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 500 "))
        self.assertIn(b"internal error", answer)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_no_trace_of_the_server(self) -> None:
        """Answers do not tell the name and version of the software."""
        self.assertNotIn(b"Server:", self.connect().send(b"GET /x/page HTTP/1.1\r\n\r\n"))


MSG = "some errors occurred"
_junk = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"GET /x/page HTTP/1.1\r\n",
            b"POST /x/item HTTP/1.1\r\n",
            b"Content-Length: 12\r\n",
            b"Content-Length: 1000\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"c\r\n",
            b"0\r\n\r\n",
            ITEM,
        ]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_junk, max_size=12))
def test_any_bytes(pieces: list[bytes]) -> None:
    """No bytes whatever raise, hold memory or leave a timer behind."""
    network = MemoryNetwork()
    site = FaceSite(Sample().api, network.clock)
    client = RawConnection(site)
    for piece in pieces:
        client.send(piece)
        assert site.memory.held <= sum(map(len, pieces))
    client.lose()
    assert site.memory.held == 0
    assert network.clock.getDelayedCalls() == []


class ListenTests(SynchronousTestCase):
    """Opening ports."""

    def test_errors(self) -> None:
        """A port that cannot be opened is one sentence with the fix."""
        for number, text in [
            (errno.EADDRINUSE, "sd.port: 80 is in use on 127.0.0.1: stop the program"),
            (errno.EACCES, "sd.port: 80 needs privileges"),
            (errno.EADDRNOTAVAIL, "sd.listen: 127.0.0.1 is no address of this machine"),
            (errno.ENOMEM, "sd.port: cannot listen on 127.0.0.1, port 80"),
        ]:
            reactor = MemoryReactorClock()
            failure = CannotListenError("127.0.0.1", 80, OSError(number, "reason"))

            def fail(*_: object, error: CannotListenError = failure, **__: object) -> None:
                raise error

            reactor.listenTCP = fail
            with self.assertRaises(OperatorError) as caught:
                listen(
                    reactor,
                    FaceSite(Sample().api, reactor),
                    "127.0.0.1",
                    80,
                    setting="sd.port",
                )
            self.assertTrue(str(caught.exception).startswith(text), caught.exception)
