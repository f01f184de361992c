"""The simulator as a process: its first words, its last ones, and what its agents leave behind."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.servers import BIN, free_ports, running, settings_text, twistd

pytestmark = pytest.mark.integration
FLEET = [str(BIN / "elkeid"), "fleet"]


def test_no_server(tmp_path: Path) -> None:
    """Without a server the run ends at once, in one sentence that names what was tried."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    subprocess.run([str(BIN / "elkeid"), "keys", "init"], cwd=tmp_path, check=True)
    done = subprocess.run(
        [*FLEET, "run"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: no gateway can be used (127.0.0.1:{ports[2]}: ")
    assert f"127.0.0.1:{ports[0]}: Connection was refused" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "start one with `twistd -n elkeid`" in done.stderr


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the run in order: every stream is half-closed, answered, and in the log."""
    (tmp_path / "elkeid.toml").write_text(settings_text(free_ports(4)))
    events = tmp_path / "events.jsonl"
    events.write_text('{"data_type": 59, "fields": {"exe": "/bin/true", "nodename": "x"}}\n')
    with running(twistd(), tmp_path):
        argv = ["--agents", "300", "--rate", "10", "--events", str(events), "--seed", "5"]
        argv += ["--hostnames", "load-{n:03}", "--id-prefix", "sim-"]
        run = subprocess.Popen(
            [*FLEET, "run", *argv, "--report", "sent.jsonl", "--json"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(6)
        run.send_signal(signal.SIGINT)
        out, shown = run.communicate(timeout=60)
        assert run.returncode == 0, shown
        check = subprocess.run(
            [*FLEET, "check", "sent.jsonl"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert check.returncode == 0, check.stdout + check.stderr
        records = subprocess.run(
            [str(BIN / "elkeid"), "log", "cat"],
            cwd=tmp_path,
            capture_output=True,
            check=True,
        ).stdout.splitlines()
    summary = json.loads(out)
    assert summary["sent"] == summary["confirmed"]
    assert (summary["agents"], summary["streams"], summary["seed"]) == (300, 300, 5)
    assert len(records) == sum(summary["sent"].values())
    found = [json.loads(record) for record in records]
    assert {record["hostname"] for record in found} == {f"load-{n:03}" for n in range(300)}
    assert all(record["agent_id"].startswith("sim-") for record in found)
    event = next(record for record in found if record["data_type"] == 59)
    assert event["fields"]["nodename"] == event["hostname"]
    assert " of 300 connected" in shown
