"""Varints and fields."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.errors import WireError
from elkeid.wire.protobuf import TooManyFields, fields, read_varint, signed, varint
from tests.wire import naive
from tests.wire.messages import VALID, damaged, put_varint


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (-1, "ff" * 9 + "01")],
)
def test_varints_are_encoded_in_their_shortest_form(value: int, encoded: str) -> None:
    """Known values have known bytes, negative ones ten."""
    assert varint(value).hex() == encoded


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 10))
def test_a_varint_is_read_back(value: int, size: int) -> None:
    """Every 64-bit value survives, padded or not."""
    data = put_varint(value, size)
    assert read_varint(data, 0, len(data)) == (value % 2**64, len(data))


def test_an_endless_varint_is_refused() -> None:
    """More than ten bytes, or an end before the last byte, is no varint."""
    for data in (b"\x80" * 10, b"\x80" * 11 + b"\x01", b"\x80", b""):
        with pytest.raises(WireError):
            read_varint(data, 0, len(data))


def test_signed_takes_the_low_bits() -> None:
    """Numbers wrap as they do in the fixed-width types of other programs."""
    assert [signed(v, 32) for v in (2**31 - 1, 2**31, 2**64 - 1, 2**32 + 5)] == [
        2**31 - 1,
        -(2**31),
        -1,
        5,
    ]


def test_more_fields_than_allowed_are_refused() -> None:
    """The limit holds to the field, inside groups too."""
    assert len(list(fields(b"\x08\x01" * 5, 0, 10, 5))) == 5
    for data in (b"\x08\x01" * 6, b"\x0b" + b"\x08\x01" * 4 + b"\x0c"):
        with pytest.raises(TooManyFields):
            list(fields(data, 0, len(data), 5))


@settings(max_examples=400, deadline=None)
@given(VALID | damaged(VALID) | st.binary(max_size=40))
def test_fields_agree_with_a_naive_decoder(data: bytes) -> None:
    """Any bytes are read, or refused, as a simple decoder does it."""
    try:
        expected = naive.message(data)
    except naive.Refused:
        with pytest.raises(WireError):
            list(fields(data, 0, len(data), len(data)))
    else:
        got = [(n, t, None if t == 3 else v) for n, t, v in fields(data, 0, len(data), len(data))]
        assert got == expected
