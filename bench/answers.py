"""How fast the Manager answers operators on a small fleet, over HTTP.

    python -m bench.answers [--agents 100] [--calls 500] [--database postgresql]

Starts every role in one process on loopback, as `make run` does, with simulated agents that send
meanwhile, and calls one route after the other over a kept connection: first those that read, then
those that change something, each of which writes to the audit log twice, twenty calls a second: the
work that they start goes on behind them. Logging in is
slow on purpose and is left out. The target is 10 ms at the 99th percentile. A run counts only if
every answer is a success and all agents are there. PostgreSQL is a server of its own on loopback.
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.gateway import REFERENCE_YARDSTICK, InvalidRun, free_port, yardstick
from tests.integration.postgres import own_postgres

TARGET_MS = 10.0  # 99th percentile
START_SECONDS = 30.0
PAUSE = 0.05
"""Seconds between two calls that change something."""

PREFIX = {
    "filter": [
        {
            "key": "hostname",
            "condition": "$and",
            "rules": [{"operator": "$regex", "value": "^db-"}],
        }
    ]
}
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/api/v1/agent/getStatus", None),
    ("POST", "/api/v1/agent/getStatus/filter", PREFIX),
    ("GET", "/api/v1/agent/getTags", None),
    ("POST", "/api/v1/agent/getTask/filter", {}),
    ("GET", "/api/v1/audit", None),
    ("GET", "/api/v1/cluster/instances", None),
    ("GET", "/api/v1/user/info", None),
    ("POST", "/api/v6/asset-center/DescribeHosts", {}),
    ("GET", "/api/v6/asset-center/DescribeHostStatistics", None),
    ("GET", "/api/v6/overview/DescribeAgent", None),
)
"""Method, path, body."""


@contextmanager
def program(folder: Path, *command: str) -> Iterator[None]:
    """Run one of ours in a folder until the end of the block."""
    path = Path(sys.executable).parent / command[0]
    with (folder / f"{command[0]}.txt").open("wb") as output:
        child = subprocess.Popen(
            [str(path), *command[1:]], cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


class Operator:
    """Calls the API over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._token = ""

    def login(self, password: str) -> None:
        """As the first administrator."""
        body = {"username": "admin", "password": password}
        self._token = self.call("POST", "/api/v1/user/login", body)["token"]

    def call(self, method: str, path: str, body: Any) -> Any:
        """``data`` of the answer."""
        return self.timed(method, path, body)[0]

    def timed(self, method: str, path: str, body: Any) -> tuple[Any, float]:
        """``data`` of the answer, and how many milliseconds it took to come.

        To decode a page of 100 agents takes this client longer than the server to make it.
        """
        sent = None if body is None else json.dumps(body)
        began = time.perf_counter()
        self._connection.request(method, path, sent, {"token": self._token})
        answer = self._connection.getresponse()
        text = answer.read()
        took = (time.perf_counter() - began) * 1e3
        if answer.status != 200 or (decoded := json.loads(text))["code"] != 0:
            raise InvalidRun(f"{method} {path}: {answer.status} {text[:200]!r}")
        return decoded["data"], took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--calls", type=int, default=500, help="of each route")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    asked = parser.parse_args()
    print(
        f"{asked.agents} agents, {asked.database}; "
        f"yardstick {yardstick():.2f} s (reference {REFERENCE_YARDSTICK}), "
        f"load {os.getloadavg()[0]:.1f}; target {TARGET_MS:g} ms at the 99th percentile"
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elkeid-bench-")))
        grpc, gateway, discovery, manager = (free_port() for _ in range(4))
        database = ""
        if asked.database == "postgresql":
            server = stack.enter_context(own_postgres(fsync="on", full_page_writes="on"))
            database = f'database = "{server.url(server.new_database())}"\n'
        (folder / "elkeid.toml").write_text(
            f"[agentcenter]\ngrpc_port = {grpc}\nhttp_port = {gateway}\n"
            f"[discovery]\nport = {discovery}\n[manager]\nport = {manager}\n"
            f"change_rate = 1000\n{database}"
        )
        stack.enter_context(program(folder, "twistd", "-n", "--pidfile=", "elkeid"))
        end = time.monotonic() + START_SECONDS
        while True:
            operator = Operator(manager)
            try:
                operator.login((folder / "keys" / "admin-password").read_text().strip())
                break
            except OSError:
                if time.monotonic() > end:
                    raise InvalidRun((folder / "twistd.txt").read_text()[-2000:]) from None
                time.sleep(0.2)
        fleet = ("elkeid", "fleet", "run", "--agents", str(asked.agents), "--spread", "1")
        stack.enter_context(program(folder, *fleet))
        while operator.call("GET", "/api/v1/agent/getStatus", None)["total"] < asked.agents:
            if time.monotonic() > end:
                raise InvalidRun("not all agents came")
            time.sleep(0.2)
        for route in ROUTES:
            show(route[:2], [operator.timed(*route)[1] for _ in range(asked.calls)])
        for path, taken in changes(operator, asked.calls // 2).items():
            show(("POST", path), taken)


def changes(operator: Operator, calls: int) -> dict[str, list[float]]:
    """Path -> how many milliseconds each call of it took, which changed something."""
    first = operator.call("GET", "/api/v1/agent/getStatus?page_size=1", None)["items"][0]
    agent_id, took = first["agent_id"], dict[str, list[float]]()

    def change(path: str, body: Any) -> Any:
        time.sleep(PAUSE)
        data, milliseconds = operator.timed("POST", path, body)
        took.setdefault(path, []).append(milliseconds)
        return data

    task = {"task": {"name": "collector", "data_type": 5051, "data": ""}}
    tags = [{"tag": f"bench-{number}", "id_list": [agent_id]} for number in range(calls)]
    for tag in tags:  # a host has at most some tags
        change("/api/v1/agent/addTags", tag)
        change("/api/v1/agent/delTags", tag)
    created = {"id_list": [agent_id], "data": task}
    tasks = [change("/api/v1/agent/createTask/task", created)["task_id"] for _ in range(calls)]
    for task_id in tasks:
        run = {"task_id": task_id, "action": "run", "run_number": 1, "concurrence": 1}
        change("/api/v1/agent/controlTask", run)
    for _ in range(calls):
        change("/api/v1/agent/quickTask/task", {"agent_id": agent_id, "command": task})
    return took


def show(route: tuple[str, str], taken: list[float]) -> None:
    """Print what calls of a route took."""
    ranked = sorted(taken)
    median, late = ranked[len(ranked) // 2], ranked[len(ranked) * 99 // 100]
    print(f"  {route[0]:4} {route[1]:50} p50 {median:5.1f} ms  p99 {late:5.1f} ms")


if __name__ == "__main__":
    main()
