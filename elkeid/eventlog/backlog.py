"""How much a reader has before it, told from the names and sizes of segments."""

from math import inf
from pathlib import Path
from typing import NamedTuple

from elkeid.eventlog.cursors import ClassCursor
from elkeid.eventlog.format import SegmentName
from elkeid.eventlog.packed import file_size


class Backlog(NamedTuple):
    """What a reader has not dealt with in one class."""

    records: int
    bytes: int  # on disk, packed or not
    seconds: float  # age of the oldest, by the times at which its segment was begun and ended
    room_seconds: float = inf  # until that one is deleted, if nothing is taken meanwhile


NOTHING = Backlog(0, 0, 0.0)
RATE_SECONDS = 60.0
"""Records' rate is told from the newest segments that go back so far, and from all of a longer
backlog, whose bytes are packed."""


def backlog(
    folder: Path,
    names: list[SegmentName],
    next_offset: int,
    place: ClassCursor,
    *,
    now_ms: int,
    cap_bytes: int,
) -> Backlog:
    """Measure what is left, and for how long the log can take more of it.

    Args:
        folder: of the class.
        names: its segments, oldest first.
        next_offset: offset after its last record.
        place: where the reader stands.
        now_ms: milliseconds since the epoch.
        cap_bytes: of the class.
    """
    records = next_offset - place.read_to + place.owed
    if records <= 0:
        return NOTHING
    total, oldest_ms = 0.0, now_ms
    came, since_ms = 0, now_ms  # bytes of the newest segments, and when the first was begun
    for index in reversed(range(len(names))):
        name = names[index]
        following = names[index + 1] if index + 1 < len(names) else None
        end = following.base if following else next_offset
        unread = end > place.position and end != name.base
        if not unread and now_ms - since_ms >= RATE_SECONDS * 1000:
            break
        try:
            size = file_size(folder / str(name))
        except FileNotFoundError:  # deleted meanwhile
            continue
        came, since_ms = came + size, name.created_ms
        if not unread:
            continue
        left = (end - max(name.base, place.position)) / (end - name.base)
        total += size * left
        until_ms = following.created_ms if following else now_ms
        at = name.created_ms + (until_ms - name.created_ms) * (1 - left)
        oldest_ms = min(oldest_ms, int(at))
    seconds = max(0.0, (now_ms - oldest_ms) / 1000)
    passed = (now_ms - since_ms) / 1000
    room = max(0.0, cap_bytes - total) * passed / came if came and passed > 0 else inf
    return Backlog(records, int(total), seconds, room)
