"""Record batches, partitions and codecs, against the client library's own decoder."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.memory_records import MemoryRecords

from elkeid.eventlog.format import Entry, Row
from elkeid.kafka.batches import NO_TIME, Batch, RegionDamaged, agent_id, encode
from elkeid.kafka.compression import COMPRESSORS, decompress
from elkeid.kafka.consumer import teach_codecs
from elkeid.kafka.partition import partition_of
from elkeid.wire.datatypes import RecordClass
from tests.kafka.support import record, region, suffix

BIG = 1 << 30


def entry(agent: bytes, *bodies: bytes, offset: int = 0, time_ms: int = 1_790_000_000_000) -> Entry:
    """What an agent's batch has in the log."""
    records = region(*(record(body) for body in bodies))
    return Entry(RecordClass.TELEMETRY, offset, len(bodies), suffix(agent), records, time_ms)


def messages(batch: Batch) -> list[tuple[bytes, bytes, int]]:
    """What a consumer makes of a batch."""
    teach_codecs()
    data = batch.header(7, 1, 3) + batch.body
    assert len(data) == batch.size
    (found,) = MemoryRecords(data)
    assert found.validate_crc()
    assert (found.producer_id, found.producer_epoch, found.base_sequence) == (7, 1, 3)
    return [(each.key, each.value, each.timestamp) for each in found]


bodies = st.lists(st.binary(max_size=300), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=40) | st.just(b"u" * 36), bodies, st.integers(0, 10_000)
        )
    ),
    st.integers(100, 3000),
    st.integers(1, 12),
    st.sampled_from(sorted(COMPRESSORS)),
)
def test_batches_hold_every_record(
    entries: list[tuple[bytes, list[bytes], int]], limit: int, most: int, codec: str
) -> None:
    """However batches are cut, each record is in one, in order, with its key and time."""
    pending, wanted, offset = deque[Row](), list[tuple[bytes, bytes, int]](), 0
    for agent, each, late in entries:
        at = 1_790_000_000_000 + late
        pending.append(entry(agent, *each, offset=offset, time_ms=at))
        offset += len(each)
        wanted += [(agent, record(body) + suffix(agent), at) for body in each]
    got: list[tuple[bytes, bytes, int]] = []
    while pending:
        batch = encode(pending, limit, most, codec)
        assert 1 <= batch.records <= most
        assert batch.first_offset == len(got)
        assert sum(count for _, count in batch.arrivals) == batch.records
        assert sum(Entry._make(each).records for each in batch.entries) == batch.records
        if codec == "none" and batch.records > 1:
            assert batch.size <= limit
        got += messages(batch)
    assert got == wanted


def test_numbers_of_every_width() -> None:
    """Offset deltas, times, keys and values are written right, be they short, long or longer."""
    pending, wanted, offset = deque[Row](), list[tuple[bytes, bytes, int]](), 0
    agents = (b"u" * 36, b"a", b"k" * 63, b"l" * 64, b"m" * 8100, b"n" * 9000, b"")
    for number, count in enumerate((50, 50, 3, 60, 1, 1, 2, 8000, 30, 5)):
        agent, at = agents[number % len(agents)], 1_790_000_000_000 + number**7
        each = [b"x" * (index % 7) for index in range(count)]
        if count < 10:
            each = [b"y" * size for size in (50, 110, 8050, 8191, 17_000)][:count]
        pending.append(entry(agent, *each, offset=offset, time_ms=at))
        offset += count
        wanted += [(agent, record(body) + suffix(agent), at) for body in each]
    batch = encode(pending, 1 << 30, BIG, "none")
    assert not pending
    assert [(key or b"", *rest) for key, *rest in messages(batch)] == wanted


def test_batch_can_be_made_again() -> None:
    """The entries of a batch make the same batch again, also those that it holds in part."""
    pending = deque[Row]([entry(b"a", b"1", b"2", b"3"), entry(b"b", b"4", offset=3)])
    first = encode(pending, BIG, 2, "none")
    assert [each[1:3] for each in pending] == [(2, 1), (3, 1)]
    again = encode(deque(first.entries), BIG, BIG, "none")
    assert messages(again) == messages(first)


def test_times_that_are_refused_go_apart() -> None:
    """Records sent without a time share no batch with others, and keep their order."""
    pending = deque[Row]([entry(b"a", b"1", offset=7), entry(b"a", b"2", offset=8)])
    assert [each[2] for each in messages(encode(pending, BIG, BIG, "none", 8))] == [NO_TIME]
    (timed,) = messages(encode(pending, BIG, BIG, "none", 8))
    assert timed[2] == 1_790_000_000_000


def test_damaged_region_costs_itself_alone() -> None:
    """What precedes a region that is no region is sent; then it is refused, and stays."""
    bad = entry(b"b", b"x")._replace(region=b"\x0a\x7f")
    pending = deque[Row]([entry(b"a", b"1"), bad, entry(b"c", b"2")])
    assert [each[0] for each in messages(encode(pending, BIG, BIG, "none"))] == [b"a"]
    with pytest.raises(RegionDamaged):
        encode(pending, BIG, BIG, "none")
    pending.popleft()
    assert [each[0] for each in messages(encode(pending, BIG, BIG, "none"))] == [b"c"]


def test_agent_ids() -> None:
    """The key is field 4, whatever its length; none without that field."""
    for each in (b"a", b"b" * 36, b"c" * 127, b"d" * 128, b"e" * 70_000):
        assert agent_id(suffix(each)) == each
    assert agent_id(b"\x2a\x01x") == agent_id(b"") == agent_id(b"\x22") == b""


def test_partitions() -> None:
    """FNV-1a as a signed number, remainder truncated, made positive."""

    def plainly(key: bytes, count: int) -> int:
        found = 2166136261
        for byte in key:
            found = (found ^ byte) * 16777619 % 2**32
        signed = found - 2**32 if found >= 2**31 else found
        return abs(signed) % count

    keys = [b"", b"a", b"foobar", *(b"agent-%d" % number for number in range(500))]
    for count in (1, 3, 4, 12, 255):
        assert [partition_of(key, count) for key in keys] == [plainly(key, count) for key in keys]
    assert partition_of(b"foobar", 1 << 33) == 2**32 - 0xBF9CF968 & 0xFFFFFFFF


def test_codecs_undo_each_other() -> None:
    """Each codec gives back what it was given, larger than its blocks too."""
    data = bytes(range(256)) * 20_000
    for codec in COMPRESSORS.values():
        if codec is not None:
            assert decompress(codec.attribute, codec.compress(data)) == data
            assert decompress(codec.attribute, codec.compress(b"")) == b""
