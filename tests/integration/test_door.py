"""The agents' port over real sockets: full, closed, open again; options of accepted sockets."""

import gzip
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor

from elkeid.agentcenter.sockets import SOCKET_OPTIONS, AgentsPort
from elkeid.agentcenter.watch import SocketWatch
from elkeid.wire import http2_frames as h2
from elkeid.wire.protobuf import length_delimited
from tests.integration.servers import (
    DEADLINE,
    eventually,
    free_ports,
    running,
    settings_text,
    twistd,
)
from tests.integration.test_hostile import Gateway, grpc

pytestmark = pytest.mark.integration


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
            eventually(lambda: refused(first[0]), DEADLINE, "the port stays open")
            assert gateway.metric("elkeid_ac_port_open") == 0
            assert not refused(second[0])
            held.close()
            eventually(lambda: not refused(first[0]), DEADLINE, "the port stays closed")
            held = enter(gateway)
            eventually(lambda: refused(first[0]), DEADLINE, "the port stays open")
        eventually(
            lambda: not refused(first[0]), DEADLINE, "the port stays closed without the other"
        )
        assert gateway.metric("elkeid_ac_port_closings_total") >= 2
        held.close()
        assert server.stop() is not None
    assert not any("Traceback" in line for line in server.lines)


def behind_a_proxy(gateway: Gateway, header: bytes) -> ssl.SSLSocket:
    """A connection that begins with ``header``."""
    plain = socket.create_connection(("127.0.0.1", gateway.port), DEADLINE)
    plain.sendall(header)
    return gateway.context.wrap_socket(plain)


def test_agents_behind_a_proxy(tmp_path: Path) -> None:
    """Two addresses behind one proxy: the second claim to an id does not replace the first."""
    ports = free_ports(4)
    text = settings_text(ports).replace(
        "[agentcenter]\n", '[agentcenter]\nproxy_networks = ["127.0.0.0/8"]\n'
    )
    (tmp_path / "elkeid.toml").write_text(text)
    with running(twistd("--role=ac", "--role=sd", "--role=manager"), tmp_path) as server:
        gateway = Gateway(tmp_path, ports)
        with pytest.raises(OSError, match=r"reset|Broken|EOF"):
            gateway.dial()
        holder, thief = (
            behind_a_proxy(
                gateway,
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"
                + bytes([192, 0, 2, host, 10, 0, 0, 1])
                + b"\x9c\x40\x1a\x5f",
            )
            for host in (1, 2)
        )
        message = grpc(gzip.compress(length_delimited(2, b"a1")))
        holder.sendall(gateway.opening + message)
        eventually(lambda: gateway.metric("elkeid_ac_grpc_conn_count") == 1, DEADLINE, "no agent")
        thief.sendall(gateway.opening + message)
        eventually(lambda: is_ping(holder.recv(65_536)), DEADLINE, "no PING")
        assert gateway.metric("elkeid_ac_replaced_total") == 0
        server.stop()
    assert not any("Traceback" in line for line in server.lines)


def is_ping(data: bytes) -> bool:
    """Whether a PING frame is among these."""
    while len(data) >= 9:
        if data[3] == h2.PING:
            return True
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return False


def test_accepted_sockets_notice_vanished_hosts() -> None:
    """They inherit keepalive and the bound on unacknowledged bytes from the listening one."""

    class Entrance:
        def room(self) -> int:
            return 1

    factory: Any = None
    nothing: Any = None
    port = AgentsPort(
        0,
        factory,
        "127.0.0.1",
        reactor,
        entrance=Entrance(),
        watch=SocketWatch(reactor, nothing),
    )
    with port.createInternetSocket() as listener:
        listener.setblocking(True)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            for level, option, value in SOCKET_OPTIONS:
                assert accepted.getsockopt(level, option) == value
