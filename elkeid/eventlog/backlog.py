"""How much a reader has before it, told from the names and sizes of segments."""

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


NOTHING = Backlog(0, 0, 0.0)


def backlog(
    folder: Path, names: list[SegmentName], next_offset: int, place: ClassCursor, now_ms: int
) -> Backlog:
    """Measure what is left.

    Args:
        folder: of the class.
        names: its segments, oldest first.
        next_offset: offset after its last record.
        place: where the reader stands.
        now_ms: milliseconds since the epoch.
    """
    records = next_offset - place.read_to + place.owed
    if records <= 0:
        return NOTHING
    total, oldest_ms = 0.0, now_ms
    for index, name in enumerate(names):
        following = names[index + 1] if index + 1 < len(names) else None
        end = following.base if following else next_offset
        if end <= place.position or end == name.base:
            continue
        try:
            size = file_size(folder / str(name))
        except FileNotFoundError:  # deleted meanwhile
            continue
        left = (end - max(name.base, place.position)) / (end - name.base)
        total += size * left
        until_ms = following.created_ms if following else now_ms
        at = name.created_ms + (until_ms - name.created_ms) * (1 - left)
        oldest_ms = min(oldest_ms, int(at))
    return Backlog(records, int(total), max(0.0, (now_ms - oldest_ms) / 1000))
