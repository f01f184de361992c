"""Two gateways and a Manager as processes: seen, drained and taken back, and told of live."""

import base64
import json
import os
import signal
import socket
import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .servers import BIN, DEADLINE, eventually, free_ports, running, twistd
from .test_first_light import Manager

pytestmark = pytest.mark.integration
AGENTS = 6


class Listener:
    """A client of the live feed over TLS, that says its token in the first message."""

    def __init__(self, port: int, authority: Path, token: str) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        plain = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self._socket = context.wrap_socket(plain, server_hostname="elkeid.com")
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            (
                "GET /api/v1/live?event=online&event=offline&event=moved HTTP/1.1\r\n"
                "Host: elkeid.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
            ).encode()
        )
        self._file = self._socket.makefile("rb")
        assert b" 101 " in self._file.readline()
        while self._file.readline().strip():
            pass
        message = json.dumps({"token": token}).encode()
        self._socket.sendall(bytes([0x81, 0x80 | len(message)]) + bytes(4) + message)
        assert self.next() == {"event": "ready"}

    def next(self) -> dict[str, Any]:
        """The next message."""
        while True:
            opcode, size = self._file.read(2)
            if size == 126:
                size = int.from_bytes(self._file.read(2))
            payload = self._file.read(size)
            assert opcode in {0x81, 0x89}, (opcode, payload)
            if opcode == 0x81:
                event: dict[str, Any] = json.loads(payload)
                return event

    def take(self, event: str, count: int) -> set[str]:
        """Ids of so many events of this name; others are passed over."""
        found: set[str] = set()
        while len(found) < count:
            told = self.next()
            if told["event"] == event:
                found.add(told["agent_id"])
        return found

    def close(self) -> None:
        """Leave."""
        self._file.close()
        self._socket.close()


class Deployment:
    """Every role in one process, and another gateway beside it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        grpc, http, grpc2, http2, sd, manager, self.tls = free_ports(7)
        self.http = [http, http2]
        self.grpc = [grpc, grpc2]
        for name, ports, role in (
            ("one", (grpc, http), ()),
            ("two", (grpc2, http2), ("--role", "ac")),
        ):
            place = folder / name
            place.mkdir()
            (place / "elkeid.toml").write_text(
                f'[server]\nkeys_dir = "{folder / "keys"}"\n'
                f"[agentcenter]\ngrpc_port = {ports[0]}\nhttp_port = {ports[1]}\n"
                f"[discovery]\nport = {sd}\n"
                f"[manager]\nport = {manager}\ntls_port = {self.tls}\npoll_seconds = 0.5\n"
            )
            stack.enter_context(running(twistd(*role), place))
        password = (folder / "keys" / "admin-password").read_text().strip()
        operator = Manager(manager, password)
        self.token, self.ask = operator.token, operator.ask

    def gateways(self) -> dict[str, dict[str, Any]]:
        """By address."""
        return {each["address"]: each for each in self.ask("/cluster/instances")["gateways"]}

    def port_is_open(self, number: int) -> bool:
        """Whether agents find a gateway."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.grpc[number])) == 0


def test_drained_and_taken_back(tmp_path: Path) -> None:
    """An operator sees both, drains one, whose agents move, and takes it back; all is told live."""
    with ExitStack() as stack:
        both = Deployment(tmp_path, stack)
        eventually(lambda: len(both.gateways()) == 2, DEADLINE)
        listener = Listener(both.tls, tmp_path / "keys" / "ca.crt", both.token)
        stack.callback(listener.close)
        load = ["--agents", str(AGENTS), "--rate", "2", "--duration", "200", "--spread", "1"]
        fleet = subprocess.Popen(
            [str(BIN / "elkeid"), "fleet", "run", *load],
            cwd=tmp_path / "one",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(fleet.kill)
        ids = listener.take("online", AGENTS)
        assert both.ask("/cluster/distribution")["agents"] == AGENTS

        first = f"127.0.0.1:{both.http[0]}"
        assert both.gateways()[first]["state"] == "serving"
        state = both.ask("/cluster/drain", {"address": first, "deadline": 2})["state"]
        assert state == "draining"
        eventually(lambda: both.gateways()[first]["state"] == "drained", DEADLINE)
        eventually(lambda: not both.port_is_open(0), DEADLINE)
        second = f"127.0.0.1:{both.http[1]}"
        eventually(lambda: both.gateways()[second]["agents"] == AGENTS, DEADLINE)

        assert both.ask("/cluster/undrain", {"address": first})["state"] == "serving"
        assert both.port_is_open(0)
        both.ask("/cluster/reset", {"address": second, "id_list": sorted(ids)})
        eventually(lambda: both.ask("/cluster/ledger")["classes"]["control"]["read"] > 0, DEADLINE)
        ledger = both.ask("/cluster/ledger")
        assert (ledger["silent"], ledger["imbalances"]) == ([], [])

        fleet.send_signal(signal.SIGINT)
        fleet.wait(DEADLINE)
        assert listener.take("offline", AGENTS) == ids
