"""Packed segments: the same records, in less room, whatever happens while packing."""

import random
from math import inf
from pathlib import Path

import pytest

from elkeid.config import MiB
from elkeid.eventlog.backlog import Backlog, backlog
from elkeid.eventlog.cursors import ClassCursor
from elkeid.eventlog.files import FileOperations
from elkeid.eventlog.format import SegmentName
from elkeid.eventlog.ledger import read_ledger
from elkeid.eventlog.packed import PIECE_BYTES, PackedFile, pack, packed_path, put_in_place
from elkeid.eventlog.reader import LogReader
from elkeid.wire import mqdata
from elkeid.wire.datatypes import RecordClass
from tests.kafka.support import Log

_words = random.Random(1)
WORDS = [b"%08x" % _words.getrandbits(32) for _ in range(100)]


def filled(folder: Path, batches: int = 60, **settings: object) -> Log:
    """A log of several segments, whose reader ``kafka`` has taken nothing."""
    chance = random.Random(7)
    log = Log(folder, segment_bytes=MiB, **settings)
    for _ in range(batches):
        bodies = [b" ".join(chance.choices(WORDS, k=90)) for _ in range(100)]
        log.append(b"a", *bodies)
    return log


def values(folder: Path) -> list[bytes]:
    """Everything that can be read."""
    with LogReader(folder) as source:
        return [
            record + entry.suffix
            for entry in source.entries(source.extent())
            for record in mqdata.records(entry.region)
        ]


def housekeep(log: Log, rounds: int = 3) -> None:
    """Let time pass until what waits is packed."""
    for _ in range(rounds):
        log.clock.advance(11)


def test_waiting_segments_are_packed(tmp_path: Path) -> None:
    """What the reader has not begun is packed; it reads the same, and the sizes are right."""
    log = filled(tmp_path / "log")
    before = log.log.stats().classes[RecordClass.TELEMETRY]
    housekeep(log)
    folder = tmp_path / "log" / "telemetry"
    packed = sorted(folder.glob("*.zst"))
    assert len(packed) >= 3
    after = log.log.stats().classes[RecordClass.TELEMETRY]
    assert after.bytes_on_disk < before.bytes_on_disk * 0.8
    assert after.bytes_on_disk == sum(each.stat().st_size for each in folder.glob("*.seg*"))
    assert values(tmp_path / "log") == log.sent[RecordClass.TELEMETRY, b"a"]
    waiting = log.log.backlogs["kafka", "telemetry"]
    assert waiting.records == 6000
    assert 0 < waiting.bytes <= after.bytes_on_disk
    log.close()
    again = Log(tmp_path / "log", segment_bytes=MiB)
    assert again.log.stats().classes[RecordClass.TELEMETRY].bytes_on_disk == after.bytes_on_disk
    assert values(tmp_path / "log") == log.sent[RecordClass.TELEMETRY, b"a"]
    again.append(b"a", b"more")
    assert read_ledger(tmp_path / "log")["telemetry"]["appended"] == 6001


def test_nobody_waits_nothing_is_packed(tmp_path: Path) -> None:
    """Without readers of the settings segments stay as they are."""
    log = filled(tmp_path / "log", readers=())
    housekeep(log)
    assert not list((tmp_path / "log" / "telemetry").glob("*.zst"))


def test_packed_segments_are_given_up_like_others(tmp_path: Path) -> None:
    """A cap deletes packed segments too, and the reader's loss is counted."""
    log = filled(tmp_path / "log", telemetry_cap_bytes=16 * MiB)
    housekeep(log)
    chance = random.Random(3)
    for _ in range(60):
        log.append(b"b", *(chance.randbytes(6000) for _ in range(50)))
        log.clock.advance(2)
    log.clock.advance(30)
    folder = tmp_path / "log" / "telemetry"
    assert sum(each.stat().st_size for each in folder.glob("*.seg*")) <= 17 * MiB
    assert log.ledger()["expired"]["cap"] > 0  # type: ignore[index]


def test_crash_while_packing(tmp_path: Path) -> None:
    """Killed at any step: what is half done is removed, what is done is used."""
    log = filled(tmp_path / "log")
    log.close()
    sent, files = log.sent[RecordClass.TELEMETRY, b"a"], FileOperations()
    folder = tmp_path / "log" / "telemetry"
    first, second, *_ = sorted(folder.glob("*.seg"))
    pack(files, first)  # and killed
    pack(files, second)
    kept = second.read_bytes()
    put_in_place(files, second)
    second.write_bytes(kept)  # killed before it was removed
    log = Log(tmp_path / "log", segment_bytes=MiB)
    assert first.exists()
    assert not second.exists()
    assert packed_path(second).exists()
    assert not list(folder.glob("*.new"))
    assert values(tmp_path / "log") == sent


def test_last_segment_packed(tmp_path: Path) -> None:
    """A log whose last segment is packed is opened, and goes on in a new one."""
    log = filled(tmp_path / "log")
    log.close()
    last = max((tmp_path / "log" / "telemetry").glob("*.seg"))
    pack(FileOperations(), last)
    put_in_place(FileOperations(), last)
    again = Log(tmp_path / "log", segment_bytes=MiB)
    again.append(b"a", b"more")
    sent = log.sent[RecordClass.TELEMETRY, b"a"] + again.sent[RecordClass.TELEMETRY, b"a"]
    assert values(tmp_path / "log") == sent


def test_damage_costs_its_piece(tmp_path: Path) -> None:
    """A damaged piece of a packed segment costs its own records; they are counted."""
    log = filled(tmp_path / "log")
    housekeep(log)
    path = sorted((tmp_path / "log" / "telemetry").glob("*.zst"))[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    got = values(tmp_path / "log")
    sent = log.sent[RecordClass.TELEMETRY, b"a"]
    assert len(sent) * 0.5 < len(got) < len(sent)
    assert set(got) < set(sent)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 5])
def test_reads_like_the_plain_file(tmp_path: Path, size: int) -> None:
    """Any range of a packed file is that of the plain one."""
    plain, data = tmp_path / "x.seg", random.Random(size).randbytes(size // 2) * 2
    plain.write_bytes(data)
    written = pack(FileOperations(), plain)
    put_in_place(FileOperations(), plain)
    assert not plain.exists()
    assert packed_path(plain).stat().st_size == written
    source = PackedFile(plain)
    assert source.size() == len(data)
    for at, count in ((0, 10), (PIECE_BYTES - 3, 10), (len(data) - 4, 99), (0, 1 << 30)):
        if at >= 0:
            assert source.pread(count, at) == data[at : at + count]
    source.close()


def test_room_for_more_is_told_in_seconds(tmp_path: Path) -> None:
    """Room is what the cap leaves at the rate of late; without a rate it is endless."""
    folder = tmp_path / "telemetry"
    folder.mkdir()
    names = [SegmentName(base, (1_000_000 + at) << 20) for base, at in ((0, 0), (100, 50_000))]
    for name in names:
        (folder / str(name)).write_bytes(bytes(1000))
    now = 1_000_000 + 100_000  # 2,000 bytes in 100 s

    def measured(position: int, now_ms: int = now) -> Backlog:
        place = ClassCursor(position=position)
        return backlog(folder, names, 200, place, now_ms=now_ms, cap_bytes=11_000)

    assert measured(0) == Backlog(200, 2000, 100.0, 450.0)
    assert measured(150) == Backlog(50, 500, 25.0, 525.0)
    assert measured(200).room_seconds == inf
    assert measured(0, 1_000_000).room_seconds == inf
