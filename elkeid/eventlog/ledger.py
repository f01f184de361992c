"""The ledger: where every record went, told from a log's files or from its running writer.

`elkeid.ledgers` says which of its sums agree.
"""

from pathlib import Path
from typing import Any

from elkeid.errors import OperatorError
from elkeid.eventlog.cursors import ClassCursor, Cursor, read_cursors
from elkeid.eventlog.segment import SegmentReader, list_segments
from elkeid.eventlog.state import STATE_FILE, LogState, read_state
from elkeid.ledgers import Ledger
from elkeid.wire.datatypes import RecordClass


def reader_account(place: ClassCursor, state: LogState, oldest: int) -> dict[str, Any]:
    """What one reader has made of the records of one class.

    Args:
        place: where it stands.
        state: of the class, its ``next_offset`` being the number of records appended.
        oldest: offset of the first record that can still be read.
    """
    expired = dict(place.expired)
    start, waiting = max(place.read_to, oldest), place.owed
    gone = state.expired(place.read_to, start)
    if waiting and oldest >= place.read_to:  # what was held back is gone with the rest
        reason = next(iter(state.expired(place.read_to - 1, place.read_to)))
        gone[reason] = gone.get(reason, 0) + waiting
        waiting = 0
    for reason, count in gone.items():
        expired[reason] = expired.get(reason, 0) + count
    return {
        "acknowledged": place.acknowledged,
        "set_aside": place.set_aside,
        "waiting": state.next_offset - start + waiting,
        "expired": expired,
    }


def class_account(
    label: str, state: LogState, read: int, oldest: int, cursors: dict[str, Cursor]
) -> dict[str, Any]:
    """The ledger of one class."""
    return {
        "read": read,
        "appended": state.next_offset,
        "dropped": dict(state.dropped),
        "readers": {
            name: reader_account(cursor.classes.get(label, ClassCursor()), state, oldest)
            for name, cursor in sorted(cursors.items())
        },
    }


def read_ledger(directory: Path) -> Ledger:
    """Make the ledger of a log from its files, beside its running writer or without one.

    Raises:
        OperatorError: there is no log.
        LogFormatError: it is of an unknown format version.
    """
    if not directory.is_dir():
        raise OperatorError(
            f"{directory}: there is no event log; start the server first, "
            "or name its settings file with --config"
        )
    # Cursors first: no reader is ahead of what is read next.
    cursors, _ = read_cursors(directory)
    found: Ledger = {}
    for each in RecordClass:
        folder = directory / each.label
        names = list_segments(folder)
        slot = read_state(folder / STATE_FILE)
        state = slot[1] if slot else LogState()
        if names:
            state.next_offset = max(state.next_offset, _end_offset(folder, state))
        oldest = max(names[0].base if names else state.next_offset, state.deleted_to)
        read = state.next_offset + sum(state.dropped.values())
        found[each.label] = class_account(each.label, state, read, oldest, cursors)
    return found


def _end_offset(folder: Path, state: LogState) -> int:
    """Offset after the last whole frame, by the headers from the last checkpoint on."""
    for name in reversed(list_segments(folder)):
        try:
            reader = SegmentReader(folder / str(name), name)
        except FileNotFoundError:  # deleted meanwhile
            continue
        try:
            ident, position, _ = state.checkpoint
            if ident == name.ident and reader.position <= position <= reader.size():
                reader.position = position
            return max(name.base, reader.skip_to(1 << 64))
        finally:
            reader.close()
    return 0
