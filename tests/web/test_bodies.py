"""Room for bodies: by what has arrived, with a share for each address and a part for small ones."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.answers import CodeEnvelope
from elkeid.web.api import Api
from elkeid.web.bodies import KEPT_PART, SMALL_BODY, BodyRoom
from elkeid.web.refusals import AccessDenied, BodyTooLarge
from elkeid.web.routes import AuthKind, Call, MiB, Routes
from elkeid.web.site import FaceLimits, FaceSite
from tests.web.memory import RawConnection

LARGE = SMALL_BODY + 1


class RoomTests(SynchronousTestCase):
    """`BodyRoom` itself."""

    def test_the_last_part_is_for_small_bodies(self) -> None:
        """Large bodies leave an eighth of all room, and of each share, to small ones."""
        room = BodyRoom(16 * MiB, 8 * MiB)
        for address in ("a", "b"):
            self.assertTrue(room.take(address, 7 * MiB, 7 * MiB))
            self.assertFalse(room.take(address, 1, 7 * MiB + 1))
        self.assertFalse(room.take("c", 1, LARGE))
        for address in ("a", "b"):
            for _ in range(MiB // SMALL_BODY):
                self.assertTrue(room.take(address, SMALL_BODY, SMALL_BODY))
            self.assertFalse(room.take(address, 1, 1))
        self.assertFalse(room.take("c", 1, 1))
        self.assertEqual(room.held, 16 * MiB)

    def test_shares(self) -> None:
        """One address takes no more than its share, and may use it again."""
        room = BodyRoom(100, 40)
        self.assertTrue(room.take("a", 40, 40))
        self.assertFalse(room.take("a", 1, 1))
        self.assertTrue(room.take("b", 40, 40))
        room.give_back("a", 40)
        self.assertTrue(room.take("a", 1, 1))

    @given(
        st.lists(
            st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 9 * SMALL_BODY)),
            max_size=60,
        )
    )
    @settings(max_examples=100, deadline=None)
    def test_never_more_than_all(self, steps: list[tuple[int, int, int]]) -> None:
        """Whatever comes and goes: within the room and the shares, and nothing is left behind."""
        total, share = 40 * SMALL_BODY, 20 * SMALL_BODY
        room = BodyRoom(total, share)
        bodies = [0] * 6
        of = [f"10.0.0.{number % 3}" for number in range(6)]
        for body, action, more in steps:
            if action == 0 and bodies[body]:
                room.give_back(of[body], bodies[body])
                bodies[body] = 0
            elif more and room.take(of[body], more, bodies[body] + more):
                bodies[body] += more
            assert room.held == sum(bodies) <= total
            assert max(sum(bodies[start::3]) for start in range(3)) <= share
            large = sum(each for each in bodies if each > SMALL_BODY)
            assert large <= total - total // KEPT_PART
        for body, size in enumerate(bodies):
            if size:
                room.give_back(of[body], size)
        assert (room.held, room._addresses) == (0, {})


class _Takers:
    """Takes large bodies and small ones."""

    routes = Routes()

    @routes.post("/large", summary="large", limit=16 * MiB)
    async def large(self, call: Call) -> object:
        """How much came."""
        return len(call.raw_body)

    @routes.post("/inner", summary="for some", auth=AuthKind.SIGNED, limit=16 * MiB)
    async def inner(self, call: Call) -> object:
        """How much came."""
        return len(call.raw_body)


class FaceTests(SynchronousTestCase):
    """A site of usual limits."""

    def setUp(self) -> None:
        """Serve."""

        def local(address: str) -> None:
            if not address.startswith("10."):
                raise AccessDenied(f"{address} is elsewhere")

        envelope = CodeEnvelope({0: "success"}, {BodyTooLarge: 2}, 3)
        api = Api(
            envelope,
            [_Takers()],
            {AuthKind.SIGNED: lambda call: None},
            proxies=["10.9.9.9/32"],
            gates={AuthKind.SIGNED: local},
        )
        self.clock = Clock()
        self.site = FaceSite(api, self.clock, FaceLimits())

    def connect(self, host: str) -> RawConnection:
        """A client at an address."""
        peer: Any = (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)
        return RawConnection(self.site, peer)

    def head(self, size: int, path: str = "/large", more: str = "") -> bytes:
        """Of a POST."""
        return f"POST {path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {size}\r\n\r\n".encode()

    def fill(self, host: str, more: str = "") -> int:
        """Send large bodies until one is refused; how many bytes are kept."""
        before = self.site.memory.held
        for _ in range(20):
            answer = self.connect(host).send(self.head(4 * MiB, more=more) + bytes(4 * MiB - 1))
            if answer:
                self.assertIn(b" 503 ", answer)
                break
        return self.site.memory.held - before

    def test_one_address_cannot_take_all(self) -> None:
        """Its share is full, for it; others are served as before, and it too with small bodies."""
        self.assertEqual(self.fill("192.0.2.1") // (4 * MiB), 6)
        answer = self.connect("192.0.2.2").send(self.head(MiB) + bytes(MiB))
        self.assertIn(b" 200 ", answer)
        answer = self.connect("192.0.2.1").send(self.head(SMALL_BODY) + bytes(SMALL_BODY))
        self.assertIn(b" 200 ", answer)

    def test_many_addresses(self) -> None:
        """Together they take all but what is kept for small bodies, which still come in."""
        for number in range(8):
            self.fill(f"192.0.2.{number}")
        limits = self.site.limits
        self.assertLessEqual(self.site.memory.held, limits.bodies_bytes * 7 // 8)
        self.assertIn(b" 503 ", self.connect("192.0.2.99").send(self.head(8 * MiB)))
        answer = self.connect("192.0.2.99").send(self.head(SMALL_BODY) + bytes(SMALL_BODY))
        self.assertIn(b" 200 ", answer)

    def test_addresses(self) -> None:
        """A network of IPv6 is one address; one behind our proxy is its own."""
        self.assertGreater(self.fill("2001:db8::1"), 0)
        self.assertEqual(self.fill("2001:db8::2"), 0)
        self.assertGreater(self.fill("2001:db8:0:1::2"), 0)
        self.assertGreater(self.fill("10.9.9.9", "X-Forwarded-For: 192.0.2.7\r\n"), 0)
        self.assertGreater(self.fill("10.9.9.9", "X-Forwarded-For: 192.0.2.8\r\n"), 0)
        self.assertEqual(self.fill("10.9.9.9", "X-Forwarded-For: 192.0.2.8\r\n"), 0)
        self.assertEqual(self.fill("192.0.2.8"), 0)

    def test_gates(self) -> None:
        """A route that is not for an address refuses it before a byte of the body is read."""
        self.assertIn(b" 403 ", self.connect("192.0.2.1").send(self.head(MiB, "/inner")))
        self.assertEqual(self.connect("10.0.0.1").send(self.head(MiB, "/inner")), b"")
        via = self.connect("10.9.9.9")
        answer = via.send(self.head(MiB, "/inner", "X-Forwarded-For: 192.0.2.1\r\n"))
        self.assertIn(b" 403 ", answer)
