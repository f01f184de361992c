"""What hosts bring beside their records reaches the Manager, over real connections and outages."""

import json
import signal
import sqlite3
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, TrailersReceived

from elkeid.manager.store.results import new_token
from elkeid.wire.protobuf import length_delimited
from tests.integration.servers import eventually, free_ports, running, settings_text, twistd
from tests.integration.signed import signed
from tests.integration.test_first_light import fleet
from tests.integration.test_hostile import Gateway

pytestmark = pytest.mark.integration


def issue(database: Path, agent_id: str) -> str:
    """Make a token of the Manager's, as if it had planned a task."""
    token = new_token()
    with sqlite3.connect(database, timeout=30) as connection:
        connection.execute(
            "INSERT INTO task_token (token, agent_id, issued_at) VALUES (?, ?, ?)",
            (token, agent_id, int(time.time())),
        )
    connection.close()
    return token


def results_of(database: Path, token: str) -> list[dict[str, str]]:
    """What the Manager has stored for a token."""
    connection = sqlite3.connect(database, timeout=30)
    try:
        rows = connection.execute("SELECT * FROM task_result WHERE token = ?", (token,))
        names = [column[0] for column in rows.description]
        return [dict(zip(names, row, strict=True)) for row in rows]
    finally:
        connection.close()


def send_task(folder: Path, port: int, agent_id: str, task: dict[str, Any]) -> None:
    """Have a gateway send a task; it must have been written."""
    status, answer = signed(
        folder / "keys", port, "POST", "/command", {"agent_id": agent_id, "command": {"task": task}}
    )
    assert (status, answer["code"]) == (200, 0), answer


def metric(gateway: Gateway, start: str) -> float:
    """The first series whose line starts so; 0 when there is none."""
    lines = [line for line in gateway.get("/metrics").splitlines() if line.startswith(start)]
    return float(lines[0].split()[-1]) if lines else 0.0


def first_agent(folder: Path, port: int) -> str:
    """The one agent that is connected."""
    ids: list[str] = []

    def connected() -> bool:
        ids[:] = signed(folder / "keys", port, "GET", "/conn/list")[1]["data"]
        return bool(ids)

    eventually(connected)
    return ids[0]


def upload_task(token: str, size: int, **more: str) -> dict[str, Any]:
    """Ask a simulated agent for a file of some size."""
    data = json.dumps({"path": f"/tmp/file.{size}.bin", "buf_size": 512_000, **more})
    return {"name": "elkeid-agent", "data_type": 1050, "token": token, "data": data}


def test_an_upload_reaches_the_manager(tmp_path: Path) -> None:
    """A host's file is stored there as a sound archive, and both sides hear of success."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    with running(twistd(), tmp_path) as server:
        gateway = Gateway(tmp_path, ports)
        database = tmp_path / "data" / "manager.db"
        with fleet(tmp_path, "--agents", "1", "--spread", "0"):
            agent_id = first_agent(tmp_path, ports[1])
            token = issue(database, agent_id)
            send_task(tmp_path, ports[1], agent_id, upload_task(token, 1_200_000))
            eventually(lambda: len(results_of(database, token)) == 1, 60)
            (result,) = results_of(database, token)
            assert "succeed" in str(result)
            assert metric(gateway, 'elkeid_ac_uploads_total{outcome="delivered"}') == 1
            assert metric(gateway, "elkeid_ac_uploads_held_bytes") == 0
        assert list((tmp_path / "data" / "agent-uploads").iterdir()) == []
        archives = [
            path
            for path in (tmp_path / "data").rglob("*")
            if path.is_file() and zipfile.is_zipfile(path)
        ]
        (path,) = archives
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == [token]
            assert archive.getinfo(token).file_size == 1_200_000
            assert archive.testzip() is None
        assert server.stop() == -signal.SIGTERM
    assert not any("Traceback" in line for line in server.lines)


def test_results_outlive_gateway_and_manager(tmp_path: Path) -> None:
    """A result that came while no Manager ran reaches it though the gateway was killed."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    with running(twistd(), tmp_path) as everything:  # makes keys, and a token
        database = tmp_path / "data" / "manager.db"
        token = issue(database, "a1")
        everything.stop()
    roles = twistd("--role=ac", "--role=sd")
    with running(roles, tmp_path) as server:
        gateway = Gateway(tmp_path, ports)
        with fleet(tmp_path, "--agents", "1", "--spread", "0"):
            agent_id = first_agent(tmp_path, ports[1])
            # A file that is not there: the agent itself answers with a failure.
            send_task(
                tmp_path,
                ports[1],
                agent_id,
                {**upload_task(token, 1), "data": '{"path":"/missing","buf_size":1}'},
            )
            eventually(lambda: metric(gateway, "elkeid_ac_results_waiting ") == 1)
            server.process.kill()
            server.process.wait()
    with running(roles, tmp_path):
        assert metric(gateway, "elkeid_ac_results_waiting ") == 1
        with running(twistd("--role=manager"), tmp_path):
            eventually(lambda: metric(gateway, "elkeid_ac_results_waiting ") == 0, 60)
            (result,) = results_of(database, token)
            assert "failed" in str(result)


def test_an_upload_by_another_gateway(tmp_path: Path) -> None:
    """A host that brings its file elsewhere is served: the gateways ask each other."""
    ports, others = free_ports(4), free_ports(2)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    second = tmp_path / "second.toml"
    second.write_text(settings_text([*others, *ports[2:]], server='data_dir = "second"'))
    with (
        running(twistd(), tmp_path) as server,
        running(twistd("--config", str(second), "--role=ac"), tmp_path),
    ):
        url = f"http://127.0.0.1:{ports[2]}/registry/detail?name=hids_svr_http"

        def both() -> bool:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return len(json.load(reply)["data"]) == 2

        eventually(both)
        one, two = Gateway(tmp_path, ports), Gateway(tmp_path, [*others, *ports[2:]])
        with fleet(tmp_path, "--agents", "1", "--spread", "0"):
            eventually(
                lambda: any(
                    signed(tmp_path / "keys", port, "GET", "/conn/count")[1]["data"]
                    for port in (ports[1], others[1])
                )
            )
            holder = ports[1]
            if not signed(tmp_path / "keys", holder, "GET", "/conn/count")[1]["data"]:
                holder = others[1]
            agent_id = first_agent(tmp_path, holder)
            token = new_token()  # the Manager does not know it
            task = upload_task(token, 1000, simulate="elsewhere")
            send_task(tmp_path, holder, agent_id, task)
            elsewhere = two if holder == ports[1] else one
            delivered = 'elkeid_ac_uploads_total{outcome="delivered"}'
            eventually(lambda: metric(elsewhere, delivered) == 1, 60)
        assert server.stop() == -signal.SIGTERM


class H2Upload:
    """An upload by the h2 library, which is not ours."""

    def __init__(self, gateway: Gateway) -> None:
        self._socket = gateway.dial()
        self._connection = H2Connection(H2Configuration(header_encoding="utf-8"))
        self._connection.initiate_connection()
        self._stream = self._connection.get_next_available_stream_id()
        self._connection.send_headers(
            self._stream,
            [
                (":method", "POST"),
                (":scheme", "https"),
                (":path", "/grpc.FileExt/Upload"),
                (":authority", "gateway"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("grpc-timeout", "600S"),
            ],
        )
        self.headers: dict[str, str] = {}
        self.body = b""

    def send(self, token: bytes, data: bytes) -> None:
        """One piece, as the gateway's windows allow."""
        message = length_delimited(1, token) + length_delimited(2, data)
        framed = b"\0" + len(message).to_bytes(4, "big") + message
        while framed and not self.headers.get("grpc-status"):
            room = self._connection.local_flow_control_window(self._stream)
            room = min(room, self._connection.max_outbound_frame_size)
            if not room:
                self._receive()
                continue
            self._connection.send_data(self._stream, framed[:room])
            framed = framed[room:]
            self._socket.sendall(self._connection.data_to_send())

    def finish(self) -> tuple[int, bytes]:
        """Half-close if that is still of use; gRPC status and the response's message."""
        if not self.headers.get("grpc-status"):
            self._connection.end_stream(self._stream)
        self._socket.sendall(self._connection.data_to_send())
        while not self.headers.get("grpc-status"):
            self._receive()
        self._socket.close()
        return int(self.headers["grpc-status"]), self.body

    def _receive(self) -> None:
        data = self._socket.recv(65_536)
        assert data, "the gateway closed the connection"
        for event in self._connection.receive_data(data):
            if isinstance(event, ResponseReceived | TrailersReceived):
                self.headers.update(dict(event.headers))  # type: ignore[arg-type]
            elif isinstance(event, DataReceived):
                self.body += event.data
        self._socket.sendall(self._connection.data_to_send())


def test_uploads_of_another_client(tmp_path: Path) -> None:
    """h2 brings a file window by window; one that nobody asked for, and a path, are refused."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    with running(twistd(), tmp_path) as server:
        gateway = Gateway(tmp_path, ports)
        database = tmp_path / "data" / "manager.db"
        token = issue(database, "a1")
        upload = H2Upload(gateway)
        for number in range(4):
            upload.send(token.encode(), bytes([number]) * 500_000)
        assert upload.finish() == (0, b"\0\0\0\0\0")
        eventually(lambda: len(results_of(database, token)) == 1)
        for hostile, status in (
            (b"../../../" + token.encode(), 3),
            (new_token().encode(), 7),
            (token.encode(), 7),  # it was good once
        ):
            upload = H2Upload(gateway)
            upload.send(hostile, b"x")
            assert upload.finish() == (status, b"\0\0\0\0\x02\x08\x01")
        assert list((tmp_path / "data" / "agent-uploads").iterdir()) == []
        assert server.stop() == -signal.SIGTERM
    assert not any("Traceback" in line for line in server.lines)
