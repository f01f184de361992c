"""Three ServiceDiscovery processes under kill, stop and restart, with real clients."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from elkeid.config import load
from elkeid.discovery.client import DiscoveryClient
from elkeid.keys import create_keys, load_keys
from elkeid.tls import HttpsPolicy, client_options
from elkeid.web.client import CallFailed, Credentials, JsonClient, http_agent

from .servers import Server, free_ports, twistd

pytestmark = pytest.mark.integration
reactor: Any = global_reactor
SVC = "hids_svr_grpc"


class Cluster:
    """Three nodes that share keys; each can be ended and started again."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        *self.ports, self.tls_port = free_ports(4)
        self.members = [f"127.0.0.1:{port}" for port in self.ports]
        self.servers: dict[int, Server] = {}
        self.http = JsonClient(reactor, http_agent(reactor), time.time)
        for port in self.ports:
            more = f"tls_port = {self.tls_port}\n" if port == self.ports[0] else ""
            (folder / f"{port}.toml").write_text(
                f"[discovery]\nport = {port}\nmembers = {json.dumps(self.members)}\n{more}"
            )
        self.settings = load(folder / f"{self.ports[0]}.toml")
        create_keys(self.settings)

    def start(self, port: int) -> Server:
        """Start a node; it does not serve yet."""
        argv = twistd("--config", str(self.folder / f"{port}.toml"), "--role", "sd")
        server = Server(argv, self.folder, dict(os.environ))
        self._stack.callback(server.end)
        self.servers[port] = server
        return server

    async def listed(self, port: int) -> list[str] | None:
        """What a node answers to an agent; None if it does not answer."""
        try:
            reply = await self.http.get(
                f"http://127.0.0.1:{port}/registry/detail",
                {"name": SVC, "count": "100"},
                seconds=5,
            )
            return [record["ip"] for record in reply.decode(dict[str, Any])["data"]]
        except CallFailed:
            return None


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster of which nothing is left in the end."""
    with ExitStack() as stack:
        yield Cluster(folder, stack)


async def wait_until(seconds: float, what: Any) -> None:
    """Ask every 0.2 s until it is so."""
    end = reactor.seconds() + seconds
    while not await what():
        assert reactor.seconds() < end, "not in time"
        await deferLater(reactor, 0.2)


@pytest_twisted.ensureDeferred
async def test_three_processes(tmp_path: Path) -> None:
    """Twenty instances stay listed at every node that runs, whatever happens to the others."""
    with cluster(tmp_path) as nodes:
        credentials = Credentials(*load_keys(nodes.settings, {"sd"}).signing_pair)
        clients = []
        for number in range(20):  # before any node is there
            http = JsonClient(reactor, http_agent(reactor), time.time, credentials)
            client = DiscoveryClient(reactor, http, nodes.members)
            client.register(SVC, f"10.0.0.{number}", 6751, lambda: (0, None))
            clients.append(client)
        first, second, third = nodes.ports
        everyone = {f"10.0.0.{number}" for number in range(20)}

        async def complete(*ports: int) -> bool:
            lists = [set(await nodes.listed(port) or ()) for port in ports]
            return all(ips == everyone for ips in lists)

        history: list[tuple[int, int]] = []

        async def watch(seconds: float, *ports: int) -> None:
            end = reactor.seconds() + seconds
            while reactor.seconds() < end:
                for port in ports:
                    ips = await nodes.listed(port)
                    history.append((port, -1 if ips is None else len(set(ips))))
                await deferLater(reactor, 0.5)

        servers = [nodes.start(port) for port in nodes.ports]
        for server in servers:
            await deferToThread(server.wait_for, "ready: ")
        await wait_until(5, lambda: complete(first, second, third))
        https = JsonClient(
            reactor,
            http_agent(
                reactor, HttpsPolicy(client_options(load_keys(nodes.settings, {"ac", "sd"})))
            ),
            time.time,
        )
        reply = await https.get(
            f"https://127.0.0.1:{nodes.tls_port}/registry/detail", {"name": SVC}
        )
        assert len(reply.decode(dict[str, Any])["data"]) == 20
        await https.close()

        nodes.servers[first].process.kill()
        await watch(3, second, third)
        server = nodes.start(first)
        await deferToThread(server.wait_for, "ready: ")
        assert await complete(first)  # it asked the others before it opened its port
        nodes.servers[second].process.send_signal(signal.SIGSTOP)
        await watch(8, first, third)
        nodes.servers[second].process.send_signal(signal.SIGCONT)
        await wait_until(10, lambda: complete(second))
        await watch(2, first, second, third)
        assert await deferToThread(nodes.servers[third].stop) is not None
        await watch(2, first, second)
        assert {count for _, count in history} == {20}
        assert [client.problems() for client in clients] == [[]] * 20

        stopped = [Deferred.fromCoroutine(client.stop()) for client in clients[:10]]
        for each in stopped:
            await each

        async def half() -> bool:
            lists = [await nodes.listed(port) for port in (first, second)]
            return all(len(ips or ()) == 10 for ips in lists)

        await wait_until(10, half)
        for client in clients[10:]:
            await client.stop()
        await nodes.http.close()
