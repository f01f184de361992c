"""One class of records on its way to the partitions: what is read, under way, and owed.

A *slot* is what one partition has of one class. It has at most one batch under way; the next is
made when that is acknowledged, so a batch that fails is sent again before anything newer.

Usually one reader serves all slots. When a slot makes no progress while others do, it is
*parked*: the reader goes on without it, and what it skips is owed. When the slot moves again, a
second reader (the *lane*) reads what is owed, until it has caught up with the first.

At every moment: acknowledged + set aside + expired + owed by all slots = where the reader is.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from elkeid.config import MiB
from elkeid.eventlog.cursors import ClassCursor
from elkeid.eventlog.format import Entry, Row
from elkeid.eventlog.reader import ClassReader, cut_entry
from elkeid.kafka.batches import UUID_BEHIND, UUID_END, UUID_FRONT, Batch, agent_id
from elkeid.kafka.partition import partition_of
from elkeid.wire.datatypes import RecordClass

STALL_SECONDS: Final = 2.0
"""A slot that is full and has had no acknowledgement for so long, while others had, is parked."""

SLOT_FLOOR_BYTES: Final = 2 * MiB
"""What a slot may hold at least: the batch under way and the next."""

BUDGETS: Final = {
    RecordClass.CONTROL: 8 * MiB,
    RecordClass.TELEMETRY: 32 * MiB,
    RecordClass.LOGS: 8 * MiB,
}
"""Bytes of records in memory, by class, so that no class keeps another out."""

AGENTS_REMEMBERED: Final = 65536
"""Agents whose partition is kept: six times what one process serves. Then all are forgotten."""

Open = Callable[[int], ClassReader]
"""Makes a reader of the class from an offset on."""


@define(eq=False)
class Slot:
    """What one partition has of the class."""

    partition: int
    pending: deque[Row] = field(factory=deque)
    pending_records: int = 0
    pending_bytes: int = 0
    batch: Batch | None = None  # under way
    sent_at: float = 0.0  # when it was handed over, monotonic seconds
    progress_at: float = 0.0  # last acknowledgement, or when there was nothing to do
    record_limit: int = 1 << 30  # of the next batch, while a bad record is looked for
    untimed_before: int = 0  # a broker refuses the times of records below this offset
    not_before: float = 0.0  # monotonic seconds; after a refusal that may pass
    backoff: float = 0.0
    parked: int | None = None  # offset of the first record that a lane must read
    skipped: int = 0  # records from there on that are owed

    @property
    def owed(self) -> int:
        """Records read or skipped, and not dealt with."""
        return (self.batch.records if self.batch else 0) + self.pending_records + self.skipped

    @property
    def first_owed(self) -> int | None:
        """Offset of the oldest of them."""
        if self.batch is not None:
            return self.batch.first_offset
        return Entry._make(self.pending[0]).first_offset if self.pending else self.parked

    def add(self, entry: Entry) -> None:
        """Take an entry to be sent."""
        if not self.pending and self.batch is None:
            self.progress_at = 0.0  # its time begins when it is looked at next
        self.pending.append(entry)
        self.pending_records += entry.records
        self.pending_bytes += len(entry.region)

    def taken(self, batch: Batch, now: float) -> None:
        """Note that ``batch`` was made of the front of ``pending`` and handed over."""
        self.batch, self.sent_at = batch, now
        self.pending_records -= batch.records
        self.pending_bytes -= batch.region_bytes

    def put_back(self) -> None:
        """Let the records of the batch be the next to be sent again."""
        batch = self.batch
        assert batch is not None
        self.pending.extendleft(reversed(batch.entries))
        self.pending_records += batch.records
        self.pending_bytes += batch.region_bytes
        self.batch = None

    def park(self) -> None:
        """Forget what is pending; a lane reads it again."""
        if self.pending:
            self.parked = Entry._make(self.pending[0]).first_offset
            self.skipped += self.pending_records
            self.pending.clear()
            self.pending_records = self.pending_bytes = 0


@define
class _Lane:
    """A second reader, for slots that were parked."""

    reader: ClassReader
    slots: set[int]
    reason: str = "missing"  # why what it does not find is not there


class ClassFeed:
    """Reads one class for all partitions.

    Args:
        record_class: which one it is.
        place: of the cursor; counts go straight into it.
        open_at: makes readers.
        count: partitions of the topic.
    """

    def __init__(
        self, record_class: RecordClass, place: ClassCursor, open_at: Open, count: int
    ) -> None:
        self.record_class, self.place, self._open, self.count = record_class, place, open_at, count
        self._budget = BUDGETS[record_class]
        self._slot_limit = max(SLOT_FLOOR_BYTES, self._budget // count)
        self.slots = {number: Slot(number) for number in range(count)}
        self._slot_by_agent: dict[bytes, Slot] = {}
        self._main = open_at(place.read_to)
        self._lane: _Lane | None = None
        # What was held back under another number of partitions goes out before all else.
        self._old_count = place.partitions if place.held else count
        self._old: dict[int, list[int]] = {}  # old partition -> first offset owed, how many
        self._old_reader: ClassReader | None = None
        if self._old_count != count and place.held:
            self._old = {int(name): list(owed) for name, owed in place.held.items()}
            self._old_reader = open_at(place.position)
        else:
            for name, (offset, owed) in place.held.items():
                slot = self.slots[int(name)]
                slot.parked, slot.skipped = offset, owed
        self.at_end = False  # the last look found nothing more in the log
        self._ready_at = 0.0  # since when a lane could be opened, monotonic seconds

    def close(self) -> None:
        """Let go of the log."""
        self._main.close()
        if self._lane is not None:
            self._lane.reader.close()
        if self._old_reader is not None:
            self._old_reader.close()

    # -- reading

    def fill(self, now: float, byte_limit: int) -> int:
        """Read more of the log into the slots, as far as they have room.

        Args:
            now: monotonic seconds.
            byte_limit: about how many bytes to read at most.

        Returns:
            Bytes read.

        Raises:
            LogFormatError: a segment is of an unknown format version.
            OSError: the disk cannot be read.
        """
        done = 0
        self.at_end = False
        while done < byte_limit:
            if self._old_reader is not None:
                read = self._read_old()
            else:
                self._watch(now)
                read = self._read_lane()
                if read is None:
                    read = self._read_main(byte_limit - done)
            if not read:
                break
            done += read
        return done

    def _room(self, slots: set[int] | None = None) -> bool:
        total = 0
        for slot in self.slots.values():
            if slot.pending_bytes >= self._slot_limit and (
                slots is None or slot.partition in slots
            ):
                return False
            total += slot.pending_bytes
        return total < self._budget

    def _watch(self, now: float) -> None:
        """Park full slots that stand still while others move; serve those that move again."""
        if self._old_count != self.count:
            return  # a lane could not tell what is owed under which number of partitions
        parked = ready = 0
        calm = False
        for slot in self.slots.values():
            if (slot.batch is None and not slot.pending) or not slot.progress_at:
                slot.progress_at = now
            calm |= now - slot.progress_at <= STALL_SECONDS
        for slot in self.slots.values():
            if now - slot.progress_at > STALL_SECONDS:
                if calm and slot.pending_bytes >= self._slot_limit:
                    slot.park()
                    if self._lane is not None:
                        self._lane.slots.discard(slot.partition)
                parked += slot.parked is not None
            elif slot.parked is not None:
                parked += 1
                ready += self._joins(slot)
        if self._lane is not None or not ready:
            self._ready_at = now
        elif ready == parked or now - self._ready_at > STALL_SECONDS:
            slots = {
                each.partition
                for each in self.slots.values()
                if self._joins(each) and now - each.progress_at <= STALL_SECONDS
            }
            start = min(self.slots[each].parked or 0 for each in slots)
            self._lane = _Lane(self._open(start), slots)

    def _joins(self, slot: Slot) -> bool:
        """Whether a lane can serve the slot now; it joins one that has not passed its place yet."""
        if slot.parked is None or slot.pending:
            return False
        lane = self._lane
        if lane is not None and slot.parked >= lane.reader.position:
            lane.slots.add(slot.partition)
        return True

    def _read_main(self, byte_limit: int) -> int | None:
        """Read frames for all slots; None or 0 when there is none, or no room."""
        if not self._room():
            return None
        entries = self._main.take(byte_limit)
        self.at_end = not entries
        for gap in self._main.gaps:
            self._expire(gap.reason, gap.end - gap.start)
        self._main.gaps.clear()
        size, known = 0, self._slot_by_agent
        for entry in entries:
            _, _, count, suffix, region, _ = entry
            key = suffix[2:UUID_END] if UUID_FRONT < suffix < UUID_BEHIND else agent_id(suffix)
            slot = known.get(key) or self._slot_of(key)
            region_bytes = len(region)
            size += region_bytes + 1
            if slot.parked is not None:
                slot.skipped += count
                continue
            if not slot.pending and slot.batch is None:
                slot.progress_at = 0.0  # its time begins when it is looked at next
            slot.pending.append(entry)
            slot.pending_records += count
            slot.pending_bytes += region_bytes
        return size

    def _slot_of(self, key: bytes) -> Slot:
        """The slot of an agent, from now on known."""
        if len(self._slot_by_agent) >= AGENTS_REMEMBERED:
            self._slot_by_agent.clear()
        slot = self._slot_by_agent[key] = self.slots[partition_of(key, self.count)]
        return slot

    def _read_lane(self) -> int | None:
        """Read a frame for the slots of the lane; None when there is no lane, or no room."""
        lane = self._lane
        if lane is None or not self._room(lane.slots):
            return None
        entries = lane.reader.next(None)
        for gap in lane.reader.gaps:
            lane.reason = gap.reason
        lane.reader.gaps.clear()
        size, end = 0, self._main.position
        for entry in entries:
            size += len(entry.region) + 1
            if entry.first_offset >= end:
                break
            key = agent_id(entry.suffix)
            partition = partition_of(key, self.count)
            slot = self.slots[partition]
            if partition not in lane.slots or slot.parked is None:
                continue
            if entry.end_offset > slot.parked:
                entry = cut_entry(entry, slot.parked)  # noqa: PLW2901
                slot.add(entry)
                slot.skipped -= entry.records
                slot.parked = entry.end_offset
        if not entries or lane.reader.position >= end:
            for each in lane.slots:
                slot = self.slots[each]
                self._expire(lane.reason, slot.skipped)  # what the lane did not find
                slot.parked, slot.skipped = None, 0
            lane.reader.close()
            self._lane = None
            return max(size, 1)
        return size

    def _read_old(self) -> int | None:
        """Read what was owed when the topic had another number of partitions."""
        reader = self._old_reader
        assert reader is not None
        if not self._room():
            return None
        reason = "missing"
        entries = reader.next(None)
        for gap in reader.gaps:
            reason = gap.reason
        reader.gaps.clear()
        size, end = 0, self._main.position
        for entry in entries:
            size += len(entry.region) + 1
            if entry.first_offset >= end:
                break
            key = agent_id(entry.suffix)
            owed = self._old.get(partition_of(key, self._old_count))
            if owed is None or entry.end_offset <= owed[0]:
                continue
            entry = cut_entry(entry, owed[0])  # noqa: PLW2901
            self.slots[partition_of(key, self.count)].add(entry)
            owed[0], owed[1] = entry.end_offset, owed[1] - entry.records
        if not entries or reader.position >= end:
            self._expire(reason, sum(owed for _, owed in self._old.values()))
            self._old.clear()
            reader.close()
            self._old_reader = None
            return max(size, 1)
        return size

    def _expire(self, reason: str, count: int) -> None:
        if count > 0:
            expired = self.place.expired
            expired[reason] = expired.get(reason, 0) + count

    # -- what became of batches

    def acknowledged(self, slot: Slot, now: float) -> Batch:
        """Count the slot's batch as delivered."""
        batch = self._emptied(slot)
        self.place.acknowledged += batch.records
        self._moved(slot, now)
        return batch

    def set_aside(self, slot: Slot, now: float) -> Batch:
        """Count the slot's batch as kept elsewhere."""
        batch = self._emptied(slot)
        self.place.set_aside += batch.records
        self._moved(slot, now)
        return batch

    def _emptied(self, slot: Slot) -> Batch:
        batch, slot.batch = slot.batch, None
        assert batch is not None
        return batch

    def unreadable(self, slot: Slot, now: float) -> int:
        """Pass over the slot's next entry, which cannot be read; return its records."""
        entry = Entry._make(slot.pending.popleft())
        slot.pending_records -= entry.records
        slot.pending_bytes -= len(entry.region)
        self._expire("damaged", entry.records)
        self._moved(slot, now)
        return entry.records

    def _moved(self, slot: Slot, now: float) -> None:
        slot.progress_at = now
        slot.backoff = slot.not_before = 0.0

    # -- the place

    @property
    def savable(self) -> bool:
        """Whether `note_place` can say where everything is."""
        return self._old_count == self.count or (
            self._old_reader is None and not any(slot.owed for slot in self.slots.values())
        )

    def note_place(self) -> None:
        """Bring the cursor's place up to date."""
        place = self.place
        place.partitions = self._old_count = self.count
        place.held = {}
        read_to = position = self._main.position
        for slot in self.slots.values():
            owed, first = slot.owed, slot.first_owed
            if owed and first is not None:
                place.held[str(slot.partition)] = (first, owed)
                position = min(position, first)
        place.position = position
        place.ahead = read_to - position - place.owed

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not any(slot.batch for slot in self.slots.values())

    @property
    def waiting_bytes(self) -> int:
        """Bytes in memory that are to be sent."""
        return sum(slot.pending_bytes for slot in self.slots.values())

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest record in memory was received; None if there is none."""
        times = [
            slot.batch.oldest_ms if slot.batch else Entry._make(slot.pending[0]).time_ms
            for slot in self.slots.values()
            if slot.batch or slot.pending
        ]
        return min(times, default=None)

    @property
    def parked(self) -> int:
        """Partitions that are held back alone."""
        return sum(slot.parked is not None for slot in self.slots.values())
