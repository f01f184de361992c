"""All agents come back at once: how soon, and how late the gateway's other work is meanwhile.

    python -m bench.storm [--agents N]

AgentCenter is killed under its simulated agents and started again at once. They notice together,
wait their 5 s together, and dial together; one that finds no usable address seven times in a row
exits. Targets: all back within 30 s of the kill, nobody exits, callbacks of the gateway's reactor
late by at most 250 ms at p99.9 and 1 s at worst.

The agents take as much CPU as the gateway: on few cores the figures include their slowness, which
is printed beside them.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from elkeid.agentcenter.service import AgentCenterRole
from elkeid.fleet.report import read_report
from elkeid.tap import ROLES

from .gateway import InvalidRun, free_port

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PROBE_SECONDS = 0.01  # a callback that is due so often tells how late others would be
STARTS_PER_SECOND = 100
START_SECONDS = 30.0  # for the gateway to run
LAG_SECONDS = 5.0  # of the simulator; beyond, its agents' dials end for its own sake
BACK_SECONDS = 120.0  # until a run is given up


class WatchedRole(AgentCenterRole):
    """AgentCenter with a probe in its reactor that writes down what it sees."""

    async def start(self) -> None:
        """Start, then watch."""
        self._late: list[float] = []
        self._wanted = int(os.environ["STORM_AGENTS"])
        self._file = Path(os.environ["STORM_FILE"])
        self._back: float | None = None
        await super().start()
        self._due = self._reactor.seconds() + PROBE_SECONDS
        self._probe_call = self._reactor.callLater(PROBE_SECONDS, self._probe)
        self._tell_at = 0.0

    def _probe(self) -> None:
        now = self._reactor.seconds()
        if self._back is None and len(self.gateway.links):
            self._late.append(now - self._due)
        if self._back is None and len(self.gateway.table) >= self._wanted:
            self._back = time.time()
            self._tell()
        elif now >= self._tell_at:
            self._tell_at = now + 1
            self._tell()
        self._due = self._reactor.seconds() + PROBE_SECONDS
        self._probe_call = self._reactor.callLater(PROBE_SECONDS, self._probe)

    def _tell(self) -> None:
        late = sorted(self._late) or [0.0]
        told = {
            "agents": len(self.gateway.table),
            "back": self._back,
            "samples": len(self._late),
            "p99.9": late[min(len(late) - 1, int(len(late) * 0.999))],
            "worst": late[-1],
        }
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(told))
        part.rename(self._file)

    async def stop(self) -> None:
        """Watch no more."""
        self._probe_call.cancel()
        await super().stop()


def serve() -> None:
    """Run AgentCenter with the probe, in place of ``twistd``."""
    from twisted.scripts.twistd import run  # noqa: PLC0415 - installs the reactor

    ROLES["ac"] = "bench.storm.WatchedRole"
    sys.argv = ["twistd", "-n", "--pidfile=", "elkeid", "--role", "ac"]
    run()


class Storm:
    """One run in a folder of its own."""

    def __init__(self, folder: Path, agents: int) -> None:
        self.folder, self.agents = folder, agents
        self.ports = [free_port() for _ in range(4)]
        (folder / "elkeid.toml").write_text(
            f"[agentcenter]\ngrpc_port = {self.ports[0]}\nhttp_port = {self.ports[1]}\n"
            f"[discovery]\nport = {self.ports[2]}\n[manager]\nport = {self.ports[3]}\n"
        )
        self.file = folder / "storm.json"
        self.processes: list[subprocess.Popen[bytes]] = []

    def spawn(self, *argv: str) -> "subprocess.Popen[bytes]":
        """Start a process whose output goes to a file."""
        env = {**os.environ, "STORM_AGENTS": str(self.agents), "STORM_FILE": str(self.file)}
        env["PYTHONPATH"] = str(ROOT)
        with (self.folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                argv, cwd=self.folder, env=env, stdout=output, stderr=subprocess.STDOUT
            )
        self.processes.append(process)
        return process

    def gateway(self) -> "subprocess.Popen[bytes]":
        """Start AgentCenter."""
        self.file.unlink(missing_ok=True)
        return self.spawn(sys.executable, "-c", "from bench.storm import serve; serve()")

    def await_start(self) -> None:
        """Until the gateway runs."""
        end = time.monotonic() + START_SECONDS
        while not self.file.exists():
            if time.monotonic() > end:
                raise InvalidRun(f"no gateway: {(self.folder / 'output.txt').read_text()[-2000:]}")
            time.sleep(0.1)

    def await_all(self) -> dict[str, Any]:
        """Until every agent is there; what the probe saw."""
        end = time.monotonic() + BACK_SECONDS + self.agents / STARTS_PER_SECOND
        while time.monotonic() < end:
            time.sleep(0.1)
            told: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
            if told.get("back"):
                return told
        said = (self.folder / "output.txt").read_text()[-2000:]
        raise InvalidRun(f"not all agents came: {told.get('agents')}\n{said}")

    def run(self) -> dict[str, Any]:
        """Let all come, kill, let all come back."""
        subprocess.run([BIN / "elkeid", "keys", "init"], cwd=self.folder, check=True)
        self.spawn(str(BIN / "twistd"), "-n", "--pidfile=", "elkeid", "--role", "sd")
        first = self.gateway()
        self.await_start()
        fleet = self.spawn(
            str(BIN / "elkeid"), "fleet", "run", "--agents", str(self.agents), "--rate", "0.1",
            "--sd", f"127.0.0.1:{self.ports[2]}", "--address", f"127.0.0.1:{self.ports[0]}",
            "--report", "sent.jsonl", "--json",
        )  # fmt: skip
        self.await_all()
        first.kill()
        first.wait()
        killed = time.time()
        self.gateway()
        told = self.await_all()
        time.sleep(3)
        fleet.send_signal(signal.SIGINT)
        fleet.wait(120)
        said = (self.folder / "output.txt").read_text().splitlines()
        summary = json.loads(next(line for line in reversed(said) if line.startswith("{")))
        if summary["worst_lag"] > LAG_SECONDS:
            raise InvalidRun(
                f"the simulator stood still for {summary['worst_lag']:.1f} s: "
                "this machine is too busy, or has too few cores for so many --agents"
            )
        reports = list(read_report(self.folder / "sent.jsonl"))
        if len(reports) != self.agents:
            raise InvalidRun(f"{len(reports)} agents reported")
        return {
            **told,
            "lag": summary["worst_lag"],
            "seconds": told["back"] - killed,
            "exits": sum(agent.exits for agent in reports),
            "failed_rounds": sum(agent.failed_rounds for agent in reports),
        }

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def main() -> None:
    """Run once and print what came of it."""
    parser = argparse.ArgumentParser(description="A restart under all agents.")
    parser.add_argument("--agents", type=int, default=5000)
    agents = parser.parse_args().agents
    with tempfile.TemporaryDirectory() as folder:
        storm = Storm(Path(folder), agents)
        try:
            got = storm.run()
        except InvalidRun as error:
            raise SystemExit(f"invalid run: {error}") from error
        finally:
            storm.end()
    print(f"{agents:,} agents back {got['seconds']:.1f} s after the kill (target 30)")
    print(f"exits: {got['exits']} (target 0); rounds without an address: {got['failed_rounds']:,}")
    print(
        f"callbacks late by {got['p99.9'] * 1000:.0f} ms at p99.9 (target 250), "
        f"{got['worst'] * 1000:.0f} ms at worst (target 1000), {got['samples']:,} samples"
    )
    print(f"the simulator itself was late by at most {got['lag']:.1f} s")


if __name__ == "__main__":
    main()
