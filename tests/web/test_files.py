"""Bodies kept on disk, and files as answers."""

import tempfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.answers import CodeEnvelope, EventSink, EventStream, FileAnswer
from elkeid.web.api import FILE_PIECE, Api
from elkeid.web.refusals import BodyTooLarge
from elkeid.web.routes import Call, Routes
from elkeid.web.site import FaceLimits, FaceSite
from elkeid.web.spool import Spool
from tests.web.memory import RawConnection

CONTENT = bytes(range(256)) * (FILE_PIECE // 256) * 5


class _Files:
    """Takes a body and gives a file."""

    routes = Routes()

    def __init__(self) -> None:
        self.file = BytesIO(CONTENT)
        self.bodies: list[tuple[int, str, bytes]] = []

    @routes.get("/file", summary="a file")
    async def give(self, call: Call) -> object:
        """The whole of it."""
        return FileAnswer(self.file, len(CONTENT), {"content-type": "application/octet-stream"})

    @routes.post("/body", summary="a body", spooled=True, limit=100_000)
    async def take(self, call: Call) -> object:
        """Its size, hash and content."""
        assert call.spool is not None
        with call.spool.reader() as body:
            self.bodies.append((call.spool.tell(), call.spool.body_hash, body.read()))


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.files = _Files()
        self.clock = Clock()
        envelope = CodeEnvelope({0: "success"}, {BodyTooLarge: 2}, 3)
        self.site = FaceSite(
            Api(envelope, [self.files]),
            self.clock,
            FaceLimits(spool_bytes=250_000),
            spool_dir=Path(tempfile.mkdtemp()),
        )

    def connection(self) -> Any:
        """A client."""
        return RawConnection(self.site)


class FileAnswerTests(_Case):
    def full_connection(self) -> Any:
        """A client that has no room after each write."""
        raw = self.connection()
        write = raw.wire.write

        def write_and_pause(data: bytes) -> None:
            write(data)
            raw.channel.pauseProducing()

        self.patch(raw.wire, "write", write_and_pause)
        return raw

    def test_sent_as_fast_as_it_is_taken(self) -> None:
        """A client that takes nothing has no more of the file read for it."""
        raw = self.full_connection()
        answer = raw.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        pieces = 0
        while not self.files.file.closed:
            self.assertLessEqual(self.files.file.tell(), (pieces + 1) * FILE_PIECE)
            raw.channel.resumeProducing()
            answer += raw.wire.value()
            raw.wire.clear()
            pieces += 1
        self.assertEqual(pieces, 5)
        self.assertTrue(answer.endswith(CONTENT))
        self.assertIn(b"content-length: %d" % len(CONTENT), answer.lower())
        self.assertTrue(self.files.file.closed)

    def test_client_leaves(self) -> None:
        """The file is closed when its client is gone."""
        raw = self.full_connection()
        raw.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        raw.channel.stopProducing()
        raw.lose()
        self.assertTrue(self.files.file.closed)


class SpoolTests(_Case):
    def post(self, size: int) -> bytes:
        """A request's head."""
        return b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size

    def test_kept_whole(self) -> None:
        """A body that comes in pieces is there whole, with its size and hash."""
        body = CONTENT[:90_000]
        raw = self.connection()
        raw.send(self.post(len(body)))
        for start in range(0, len(body), 7_001):
            answer = raw.send(body[start : start + 7_001])
        self.assertIn(b" 200 ", answer)
        self.assertEqual(self.files.bodies, [(90_000, sha256(body).hexdigest(), body)])
        self.assertEqual((self.site.disk.held, self.site.memory.held), (0, 0))

    def test_limits(self) -> None:
        """One too large is 413; beyond what all may take together it is 503."""
        self.assertIn(b" 413 ", self.connection().send(self.post(100_001)))
        raws = [self.connection() for _ in range(3)]
        answers = [raw.send(self.post(90_000) + b"x" * 89_999) for raw in raws]
        self.assertEqual([b" 503 " in each for each in answers], [False, False, True])
        for raw in raws:
            raw.lose()
        self.assertEqual(self.site.disk.held, 0)

    def test_announcements_hold_nothing(self) -> None:
        """Who announces a body and sends nothing takes no room, and opens no file."""
        opened: list[Path] = []
        begin = Spool.__init__
        self.patch(Spool, "__init__", lambda spool, d: (opened.append(d), begin(spool, d))[1])
        raws = [self.connection() for _ in range(30)]
        for raw in raws:
            self.assertEqual(raw.send(self.post(100_000)), b"")
        self.assertEqual((self.site.disk.held, opened), (0, []))
        self.assertIn(b" 200 ", self.connection().send(self.post(10) + b"x" * 10))
        self.assertEqual((self.site.disk.held, len(opened)), (0, 1))

    def test_slow_bodies_have_their_own_time(self) -> None:
        """A large body may take longer than other requests, and no longer than that."""
        for seconds, lost in ((200, False), (400, True)):
            raw = self.connection()
            raw.send(self.post(90_000))
            for _ in range(seconds // 10):
                self.clock.advance(10)
                raw.send(b"x")
            self.assertEqual(raw.wire.disconnected or raw.wire.disconnecting, lost, seconds)
            raw.lose()

    def test_no_room(self) -> None:
        """A disk that takes nothing costs the request, not the process."""
        self.site.spool_dir = Path("/nonexistent")
        self.assertIn(b" 503 ", self.connection().send(self.post(10) + b"x"))
        self.site.spool_dir = Path(tempfile.gettempdir())

        def full(self: Spool, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        self.patch(Spool, "write", full)
        self.assertIn(b" 503 ", self.connection().send(self.post(10) + b"x" * 10))
        self.assertEqual(self.site.disk.held, 0)

    def test_a_face_needs_a_folder(self) -> None:
        """A face with such a route and no folder for it is not made."""
        with self.assertRaisesRegex(ValueError, "spool_dir"):
            FaceSite(Api(CodeEnvelope({}, {}, 3), [self.files]), self.clock)


class _Events:
    """Tells something as it happens."""

    routes = Routes()

    def __init__(self) -> None:
        self.sink: Any = None
        self.end: Deferred[None] = Deferred()

    @routes.get("/events", summary="events")
    async def tell(self, call: Call) -> object:
        """Until the test says that it is over."""
        call.answer_headers["user"] = "me"

        async def run(sink: EventSink) -> None:
            self.sink = sink
            sink.send("first", {"n": 1})
            await self.end

        return EventStream(run)


class EventTests(SynchronousTestCase):
    """Server-sent events."""

    def setUp(self) -> None:
        self.events = _Events()
        site = FaceSite(Api(CodeEnvelope({0: "success"}, {}, 3), [self.events]), Clock())
        self.client = RawConnection(site)
        self.head = self.client.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")

    def test_events(self) -> None:
        """Each goes out at once; the answer ends when there are no more."""
        self.assertIn(b"Content-Type: text/event-stream; charset=utf-8\r\n", self.head)
        self.assertIn(b"Cache-Control: no-store\r\n", self.head)
        self.assertIn(b"User: me\r\n", self.head)
        self.assertIn(b'event: first\ndata: {"n":1}\n\n', self.head)
        self.events.sink.send("second", None)
        self.assertIn(b"event: second\ndata: null\n\n", self.client.wire.value())
        self.events.end.callback(None)
        self.assertTrue(self.client.wire.value().endswith(b"\r\n0\r\n\r\n"))
        self.assertFalse(self.client.wire.disconnecting)

    def test_the_client_leaves(self) -> None:
        """The sender can see it, goes on as it likes, and harms nobody."""
        self.client.lose()
        self.assertTrue(self.events.sink.gone)
        self.events.sink.send("second", None)
        self.events.end.callback(None)

    def test_a_fault(self) -> None:
        """Events that break off do not look whole, and the log says why."""
        self.events.end.errback(ValueError("a bug"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertTrue(self.client.wire.disconnecting)
        self.assertNotIn(b"\r\n0\r\n\r\n", self.client.wire.value())
