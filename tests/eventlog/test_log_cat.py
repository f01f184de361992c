"""``elkeid log cat``: what it prints, when it ends, what it remembers."""

import io
import json
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from elkeid.cli import main
from elkeid.cli.log import FLUSH_BYTES, Printer
from elkeid.eventlog import LogReader
from elkeid.wire import item
from elkeid.wire.protobuf import length_delimited
from elkeid.wire.rawdata import encode_record
from tests.eventlog.support import CONTROL, LOGS, TELEMETRY, Disk, Server

HOST = (
    b"".join(
        length_delimited(number, value)
        for number, value in (
            (4, b"agent-1"),
            (5, b"10.0.0.1,192.168.1.9"),
            (6, b"8.8.8.8"),
            (7, b"fd00::1"),
            (9, b"web-1"),
            (10, b"1.7.0.26"),
            (11, b"elkeid-agent"),
        )
    )
    + b"\x60\x81\xe2\xcf\xaa\x06"
)
TAGGED = HOST + length_delimited(15, b"prod,db")
EXECVE = encode_record(59, 1_700_000_000, item.encode({"exe": "/bin/sh", "argv": "sh -c \xe9"}))
OPAQUE = encode_record(601, 1_700_000_001, b"\xff\x00no item")
EMPTY = encode_record(1000, 1_700_000_002, b"")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the command runs, with the default data folder in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(folder: Path) -> Server:
    """A log where a server started in this folder keeps it."""
    return Server(folder / "data" / "eventlog")


def put(server: Server, *records: bytes, cls: int = TELEMETRY, suffix: bytes = HOST) -> None:
    """Append one batch."""
    region = b"".join(length_delimited(1, record) for record in records)
    server.log.append(cls, len(records), suffix, region)  # type: ignore[arg-type]
    server.log.commit()


def cat(*argv: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["log", "cat", *argv])


def test_a_line(folder: Path) -> None:
    """A line has these keys in this order, and the fields as the agent sent them."""
    server = start(folder)
    put(server, EXECVE, OPAQUE)
    put(server, EMPTY, cls=CONTROL, suffix=TAGGED)
    result = cat()
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    host = {
        "hostname": "web-1",
        "version": "1.7.0.26",
        "product": "elkeid-agent",
    }
    addresses = {
        "intranet_ipv4": ["10.0.0.1", "192.168.1.9"],
        "extranet_ipv4": ["8.8.8.8"],
        "intranet_ipv6": ["fd00::1"],
        "extranet_ipv6": [],
    }
    expected = [
        {
            "offset": 0,
            "class": "control",
            "agent_id": "agent-1",
            "data_type": 1000,
            "agent_time": 1_700_000_002,
            "svr_time": 1_700_000_001,
            **host,
            "tags": ["prod", "db"],
            **addresses,
            "fields": {},
        },
        {
            "offset": 0,
            "class": "telemetry",
            "agent_id": "agent-1",
            "data_type": 59,
            "agent_time": 1_700_000_000,
            "svr_time": 1_700_000_001,
            **host,
            "tags": [],
            **addresses,
            "fields": {"exe": "/bin/sh", "argv": "sh -c \xe9"},
        },
        {
            "offset": 1,
            "class": "telemetry",
            "agent_id": "agent-1",
            "data_type": 601,
            "agent_time": 1_700_000_001,
            "svr_time": 1_700_000_001,
            **host,
            "tags": [],
            **addresses,
            "fields": None,
            "body": b64encode(b"\xff\x00no item").decode(),
        },
    ]
    assert lines == expected
    assert [list(line) for line in lines] == [list(line) for line in expected]
    server.close()


def test_raw(folder: Path) -> None:
    """--raw prints each MQData as Kafka would get it, in base64."""
    server = start(folder)
    put(server, EXECVE, OPAQUE)
    result = cat("--raw")
    assert [b64decode(line) for line in result.stdout.splitlines()] == [
        EXECVE + HOST,
        OPAQUE + HOST,
    ]
    server.close()


def test_reader_goes_on(folder: Path) -> None:
    """--reader prints each record once over several calls, beside the server and after it."""
    server = start(folder)
    put(server, EXECVE)
    assert len(cat("--reader", "me", "--raw").stdout.splitlines()) == 1
    assert cat("--reader", "me", "--raw").stdout == ""
    put(server, OPAQUE)
    put(server, EMPTY, cls=LOGS)
    server.close()
    assert len(cat("--reader", "me", "--raw").stdout.splitlines()) == 2
    assert len(cat("--raw").stdout.splitlines()) == 3
    server = start(folder)
    assert server.ledger()["readers"]["me"]["acknowledged"] == 2
    server.close()


def test_without_a_log(folder: Path) -> None:
    """Where no server has run yet, one sentence says so."""
    result = cat()
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {folder}/data/eventlog: there is no event log; start the server first, "
        "or name its settings file with --config\n"
    )


def test_bad_reader_name(folder: Path) -> None:
    """A name that is no good is refused in a sentence."""
    start(folder).close()
    result = cat("--reader", "../me")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: reader '../me': a name is")


def test_what_is_no_record(folder: Path) -> None:
    """Bytes that are no MQData are left out and counted, and the rest is printed."""
    server = start(folder)
    put(server, EXECVE, b"\x0f\xff", EXECVE)
    server.log.append(TELEMETRY, 3, HOST, b"\x0a\x09short")
    put(server, EXECVE)
    result = cat()
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == "4 records are no MQData and were left out\n"
    server.close()


class Pipe(io.BytesIO):
    """A pipe whose reader leaves after some flushes."""

    def __init__(self, flushes: int) -> None:
        super().__init__()
        self.left = flushes

    def flush(self) -> None:
        """The reader takes what is there, or has left."""
        if self.left == 0:
            raise BrokenPipeError
        self.left -= 1


def test_place_moves_only_past_what_was_flushed(folder: Path) -> None:
    """When the reader of the output leaves, the place is behind the last flushed line."""
    server = start(folder)
    for _ in range(40):
        put(server, *[EXECVE] * 30)
    with LogReader(folder / "data" / "eventlog", "me", files=Disk()) as reader:
        out = Pipe(2)
        with pytest.raises(BrokenPipeError):
            Printer(reader, out, raw=False).run(follow=False)
    with LogReader(folder / "data" / "eventlog", "me", files=Disk()) as reader:
        position = reader.place(TELEMETRY).position
    lines = out.getvalue().splitlines()  # the last ones were written, but never flushed
    assert 0 < position < len(lines)
    assert 2 * FLUSH_BYTES <= sum(len(line) + 1 for line in lines[:position]) < 3 * FLUSH_BYTES
    server.close()


def test_follow(folder: Path) -> None:
    """--follow prints records as they arrive and saves its place, until interrupted."""
    server = start(folder)
    put(server, EXECVE)
    out = io.BytesIO()
    seen: list[int] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        """Time passes while nothing is there."""
        assert seconds == 0.2
        now[0] += seconds
        seen.append(len(out.getvalue().splitlines()))
        if len(seen) == 10:
            assert server.ledger()["readers"]["me"]["acknowledged"] >= 4
            raise KeyboardInterrupt
        put(server, OPAQUE)

    with LogReader(folder / "data" / "eventlog", "me", files=Disk()) as reader:
        printer = Printer(reader, out, True, sleep=sleep, monotonic=lambda: now[0])
        with pytest.raises(KeyboardInterrupt):
            printer.run(follow=True)
    assert seen == list(range(1, 11))
    assert server.ledger()["readers"]["me"]["acknowledged"] == 10
    server.close()
