"""The Manager with real threads, sockets and TLS, beside a real ServiceDiscovery."""

import datetime
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from elkeid import config
from elkeid.discovery.client import DiscoveryClient
from elkeid.discovery.service import DiscoveryRole
from elkeid.key_making import make_keys
from elkeid.keys import Keys
from elkeid.manager.service import ManagerRole
from elkeid.tls import api_server_options, https_policy
from elkeid.web.answers import Answer, CodeEnvelope
from elkeid.web.api import Api
from elkeid.web.client import Credentials, JsonClient, http_agent
from elkeid.web.refusals import AuthenticationFailed
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.web.signed import SignatureCheck
from elkeid.web.site import FaceSite, listen

from .servers import free_ports

pytestmark = pytest.mark.integration
reactor: Any = global_reactor
AK, SK = "test_access_key", "test-secret-key-0123456789"


def fresh_keys() -> Keys:
    """Keys of a deployment of its own."""
    files = make_keys([], datetime.datetime.now(datetime.UTC))
    return Keys(
        keys_dir=Path("keys"),
        ca_cert=files["ca.crt"],
        server_cert=files["server.crt"],
        server_key=files["server.key"],
        aksk={AK: SK},
    )


class Gateway:
    """An AgentCenter that holds some agents."""

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self, keys: Keys, agents: int) -> None:
        self._agents = agents
        check = SignatureCheck({AK: SK}, time.time)
        api = Api(CodeEnvelope({}, {AuthenticationFailed: 1}, 3), [self], {AuthKind.SIGNED: check})
        self.port = listen(
            reactor,
            FaceSite(api, reactor),
            "127.0.0.1",
            0,
            setting="x.port",
            tls=api_server_options(keys),
        )

    @routes.get("/conn/stat", summary="as upstream answers")
    async def stat(self, call: Call) -> object:
        """Everything."""
        now = int(time.time())
        data = [
            {
                "agent_info": {"agent_id": f"a-{number}", "last_heartbeat_time": now},
                "plugins_info": [],
            }
            for number in range(self._agents)
        ]
        return Answer(200, {"code": 0, "msg": "success", "data": data})


@asynccontextmanager
async def running(folder: Path, gateway_keys: Keys, keys: Keys) -> AsyncIterator[ManagerRole]:
    """ServiceDiscovery, a gateway and a Manager."""
    sd_port, port, tls_port = free_ports(3)
    raw = {
        "discovery": {"port": sd_port, "members": [f"127.0.0.1:{sd_port}"]},
        "manager": {"port": port, "tls_port": tls_port, "poll_seconds": 0.2},
    }
    settings = config.parse(raw, folder)
    settings.server.keys_dir.mkdir(mode=0o700)
    keys = evolve(keys, keys_dir=settings.server.keys_dir)
    discovery, manager = (
        DiscoveryRole(settings, keys, reactor),
        ManagerRole(settings, keys, reactor),
    )
    gateway = Gateway(gateway_keys, 1200)
    http = JsonClient(reactor, http_agent(reactor), time.time, Credentials(AK, SK))
    registrar = DiscoveryClient(reactor, http, settings.discovery.members)
    await discovery.start()
    registrar.register("hids_svr_http", "127.0.0.1", gateway.port.getHost().port, lambda: (0, None))
    try:
        await manager.start()
        yield manager
    finally:
        await manager.stop()
        await registrar.stop()
        await gateway.port.stopListening()
        await discovery.stop()


async def eventually(check: Any, seconds: float = 20) -> Any:
    """Wait until something is so; it may take long on a busy machine."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = check()
        found = await found if isinstance(found, Deferred) or hasattr(found, "__await__") else found
        if found:
            return found
        await deferLater(reactor, 0.1)
    raise AssertionError("it did not happen")


@pytest_twisted.ensureDeferred
async def test_status_over_tls(tmp_path: Path) -> None:
    """An operator logs in over TLS and sees the agents of a gateway polled over TLS."""
    keys = fresh_keys()
    async with running(tmp_path, keys, keys) as manager:
        url = f"https://127.0.0.1:{manager._settings.manager.tls_port}/api/v1"
        http = JsonClient(reactor, http_agent(reactor, https_policy(keys)), time.time)
        password = (tmp_path / "keys" / "admin-password").read_text().strip()
        body = {"username": "admin", "password": password}
        answer = msgspec.json.decode((await http.post(f"{url}/user/login", body)).body)
        token = {"token": answer["data"]["token"]}

        async def total() -> bool:
            reply = await http.get(f"{url}/agent/getStatus", headers=token)
            return bool(msgspec.json.decode(reply.body)["data"]["total"] == 1200)

        await eventually(total)
        await eventually(lambda: not manager.problems())


@pytest_twisted.ensureDeferred
async def test_gateway_of_another_deployment(tmp_path: Path) -> None:
    """A gateway whose certificate is not of our authority is not believed, and counted."""
    async with running(tmp_path, fresh_keys(), fresh_keys()) as manager:
        await eventually(
            lambda: (
                manager.problems()
                == ["1 of 1 AgentCenters cannot be polled, the log says which and why"]
            )
        )
        assert manager.agents.total == 0
