"""A thousand agents under faults: nothing is lost that was taken, no result acts twice, no host
is wiped.

Manager and ServiceDiscovery are killed and started again at random, connections are cut, streams
reset, tasks sent, configs changed. The seed is printed.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path
from secrets import randbits
from typing import Any

import pytest

from elkeid.eventlog.reader import LogReader
from elkeid.fleet.host import STOCK_PLUGINS
from elkeid.fleet.report import AgentReport, read_report
from elkeid.manager.store.configs import store_config
from elkeid.manager.store.migrate import migrate
from elkeid.manager.store.results import issue_tokens
from elkeid.manager.store.sqlite import SqliteDatabase
from elkeid.wire import mqdata
from elkeid.wire.datatypes import TASK_RESULTS
from tests.integration.servers import BIN, DEADLINE, Server, free_ports, settings_text, twistd
from tests.integration.signed import signed

pytestmark = pytest.mark.integration
AGENTS = 1000
SETTLE_SECONDS = 60  # for the outbox to bring what is left, its longest pause being 30 s


class Deployment:
    """ServiceDiscovery, AgentCenter and Manager as processes, and a driver's way to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.ports = free_ports(4)
        (folder / "elkeid.toml").write_text(settings_text(self.ports))
        subprocess.run([str(BIN / "elkeid"), "keys", "init"], cwd=folder, check=True)
        self.database = SqliteDatabase(f"sqlite:///{folder / 'data' / 'manager.db'}")
        self.database.open()
        migrate(self.database)
        self.servers: dict[str, Server] = {}
        self.kills: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()

    def start(self, role: str) -> None:
        """Start a role."""
        self.servers[role] = Server(twistd("--role", role), self.folder, dict(os.environ))

    def kill(self, role: str) -> None:
        """End it without a word."""
        self.kills[role] += 1
        assert self.servers.pop(role).stop(signal.SIGKILL) == -signal.SIGKILL

    def end(self) -> None:
        """Leave nothing behind."""
        for server in self.servers.values():
            server.end()
        self.database.close()

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One signed call to the AgentCenter."""
        return signed(self.folder / "keys", self.ports[1], method, path, body)[1]

    def config(self, version: int) -> list[dict[str, Any]]:
        """A list of all plugins, of which one changes."""
        versions = STOCK_PLUGINS | {"rasp": f"1.9.1.{version}"}
        rest = {
            "type": "tar.gz",
            "sha256": "ab" * 32,
            "signature": "",
            "download_url": ["http://x"],
        }
        return [{"name": name, "version": each, **rest} for name, each in versions.items()]

    def drive(self, agents: list[str]) -> None:
        """One random act of an operator."""
        agent_id, act = self.chance.choice(agents), self.chance.random()
        command: dict[str, Any]
        if act < 0.85:
            with self.database.writing() as connection:
                (token,) = issue_tokens(connection, [agent_id], int(time.time()))
            task = {"data_type": 5050, "data": "", "token": token}
            if act < 0.05:
                size = self.chance.choice([10, 100_000, 600_000])
                order = {"path": f"/x.{size}.bin", "buf_size": 512_000}
                task |= {"name": "elkeid-agent", "data_type": 1050, "data": json.dumps(order)}
            else:
                task["name"] = self.chance.choice(list(STOCK_PLUGINS))
            command = {"task": task}
        elif act < 0.95:
            command = {"config": self.config(self.chance.randrange(100))}
        else:  # what a stock Manager sends by mistake must wipe nobody
            command = self.chance.choice([{}, {"config": []}, {"task": None}, {"agent_ctrl": 1}])
        answer = self.call("POST", "/command", {"agent_id": agent_id, "command": command})
        what = "task" if act < 0.85 else "config" if act < 0.95 else "wiping"
        self.answers[f"{what}: code {answer['code']}"] += 1


def results_in_log(folder: Path) -> Counter[tuple[str, str, str]]:
    """Token, stream and number of each task result that the AgentCenter has read."""
    found: Counter[tuple[str, str, str]] = Counter()
    with LogReader(folder / "data" / "eventlog") as log:
        for entry in log.entries(log.extent()):
            for record in mqdata.records(entry.region):
                decoded = mqdata.decode(record)
                fields = decoded.fields or {}
                if decoded.data_type in TASK_RESULTS:
                    found[fields["token"], fields["fleet_conn"], fields["fleet_seq"]] += 1
    return found


def effects(folder: Path) -> list[dict[str, str]]:
    """Every result that has taken effect at the Manager."""
    with sqlite3.connect(folder / "data" / "manager.db") as database:
        rows = database.execute("SELECT content FROM task_result").fetchall()
    return [json.loads(content) for (content,) in rows]


def results_at_manager(folder: Path) -> Counter[tuple[str, str, str]]:
    """Token, stream and number of those that agents gave."""
    return Counter(
        (each["token"], each["fleet_conn"], each["fleet_seq"])
        for each in effects(folder)
        if "fleet_seq" in each
    )


def check_uploads(folder: Path, reports: list[AgentReport]) -> None:
    """Each file that a host brought is at the Manager under the name that its result tells."""
    told = [each for each in effects(folder) if "fleet_seq" not in each]
    names = [each["msg"] for each in told if each["status"] == "succeed"]
    assert len({each["token"] for each in told}) == len(told)
    assert len(names) >= sum(report.uploads for report in reports) > 0
    for name in names:
        assert (folder / "data" / "uploads" / name).stat().st_size > 0


def await_true(what: str, seconds: float, test: Any) -> None:
    """Until ``test`` holds."""
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)


@pytest.mark.parametrize("seconds", [60, pytest.param(330, marks=pytest.mark.soak)])
def test_soak(tmp_path: Path, seconds: int) -> None:
    """After all of it the ledger balances and each result has taken effect exactly once."""
    seed = randbits(32)
    print(f"seed {seed}")  # shown when it fails
    deployment = Deployment(tmp_path, seed)
    try:
        _soak(deployment, seconds, seed)
    finally:
        deployment.end()


def _soak(deployment: Deployment, seconds: int, seed: int) -> None:
    folder = deployment.folder
    with deployment.database.writing() as connection:
        store_config(connection, deployment.config(1), drops_confirmed=False, now=1)
    for role in ("sd", "manager", "ac"):
        deployment.start(role)
    for role in ("sd", "manager", "ac"):
        deployment.servers[role].wait_for("ready: ")
    argv = ["--agents", str(AGENTS), "--rate", "0.5", "--cuts", "5", "--seed", str(seed)]
    argv += ["--duration", str(seconds), "--spread", "15", "--report", "sent.jsonl"]
    argv += ["--sd", f"127.0.0.1:{deployment.ports[2]}"]
    argv += ["--address", f"127.0.0.1:{deployment.ports[0]}"]
    fleet = subprocess.Popen(
        [str(BIN / "elkeid"), "fleet", "run", *argv],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        _trouble(deployment, fleet, seconds)
        said, _ = fleet.communicate(timeout=90)
    finally:
        fleet.kill()
    print(said[-3000:], dict(deployment.kills), dict(deployment.answers), sep="\n")
    for role in ("sd", "manager"):
        if role not in deployment.servers:
            deployment.start(role)

    ledger = deployment.call("GET", "/ledger")["data"]
    for name, each in ledger.items():
        assert each["read"] == each["appended"] + sum(each["dropped"].values()), (name, each)
    log = results_in_log(folder)
    await_true(
        "every result is at the Manager",
        SETTLE_SECONDS,
        lambda: not log - results_at_manager(folder),
    )
    assert deployment.servers["ac"].stop() == -signal.SIGTERM
    del deployment.servers["ac"]

    assert results_at_manager(folder) == log
    assert set(log.values()) == {1}
    check = subprocess.run(
        [str(BIN / "elkeid"), "fleet", "check", "sent.jsonl"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr
    agents = list(read_report(folder / "sent.jsonl"))
    assert len(agents) == AGENTS
    assert [agent.agent_id for agent in agents if agent.wiped or not agent.plugins] == []
    assert sum(agent.exits for agent in agents) == 0
    check_uploads(folder, agents)
    assert deployment.kills["sd"] > 0
    assert deployment.kills["manager"] > 0
    assert len(log) > seconds
    assert deployment.answers["wiping: code 0"] == 0
    assert deployment.answers["wiping: code 2"] > 0


def _trouble(deployment: Deployment, fleet: "subprocess.Popen[str]", seconds: int) -> None:
    """Kill, reset and drive until the fleet is about to end."""
    chance = deployment.chance
    began = time.monotonic()
    await_true(
        "agents connect",
        DEADLINE,
        lambda: deployment.call("GET", "/conn/count")["data"] > AGENTS // 2,
    )
    agents: list[str] = []
    listed = kill_at = reset_at = 0.0
    back: dict[str, float] = {}  # role -> when it starts again
    while (now := time.monotonic() - began) < seconds - 8:
        assert fleet.poll() is None, fleet.communicate()[0][-3000:]
        if now >= listed:
            agents, listed = deployment.call("GET", "/conn/list")["data"], now + 5
        for role, when in list(back.items()):
            if now >= when:
                del back[role]
                deployment.start(role)
        if now >= kill_at:
            kill_at = now + chance.uniform(4, 9)
            role = chance.choice(["sd", "manager"])
            if role in deployment.servers:
                deployment.kill(role)
                back[role] = now + chance.uniform(0.5, 4)
        if now >= reset_at:
            reset_at = now + chance.uniform(3, 8)
            deployment.call("POST", "/conn/reset", {"type": "random", "count": 20})
        deployment.drive(agents)
        time.sleep(0.03)
