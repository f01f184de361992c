"""A Manager with ServiceDiscovery and scripted AgentCenters, in memory, on one fake clock."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from random import Random
from typing import Any, cast
from unittest.mock import patch

import msgspec
import treq
from argon2 import PasswordHasher
from attrs import evolve, frozen
from sqlalchemy import Connection
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.web.http_headers import Headers

from elkeid import config
from elkeid.discovery.client import DiscoveryClient
from elkeid.discovery.service import DiscoveryRole
from elkeid.keys import Keys, create_keys, load_keys
from elkeid.manager.service import ManagerRole
from elkeid.manager.store.backends import database_of
from elkeid.manager.store.engine import Database
from elkeid.manager.store.users import add_user
from elkeid.web.answers import Answer, CodeEnvelope
from elkeid.web.api import Api, Group
from elkeid.web.client import Credentials, _Whole
from elkeid.web.refusals import AuthenticationFailed
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.web.signed import SignatureCheck
from elkeid.web.site import FaceSite
from tests.web.memory import NOW, MemoryNetwork

from .contract import contract_of
from .stores import migrated

AK, SK = "test_access_key", "test-secret-key-0123456789"
HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PASSWORD = "correct horse battery"

_in_thread = False


class MarkedThreads:
    """Runs functions at once, but lets them know that they are where they may block."""

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run it."""
        return maybeDeferred(self._run, function, *args)

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        global _in_thread  # noqa: PLW0603 - stands for the thread
        assert not _in_thread
        _in_thread = True
        try:
            return function(*args)
        finally:
            _in_thread = False


class GuardedDatabase:
    """Fails when it is touched where nothing may block."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self) -> None:
        """See `Database`."""
        assert _in_thread
        self._inner.open()

    def close(self) -> None:
        """See `Database`."""
        assert _in_thread
        self._inner.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """See `Database`."""
        assert _in_thread
        with self._inner.reading() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """See `Database`."""
        assert _in_thread
        with self._inner.writing() as connection:
            yield connection


def _guarded(settings: Any) -> GuardedDatabase:
    return GuardedDatabase(database_of(settings))


@frozen
class Got:
    """An answer."""

    status: int
    headers: dict[str, str]
    text: bytes

    @property
    def json(self) -> Any:
        """The decoded body."""
        return msgspec.json.decode(self.text)

    @property
    def data(self) -> Any:
        """``data`` of a success."""
        assert self.status == 200, self
        body = self.json
        assert body["code"] == 0, body
        assert body["msg"] == "success"
        return body["data"]


class Since(msgspec.Struct):
    """Query of ``/conn/stat``."""

    since: str = ""


class Concerned(msgspec.Struct):
    """Body of ``/tags/refresh``."""

    agent_ids: list[str] | None


class ScriptedAc:
    """An AgentCenter's HTTP API whose answers tests choose.

    ``agents`` is what it holds; ``answer`` replaces the whole answer, ``slow`` withholds it.
    ``ahead`` is how wrong its clock is, seconds.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(
        self,
        network: MemoryNetwork,
        port: int = 6752,
        cursors: bool = True,
        more: Sequence[Group] = (),
    ) -> None:
        self.network, self.port, self.cursors = network, port, cursors
        self.agents: dict[str, Any] = {}
        self.answer: Answer | None = None
        self.slow = False
        self.ahead = 0
        self.part = 0  # entries of one answer; 0: all
        self.told: Callable[[], None] = lambda: None  # called at each question
        self.asked: list[str] = []  # cursors
        self.refreshed: list[list[str] | None] = []  # whose tags changed
        self._run, self._change = 1, 0
        self._changed: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        api = Api(
            CodeEnvelope({0: "success"}, {AuthenticationFailed: 1}, 3),
            [self, *more],
            {AuthKind.SIGNED: SignatureCheck({AK: SK}, network.wall)},
        )
        self.site = FaceSite(api, network.clock)
        self.up()

    def up(self) -> None:
        """Take connections."""
        self.network.ports[self.port] = self.site

    def down(self) -> None:
        """Refuse connections, end those there are."""
        self.network.ports.pop(self.port)
        self.site.close()

    @routes.get("/conn/stat", query=Since, summary="as told")
    async def stat(self, call: Call[Since]) -> object:
        """What changed since a cursor of this run, or everything."""
        self.asked.append(call.query.since)
        self.told()
        call.answer_headers["date"] = formatdate(self.network.wall() + self.ahead, usegmt=True)
        if self.slow:
            await Deferred()
        if self.answer is not None:
            return self.answer
        body: dict[str, Any] = {"code": 0, "msg": "success"}
        if not self.cursors:
            return Answer(200, body | {"data": list(self.agents.values())})
        since = -1
        left = 0
        run, _, place = call.query.since.partition("-")
        if run == str(self._run):
            number, _, departures = place.partition("-")
            since, left = int(number), int(departures)
        fresh = [k for k, at in self._changed.items() if at > since]
        told = fresh[: self.part or None]
        upto = self._change if told == fresh else self._changed[told[-1]]
        return Answer(
            200,
            body
            | {
                "data": [self.agents[k] for k in told],
                "gone": [k for k, at in self._gone.items() if at > left] if since >= 0 else [],
                "complete": since < 0,
                "more": told != fresh,
                "cursor": f"{self._run}-{upto}-{self._change}",
            },
        )

    @routes.post("/tags/refresh", body=Concerned, summary="as told")
    async def tags(self, call: Call[None, Concerned]) -> object:
        """Remember whose."""
        self.refreshed.append(call.body.agent_ids)
        return {"count": 0}

    def beat(self, agent_id: str, seen: int | None = None, **info: Any) -> None:
        """An agent connects, or says something new."""
        plugins = info.pop("plugins", [])
        now = int(self.network.wall()) + self.ahead
        agent_info = {
            "agent_id": agent_id,
            "hostname": f"host-{agent_id}",
            "state": "running",
            "last_heartbeat_time": now if seen is None else seen,
            **info,
        }
        self.hold(agent_id, {"agent_info": agent_info, "plugins_info": plugins})

    def hold(self, agent_id: str, entry: Any) -> None:
        """Have this entry for an agent."""
        self._change += 1
        self._gone.pop(agent_id, None)
        self._changed[agent_id] = self._change
        self.agents[agent_id] = entry

    def lose(self, agent_id: str) -> None:
        """An agent's stream ends."""
        self._change += 1
        del self.agents[agent_id], self._changed[agent_id]
        self._gone[agent_id] = self._change

    def restart(self) -> None:
        """Forget everything."""
        self._run += 1
        self._change, self.agents, self._changed, self._gone = 0, {}, {}, {}


class Deployment:
    """Roles on a memory network.

    Args:
        certificates: whether to make real keys, for a TLS port.
        settings: keys of ``[manager]``.
    """

    def __init__(self, certificates: bool = False, **settings: Any) -> None:
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "keys").mkdir(mode=0o700)
        (self.folder / "data").mkdir(mode=0o700)
        migrated(self.folder / "data" / "manager.db")
        raw = {"manager": settings}
        if "listen" in settings:
            raw["server"] = {"advertise": "127.0.0.1"}
        self.settings = config.parse(raw, self.folder)
        self.keys = Keys(keys_dir=self.folder / "keys", aksk={AK: SK})
        if certificates:
            create_keys(self.settings)
            self.keys = evolve(load_keys(self.settings, ["manager"]), aksk={AK: SK})
        self.network = MemoryNetwork()
        self.discovery = DiscoveryRole(
            self.settings,
            self.keys,
            self.network.clock,
            wall=self.network.wall,
            monotonic=self.network.clock.seconds,
            random=Random(1),
        )
        self.network.run(self.discovery.start())
        self._registrars: list[DiscoveryClient] = []
        self.manager: ManagerRole

    def start(self) -> "Deployment":
        """Start the Manager; it starts again after `stop`."""
        with patch("elkeid.manager.service.database_of", _guarded):
            self.manager = ManagerRole(
                self.settings,
                self.keys,
                self.network.clock,
                wall=self.network.wall,
                monotonic=self.network.clock.seconds,
                threads=MarkedThreads(),
                discovery_agent=self.network.agent(),
                ac_agent=self.network.agent(),
                hasher=HASHER,
            )
        self.network.run(self.manager.start())
        self.network.flush()
        return self

    def stop(self) -> None:
        """Stop the Manager."""
        self.network.run(self.manager.stop())
        for port in (self.settings.manager.port, self.settings.manager.tls_port):
            self.network.ports.pop(port, None)

    def end(self) -> None:
        """Stop everything; nothing may be left behind."""
        self.stop()
        for registrar in self._registrars:
            self.network.run(registrar.stop())
        self.network.run(self.discovery.stop())
        shutil.rmtree(self.folder)

    def register(
        self, ac: ScriptedAc, weight: int = 0, extra: dict[str, Any] | None = None
    ) -> DiscoveryClient:
        """Let ServiceDiscovery list an AC, and the Manager notice."""
        client = self.network.client(Credentials(AK, SK))
        registrar = DiscoveryClient(self.network.clock, client, self.settings.discovery.members)
        load = (weight, extra)
        registrar.register("hids_svr_http", "127.0.0.1", ac.port, lambda: load)
        registrar.register("hids_svr_grpc", "127.0.0.1", ac.port - 1, lambda: load)
        self._registrars.append(registrar)
        self.network.advance(3)
        return registrar

    def ac(self, port: int = 6752, cursors: bool = True) -> ScriptedAc:
        """A registered AC."""
        ac = ScriptedAc(self.network, port, cursors)
        self.register(ac)
        return ac

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = None,
        content_type: str | None = "application/json",
    ) -> Got:
        """One request to the Manager's plain port; the answer must be as documented."""
        headers = self.bearing(token)
        if body is not None and content_type is not None:
            headers.addRawHeader("content-type", content_type)
        payload = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        port = self.settings.manager.port
        got = self.network.run(
            self._exchange(method, f"http://127.0.0.1:{port}{path}", headers, payload)
        )
        api = cast(FaceSite, self.network.ports[port]).api
        kind = got.headers.get("content-type", "")
        contract_of(api).check(api, method, path, status=got.status, kind=kind, body=got.text)
        return got

    @staticmethod
    def bearing(token: str | None) -> Headers:
        """Headers with a token."""
        return Headers() if token is None else Headers({"token": [token]})

    async def _exchange(self, method: str, url: str, headers: Headers, body: bytes | None) -> Got:
        producer = None if body is None else _Whole(body)
        response = await self.network.agent().request(
            method.encode(), url.encode(), headers, producer
        )
        text = await treq.content(response)
        shown = {
            name.decode().lower(): values[0].decode()
            for name, values in response.headers.getAllRawHeaders()
        }
        return Got(response.code, shown, text)

    def first_password(self) -> str:
        """The admin's, from its file."""
        return (self.folder / "keys" / "admin-password").read_text().strip()

    def login(self, username: str = "admin", password: str | None = None) -> str:
        """A new token."""
        body = {"username": username, "password": password or self.first_password()}
        token: str = self.call("POST", "/api/v1/user/login", body).data["token"]
        return token

    def add_user(self, name: str, level: int) -> str:
        """A user with `PASSWORD`, as the command adds them; returns a token."""
        stored = HASHER.hash(PASSWORD)
        self.network.run(self.manager.store.write(add_user, name, level, stored, NOW))
        return self.login(name, PASSWORD)

    def status(self, token: str, query: str = "") -> dict[str, Any]:
        """``getStatus``."""
        page: dict[str, Any] = self.call("GET", f"/api/v1/agent/getStatus{query}", token=token).data
        return page

    def agent(self, token: str, agent_id: str) -> dict[str, Any]:
        """``getStatus`` of one agent."""
        found: dict[str, Any] = self.call(
            "GET", f"/api/v1/agent/getStatus/{agent_id}", token=token
        ).data
        return found
