"""A connection that is handed over to another protocol: whose it is, and what limits it keeps."""

from typing import Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.answers import CodeEnvelope, Takeover
from elkeid.web.api import Api
from elkeid.web.refusals import AccessDenied
from elkeid.web.routes import Call, Route, Routes
from elkeid.web.site import FaceLimits, FaceSite

from .memory import RawConnection

HEAD = b"GET /talk?a=%20b HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nX-Two: 2\r\n"


class Heir(Protocol):
    """Keeps what it gets, and answers it in capitals."""

    def __init__(self) -> None:
        self.got = b""
        self.over = False

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.got += data
        assert self.transport is not None
        self.transport.write(data.upper())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self.over = True


class TakeoverTests(SynchronousTestCase):
    """One route that hands over, unless it is told not to."""

    routes = Routes()

    @routes.get("/talk", summary="", upgrades=True, answer=str)
    async def talk(self, call: Call) -> object:
        if call.header("refuse"):
            raise AccessDenied("no")
        self.heirs.append(Heir())
        return Takeover(self.heirs[-1])

    def setUp(self) -> None:
        self.heirs: list[Heir] = []
        self.observed: list[int] = []
        self.clock = MemoryReactorClock()
        api = Api(CodeEnvelope({}, {}, 3), [self], observe=self.observe)
        self.site = FaceSite(api, self.clock, FaceLimits(connections=2, idle_seconds=10))

    def observe(self, route: Route | None, status: int) -> None:
        """Note a status."""
        self.observed.append(status)

    def begin(self, more: bytes = b"") -> RawConnection:
        """A connection that is handed over."""
        connection = RawConnection(self.site)
        connection.send(HEAD + b"\r\n" + more)
        return connection

    def test_from_the_head_on(self) -> None:
        """The heir gets the head as it came, what came with it, and all that follows."""
        connection = self.begin(b"early")
        (heir,) = self.heirs
        self.assertTrue(heir.got.startswith(b"GET /talk?a=%20b HTTP/1.1\r\n"))
        self.assertTrue(heir.got.lower().endswith(b"x-two: 1\r\nx-two: 2\r\n\r\nearly"), heir.got)
        self.assertEqual(connection.send(b"later"), b"LATER")
        self.assertEqual(self.observed, [101])

    def test_its_own_time(self) -> None:
        """The face's time limits are for requests."""
        connection = self.begin()
        self.clock.advance(3600)
        self.assertEqual(connection.send(b"still here"), b"STILL HERE")

    def test_counts_as_a_connection(self) -> None:
        """Until it is gone; then the heir hears of it, once."""
        first, second = self.begin(), self.begin()
        third: Any = RawConnection(self.site)
        self.assertTrue(third.wire.disconnected or third.wire.aborting)
        first.lose()
        self.assertTrue(self.heirs[0].over)
        self.assertFalse(self.heirs[1].over)
        self.assertEqual(len(self.site.channels), 1)
        self.assertEqual(second.send(b"x"), b"X")

    def test_the_face_closes(self) -> None:
        """With all its connections."""
        connection = self.begin()
        self.site.close()
        self.assertTrue(connection.wire.disconnecting)

    def test_refused(self) -> None:
        """A refusal is an answer as any other, and the connection goes on with requests."""
        connection = RawConnection(self.site)
        answer = connection.send(HEAD + b"refuse: 1\r\n\r\n")
        self.assertIn(b" 403 ", answer.partition(b"\r\n")[0])
        self.assertEqual(self.heirs, [])
        connection.send(HEAD + b"\r\n")
        self.assertEqual(len(self.heirs), 1)
