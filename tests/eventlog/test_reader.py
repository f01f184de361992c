"""Readers: from any process, beside a running server, each record once and in order."""

import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from elkeid.errors import OperatorError
from elkeid.eventlog import LogReader
from elkeid.eventlog.cursors import UNUSED_SECONDS, cursor_path
from elkeid.eventlog.reader import LOOK_AGAIN_BYTES, ClassReader
from elkeid.eventlog.segment import SegmentReader, list_segments
from elkeid.wire.protobuf import varint
from tests.eventlog.support import (
    CONTROL,
    LOGS,
    NOW,
    SMALL,
    SUFFIX,
    TELEMETRY,
    Disk,
    Server,
    numbers_of,
    pairs,
    read_all,
    region,
)


def test_no_log(tmp_path: Path) -> None:
    """Where there is no log, one sentence says what to do, and nothing is made."""
    with pytest.raises(OperatorError, match="no event log; start the server first"):
        LogReader(tmp_path / "eventlog", "me")
    assert not (tmp_path / "eventlog").exists()


def test_follow_over_segments(tmp_path: Path) -> None:
    """A reader that looks again and again gets every record once, over many segments."""
    server = Server(tmp_path, **SMALL)
    got = []
    with LogReader(tmp_path) as reader:
        for number in range(60):
            server.put(number)
            if number % 7 == 0:
                got += pairs(reader)
        got += pairs(reader)
        assert list(pairs(reader)) == []
    assert got == [(n, n) for n in range(60)]
    assert len(server.segments()) > 5
    server.close()


def test_frame_being_written(tmp_path: Path) -> None:
    """A frame of which only a part is there yet is waited for, whatever that part is."""
    server = Server(tmp_path / "log")
    server.put(1)
    size = server.segments()[0].stat().st_size
    server.put(2, 3)
    whole = server.segments()[0].read_bytes()
    server.kill()
    path = server.segments()[0]
    with LogReader(tmp_path / "log") as reader:
        assert list(pairs(reader)) == [(0, 1), (1, 2), (2, 3)]
    for count in range(size, len(whole)):
        path.write_bytes(whole[:count])
        with LogReader(tmp_path / "log") as reader:
            assert list(pairs(reader)) == [(0, 1)]
            assert list(pairs(reader)) == []
            with path.open("ab") as file:
                file.write(whole[count:])
            assert list(pairs(reader)) == [(1, 2), (2, 3)]
            assert reader.damaged_bytes == 0


def test_reader_beside_a_restart(tmp_path: Path) -> None:
    """A reader stays beside a server that is killed in a write, repaired and goes on."""
    server = Server(tmp_path)
    server.put(1)
    with LogReader(tmp_path) as reader:
        assert list(pairs(reader)) == [(0, 1)]
        server.kill()
        with server.segments()[0].open("ab") as file:
            file.write(b"\xf5EKF half a frame")
        assert list(pairs(reader)) == []
        server = Server(tmp_path)
        server.put(2)
        assert list(pairs(reader)) == [(1, 2)]
    server.close()


def test_reader_before_the_first_record(tmp_path: Path) -> None:
    """A reader may come before any segment is there."""
    server = Server(tmp_path)
    with LogReader(tmp_path, "me") as reader:
        assert list(pairs(reader)) == []
        server.put(1)
        assert list(pairs(reader)) == [(0, 1)]
    server.close()


def test_place_is_kept(tmp_path: Path) -> None:
    """A named reader goes on behind what it acknowledged and saved, and the ledger says so."""
    server = Server(tmp_path, **SMALL)
    for number in range(30):
        server.put(number)
    with LogReader(tmp_path, "me", files=Disk()) as reader:
        for entry in reader.entries():
            reader.acknowledge(TELEMETRY, entry.end_offset)
            if entry.end_offset == 10:
                break
        reader.save()
        reader.set_aside(TELEMETRY, 10)  # nothing: already acknowledged
    with LogReader(tmp_path, "me", files=Disk()) as reader:
        assert next(pairs(reader)) == (10, 10)
        reader.set_aside(TELEMETRY, 11)
        reader.save()
        assert [n for _, n in pairs(reader)] == list(range(11, 30))
        with pytest.raises(ValueError, match="not read yet"):
            reader.acknowledge(TELEMETRY, 31)
        reader.acknowledge(TELEMETRY, 30)  # not saved
    assert server.ledger()["readers"] == {
        "me": {"acknowledged": 10, "set_aside": 1, "waiting": 19, "expired": {}}
    }
    server.close()


def test_abandoned_look_loses_nothing(tmp_path: Path) -> None:
    """Who stops in the middle of what there is gets the rest at the next look."""
    server = Server(tmp_path)
    for cls in (CONTROL, TELEMETRY, LOGS):
        for number in range(3):
            server.log.append(cls, 1, SUFFIX, region(number))
    server.turn()
    got = []
    with LogReader(tmp_path) as reader:
        while True:
            entry = next(reader.entries(), None)
            if entry is None:
                break
            got.append((entry.record_class, entry.first_offset))
    assert got == [(cls, n) for cls in (CONTROL, TELEMETRY, LOGS) for n in range(3)]
    server.close()


def test_place_inside_a_batch(tmp_path: Path) -> None:
    """A reader may end inside a batch; the next time it gets the rest of it."""
    server = Server(tmp_path)
    server.put(10, 11, 12, 300, 70_000)
    for done in range(1, 6):
        with LogReader(tmp_path, "me", files=Disk()) as reader:
            (entry,) = reader.entries()
            assert entry.first_offset == done - 1
            assert numbers_of(entry) == [10, 11, 12, 300, 70_000][done - 1 :]
            reader.acknowledge(TELEMETRY, done)
            reader.save()
    assert server.ledger()["readers"]["me"]["waiting"] == 0
    server.close()


def test_two_readers_of_one_name(tmp_path: Path) -> None:
    """A name belongs to one process at a time; another is told so."""
    server = Server(tmp_path)
    first = LogReader(tmp_path, "me", files=Disk())
    with pytest.raises(OperatorError, match="'me': another process reads by this name"):
        LogReader(tmp_path, "me")
    first.close()
    LogReader(tmp_path, "me").close()
    server.close()


@pytest.mark.parametrize("name", ["", "Upper", "../up", "a" * 64, "9", "a b", "ä"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    """A reader's name is a plain word; anything else is refused with the rule."""
    Server(tmp_path).close()
    with pytest.raises(OperatorError, match="a name is a letter a-z, then"):
        LogReader(tmp_path, name)


def test_deleted_under_a_reader(tmp_path: Path) -> None:
    """What the cap took before a reader came to it is its expired{cap}; it goes on behind."""
    server = Server(tmp_path, segment_bytes=400, telemetry_cap_bytes=2000)
    server.put(0)
    with LogReader(tmp_path, "slow", files=Disk(), wall=server.clock.seconds) as reader:
        assert list(pairs(reader)) == [(0, 0)]
        reader.acknowledge(TELEMETRY, 1)
        for number in range(1, 100):
            server.put(number)
            server.clock.advance(1)
        got = list(pairs(reader))
        # The segment it had open is read to its end although its file is gone.
        behind = [offset for offset, _ in got]
        assert behind[-1] == 99
        gaps = [(a, b) for a, b in pairwise(behind) if b != a + 1]
        assert len(gaps) == 1
        before, after = gaps[0]
        reader.acknowledge(TELEMETRY, 100)
        reader.save()
    assert server.ledger()["readers"]["slow"] == {
        "acknowledged": 100 - (after - before - 1),
        "set_aside": 0,
        "waiting": 0,
        "expired": {"cap": after - before - 1},
    }
    server.close()


def test_reader_that_comes_late(tmp_path: Path) -> None:
    """A new reader begins at the oldest record; what was gone before is expired{before}."""
    server = Server(tmp_path, segment_bytes=400, telemetry_cap_bytes=2000)
    for number in range(100):
        server.put(number)
        server.clock.advance(1)
    oldest = server.log.stats().classes[TELEMETRY].oldest_offset
    LogReader(tmp_path, "late", files=Disk(), wall=server.clock.seconds).close()
    account = server.ledger()["readers"]["late"]
    assert account["expired"] == {"before": oldest}
    assert account["waiting"] == 100 - oldest
    server.close()


def test_adhoc_reader_starts_anew_after_a_day(tmp_path: Path) -> None:
    """A reader not in the settings that comes back after a day begins at the oldest again."""
    server = Server(tmp_path)
    server.put(1)
    now = NOW
    for kept, later, expected in (
        (False, 0, [(0, 1)]),
        (False, UNUSED_SECONDS, []),
        (False, UNUSED_SECONDS + 1, [(0, 1)]),
        (True, UNUSED_SECONDS + 1, []),
    ):
        now += later

        def wall(now: float = now) -> float:
            return now

        with LogReader(tmp_path, "me", kept=kept, wall=wall, files=Disk()) as reader:
            assert list(pairs(reader)) == expected
            reader.acknowledge(TELEMETRY, 1 if expected else 0)
            reader.save()
    server.close()


def test_control_first(tmp_path: Path) -> None:
    """With a backlog, control records come before all others, also those that arrive meanwhile."""
    server = Server(tmp_path)
    for number in range(3):
        server.put(number)
        server.clock.advance(0.01)
        server.put(number, cls=LOGS)
        server.clock.advance(0.01)
    server.put(7, cls=CONTROL)
    filler = bytes(LOOK_AGAIN_BYTES // 2)
    for _ in range(6):
        server.log.append(TELEMETRY, 1, SUFFIX, filler)
        server.log.commit()
    order = []
    with LogReader(tmp_path) as reader:
        for entry in reader.entries():
            order.append(entry.record_class)
            if len(order) == 7:
                server.put(8, cls=CONTROL)
    assert order[:7] == [CONTROL, TELEMETRY, LOGS, TELEMETRY, LOGS, TELEMETRY, LOGS]
    assert order[7:].index(CONTROL) <= 4
    assert len(order) == 14
    server.close()


def test_until_now(tmp_path: Path) -> None:
    """Who wants what is there now comes to an end, however fast the log grows."""
    server = Server(tmp_path, **SMALL)
    server.put(0)
    with LogReader(tmp_path) as reader:
        extent = reader.extent()
        got = []
        for entry in reader.entries(extent):
            got += numbers_of(entry)
            for number in range(10):
                server.put(number, cls=LOGS)
                server.put(number)
        assert got == [0]
        assert len(list(pairs(reader))) == 10
    server.close()


def test_damage_in_the_middle(tmp_path: Path) -> None:
    """A damaged frame is passed over and counted; what is before and behind it is read."""
    server = Server(tmp_path)
    sizes = []
    for number in range(5):
        server.put(number)
        sizes.append(server.segments()[0].stat().st_size)
    path = server.segments()[0]
    content = bytearray(path.read_bytes())
    content[sizes[1] + 20] ^= 1  # header of the third
    content[sizes[3] - 1] ^= 1  # body of the fourth
    path.write_bytes(content)
    with LogReader(tmp_path, "me", files=Disk()) as reader:
        assert list(pairs(reader)) == [(0, 0), (1, 1), (4, 4)]
        assert reader.damaged_bytes == sizes[3] - sizes[1]
        reader.acknowledge(TELEMETRY, 5)
        reader.save()
    assert server.ledger()["readers"]["me"]["expired"] == {"damaged": 2}
    server.close()


def test_imitated_frame(tmp_path: Path) -> None:
    """A record body that looks like a frame of this log is never taken for one."""
    server = Server(tmp_path / "a")
    server.put(1)
    server.put(2)
    frames = server.segments()[0].read_bytes()[64:]
    server.kill()
    server = Server(tmp_path / "b")
    server.put(0)
    size = server.segments()[0].stat().st_size
    server.log.append(TELEMETRY, 1, SUFFIX, frames)
    server.log.commit()
    path = server.segments()[0]
    content = bytearray(path.read_bytes())
    content[size + 8] ^= 1  # the header before the imitation
    path.write_bytes(content)
    assert read_all(tmp_path / "b") == [(0, 0)]
    server.kill()


def test_damaged_cursor(tmp_path: Path) -> None:
    """A damaged cursor file is moved aside; its reader begins at the oldest again."""
    server = Server(tmp_path)
    server.put(1)
    path = cursor_path(tmp_path, "me")
    path.write_bytes(b'{"format":1}\n00000000\n')
    with LogReader(tmp_path, "me", files=Disk()) as reader:
        assert list(pairs(reader)) == [(0, 1)]
    assert path.with_name("me.cursor.damaged").exists()
    path.write_bytes(b"")
    server.close()
    server = Server(tmp_path, readers=("me",))
    assert server.ledger()["readers"]["me"]["waiting"] == 1
    server.close()


def test_read_only_log(tmp_path: Path) -> None:
    """An anonymous reader leaves no trace and needs no server."""
    server = Server(tmp_path / "log")
    server.put(1)
    server.close()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "log").rglob("*")}
    assert read_all(tmp_path / "log") == [(0, 1)]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "log").rglob("*")} == before


def test_segments_removed_by_hand(tmp_path: Path) -> None:
    """Segments removed by someone else are missing, and counted as that."""
    server = Server(tmp_path, **SMALL, readers=("kafka",))
    for number in range(30):
        server.put(number)
    server.close()
    for path in server.segments()[:2]:
        path.unlink()
    base = int(server.segments()[0].name[:20])
    server = Server(tmp_path, **SMALL, readers=("kafka",))
    assert server.ledger()["readers"]["kafka"] == {
        "acknowledged": 0,
        "set_aside": 0,
        "waiting": 30 - base,
        "expired": {"missing": base},
    }
    with LogReader(tmp_path, "kafka", kept=True, files=Disk()) as reader:
        assert [n for _, n in pairs(reader)] == list(range(base, 30))
        reader.acknowledge(TELEMETRY, 30)
        reader.save()
    assert server.ledger()["readers"]["kafka"]["expired"] == {"missing": base}
    server.close()
    shutil.rmtree(tmp_path / "telemetry")
    server = Server(tmp_path, **SMALL, readers=("kafka",))
    server.put(30)
    assert server.ledger()["appended"] == 31
    assert read_all(tmp_path) == [(30, 30)]
    server.close()


class GrowingFile:
    """A segment that the writer finishes after so many looks at it."""

    def __init__(self, data: bytes, short: int, looks: int) -> None:
        self._data, self._short, self._looks = data, short, looks

    def _now(self) -> bytes:
        self._looks -= 1
        return self._data if self._looks < 0 else self._data[: self._short]

    def pread(self, count: int, at: int) -> bytes:
        return self._now()[at : at + count]

    def size(self) -> int:
        return len(self._now())

    def close(self) -> None:
        pass


def test_frame_finished_while_it_is_looked_for(tmp_path: Path) -> None:
    """A frame larger than one look, and the next, written at any moment: neither is damage."""
    server = Server(tmp_path)
    for first in (0, 1000):
        server.log.append(TELEMETRY, 1000, SUFFIX, region(*range(first, first + 1000)))
        server.log.append(TELEMETRY, 1, SUFFIX, b"\x0a" + varint(600_000) + bytes(600_000))
        server.log.commit()
    server.close()
    (path,) = (tmp_path / "telemetry").glob("*.seg")
    name = list_segments(path.parent)[0]
    data = path.read_bytes()
    for short in (70, 200, 300_000, 500_000):
        for looks in range(12):
            reader = SegmentReader(path, name)
            reader.close()
            reader._source = GrowingFile(data, short, looks)  # type: ignore[assignment]
            found = [frame for _ in range(20) if (frame := reader.next()) is not None]
            assert [frame.header.first_offset for frame in found] == [0, 1001], (short, looks)
            assert reader.damaged_bytes == 0


def _bulky(server: Server, *sizes: int) -> None:
    """Append a frame for each size, of one record of about so many bytes."""
    for size in sizes:
        server.log.append(TELEMETRY, 1, SUFFIX, b"\x0a" + varint(size) + bytes(size))
        server.log.commit()


def test_frames_of_any_size_at_once(tmp_path: Path) -> None:
    """Small frames and such as fill a read, taken while the log grows: each once, in order."""
    server = Server(tmp_path)
    reader = ClassReader(tmp_path / "telemetry", TELEMETRY, 0)
    sizes, got = (5, 200_000, 140_000, 5, 5, 400_000, 131_000, 1_500_000, 60, 300_000), []
    reader.next(None)
    for each in (sizes[:3], sizes[3:4], sizes[4:]):
        _bulky(server, *each)
        while rows := reader.take(1 << 20):
            got += [(row[1], len(row[4])) for row in rows]
    assert got == [(n, 1 + len(varint(size)) + size) for n, size in enumerate(sizes)]
    assert (reader.gaps, reader.damaged_bytes) == ([], 0)
    reader.close()
    server.close()


def test_cut_back_between_large_frames(tmp_path: Path) -> None:
    """A tail that goes away after it was looked at is waited for, not read past."""
    server = Server(tmp_path)
    _bulky(server, 200_000, 200_000, 200_000)
    (path,) = server.segments()
    server.close()
    whole = path.read_bytes()
    for left in (-100, 0, 40, 56, 100_000):
        path.write_bytes(whole)
        reader = ClassReader(tmp_path / "telemetry", TELEMETRY, 0)
        assert reader.next(None)
        assert reader.take(1)[0][1] == 1
        os.truncate(path, 64 + 2 * (len(whole) - 64) // 3 + left)
        assert not reader.take(1)
        path.write_bytes(whole)
        assert reader.take(1)[0][1] == 2
        assert (reader.gaps, reader.damaged_bytes) == ([], 0)
        reader.close()
