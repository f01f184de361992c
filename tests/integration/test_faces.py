"""HTTP faces on real sockets, in plain text and over TLS."""

import datetime
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Protocol

from elkeid.errors import OperatorError
from elkeid.key_making import make_keys
from elkeid.keys import Keys, check_keys
from elkeid.tls import HttpsPolicy, api_server_options, client_options
from elkeid.web.client import Credentials, JsonClient, Unreachable, http_agent
from elkeid.web.site import FaceLimits, FaceSite, listen

from ..web.sample import AK, SK, Sample

pytestmark = pytest.mark.integration
reactor: Any = global_reactor
FILES = make_keys([], datetime.datetime.now(datetime.UTC))
KEYS = check_keys(Path("keys"), FILES)


class Served:
    """A face on a port of the system's choice."""

    def __init__(self, *, secure: bool, limits: FaceLimits | None = None) -> None:
        self.sample = Sample(time.time)
        self.site = FaceSite(self.sample.api, reactor, limits)
        tls = api_server_options(KEYS) if secure else None
        self.port = listen(reactor, self.site, "127.0.0.1", 0, setting="x.port", tls=tls)
        self.number: int = self.port.getHost().port
        self.url = f"{'https' if secure else 'http'}://127.0.0.1:{self.number}"
        self.options = client_options(KEYS) if secure else None
        policy = HttpsPolicy(self.options) if self.options else None
        self.http = JsonClient(reactor, http_agent(reactor, policy), time.time, Credentials(AK, SK))

    async def connect(self, protocol: Protocol) -> None:
        """Connect a raw protocol."""
        endpoint: Any = HostnameEndpoint(reactor, "127.0.0.1", self.number)
        if self.options:
            endpoint = wrapClientTLS(self.options, endpoint)
        await connectProtocol(endpoint, protocol)

    async def stop(self) -> None:
        """Close everything."""
        await self.http.close()
        await maybeDeferred(self.port.stopListening)
        self.site.close()


@asynccontextmanager
async def serving(*, secure: bool, limits: FaceLimits | None = None) -> AsyncIterator[Served]:
    """A face that is closed in the end."""
    served = Served(secure=secure, limits=limits)
    try:
        yield served
    finally:
        await served.stop()


class Sender(Protocol):
    """Sends, keeps what comes, and tells when the connection ends."""

    def __init__(self, data: bytes) -> None:
        self._data, self.received = data, b""
        self.answered: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Send."""
        assert self.transport is not None
        self.transport.write(self._data)

    def dataReceived(self, data: bytes) -> None:
        """Keep."""
        self.received += data
        if not self.answered.called:
            self.answered.callback(None)

    def connectionLost(self, *_: Any) -> None:
        """Tell."""
        self.ended.callback(None)


both = pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
_Test = Callable[..., Coroutine[Any, Any, None]]
twisted: Callable[[_Test], Callable[..., None]] = pytest_twisted.ensureDeferred


@both
@twisted
async def test_signed_calls(secure: bool) -> None:
    """Our own client and server understand each other, on one kept connection."""
    async with serving(secure=secure) as served:
        for name in ("a", "é" * 1000):
            reply = await served.http.post(f"{served.url}/x/signed", {"name": name})
            assert reply.decode(dict[str, Any])["data"]["name"] == name
            assert reply.skew is not None
            assert abs(reply.skew) < 60
        assert len(served.site.channels) == 1


@both
@twisted
async def test_too_large(secure: bool) -> None:
    """One that sends 10 MB and reads only then still sees why it was refused."""
    async with serving(secure=secure) as served:
        size = 10_000_000
        head = b"POST /x/item HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
        sender = Sender(head + b"x" * size)
        await served.connect(sender)
        await sender.ended
        assert sender.received.startswith(b"HTTP/1.1 413 ")
        assert sender.received.count(b"HTTP/1.1") == 1
        assert served.site.memory.held == 0


@both
@twisted
async def test_endless(secure: bool) -> None:
    """One that sends without end is cut off."""
    async with serving(secure=secure, limits=FaceLimits(drain_bytes=1 << 20)) as served:
        head = b"POST /x/item HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        sender = Sender(head + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 1000)
        await served.connect(sender)
        await sender.ended


@both
@twisted
async def test_connection_limit(secure: bool) -> None:
    """A connection too many is dropped, those that are there live on."""
    async with serving(secure=secure, limits=FaceLimits(connections=1)) as served:
        request = b"GET /x/page HTTP/1.1\r\nHost: x\r\n\r\n"
        first, second = Sender(request), Sender(request)
        await served.connect(first)
        await first.answered
        try:
            await served.connect(second)
        except Exception:  # over TLS the handshake itself fails
            assert secure
        else:
            await second.ended
            assert second.received == b""
        assert first.transport is not None
        assert not first.ended.called
        first.transport.loseConnection()
        await first.ended


@twisted
async def test_wrong_server() -> None:
    """A server that shows a certificate of another authority is not spoken to."""
    async with serving(secure=True) as served:
        files = make_keys([], datetime.datetime.now(datetime.UTC))
        other = Keys(keys_dir=Path("keys"), ca_cert=files["ca.crt"])
        policy = HttpsPolicy(client_options(other))
        http = JsonClient(reactor, http_agent(reactor, policy), time.time, Credentials(AK, SK))
        with pytest.raises(Unreachable):
            await http.get(f"{served.url}/x/page")
        await http.close()
        assert served.sample.observed == []


@twisted
async def test_port_in_use() -> None:
    """A port that is taken is one sentence with the fix."""
    async with serving(secure=False) as served:
        with pytest.raises(OperatorError, match=f"x.port: {served.number} is in use on 127.0.0.1"):
            listen(reactor, served.site, "127.0.0.1", served.number, setting="x.port")
