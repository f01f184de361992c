"""The writer: group commit, durability, segments, limits, the ledger."""

from pathlib import Path

import pytest

from elkeid.errors import OperatorError
from elkeid.eventlog import LogReader
from elkeid.eventlog.format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES
from elkeid.eventlog.log import HOUSEKEEPING_SECONDS, MAX_BUFFER_BYTES
from tests.eventlog.support import (
    CONTROL,
    LOGS,
    NOW,
    SMALL,
    SUFFIX,
    TELEMETRY,
    Server,
    numbers_of,
    open_descriptors,
    read_all,
    region,
)


def test_one_write_a_class_and_turn(tmp_path: Path) -> None:
    """What agents bring in one turn of the reactor costs one write for each class."""
    server = Server(tmp_path)
    server.turn()
    server.put(0)
    server.put(0, cls=CONTROL)
    before = server.disk.count("writev")
    for number in range(1, 11):
        server.log.append(TELEMETRY, 1, SUFFIX, region(number))
    server.log.append(CONTROL, 2, SUFFIX, region(20, 21))
    assert server.disk.count("writev") == before
    server.turn()
    assert server.disk.count("writev") == before + 2
    assert read_all(tmp_path) == [(n, n) for n in range(11)]
    assert read_all(tmp_path, CONTROL) == [(0, 0), (1, 20), (2, 21)]
    server.close()


def test_commit_before_answering(tmp_path: Path) -> None:
    """Before an agent is told that all is stored, a commit stores it at once, and says so."""
    server = Server(tmp_path)
    server.log.append(CONTROL, 1, SUFFIX, region(7))
    assert server.log.commit()
    assert read_all(tmp_path, CONTROL) == [(0, 7)]
    before = server.disk.count("writev")
    server.turn()
    assert server.disk.count("writev") == before
    server.close()


def test_a_turn_that_is_told_of(tmp_path: Path) -> None:
    """Whoever says when a turn ends needs no timer for it; an empty turn writes nothing."""
    server = Server(tmp_path)
    server.turn()
    before, timers = server.disk.count("writev"), len(server.clock.getDelayedCalls())
    server.log.begin_turn()
    for number in range(3):
        server.log.append(TELEMETRY, 1, SUFFIX, region(number))
    server.log.drop(LOGS, "rate", 2)
    assert server.disk.count("writev") == before
    assert len(server.clock.getDelayedCalls()) == timers
    server.log.end_turn()
    assert read_all(tmp_path) == [(n, n) for n in range(3)]
    before = server.disk.count("writev")
    server.log.begin_turn()
    server.log.end_turn()
    assert server.disk.count("writev") == before
    server.put(3)  # and the timer is there again for others
    assert read_all(tmp_path) == [(n, n) for n in range(4)]
    server.close()


def test_much_in_one_turn_is_written_early(tmp_path: Path) -> None:
    """A turn that brings more than the buffer holds does not grow the process."""
    server = Server(tmp_path)
    big = bytes(MAX_BUFFER_BYTES // 2 + 1)
    server.log.append(LOGS, 1, SUFFIX, big)
    assert server.log.stats().buffered_bytes == len(SUFFIX + big)
    server.log.append(LOGS, 1, SUFFIX, big)
    assert server.log.stats().buffered_bytes == 0
    assert server.log.stats().classes[LOGS].next_offset == 2
    server.close()


def test_one_huge_batch_is_written_in_pieces(tmp_path: Path) -> None:
    """It is whole and in order, and no frame is much larger than the buffer."""
    server = Server(tmp_path)
    numbers = range(MAX_BUFFER_BYTES // 2)  # of 6 to 8 bytes each
    batch = region(*numbers)
    assert len(batch) > 3 * MAX_BUFFER_BYTES
    server.put(0)
    writes = server.disk.count("writev")
    server.log.append(TELEMETRY, len(numbers), SUFFIX, batch)
    server.log.commit()
    assert server.disk.count("writev") >= writes + 2
    assert read_all(tmp_path)[1:] == [(number + 1, number) for number in numbers]
    assert server.ledger()["appended"] == len(numbers) + 1
    server.close()


def test_fsync_within_the_interval(tmp_path: Path) -> None:
    """Written data is made durable after the fsync interval, and idle logs are left alone."""
    server = Server(tmp_path, fsync=1.0)
    server.clock.advance(0.5)
    server.put(1)
    before = server.disk.count("fsync")
    server.clock.advance(0.99)
    assert server.disk.count("fsync") == before
    server.clock.advance(0.01)
    assert server.disk.count("fsync") >= before + 2  # the segment, and the folder it is new in
    server.clock.advance(1)
    before = server.disk.count("fsync")
    server.clock.advance(HOUSEKEEPING_SECONDS * 3)
    assert server.disk.count("fsync") <= before + 1  # the state once, for the last checkpoint
    server.close()


def test_close_leaves_nothing_open(tmp_path: Path) -> None:
    """A stop commits, makes durable, and leaves no timer, file or lock behind."""
    files_before = open_descriptors()
    server = Server(tmp_path)
    server.log.append(LOGS, 1, SUFFIX, region(3))
    before = server.disk.count("fsync")
    server.close()
    assert server.disk.count("fsync") > before
    assert server.clock.getDelayedCalls() == []
    assert open_descriptors() == files_before
    assert read_all(tmp_path, LOGS) == [(0, 3)]
    Server(tmp_path).close()


def test_offsets_go_on_after_restarts(tmp_path: Path) -> None:
    """Offsets count on over restarts, in the same segment, without gap or repetition."""
    for start in range(5):
        server = Server(tmp_path)
        server.put(start)
        server.close()
    assert read_all(tmp_path) == [(n, n) for n in range(5)]
    assert len(server.segments()) == 1


def test_segments_roll(tmp_path: Path) -> None:
    """A full segment is sealed and never changed again."""
    server = Server(tmp_path, **SMALL)
    for number in range(40):
        server.put(number)
    names = [path.name for path in server.segments()]
    assert len(names) > 5
    sealed = {path: path.read_bytes() for path in server.segments()[:-1]}
    assert all(len(data) <= 400 for data in sealed.values())
    for number in range(40, 50):
        server.put(number)
    assert {path: path.read_bytes() for path in sealed} == sealed
    assert read_all(tmp_path) == [(n, n) for n in range(50)]
    server.close()


def test_a_frame_larger_than_a_segment(tmp_path: Path) -> None:
    """A batch larger than a segment is stored whole, in a segment of its own."""
    server = Server(tmp_path, **SMALL)
    server.put(1)
    server.put(*range(2, 1000))
    server.put(1000)
    assert [n for _, n in read_all(tmp_path)] == list(range(1, 1001))
    assert len(server.segments()) == 3
    server.close()


def test_drops_are_counted_over_restarts(tmp_path: Path) -> None:
    """Records that are dropped stay in the ledger by reason, though they are nowhere else."""
    server = Server(tmp_path)
    server.log.drop(LOGS, "rate", 5)
    server.turn()
    server.log.drop(LOGS, "rate", 2)
    server.log.drop(LOGS, "oversize", 1)
    server.turn()
    server.kill()
    server = Server(tmp_path)
    assert server.ledger(LOGS) == {
        "read": 8,
        "appended": 0,
        "dropped": {"rate": 7, "oversize": 1},
        "readers": {},
    }
    server.close()


def test_reasons_are_bounded(tmp_path: Path) -> None:
    """However many reasons a caller invents, the small file that counts them suffices."""
    server = Server(tmp_path)
    for number in range(100):
        server.log.drop(LOGS, f"reason-{number:040d}", 1)
    server.turn()
    server.kill()
    server = Server(tmp_path)
    dropped = server.ledger(LOGS)["dropped"]
    assert sum(dropped.values()) == 100
    assert dropped["other"] == 100 - 32
    server.close()


def test_only_one_writer(tmp_path: Path) -> None:
    """A second process on the same folder is told so, and changes nothing."""
    server = Server(tmp_path)
    with pytest.raises(OperatorError, match=f"{tmp_path}: another process writes"):
        Server(tmp_path)
    server.put(1)
    server.close()
    Server(tmp_path).close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A data folder that is a file is one sentence for the operator."""
    (tmp_path / "data").write_text("")
    with pytest.raises(OperatorError, match=r"eventlog: .*; server\.data_dir must name"):
        Server(tmp_path / "data" / "eventlog")


def test_cap_deletes_the_oldest(tmp_path: Path) -> None:
    """At its cap a class loses its oldest sealed segment; a reader's loss shows as expired{cap}."""
    server = Server(tmp_path, segment_bytes=400, telemetry_cap_bytes=2000, readers=("kafka",))
    for number in range(200):
        server.put(number)
        server.clock.advance(1)
    stats = server.log.stats().classes[TELEMETRY]
    assert stats.bytes_on_disk <= 2000
    assert sum(path.stat().st_size for path in server.segments()) == stats.bytes_on_disk
    oldest = stats.oldest_offset
    assert 100 < oldest < 200
    assert read_all(tmp_path) == [(n, n) for n in range(oldest, 200)]
    assert server.ledger()["readers"]["kafka"] == {
        "acknowledged": 0,
        "set_aside": 0,
        "waiting": 200 - oldest,
        "expired": {"cap": oldest},
    }
    server.close()


def test_small_cap_keeps_several_segments(tmp_path: Path) -> None:
    """A cap smaller than a segment still keeps recent records: segments shrink to fit it."""
    server = Server(tmp_path, segment_bytes=1 << 20, telemetry_cap_bytes=2000)
    for number in range(100):
        server.put(number)
        server.clock.advance(1)
    assert len(read_all(tmp_path)) > 10
    assert server.log.stats().classes[TELEMETRY].bytes_on_disk <= 2000
    server.close()


def test_retention_by_age(tmp_path: Path) -> None:
    """Records older than the retention go, also when nothing new arrives."""
    server = Server(tmp_path, retention=3600.0)
    server.put(1)
    server.clock.advance(3000)
    server.put(2)
    server.clock.advance(1000)  # the first is too old, its segment not yet sealed long enough
    assert read_all(tmp_path) == [(0, 1), (1, 2)]
    server.clock.pump([HOUSEKEEPING_SECONDS] * 400)
    assert read_all(tmp_path) == []
    assert server.segments() == []
    server.put(3)
    assert read_all(tmp_path) == [(2, 3)]
    server.close()
    server = Server(tmp_path, server.clock)
    assert server.ledger()["appended"] == 3
    server.close()


def test_retention_waits_for_readers_of_the_settings(tmp_path: Path) -> None:
    """Age deletes nothing that a reader named in the settings still needs; others lose it."""
    server = Server(tmp_path, retention=3600.0, readers=("kafka",))
    server.put(1)
    with LogReader(tmp_path, "guest", wall=server.clock.seconds):
        server.clock.pump([HOUSEKEEPING_SECONDS] * 800)
        assert read_all(tmp_path) == [(0, 1)]
        with LogReader(tmp_path, "kafka", kept=True, wall=server.clock.seconds) as reader:
            (entry,) = reader.entries()
            reader.acknowledge(entry.record_class, entry.end_offset)
            reader.save()
        server.clock.pump([HOUSEKEEPING_SECONDS] * 2)
        assert read_all(tmp_path) == []
        account = server.ledger()["readers"]
    assert account["kafka"]["acknowledged"] == 1
    assert account["guest"] == {
        "acknowledged": 0,
        "set_aside": 0,
        "waiting": 0,
        "expired": {"retention": 1},
    }
    server.close()


def test_a_reader_of_the_settings_counts_from_the_first_start(tmp_path: Path) -> None:
    """A reader named in the settings holds records back before it has ever run."""
    server = Server(tmp_path)
    server.put(1)
    server.close()
    server = Server(tmp_path, readers=("analysis",))
    server.put(2)
    assert server.ledger()["readers"]["analysis"]["waiting"] == 2
    server.close()


def test_unused_readers_are_forgotten(tmp_path: Path) -> None:
    """A reader that is not in the settings is forgotten after a day without use, not before."""
    server = Server(tmp_path, readers=("kafka",))
    server.put(1)
    LogReader(tmp_path, "guest", wall=server.clock.seconds).close()
    held = LogReader(tmp_path, "held", wall=server.clock.seconds)
    server.clock.pump([3600.0] * 23)
    assert set(server.ledger()["readers"]) == {"guest", "held", "kafka"}
    server.clock.pump([3600.0] * 2)
    assert set(server.ledger()["readers"]) == {"held", "kafka"}
    held.close()
    server.close()


def test_little_free_space(tmp_path: Path) -> None:
    """Below min_free_bytes the oldest segments go first, telemetry before logs before control."""
    server = Server(tmp_path, min_free_bytes=5_000, segment_bytes=400)
    for number in range(40):
        for cls in (CONTROL, TELEMETRY, LOGS):
            server.put(number, cls=cls)
    server.clock.advance(1)
    before = {cls: len(server.segments(cls)) for cls in (CONTROL, TELEMETRY, LOGS)}
    server.disk.volume = server.disk.used() + 4_000  # a neighbour takes room
    server.clock.advance(HOUSEKEEPING_SECONDS)
    after = {cls: len(server.segments(cls)) for cls in (CONTROL, TELEMETRY, LOGS)}
    assert 1 < after[TELEMETRY] < before[TELEMETRY]
    assert (after[LOGS], after[CONTROL]) == (before[LOGS], before[CONTROL])
    server.disk.volume -= 4_000
    server.clock.advance(HOUSEKEEPING_SECONDS)
    after = {cls: len(server.segments(cls)) for cls in (CONTROL, TELEMETRY, LOGS)}
    assert after[TELEMETRY] == 1
    assert 1 < after[LOGS] < before[LOGS]
    assert after[CONTROL] == before[CONTROL]
    server.close()


def test_new_records_are_dropped_only_when_nothing_can_be_deleted(tmp_path: Path) -> None:
    """With nothing left to delete telemetry and logs are dropped and counted, control is kept."""
    server = Server(tmp_path, min_free_bytes=10_000)
    server.put(1)
    server.disk.room = server.disk.room._replace(free=9_000)
    server.clock.advance(1)
    for cls in (CONTROL, TELEMETRY, LOGS):
        server.put(2, cls=cls)
    assert server.ledger()["dropped"] == server.ledger(LOGS)["dropped"] == {"min_free": 1}
    assert server.ledger(CONTROL)["appended"] == 1
    server.disk.room = server.disk.room._replace(free=10_000)
    server.clock.advance(HOUSEKEEPING_SECONDS)
    server.put(3)
    assert read_all(tmp_path) == [(0, 1), (1, 3)]
    server.close()


def test_default_limits_follow_the_volume(tmp_path: Path) -> None:
    """Unset limits: telemetry half the free space, 50 GiB at most; 5 % of the volume kept free."""
    server = Server(tmp_path, min_free_bytes=None)
    stats = server.log.stats()
    assert stats.min_free_bytes == int(server.disk.room.total * 0.05)
    assert stats.classes[TELEMETRY].cap_bytes == 50 << 30
    server.close()


def test_entries_carry_the_time(tmp_path: Path) -> None:
    """Each entry tells when it was written, in milliseconds since the epoch."""
    server = Server(tmp_path)
    server.clock.advance(2.5)
    server.put(1)
    server.put(2, 3, cls=CONTROL)
    with LogReader(tmp_path) as reader:
        entries = list(reader.entries())
    assert [numbers_of(entry) for entry in entries] == [[2, 3], [1]]
    assert {entry.time_ms for entry in entries} == {int((NOW + 2.5) * 1000)}
    assert entries[0].suffix == SUFFIX
    server.close()


def test_the_file_is_what_the_document_says(tmp_path: Path) -> None:
    """A segment is a 64-byte header and frames of 56 bytes, 12 an entry, and the data."""
    server = Server(tmp_path)
    server.log.append(LOGS, 1, SUFFIX, region(1))
    server.log.append(LOGS, 2, SUFFIX, region(2, 3))
    server.log.commit()
    size = server.segments(LOGS)[0].stat().st_size
    data = 2 * 12 + 2 * len(SUFFIX) + len(region(1, 2, 3))
    assert size == SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + data == 64 + 56 + data
    server.close()
