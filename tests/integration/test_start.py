"""Starting and stopping as operators do: real processes, real ports, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.servers import (
    BIN,
    DEADLINE,
    eventually,
    free_ports,
    running,
    settings_text,
    twistd,
)

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = {
    "twistd": twistd("--role=sd"),
    "python -m twisted": [sys.executable, "-m", "twisted", "elkeid", "--role=sd"],
    "twistd -y": [str(BIN / "twistd"), "--pidfile=", "-ny", str(ROOT / "tac" / "sd.tac")],
}
programs = pytest.mark.parametrize("argv", PROGRAMS.values(), ids=PROGRAMS)
pytestmark = pytest.mark.integration


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with settings on free ports."""
    (tmp_path / "elkeid.toml").write_text(settings_text(free_ports(4)))
    return tmp_path


def ended(argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that should end by itself."""
    return subprocess.run(
        argv,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
        stdin=subprocess.DEVNULL,
    )


@programs
def test_start_and_sigterm(folder: Path, argv: list[str]) -> None:
    """Each way of starting serves, and ends by SIGTERM as that signal's."""
    with running(argv, folder) as server:
        assert server.stop() == -signal.SIGTERM
    assert not any("Traceback" in line for line in server.lines)


def test_all_roles(folder: Path) -> None:
    """All roles in one process: one line tells every address; secrets are private and unsaid."""
    with running([str(BIN / "twistd"), "--pidfile=", "-ny", str(ROOT / "tac/all.tac")], folder) as (
        server
    ):
        line = server.wait_for("ready: ")
        for purpose in ("agents 127.0.0.1:", "gateway API https://", "discovery ", "manager "):
            assert purpose in line
        begun = time.monotonic()
        assert server.stop() == -signal.SIGTERM
        assert time.monotonic() - begun < 10
    written = "\n".join(server.lines)
    keys = folder / "keys"
    assert {p.stat().st_mode & 0o777 for p in keys.iterdir()} == {0o600}
    assert keys.stat().st_mode & 0o777 == 0o700
    assert (keys / "admin-password").read_text().strip() not in written
    assert "PRIVATE" not in written
    for line in (keys / "secrets.toml").read_text().splitlines():
        if "=" in line:
            assert line.split('"')[1] not in written


def test_killed_and_started_again(folder: Path) -> None:
    """After kill -9 the same command starts again, with the same keys."""
    with running(twistd(), folder) as server:
        server.stop(signal.SIGKILL)
    before = (folder / "keys" / "ca.crt").read_bytes()
    with running(twistd(), folder) as server:
        assert server.stop() == -signal.SIGTERM
    assert (folder / "keys" / "ca.crt").read_bytes() == before


@programs
def test_port_in_use(folder: Path, argv: list[str]) -> None:
    """A taken port is one sentence on stderr and status 1, however we were started."""
    with running(twistd("--role=sd"), folder):
        done = ended(argv, folder)
    assert done.returncode == 1
    (told,) = done.stderr.splitlines()
    assert told.startswith("elkeid: discovery.port: ")
    assert "Traceback" not in done.stdout


@programs
def test_missing_keys(tmp_path: Path, argv: list[str]) -> None:
    """A process that may not make keys says what to do, with status 1, and writes nothing."""
    (tmp_path / "elkeid.toml").write_text(
        '[server]\nadvertise = "192.0.2.1"\n[discovery]\nmembers = ["192.0.2.2:8088"]\n'
    )
    done = ended(argv, tmp_path)
    assert done.returncode == 1
    (told,) = done.stderr.splitlines()
    assert "secrets.toml is missing" in told
    assert "elkeid keys export sd" in told
    assert [path.name for path in tmp_path.iterdir()] == ["elkeid.toml"]


@programs
def test_faulty_settings(tmp_path: Path, argv: list[str]) -> None:
    """Every fault in the settings, one a line, and status 1, however we were started."""
    (tmp_path / "elkeid.toml").write_text("[manager]\nport = 0\n[eventlog]\nfysnc = 1\n")
    done = ended(argv, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "manager.port: must be a whole number, 1 to 65535",
        "eventlog.fysnc: unknown setting",
    ]


@programs
def test_json_log(tmp_path: Path, argv: list[str]) -> None:
    """With log_format json every line that the log holds is an object, from first to last."""
    (tmp_path / "elkeid.toml").write_text(settings_text(free_ports(4), 'log_format = "json"'))
    with running(argv, tmp_path) as server:
        server.stop()
    lines = [line for line in server.lines if "[-] Load" not in line]  # printed while there is
    messages = [json.loads(line)["message"] for line in lines]  # no log yet
    assert any(message.startswith("ready: ") for message in messages)
    assert "Server Shut Down." in messages or "Main loop terminated." in messages


def test_welcome(folder: Path) -> None:
    """--welcome prints a line that logs in; into a file or pipe, the password itself is not."""
    with running(twistd("--welcome"), folder, "log in: ") as server:
        line = server.wait_for("log in: ")
        reply = subprocess.run(
            ["sh", "-c", line.split("log in: ")[1]],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE,
        )
        assert json.loads(reply.stdout)["code"] == 0
        server.stop()
    password = (folder / "keys" / "admin-password").read_text().strip()
    assert password not in "\n".join(server.lines)


def test_in_the_background(folder: Path) -> None:
    """Without -n it becomes a daemon with a pid file and a log file, and stops by its pid."""
    argv = [str(BIN / "twistd"), "--pidfile=e.pid", "--logfile=e.log", "elkeid", "--role=sd"]
    assert ended(argv, folder).returncode == 0
    pid = int((folder / "e.pid").read_text())
    log = folder / "e.log"
    eventually(lambda: "ready: " in log.read_text(), DEADLINE)
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not (folder / "e.pid").exists(), DEADLINE)
    assert "Traceback" not in log.read_text()
