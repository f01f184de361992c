"""The event log in processes of its own: killed, followed, on a volume that is really full."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from elkeid.agentcenter.gateway import Gateway
from elkeid.config import AgentCenterSettings
from elkeid.eventlog import LogReader
from elkeid.wire.datatypes import RecordClass
from elkeid.wire.grpc import Status
from elkeid.wire.mqdata import decode, records
from tests.agentcenter.host import Host, batch
from tests.eventlog.support import (
    CONTROL,
    LOGS,
    SUFFIX,
    TELEMETRY,
    Disk,
    Server,
    numbers_of,
    read_all,
    region,
)
from tests.eventlog.test_log_cat import EXECVE, put, start

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
RUN_LENGTH = 10**9
VOLUME_BYTES = 4 << 20


def writer(folder: Path, run: int) -> "subprocess.Popen[bytes]":
    """Start the process that appends until it is killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.eventlog_writer", str(folder), str(run)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )


def test_kill_9(tmp_path: Path) -> None:
    """Killed again and again while it writes: what was confirmed is stored, in order, once."""
    seed = int(os.environ.get("ELKEID_TEST_SEED", str(random.randrange(10**6))))
    print(f"ELKEID_TEST_SEED={seed}")
    chance = random.Random(seed)
    folder = tmp_path / "eventlog"
    confirmed: list[tuple[int, ...]] = []
    for run in range(8):
        process = writer(folder, run)
        assert process.stdout is not None
        process.stdout.readline()  # it writes
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        confirmed.append(tuple(map(int, lines[-1].split())) if lines else (0, 0, 0))
    server = Server(folder, disk=Disk())
    stored: dict[RecordClass, list[int]] = {cls: [] for cls in RecordClass}
    with LogReader(folder) as reader:
        for entry in reader.entries():
            numbers = stored[entry.record_class]
            assert entry.first_offset == len(numbers)
            numbers += numbers_of(entry)
    for cls, numbers in stored.items():
        for run, counts in enumerate(confirmed):
            mine = [number % RUN_LENGTH for number in numbers if number // RUN_LENGTH == run]
            assert mine == list(range(len(mine)))
            assert len(mine) >= counts[cls]
        assert numbers == sorted(numbers)
        assert server.ledger(cls)["appended"] == len(numbers)
        assert server.ledger(cls)["readers"]["kafka"]["waiting"] == len(numbers)
    assert server.ledger(LOGS)["dropped"]["rate"] > 0
    server.close()


def test_reader_beside_a_writer(tmp_path: Path) -> None:
    """A reader beside a running server gets every record once, in order, none of it torn."""
    process = writer(tmp_path / "eventlog", 0)
    assert process.stdout is not None
    process.stdout.readline()
    stored: dict[RecordClass, list[int]] = {cls: [] for cls in RecordClass}
    with LogReader(tmp_path / "eventlog", "kafka", kept=True) as reader:
        while min(len(numbers) for numbers in stored.values()) < 100_000:
            for entry in reader.entries(reader.extent()):
                assert entry.first_offset == len(stored[entry.record_class])
                stored[entry.record_class] += numbers_of(entry)
                reader.acknowledge(entry.record_class, entry.end_offset)
            reader.save()
        process.kill()
        process.communicate()
        assert reader.damaged_bytes == 0
    assert all(numbers == list(range(len(numbers))) for numbers in stored.values())


def command(folder: Path, *argv: str, stdout: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
    """Start ``elkeid log cat`` in a folder."""
    # Programs of a shell's background jobs ignore Ctrl-C, and so would this one.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from elkeid.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "log", "cat", *argv],
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def test_head(tmp_path: Path) -> None:
    """``elkeid log cat | head -1`` ends quietly."""
    server = start(tmp_path)
    for _ in range(20):
        put(server, *[EXECVE] * 50)
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = command(tmp_path, stdout=write_end)
    os.close(write_end)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0
    server.close()


def test_follow_until_interrupted(tmp_path: Path) -> None:
    """``elkeid log cat --follow --reader NAME`` goes on as records arrive; Ctrl-C ends it."""
    server = start(tmp_path)
    put(server, EXECVE)
    process = command(tmp_path, "--follow", "--reader", "me")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["offset"] == 0
    put(server, EXECVE)
    assert json.loads(process.stdout.readline())["offset"] == 1
    # Interrupted between printing and noting it, it would print the record again next time.
    deadline = time.monotonic() + 60
    while server.ledger()["readers"]["me"]["acknowledged"] < 2:
        assert time.monotonic() < deadline, "the place of a follower is never saved"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0
    assert server.ledger()["readers"]["me"]["acknowledged"] == 2
    server.close()


def test_second_server(tmp_path: Path) -> None:
    """A second server on the same data folder is refused by name."""
    process = writer(tmp_path / "eventlog", 0)
    assert process.stdout is not None
    process.stdout.readline()
    second = subprocess.run(
        [sys.executable, "-m", "tests.integration.eventlog_writer", tmp_path / "eventlog", "1"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    process.kill()
    process.communicate()
    assert b"eventlog: another process writes this event log" in second.stderr + second.stdout


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of 4 MiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={VOLUME_BYTES}", "tmpfs", str(folder)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a user that may mount a tmpfs: run the tests as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class FullVolume(Disk):
    """The real thing: nothing is simulated."""

    def space(self, path: Path) -> "object":  # type: ignore[override]
        """As the volume says."""
        return super(Disk, self).space(path)

    def allocate(self, fd: int, size: int) -> None:
        """Really."""
        super(Disk, self).allocate(fd, size)


def fill(path: Path) -> None:
    """Write a file until the volume is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_full_volume(volume: Path) -> None:
    """On a full volume drops are counted and stored records stay; with room it goes on."""
    server = Server(volume / "eventlog", disk=FullVolume(), segment_bytes=1 << 20)
    for number in range(10):
        server.put(number)
    fill(volume / "neighbour")
    stored, number = 10, 10
    while number < 3000:
        server.log.append(TELEMETRY, 1, SUFFIX, region(number))
        stored += server.log.commit()
        server.log.append(CONTROL, 1, SUFFIX, region(number))
        server.log.commit()
        server.clock.advance(0.01)
        number += 1
    account = server.ledger()
    assert account["dropped"] == {"disk_full": 3000 - stored}
    assert stored < 3000
    assert read_all(volume / "eventlog") == [(n, n) for n in range(stored)]
    server.kill()
    server = Server(volume / "eventlog", server.clock, disk=FullVolume(), segment_bytes=1 << 20)
    assert server.ledger() == account
    (volume / "neighbour").unlink()
    server.put(7)
    assert read_all(volume / "eventlog")[-1] == (stored, 7)
    server.close()


def test_heaviest_first_on_a_full_volume(volume: Path) -> None:
    """With room for a tenth of what comes, a host that sends little loses nothing."""
    server = Server(volume / "eventlog", disk=FullVolume(), telemetry_cap_bytes=1 << 30)
    clock = server.clock
    gateway = Gateway(AgentCenterSettings(), server.log, clock, monotonic=clock.seconds)
    server.log.looked = gateway.intake.shedder.look
    left = VOLUME_BYTES // 2
    with (volume / "neighbour").open("wb", buffering=0) as neighbour:
        neighbour.write(bytes(left))
        light, heavy = Host(gateway, "10.0.0.1"), Host(gateway, "10.0.0.2")
        light_stream, heavy_stream = light.open(), heavy.open()
        for _ in range(90):
            light.send(light_stream, batch("light", 59, k="x" * 500))
            for _ in range(5):
                heavy.send(heavy_stream, batch("heavy", 59, k="x" * 20_000))
            left -= 10_000
            neighbour.truncate(left)
            clock.advance(1)
    kept = {"light": 0, "heavy": 0}
    with LogReader(volume / "eventlog") as reader:
        for entry in reader.entries():
            first = next(records(entry.region))
            kept[decode(first + entry.suffix).agent_id] += entry.records
    assert kept["light"] == 90
    assert 50 < kept["heavy"] < 300
    assert server.ledger()["dropped"] == {"heavy": 450 - kept["heavy"]}
    statuses = []
    for host, stream in ((light, light_stream), (heavy, heavy_stream)):
        host.client.half_close(stream)
        host.pump()
        ended = host.ended(stream)
        statuses.append(ended and ended.status)
    assert statuses == [Status.OK, Status.RESOURCE_EXHAUSTED]
    server.close()
