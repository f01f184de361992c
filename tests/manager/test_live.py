"""The live feed: who may listen, what they are told, and what a slow listener costs."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager.live import (
    EVENT_NAMES,
    LISTENERS,
    QUEUE_BYTES,
    QUEUE_EVENTS,
    STRANGERS,
    USER_LISTENERS,
    EventQueue,
    FeedFull,
    Listener,
    LiveFeed,
)
from elkeid.web.refusals import AuthenticationFailed
from tests.web.memory import RawConnection

from .deployment import Deployment

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
TEXT, CLOSE, PING = 1, 8, 9


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros."""
    assert len(payload) < 126
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """A server's frames: opcode and payload."""
    found = []
    while data:
        size, start = data[1], 2
        assert not size & 0x80
        if size == 126:
            size, start = int.from_bytes(data[2:4]), 4
        found.append((data[0] & 0x0F, data[start : start + size]))
        data = data[start + size :]
    return found


class Socket:
    """A WebSocket client of the Manager's plain port."""

    def __init__(self, deployment: Deployment, query: str = "", token: str | None = None) -> None:
        self.network = deployment.network
        site: Any = self.network.ports[deployment.settings.manager.port]
        self.raw = RawConnection(site)
        self.pending = b""
        head = (
            f"GET /api/v1/live{query} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n"
            "connection: keep-alive, Upgrade\r\nsec-websocket-version: 13\r\n"
            f"sec-websocket-key: {KEY.decode()}\r\n"
        )
        if token is not None:
            head += f"token: {token}\r\n"
        self.raw.channel.dataReceived(head.encode() + b"\r\n")
        self.network.flush()
        answer = self.raw.wire.value()
        self.raw.wire.clear()
        self.head, _, self.pending = answer.partition(b"\r\n\r\n")

    @property
    def status(self) -> int:
        """Of the answer."""
        return int(self.head.split()[1])

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.raw.channel.dataReceived(data)
        self.network.flush()

    def read(self) -> list[tuple[int, bytes]]:
        """Frames that came since."""
        self.network.flush()
        data = self.pending + self.raw.wire.value()
        self.raw.wire.clear()
        self.pending = b""
        return frames(data)

    def events(self) -> list[dict[str, Any]]:
        """Messages that came since."""
        return [msgspec.json.decode(payload) for opcode, payload in self.read() if opcode == TEXT]

    def closed(self) -> int | None:
        """The code of a close, if one came."""
        codes = [int.from_bytes(body[:2]) for opcode, body in self.read() if opcode == CLOSE]
        return codes[0] if codes else None


class SocketTests(SynchronousTestCase):
    """Over the Manager's port."""

    def setUp(self) -> None:
        """Start the Manager."""
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)
        self.feed = self.deployment.manager.live
        self.token = self.deployment.login()

    def test_token_in_the_header(self) -> None:
        """The answer is RFC 6455's; events come from then on."""
        socket = Socket(self.deployment, token=self.token)
        self.assertEqual(socket.status, 101)
        self.assertIn(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", socket.head)
        self.assertEqual(socket.events(), [{"event": "ready"}])
        self.feed.tell("online", agent_id="a", gateway="g")
        (event,) = socket.events()
        self.assertEqual((event["event"], event["agent_id"]), ("online", "a"))
        self.assertGreater(event["at"], 0)

    def test_token_in_the_first_message(self) -> None:
        """As browsers must send it; before that nothing is told."""
        socket = Socket(self.deployment)
        self.assertEqual(socket.status, 101)
        self.feed.tell("online", agent_id="a")
        self.assertEqual(socket.events(), [])
        socket.send(frame(TEXT, msgspec.json.encode({"token": self.token})))
        self.assertEqual(socket.events(), [{"event": "ready"}])

    def test_refused(self) -> None:
        """A token that is none, or of the wrong level, gets no feed; nor does plain HTTP."""
        hub = self.deployment.add_user("hub", 4)
        self.assertEqual(Socket(self.deployment, token="garbage").status, 401)
        self.assertEqual(Socket(self.deployment, token=hub).status, 403)
        for token in ("garbage", hub):
            socket = Socket(self.deployment)
            socket.send(frame(TEXT, msgspec.json.encode({"token": token})))
            self.assertEqual(socket.closed(), 4401)
        for message in (b"{}", b"token", b"\xff"):
            socket = Socket(self.deployment)
            socket.send(frame(TEXT, message))
            self.assertIn(socket.closed(), (1007, 4400))
        got = self.deployment.call("GET", "/api/v1/live", token=self.token)
        self.assertEqual((got.status, got.json["code"]), (400, 5))
        self.assertEqual(Socket(self.deployment, "?event=weather", self.token).status, 400)

    def test_no_token_in_time(self) -> None:
        """A connection without a token is closed."""
        socket = Socket(self.deployment)
        self.deployment.network.advance(5.5)
        self.assertEqual(socket.closed(), 4401)

    def test_strangers(self) -> None:
        """Connections without a token are few, and free their places."""
        sockets = [Socket(self.deployment) for _ in range(STRANGERS)]
        self.assertEqual({socket.status for socket in sockets}, {101})
        self.assertEqual(Socket(self.deployment).status, 503)
        sockets[0].raw.lose()
        self.assertEqual(Socket(self.deployment).status, 101)

    def test_chosen_events(self) -> None:
        """Only those that were asked for."""
        socket = Socket(self.deployment, "?event=task&event=conflict", self.token)
        for name in sorted(EVENT_NAMES):
            self.feed.tell(name)  # type: ignore[arg-type]
        self.assertEqual(
            [event["event"] for event in socket.events()], ["ready", "conflict", "task"]
        )

    def test_slow(self) -> None:
        """It is told how many it missed, and then the latest."""
        socket = Socket(self.deployment, token=self.token)
        socket.read()
        socket.raw.wire.producer.pauseProducing()
        for number in range(QUEUE_EVENTS + 5):
            self.feed.tell("online", agent_id=str(number))
        self.assertEqual(socket.read(), [])
        socket.raw.wire.producer.resumeProducing()
        events = socket.events()
        self.assertEqual(events[0], {"event": "missed", "count": 5})
        self.assertEqual(
            [event["agent_id"] for event in events[1:]],
            [str(number) for number in range(5, QUEUE_EVENTS + 5)],
        )

    def test_the_token_ends(self) -> None:
        """A logout, or a lower level, closes the feed; use of the feed keeps no token alive."""
        other = self.deployment.login()
        socket = Socket(self.deployment, token=other)
        socket.read()
        self.deployment.network.advance(11)
        self.assertIsNone(socket.closed())
        self.deployment.call("GET", "/api/v1/user/logout", token=other)
        self.deployment.network.advance(11)
        self.assertEqual(socket.closed(), 4401)
        self.feed.tell("online", agent_id="a")
        self.deployment.network.advance(3)
        self.assertTrue(socket.raw.wire.disconnecting)

    def test_pings(self) -> None:
        """A silent listener is asked for a sign of life, and dropped without one."""
        socket = Socket(self.deployment, token=self.token)
        socket.read()
        self.deployment.network.advance(21)
        self.assertEqual([opcode for opcode, _ in socket.read()], [PING])
        self.deployment.network.advance(21)
        self.assertTrue(socket.raw.wire.disconnecting or socket.raw.wire.disconnected)

    def test_listeners_may_not_talk(self) -> None:
        """Whatever comes after the token ends it; a large message does at once."""
        for message in (b"hello", b"x" * 120):
            socket = Socket(self.deployment, token=self.token)
            socket.read()
            socket.send(frame(TEXT, message))
            self.assertEqual(socket.closed(), 4400)
        socket = Socket(self.deployment, token=self.token)
        socket.read()
        socket.send(bytes([0x81, 0xFF]) + (1 << 40).to_bytes(8) + bytes(4))
        self.assertIn(socket.closed(), (1002, 1009))

    def test_others_while_one_is_closed(self) -> None:
        """A listener that breaks the protocol stands in nobody's way until it is gone."""
        good, bad = (Socket(self.deployment, token=self.token) for _ in range(2))
        bad.send(bytes([0x81, 0xFF]) + (1 << 40).to_bytes(8) + bytes(4))
        self.feed.tell("online", agent_id="a")
        self.assertEqual([each["event"] for each in good.events()], ["ready", "online"])
        self.assertEqual([each["event"] for each in bad.events()], ["ready"])

    def test_one_user(self) -> None:
        """May have so many, and free places by leaving."""
        sockets = [Socket(self.deployment, token=self.token) for _ in range(USER_LISTENERS)]
        self.assertEqual(Socket(self.deployment, token=self.token).status, 503)
        sockets[0].raw.lose()
        self.assertEqual(Socket(self.deployment, token=self.token).status, 101)

    def test_early_bytes(self) -> None:
        """What comes with the request is read as the socket's."""
        site: Any = self.deployment.network.ports[self.deployment.settings.manager.port]
        raw = RawConnection(site)
        head = (
            b"GET /api/v1/live HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n"
            b"connection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
        )
        message = frame(TEXT, msgspec.json.encode({"token": self.token}))
        raw.channel.dataReceived(head + KEY + b"\r\n\r\n" + message)
        self.deployment.network.flush()
        self.assertIn(b'{"event":"ready"}', raw.wire.value())

    def test_counted_and_closed(self) -> None:
        """It is one of the face's connections until it is gone; a stop closes it."""
        site: Any = self.deployment.network.ports[self.deployment.settings.manager.port]
        socket = Socket(self.deployment, token=self.token)
        self.deployment.network.advance(15)
        self.assertIn(socket.raw.channel, site.channels)
        socket.raw.lose()
        self.assertNotIn(socket.raw.channel, site.channels)
        self.assertEqual(self.feed.figures()[0], 0)


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.ended = ""

    def tell(self, event: bytes) -> None:
        """Keep."""
        self.got.append(event)

    def end(self, reason: str) -> None:
        """Note why."""
        self.ended = reason


async def fine() -> None:
    """It may go on listening."""


class FeedTests(SynchronousTestCase):
    """Without a network."""

    def test_limits(self) -> None:
        """Of all listeners together."""
        feed = LiveFeed(Clock(), lambda: 0)
        for number in range(LISTENERS):
            feed.join(Listener(f"u{number // 5}", EVENT_NAMES, Kept(), fine))
        with self.assertRaises(FeedFull):
            feed.join(Listener("new", EVENT_NAMES, Kept(), fine))

    def test_one_that_may_not_listen_any_more(self) -> None:
        """Is ended; others go on, whatever the check of one says."""
        clock = Clock()
        feed = LiveFeed(clock, lambda: 0)

        async def refused() -> None:
            raise AuthenticationFailed("gone")

        async def broken() -> None:
            raise KeyError("bug")

        sinks = [Kept(), Kept(), Kept()]
        for sink, check in zip(sinks, (broken, refused, fine), strict=True):
            feed.join(Listener("u", EVENT_NAMES, sink, check))
        feed.start()
        clock.advance(10)
        self.assertEqual(sorted(sink.ended for sink in sinks), ["", "", "gone"])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.successResultOf(Deferred.fromCoroutine(feed.stop()))
        self.assertEqual(sinks[2].ended, "this Manager stops")


steps = st.lists(
    st.one_of(
        st.integers(1, 60).map(lambda size: ("tell", size)),
        st.sampled_from([("pause", 0), ("resume", 0)]),
    ),
    max_size=80,
)


class QueueTests(SynchronousTestCase):
    """What waits for a slow listener."""

    @given(steps, st.integers(1, 8), st.integers(1, 200))
    @settings(max_examples=150, deadline=None)
    def test_every_event_is_told_or_counted(
        self, steps: list[tuple[str, int]], events: int, size: int
    ) -> None:
        """In order, each once; those left out are counted where they are missing."""
        sink = Kept()
        listener = Listener("u", EVENT_NAMES, sink, fine)
        listener.queue = EventQueue(events, size)
        number = 0
        for step, length in steps:
            if step == "pause":
                listener.pause()
            elif step == "resume":
                listener.resume()
            else:
                listener.tell(b"%d:%s" % (number, b"x" * length))
                number += 1
            self.assertLessEqual(len(listener.queue), events)
            self.assertLessEqual(listener.queue.bytes, size)
        listener.resume()
        expected = 0
        for event in sink.got:
            if event.startswith(b"{"):
                expected += msgspec.json.decode(event)["count"]
            else:
                self.assertEqual(int(event.partition(b":")[0]), expected)
                expected += 1
        self.assertEqual(expected, number)

    def test_bounds(self) -> None:
        """The real ones hold for events of any size."""
        queue = EventQueue()
        for _ in range(100):
            queue.put(b"x" * (QUEUE_BYTES // 10))
        self.assertEqual((len(queue), queue.missed), (10, 90))
        queue.put(b"x" * (QUEUE_BYTES + 1))
        self.assertEqual((len(queue), queue.bytes), (0, 0))
