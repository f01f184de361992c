"""Sent equals stored: an independent gRPC client, kills, stops."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from elkeid.eventlog.reader import LogReader
from elkeid.wire import mqdata
from tests.integration.servers import (
    BIN,
    Server,
    eventually,
    free_ports,
    running,
    settings_text,
    twistd,
)
from tests.integration.signed import signed

ROOT = Path(__file__).resolve().parent.parent.parent
SEQ = re.compile(rb"\x0a\x03seq\x12\x0c(\d{12})")  # the field `seq` as agentswarm encodes it
pytestmark = pytest.mark.integration
ARRIVAL_SECONDS = 180  # for agents to come back; they wait 5 s, or 45 s after they gave up
SOME_RECORDS = 2000  # of all agents together: a second's


def generator(name: str = "agentswarm") -> str:
    """A load generator, or a skip that says how to get it."""
    found = shutil.which(name, path=f"{ROOT / '.tools/bin'}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is missing: make tools")
    return found


@contextmanager
def server_in(folder: Path) -> Iterator[tuple[Server, list[int]]]:
    """All roles on free ports."""
    ports = free_ports(4)
    (folder / "elkeid.toml").write_text(settings_text(ports))
    with running(twistd(), folder) as server:
        yield server, ports


def swarm(folder: Path, port: int, *argv: str, program: str = "agentswarm") -> dict[str, Any]:
    """Run a load generator to its end; its report."""
    done = subprocess.run(
        [generator(program), "-addr", f"127.0.0.1:{port}", "-certs", str(folder / "keys"), *argv],
        capture_output=True,
        check=True,
        timeout=600,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    for fault in ("failed", "ended_early", "unconfirmed", "reconnects"):
        assert report[fault] == 0, (fault, done.stderr.decode()[-500:])
    return report


def stored(folder: Path) -> tuple[int, dict[str, list[int]]]:
    """How many records the log holds, and the ``seq`` of each agent's, in stored order."""
    count, seqs = 0, dict[str, list[int]]()
    with LogReader(folder / "data" / "eventlog") as log:
        for entry in log.entries(log.extent()):
            count += entry.records
            found = SEQ.findall(entry.region)
            if found:
                agent_id = mqdata.decode(entry.suffix).agent_id
                seqs.setdefault(agent_id, []).extend(map(int, found))
    return count, seqs


def start_fleet(folder: Path, report: Path, seconds: int, *more: str) -> "subprocess.Popen[str]":
    """Forty simulated agents, each of 50 events/s and 3.5 control records/s; 0 s have no end."""
    load = ["--agents", "40", "--rate", "50", "--beat", "2", "--duration", str(seconds), *more]
    return subprocess.Popen(
        [str(BIN / "elkeid"), "fleet", "run", *load, "--report", str(report)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_load(folder: Path, port: int) -> None:
    """Until all forty agents are connected to the gateway with this API, and send."""

    def told(path: str) -> Any:
        return signed(folder / "keys", port, "GET", path)[1]["data"]

    eventually(lambda: told("/conn/count") == 40, ARRIVAL_SECONDS, "not all agents are here")
    begun = told("/ledger")["telemetry"]["appended"]
    eventually(
        lambda: told("/ledger")["telemetry"]["appended"] - begun > SOME_RECORDS,
        ARRIVAL_SECONDS,
        "they do not send",
    )


def check_fleet(folder: Path, report: Path) -> "subprocess.CompletedProcess[str]":
    """Compare what they sent with what is stored; status 0 is good."""
    return subprocess.run(
        [str(BIN / "elkeid"), "fleet", "check", str(report)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("per_batch", "total"), [(50, 1_000_000), (1, 100_000)], ids=["50 a batch", "1 a batch"]
)
def test_every_record_is_stored_once_and_in_order(
    tmp_path: Path, per_batch: int, total: int
) -> None:
    """200 agents of another gRPC implementation: sent, confirmed and stored are one number."""
    generator()
    with server_in(tmp_path) as (server, ports):
        report = swarm(
            tmp_path, ports[0], "-agents", "200", "-records", str(per_batch), "-total", str(total)
        )
        assert server.stop() == -signal.SIGTERM
    count, seqs = stored(tmp_path)
    assert report["confirmed_records"] == report["sent_records"] == count == total + 200
    assert len(seqs) == 200
    for agent_id, seq in seqs.items():
        assert seq == list(range(total // 200)), agent_id


def test_lean_load_is_stored(tmp_path: Path) -> None:
    """Batches at fixed times with heartbeats between: sent, confirmed and stored are one number."""
    generator("leanswarm")
    load = ["-agents", "50", "-records", "60", "-total", "30000", "-every", "50ms"]
    with server_in(tmp_path) as (server, ports):
        report = swarm(tmp_path, ports[0], *load, "-beat", "100ms", program="leanswarm")
        assert server.stop() == -signal.SIGTERM
    count, seqs = stored(tmp_path)
    assert report["confirmed_records"] == report["sent_records"] == count
    assert count > 30_000 + 50  # a heartbeat each at the start, and more later
    assert len(seqs) == 50
    for agent_id, seq in seqs.items():
        assert seq == list(range(600)), agent_id


def test_kill_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    """After kill -9 agents come back by themselves, and what is stored is a clean prefix."""
    report = tmp_path / "sent.jsonl"
    with server_in(tmp_path) as (server, ports), ExitStack() as stack:
        # On a slow machine a start may take so long that agents give up; they come back.
        run = start_fleet(tmp_path, report, 0, "--restart")
        stack.callback(run.kill)
        wait_for_load(tmp_path, ports[1])
        server.stop(signal.SIGKILL)
        with running(twistd(), tmp_path) as again:
            wait_for_load(tmp_path, ports[1])
            again.stop(signal.SIGKILL)
            with running(twistd(), tmp_path) as last:
                wait_for_load(tmp_path, ports[1])
                run.send_signal(signal.SIGINT)
                said, _ = run.communicate(timeout=90)
                assert run.returncode == 0, said
                assert last.stop() == -signal.SIGTERM
    check = check_fleet(tmp_path, report)
    assert check.returncode == 0, check.stdout + check.stderr
    streams = [json.loads(line) for line in report.read_text().splitlines()]
    assert len(streams) == 40
    assert all(len(agent["streams"]) >= 3 for agent in streams)  # killed twice, back twice


def test_stop_says_goodbye(tmp_path: Path) -> None:
    """SIGTERM under load: agents see OK, what they sent is stored, and it takes under 10 s."""
    report = tmp_path / "sent.jsonl"
    with server_in(tmp_path) as (server, ports), ExitStack() as stack:
        run = start_fleet(tmp_path, report, 0)
        stack.callback(run.kill)
        wait_for_load(tmp_path, ports[1])
        begun = time.monotonic()
        assert server.stop() == -signal.SIGTERM
        assert time.monotonic() - begun < 10
        assert not any("Traceback" in line for line in server.lines)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=90)
    check = check_fleet(tmp_path, report)
    assert check.returncode == 0, said + check.stdout + check.stderr
