"""CPU and memory of the gateway with its event log, against the targets in README.md.

    python -m bench.gateway [--quick] [ROW ...]

Starts AgentCenter as a process of its own on loopback, drives it with agentswarm (grpc-go,
`make tools`), and reads the process's CPU time from /proc. Rows: saturated-50, saturated-5,
saturated-1, paced, paced-lean, accept, memory, rate, crowd. A row is printed only when its run
was valid: nothing failed and the log holds exactly what was confirmed. Where the generator was
the bottleneck it says so. `rate`, `crowd` and the saturated rows of small batches are driven by
leanswarm, since agentswarm takes more than a core for them; `paced-lean` is `paced` driven by it,
to compare the two.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define

ROOT = Path(__file__).resolve().parent.parent
REFERENCE_YARDSTICK = 1.04  # s of CPU on the machine of the targets
TICK = os.sysconf("SC_CLK_TCK")


class InvalidRun(Exception):
    """The run says nothing about the gateway."""


YARDSTICK = "s=0\nfor i in range(10_000_000): s += i*i & 7"


def yardstick() -> float:
    """CPU seconds of a fixed loop at module level: figures scale by it between machines."""
    best = 1e9
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", YARDSTICK], check=True)
        after = os.times()
        best = min(best, after.children_user - before.children_user)
    return best


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def generator(name: str = "agentswarm") -> str:
    """Where a load generator is."""
    found = shutil.which(name, path=f"{ROOT / '.tools/bin'}:{os.environ['PATH']}")
    if found is None:
        raise SystemExit(f"{name} is missing: run `make tools`")
    return found


def cpu_of(pid: int) -> float:
    """User and system CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@define
class Gateway:
    """A running AgentCenter."""

    process: "subprocess.Popen[bytes]"
    grpc_port: int
    http_port: int
    keys: Path
    data: Path

    def cpu(self) -> float:
        """User and system CPU seconds so far."""
        return cpu_of(self.process.pid)

    def rss(self) -> int:
        """Resident bytes."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
        raise InvalidRun("no Rss")

    def metrics(self) -> dict[str, float]:
        """Series and values of /metrics."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url = f"https://127.0.0.1:{self.http_port}/metrics"
        with urllib.request.urlopen(url, context=context, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {k: float(v) for k, _, v in (x.rpartition(" ") for x in lines if x[:1] != "#")}

    def appended(self) -> int:
        """Records in the log so far."""
        return int(
            sum(v for k, v in self.metrics().items() if k.startswith("elkeid_log_appended_total"))
        )


@contextmanager
def gateway(more: str = "") -> Iterator[Gateway]:
    """Start AgentCenter with fresh keys, an empty log and ``more`` settings; stop it in the end."""
    with tempfile.TemporaryDirectory(prefix="elkeid-bench-") as name:
        base = Path(name)
        grpc_port, http_port, sd_port = free_port(), free_port(), free_port()
        (base / "elkeid.toml").write_text(
            f"[agentcenter]\ngrpc_port = {grpc_port}\nhttp_port = {http_port}\n"
            # A few agents send what thousands would: their own budgets must not count.
            "agent_records_rate = 1e9\nagent_records_burst = 1000000000\n"
            "agent_bytes_rate = 1e12\nagent_bytes_burst = 1099511627776\n"
            f"[discovery]\nport = {sd_port}\nmembers = ['127.0.0.1:{sd_port}']\n{more}"
        )
        bin_dir = Path(sys.executable).parent
        command = [
            str(bin_dir / "twistd"),
            "--nodaemon",
            "--pidfile=",
            "elkeid",
            "--role=ac",
            "--role=sd",
        ]
        with (base / "server.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=base, stdout=log, stderr=log)
        server = Gateway(process, grpc_port, http_port, base / "keys", base / "data")
        try:
            for _ in range(300):
                time.sleep(0.1)
                if process.poll() is not None:
                    raise SystemExit((base / "server.log").read_text()[-2000:])
                try:
                    socket.create_connection(("127.0.0.1", grpc_port), 1).close()
                    break
                except OSError:
                    continue
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def swarm_command(server: Gateway, *arguments: str, program: str = "agentswarm") -> list[str]:
    """What starts a generator against this gateway."""
    address = f"127.0.0.1:{server.grpc_port}"
    return [generator(program), "-addr", address, "-certs", str(server.keys), *arguments]


def fleet_command(server: Gateway, *arguments: str) -> list[str]:
    """What starts simulated agents against this gateway; they send heartbeats and no records."""
    command = [str(Path(sys.executable).parent / "elkeid"), "--config"]
    command += [str(server.keys.parent / "elkeid.toml"), "fleet", "run", "--rate", "0", "--json"]
    return [*command, *arguments]


def report_of(out: bytes, err: bytes) -> dict[str, Any]:
    """What a generator told at its end; a run that one of its agents noticed is invalid."""
    try:
        report: dict[str, Any] = json.loads(out)
    except json.JSONDecodeError:
        raise InvalidRun(f"no report: {err.decode()[-500:]}") from None
    for fault in ("failed", "ended_early", "unconfirmed", "reconnects"):
        if report[fault]:
            raise InvalidRun(f"{fault}: {report[fault]}; {err.decode()[-300:]}")
    return report


def swarm(server: Gateway, *arguments: str, program: str = "agentswarm") -> dict[str, Any]:
    """Run a generator; return its report with the CPU seconds it took itself."""
    command = swarm_command(server, *arguments, program=program)
    before = os.times()
    done = subprocess.run(command, capture_output=True, check=False, timeout=900)
    after = os.times()
    if done.returncode:
        raise InvalidRun(done.stderr.decode()[-500:])
    report = report_of(done.stdout, done.stderr)
    report["cpu"] = (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
    return report


def connected_swarm(
    server: Gateway, agents: int, *arguments: str, program: str
) -> "subprocess.Popen[bytes]":
    """Start a generator; return when all its agents are connected."""
    command = swarm_command(server, "-agents", str(agents), *arguments, program=program)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while server.metrics().get("elkeid_ac_grpc_conn_count", 0) < agents:
        time.sleep(0.5)
        if child.poll() is not None:
            raise InvalidRun(f"{program} ended early")
    return child


def saturated(per_batch: int, total: int) -> tuple[float, str]:
    """Microseconds of CPU a record, as fast as the gateway takes them.

    Of small batches agentswarm cannot make enough on two cores.
    """
    program = "agentswarm" if per_batch >= 50 else "leanswarm"
    with gateway() as server:
        swarm(server, "-agents", "50", "-records", str(per_batch), "-total", str(per_batch * 2000))
        start_records, start = server.appended(), server.cpu()
        load = ["-agents", "200", "-records", str(per_batch), "-total", str(total), "-every", "0"]
        report = swarm(server, *load, program=program)
        wall = report["send_s"]
        used, records = server.cpu() - start, server.appended() - start_records
        if records != report["confirmed_records"] or records != report["sent_records"]:
            raise InvalidRun(f"log holds {records}, sent {report['sent_records']}")
        accept = 200 * 1.3e-3  # their handshakes are not the records' cost
        share = used / wall
        note = f"{records / wall:,.0f} records/s, {share:.0%} of a core"
        if share < 0.7:
            # The generator takes the rest of the machine. Fewer messages a turn cost more each,
            # so the figure is an upper bound of the saturated one.
            note += "; generator at its limit, so an upper bound"
        return (used - accept) / records * 1e6, note


def steady(
    agents: int, every_ms: int, per_batch: int, seconds: int, program: str = "agentswarm"
) -> tuple[float, str]:
    """Microseconds of CPU a message, each agent sending one batch at fixed times."""
    with gateway() as server:
        ramp = max(2, agents // 200)  # seconds until all are connected
        total = agents * per_batch * (seconds + ramp) * 1000 // every_ms
        load = ["-records", str(per_batch), "-total", str(total), "-every", f"{every_ms}ms"]
        if program == "leanswarm":
            load += ["-beat", "60s"]
        child = connected_swarm(server, agents, "-dial", "32", *load, program=program)
        time.sleep(2)
        before, start, at = server.appended(), server.cpu(), time.monotonic()
        generated = cpu_of(child.pid)
        time.sleep(max(seconds - 6, 6))
        used, passed = server.cpu() - start, time.monotonic() - at
        messages = (server.appended() - before) / per_batch
        generated = cpu_of(child.pid) - generated
        longest = server.metrics()["elkeid_gc_longest_pause_seconds"]
        report = report_of(*child.communicate(timeout=300))
        if server.appended() != report["confirmed_records"]:
            raise InvalidRun(f"log holds {server.appended()}, confirmed {report}")
        wanted, rate = agents * 1000 / every_ms, messages / passed
        if not 0.9 * wanted <= rate <= 1.05 * wanted:
            raise InvalidRun(f"{rate:,.0f} messages/s instead of {wanted:,.0f}")
        note = f"{rate:,.0f} messages/s, {used / passed:.0%} of a core"
        note += f" (the generator {generated / passed:.0%})"
        return used / messages * 1e6, f"{note}, longest collection {longest * 1e3:.0f} ms"


def crowd(agents: int, seconds: int) -> tuple[float, str]:
    """How much dearer a message is from so many agents than from a tenth, at the same rate."""
    few, _ = steady(agents // 10, 100, 10, seconds, "leanswarm")
    many, note = steady(agents, 1000, 10, seconds, "leanswarm")
    return many / few, f"{many:.1f} us a message of 10 records, {few:.1f} from a tenth; {note}"


def accept(agents: int) -> tuple[float, str]:
    """Milliseconds of CPU to accept an agent: TCP, TLS, its stream, its first heartbeat."""
    with gateway() as server:
        swarm(server, "-agents", "50", "-total", "0")
        start = server.cpu()
        command = swarm_command(server, "-agents", str(agents), "-total", "0", "-hold", "8s")
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        connected, used, deadline = 0.0, 0.0, time.monotonic() + 120
        while connected < agents and time.monotonic() < deadline and child.poll() is None:
            time.sleep(1)
            used = server.cpu() - start
            connected = server.metrics()["elkeid_ac_grpc_conn_count"]
        out, err = child.communicate(timeout=180)
        report = json.loads(out)
        if connected < agents or report["failed"] or report["ended_early"]:
            raise InvalidRun(f"{connected:.0f} of {agents} agents; {err.decode()[-300:]}")
        return used / agents * 1e3, f"{agents:,} agents"


def idle(agents: int, hold: int) -> tuple[float, str]:
    """KiB of memory of an idle agent, with full heartbeats of its own and of six plugins."""
    with gateway() as server:
        swarm(server, "-agents", "50", "-total", "0")
        time.sleep(2)
        rss = server.rss()
        command = fleet_command(server, "--agents", str(agents), "--duration", str(hold))
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + hold - 5
        while time.monotonic() < deadline and child.poll() is None:
            time.sleep(1)
        grown = server.rss() - rss
        metrics = server.metrics()
        connected = metrics["elkeid_ac_grpc_conn_count"]
        plugins = metrics.get('elkeid_ac_output_data_type_count{data_type="1001"}', 0)
        _, err = child.communicate(timeout=120)
        if connected != agents or child.returncode or plugins < 6 * agents:
            raise InvalidRun(
                f"{connected:.0f} of {agents} agents, {plugins:.0f} plugin heartbeats; "
                f"{err.decode()[-300:]}"
            )
        return grown / agents / 1024, f"{agents:,} agents, 6 plugins each"


TARGETS = {
    "saturated-50": 2.1,
    "saturated-5": 3.8,
    "saturated-1": 12,
    "paced": 36,
    "accept": 1.2,
    "memory": 56,
    "rate": 36,
    "crowd": 1.3,
}


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", default=[*TARGETS])
    parser.add_argument("--quick", action="store_true", help="a tenth of the load")
    options = parser.parse_args()
    share = 10 if options.quick else 1
    loop = yardstick()
    scale = loop / REFERENCE_YARDSTICK
    print(
        f"yardstick {loop:.2f} s (targets' machine {REFERENCE_YARDSTICK} s): targets x {scale:.2f}"
    )
    print(f"{'row':14} {'measured':>12} {'target here':>12} {'ratio':>6}  note")

    def show(row: str, unit: str, value: float, target: float, note: str) -> None:
        target *= scale
        figures = f"{value:9.2f} {unit} {target:9.2f} {unit} {value / target:6.2f}"
        print(f"{row:14} {figures}  {note}", flush=True)

    for row in options.rows:
        try:
            if row.startswith("saturated-"):
                per = int(row.partition("-")[2])
                total = {50: 2_000_000, 5: 1_000_000, 1: 400_000}[per] // share
                value, note = saturated(per, total)
                show(row, "us", value, TARGETS[row], note)
            elif row == "paced":
                value, note = steady(1000, 100, 1, 30 if share == 1 else 12)
                show(row, "us", value, TARGETS[row], note)
            elif row == "paced-lean":
                value, note = steady(1000, 100, 1, 30 if share == 1 else 12, "leanswarm")
                show(row, "us", value, TARGETS["paced"], note)
            elif row == "rate":  # 20,000 messages a second in one process
                value, note = steady(2000 // share, 100, 1, 30 if share == 1 else 12, "leanswarm")
                show(row, "us", value, TARGETS[row], note)
            elif row == "crowd":  # 10,000 agents, one message of 10 records a second each
                value, note = crowd(10_000 // share, 30 if share == 1 else 12)
                print(f"{row:14} {value:8.2f} x   {1.3:8.2f} x   {value / 1.3:6.2f}  {note}")
            elif row == "accept":
                value, note = accept(5000 // share)
                show(row, "ms", value, TARGETS[row], note)
            elif row == "memory":
                agents = 5000 // share  # they start at 100 a second, then beat every minute
                value, note = idle(agents, agents // 100 + 75)
                print(f"{row:14} {value:8.1f} KiB {56:8.1f} KiB {value / 56:6.2f}  {note}")
            else:
                raise SystemExit(f"no row {row}")
        except InvalidRun as error:
            print(f"{row:14} invalid run: {error}", flush=True)


if __name__ == "__main__":
    main()
