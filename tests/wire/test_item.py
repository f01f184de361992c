"""Bodies of records: text by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.errors import WireError
from elkeid.wire import item
from elkeid.wire.protobuf import TooManyFields
from tests.wire import naive
from tests.wire.messages import ITEMS, damaged, put


def test_the_golden_item() -> None:
    """One field has the bytes that agents send."""
    assert item.encode({"a": "b"}).hex() == "0a060a0161120162"
    assert item.decode(bytes.fromhex("0a060a0161120162")) == {b"a": b"b"}


def test_an_empty_body_has_no_fields() -> None:
    """Agents may send records without a body."""
    assert item.decode(b"") == {}


def test_a_missing_key_or_value_is_empty_and_the_last_of_a_key_wins() -> None:
    """Proto3 leaves out what is empty, in map entries too."""
    body = put(1, put(1, b"a")) + put(1, put(2, b"v")) + put(1, b"")
    assert item.decode(body) == {b"a": b"", b"": b""}
    assert item.decode(item.encode({"k": "1"}) + item.encode({"k": "2"})) == {b"k": b"2"}


def test_text_that_is_not_utf_8_is_shown_with_replacements() -> None:
    """Upstream forwards any bytes; readers get U+FFFD for what is no text."""
    assert item.decode_text(item.encode({b"k\xff": b"\xc3"})) == {"k\ufffd": "\ufffd"}


def test_too_many_entries_are_refused() -> None:
    """Entries are counted in both forms, so that a body cannot hold the reactor for long."""
    for entry in (item.encode({"k": "v"}), put(1, b""), put(9, b"")):
        assert len(item.decode(entry * 5, limit=5)) <= 1
        with pytest.raises(TooManyFields):
            item.decode(entry * 6, limit=5)
    with pytest.raises(TooManyFields):
        item.decode(put(1, put(9, b"") * 21), limit=5)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2**21])
def test_values_of_every_length_form(size: int) -> None:
    """Lengths of one to four bytes are read right."""
    fields = {b"before": b"1", b"k": b"\x0a" * size, b"after": b"2"}
    assert item.decode(item.encode(fields)) == fields


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=20), st.text(max_size=200)))
def test_text_survives_the_round_trip(fields: dict[str, str]) -> None:
    """What is encoded is decoded, in order; lone surrogates cannot be sent."""
    expected = {
        key.encode("utf-8", "replace").decode(): value.encode("utf-8", "replace").decode()
        for key, value in fields.items()
    }
    assert item.decode_text(item.encode(fields)) == expected


@settings(max_examples=600, deadline=None)
@given(ITEMS | damaged(ITEMS) | st.binary(max_size=40))
def test_bodies_agree_with_a_naive_decoder(body: bytes) -> None:
    """Any bytes are read, or refused, as a simple decoder does it."""
    try:
        expected = naive.item(body)
    except naive.Refused:
        with pytest.raises(WireError):
            item.decode(body)
    else:
        assert item.decode(body) == expected
