"""The process around the roles: log lines, limits, exit status, the first words to a person."""

import io
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.internet.tcp import Port
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    Logger,
    LogLevelFilterPredicate,
    LogPublisher,
    textFileLogObserver,
)
from twisted.python.failure import Failure

from elkeid import process, welcome
from elkeid.config import parse
from elkeid.logging import FLOODING, LogSetup, as_json
from elkeid.process import CpuShare


class Log:
    """A log as twistd sets it up after the service was made."""

    def __init__(self, level: str, form: str) -> None:
        self.out = io.StringIO()
        self.publisher = LogPublisher()
        self.publisher.addObserver(LogSetup(level, form, self.publisher))
        self.publisher.addObserver(textFileLogObserver(self.out))
        self.logger = Logger("elkeid.part", observer=self.publisher)

    @property
    def lines(self) -> list[str]:
        """What was written."""
        return self.out.getvalue().splitlines()


@pytest.mark.parametrize(("level", "count"), [("debug", 5), ("info", 4), ("warn", 3), ("error", 2)])
@pytest.mark.parametrize("form", ["text", "json"])
def test_level(level: str, count: int, form: str) -> None:
    """Events below the level of the settings are not written."""
    log = Log(level, form)
    for name in ("debug", "info", "warn", "error", "critical"):
        getattr(log.logger, name)("it is {x}", x=name)
    assert len(log.lines) == count
    assert "it is critical" in log.lines[-1]


def test_text() -> None:
    """A text line has time, place, level and message."""
    log = Log("info", "text")
    log.logger.warn("port {port} is slow", port=6751)
    (line,) = log.lines
    assert line.endswith("[elkeid.part#warn] port 6751 is slow")


def test_json() -> None:
    """A JSON line has the same, whatever is in the message; nothing else of the event."""
    log = Log("info", "json")
    log.logger.info("from {peer}", peer='a"\n\x00é', password="not shown")
    (line,) = log.lines
    fields = json.loads(line)
    assert fields.pop("time").endswith("+00:00")
    assert fields == {"level": "info", "logger": "elkeid.part", "message": 'from a"\n\x00é'}
    assert "not shown" not in line


def test_json_failure() -> None:
    """A failure is one line too, with its traceback."""
    log = Log("info", "json")
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        log.logger.failure("stop failed", Failure())
    (line,) = log.lines
    fields = json.loads(line)
    assert (fields["level"], fields["message"]) == ("critical", "stop failed")
    assert "ZeroDivisionError: by zero" in fields["traceback"]


def test_json_of_an_event_without_anything() -> None:
    """Even an event that lacks every usual field becomes a line."""
    assert json.loads(as_json({}))["message"] == ""


def test_observer_behind_a_filter() -> None:
    """``python -m twisted`` filters by a level of its own first; ours counts as well."""
    out = io.StringIO()
    publisher = LogPublisher()
    publisher.addObserver(LogSetup("warn", "json", publisher))
    inner = FileLogObserver(out, lambda event: "twisted's own form\n")
    publisher.addObserver(FilteringLogObserver(inner, [LogLevelFilterPredicate()]))
    logger = Logger("elkeid.part", observer=publisher)
    logger.info("hidden")
    logger.warn("shown")
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["shown"]


def test_ports_without_file_descriptors_do_not_fill_the_log() -> None:
    """Twisted writes three lines for each connection that it closes then: a few of them do."""
    log = Log("info", "json")
    assert f"{Port.__module__}.{Port.__name__}" == FLOODING
    for second in range(100):
        for name, text in ((FLOODING, "no file descriptor"), ("elkeid.part", "ours")):
            log.publisher({"log_namespace": name, "log_format": text, "log_time": 1000.0 + second})
    said = [json.loads(line)["message"] for line in log.lines]
    assert (said.count("no file descriptor"), said.count("ours")) == (6, 100)


def in_own_process(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_open_files_are_raised() -> None:
    """The soft limit on open files becomes the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        assert process.raise_open_files() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_failed_process_ends_with_1() -> None:
    """A failed start ends with status 1 after the program that ran us came to its own end."""
    done = in_own_process(
        "from elkeid import process; process.tell_operator('no keys; import them');"
        "process.fail_at_exit(); print('own end')"
    )
    assert done.returncode == 1
    assert done.stdout == "own end\n"
    assert done.stderr == "elkeid: no keys; import them\n"


def test_later_signals_change_nothing() -> None:
    """Who asks again for a stop under way does no harm, and causes no traceback."""
    done = in_own_process(
        "import os, signal; from elkeid import process; process.stop_once();"
        "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT); print('on')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_stuck_process_ends() -> None:
    """A thread that never returns cannot keep the process: it ends, and shows where it stood."""
    done = in_own_process(
        "import threading; from elkeid import process; process.end_by(0.2);threading.Event().wait()"
    )
    assert done.returncode not in (0, -signal.SIGTERM)
    assert "threading.py" in done.stderr


# --- the welcome ----------------------------------------------------------------------------


def test_welcome_on_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person at a terminal sees addresses, user, password, and a line to log in with."""
    monkeypatch.chdir(tmp_path)
    settings = parse({}, tmp_path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "admin-password").write_text("s3cret\n")
    shown = welcome.text(settings, ("sd", "ac", "manager"), with_password=True)
    for line in (
        "  agents       127.0.0.1:6751",
        "  gateway API  https://127.0.0.1:6752",
        "  discovery    http://127.0.0.1:8088",
        "  manager      http://127.0.0.1:6701",
    ):
        assert line in shown.splitlines()
    assert "admin, password s3cret " in shown
    assert (
        "curl -s -X POST http://127.0.0.1:6701/api/v1/user/login --data-raw "
        '"{\\"username\\":\\"admin\\",\\"password\\":\\"$(cat keys/admin-password)\\"}"'
    ) in shown


def test_welcome_line_is_good_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that logs in sends the password, as JSON, when pasted into a shell."""
    folder = tmp_path / "my data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "keys").mkdir()
    (folder / "keys" / "admin-password").write_text("s3cret\n")
    for where in (folder, tmp_path):
        monkeypatch.chdir(where)
        shown = welcome.text(parse({}, folder), ("manager",), with_password=False)
        assert "s3cret" not in shown
        line = shown.split("log in: ")[1].strip()
        done = subprocess.run(
            ["sh", "-c", f'curl() {{ for a; do last=$a; done; printf %s "$last"; }}\n{line}'],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == {"username": "admin", "password": "s3cret"}


def test_welcome_later(tmp_path: Path) -> None:
    """Once the first password was changed, none is shown."""
    shown = welcome.text(parse({}, tmp_path), ("manager",), with_password=True)
    assert "YOUR PASSWORD" in shown
    assert "admin-password" not in shown


def test_welcome_over_tls(tmp_path: Path) -> None:
    """Beyond loopback the line logs in over TLS and checks the server."""
    raw = {
        "server": {"advertise": "192.0.2.1"},
        "manager": {"listen": "0.0.0.0", "tls_port": 6702},
    }
    shown = welcome.text(parse(raw, tmp_path), ("manager",), with_password=False)
    assert "manager      https://0.0.0.0:6702" in shown
    assert "--connect-to elkeid.com:6702:127.0.0.1:6702" in shown
    assert "-X POST https://elkeid.com:6702/api/v1/user/login" in shown


def test_welcome_of_other_roles(tmp_path: Path) -> None:
    """A process without the Manager says nothing about logging in."""
    shown = welcome.text(parse({"agentcenter": {"listen": "::1"}}, tmp_path), ("ac",), True)
    assert "log in" not in shown
    assert "  agents       [::1]:6751" in shown


def test_share_of_cpu() -> None:
    """The share is that of the last few seconds, not measured anew at every question."""
    now, used = 100.0, 7.0
    share = CpuShare(lambda: now, lambda: used)
    assert share() == 0
    now, used = 101, 8
    assert share() == 0
    now = 104
    assert share() == 0.25
    now, used = 105, 9
    assert share() == 0.25
    now = 106
    assert share() == 0.5
