"""Regular expressions of filters for PostgreSQL: RE2's syntax in that of its ``~`` operator.

Both run in time linear in the text as long as there are no back-references, of which RE2 has
none. Only syntax differs: classes and the case of letters are spelled out, so that the meaning
depends neither on flags nor on the database's locale. Greediness decides nothing here, where only
whether there is a match counts.

Source: "Syntax" in RE2's wiki; "POSIX Regular Expressions" in PostgreSQL's manual, 9.7.3.
"""

from functools import lru_cache
from typing import Final

from elkeid.manager.filter import FilterError

REPEAT_LIMIT: Final = 255
"""Highest count in ``{n,m}`` that PostgreSQL takes; RE2 goes to 1,000."""

_DIGIT, _WORD, _SPACE = "0-9", "0-9A-Za-z_", r"\t\n\f\r "
_CLASSES: Final = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS: Final = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_ASCII_SETS: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x01-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x01-\x1f\x7f",
    "digit": _DIGIT,
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": _WORD,
    "xdigit": "0-9A-Fa-f",
}
_ZERO_WIDTH: Final = {"A": r"\A", "z": r"\Z", "b": r"\y", "B": r"\Y"}
_FOLDED: Final = {"k": "\u212a", "s": "\u017f"}
"""Letters beyond ASCII that have an ASCII letter's case folding: the Kelvin sign, the long s."""


@lru_cache(maxsize=256)
def ere_of(pattern: str) -> str:
    """Translate a pattern that RE2 has accepted.

    Raises:
        FilterError: it uses something that has no counterpart; the text says what.
    """
    parser = _Parser(pattern)
    return "***:" + parser.alternatives(_Flags())


class _Flags:
    def __init__(self, fold: bool = False, lines: bool = False, dot_all: bool = False) -> None:
        self.fold, self.lines, self.dot_all = fold, lines, dot_all

    def copy(self) -> "_Flags":
        return _Flags(self.fold, self.lines, self.dot_all)


def _refused(what: str) -> FilterError:
    return FilterError(f"$regex: {what} cannot be searched for with PostgreSQL; write it otherwise")


def _literal(character: str) -> str:
    """A character that means itself, in a class and outside."""
    if character == "\0":
        raise _refused("the character U+0000")
    if character.isalnum() or character == "_" or ord(character) > 127:
        return character
    if character.isprintable():
        return "\\" + character
    return f"\\x{ord(character):02x}"


def _cases(character: str) -> set[str]:
    if not character.isascii():
        if character.lower() != character or character.upper() != character:
            raise _refused(f"{character!r} in either case")
        return {character}
    found = {character, character.lower(), character.upper()}
    extra = _FOLDED.get(character.lower())
    return found | {extra} if extra else found


class _Parser:
    """One pass from left to right; RE2 has checked the syntax."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0

    def _peek(self, count: int = 1) -> str:
        return self._pattern[self._at : self._at + count]

    def _take(self, count: int = 1) -> str:
        taken = self._peek(count)
        self._at += count
        return taken

    def _until(self, end: str) -> str:
        stop = self._pattern.index(end, self._at)
        text = self._pattern[self._at : stop]
        self._at = stop + len(end)
        return text

    def alternatives(self, flags: _Flags) -> str:
        """Up to the end, or the parenthesis that closes the group."""
        branches, pieces = [], list[str]()
        while self._at < len(self._pattern) and self._peek() != ")":
            if self._peek() == "|":
                self._take()
                branches.append("".join(pieces))
                pieces = []
                continue
            atom = self._atom(flags)
            if atom:
                pieces.append(self._repeated(atom))
        branches.append("".join(pieces))
        return "|".join(each or "(?:)" for each in branches)

    def _repeated(self, atom: str) -> str:
        repeat = self._repetition()
        return atom if repeat is None else f"(?:{atom}){repeat}"

    def _repetition(self) -> str | None:
        mark = self._peek()
        if mark and mark in "*+?":
            repeat = self._take()
        elif mark == "{" and (count := self._count()) is not None:
            repeat = count
        else:
            return None
        if self._peek() == "?":  # prefers fewer
            self._take()
        return repeat

    def _count(self) -> str | None:
        stop = self._pattern.find("}", self._at)
        inner = self._pattern[self._at + 1 : stop] if stop > 0 else ""
        low, comma, high = inner.partition(",")
        if not low.isdigit() or (high and not high.isdigit()):
            return None  # a brace that means itself
        if max(int(low), int(high or 0)) > REPEAT_LIMIT:
            raise _refused(f"a repetition of more than {REPEAT_LIMIT}")
        self._at = stop + 1
        return f"{{{low}{comma}{high}}}"

    def _atom(self, flags: _Flags) -> str:
        character = self._take()
        if character == "(":
            return self._group(flags)
        if character == "[":
            return self._class(flags)
        if character == ".":
            return r"(?:.|\n)" if flags.dot_all else r"[^\n]"
        if character == "^":
            return r"(?:\A|(?<=\n))" if flags.lines else r"(?:\A)"
        if character == "$":
            return r"(?:\Z|(?=\n))" if flags.lines else r"(?:\Z)"
        if character == "\\":
            return self._escape(flags)
        return self._one(character, flags)

    def _one(self, character: str, flags: _Flags) -> str:
        if flags.fold and len(cases := _cases(character)) > 1:
            return "[" + "".join(sorted(cases)) + "]"
        return _literal(character)

    def _group(self, flags: _Flags) -> str:
        inner = flags.copy()
        if self._peek() == "?":
            self._take()
            if self._peek() in ("P", "<"):  # a name
                self._until(">")
            elif not self._set_flags(flags, inner):
                return ""
        found = self.alternatives(inner)
        self._take()
        return f"(?:{found})"

    def _set_flags(self, outer: _Flags, inner: _Flags) -> bool:
        """Read ``i-s:`` or ``i)``; whether a group follows."""
        letters, on = "", True
        while self._peek() not in (":", ")"):
            letters += self._take()
        whole = self._take() == ":"
        target = inner if whole else outer
        for letter in letters:
            if letter == "-":
                on = False
            elif letter == "i":
                target.fold = on
            elif letter == "m":
                target.lines = on
            elif letter == "s":
                target.dot_all = on
        return whole

    def _escape(self, flags: _Flags) -> str:
        letter = self._peek()
        if letter.lower() in _CLASSES and letter:
            self._take()
            return f"[{'^' if letter.isupper() else ''}{_CLASSES[letter.lower()]}]"
        if letter in _ZERO_WIDTH:
            self._take()
            return f"(?:{_ZERO_WIDTH[letter]})"
        if letter == "Q":
            self._take()
            end = self._pattern.find("\\E", self._at)
            text = self._pattern[self._at :] if end < 0 else self._pattern[self._at : end]
            self._at = len(self._pattern) if end < 0 else end + 2
            # A repetition counts for the last character alone.
            pieces = [self._one(each, flags) for each in text]
            if pieces:
                pieces[-1] = self._repeated(pieces[-1])
            return "(?:" + "".join(pieces) + ")" if pieces else ""
        return self._one(self._escaped_character(), flags)

    def _escaped_character(self) -> str:
        letter = self._take()
        if letter == "x":
            if self._peek() == "{":
                self._take()
                return chr(int(self._until("}"), 16))
            return chr(int(self._take(2), 16))
        if letter in _CONTROLS:
            return chr(_CONTROLS[letter])
        if letter in "01234567":
            digits = letter
            while len(digits) < 3 and self._peek() and self._peek() in "01234567":
                digits += self._take()
            return chr(int(digits, 8))
        if letter.isalnum():
            raise _refused(f"\\{letter}")
        return letter

    def _class(self, flags: _Flags) -> str:
        negated = self._peek() == "^"
        if negated:
            self._take()
        parts: list[str] = []
        first = True
        while first or self._peek() != "]":
            first = False
            parts.append(self._member(flags))
        self._take()
        return f"[{'^' if negated else ''}{''.join(parts)}]"

    def _member(self, flags: _Flags) -> str:
        if self._peek(2) == "[:":
            self._take(2)
            name = self._until(":]")
            if name.startswith("^"):
                raise _refused(f"[:{name}:]")
            if flags.fold and name in ("lower", "upper", "alpha", "alnum", "word", "xdigit"):
                raise _refused(f"[:{name}:] in either case")
            return _ASCII_SETS[name]
        if self._peek() == "\\" and self._peek(2)[1:].lower() in _CLASSES:
            letter = self._take(2)[1]
            if letter.isupper():
                raise _refused(f"\\{letter} within brackets")
            if flags.fold and letter == "w":
                raise _refused("\\w within brackets in either case")
            return _CLASSES[letter]
        low = self._member_character()
        if self._peek() != "-" or self._peek(2)[1:] in ("]", ""):
            if flags.fold:
                return "".join(_literal(each) for each in sorted(_cases(low)))
            return _literal(low)
        self._take()
        high = self._member_character()
        if not flags.fold:
            return f"{_literal(low)}-{_literal(high)}"
        span = [chr(code) for code in range(ord(low), min(ord(high), 128) + 1)]
        if ord(high) > 127:
            raise _refused("a range beyond ASCII in either case")
        folded = set().union(*(_cases(each) for each in span if each != "\0"))
        return "".join(_literal(each) for each in sorted(folded))

    def _member_character(self) -> str:
        character = self._take()
        return self._escaped_character() if character == "\\" else character
