"""CPU of one ``/registry/detail``, against the targets in README.md.

    python -m bench.discovery [--seconds 10]

Starts ServiceDiscovery as a process of its own on loopback, registers 200 gateways, asks as
agents do with ``wrk`` (connections kept alive) and ``ab`` (a new connection each), and reads the
process's CPU time from /proc. A row is printed only when every answer was 200 and whole.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from bench.gateway import REFERENCE_YARDSTICK, TICK, InvalidRun, free_port, yardstick
from elkeid.wire.signature import sign

INSTANCES = 200
QUERY = "/registry/detail?name=hids_svr_grpc&count=10"
KEPT_ALIVE, NEW_CONNECTION = 80.0, 130.0  # µs of CPU on the machine of the targets
START_SECONDS = 30.0


def cpu(pid: int) -> float:
    """User and system CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def start(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """ServiceDiscovery that says it is ready."""
    settings = folder / "elkeid.toml"
    settings.write_text(f"[discovery]\nport = {port}\nread_rate = 1000000\n")
    twistd = Path(sys.executable).with_name("twistd")
    argv = [twistd, "-n", "--pidfile=", "elkeid", "--config", settings, "--role", "sd"]
    with (folder / "sd.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
                return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise InvalidRun((folder / "sd.log").read_text())


def register(folder: Path, port: int) -> None:
    """Gateways with different loads, as their clients tell them."""
    secrets = (folder / "keys" / "secrets.toml").read_text()
    found = re.search(r'^"?([0-9a-z_-]+)"?\s*=\s*"([^"]+)"', secrets, re.MULTILINE)
    assert found is not None
    ak, sk = found.groups()
    for number in range(INSTANCES):
        extra = {"limit": 10_000, "cpu": 0.1, "draining": False, "renew": 5}
        ip = f"10.0.{number // 100}.{number % 100}"
        body = json.dumps(
            {"name": "hids_svr_grpc", "ip": ip, "port": 6751, "weight": number, "extra": extra}
        ).encode()
        now = str(int(time.time()))
        path = "/registry/register"
        headers = {
            "AccessKey": ak,
            "TimeStamp": now,
            "Signature": sign("POST", path, "", ak, sk, now, body),
        }
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200


def program(name: str, package: str) -> str:
    """Where a load generator is."""
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is missing: apt-get install {package}")
    return found


def kept_alive(url: str, seconds: int) -> int:
    """Ask over connections that stay open; the number of answers."""
    wrk = program("wrk", "wrk")
    argv = [wrk, "-t1", "-c16", f"-d{seconds}s", url]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise InvalidRun(text)
    found = re.search(r"(\d+) requests in", text)
    if found is None:
        raise InvalidRun(text)
    return int(found[1])


def new_connections(url: str, seconds: int) -> int:
    """Ask over a new connection each time; the number of answers."""
    ab = program("ab", "apache2-utils")
    argv = [ab, "-q", "-c", "16", "-t", str(seconds), "-n", "1000000", "-l", url]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    failed = re.search(r"Failed requests: +(\d+)", text)
    found = re.search(r"Complete requests: +(\d+)", text)
    if failed is None or found is None or failed[1] != "0" or "Non-2xx" in text:
        raise InvalidRun(text)
    return int(found[1])


def main() -> None:
    """Print both rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=10, help="length of each run")
    seconds = parser.parse_args().seconds
    stick = yardstick()
    scale = stick / REFERENCE_YARDSTICK
    print(f"yardstick {stick:.2f} s, targets scaled by {scale:.2f}; {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        process = start(folder, port)
        try:
            register(folder, port)
            url = f"http://127.0.0.1:{port}{QUERY}"
            for what, target, ask in (
                ("kept alive", KEPT_ALIVE, kept_alive),
                ("new connection", NEW_CONNECTION, new_connections),
            ):
                ask(url, 1)
                before = cpu(process.pid)
                answers = ask(url, seconds)
                each = (cpu(process.pid) - before) / answers * 1e6
                wanted = target * scale
                print(
                    f"{what}: {each:.0f} µs of CPU an answer, target {wanted:.0f}, "
                    f"ratio {each / wanted:.2f} ({answers / seconds:.0f}/s)"
                )
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
