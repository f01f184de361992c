"""Text that peers chose, for terminals and logs: shown, never obeyed.

Control characters move a terminal's cursor, colour it, or end a line of a log; marks that turn
the direction of text make a name look like another. They are written as escapes.
"""

import re
from typing import Final

_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)
"""C0 but for tab and line feed, DEL and C1, line separators, and marks without a width."""


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def shown(text: str) -> str:
    """Escape what does harm; tabs and line feeds stay."""
    return _UNSAFE.sub(_escape, text)


def shown_json(line: bytes) -> bytes:
    """The same for JSON in UTF-8, which stays JSON of the same value."""
    if line.isascii() and b"\x7f" not in line:  # JSON escapes C0 itself
        return line
    return shown(line.decode()).encode()
