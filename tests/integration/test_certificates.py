"""Certificates change under a running server; streams go on."""

import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from elkeid.fleet.report import read_report
from tests.integration.servers import BIN, free_ports, running, settings_text, twistd

pytestmark = pytest.mark.integration


def shown(port: int, keys: Path, alpn: str) -> bytes:
    """The certificate that a port shows to one that trusts the authority."""
    context = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    context.load_cert_chain(keys / "client.crt", keys / "client.key")
    context.set_alpn_protocols([alpn])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="elkeid.com") as secure,
    ):
        found = secure.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_the_api_goes_on(tmp_path: Path) -> None:
    """Operators' connections outlive a renewal; only new ones see the new certificate."""
    ports = free_ports(5)
    settings = settings_text(ports).replace("[manager]\n", f"[manager]\ntls_port = {ports[4]}\n")
    (tmp_path / "elkeid.toml").write_text(settings)
    with running(twistd(), tmp_path) as server:
        keys = tmp_path / "keys"
        context = ssl.create_default_context(cafile=str(keys / "ca.crt"))
        with (
            socket.create_connection(("127.0.0.1", ports[4]), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="elkeid.com") as secure,
        ):
            before = secure.getpeercert(binary_form=True)
            assert pong(secure) == b"HTTP/1.1 200 OK"
            subprocess.run([str(BIN / "elkeid"), "keys", "renew"], cwd=tmp_path, check=True)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("certificates are loaded again")
            assert shown(ports[4], keys, "http/1.1") != before
            assert pong(secure) == b"HTTP/1.1 200 OK"
        assert server.stop() == -signal.SIGTERM


def pong(connection: ssl.SSLSocket) -> bytes:
    """The status line of an answer on this connection."""
    connection.sendall(b"GET /ping HTTP/1.1\r\nHost: elkeid.com\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(4096)
    return answer.partition(b"\r\n")[0]


def test_renewed_without_dropping_a_stream(tmp_path: Path) -> None:
    """`keys renew` and SIGHUP: both ports show the new one; a broken file changes nothing."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    keys, report = tmp_path / "keys", tmp_path / "sent.jsonl"
    with running(twistd(), tmp_path) as server:
        load = ["--agents", "20", "--rate", "20", "--duration", "12", "--report", str(report)]
        run = subprocess.Popen(
            [str(BIN / "elkeid"), "fleet", "run", *load],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            time.sleep(4)
            before = shown(ports[0], keys, "h2")
            assert shown(ports[1], keys, "http/1.1") == before
            subprocess.run([str(BIN / "elkeid"), "keys", "renew"], cwd=tmp_path, check=True)
            assert shown(ports[0], keys, "h2") == before
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("certificates are loaded again")
            after = shown(ports[0], keys, "h2")
            assert after != before
            assert shown(ports[1], keys, "http/1.1") == after

            (keys / "server.crt").write_text("broken")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("what was loaded before stays in use")
            assert shown(ports[0], keys, "h2") == after
            said, _ = run.communicate(timeout=60)
        finally:
            run.kill()
        assert run.returncode == 0, said
        assert server.stop() == -signal.SIGTERM
    agents = list(read_report(report))
    assert len(agents) == 20
    assert all(len(agent.streams) == 1 for agent in agents), said
