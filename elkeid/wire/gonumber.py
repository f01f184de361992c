"""Numbers in text, as programs in Go read and show them.

Agents send all values as text; readers of our JSON expect a number where upstream's gateway
shows one. Go's syntax is not Python's: hexadecimal floats are in, surrounding spaces are out.

Source: docs/protocol.md, "Numbers".
"""

import math
import re
from decimal import Decimal
from typing import Final

TEXT_LIMIT: Final = 1024
"""Characters of a number; the longest sensible double has about 770 digits."""

_EXACT: Final = 1 << 53  # from here on a double no longer holds every integer
_EXPONENT_FORM: Final = 1e21  # from here on JSON shows integers with an exponent

_DIGITS = r"[0-9](?:_?[0-9])*"
_HEX = r"[0-9a-fA-F](?:_?[0-9a-fA-F])*"
_DECIMAL_FLOAT = re.compile(
    rf"[+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?\Z"
)
_HEX_FLOAT = re.compile(rf"[+-]?0[xX](?:_?{_HEX}(?:\.(?:{_HEX})?)?|\.{_HEX})[pP][+-]?{_DIGITS}\Z")


def json_number(text: str) -> int | float | None:
    """Read a number that JSON can show; None when the text is to stay text.

    Returns:
        An int for a whole number below 1e21, so that JSON shows no ``.0``; it has at most 17
        digits that count, as the double that Go makes of it. Else a finite float. None for
        anything that is no number in Go, is not finite, or is longer than `TEXT_LIMIT`.
    """
    if len(text) > TEXT_LIMIT:
        return None
    try:
        if _DECIMAL_FLOAT.match(text):
            value = float(text)
        elif _HEX_FLOAT.match(text):
            value = float.fromhex(text.replace("_", ""))
        else:
            return None
    except OverflowError:  # of a hexadecimal one
        return None
    if not math.isfinite(value):
        return None
    if not value.is_integer() or abs(value) >= _EXPONENT_FORM:
        return value
    # The shortest digits that give the same double, then zeros.
    return int(value) if abs(value) < _EXACT else int(Decimal(repr(value)))
