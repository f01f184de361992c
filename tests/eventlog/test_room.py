"""What the log says of the room that telemetry and logs have."""

from math import inf
from pathlib import Path

from elkeid.eventlog.files import Space
from elkeid.eventlog.room import ROOM_SECONDS, Room, room_rate
from tests.eventlog.support import CONTROL, LOGS, TELEMETRY, Server

MB = 1_000_000


def looks(server: Server) -> list[Room]:
    """What is told from now on."""
    found: list[Room] = []
    server.log.looked = found.append
    return found


def test_rate_falls_with_the_room() -> None:
    """What is left is given out over half a minute, to all processes that write there alike."""
    assert room_rate(30 * MB, 64 * MB, 1) == 30 * MB / ROOM_SECONDS
    assert room_rate(30 * MB, 64 * MB, 3) == 10 * MB / ROOM_SECONDS
    assert room_rate(-5, 64 * MB, 1) == 0
    assert room_rate(64 * MB, 64 * MB, 1) == inf  # a segment is full before, and can go
    assert room_rate(64 * MB, 64 * MB, 2) < inf


def test_looks_tell_rate_and_bytes(tmp_path: Path) -> None:
    """Each look at the disk tells what may be written, and what was."""
    server = Server(tmp_path, min_free_bytes=10 * MB)
    found = looks(server)
    server.put(1)
    server.put(2, cls=LOGS)
    server.put(3, cls=CONTROL)
    server.clock.advance(1)
    assert found[-1].rate == inf
    written = found[-1].written
    assert 0 < written < sum(path.stat().st_size for path in tmp_path.glob("[tl]*/*.seg"))
    server.disk.room = Space(13 * MB, 1 << 40)
    server.put(4)
    server.clock.advance(1)
    assert found[-1].rate == 3 * MB / ROOM_SECONDS
    assert found[-1].written > written
    server.disk.room = Space(9 * MB, 1 << 40)
    server.put(5)
    server.clock.advance(1)
    assert found[-1].rate == 0  # all are refused
    server.put(6)
    assert server.ledger()["dropped"] == {"min_free": 1}
    server.close()


def test_no_rate_while_a_segment_can_go(tmp_path: Path) -> None:
    """Stored segments are deleted before anything new is dropped."""
    server = Server(tmp_path, segment_bytes=400, telemetry_cap_bytes=1 << 30)
    for number in range(10):
        server.put(number)
    found = looks(server)
    server.disk.room = Space(100, 1 << 40)
    server.clock.advance(1)
    assert found[-1].rate == inf
    server.close()


def test_control_segments_make_room_only_for_what_is_kept_free(tmp_path: Path) -> None:
    """They go below min_free_bytes; without such a floor no telemetry displaces them."""
    for minimum, expected in ((0, 100 / ROOM_SECONDS), (50, inf)):
        server = Server(
            tmp_path / str(minimum),
            segment_bytes=400,
            min_free_bytes=minimum,
            telemetry_cap_bytes=1 << 30,
        )
        for number in range(10):
            server.put(number, cls=CONTROL)
        server.put(1, cls=TELEMETRY)
        found = looks(server)
        server.disk.room = Space(100, 1 << 40)
        server.clock.advance(1)
        assert found[-1].rate == expected
        server.close()
