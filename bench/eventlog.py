"""What the event log costs: a commit, an append, reading back, opening with a backlog.

    .venv/bin/python -m bench.eventlog [--folder DIR] [--backlog-gib N]

CPU is this process's, in microseconds; a bare ``write()`` of the same bytes stands beside it.
Opening is wall-clock seconds on the volume of ``--folder`` (default: a temporary folder) after
its caches were dropped, as far as this user may drop them. The yardstick line tells how fast the
machine was meanwhile. A figure is printed only if what was read back is what was appended.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock

from elkeid.config import EventLogSettings, GiB, MiB
from elkeid.eventlog import EventLog, LogReader
from elkeid.wire.datatypes import RecordClass

SUFFIX = b"\x22\x24" + b"a" * 36 + b"\x4a\x05web-1" + b"\x60\x80\x92\x92\xc9\x06" + bytes(40)
RECORD_BYTES = 660
FRAMES_OF_BACKLOG = 2 * MiB  # bytes a frame while the backlog is made


def region(records: int) -> bytes:
    """A batch of records of `RECORD_BYTES`."""
    one = b"\x0a" + bytes((RECORD_BYTES & 0x7F | 0x80, RECORD_BYTES >> 7)) + bytes(RECORD_BYTES)
    return one * records


def opened(folder: Path, clock: Clock) -> EventLog:
    """A log that is open."""
    settings = EventLogSettings(min_free_bytes=0, telemetry_cap_bytes=1 << 50)
    log = EventLog(folder, settings, clock, execute)
    result: list[Any] = []
    Deferred.fromCoroutine(log.open()).addBoth(result.append)
    assert result == [None], result
    return log


def closed(log: EventLog) -> None:
    """Stop it in order."""
    result: list[Any] = []
    Deferred.fromCoroutine(log.close()).addBoth(result.append)
    assert result == [None], result


def count_back(folder: Path) -> int:
    """Records a reader finds."""
    with LogReader(folder) as reader:
        return sum(entry.records for entry in reader.entries())


def commit_cost(folder: Path, records: int, batches: int, turns: int) -> tuple[float, float]:
    """CPU of ``batches`` appends and the commit of each turn; and of a bare write of the same."""
    clock = Clock()
    clock.advance(time.time())
    log = opened(folder / "log", clock)
    data, append, commit = region(records), log.append, log.commit
    start = time.process_time()
    for _ in range(turns):
        for _ in range(batches):
            append(RecordClass.TELEMETRY, records, SUFFIX, data)
        commit()
    used = time.process_time() - start
    closed(log)
    if count_back(folder / "log") != records * batches * turns:
        sys.exit("what was read back is not what was appended: no figures")
    shutil.rmtree(folder / "log")
    whole = b"".join((SUFFIX, data)) * batches
    fd = os.open(folder / "bare", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    start = time.process_time()
    for _ in range(turns):
        os.write(fd, whole)
    bare = time.process_time() - start
    os.close(fd)
    (folder / "bare").unlink()
    return used / turns * 1e6, bare / turns * 1e6


def append_cost(folder: Path) -> float:
    """CPU of one append of a 1-record batch, without commits."""
    clock = Clock()
    clock.advance(time.time())
    log = opened(folder / "log", clock)
    data, append = region(1), log.append
    used = 0.0
    for _ in range(100):
        append(RecordClass.TELEMETRY, 1, SUFFIX, data)  # schedules the commit of this turn
        start = time.process_time()
        for _ in range(5000):
            append(RecordClass.TELEMETRY, 1, SUFFIX, data)
        used += time.process_time() - start
        clock.advance(0)
    closed(log)
    shutil.rmtree(folder / "log")
    return used / 500_000 * 1e6


def backlog(folder: Path, size: int) -> tuple[int, float, float, float]:
    """Fill a log, kill its writer; bytes, seconds to open, CPU of a commit then, GB/s read."""
    clock = Clock()
    clock.advance(time.time())
    log = opened(folder / "log", clock)
    records = 50
    data = region(records)
    appended = 0
    while log.stats().classes[RecordClass.TELEMETRY].bytes_on_disk < size:
        for _ in range(FRAMES_OF_BACKLOG // len(data)):
            log.append(RecordClass.TELEMETRY, records, SUFFIX, data)
            appended += records
        log.commit()
        clock.advance(0.1)
    held = log.stats().classes[RecordClass.TELEMETRY].bytes_on_disk
    log._release()  # as the kernel does at kill -9
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("caches could not be dropped: opening is measured warm")
    start = time.monotonic()
    clock = Clock()
    clock.advance(time.time())
    log = opened(folder / "log", clock)
    seconds = time.monotonic() - start
    if log.stats().classes[RecordClass.TELEMETRY].next_offset != appended:
        sys.exit("the log opened with other records than were appended: no figures")
    begin = time.process_time()
    for _ in range(2000):
        log.append(RecordClass.TELEMETRY, 1, SUFFIX, region(1))
        log.commit()
    used = (time.process_time() - begin) / 2000 * 1e6
    begin = time.process_time()
    if count_back(folder / "log") != appended + 2000:
        sys.exit("what was read back is not what was appended: no figures")
    rate = held / (time.process_time() - begin) / 1e9
    closed(log)
    shutil.rmtree(folder / "log")
    return held, seconds, used, rate


def yardstick() -> float:
    """Seconds of CPU of the loop that docs and README scale figures by."""
    start = time.process_time()
    s = 0
    for i in range(10_000_000):
        s += i * i & 7
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the volume to measure")
    parser.add_argument("--backlog-gib", type=float, default=1, help="size of the log to open")
    options = parser.parse_args()
    print(f"yardstick: {yardstick():.2f} s")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(f"append of one 1-record batch: {append_cost(folder):.2f} us")
        for records, batches, turns in ((1, 1, 20_000), (50, 1, 5_000), (5, 10, 5_000)):
            used, bare = commit_cost(folder, records, batches, turns)
            size = batches * (len(region(records)) + len(SUFFIX))
            print(
                f"turn of {batches:2} batches of {records:2} records, {size:6} bytes: "
                f"{used:6.2f} us, bare write {bare:6.2f} us, "
                f"{used / batches / records:5.2f} us a record"
            )
        held, seconds, used, rate = backlog(folder, int(options.backlog_gib * GiB))
        print(
            f"backlog of {held / GiB:.1f} GiB: opened in {seconds:.2f} s, then a commit of one "
            f"record costs {used:.2f} us; read back at {rate:.2f} GB a CPU second"
        )


if __name__ == "__main__":
    main()
