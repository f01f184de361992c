"""The documented example of a task, from the operator's call to the agents' answers and back."""

import json
import signal
import subprocess
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.servers import BIN, eventually, free_ports, running, settings_text, twistd
from tests.integration.test_first_light import Manager

pytestmark = pytest.mark.integration

ANSWER_SECONDS = 10
"""That the task waits for each agent; simulated ones take half a second."""


class Operator(Manager):
    """Calls of the first admin."""

    def get(self, path: str) -> Any:
        """``data`` of a GET."""
        return self.ask(f"/agent/{path}")

    def post(self, path: str, body: Any) -> Any:
        """``data`` of a POST."""
        return self.ask(f"/agent/{path}", body)

    def subtasks(self, task_id: str) -> dict[str, Any]:
        """Agent id -> subtask."""
        return {each["agent_id"]: each for each in self.get(f"getSubTask/{task_id}")}


class Host:
    """A host: one simulated agent as a process, by its seed the same one each time."""

    def __init__(self, folder: Path, stack: ExitStack, seed: int, *options: str) -> None:
        self._folder, self._seed, self._options = folder, seed, options
        self._process: subprocess.Popen[str] | None = None
        stack.callback(self.off)

    def on(self, port: int) -> "Host":
        """Start it; it knows the gateway at this port alone."""
        self._process = subprocess.Popen(
            [
                str(BIN / "elkeid"),
                *("fleet", "run", "--agents", "1", "--spread", "0", "--rate", "0"),
                *("--seed", str(self._seed), "--address", f"127.0.0.1:{port}"),
                *("--hostnames", f"host-{self._seed}-{{n}}", *self._options),
            ],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def off(self) -> None:
        """End it in order, as a shutdown does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            finally:
                self._process.kill()
                self._process.wait()
                self._process = None


def both_listed(port: int) -> bool:
    """Whether ServiceDiscovery lists two gateways."""
    url = f"http://127.0.0.1:{port}/registry/detail?name=hids_svr_http"
    with urllib.request.urlopen(url, timeout=10) as reply:
        return len(json.load(reply)["data"]) == 2


def test_worked_example(tmp_path: Path) -> None:
    """One host answers, one fails, one says nothing, one comes back, one moves in the middle."""
    ports, others = free_ports(4), free_ports(2)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    second = tmp_path / "second.toml"
    second.write_text(settings_text([*others, *ports[2:]], server='data_dir = "second"'))
    with ExitStack() as stack:
        stack.enter_context(running(twistd(), tmp_path))
        stack.enter_context(running(twistd("--config", str(second), "--role=ac"), tmp_path))
        operator = Operator(ports[3], (tmp_path / "keys" / "admin-password").read_text().strip())
        Host(tmp_path, stack, 1).on(ports[0])
        Host(tmp_path, stack, 2).on(ports[0])
        Host(tmp_path, stack, 3, "--bare").on(ports[0])  # no plugin: nobody to answer
        returning = Host(tmp_path, stack, 4).on(ports[0])
        moving = Host(tmp_path, stack, 5).on(ports[0])
        ids: dict[str, str] = {}

        def known() -> bool:
            ids.update({each["hostname"]: each["agent_id"] for each in operator.agents()})
            return len(ids) == 5 and all(each["connected"] for each in operator.agents())

        eventually(known)
        eventually(lambda: both_listed(ports[2]))
        answers, fails, silent, returns, moves = (ids[f"host-{n}-0"] for n in range(1, 6))

        def is_off() -> bool:
            return not operator.get(f"getStatus/{returns}")["connected"]

        returning.off()
        eventually(is_off)
        selected = [answers, silent, returns, moves]
        created = operator.post(
            "createTask/task",
            {
                "id_list": selected,
                "task_name": "port scan",
                "subtask_running_timeout": ANSWER_SECONDS,
                "data": {"task": {"name": "collector", "data_type": 5051, "data": ""}},
            },
        )
        task_id = created["task_id"]
        assert created["count"] == 4
        before = operator.get(f"getTask/{task_id}")
        assert before["todo_list"] == sorted(selected)
        failing = operator.post(
            "createTask/task",
            {
                "id_list": [fails],
                "data": {
                    "task": {"name": "collector", "data_type": 5051, "data": '{"simulate":"fail"}'}
                },
            },
        )["task_id"]
        run = {"action": "run", "rolling_percent": 0.5, "concurrence": 10}
        operator.post("controlTask", run | {"task_id": failing})
        moving.off()
        moving.on(others[0])
        first = operator.post("controlTask", run | {"task_id": task_id})
        assert (first["taskID"], first["id_count"]) == (task_id, 2)
        assert operator.get(f"getTask/{task_id}")["inner_status"] == "running"
        rest = operator.post("controlTask", run | {"task_id": task_id})
        assert operator.get(f"getTask/{task_id}")["job_list"] == [first["jobID"], rest["jobID"]]

        def states() -> dict[str, str]:
            return {each: one["status"] for each, one in operator.subtasks(task_id).items()}

        def all_but_one() -> bool:
            now = states()
            return now[answers] == now[moves] == "result_succeed" and now[silent] == "result_failed"

        eventually(all_but_one, 60)
        assert states()[returns] == "created"
        assert operator.get(f"getTask/{task_id}")["task_status"] == "running"
        returning.on(ports[0])
        eventually(lambda: operator.get(f"getTask/{task_id}")["task_status"] == "finished", 60)
        ended = operator.get(f"getTask/{task_id}")
        assert (ended["sub_task_succeed"], ended["sub_task_failed"]) == (3, 1)
        subtasks = operator.subtasks(task_id)
        assert subtasks[silent]["status_msg"] == "Timeout waiting for agent response"
        assert subtasks[moves]["task_url"] == f"https://127.0.0.1:{others[1]}/command/"
        assert subtasks[answers]["task_url"] == f"https://127.0.0.1:{ports[1]}/command/"
        assert subtasks[returns]["task_result"]["token"] == subtasks[returns]["token"]
        assert all(each["resends"] == [] for each in subtasks.values())
        (failed,) = operator.subtasks(failing).values()
        assert (failed["status"], failed["status_msg"]) == ("result_failed", "told to fail")
        assert operator.get(f"getTask/{failing}")["task_status"] == "finished"
