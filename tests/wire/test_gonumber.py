"""Numbers in text, as Go reads them."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.wire.gonumber import TEXT_LIMIT, json_number


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0", "0"),
        ("12", "12"),
        ("5.10", "5.1"),
        ("007", "7"),
        ("+1", "1"),
        ("-3.5", "-3.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("1e3", "1000"),
        ("1E-2", "0.01"),
        ("0x1p4", "16"),
        ("-0X1.8P1", "-3"),
        ("0x_1p-1", "0.5"),
        ("0x.8p0", "0.5"),
        ("1_000.5", "1000.5"),
        ("1_0e1_0", "100000000000"),
        ("0_1", "1"),
        ("0.00000000", "0"),
        ("123456789.12345678", "123456789.12345678"),
        ("9007199254740993", "9007199254740992"),
        ("1152921504606846976", "1152921504606847000"),
        ("100000000000000000000", "100000000000000000000"),
        ("999999999999999900000", "999999999999999900000"),
        ("1e21", "1e+21"),
        ("-1e22", "-1e+22"),
        ("1e-400", "0"),
    ],
)
def test_numbers_are_shown_as_go_shows_them(text: str, shown: str) -> None:
    """Whole numbers have no fraction, and an exponent from 1e21 on."""
    assert json.dumps(json_number(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 ",
        " 1",
        "1\n",
        "0x10",
        "1__0",
        "1_",
        "_1",
        "1_.5",
        "1._5",
        "1e",
        "1e_5",
        "1e5_",
        "e5",
        ".",
        "+",
        "-",
        "--1",
        "0x",
        "0xp1",
        "0x1",
        "0x1p",
        "0x1_p1",
        "0b1",
        "0o7",
        "1,5",
        "1.2.3",
        "nan",
        "NaN",
        "inf",
        "-Inf",
        "Infinity",
        "1e400",
        "-1e400",
        "0x1p2000",
        "\u0661\u0662",
        "\uff11",
        "1\x00",
        "abc",
        "10.0.0.1",
    ],
)
def test_other_text_stays_text(text: str) -> None:
    """Spaces, bare hexadecimals, stray underscores, infinities and overflows are no numbers."""
    assert json_number(text) is None


def test_overlong_text_stays_text() -> None:
    """Nobody writes a number of more characters than any double needs."""
    assert json_number("1" + "0" * 300) is not None
    assert json_number("0." + "1" * TEXT_LIMIT) is None


@settings(max_examples=300)
@given(st.floats())
def test_every_finite_double_is_read_as_itself(value: float) -> None:
    """The text of a double gives the same double, whole or not."""
    number = json_number(repr(value))
    assert json_number(value.hex()) == number
    if math.isfinite(value):
        assert number is not None
        assert float(number) == value
    else:
        assert number is None


@settings(max_examples=500)
@given(st.text(alphabet="0123456789+-._eExXpPaf ", max_size=12))
def test_any_text_is_a_finite_number_or_text(text: str) -> None:
    """Nothing escapes, and JSON can show the result."""
    number = json_number(text)
    assert number is None or math.isfinite(number)
