"""Compression of messages, and its limits."""

import gzip
import struct
import tracemalloc

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.errors import WireError
from elkeid.wire.compression import (
    CHUNK_LIMIT,
    ENCODINGS,
    PART_LIMIT,
    CompressionError,
    MessageTooLarge,
    compressor,
    decompressor,
    snappy_frame,
    zstd,
)
from tests.wire.messages import damaged, put_varint

KiB, MiB = 1 << 10, 1 << 20
LIMIT = 64 * MiB
IDENTIFIER = bytes.fromhex("ff060000734e61507059")
unsnappy = decompressor("snappy")


def chunk(kind: int, payload: bytes) -> bytes:
    """Encode a chunk of any type, without a checksum."""
    return bytes((kind,)) + len(payload).to_bytes(3, "little") + payload


def test_the_golden_snappy_frames() -> None:
    """Both kinds of chunk have the bytes seen from agents and from upstream's gateway."""
    stored = "ff060000734e61507059010600009bbefe0f1200"
    compressed = "ff060000734e61507059000a0000355ae97e400061fa0100"
    assert snappy_frame(b"\x12\x00").hex() == stored
    assert snappy_frame(b"a" * 64).hex() == compressed
    assert unsnappy(bytes.fromhex(stored), LIMIT) == b"\x12\x00"
    assert unsnappy(bytes.fromhex(compressed), LIMIT) == b"a" * 64


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [0, 1, 300, 64 * KiB, 64 * KiB + 1, MiB])
def test_data_survives_the_round_trip(encoding: str, size: int) -> None:
    """Every encoding gives back what went in, up to a limit of exactly its size."""
    for data in ((b"some agent's text " * (size // 18 + 1))[:size], bytes(size)):
        packed = compressor(encoding)(data)
        assert decompressor(encoding)(packed, size) == data
        if size:
            with pytest.raises(MessageTooLarge):
                decompressor(encoding)(packed, size - 1)


def test_an_unknown_encoding_is_named() -> None:
    """A peer that asks for another encoding is told which one."""
    for get in (decompressor, compressor):
        with pytest.raises(CompressionError, match="'lz4'"):
            get("lz4")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 900))
def test_snappy_agrees_with_another_implementation(seed: bytes, times: int) -> None:
    """Streams of a library's framed encoder are read, and it reads ours."""
    data = seed * times
    assert unsnappy(bytes(cramjam.snappy.compress(data)), LIMIT) == data
    assert bytes(cramjam.snappy.decompress(snappy_frame(data))) == data


def test_snappy_stores_what_hardly_compresses() -> None:
    """A chunk is stored when compression saves less than an eighth, as upstream does."""
    noise = bytes(range(256)) * 8
    half = noise[:256] + b"a" * 256
    assert snappy_frame(noise[:256])[10] == 1
    assert snappy_frame(half)[10] == 0


def test_snappy_skips_padding_and_repeated_identifiers() -> None:
    """Chunks that the format reserves as skippable are skipped, anywhere after the first."""
    first, second = snappy_frame(b"one"), snappy_frame(b"a" * 100)
    extra = chunk(0x80, b"skip") + chunk(0xFE, b"") + chunk(0xFD, b"x" * 70_000)
    assert unsnappy(first + extra + second + extra, LIMIT) == b"one" + b"a" * 100
    assert unsnappy(IDENTIFIER + extra, LIMIT) == b""
    assert unsnappy(IDENTIFIER, LIMIT) == b""
    assert unsnappy(b"", LIMIT) == b""


@pytest.mark.parametrize(
    "data",
    [
        snappy_frame(b"one")[10:],
        cramjam.snappy.compress_raw(b"raw blocks are not framed").read(),
        IDENTIFIER + chunk(0x02, b"12345678"),
        IDENTIFIER + chunk(0x7F, b""),
        IDENTIFIER + chunk(0xFF, b"sNaPpy"),
        IDENTIFIER + chunk(0xFF, b""),
        IDENTIFIER + chunk(0x00, b""),
        IDENTIFIER + chunk(0x00, b"abc"),
        IDENTIFIER + chunk(0x00, b"\x00" * 4),
        IDENTIFIER + chunk(0x01, b"abc"),
        IDENTIFIER + chunk(0x00, b"\x00" * 4 + put_varint(65_537) + b"\x00a"),
        IDENTIFIER + chunk(0x00, b"\x00" * 4 + put_varint(2**32 - 1) + b"\x00a"),
        IDENTIFIER + chunk(0x00, b"\x00" * 4 + b"\xff" * 10),
        IDENTIFIER + chunk(0x01, b"\x00" * 4 + bytes(65_537)),
        snappy_frame(b"one") + b"\x00\x00",
        b"\x00",
    ],
)
def test_a_malformed_snappy_stream_is_refused(data: bytes) -> None:
    """What breaks the format costs the peer its stream, also behind a sound chunk."""
    for each in (data, snappy_frame(b"sound") + data[10:] if data[:10] == IDENTIFIER else data):
        with pytest.raises(CompressionError):
            unsnappy(each, LIMIT)


def test_a_flipped_bit_is_found() -> None:
    """No single wrong bit, in the data or its checksum, gives other data."""
    for data in (b"stored", b"a" * 200, b"some words, some more words, and some words again" * 3):
        packed = snappy_frame(data)
        for at in range(14, len(packed)):
            for bit in range(8):
                broken = bytearray(packed)
                broken[at] ^= 1 << bit
                try:
                    assert unsnappy(bytes(broken), LIMIT) == data  # other copies of the same
                    assert at >= 18
                except CompressionError:
                    pass


def test_too_many_snappy_chunks_are_refused() -> None:
    """Empty chunks cannot hold the reactor for long."""
    empty = chunk(0x80, b"")
    assert unsnappy(IDENTIFIER + empty * (CHUNK_LIMIT - 1), LIMIT) == b""
    with pytest.raises(CompressionError):
        unsnappy(IDENTIFIER + empty * CHUNK_LIMIT + snappy_frame(b"x"), LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "snappy", "zstd"])
def test_a_bomb_is_stopped_before_it_takes_memory(encoding: str) -> None:
    """64 MiB packed small are refused under a limit of 1 MiB without taking much more."""
    bomb = compressor(encoding)(bytes(64 * MiB))
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLarge, match=f"larger than {MiB} bytes"):
            decompressor(encoding)(bomb, MiB)
        assert tracemalloc.get_traced_memory()[1] < 4 * MiB + len(bomb)
    finally:
        tracemalloc.stop()


def test_a_chunk_that_announces_too_much_is_refused_undecoded() -> None:
    """The announced size counts, before anything is decompressed: the data here is rubbish."""
    rubbish = IDENTIFIER + chunk(0x00, b"\x00" * 4 + put_varint(60_000) + b"\xff")
    with pytest.raises(MessageTooLarge):
        unsnappy(rubbish, 50_000)
    with pytest.raises(MessageTooLarge):
        unsnappy(snappy_frame(b"x" * 1000) + rubbish[10:], 60_999)


def test_gzip_members_and_zstd_frames_may_follow_each_other() -> None:
    """Concatenated parts are one message; the limit is on their sum and number."""
    for encoding in ("gzip", "zstd"):
        pack, unpack = compressor(encoding), decompressor(encoding)
        packed = pack(b"one") + pack(b"") + pack(b"two")
        assert unpack(packed, 6) == b"onetwo"
        with pytest.raises(MessageTooLarge):
            unpack(packed, 5)
        with pytest.raises(CompressionError):
            unpack(pack(b"") * (PART_LIMIT + 1), LIMIT)


def test_garbage_after_gzip_or_zstd_is_refused() -> None:
    """Bytes behind the last part belong to no message."""
    for encoding in ("gzip", "zstd"):
        for garbage in (b"\x00", b"garbage", bytes(100)):
            with pytest.raises(CompressionError):
                decompressor(encoding)(compressor(encoding)(b"data") + garbage, LIMIT)


def test_gzip_headers_with_all_their_options() -> None:
    """A header with name, comment, extra field and checksum is read: RFC 1952."""
    plain = gzip.compress(b"data")
    head = b"\x1f\x8b\x08\x1c" + plain[4:10] + struct.pack("<H", 3) + b"abc" + b"name\0" + b"note\0"
    assert decompressor("gzip")(head + plain[10:], LIMIT) == b"data"


def test_zstd_as_a_streaming_encoder_writes_it() -> None:
    """A frame need not say how long its content is, and empty frames may be skipped."""
    encoder = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
    data = b"streamed " * 10_000
    packed = encoder.compress(data[:50]) + encoder.flush(zstd.ZstdCompressor.FLUSH_BLOCK)
    packed += encoder.compress(data[50:]) + encoder.flush()
    skippable = b"\x50\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
    assert zstd.get_frame_info(packed).decompressed_size is None
    assert decompressor("zstd")(skippable + packed + skippable, LIMIT) == data


def test_a_zstd_window_beyond_8_mib_is_refused() -> None:
    """A frame cannot make the decoder reserve more than its specification recommends."""
    for window, accepted in ((23, True), (24, False), (27, False)):
        encoder = zstd.ZstdCompressor(
            options={
                zstd.CompressionParameter.window_log: window,
                zstd.CompressionParameter.content_size_flag: 0,
            }
        )
        packed = encoder.compress(b"data") + encoder.flush()
        if accepted:
            assert decompressor("zstd")(packed, LIMIT) == b"data"
        else:
            with pytest.raises(CompressionError):
                decompressor("zstd")(packed, LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "snappy", "zstd"])
def test_data_cut_anywhere_is_refused(encoding: str) -> None:
    """No cut passes for a whole message; a snappy stream may end after its identifier."""
    packed = compressor(encoding)(b"some text some text some text" * 20)
    for end in range(1, len(packed)):
        if packed[:end] == IDENTIFIER:
            continue
        with pytest.raises(CompressionError):
            decompressor(encoding)(packed[:end], LIMIT)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(ENCODINGS),
    st.data(),
    st.integers(0, 2000),
)
def test_damaged_data_raises_nothing_else(encoding: str, data: st.DataObject, limit: int) -> None:
    """Only `WireError` escapes, and no result is above the limit."""
    whole = st.binary(max_size=80).map(lambda seed: compressor(encoding)(seed * 20))
    packed = data.draw(damaged(whole) | st.binary(max_size=40).map(lambda b: IDENTIFIER + b))
    try:
        result = decompressor(encoding)(packed, limit)
    except WireError:
        return
    assert len(result) <= limit
