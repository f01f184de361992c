"""The small preallocated file beside the segments of a class: what must hold on a full disk.

Two slots of 4096 bytes are written in place and by turns, each with a sequence number and a CRC:
a torn write costs the newest slot only. Layout of a slot: magic (4 bytes), format version (u16),
length of the JSON (u16), CRC-32C of what follows (u32), sequence number (u64), the JSON, zeros.
The CRC starts from the format version less one, so that a flipped bit in the version is damage
and not a newer format.
"""

import errno
import os
from pathlib import Path
from struct import Struct

import msgspec
from crc32c import crc32c

from elkeid.errors import LogFormatError
from elkeid.eventlog.files import FileOperations, sync_directory

STATE_FILE = "state"
STATE_VERSION = 1
SLOT_BYTES = 4096  # one page: written in one piece by most file systems
MAX_REASONS = 32  # named drop reasons; more are counted as "other", so that a slot suffices
MAX_DELETIONS = 64  # remembered ranges of deleted segments; older ones are merged

_MAGIC = b"ELST"
_HEAD = Struct("<4sHHI")
_SEQUENCE = Struct("<Q")


class Deletion(msgspec.Struct, array_like=True, frozen=True):
    """Records before ``end`` (and from the previous deletion's end on) were deleted."""

    end: int
    reason: str


class LogState(msgspec.Struct):
    """What a class remembers outside its segments."""

    next_offset: int = 0
    dropped: dict[str, int] = {}
    deletions: list[Deletion] = []
    checkpoint: tuple[int, int, int] = (0, 0, 0)  # durable: segment id, bytes of it, end offset
    lost_tails: int = 0  # openings that found less than had been written
    lost_records: int = 0  # of them, as far as could be told
    lost_bytes: int = 0
    sync_failures: int = 0

    def drop(self, reason: str, count: int) -> None:
        """Count dropped records."""
        dropped = self.dropped
        if reason not in dropped and len(dropped) >= MAX_REASONS:
            reason = "other"
        dropped[reason] = dropped.get(reason, 0) + count

    def delete(self, end: int, reason: str) -> None:
        """Remember that everything before ``end`` is gone, and why."""
        deletions = self.deletions
        if deletions and deletions[-1].end >= end:
            return
        if deletions and deletions[-1].reason == reason:
            deletions.pop()
        deletions.append(Deletion(end, reason))
        if len(deletions) > MAX_DELETIONS:
            del deletions[0]

    @property
    def deleted_to(self) -> int:
        """The offset before which everything was deleted."""
        return self.deletions[-1].end if self.deletions else 0

    def expired(self, start: int, end: int) -> dict[str, int]:
        """Records in ``start..end`` by the reason of their deletion."""
        found: dict[str, int] = {}
        for deletion in self.deletions:
            count = min(deletion.end, end) - start
            if count > 0:
                found[deletion.reason] = found.get(deletion.reason, 0) + count
                start += count
        if start < end:
            found["missing"] = end - start  # removed by someone else
        return found


def encode_slot(state: LogState, sequence: int) -> bytes:
    """The 4096 bytes of a slot."""
    text = msgspec.json.encode(state)
    rest = _SEQUENCE.pack(sequence) + text
    head = _HEAD.pack(_MAGIC, STATE_VERSION, len(text), _crc(STATE_VERSION, rest))
    return (head + rest).ljust(SLOT_BYTES, b"\0")


def _crc(version: int, rest: bytes) -> int:
    return crc32c(rest, (version - 1) & 0xFFFFFFFF)


def decode_slot(data: bytes, path: Path) -> tuple[int, LogState] | None:
    """Read a slot: its sequence number and content; None when it is empty or damaged.

    Raises:
        LogFormatError: it is sound, but of another version.
    """
    if len(data) < _HEAD.size + _SEQUENCE.size:
        return None
    magic, version, length, crc = _HEAD.unpack_from(data)
    rest = data[_HEAD.size : _HEAD.size + _SEQUENCE.size + length]
    if magic != _MAGIC or _crc(version, rest) != crc:
        return None
    if version != STATE_VERSION:
        raise LogFormatError(
            f"{path}: event log state format {version}, this version knows {STATE_VERSION}; "
            "run the version that wrote it, or move the file away"
        )
    try:
        state = msgspec.json.decode(rest[_SEQUENCE.size :], type=LogState)
    except msgspec.DecodeError:
        return None
    return _SEQUENCE.unpack_from(rest)[0], state


def read_state(path: Path) -> tuple[int, LogState] | None:
    """Read the newer sound slot; None when there is no file, or no sound slot in it.

    Raises:
        LogFormatError: a slot is of another format version.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    slots = [decode_slot(data[at : at + SLOT_BYTES], path) for at in (0, SLOT_BYTES)]
    return max((slot for slot in slots if slot), key=lambda slot: slot[0], default=None)


class StateFile:
    """Writes the state of one class in place.

    Args:
        files: the file operations.
        path: the file, made and filled here if it is missing or short.
        sequence: of the slot that was read, 0 if none.

    Raises:
        OSError: it cannot be made; it needs 8 KiB of disk.
    """

    def __init__(self, files: FileOperations, path: Path, sequence: int) -> None:
        self._files, self._sequence = files, sequence
        self.unsynced = False
        self._fd = files.open(path, os.O_CREAT | os.O_RDWR)
        try:
            if os.fstat(self._fd).st_size < 2 * SLOT_BYTES:
                files.pwrite(self._fd, bytes(2 * SLOT_BYTES), 0)
                files.fsync(self._fd)
                sync_directory(files, path.parent)
        except BaseException:
            self.close()
            raise

    def write(self, state: LogState) -> None:
        """Write the older slot anew; `OSError` leaves the newer one as it was."""
        sequence = self._sequence + 1
        slot = encode_slot(state, sequence)
        if self._files.pwrite(self._fd, slot, sequence % 2 * SLOT_BYTES) != SLOT_BYTES:
            raise OSError(errno.EIO, "short write", "event log state")
        self._sequence = sequence  # only now: after a failure the same slot is written again
        self.unsynced = True

    @property
    def descriptor(self) -> int:
        """For fsync in a thread."""
        return self._fd

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
