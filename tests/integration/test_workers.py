"""Several gateway processes share one port: agents spread, none is lost with a worker."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from elkeid.fleet.compare import compare
from elkeid.fleet.report import read_report
from elkeid.fleet.stored import stored_records
from tests.integration.servers import BIN, DEADLINE, Server, eventually, free_ports, running, twistd
from tests.integration.signed import signed

pytestmark = pytest.mark.integration
AGENTS = 40


def ports() -> list[int]:
    """Agents, gateway API, discovery, Manager; the API's second port is free as well."""
    while True:
        found = free_ports(4)
        if found[1] + 10 not in found and found[1] + 10 < 65536:
            return found


def settings_in(folder: Path, found: list[int]) -> None:
    """All roles on these ports."""
    (folder / "elkeid.toml").write_text(
        f"[agentcenter]\ngrpc_port = {found[0]}\nhttp_port = {found[1]}\n"
        f"[discovery]\nport = {found[2]}\n[manager]\nport = {found[3]}\n"
    )


def listed(port: int, name: str) -> list[dict[str, Any]]:
    """What ServiceDiscovery knows of a name."""
    url = f"http://127.0.0.1:{port}/registry/detail?name={name}&steer=no"
    with urllib.request.urlopen(url, timeout=10) as reply:
        records: list[dict[str, Any]] = json.loads(reply.read())["data"]
        return records


def children(server: Server) -> list[int]:
    """Process ids of the workers, in their order."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            line = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        match = re.search(rb"--worker\0(\d+)/", line)
        if parent == server.process.pid and match:
            found.append((int(match[1]), int(path.parent.name)))
    return [pid for _, pid in sorted(found)]


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_workers(tmp_path: Path) -> None:
    """Agents spread, the registry knows sums, a killed worker is back, and nothing is lost."""
    found = ports()
    grpc, http, sd, _ = found
    settings_in(tmp_path, found)
    keys, report = tmp_path / "keys", tmp_path / "sent.jsonl"

    def count(number: int) -> int:
        try:
            status, answer = signed(keys, http + 10 * number, "GET", "/conn/count")
        except OSError:
            return -1  # it is not there just now
        assert status == 200
        agents: int = answer["data"]
        return agents

    with running(twistd("--workers", "2"), tmp_path) as server:
        load = ["--agents", str(AGENTS), "--rate", "20", "--duration", "150", "--spread", "1"]
        run = subprocess.Popen(
            [str(BIN / "elkeid"), "fleet", "run", *load, "--report", str(report)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            eventually(lambda: count(0) + count(1) == AGENTS, DEADLINE, "all agents are here")
            assert min(count(0), count(1)) >= AGENTS / 8  # the kernel spreads them
            eventually(
                lambda: listed(sd, "hids_svr_grpc")[0]["weight"] == AGENTS,
                DEADLINE,
                "the sum is known",
            )
            (record,) = listed(sd, "hids_svr_grpc")
            assert (record["port"], record["extra"]["limit"]) == (grpc, 20_000)
            apis = sorted(each["port"] for each in listed(sd, "hids_svr_http"))
            assert apis == [http, http + 10]

            before = children(server)
            assert len(before) == 2
            os.kill(before[1], signal.SIGKILL)
            server.wait_for("worker 1 ended with signal 9; it is started again")
            eventually(lambda: len(children(server)) == 2, DEADLINE, "it is started again")
            assert children(server)[0] == before[0]
            assert children(server)[1] != before[1]
            eventually(lambda: count(1) >= 0, DEADLINE, "it serves again")
            eventually(lambda: count(0) + count(1) == AGENTS, DEADLINE, "all are back")
            eventually(
                lambda: listed(sd, "hids_svr_grpc")[0]["weight"] == AGENTS,
                DEADLINE,
                "the sum is known",
            )

            run.send_signal(signal.SIGINT)
            said, _ = run.communicate(timeout=90)
        finally:
            run.kill()
        assert run.returncode == 0, said
        server.process.send_signal(signal.SIGHUP)
        eventually(
            lambda: sum("certificates are loaded again" in line for line in server.lines) == 3,
            DEADLINE,
            "the workers were told",
        )
        begun = time.monotonic()
        workers = children(server)
        assert server.stop() == -signal.SIGTERM
        assert time.monotonic() - begun < 10
        assert not any(map(alive, workers))
        assert not any("Traceback" in line for line in server.lines)
    agents = list(read_report(report))
    ids = [agent.agent_id for agent in agents]
    stored = [
        record
        for number in (0, 1)
        for record in stored_records(tmp_path / f"data/worker-{number}/eventlog", ids, 0)
    ]
    verdict = compare(agents, stored)
    assert verdict.good, verdict.text()
    assert verdict.agents == AGENTS
    with running(twistd(), tmp_path) as server:  # another number: what is there is pointed out
        assert any("worker-1 is the folder of a gateway" in line for line in server.lines)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """After kill -9 of the supervising process no worker stays behind, and all can start again."""
    found = ports()
    settings_in(tmp_path, found)
    with running(twistd("--workers", "2"), tmp_path) as server:
        workers = children(server)
        assert len(workers) == 2
        server.stop(signal.SIGKILL)
        eventually(lambda: not any(map(alive, workers)), DEADLINE, "they ended")
    with running(twistd("--workers", "2"), tmp_path) as server:
        assert server.stop() == -signal.SIGTERM


def test_a_worker_that_cannot_start(tmp_path: Path) -> None:
    """Its reason is the server's: one sentence, exit status 1, nobody stays behind."""
    found = ports()
    settings_in(tmp_path, found)
    with socket.socket() as other:
        other.bind(("127.0.0.1", found[1] + 10))
        other.listen()
        server = Server(twistd("--role", "ac", "--workers", "2"), tmp_path, dict(os.environ))
        try:
            assert server.process.wait(2 * DEADLINE) == 1
        finally:
            server.end()
    reason = f"worker 1: agentcenter.http_port: {found[1] + 10} is in use"
    assert any(line.startswith(f"elkeid: {reason}") for line in server.lines), server.lines
