"""A simulated network: real nodes and real clients, joined by links that a seed makes fail.

Each node has a clock of its own, so that it can be paused, and a wall clock that can be off.
Requests pass the real site, signatures included; only sockets are missing.
"""

import heapq
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, FirstError
from twisted.internet.error import ConnectionRefusedError as TwistedRefused
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from zope.interface import implementer

from elkeid.config import parse
from elkeid.discovery.service import DiscoveryRole
from elkeid.web.client import Credentials, JsonClient

from ..web.memory import NOW
from ..web.sample import AK, SK
from .test_api import Keys

STEP = 0.1  # seconds of simulated time

Handler = Callable[[str, str, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]
"""Takes method, target, headers and body of a request; returns status, headers and body."""


class World:
    """Time, links and nodes; everything random comes from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.clients = MemoryReactorClock()  # of those that are no nodes
        self.places: dict[str, Place] = {}
        self.cuts: set[frozenset[str]] = set()
        self.slow = 0.02  # seconds that a message takes at most
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def wall(self) -> float:
        """The true time of day."""
        return NOW + self.now

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Let something happen."""
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, act))

    def step(self) -> None:
        """Let a moment pass."""
        self.now += STEP
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()
        self.clients.advance(STEP)
        for place in list(self.places.values()):
            place.advance(STEP)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / STEP)):
            self.step()

    def linked(self, one: str, other: str) -> bool:
        """Whether messages pass between two."""
        return frozenset((one, other)) not in self.cuts

    def client(self, name: str) -> JsonClient:
        """A signing client that stands at ``name``."""
        return JsonClient(self.clients, SimulatedAgent(self, name), self.wall, Credentials(AK, SK))


class Place:
    """Where requests arrive: ``host:port``. It may be down, or paused with an inbox that fills.

    Args:
        world: around it.
        name: host.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.up = False
        self.paused: float | None = None  # since when
        self.since = 0.0  # up and not paused since then
        self.boot = 0
        self.inbox: list[Callable[[], None]] = []
        world.places[name] = self

    def advance(self, seconds: float) -> None:
        """Time passes here."""

    def serve(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Any:
        """Answer a request."""
        raise NotImplementedError

    def soon(self, act: Callable[[], None]) -> None:
        """Do something now, or when this place is not paused any more."""
        if self.paused is None:
            act()
        else:
            self.inbox.append(act)


class Node(Place):
    """One ServiceDiscovery process of ours."""

    def __init__(self, world: World, name: str, members: list[str]) -> None:
        super().__init__(world, name)
        self.skew = 0.0
        self.settings = parse(
            {
                "server": {"advertise": name},
                "discovery": {
                    "listen": "0.0.0.0",
                    "members": members,
                    "read_rate": 1e6,
                    "write_rate": 1e6,
                },
                "agentcenter": {"advertise": "10.9.9.9"},
            },
            base=Path(),
        )
        self.clock = MemoryReactorClock()
        self.role: DiscoveryRole
        self.starting: Deferred[None]
        self.heard: Callable[[Node, str, bytes], None] = lambda node, path, body: None

    def start(self) -> None:
        """A new process, with an empty registry."""
        self.boot += 1
        self.clock = MemoryReactorClock()
        self.up, self.paused, self.inbox = True, None, []
        self.since = self.world.now
        self.role = DiscoveryRole(
            self.settings,
            Keys(),  # type: ignore[arg-type]
            self.clock,
            wall=lambda: self.world.wall() + self.skew,
            monotonic=lambda: self.world.now,
            random=Random(self.world.random.random()),
            agent=SimulatedAgent(self.world, self.name),
            node=f"{self.name}-{self.boot}",
        )
        self.starting = Deferred.fromCoroutine(self.role.start())
        self.starting.addErrback(_cancelled)

    def kill(self) -> None:
        """The process is gone, and so is what it knew."""
        self.up, self.inbox = False, []

    def pause(self) -> None:
        """The process stands still."""
        self.paused = self.world.now

    def resume(self) -> None:
        """It goes on: first what lies in its sockets, then its timers."""
        assert self.paused is not None
        stood, self.paused = self.world.now - self.paused, None
        self.since = self.world.now
        inbox, self.inbox = self.inbox, []
        for act in inbox:
            act()
        self.clock.advance(stood)

    def advance(self, seconds: float) -> None:
        """Timers run."""
        if self.up and self.paused is None:
            self.clock.advance(seconds)

    @property
    def serving(self) -> bool:
        """Whether its port is open and it runs."""
        return self.up and bool(self.clock.tcpServers) and self.paused is None

    def serve(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Any:
        """Answer a request through the real site; None if the port is closed."""
        if not self.clock.tcpServers:
            return None
        lines = [f"{method} {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        channel: Any = self.role.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        wire = StringTransport(peerAddress=IPv4Address("TCP", headers["x-from"], 1))
        channel.makeConnection(wire)
        channel.dataReceived("\r\n".join([*lines, "", ""]).encode() + body)
        head, _, content = wire.value().partition(b"\r\n\r\n")
        channel.connectionLost(Failure(ConnectionError()))
        status = int(head.split()[1])
        if status == 200 and method == "POST":
            self.heard(self, target.partition("?")[0], body)
        return status, {}, content

    def get(self, target: str) -> bytes:
        """What an agent gets."""
        found = self.serve("GET", target, {"x-from": "10.1.1.1"}, b"")
        assert found is not None
        content: bytes = found[2]
        return content


@implementer(IAgent)
class SimulatedAgent:
    """Sends requests from one place."""

    def __init__(self, world: World, source: str) -> None:
        self._world, self._source = world, source

    def request(
        self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None
    ) -> Deferred[Any]:
        """See `IAgent`."""
        world, source = self._world, self._source
        here = world.places.get(source)
        boot = here.boot if here else 0
        parts = urlsplit(uri.decode())
        there = world.places.get(parts.hostname or "")
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        sent = {
            name.decode(): values[0].decode()
            for name, values in (headers or Headers()).getAllRawHeaders()
        }
        sent["x-from"] = source if source[0].isdigit() else "10.2.2.2"
        body = _Body()
        if bodyProducer is not None:
            bodyProducer.startProducing(body)
        done: Deferred[Any] = Deferred(lambda _: None)

        def answer(result: Any) -> None:
            if done.called or (here is not None and (here.boot != boot or not here.up)):
                return
            if isinstance(result, Failure):
                done.errback(result)
            else:
                done.callback(_Response(*result))

        def back(result: Any) -> None:
            if world.linked(source, there.name if there else ""):
                act = answer if here is None else lambda r: here.soon(lambda: answer(r))
                world.later(self._delay(), lambda: act(result))

        def arrive() -> None:
            if there is None or not there.up:
                back(Failure(TwistedRefused()))
            elif world.linked(source, there.name):
                there.soon(handle)

        def handle() -> None:
            assert there is not None
            result = there.serve(method.decode(), target, sent, bytes(body.data))
            back(Failure(TwistedRefused()) if result is None else result)

        if there is None or world.linked(source, there.name):
            world.later(self._delay(), arrive)
        return done

    def _delay(self) -> float:
        return self._world.random.uniform(0.001, self._world.slow)


class _Body:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data


class _Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.code, self.length, self._body = status, len(body), body
        self.headers = Headers({name: [value] for name, value in headers.items()})

    def deliverBody(self, protocol: Any) -> None:
        if self._body:
            protocol.dataReceived(self._body)
        protocol.connectionLost(Failure(ResponseDone()))


def _cancelled(failure: Failure) -> None:
    """A start that was given up."""
    assert isinstance(failure.value, FirstError | CancelledError), failure
