"""A gateway that goes and comes back under many agents: all of them are there again."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from elkeid.fleet.report import read_report
from tests.integration.servers import BIN, free_ports, running, settings_text, twistd

pytestmark = pytest.mark.integration
AGENTS = 600


def test_all_come_back_and_none_exits(tmp_path: Path) -> None:
    """Killed, away for 12 s, started again: with their real retry all agents stream again.

    None has found no usable address seven times in a row, and what the second gateway was told
    is stored whole.
    """
    (tmp_path / "elkeid.toml").write_text(settings_text(free_ports(4)))
    argv = ["--agents", str(AGENTS), "--rate", "1", "--spread", "6", "--duration", "45"]
    with running(twistd("--role", "sd"), tmp_path):
        with running(twistd("--role", "ac"), tmp_path) as gateway:
            fleet = subprocess.Popen(
                [str(BIN / "elkeid"), "fleet", "run", *argv, "--report", "sent.jsonl"],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            time.sleep(12)
            gateway.stop(signal.SIGKILL)
        time.sleep(12)
        with running(twistd("--role", "ac"), tmp_path) as again:
            said, _ = fleet.communicate(timeout=120)
            assert fleet.returncode == 0, said[-3000:]
            assert again.stop() == -signal.SIGTERM
    agents = list(read_report(tmp_path / "sent.jsonl"))
    assert len(agents) == AGENTS
    assert [agent.agent_id for agent in agents if agent.exits] == []
    assert all(agent.failed_rounds >= 1 and agent.confirmed_at_end for agent in agents)
    check = subprocess.run(
        [str(BIN / "elkeid"), "fleet", "check", "sent.jsonl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr
