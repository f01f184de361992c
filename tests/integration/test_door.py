"""The agents' port over real sockets: full, closed, open again; options of accepted sockets."""

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor

from elkeid.agentcenter.sockets import SOCKET_OPTIONS, AgentsPort
from elkeid.agentcenter.watch import SocketWatch
from tests.integration.servers import DEADLINE, free_ports, running, settings_text, twistd
from tests.integration.test_hostile import Gateway

pytestmark = pytest.mark.integration


def until(true: Callable[[], bool], what: str) -> None:
    """Wait, at most for `DEADLINE`."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def refused(port: int) -> bool:
    """Whether nobody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), DEADLINE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False
    return False


def enter(gateway: Gateway) -> ssl.SSLSocket:
    """A call that has the only place; what looked at the port may hold it for a moment."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return gateway.call()
        except (ConnectionResetError, ConnectionRefusedError):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_full_gateway_closes_its_port_while_another_has_room(tmp_path: Path) -> None:
    """And opens it when there is room again, or when the other one is gone."""
    first, second = free_ports(4), free_ports(2)
    limit = "connection_limit = 1\n"
    text = settings_text(first).replace("[agentcenter]\n", "[agentcenter]\n" + limit)
    (tmp_path / "elkeid.toml").write_text(text)
    other = tmp_path / "other"
    other.mkdir()
    (other / "elkeid.toml").write_text(
        f'[server]\nkeys_dir = "{tmp_path}/keys"\n'
        f"[agentcenter]\ngrpc_port = {second[0]}\nhttp_port = {second[1]}\n"
        f'[discovery]\nmembers = ["127.0.0.1:{first[2]}"]\n'
    )
    with running(twistd("--role=ac", "--role=sd", "--role=manager"), tmp_path) as server:
        gateway = Gateway(tmp_path, first)
        with running(twistd("--role=ac"), other):
            held = enter(gateway)
            # The next one is reset, or refused once the first gateway knows of the other.
            until(lambda: refused(first[0]), "the port stays open")
            assert gateway.metric("elkeid_ac_port_open") == 0
            assert not refused(second[0])
            held.close()
            until(lambda: not refused(first[0]), "the port stays closed")
            held = enter(gateway)
            until(lambda: refused(first[0]), "the port stays open")
        until(lambda: not refused(first[0]), "the port stays closed without the other")
        assert gateway.metric("elkeid_ac_port_closings_total") >= 2
        held.close()
        assert server.stop() is not None
    assert not any("Traceback" in line for line in server.lines)


def test_accepted_sockets_notice_vanished_hosts() -> None:
    """They inherit keepalive and the bound on unacknowledged bytes from the listening one."""

    class Entrance:
        def room(self) -> int:
            return 1

    factory: Any = None
    port = AgentsPort(
        0, factory, "127.0.0.1", reactor, entrance=Entrance(), watch=SocketWatch(reactor)
    )
    with port.createInternetSocket() as listener:
        listener.setblocking(True)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            for level, option, value in SOCKET_OPTIONS:
                assert accepted.getsockopt(level, option) == value
