"""Two Managers on one PostgreSQL, killed at random while they work on a task.

All that is looked at is what operators and AgentCenters see: the Managers' HTTP API, and the
commands that came to the AgentCenter.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.postgres import needs_postgres, shared_postgres
from tests.integration.servers import (
    BIN,
    Server,
    eventually,
    free_ports,
    running,
    settings_text,
    twistd,
)
from tests.integration.standin_gateway import fails

pytestmark = [pytest.mark.integration, needs_postgres]

DEADLINE = 900.0  # seconds until it counts as stuck
PAGE = 5_000
COUNTERS = ("created", "running", "failed", "succeed", "cancelled")
FINAL = {"failed", "result_succeed", "result_failed", "cancelled"}


class Managers:
    """Two Managers, an AgentCenter's stand-in with agents, and an operator.

    Args:
        folder: for settings, keys and what is written down.
        database: URL of an empty one.
        stack: ends all processes.
        total: agents.
        seed: of what happens by chance.
        lease: seconds; None for the default.
    """

    def __init__(
        self,
        folder: Path,
        database: str,
        stack: ExitStack,
        *,
        total: int,
        seed: int,
        lease: float | None,
    ) -> None:
        self.folder, self.total, self.chance = folder, total, random.Random(seed)
        self.stack, self.kills = stack, 0
        self.log = folder / "commands"
        gateway, discovery, *self.ports = free_ports(4)
        self.servers: list[Server] = []
        self.token = ""
        self._ended: dict[str, tuple[str, int]] = {}  # agent id -> final state, and since when
        for number, port in enumerate(self.ports):
            text = settings_text([1, gateway, discovery, port], f'data_dir = "data-{number}"')
            text += f'database = "{database}"\n'
            if lease is not None:
                text += f"task_lease_seconds = {lease}\n"
            (folder / f"{number}.toml").write_text(text)
        subprocess.run(
            [str(BIN / "elkeid"), "--config", "0.toml", "keys", "init"], cwd=folder, check=True
        )
        sd = twistd("--config", str(folder / "0.toml"), "--role=sd")
        stack.enter_context(running(sd, folder))
        self.servers += [self.started(number) for number in range(2)]
        argv = [sys.executable, "-m", "tests.integration.standin_gateway", str(folder)]
        argv += map(str, (gateway, discovery, total, seed, *self.ports))
        here = Path(__file__).parents[2]
        stack.enter_context(running(argv, here))
        for each in self.servers:
            each.wait_for("ready: ")

    def started(self, number: int) -> Server:
        """A Manager that is starting."""
        argv = twistd("--config", str(self.folder / f"{number}.toml"), "--role=manager")
        server = Server(argv, self.folder, dict(os.environ))
        self.stack.callback(server.end)
        return server

    def kill(self) -> None:
        """Kill one without a word, whichever, and start it again."""
        number = self.chance.randrange(2)
        self.servers[number].stop(signal.SIGKILL)
        self.kills += 1
        self.servers[number] = self.started(number)

    def login(self) -> None:
        """As the first admin, whom one of the two has made."""
        password = (self.folder / "keys" / "admin-password").read_text().strip()
        body = {"username": "admin", "password": password}
        self.token = self.ask("/user/login", body)["data"]["token"]

    def ask(self, path: str, body: Any = None, at: int | None = None) -> dict[str, Any]:
        """A success, of any Manager that lives or of one of them; POST if there is a body."""
        payload = None if body is None else json.dumps(body).encode()
        end = time.monotonic() + 60
        while True:
            number = self.chance.randrange(2) if at is None else at
            url = f"http://127.0.0.1:{self.ports[number]}/api/v1{path}"
            request = urllib.request.Request(url, payload, {"token": self.token})
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    answer: dict[str, Any] = json.load(reply)
            except urllib.error.HTTPError:
                raise
            except OSError:  # it is starting; nobody is killed while a call is under way
                assert time.monotonic() < end, url
                time.sleep(0.05)
                continue
            assert answer["code"] == 0, answer
            return answer

    def shown(self, task_id: str, at: int | None = None) -> dict[str, Any]:
        """The task; its counters add up at every moment."""
        task: dict[str, Any] = self.ask(f"/agent/getTask/{task_id}", at=at)["data"]
        assert sum(task[f"sub_task_{each}"] for each in COUNTERS) == task["id_count"], task
        return task

    def subtasks(self, task_id: str) -> list[dict[str, Any]]:
        """All, page by page, of whichever Manager answers."""
        found: list[dict[str, Any]] = []
        pages = -(-self.total // PAGE)
        for page in range(1, pages + 1):
            path = f"/agent/getSubTask/{task_id}?page={page}&page_size={PAGE}"
            found += self.ask(path)["data"]
        return found

    def all_connected(self) -> bool:
        """Whether every agent is known, and connected."""
        rule = {"operator": "$eq", "value": True}
        body = {"filter": [{"key": "connected", "condition": "$and", "rules": [rule]}]}
        page = self.ask("/agent/getStatus/filter?page_size=1", body)
        return bool(page["data"]["total"] == self.total)

    def commands(self) -> int:
        """How many came to the AgentCenter; each is a line, whole."""
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def look(self, task_id: str) -> None:
        """What has come to its end stays as it is."""
        path = f"/agent/getSubTask/{task_id}?page_size={PAGE}"
        self.compare(self.ask(path)["data"])

    def compare(self, subtasks: list[dict[str, Any]]) -> None:
        """Remember final states, which must be those that were seen before."""
        for each in subtasks:
            if each["status"] in FINAL:
                now = each["status"], each["update_time"]
                assert self._ended.setdefault(each["agent_id"], now) == now, each

    def work(self, kills: int, concurrence: int, *, both: bool) -> str:
        """Run a task for all agents part by part, with a kill in the middle of each but the last.

        Args:
            kills: how many.
            concurrence: of each run.
            both: whether one may be killed while the other one is starting.

        Returns:
            Its id, when it is finished.
        """
        spec = {"name": "collector", "data": "", "data_type": 5051}
        wanted = {"all": True, "data": {"task": spec}, "subtask_running_timeout": 3600}
        created = self.ask("/agent/createTask/task", wanted)["data"]
        task_id: str = created["task_id"]
        assert created["count"] == self.total
        eventually(lambda: not self.shown(task_id)["preparing"], 60)
        part, left = self.total // (kills + 1), self.total
        for turn in range(kills + 1):
            count = part if turn < kills else left
            left -= count
            for each in self.servers[: 0 if both else None]:
                each.wait_for("ready: ")
            run = {"task_id": task_id, "action": "run", "run_number": count}
            self.ask("/agent/controlTask", run | {"concurrence": concurrence})
            if turn == kills:
                break
            enough = self.total - left - count + self.chance.randrange(part // 5, part)
            end = time.monotonic() + DEADLINE
            while self.commands() < enough:
                assert time.monotonic() < end, self.shown(task_id)
                time.sleep(0.02)
            self.kill()
            self.look(task_id)
        eventually(lambda: self.shown(task_id)["task_status"] == "finished", DEADLINE)
        return task_id

    def check(self, task_id: str) -> int:
        """Everything that must be so at the end; returns how often something was sent again."""
        subtasks = self.subtasks(task_id)
        self.compare(subtasks)
        bad = sum(map(fails, range(self.total)))
        states = Counter(each["status"] for each in subtasks)
        assert states == {"result_succeed": self.total - bad, "result_failed": bad}
        assert len({each["agent_id"] for each in subtasks}) == self.total
        for each in subtasks:
            number = int(each["agent_id"].removeprefix("agent-"))
            assert (each["status"] == "result_failed") == fails(number), each
            assert each["task_result"]["msg"] == each["agent_id"]
            assert each["task_result"]["token"] == each["token"]
        for server, each in zip(self.servers, range(2), strict=True):
            server.wait_for("ready: ")
            counters = {name: self.shown(task_id, each)[f"sub_task_{name}"] for name in COUNTERS}
            assert counters == dict.fromkeys(COUNTERS, 0) | {
                "succeed": self.total - bad,
                "failed": bad,
            }
        lines = [line.split() for line in self.log.read_text().splitlines()]
        sends = Counter(agent_id for _, agent_id, _ in lines)
        assert {(agent_id, token) for _, agent_id, token in lines} == {
            (each["agent_id"], each["token"]) for each in subtasks
        }
        resends = {each["agent_id"]: each["resends"] for each in subtasks}
        unexplained = {
            agent_id: times
            for agent_id, times in sends.items()
            if times > 1 + len(resends[agent_id])
        }
        assert not unexplained
        assert all(again["reason"] for each in resends.values() for again in each)
        return sum(map(len, resends.values()))


def crash(
    folder: Path,
    capsys: Any,
    total: int,
    kills: int,
    *,
    concurrence: int,
    lease: float | None,
    both: bool,
) -> None:
    """The whole of it."""
    seed = random.SystemRandom().randrange(1 << 32)
    with capsys.disabled():
        print(f"\n{total} subtasks, seed {seed}", flush=True)
    postgres = shared_postgres()
    name = postgres.new_database()
    try:
        with ExitStack() as stack:
            managers = Managers(
                folder, postgres.url(name), stack, total=total, seed=seed, lease=lease
            )
            managers.login()
            eventually(managers.all_connected, 120)
            began = time.monotonic()
            task_id = managers.work(kills, concurrence, both=both)
            took = time.monotonic() - began
            resends = managers.check(task_id)
    finally:
        postgres.drop_database(name)
    with capsys.disabled():
        print(f"{took:.0f} s, {kills} kills, {resends} sent again, none lost")


def test_managers_are_killed(tmp_path: Path, capsys: Any) -> None:
    """Every subtask ends once; what was sent twice has its reason; counters are exact."""
    crash(tmp_path, capsys, 2_000, 3, concurrence=16, lease=5, both=False)


@pytest.mark.soak
def test_managers_are_killed_during_a_large_task(tmp_path: Path, capsys: Any) -> None:
    """The same with 20,000 subtasks and the usual lease; at times neither Manager lives."""
    crash(tmp_path, capsys, 20_000, 15, concurrence=20, lease=None, both=True)
