"""``elkeid ledger``: the sums of one or several logs, for people and as JSON."""

import json
from pathlib import Path

from click.testing import CliRunner

from elkeid.cli import main
from elkeid.wire.datatypes import RecordClass
from tests.kafka.support import Cluster, Log, Run


def run(folder: Path, *argv: str) -> tuple[int, str]:
    """Run the command on a data folder."""
    settings = folder / "elkeid.toml"
    settings.write_text('[server]\ndata_dir = "."\n')
    result = CliRunner().invoke(main, ["--config", str(settings), "ledger", *argv])
    return result.exit_code, result.output


def test_ledger(tmp_path: Path) -> None:
    """Beside the running writer: what it says itself, and what waits in bytes and minutes."""
    log = Log(tmp_path / "eventlog")
    log.append(b"a", b"1", b"2", b"3")
    log.log.drop(RecordClass.TELEMETRY, "rate", 2)
    feed = Run(log, Cluster())
    feed.turn(2)
    feed.stop()
    log.append(b"a", b"4")
    status, text = run(tmp_path, "--json")
    assert status == 0
    assert json.loads(text) == log.log.ledger()
    assert json.loads(text)["telemetry"]["readers"]["kafka"]["waiting"] == 1
    status, text = run(tmp_path)
    assert status == 0
    lines = [line.split() for line in text.splitlines()]
    assert ["agents", "->", "gateway", "read", "6"] in lines
    assert ["dropped", "(rate)", "2"] in lines
    assert any(line[:2] == ["waiting", "1"] and "MiB," in line for line in lines)


def test_several_logs_are_added_up(tmp_path: Path) -> None:
    """Processes that share a data folder have one ledger together."""
    for name in ("eventlog", "worker-1/eventlog"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Log(tmp_path / name).append(b"a", b"1", b"2")
    status, text = run(tmp_path, "--json")
    assert status == 0
    assert json.loads(text)["telemetry"]["appended"] == 4


def test_without_a_log(tmp_path: Path) -> None:
    """A sentence, and status 1."""
    status, text = run(tmp_path)
    assert status == 1
    assert "there is no event log" in text


def test_what_does_not_balance_is_said(tmp_path: Path) -> None:
    """Sums that do not agree end the command with status 1."""
    log = Log(tmp_path / "eventlog")
    log.append(b"a", b"1")
    log.close()
    (path,) = (tmp_path / "eventlog" / "telemetry").glob("*.seg")
    path.unlink()  # and the records with it, which the reader was to get
    status, _ = run(tmp_path)
    assert status == 0  # expired{missing} says it
    status, text = run(tmp_path, "--json")
    account = json.loads(text)["telemetry"]["readers"]["kafka"]
    assert account["waiting"] + sum(account["expired"].values()) == 1
