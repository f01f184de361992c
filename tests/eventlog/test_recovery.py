"""Opening a log after any end: whole frames are kept, torn ones cut, no offset is given twice."""

import shutil
import struct
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.errors import LogFormatError
from elkeid.eventlog import LogReader
from elkeid.eventlog.cursors import (
    ClassCursor,
    Cursor,
    cursor_path,
    encode_cursor,
    save_cursor,
)
from elkeid.eventlog.files import FileOperations
from elkeid.eventlog.state import SLOT_BYTES
from tests.eventlog.support import (
    BROKEN,
    CONTROL,
    LOGS,
    SMALL,
    SUFFIX,
    TELEMETRY,
    Disk,
    Killed,
    Server,
    pairs,
    read_all,
    region,
)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a folder, but for locks and the reserve."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("lock", "reserve") and path.suffix != ".lock"
    }


def copy(source: Path, target: Path) -> None:
    """Copy a log, but for the empty room it keeps."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("reserve"))


@pytest.mark.parametrize("synced", [False, True])
def test_cut_at_every_byte(tmp_path: Path, synced: bool) -> None:
    """Whatever byte the file ends at, whole frames stay, and what is known lost is counted."""
    server = Server(tmp_path / "whole")
    sizes = []
    for numbers in ((0, 1), (2,), (3, 4, 5)):
        server.put(*numbers)
        sizes.append(server.segments()[0].stat().st_size)
    if synced:
        server.clock.advance(1)
    server.kill()
    whole = (tmp_path / "whole" / "telemetry").glob("*.seg")
    name = next(whole).name
    for cut in range(sizes[-1] + 1):
        directory = tmp_path / "cut"
        copy(tmp_path / "whole", directory)
        with (directory / "telemetry" / name).open("r+b") as file:
            file.truncate(cut)
        kept = [0, 2, 3, 6][sum(cut >= size for size in sizes)]
        server = Server(directory)
        assert read_all(directory) == [(n, n) for n in range(kept)], cut
        account, stats = server.ledger(), server.log.stats().classes[TELEMETRY]
        if synced:  # the state remembers how far offsets were given out
            assert account["appended"] == 6
            assert stats.lost_records == 6 - kept
        else:
            assert account["appended"] == kept
        assert (stats.lost_tails > 0) == (kept < 6 if synced else cut > 64 and cut not in sizes)
        server.put(100)
        assert read_all(directory)[-1] == (account["appended"], 100)
        server.kill()
        server = Server(directory)
        assert server.ledger()["appended"] == account["appended"] + 1
        server.kill()
        shutil.rmtree(directory)


def test_killed_inside_the_write(tmp_path: Path) -> None:
    """Killed while writing: the unfinished frame's records count as dropped, not as stored."""
    size = 56 + 12 + len(SUFFIX) + len(region(7, 8))
    for count in range(size + 1):
        directory = tmp_path / str(count)
        server = Server(directory)
        server.put(1)
        server.log.append(TELEMETRY, 2, SUFFIX, region(7, 8))
        server.disk.failures["writev"] = [("kill", count)]
        with pytest.raises(Killed):
            server.log.commit()
        server.kill()
        server = Server(directory)
        account = server.ledger()
        if count == size:
            assert read_all(directory) == [(0, 1), (1, 7), (2, 8)]
            assert account["dropped"] == {}
        else:
            assert read_all(directory) == [(0, 1)]
            assert account["dropped"] == ({"lost_tail": 2} if count >= 56 else {})
            assert account["appended"] == 1
        server.close()


def test_killed_while_opening(tmp_path: Path) -> None:
    """Killed at any step of the repair: the next start finds the same records and offsets."""
    server = Server(tmp_path / "whole", segment_bytes=400, telemetry_cap_bytes=1600)
    server.disk.always["unlink"] = BROKEN  # so that the next start has segments to delete
    for number in range(41):
        server.put(number)
        server.clock.advance(1)
    server.log.append(TELEMETRY, 2, SUFFIX, region(41, 42))
    server.disk.failures["writev"] = [("kill", 70)]
    with pytest.raises(Killed):
        server.log.commit()
    server.kill()
    copy(tmp_path / "whole", tmp_path / "probe")
    probe = Server(tmp_path / "probe", segment_bytes=400, telemetry_cap_bytes=1600)
    expected = read_all(tmp_path / "probe")
    assert expected[-1] == (40, 40)
    assert probe.ledger()["dropped"] == {"lost_tail": 2}
    steps = list(probe.disk.calls)
    probe.kill()
    assert {"unlink", "ftruncate", "pwrite"} <= {operation for operation, _ in steps}
    for operation in {operation for operation, _ in steps}:
        for index in range(sum(each == operation for each, _ in steps)):
            directory = tmp_path / f"{operation}-{index}"
            copy(tmp_path / "whole", directory)
            disk = Disk()
            disk.failures[operation] = [None] * index + ["kill"]
            with pytest.raises(Killed):
                Server(directory, disk=disk, segment_bytes=400, telemetry_cap_bytes=1600)
            server = Server(directory, segment_bytes=400, telemetry_cap_bytes=1600)
            assert read_all(directory) == expected
            account = server.ledger()
            assert account["appended"] == 41
            assert account["dropped"] in ({"lost_tail": 2}, {})
            server.close()


def test_garbage_at_the_tail(tmp_path: Path) -> None:
    """Zeros or anything else behind the last frame are cut off."""
    for tail in (b"\0", bytes(10_000), b"\xf5EKF", b"\xf5EKF" + bytes(100), b"x" * 70):
        directory = tmp_path / str(len(tail))
        server = Server(directory)
        server.put(1)
        server.kill()
        path = server.segments()[0]
        whole = path.read_bytes()
        path.write_bytes(whole + tail)
        server = Server(directory)
        assert path.read_bytes() == whole
        assert server.log.stats().classes[TELEMETRY].lost_bytes == len(tail)
        server.put(2)
        assert read_all(directory) == [(0, 1), (1, 2)]
        server.close()


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """Files that are not ours, in our folders, neither stop the log nor are touched."""
    server = Server(tmp_path)
    server.put(1)
    server.close()
    (tmp_path / "telemetry" / "README").write_text("mine")
    (tmp_path / "telemetry" / "00000000000000000000.seg").write_text("mine")
    (tmp_path / "readers" / "notes.txt").write_text("mine")
    server = Server(tmp_path)
    server.put(2)
    assert read_all(tmp_path) == [(0, 1), (1, 2)]
    server.close()
    assert (tmp_path / "telemetry" / "README").read_text() == "mine"


def test_never_below_a_cursor(tmp_path: Path) -> None:
    """After a power cut the log may end before a reader's place: offsets go on above it."""
    server = Server(tmp_path)
    server.put(1)
    server.kill()
    cursor = Cursor(used_ms=2_000_000_000_000, classes={"telemetry": ClassCursor(9, 9)})
    save_cursor(FileOperations(), cursor_path(tmp_path, "kafka"), cursor)
    server = Server(tmp_path, readers=("kafka", "other"))
    with LogReader(tmp_path, "other", kept=True) as reader:
        server.put(2)
        assert list(pairs(reader)) == [(0, 1), (9, 2)]
        reader.acknowledge(TELEMETRY, 10)
        reader.save()
    account = server.ledger()
    assert account["appended"] == 10
    assert account["readers"]["kafka"]["waiting"] == 1
    assert account["readers"]["other"] == {
        "acknowledged": 2,
        "set_aside": 0,
        "waiting": 0,
        "expired": {"lost_tail": 8},
    }
    server.close()


def test_sealed_segment_lost_its_tail(tmp_path: Path) -> None:
    """A power cut may also take the end of a segment sealed just before: that is noticed too."""
    server = Server(tmp_path, **SMALL)
    server.put(0)
    server.clock.advance(1)
    for number in range(1, 12):
        server.put(number)
    server.kill()
    first, second = server.segments()[:2]
    with first.open("r+b") as file:
        file.truncate(first.stat().st_size - 10)
    base = int(second.name[:20])
    server = Server(tmp_path, **SMALL)
    assert server.log.stats().classes[TELEMETRY].lost_records == 1
    with LogReader(tmp_path, "me") as reader:
        assert list(pairs(reader)) == [(n, n) for n in range(12) if n != base - 1]
        reader.acknowledge(TELEMETRY, 12)
        reader.save()
    assert server.ledger()["readers"]["me"]["expired"] == {"damaged": 1}
    server.close()


def test_lost_state_file(tmp_path: Path) -> None:
    """Without the small file the frames still know how much was dropped, if not why."""
    server = Server(tmp_path)
    server.log.drop(TELEMETRY, "rate", 4)
    server.put(1)
    server.close()
    (tmp_path / "telemetry" / "state").unlink()
    server = Server(tmp_path)
    assert server.ledger() == {
        "read": 5,
        "appended": 1,
        "dropped": {"unrecorded": 4},
        "readers": {},
    }
    server.put(2)
    assert read_all(tmp_path) == [(0, 1), (1, 2)]
    server.close()


@pytest.mark.parametrize("kind", ["segment", "old segment", "state", "cursor"])
def test_unknown_version_is_refused_untouched(tmp_path: Path, kind: str) -> None:
    """A file of a newer version ends the start with a sentence that names it; nothing changes."""
    server = Server(tmp_path, **SMALL)
    for number in range(20):
        server.put(number)
    server.close()
    LogReader(tmp_path, "me").close()
    if kind.endswith("segment"):
        path = server.segments()[-1 if kind == "segment" else 0]
        data = bytearray(path.read_bytes())
        data[8:10] = struct.pack("<H", 2)
        data[60:64] = struct.pack("<I", crc32c(bytes(data[:60])))
    elif kind == "state":
        path = tmp_path / "logs" / "state"
        data = bytearray(path.read_bytes())
        for at in (0, SLOT_BYTES):
            (size,) = struct.unpack_from("<H", data, at + 6)
            crc = crc32c(bytes(data[at + 12 : at + 20 + size]), 2 - 1)
            data[at + 4 : at + 12] = struct.pack("<HHI", 2, size, crc)
    else:
        path = cursor_path(tmp_path, "me")
        data = bytearray(encode_cursor(Cursor(format=2)))
    path.write_bytes(data)
    with (tmp_path / "control" / "torn").open("wb"):
        pass
    before = contents(tmp_path)
    with pytest.raises(LogFormatError, match=f"{path}: .*format 2, this version knows 1; run"):
        Server(tmp_path, **SMALL)
    assert contents(tmp_path) == before
    if kind != "state":
        with pytest.raises(LogFormatError):
            list(pairs(LogReader(tmp_path, "me")))


WHOLE = [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of two segments with eight records, four drops and a reader."""
    directory = tmp_path_factory.mktemp("original")
    server = Server(directory, segment_bytes=250)
    server.log.drop(TELEMETRY, "rate", 4)
    for number in range(0, 6, 2):
        server.put(number, number + 1)
    server.clock.advance(1)
    server.put(6, 7)
    with LogReader(directory, "me", wall=server.clock.seconds, files=Disk()) as reader:
        assert list(pairs(reader)) == WHOLE
        reader.acknowledge(TELEMETRY, 3)
        reader.save()
    server.kill()
    assert len(server.segments()) == 2
    return directory


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bit_flips(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Flipped bits anywhere cost records at most: never wrong ones, never the server."""
    directory = tmp_path_factory.mktemp("flip") / "log"
    copy(original, directory)
    paths = [directory / name for name in sorted(contents(directory))]
    path = data.draw(st.sampled_from(paths))
    content = bytearray(path.read_bytes())
    used = len(content.rstrip(b"\0"))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(used, 1) * 8 - 1))
        if place // 8 < len(content):
            content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    check(directory, path.suffix == ".seg")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_overwritten_parts(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Blocks overwritten, cut out or doubled cost records at most."""
    directory = tmp_path_factory.mktemp("part") / "log"
    copy(original, directory)
    path = data.draw(st.sampled_from([directory / name for name in sorted(contents(directory))]))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    put = data.draw(st.one_of(st.binary(max_size=80), st.just(content[start:end] * 2)))
    path.write_bytes(content[:start] + put + content[end:])
    check(directory, path.suffix == ".seg")


def check(directory: Path, lossy: bool) -> None:
    """What is read is a part of what was written; the log opens, balances and goes on."""
    before = read_all(directory)
    assert before == sorted(set(before))
    assert set(before) <= set(WHOLE)
    if not lossy:
        assert before == WHOLE
    server = Server(directory, segment_bytes=250)
    assert read_all(directory) == before
    appended = server.ledger()["appended"]
    assert appended > max((offset for offset, _ in before), default=-1)
    with LogReader(directory, "me", wall=server.clock.seconds, files=Disk()) as reader:
        got = list(pairs(reader))
        assert got == [each for each in before if each[0] >= 3] or got == before
        for each in (CONTROL, TELEMETRY, LOGS):
            reader.acknowledge(each, 0)
        if got:
            reader.acknowledge(TELEMETRY, got[-1][0] + 1)
        reader.save()
    server.put(100)
    assert server.ledger()["appended"] == appended + 1
    assert read_all(directory) == [*before, (appended, 100)]
    server.close()
    server = Server(directory, segment_bytes=250)
    assert server.ledger()["appended"] == appended + 1
    server.close()
    shutil.rmtree(directory)
