"""The product's main job, as its user does it: hosts in, records stored, the Manager answers."""

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.servers import BIN, free_ports, running, settings_text, twistd

pytestmark = pytest.mark.integration


class Manager:
    """Requests to a Manager, logged in as the first admin."""

    def __init__(self, port: int, password: str) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1"
        login = json.dumps({"username": "admin", "password": password}).encode()
        answer = self._call("/user/login", login)  # with no JSON content type, as curl sends it
        assert (answer["code"], answer["msg"]) == (0, "success")
        self.token = answer["data"]["token"]

    def _call(self, path: str, body: bytes | None = None) -> Any:
        headers = {"token": self.token} if hasattr(self, "token") else {}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.loads(reply.read())

    def ask(self, path: str, body: Any = None) -> Any:
        """``data`` of a success: of a POST with this body, or of a GET."""
        answer = self._call(path, None if body is None else json.dumps(body).encode())
        assert answer["code"] == 0, answer
        return answer["data"]

    def agents(self) -> list[dict[str, Any]]:
        """What getStatus lists."""
        items: list[dict[str, Any]] = self._call("/agent/getStatus?page_size=1000")["data"]["items"]
        return items


@contextmanager
def fleet(folder: Path, *argv: str) -> Iterator["subprocess.Popen[str]"]:
    """``elkeid fleet run``; ended by Ctrl-C."""
    process = subprocess.Popen(
        [str(BIN / "elkeid"), "fleet", "run", *argv],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()


def connected(manager: Manager) -> int:
    """How many agents are shown with fields of their heartbeat, as connected."""
    return sum(1 for each in manager.agents() if each["connected"] and "kernel_version" in each)


def task_by_hand(folder: Path, agent_id: str) -> None:
    """An operator sends a task with `elkeid call`, as the README has it."""
    task = {"data_type": 5100, "name": "collector", "data": "{}", "token": "by-hand"}
    command = json.dumps({"agent_id": agent_id, "command": {"task": task}})
    sent = call(folder, "POST", "/command", command)
    assert (sent.returncode, json.loads(sent.stdout)["msg"]) == (0, "success")
    nobody = call(folder, "POST", "/command", command.replace(agent_id, "nobody"))
    assert (nobody.returncode, json.loads(nobody.stdout)["outcome"]) == (1, "not_connected")


def call(folder: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    """``elkeid call``."""
    return subprocess.run(
        [str(BIN / "elkeid"), "call", *argv],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_hosts_in_records_stored_manager_answers(tmp_path: Path) -> None:
    """Fifty hosts show up in time, their events can be read, and a restart forgets nothing."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    with running(twistd(), tmp_path) as server:
        password = (tmp_path / "keys" / "admin-password").read_text().strip()
        manager = Manager(ports[3], password)
        assert manager.agents() == []
        with fleet(tmp_path, "--agents", "50", "--spread", "0.1"):
            deadline = time.monotonic() + 30
            while connected(manager) < 50 and time.monotonic() < deadline:
                time.sleep(0.2)
            shown = manager.agents()
            assert connected(manager) == 50
            task_by_hand(tmp_path, shown[0]["agent_id"])
            time.sleep(3)  # events come at one a second
            cat = subprocess.run(
                [str(BIN / "elkeid"), "log", "cat"], cwd=tmp_path, capture_output=True, check=True
            )
        lines = [json.loads(line) for line in cat.stdout.splitlines()]
        assert {line["agent_id"] for line in lines} == {each["agent_id"] for each in shown}
        assert any(line["class"] == "telemetry" and line["fields"] for line in lines)
        assert any(line["fields"].get("token") == "by-hand" for line in lines)
        assert server.stop() == -signal.SIGTERM
    with running(twistd(), tmp_path) as server:
        again = Manager(ports[3], password).agents()
        ids = [each["agent_id"] for each in again]
        assert sorted(ids) == sorted(each["agent_id"] for each in shown)
        assert all("kernel_version" in each for each in again)
        assert server.stop() == -signal.SIGTERM


def test_stop_in_time_beside_a_frozen_agent(tmp_path: Path) -> None:
    """Agents that vanished without a word do not keep the log from being closed."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    with running(twistd(), tmp_path) as server:
        manager = Manager(ports[3], (tmp_path / "keys" / "admin-password").read_text().strip())
        with fleet(tmp_path, "--agents", "10", "--spread", "0") as agents:
            deadline = time.monotonic() + 30
            while connected(manager) < 10 and time.monotonic() < deadline:
                time.sleep(0.2)
            agents.send_signal(signal.SIGSTOP)
            try:
                begun = time.monotonic()
                assert server.stop() == -signal.SIGTERM
                took = time.monotonic() - begun
            finally:
                agents.send_signal(signal.SIGCONT)
    assert took < 10
    written = "\n".join(server.lines)
    assert "did not stop within" not in written
    assert "Traceback" not in written
