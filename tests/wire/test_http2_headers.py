"""Header blocks: remembered from connection to connection, and decoded as if they were not."""

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.wire import http2_headers
from elkeid.wire.http2_headers import REMEMBERED_BLOCKS, REMEMBERED_BYTES, HeaderDecoder

LIMIT = 16_384
NAMES = st.sampled_from([b":path", b":authority", b"te", b"x-a", b"x-b", b"cookie"])
VALUES = st.sampled_from([b"", b"/", b"trailers", b"10.0.0.1:6751", b"v" * 900])
SECTIONS = st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=6), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with nothing remembered."""
    monkeypatch.setattr(http2_headers, "_first_blocks", {})


def encoded(fields: list[tuple[bytes, bytes]]) -> bytes:
    return hpack.Encoder().encode(fields)


@settings(max_examples=200, deadline=None)
@given(SECTIONS, st.integers(1, 3), st.booleans())
def test_every_connection_decodes_alike(
    sections: list[list[tuple[bytes, bytes]]], connections: int, huffman: bool
) -> None:
    """What was remembered changes nothing, whatever later blocks refer to."""
    for _ in range(connections):
        encoder, decoder = hpack.Encoder(), HeaderDecoder(LIMIT)
        for fields in sections:
            block = encoder.encode(fields, huffman=huffman)
            assert [tuple(field) for field in decoder.decode(block)] == fields


def test_same_first_block_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that begins as others did needs no table before its second block."""
    made = []
    real = hpack.Decoder
    monkeypatch.setattr(hpack, "Decoder", lambda limit: made.append(limit) or real(limit))
    encoder = hpack.Encoder()
    first = encoder.encode([(b"x-a", b"1")])
    second = encoder.encode([(b"x-a", b"1")])  # an index into the dynamic table
    assert len(second) == 1
    HeaderDecoder(LIMIT).decode(first)
    decoder = HeaderDecoder(LIMIT)
    assert list(decoder.decode(first)) == [(b"x-a", b"1")]
    assert len(made) == 1
    assert list(decoder.decode(second)) == [(b"x-a", b"1")]
    assert list(decoder.decode(second)) == [(b"x-a", b"1")]
    assert len(made) == 2


def test_other_limits_are_kept_apart() -> None:
    """A list that one limit allows is refused under a smaller one, known or not."""
    block = encoded([(b"x-a", b"v" * 900)])
    HeaderDecoder(LIMIT).decode(block)
    with pytest.raises(hpack.OversizedHeaderListError):
        HeaderDecoder(500).decode(block)


def test_damage_is_never_remembered() -> None:
    """A block that is none is refused each time."""
    for _ in range(2):
        with pytest.raises(hpack.HPACKError):
            HeaderDecoder(LIMIT).decode(b"\xff\xff\xff\xff\xff")
    assert http2_headers._first_blocks == {}


def test_memory_is_bounded() -> None:
    """Peers choose what they send: few blocks are remembered, and none that is or grows large."""
    for number in range(3 * REMEMBERED_BLOCKS):
        HeaderDecoder(LIMIT).decode(encoded([(b"x-a", b"%d" % number)]))
    assert len(http2_headers._first_blocks) == REMEMBERED_BLOCKS
    http2_headers._first_blocks.clear()
    HeaderDecoder(LIMIT).decode(encoded([(b"x-a", b"~" * REMEMBERED_BYTES)]))
    HeaderDecoder(LIMIT).decode(encoded([(b"x-a", b"v" * 100)] * 20))
    HeaderDecoder(LIMIT).decode(b"")
    assert http2_headers._first_blocks == {}
