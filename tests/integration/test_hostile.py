"""Peers that hold the client key and misbehave, over real TLS: only they are harmed."""

import gzip
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import hpack
import pytest

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

pytestmark = pytest.mark.integration
HEADERS = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/grpc.Transfer/Transfer"),
    (":authority", "gateway"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("grpc-encoding", "gzip"),
]


class Gateway:
    """A running gateway, and connections to it."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self._ports = ports
        self.port = ports[0]
        self.context = ssl.create_default_context(cafile=str(folder / "keys" / "ca.crt"))
        self.context.check_hostname = False
        self.context.load_cert_chain(folder / "keys" / "client.crt", folder / "keys/client.key")
        self.context.set_alpn_protocols(["h2"])

    def dial(self) -> ssl.SSLSocket:
        """A connection as an agent's."""
        plain = socket.create_connection(("127.0.0.1", self.port), DEADLINE)
        return self.context.wrap_socket(plain)

    @property
    def opening(self) -> bytes:
        """What begins a connection with a call on stream 1."""
        block = hpack.Encoder().encode(HEADERS)
        frames = h2.settings_frame([]) + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block)
        return h2.PREFACE + frames

    def call(self) -> ssl.SSLSocket:
        """A connection with a call on stream 1."""
        connection = self.dial()
        connection.sendall(self.opening)
        return connection

    def get(self, path: str) -> str:
        """An open route of the API."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url = f"https://127.0.0.1:{self._ports[1]}{path}"
        with urllib.request.urlopen(url, context=context, timeout=DEADLINE) as answer:
            text: str = answer.read().decode()
        return text

    def metric(self, name: str) -> float:
        """The value of a series without labels."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name + " ")]
        return float(lines[0].split()[1])


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway, which must have nothing to be ashamed of in its log in the end."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    with running(twistd("--role=ac", "--role=sd", "--role=manager"), tmp_path) as server:
        yield Gateway(tmp_path, ports)
        server.stop()
    assert not any("Traceback" in line for line in server.lines)


def until_closed(connection: ssl.SSLSocket) -> bytes:
    """What comes until the other side closes; a time-out if it does not."""
    got = b""
    while data := connection.recv(65_536):
        got += data
    return got


def grpc(body: bytes) -> bytes:
    """A compressed message as one DATA frame."""
    return h2.frame(h2.DATA, 0, 1, b"\1" + len(body).to_bytes(4, "big") + body)


def test_strangers_do_not_take_the_open_files_of_agents(tmp_path: Path) -> None:
    """Whoever fills ServiceDiscovery's and the Manager's ports keeps out no agent."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(
        settings_text(ports).replace("[agentcenter]", "[agentcenter]\nconnection_limit = 100", 1)
    )
    few = ["sh", "-c", 'ulimit -n 1024; exec "$@"', "sh", *twistd()]
    strangers: list[socket.socket] = []
    with running(few, tmp_path) as server:
        server.wait_for("1024 open files allow 100 agents")
        gateway = Gateway(tmp_path, ports)
        try:
            for port in ports[2:] * 700:
                strangers.append(socket.create_connection(("127.0.0.1", port), DEADLINE))
            agent = gateway.call()
            agent.sendall(grpc(gzip.compress(length_delimited(2, b"a1"))))
            eventually(lambda: gateway.metric("elkeid_ac_grpc_conn_count") == 1, DEADLINE)
        finally:
            for stranger in strangers:
                stranger.close()
        server.stop()
    assert not any("Too many open files" in line for line in server.lines)


def test_broken_connections_are_closed(gateway: Gateway) -> None:
    """Rubbish and protocol errors end the connection itself, and free the agent's id."""
    rubbish = gateway.dial()
    rubbish.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 30)
    until_closed(rubbish)
    broken = gateway.call()
    broken.sendall(grpc(gzip.compress(length_delimited(2, b"a1"))))
    deadline = time.monotonic() + DEADLINE
    while gateway.metric("elkeid_ac_grpc_conn_count") != 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    broken.sendall(h2.window_update_frame(0, 0))
    until_closed(broken)
    assert gateway.metric("elkeid_ac_grpc_conn_count") == 0
    assert gateway.metric("elkeid_ac_streams") == 0


def test_small_messages_that_hold_much_work(gateway: Gateway) -> None:
    """They are stored and confirmed, and others are served in between."""
    raw = b"\x0a\x04\x10\x01\x08\x3b" * 4096 + length_delimited(2, b"a1")  # fields out of order
    message = grpc(gzip.compress(raw))
    hostile = gateway.call()
    hostile.sendall(message * 60 + h2.frame(h2.DATA, h2.END_STREAM, 1))
    served = 0
    answer: list[bytes] = []

    def read() -> None:
        got = b""
        while b"grpc-status" not in got:
            got += hostile.recv(65_536)
        answer.append(got)

    reader = threading.Thread(target=read)
    reader.start()
    while reader.is_alive():
        gateway.get("/ping")
        served += 1
    reader.join()
    assert served > 1
    assert b"grpc-status\x010" in answer[0]
    assert gateway.metric("elkeid_ac_output_count") == 60 * 4096
