"""Filters in SQL: the meaning of `elkeid.manager.filter.holds`, for SQLite and PostgreSQL.

A test on a field that is a column reads the column; any other reads the JSON document. Names of
columns and tables are constants here; every key and value of a request is a bound parameter
(hence the exemptions below from the rule against SQL made of pieces). What reads documents is
each database's own dialect, the rest is plain SQL.
"""

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from attrs import Factory, define, frozen

from elkeid.manager.documents import ADDRESS_FIELDS, FOUND_KEYS, TEXT_KEYS, text_of
from elkeid.manager.filter import (
    Every,
    FilterError,
    IsIn,
    Matches,
    Not,
    Orders,
    Relation,
    Some,
    Test,
    index_of,
    kind_of,
)
from elkeid.manager.store.postgres_regex import ere_of

_BEAT = (
    "(SELECT agent_beat.last_heartbeat_time FROM agent_beat"
    " WHERE agent_beat.agent_id = agent.agent_id)"
)

_ANSWERS = (
    "EXISTS (SELECT 1 FROM gateway WHERE gateway.ip = agent.source_ip"
    " AND gateway.port = agent.source_port AND gateway.answers)"
)

COLUMNS: Mapping[str, tuple[str, Literal["text", "number", "bool"]]] = {
    "agent_id": ("agent.agent_id", "text"),
    "agent_state": ("agent.agent_state", "text"),
    "connected": (f"(CASE WHEN {_ANSWERS} THEN agent.connected END)", "bool"),
    "first_heartbeat_time": ("agent.first_heartbeat_time", "number"),
    "last_heartbeat_time": (_BEAT, "number"),
    "protection": ("agent.protection", "text"),
    "source_ip": ("agent.source_ip", "text"),
    "source_port": ("agent.source_port", "number"),
    **{name: (f"agent.{name}", "text") for name in FOUND_KEYS},
}
"""Field -> its SQL and the only type it may have; NULL is a missing field."""

_SLOW: Final = TEXT_KEYS | {"tags", "_id", "first_heartbeat_time_format"}
_HOT: Final = frozenset({"plugins"})

PARAMETERS = 5_000
"""Of one filter: 200 rules on names with one dot take 3,600. Each part of a name that may be an
index triples them, and a statement of megabytes takes seconds to prepare."""

REGEXP = "elkeid_matches"
"""Name of SQLite's function ``(pattern, text) -> boolean``; PostgreSQL has an operator."""

_NUMBERS = "('integer', 'real')"


@define
class _Parameters:
    values: dict[str, Any] = Factory(dict)

    def bind(self, value: Any) -> str:
        if len(self.values) >= PARAMETERS:
            raise FilterError("filter: too many rules on names with several parts; use fewer")
        name = f"f{len(self.values)}"
        self.values[name] = value
        return f":{name}"


@frozen
class Condition:
    """A WHERE expression over ``agent``."""

    sql: str
    parameters: dict[str, Any]


def condition(test: Test, dialect: str, after: str | None = None) -> Condition:
    """Translate a test.

    Args:
        test: what `elkeid.manager.filter.parse` gave.
        dialect: ``sqlite`` or ``postgresql``.
        after: only agents with this id or a later one will be looked at, if that is known.

    Raises:
        FilterError: a regular expression that PostgreSQL cannot run, or too much in all.
    """
    compiler = _COMPILERS[dialect](after)
    return Condition(compiler.boolean(flattened(test)), compiler.parameters.values)


def flattened(test: Test, *, negated: bool = False) -> Test:
    """The same test, with negations only of single ones and as few levels as it takes.

    SQLite's parser nests a hundred levels.

    Args:
        test: any.
        negated: give the opposite.
    """
    match test:
        case Not(inner):
            return flattened(inner, negated=not negated)
        case Every(tests) | Some(tests):
            kind: type[Every | Some] = Every if isinstance(test, Every) != negated else Some
            parts = list[Test]()
            for each in tests:
                flat = flattened(each, negated=negated)
                parts += flat.tests if isinstance(flat, kind) else (flat,)
            return parts[0] if len(parts) == 1 else kind(tuple(parts))
    return Not(test) if negated else test


_PLAIN = re.compile(r"[A-Za-z0-9_ /:,@=~!#%&-]")
_ESCAPED = re.compile(r"\\[^A-Za-z0-9]")


def literal_prefix(pattern: str) -> tuple[str, bool]:
    """What every text that matches begins with, and whether that is all that the pattern asks.

    Args:
        pattern: in RE2's syntax.
    """
    if not pattern.startswith("^") or "|" in pattern:
        return "", False
    at, found = 1, list[str]()
    while at < len(pattern):
        if _ESCAPED.match(pattern, at):
            found.append(pattern[at + 1])
            at += 2
        elif _PLAIN.match(pattern, at) or ord(pattern[at]) > 127:
            found.append(pattern[at])
            at += 1
        else:
            break
    if at < len(pattern) and pattern[at] in "*?{+" and found:
        found.pop()  # it need not be there
    return "".join(found), at == len(pattern)


def bounds_of(prefix: str) -> tuple[str, str | None]:
    """The texts that begin with a prefix lie from the first of these on, and before the second."""
    kept = prefix
    while kept:
        code = ord(kept[-1]) + 1
        if code == 0xD800:  # no text has a half of a surrogate pair
            code = 0xE000
        if code <= 0x10FFFF:
            return prefix, kept[:-1] + chr(code)
        kept = kept[:-1]
    return prefix, None


def whole_bound(relation: Relation, bound: float, limit: int) -> int:
    """The whole number on whose sides whole numbers lie as they lie on a bound's.

    Args:
        relation: that numbers stand in to it.
        bound: any.
        limit: no number that is compared is as far from 0.
    """
    within = min(max(bound, -limit), limit)
    return math.floor(within) if relation in (">", "<=") else math.ceil(within)


class _Compiler(ABC):
    def __init__(self, after: str | None) -> None:
        self.parameters = _Parameters()
        self._after = after

    def boolean(self, test: Test) -> str:
        """SQL that is true where the test holds; false or NULL elsewhere."""
        match test:
            case Every(tests):
                return self._joined(tests, " AND ") or "1 = 1"
            case Some(tests):
                return self._of_any_address(tests) or self._joined(tests, " OR ") or "1 = 0"
            case Not(inner):
                found = self._found(inner)
                if found is not None:  # true or false: planners know what to do with its opposite
                    return f"NOT {found}"
                return f"NOT coalesce({self.boolean(inner)}, false)"
        parts = test.path.parts
        column = COLUMNS.get(parts[0])
        if parts[0] == "last_heartbeat_time_format":
            column = (self._local_time(_BEAT), "text")
        if column is not None:
            if len(parts) > 1:  # nothing lies within a text or a number
                return "1 = 1" if isinstance(test, IsIn) and None in test.values else "1 = 0"
            return self._on_column(test, *column)
        found = self._found(test)
        if found is not None:
            return found
        tables = ["agent_detail", "agent_hot"]
        if parts[0] in _SLOW:
            tables = ["agent_detail"]
        elif parts[0] in _HOT:
            tables = ["agent_hot"]
        if not isinstance(test, IsIn):
            return self._in_tables(tables, lambda table: self._on_document(table, test))
        alternatives = []
        if test.values:
            alternatives.append(
                self._in_tables(tables, lambda table: self._on_document(table, test))
            )
        if None in test.values:
            present = self._in_tables(tables, lambda table: self._present(table, test))
            alternatives.append(f"NOT ({present})")
        return " OR ".join(alternatives) or "1 = 0"

    def _in_tables(self, tables: Sequence[str], made: Callable[[str], str]) -> str:
        return " OR ".join(
            f"EXISTS (SELECT 1 FROM {table} WHERE {table}.agent_id = agent.agent_id"  # noqa: S608
            f" AND ({made(table + '.fields')}))"
            for table in tables
        )

    def _found(self, test: Test) -> str | None:
        """SQL by the tables for finding agents, if that is all that a test takes."""
        if not isinstance(test, IsIn | Matches) or len(test.path.parts) != 1:
            return None
        field = test.path.parts[0]
        if isinstance(test, Matches):
            return self._of_any_address((test,))
        if not test.values or not all(isinstance(each, str) for each in test.values):
            return None
        if field == "tags":
            return self._exists("agent_tag", self._is("agent_tag.tag", test.values))
        if field not in ADDRESS_FIELDS:
            return None
        wanted = f"agent_ip.field = {self.parameters.bind(field)} AND "
        return self._exists("agent_ip", wanted + self._is("agent_ip.address", test.values))

    def _of_any_address(self, tests: Sequence[Test]) -> str | None:
        """SQL for: an address of any of some kinds begins with the same text; if tests say that."""
        fields, patterns = list[str](), set[str]()
        for test in tests:
            if not isinstance(test, Matches) or len(test.path.parts) != 1:
                return None
            fields.append(test.path.parts[0])
            patterns.add(test.pattern)
        if len(patterns) != 1 or not set(fields) <= set(ADDRESS_FIELDS):
            return None
        prefix, whole = literal_prefix(patterns.pop())
        if not whole or not prefix:
            return None
        kinds = ", ".join(map(self.parameters.bind, fields))
        wanted = f"agent_ip.field IN ({kinds}) AND {self._in_bounds('agent_ip.address', prefix)}"
        return self._exists("agent_ip", wanted)

    def _exists(self, table: str, wanted: str) -> str:
        if self._after is not None:  # planners do not see this by themselves
            wanted = f"{table}.agent_id >= {self.parameters.bind(self._after)} AND {wanted}"
        return (
            f"EXISTS (SELECT 1 FROM {table} WHERE {table}.agent_id = agent.agent_id"  # noqa: S608
            f" AND {wanted})"
        )

    def _is(self, column: str, values: Sequence[Any]) -> str:
        """SQL for: a column of texts equals one of these."""
        if len(values) == 1:
            return f"{column} = {self.parameters.bind(values[0])}"
        return self._is_one_of(column, "text", values)

    def _in_bounds(self, column: str, prefix: str) -> str:
        low, high = bounds_of(prefix)
        found = f"{column} >= {self.parameters.bind(low)}"
        return found if high is None else f"{found} AND {column} < {self.parameters.bind(high)}"

    def _joined(self, tests: tuple[Test, ...], word: str) -> str:
        return word.join(f"({self.boolean(each)})" for each in tests)

    def _on_column(self, test: IsIn | Orders | Matches, column: str, kind: str) -> str:
        bind = self.parameters.bind
        match test:
            case IsIn(values=values):
                wanted = [value for value in values if kind_of(value) == kind]
                alternatives = []
                if kind == "bool":  # whether it is connected; written as its index has it
                    alternatives = [
                        f"{'' if value else 'NOT '}agent.connected AND {_ANSWERS}"
                        for value in sorted(set(wanted))
                    ]
                elif kind == "text" and len(wanted) == 1:
                    # Only so does an index on it also give the order of ids.
                    alternatives = [f"{column} = {bind(wanted[0])}"]
                elif wanted:
                    alternatives = [self._is_one_of(column, kind, wanted)]
                if None in values:
                    alternatives.append(f"{column} IS NULL")
                return " OR ".join(alternatives) or "1 = 0"
            case Orders(relation=relation, bound=bound):
                if kind_of(bound) != kind:
                    return "1 = 0"
                return f"{column} {relation} {bind(bound)}"
            case Matches(pattern=pattern):
                if kind != "text":
                    return "1 = 0"
                prefix, whole = literal_prefix(pattern)
                if not prefix:
                    return self._matches(column, pattern)
                within = self._in_bounds(column, prefix)
                return within if whole else f"{within} AND {self._matches(column, pattern)}"

    @abstractmethod
    def _is_one_of(self, column: str, kind: str, values: Sequence[Any]) -> str:
        """SQL for: a column of texts or numbers equals one of these."""

    @abstractmethod
    def _matches(self, text: str, pattern: str) -> str:
        """SQL for: a text, or NULL, matches an RE2 pattern somewhere."""

    @abstractmethod
    def _local_time(self, seconds: str) -> str:
        """SQL of a unix time as ``YYYY-MM-DD HH:MM:SS`` in this machine's zone."""

    @abstractmethod
    def _on_document(self, document: str, test: IsIn | Orders | Matches) -> str:
        """SQL for a test of something in a JSON document; of null only as a value."""

    @abstractmethod
    def _present(self, document: str, test: IsIn) -> str:
        """SQL for: the path of a test leads to something."""


class _Sqlite(_Compiler):
    def _is_one_of(self, column: str, kind: str, values: Sequence[Any]) -> str:
        return f"{column} IN {self._listed(list(values))}"

    def _matches(self, text: str, pattern: str) -> str:
        return f"{REGEXP}({self.parameters.bind(pattern)}, {text})"

    def _listed(self, values: list[Any]) -> str:
        """One parameter whatever the number of values; numbers are read as documents' are."""
        return f"(SELECT value FROM json_each({self.parameters.bind(text_of(values))}))"  # noqa: S608

    def _local_time(self, seconds: str) -> str:
        return f"strftime('%Y-%m-%d %H:%M:%S', {seconds}, 'unixepoch', 'localtime')"

    def _on_document(self, document: str, test: IsIn | Orders | Matches) -> str:
        match test:
            case IsIn(values=values):
                leaf = self._leaf_in(values)
            case Orders():
                leaf = self._leaf_orders(test)
            case Matches():
                leaf = self._leaf_matches(test)
        return self._somewhere(document, "$", test.path.parts, leaf, 0)

    def _present(self, document: str, test: IsIn) -> str:
        return self._somewhere(document, "$", test.path.parts, _PRESENT, 0)

    def _somewhere(
        self, source: str, path: str, parts: tuple[str, ...], leaf: "_Leaf", depth: int
    ) -> str:
        """SQL for: a value that ``parts`` lead to, from ``path`` in ``source``, satisfies."""
        if not parts:
            return self._at(source, path, leaf, depth)
        name, rest = parts[0], parts[1:]
        ways = [self._somewhere(source, f'{path}."{name}"', rest, leaf, depth)]
        if path == "$" and depth == 0:  # the document itself is an object
            return ways[0]
        index = index_of(name)
        if index is not None:
            ways.append(self._somewhere(source, f"{path}[{index}]", rest, leaf, depth))
        row, at = f"e{depth}", self.parameters.bind(path)
        inner = self._somewhere(f"{row}.value", f'$."{name}"', rest, leaf, depth + 1)
        ways.append(
            f"json_type({source}, {at}) = 'array' AND EXISTS (SELECT 1 FROM"  # noqa: S608
            f" json_each({source}, {at}) AS {row} WHERE {row}.type = 'object' AND ({inner}))"
        )
        return " OR ".join(ways)  # AND binds closer; SQLite's parser minds each parenthesis

    def _at(self, source: str, path: str, leaf: "_Leaf", depth: int) -> str:
        """SQL for: the value at exactly this path, or an element of it, satisfies."""
        row, at = f"e{depth}", self.parameters.bind(path)
        if leaf.present:
            return f"json_type({source}, {at}) IS NOT NULL"
        ways = []
        if leaf.each:
            # json_each gives a scalar as one row, a list's elements, and an object's members,
            # which are no values of this path.
            ways.append(
                f"json_type({source}, {at}) <> 'object' AND EXISTS (SELECT 1"  # noqa: S608
                f" FROM json_each({source}, {at}) AS {row} WHERE {leaf.each.replace('?', row)})"
            )
        if leaf.whole:
            kind, text = f"json_type({source}, {at})", f"json_extract({source}, {at})"
            ways.append(leaf.whole.replace("?.type", kind).replace("?.value", text))
        return " OR ".join(ways)

    def _leaf_in(self, values: tuple[Any, ...]) -> "_Leaf":
        tests, whole = [], []
        by_kind: dict[str, list[Any]] = {}
        for value in values:
            by_kind.setdefault(kind_of(value), []).append(value)
        for kind, members in by_kind.items():
            if kind == "null":
                tests.append("?.type = 'null'")
            elif kind == "bool":
                names = ", ".join(sorted({"'true'" if each else "'false'" for each in members}))
                tests.append(f"?.type IN ({names})")
            elif kind == "text":
                tests.append(f"?.type = 'text' AND ?.value IN {self._listed(members)}")
            elif kind == "number":
                tests.append(f"?.type IN {_NUMBERS} AND ?.value IN {self._listed(members)}")
            else:
                name = "array" if kind == "list" else "object"
                texts = self._listed([text_of(each) for each in members])
                whole.append(f"?.type = '{name}' AND ?.value IN {texts}")
        return _Leaf(" OR ".join((*tests, *whole)), " OR ".join(whole))

    def _leaf_orders(self, test: Orders) -> "_Leaf":
        bound, relation = test.bound, test.relation
        if isinstance(bound, bool):
            names = [
                f"'{str(value).lower()}'"
                for value in (False, True)
                if (value > bound and relation[0] == ">")
                or (value < bound and relation[0] == "<")
                or (value == bound and relation.endswith("="))
            ]
            return _Leaf(f"?.type IN ({', '.join(names)})")
        if isinstance(bound, str):
            return _Leaf(f"?.type = 'text' AND ?.value {relation} {self.parameters.bind(bound)}")
        # The bound is read by the parser that reads documents, to the same last digit.
        number = f"json_extract({self.parameters.bind(text_of(bound))}, '$')"
        return _Leaf(f"?.type IN {_NUMBERS} AND ?.value {relation} {number}")

    def _leaf_matches(self, test: Matches) -> "_Leaf":
        return _Leaf(f"?.type = 'text' AND {self._matches('?.value', test.pattern)}")


@frozen
class _Leaf:
    """Tests on a value, ``?`` standing for the row of ``json_each``.

    ``each`` is for elements of a list and for scalars, ``whole`` for a list or object itself.
    """

    each: str = ""
    whole: str = ""
    present: bool = False


_PRESENT = _Leaf(present=True)


_INT64 = 1 << 63


class _Postgres(_Compiler):
    """Values are compared as ``jsonb``, which knows their types; ``AND`` promises no order."""

    def _is_one_of(self, column: str, kind: str, values: Sequence[Any]) -> str:
        if kind == "number":  # columns hold integers
            values = [int(each) for each in values if each == int(each) and abs(each) < _INT64]
        return f"{column} = ANY({self.parameters.bind(list(values))})"

    def _matches(self, text: str, pattern: str) -> str:
        return f'({text}) COLLATE "C" ~ {self._text(ere_of(pattern))}'

    def _text(self, value: str) -> str:
        return f"CAST({self.parameters.bind(value)} AS text)"

    def _json(self, value: Any) -> str:
        return f"CAST({self.parameters.bind(text_of(value))} AS jsonb)"

    def _local_time(self, seconds: str) -> str:
        zone = self._text(local_zone())
        return f"to_char(to_timestamp({seconds}) AT TIME ZONE {zone}, 'YYYY-MM-DD HH24:MI:SS')"

    def _on_document(self, document: str, test: IsIn | Orders | Matches) -> str:
        match test:
            case IsIn(values=values):
                leaf = f"? IN (SELECT jsonb_array_elements({self._json(list(values))}))"
            case Orders():
                leaf = self._ordered(test)
            case Matches():
                leaf = self._matched(test)
        return self._somewhere(f"CAST({document} AS jsonb)", test.path.parts, leaf, True)

    def _present(self, document: str, test: IsIn) -> str:
        source = f"CAST({document} AS jsonb)"
        return self._somewhere(source, test.path.parts, "? IS NOT NULL", True)

    def _ordered(self, test: Orders) -> str:
        bound, relation = test.bound, test.relation
        if isinstance(bound, str):
            return (
                "CASE WHEN jsonb_typeof(?) = 'string' THEN"
                f" (? #>> '{{}}') COLLATE \"C\" {relation} {self._text(bound)} ELSE false END"
            )
        kind = "boolean" if isinstance(bound, bool) else "number"
        return f"jsonb_typeof(?) = '{kind}' AND ? {relation} {self._json(bound)}"

    def _matched(self, test: Matches) -> str:
        matches = self._matches("? #>> '{}'", test.pattern)
        return f"CASE WHEN jsonb_typeof(?) = 'string' THEN {matches} ELSE false END"

    def _somewhere(self, source: str, parts: tuple[str, ...], leaf: str, root: bool) -> str:
        """SQL for: a value that ``parts`` lead to in ``source`` satisfies ``leaf``.

        Args:
            source: SQL of a ``jsonb`` value, or NULL.
            parts: names and indices.
            leaf: SQL, ``?`` standing for the value.
            root: the source is the document, which is an object.
        """
        row = f"e{len(self.parameters.values)}"
        elements = (
            f"jsonb_array_elements(CASE WHEN jsonb_typeof({source}) = 'array'"
            f" THEN {source} ELSE '[]' END) AS {row}(value)"
        )
        if not parts:
            here, there = leaf.replace("?", source), leaf.replace("?", f"{row}.value")
            return f"({here}) OR EXISTS (SELECT 1 FROM {elements} WHERE {there})"  # noqa: S608
        name, rest = parts[0], parts[1:]
        key = self._text(name)
        ways = [self._somewhere(f"({source} -> {key})", rest, leaf, False)]
        if root:
            return ways[0]
        index = index_of(name)
        if index is not None:
            ways.append(self._somewhere(f"({source} -> {index})", rest, leaf, False))
        inner = self._somewhere(f"({row}.value -> {key})", rest, leaf, False)
        ways.append(f"EXISTS (SELECT 1 FROM {elements} WHERE {inner})")  # noqa: S608
        return " OR ".join(f"({way})" for way in ways)


def local_zone() -> str:
    """This machine's time zone by a name that PostgreSQL knows."""
    name = os.environ.get("TZ", "").lstrip(":")
    if not name:
        _, _, name = str(Path("/etc/localtime").resolve()).partition("zoneinfo/")
    return name or "UTC"


_COMPILERS: Mapping[str, type[_Compiler]] = {"sqlite": _Sqlite, "postgresql": _Postgres}
