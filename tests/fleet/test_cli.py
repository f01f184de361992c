"""``elkeid fleet`` at the prompt: what it refuses, in a sentence, before anything is dialled."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from elkeid.cli import main
from elkeid.config import parse
from elkeid.eventlog import EventLog
from elkeid.fleet.report import AgentReport, StreamReport, write_report
from elkeid.keys import create_keys


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def elkeid(*argv: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["fleet", *argv])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sd", "10.0.0.1:8088"], "10.0.0.1 is not loopback: load is kept on this machine"),
        (["--address", "gateway.example:6751"], "gateway.example is not loopback"),
        (["--address", "[::1]:6751"], "ca.crt is missing"),
        (["--allow-remote", "--sd", "10.0.0.1:8088"], "ca.crt is missing"),
        ([], "ca.crt is missing"),
        (["--keys", "elsewhere"], "elsewhere/ca.crt is missing"),
        (["--events", "gone.jsonl"], "gone.jsonl: No such file or directory"),
    ],
)
def test_start_up_failures(folder: Path, argv: list[str], said: str) -> None:
    """What keeps a run from its start is one sentence with the fix, and status 1."""
    result = elkeid("run", *argv)
    assert result.exit_code == 1
    assert said in result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["--agents", "0"],
        ["--rate", "-1"],
        ["--total", "0"],
        ["--beat", "0"],
        ["--address", "127.0.0.1"],
        ["--sd", "127.0.0.1:0"],
        ["--hostnames", "same"],
        ["--hostnames", "{x}"],
        ["--hostnames", "{n"],
        ["--hostnames", "{n.real}{0}"],
    ],
)
def test_bad_options(folder: Path, argv: list[str]) -> None:
    """Options out of range are refused by name."""
    result = elkeid("run", *argv)
    assert result.exit_code == 2
    assert argv[0] in result.output


def test_too_many_agents_for_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More agents than open files is refused before any is started."""
    create_keys(parse({}, folder))
    monkeypatch.setattr("elkeid.cli.fleet.raise_open_files", lambda: 1024)
    result = elkeid("run", "--agents", "600")
    assert result.exit_code == 1
    assert "600 agents need 1112 open files, and the hard limit is 1024" in result.output


def test_help_has_examples(folder: Path) -> None:
    """Each command explains itself with an example."""
    for argv in ([], ["run"], ["check"]):
        result = elkeid(*argv, "--help")
        assert result.exit_code == 0
        assert "elkeid fleet run --agents" in result.output


def report(sent: int) -> AgentReport:
    """A report of an agent whose only stream was confirmed."""
    counts = {"control": 0, "telemetry": sent, "logs": 0}
    stream = StreamReport(
        conn=0, address="x", sent=counts, confirmed=counts, half_closed=True, status=0, message=""
    )
    return AgentReport(
        agent_id="a",
        hostname="h",
        number=0,
        started=0.0,
        ended=1.0,
        streams=[stream],
        dropped=0,
        overwritten=0,
        lost_on_exit=0,
        failed_rounds=0,
        exits=0,
        plugins={},
        tasks=0,
        syncs=0,
        wiped=0,
    )


def test_checking(folder: Path) -> None:
    """A report is compared with this machine's log; the verdict is the exit status."""
    result = elkeid("check", "gone.jsonl")
    assert (result.exit_code, "gone.jsonl: No such file" in result.output) == (1, True)
    write_report(folder / "sent.jsonl", [])
    result = elkeid("check", "sent.jsonl")
    assert (result.exit_code, "lists no agent" in result.output) == (1, True)
    write_report(folder / "sent.jsonl", [report(1)])
    result = elkeid("check", "sent.jsonl")
    assert (result.exit_code, "there is no event log" in result.output) == (1, True)

    settings = parse({}, folder).eventlog
    log = EventLog(folder / "data/eventlog", settings, Clock(), lambda f, *a: succeed(f(*a)))
    Deferred.fromCoroutine(log.open())
    Deferred.fromCoroutine(log.close())
    result = elkeid("check", "sent.jsonl")
    assert result.exit_code == 1
    assert "1 of 1 records confirmed, but not stored" in result.output
    write_report(folder / "sent.jsonl", [report(0)])
    result = elkeid("check", "sent.jsonl")
    assert result.exit_code == 0
    assert result.output.startswith("good: 1 agents")
