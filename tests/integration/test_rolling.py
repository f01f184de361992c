"""Two gateways, restarted one after the other under load: no record is lost."""

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from elkeid.fleet.compare import compare
from elkeid.fleet.report import read_report
from elkeid.fleet.stored import stored_records
from tests.integration.servers import (
    BIN,
    DEADLINE,
    Server,
    free_ports,
    running,
    settings_text,
    twistd,
)
from tests.integration.signed import signed

pytestmark = pytest.mark.integration
AGENTS = 60


class Deployment:
    """One ServiceDiscovery and two AgentCenters; each has a folder of its own, the keys are one."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.keys = folder / "keys"
        sd, manager, *ports = free_ports(6)
        self.sd = sd
        self.http = [ports[1], ports[3]]
        self._registry = self._start("sd", "sd", ports[:2], manager)
        self.centers = [self.center(number, ports, manager) for number in (0, 1)]
        self._restart: Callable[[int], Server] = lambda n: self.center(n, ports, manager)

    def center(self, number: int, ports: list[int], manager: int) -> Server:
        """Start one AgentCenter."""
        return self._start(f"ac{number}", "ac", ports[2 * number : 2 * number + 2], manager)

    def restart(self, number: int) -> None:
        """Start it again."""
        self.centers[number] = self._restart(number)

    def _start(self, name: str, role: str, ports: list[int], manager: int) -> Server:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        text = settings_text([*ports, self.sd, manager], f'keys_dir = "{self.keys}"')
        (folder / "elkeid.toml").write_text(text)
        return self._stack.enter_context(running(twistd("--role", role), folder))

    def connected(self, number: int) -> int:
        """Agents at one of them."""
        status, answer = signed(self.keys, self.http[number], "GET", "/conn/count")
        assert status == 200
        count: int = answer["data"]
        return count

    def wait_for(self, number: int, count: int) -> None:
        """Until one of them has so many agents."""
        deadline = time.monotonic() + DEADLINE
        while self.connected(number) != count and time.monotonic() < deadline:
            time.sleep(0.2)
        assert self.connected(number) == count


def test_rolling_restart_loses_nothing(tmp_path: Path) -> None:
    """One by a signal, one by ``/admin/drain``: what agents sent is confirmed, and stored once."""
    report = tmp_path / "sent.jsonl"
    with ExitStack() as stack:
        both = Deployment(tmp_path, stack)
        load = ["--agents", str(AGENTS), "--rate", "40", "--duration", "200", "--spread", "2"]
        run = subprocess.Popen(
            [str(BIN / "elkeid"), "fleet", "run", *load, "--report", str(report)],
            cwd=tmp_path / "sd",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stack.callback(run.kill)
        deadline = time.monotonic() + DEADLINE
        while sum(before := [both.connected(0), both.connected(1)]) < AGENTS:
            assert time.monotonic() < deadline, before
            time.sleep(0.2)
        time.sleep(3)  # under load
        assert min(before) > AGENTS / 4  # both had their share

        assert both.centers[0].stop() == -signal.SIGTERM
        both.wait_for(1, AGENTS)  # they were sent there, none waits for the one that is gone
        both.restart(0)

        status, answer = signed(
            both.keys, both.http[1], "POST", "/admin/drain", {"deadline": 8, "then": "exit"}
        )
        assert (status, answer["data"]["state"]) == (200, "draining")
        again, _ = signed(both.keys, both.http[1], "POST", "/admin/drain", {})
        assert again == 409
        assert both.centers[1].process.wait(20) == 0
        both.wait_for(0, AGENTS)
        both.restart(1)

        time.sleep(3)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=90)
        assert run.returncode == 0, said
        for center in both.centers:
            assert center.stop() == -signal.SIGTERM
            assert not any("Traceback" in line for line in center.lines)
            assert not any("did not end in time" in line for line in center.lines)
    agents = list(read_report(report))
    ids = [agent.agent_id for agent in agents]
    found = [
        record
        for number in (0, 1)
        for record in stored_records(tmp_path / f"ac{number}" / "data" / "eventlog", ids, 0)
    ]
    verdict = compare(agents, found)
    assert verdict.good, verdict.text()
    assert verdict.agents == AGENTS
    assert verdict.streams >= AGENTS + AGENTS  # each moved at least once
    assert verdict.lost_unconfirmed == 0, verdict.text()
    assert verdict.stored == verdict.sent
