"""Filters in SQL: the meaning of `elkeid.manager.filter.holds`, for SQLite and PostgreSQL.

A test on a field that is a column reads the column; any other reads the JSON document. Names of
columns and tables are constants here; every key and value of a request is a bound parameter
(hence the exemptions below from the rule against SQL made of pieces). What reads documents is
each database's own dialect, the rest is plain SQL.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attrs import Factory, define, frozen

from elkeid.manager.documents import text_of
from elkeid.manager.filter import Every, IsIn, Matches, Not, Orders, Some, Test, index_of, kind_of
from elkeid.manager.store.postgres_regex import ere_of

COLUMNS: Mapping[str, tuple[str, Literal["text", "number", "bool"]]] = {
    "agent_id": ("agent.agent_id", "text"),
    "agent_state": (
        "(CASE WHEN agent.last_heartbeat_time < :fresh_since THEN 'offline'"
        " WHEN agent.state = 'abnormal' THEN 'abnormal' ELSE 'running' END)",
        "text",
    ),
    "connected": ("agent.connected", "bool"),
    "first_heartbeat_time": ("agent.first_heartbeat_time", "number"),
    "hostname": ("agent.hostname", "text"),
    "last_heartbeat_time": ("agent.last_heartbeat_time", "number"),
    "source_ip": ("agent.source_ip", "text"),
    "source_port": ("agent.source_port", "number"),
    "state": ("agent.state", "text"),
    "version": ("agent.version", "text"),
}
"""Field -> its SQL and the only type it may have; NULL is a missing field.

``:fresh_since`` is the oldest heartbeat, in unix seconds, of an agent that is not offline.
"""

REGEXP = "elkeid_matches"
"""Name of SQLite's function ``(pattern, text) -> boolean``; PostgreSQL has an operator."""

_NUMBERS = "('integer', 'real')"


@define
class _Parameters:
    values: dict[str, Any] = Factory(dict)

    def bind(self, value: Any) -> str:
        name = f"f{len(self.values)}"
        self.values[name] = value
        return f":{name}"


@frozen
class Condition:
    """A WHERE expression over ``agent`` and, if it reads documents, ``agent_detail``."""

    sql: str
    parameters: dict[str, Any]
    reads_documents: bool


def condition(test: Test, fresh_since: float, dialect: str) -> Condition:
    """Translate a test.

    Args:
        test: what `elkeid.manager.filter.parse` gave.
        fresh_since: unix seconds; an older last heartbeat means offline.
        dialect: ``sqlite`` or ``postgresql``.

    Raises:
        FilterError: a regular expression that PostgreSQL cannot run.
    """
    compiler = _COMPILERS[dialect]()
    sql = compiler.boolean(test)
    values = compiler.parameters.values
    if ":fresh_since" in sql:
        values["fresh_since"] = fresh_since
    return Condition(sql, values, compiler.reads_documents)


class _Compiler(ABC):
    def __init__(self) -> None:
        self.parameters = _Parameters()
        self.reads_documents = False

    def boolean(self, test: Test) -> str:
        """SQL that is true where the test holds; false or NULL elsewhere."""
        match test:
            case Every(tests):
                return self._joined(tests, " AND ") or "1 = 1"
            case Some(tests):
                return self._joined(tests, " OR ") or "1 = 0"
            case Not(inner):
                return f"NOT coalesce({self.boolean(inner)}, false)"
        parts = test.path.parts
        column = COLUMNS.get(parts[0])
        if column is not None:
            if len(parts) > 1:  # nothing lies within a text or a number
                return "1 = 1" if isinstance(test, IsIn) and None in test.values else "1 = 0"
            return self._on_column(test, *column)
        self.reads_documents = True
        return self._on_document(test)

    def _joined(self, tests: tuple[Test, ...], word: str) -> str:
        return word.join(f"({self.boolean(each)})" for each in tests)

    def _on_column(self, test: IsIn | Orders | Matches, column: str, kind: str) -> str:
        bind = self.parameters.bind
        match test:
            case IsIn(values=values):
                wanted = [value for value in values if kind_of(value) == kind]
                alternatives = []
                if kind == "bool":
                    alternatives = [f"{column} = {bind(value)}" for value in sorted(set(wanted))]
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
                return self._matches(column, pattern)

    @abstractmethod
    def _is_one_of(self, column: str, kind: str, values: Sequence[Any]) -> str:
        """SQL for: a column of texts or numbers equals one of these."""

    @abstractmethod
    def _matches(self, text: str, pattern: str) -> str:
        """SQL for: a text, or NULL, matches an RE2 pattern somewhere."""

    @abstractmethod
    def _on_document(self, test: IsIn | Orders | Matches) -> str:
        """SQL for a test of something in the JSON document."""


class _Sqlite(_Compiler):
    def _is_one_of(self, column: str, kind: str, values: Sequence[Any]) -> str:
        return f"{column} IN {self._listed(list(values))}"

    def _matches(self, text: str, pattern: str) -> str:
        return f"{REGEXP}({self.parameters.bind(pattern)}, {text})"

    def _listed(self, values: list[Any]) -> str:
        """One parameter whatever the number of values; numbers are read as documents' are."""
        return f"(SELECT value FROM json_each({self.parameters.bind(text_of(values))}))"  # noqa: S608

    def _on_document(self, test: IsIn | Orders | Matches) -> str:
        document, parts = "agent_detail.document", test.path.parts
        if isinstance(test, IsIn):
            alternatives = []
            leaf = self._leaf_in(test.values)
            if leaf is not None:
                alternatives.append(self._somewhere(document, "$", parts, leaf, 0))
            if None in test.values:
                present = self._somewhere(document, "$", parts, _PRESENT, 0)
                alternatives.append(f"NOT ({present})")
            return " OR ".join(alternatives) or "1 = 0"
        leaf = self._leaf_orders(test) if isinstance(test, Orders) else self._leaf_matches(test)
        return self._somewhere(document, "$", parts, leaf, 0)

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
        return " OR ".join(f"({way})" for way in ways)

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
        return " OR ".join(f"({way})" for way in ways)

    def _leaf_in(self, values: tuple[Any, ...]) -> "_Leaf | None":
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
        if not values:
            return None
        joined = " OR ".join(f"({each})" for each in (*tests, *whole))
        return _Leaf(joined, " OR ".join(f"({each})" for each in whole))

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

    def _on_document(self, test: IsIn | Orders | Matches) -> str:
        document, parts = "CAST(agent_detail.document AS jsonb)", test.path.parts
        if isinstance(test, IsIn):
            alternatives = []
            if test.values:
                wanted = f"(SELECT jsonb_array_elements({self._json(list(test.values))}))"
                alternatives.append(self._somewhere(document, parts, f"? IN {wanted}", True))
            if None in test.values:
                present = self._somewhere(document, parts, "? IS NOT NULL", True)
                alternatives.append(f"NOT ({present})")
            return " OR ".join(f"({each})" for each in alternatives) or "1 = 0"
        leaf = self._ordered(test) if isinstance(test, Orders) else self._matched(test)
        return self._somewhere(document, parts, leaf, True)

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


_COMPILERS: Mapping[str, type[_Compiler]] = {"sqlite": _Sqlite, "postgresql": _Postgres}
