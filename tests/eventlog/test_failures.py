"""A failing disk: nothing half-written stays, everything is counted, the log recovers."""

from pathlib import Path

import pytest

from elkeid.eventlog import LogReader
from elkeid.eventlog.log import HOUSEKEEPING_SECONDS, RESERVE_BYTES
from tests.eventlog.support import (
    BROKEN,
    CONTROL,
    FULL,
    LOGS,
    SMALL,
    SUFFIX,
    TELEMETRY,
    Disk,
    Server,
    pairs,
    read_all,
    region,
)


@pytest.mark.parametrize("taken", [0, 1, 55, 56, 57, 75])
def test_short_write_on_a_full_disk(tmp_path: Path, taken: int) -> None:
    """A frame that does not fit is cut back to the last whole one; its records are counted."""
    server = Server(tmp_path)
    server.put(1)
    size = server.segments()[0].stat().st_size
    server.disk.failures["writev"] = [("short", taken), FULL]
    server.log.append(TELEMETRY, 2, SUFFIX, region(2, 3))
    assert not server.log.commit()
    assert server.segments()[0].stat().st_size == size
    assert server.ledger()["dropped"] == {"disk_full": 2}
    server.put(4)  # there is room again
    assert read_all(tmp_path) == [(0, 1), (1, 4)]
    server.close()


def test_interrupted_write_is_finished(tmp_path: Path) -> None:
    """A write that stops half-way although there is room is taken up where it stopped."""
    server = Server(tmp_path)
    server.put(1)
    server.disk.failures["writev"] = [("short", 30), ("short", 20), None]
    server.put(2)
    server.put(3)
    assert read_all(tmp_path) == [(0, 1), (1, 2), (2, 3)]
    server.close()


def test_full_disk_takes_the_oldest_segment(tmp_path: Path) -> None:
    """On a full disk the oldest segment makes room; nothing new is dropped while there is one."""
    server = Server(tmp_path, **SMALL, readers=("kafka",))
    for number in range(30):
        server.put(number)
    server.clock.advance(1)
    server.disk.volume = server.disk.used() + 10
    for number in range(30, 60):
        server.put(number)
        server.clock.advance(1)
    account = server.ledger()
    assert account["dropped"] == {}
    assert account["appended"] == 60
    gone = account["readers"]["kafka"]["expired"]["disk_full"]
    assert read_all(tmp_path) == [(n, n) for n in range(gone, 60)]
    server.close()


def test_full_disk_with_nothing_to_delete(tmp_path: Path) -> None:
    """Nothing to delete: new records are dropped and counted until there is room; no restart."""
    server = Server(tmp_path)
    server.put(0)
    server.disk.volume = server.disk.used()
    for number in range(1, 10):
        server.put(number)
        server.clock.advance(1)
    assert server.ledger()["dropped"] == {"disk_full": 9}
    server.disk.volume += 1000
    server.put(10)
    assert read_all(tmp_path) == [(0, 0), (1, 10)]
    server.kill()
    server = Server(tmp_path)
    assert server.ledger() == {
        "read": 11,
        "appended": 2,
        "dropped": {"disk_full": 9},
        "readers": {},
    }
    server.close()


def test_control_has_a_reserve(tmp_path: Path) -> None:
    """On a full disk control records outlive the others: some room is kept for them alone."""
    server = Server(tmp_path)
    server.disk.volume = RESERVE_BYTES + 4000
    server.clock.advance(HOUSEKEEPING_SECONDS)
    assert (tmp_path / "reserve").stat().st_size == RESERVE_BYTES
    server.disk.volume = server.disk.used()
    server.put(1)
    server.put(2, cls=LOGS)
    server.put(3, cls=CONTROL)
    assert server.ledger()["dropped"] == server.ledger(LOGS)["dropped"] == {"disk_full": 1}
    assert read_all(tmp_path, CONTROL) == [(0, 3)]
    server.disk.volume += RESERVE_BYTES + 4000
    server.clock.advance(HOUSEKEEPING_SECONDS)
    assert (tmp_path / "reserve").stat().st_size == RESERVE_BYTES
    server.close()


def test_room_is_noticed_without_records(tmp_path: Path) -> None:
    """A disk that takes writes again is found out though nobody sends anything meanwhile."""
    server = Server(tmp_path)
    server.put(0)
    server.clock.advance(HOUSEKEEPING_SECONDS)
    server.disk.always["writev"] = FULL
    server.put(1)
    (problem,) = server.log.problems()
    assert "telemetry records are dropped: disk_full" in problem
    assert server.log.problems((CONTROL,)) == []
    server.clock.advance(2 * HOUSEKEEPING_SECONDS)
    assert server.log.problems()
    server.disk.always.clear()
    server.clock.advance(HOUSEKEEPING_SECONDS)
    assert server.log.problems() == []
    assert not list(tmp_path.glob("*/probe"))
    server.put(2)
    assert read_all(tmp_path) == [(0, 0), (1, 2)]
    server.close()


def test_reserve_is_for_control_alone(tmp_path: Path) -> None:
    """Once it is given up, telemetry is refused at once, until the reserve is back."""
    server = Server(tmp_path)
    server.put(1)
    server.clock.advance(1)
    server.disk.volume = server.disk.used() + 10
    server.log.append(CONTROL, 1, SUFFIX, region(2))
    assert server.log.commit()
    server.log.append(TELEMETRY, 1, SUFFIX, region(3))
    assert not server.log.commit()
    assert server.log.problems()
    server.log.append(CONTROL, 1, SUFFIX, region(4))
    assert server.log.commit()
    server.clock.advance(2 * HOUSEKEEPING_SECONDS)  # still full: nothing changes
    server.log.append(TELEMETRY, 1, SUFFIX, region(5))
    assert not server.log.commit()
    server.disk.volume = None
    server.clock.advance(2 * HOUSEKEEPING_SECONDS)
    assert (tmp_path / "reserve").stat().st_size == RESERVE_BYTES
    server.clock.advance(HOUSEKEEPING_SECONDS)
    server.log.append(TELEMETRY, 1, SUFFIX, region(6))
    assert server.log.commit()
    assert server.log.problems() == []
    server.close()


def test_telemetry_never_takes_control_segments(tmp_path: Path) -> None:
    """However full the disk, stored control records do not make room for telemetry."""
    server = Server(tmp_path, segment_bytes=400)
    server.disk.volume = RESERVE_BYTES // 2  # too small for a reserve
    for number in range(30):
        server.put(number, cls=CONTROL)
    server.clock.advance(1)
    server.disk.volume = server.disk.used()
    server.put(1)
    assert server.ledger()["dropped"] == {"disk_full": 1}
    assert len(read_all(tmp_path, CONTROL)) == 30
    server.put(*range(30, 90), cls=CONTROL)
    assert server.ledger(CONTROL)["dropped"] == {}
    assert len(read_all(tmp_path, CONTROL)) < 90
    server.close()


def test_broken_file(tmp_path: Path) -> None:
    """A file that takes no more is left as it is; records go on in another."""
    server = Server(tmp_path)
    server.put(1)
    server.disk.failures["writev"] = [BROKEN]
    server.put(2)
    assert len(server.segments()) == 2
    assert read_all(tmp_path) == [(0, 1), (1, 2)]
    server.close()


def test_broken_disk(tmp_path: Path) -> None:
    """A disk that takes nothing costs the new records, which are counted, not the process."""
    server = Server(tmp_path)
    server.put(1)
    server.disk.always["writev"] = BROKEN
    server.put(2)
    server.put(3)
    assert server.log.stats().classes[TELEMETRY].write_failures == 2
    del server.disk.always["writev"]
    server.put(4)
    assert server.ledger()["dropped"] == {"io_error": 2}
    assert read_all(tmp_path) == [(0, 1), (1, 4)]
    server.close()


def test_cannot_cut_back(tmp_path: Path) -> None:
    """A torn frame that cannot be cut off ends its segment; readers pass over it."""
    server = Server(tmp_path)
    server.put(1)
    with LogReader(tmp_path) as reader:
        assert list(pairs(reader)) == [(0, 1)]
        server.disk.failures["writev"] = [("short", 60), FULL]
        server.disk.failures["ftruncate"] = [BROKEN]
        server.put(2)
        assert list(pairs(reader)) == []
        server.put(3)
        assert list(pairs(reader)) == [(1, 3)]
    assert server.ledger()["dropped"] == {"disk_full": 1}
    server.kill()
    server = Server(tmp_path)
    server.put(4)
    assert read_all(tmp_path) == [(0, 1), (1, 3), (2, 4)]
    server.close()


def test_no_new_segment(tmp_path: Path) -> None:
    """When no new segment can be begun, the one before is written on."""
    server = Server(tmp_path, **SMALL)
    server.put(0)
    server.disk.always["create"] = BROKEN
    for number in range(1, 20):
        server.put(number)
    assert len(server.segments()) == 1
    del server.disk.always["create"]
    server.put(20)
    assert len(server.segments()) == 2
    assert read_all(tmp_path) == [(n, n) for n in range(21)]
    server.close()


def test_half_a_segment_header(tmp_path: Path) -> None:
    """A segment whose header did not fit is taken away again."""
    server = Server(tmp_path)
    server.disk.failures["writev"] = [("short", 10)]
    server.put(1)
    assert server.segments() == []
    assert server.ledger()["dropped"] == {"disk_full": 1}
    server.put(2)
    assert read_all(tmp_path) == [(0, 2)]
    server.close()


def test_failed_fsync_begins_a_new_segment(tmp_path: Path) -> None:
    """After a failed fsync nobody knows what is on disk: nothing more goes into that segment."""
    server = Server(tmp_path)
    server.turn()
    server.put(1)
    server.disk.failures["fsync"] = [BROKEN]
    server.clock.advance(1)
    server.put(2)
    assert len(server.segments()) == 2
    assert server.log.stats().classes[TELEMETRY].sync_failures == 1
    server.clock.advance(1)
    server.put(3)
    assert len(server.segments()) == 2
    assert read_all(tmp_path) == [(0, 1), (1, 2), (2, 3)]
    server.kill()
    server = Server(tmp_path)
    assert server.log.stats().classes[TELEMETRY].sync_failures == 1
    server.close()


def test_everything_fails_at_fsync(tmp_path: Path) -> None:
    """While every fsync fails, records are still written, and each failure is counted."""
    server = Server(tmp_path)
    server.disk.always["fsync"] = BROKEN
    for number in range(5):
        server.put(number)
        server.clock.advance(1)
    assert server.log.stats().classes[TELEMETRY].sync_failures >= 5
    assert read_all(tmp_path) == [(n, n) for n in range(5)]
    server.close()


def test_undeletable_segment(tmp_path: Path) -> None:
    """A segment that cannot be deleted is tried again, also after a restart."""
    server = Server(tmp_path, segment_bytes=400, telemetry_cap_bytes=2000)
    server.disk.always["unlink"] = BROKEN
    for number in range(60):
        server.put(number)
        server.clock.advance(1)
    oldest = server.log.stats().classes[TELEMETRY].oldest_offset
    assert oldest > 0
    assert read_all(tmp_path)[0] == (0, 0)
    server.kill()
    server = Server(tmp_path, segment_bytes=400, telemetry_cap_bytes=2000, disk=server.disk)
    assert server.log.stats().classes[TELEMETRY].oldest_offset == oldest
    server.kill()
    server = Server(tmp_path, segment_bytes=400, telemetry_cap_bytes=2000)
    assert read_all(tmp_path)[0] == (oldest, oldest)
    server.close()


def test_state_cannot_be_written(tmp_path: Path) -> None:
    """Drop counts that could not be written are written with the next commit."""
    server = Server(tmp_path)
    server.disk.failures["pwrite"] = [BROKEN]
    server.log.drop(LOGS, "rate", 3)
    server.turn()
    server.put(1)
    server.kill()
    server = Server(tmp_path)
    assert server.ledger(LOGS)["dropped"] == {"rate": 3}
    server.close()


def test_housekeeping_survives_anything(tmp_path: Path) -> None:
    """Failing looks at the disk are logged; the next ones are made all the same."""
    server = Server(tmp_path)
    server.disk.always.update(space=BROKEN, fsync=BROKEN, unlink=BROKEN, open=BROKEN)
    server.put(1)
    server.clock.advance(HOUSEKEEPING_SECONDS * 2)
    server.disk.always.clear()
    server.put(2)
    server.clock.advance(HOUSEKEEPING_SECONDS)
    assert read_all(tmp_path) == [(0, 1), (1, 2)]
    server.close()


def test_every_call_may_fail(tmp_path: Path) -> None:
    """Whichever call of a session fails, the rest works and the ledger balances."""

    def session(directory: Path, disk: Disk) -> None:
        server = Server(directory, disk=disk, **SMALL, readers=("kafka",))
        stored = 0
        for number in range(12):
            server.log.append(TELEMETRY, 1, SUFFIX, region(number))
            stored += server.log.commit()
            server.clock.advance(1)
        assert server.ledger()["appended"] == stored
        assert stored >= 11
        got = read_all(directory)
        first = stored - len(got)  # a full disk may have cost the oldest segment
        assert [offset for offset, _ in got] == list(range(first, stored))
        server.kill()
        server = Server(directory, **SMALL)
        assert server.ledger()["appended"] == stored
        assert read_all(directory) == got
        server.close()

    probe = Disk()
    session(tmp_path / "probe", probe)
    for operation in ("writev", "pwrite", "fsync", "unlink", "allocate", "space"):
        skip = 6 if operation == "pwrite" else 0  # of the first start, which must succeed
        for index in range(skip, probe.count(operation)):
            for error in (FULL, BROKEN):
                disk = Disk()
                if operation == "writev" and index == 0:
                    continue  # the cursor of kafka: the start fails with a sentence
                if operation == "fsync" and index < 9:
                    continue  # likewise
                if operation == "space" and index == 0:
                    continue
                disk.failures[operation] = [None] * index + [error]
                session(tmp_path / f"{operation}-{index}-{error}", disk)
