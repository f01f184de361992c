"""The filter language of operators' queries: parsed, checked, and evaluated on a document.

A filter is blocks of rules, two levels joined by ``$and``, ``$or`` or ``$nor``. The meaning is
that of MongoDB's query operators: a rule holds if any value its key leads to satisfies it, a
list stands for itself and for each of its elements, values of different types never compare.

`holds` here is the meaning; `elkeid.manager.store.filtersql` says the same in SQL.

Source: docs/protocol.md, "Manager API", "Filters".
"""

import datetime
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from operator import ge, gt, le, lt
from typing import Any, Literal

import msgspec
import re2
from attrs import frozen

from elkeid.errors import RequestRefused
from elkeid.manager.documents import MalformedItem, canonical, text_of

RULE_LIMIT = 200
"""Rules of one filter: each is a subquery, and SQLite nests expressions at most 1,000 deep."""

VALUE_LIMIT = 10_000
"""Values of one ``$in``: two pages of agent ids."""

KEY_CHARACTERS = 128
"""Length of a key; the fields of agents have up to 30 characters."""

KEY_PARTS = 4
"""Parts of a dotted key: each doubles the subqueries, and documents are 3 deep."""

PATTERN_CHARACTERS = 512
"""Length of a regular expression; RE2 takes time linear in pattern times text."""

PATTERN_MEMORY = 1 << 20
"""Bytes RE2 may take for one compiled pattern; a larger one is refused."""

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")
_INDEX = re.compile(r"(0|[1-9][0-9]{0,5})\Z")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}\Z", re.ASCII)
_TIME_BOUNDS = {"start": "1970-01-01 00:00", "end": "9999-01-01 00:00"}

Joiner = Literal["$and", "$or", "$nor"]
OperatorName = Literal["$eq", "$gt", "$gte", "$in", "$lt", "$lte", "$ne", "$nin", "$regex", "$time"]
Relation = Literal[">", ">=", "<", "<="]
_RELATIONS: dict[str, Relation] = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_COMPARE = {">": gt, ">=": ge, "<": lt, "<=": le}


class RuleBody(msgspec.Struct):
    """One rule of a block."""

    operator: OperatorName
    value: Any


class BlockBody(msgspec.Struct):
    """Rules on one key."""

    key: str
    condition: Joiner
    rules: list[RuleBody]


class FilterBody(msgspec.Struct):
    """The body of a ``/filter`` route; ``{}`` and null stand for everything."""

    condition: Joiner = "$and"
    filter: list[BlockBody] | None = None


class FilterError(RequestRefused):
    """A filter that cannot be used; the text begins with the part at fault."""


@frozen
class Path:
    """Where a dotted key leads; `parts` are plain names, a number also means an index."""

    parts: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.parts)


def index_of(part: str) -> int | None:
    """The list index that a part of a key may mean."""
    return int(part) if _INDEX.match(part) else None


@frozen
class IsIn:
    """A value equals one of `values` (canonical JSON); a null also matches no value at all."""

    path: Path
    values: tuple[Any, ...]


@frozen
class Orders:
    """A value of the bound's type stands in `relation` to `bound`."""

    path: Path
    relation: Relation
    bound: str | int | float | bool


@frozen
class Matches:
    """A text matches the RE2 pattern somewhere."""

    path: Path
    pattern: str


@frozen
class Not:
    """The test does not hold, which includes that there is no value."""

    test: "Test"


@frozen
class Every:
    """All tests hold; so does none at all."""

    tests: tuple["Test", ...]


@frozen
class Some:
    """One of the tests holds at least."""

    tests: tuple["Test", ...]


Test = IsIn | Orders | Matches | Not | Every | Some
EVERYTHING = Every(())


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Any:
    """The compiled pattern; `re2.error` says what RE2 does not accept."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = PATTERN_MEMORY
    return re2.compile(pattern, options)


def parse(body: FilterBody | None, zone: datetime.tzinfo | None = None) -> Test:
    """Check a filter and give its meaning.

    Args:
        body: the decoded body; None matches everything.
        zone: for ``$time``; the machine's own by default.

    Raises:
        FilterError: it names the block and rule at fault, as ``filter[0].rules[1].value: ...``.
    """
    blocks = [] if body is None or body.filter is None else body.filter
    total = sum(len(block.rules) for block in blocks)
    if total > RULE_LIMIT or len(blocks) > RULE_LIMIT:
        raise FilterError(f"filter: more than {RULE_LIMIT} rules")
    tests = []
    for number, block in enumerate(blocks):
        place = f"filter[{number}]"
        path = _path(block.key, f"{place}.key")
        rules = tuple(
            _rule(path, rule, f"{place}.rules[{at}].value", zone)
            for at, rule in enumerate(block.rules)
        )
        if rules:
            tests.append(_join(block.condition, rules))
    if body is None or not tests:
        return EVERYTHING
    return _join(body.condition, tuple(tests))


def _join(joiner: Joiner, tests: tuple[Test, ...]) -> Test:
    if joiner == "$and":
        return Every(tests)
    return Some(tests) if joiner == "$or" else Not(Some(tests))


def _path(key: str, place: str) -> Path:
    if not 0 < len(key) <= KEY_CHARACTERS or not _KEY.match(key):
        raise FilterError(
            f"{place}: must be a field name of letters, digits, _ and -, its parts joined by dots"
        )
    parts = tuple(key.split("."))
    if len(parts) > KEY_PARTS:
        raise FilterError(f"{place}: more than {KEY_PARTS} parts")
    return Path(parts)


def _rule(path: Path, rule: RuleBody, place: str, zone: datetime.tzinfo | None) -> Test:
    name = rule.operator
    if rule.value is None:
        raise FilterError(f"{place}: required")
    try:
        value = canonical(rule.value)
    except MalformedItem as error:
        raise FilterError(f"{place}: {error}") from error
    if name in ("$eq", "$ne"):
        equal = IsIn(path, (value,))
        return equal if name == "$eq" else Not(equal)
    if name in ("$in", "$nin"):
        if not isinstance(value, list):
            raise FilterError(f"{place}: {name} needs a list")
        if len(value) > VALUE_LIMIT:
            raise FilterError(f"{place}: more than {VALUE_LIMIT} values")
        equal = IsIn(path, tuple(value))
        return equal if name == "$in" else Not(equal)
    if name == "$regex":
        return Matches(path, pattern_at(value, place))
    if name == "$time":
        return _time_range(path, value, place, zone)
    if isinstance(value, list | dict):
        raise FilterError(f"{place}: {name} needs a text, number or boolean")
    return Orders(path, _RELATIONS[name], value)


def pattern_at(value: Any, place: str) -> str:
    """A regular expression that a request brought, checked.

    Raises:
        FilterError: it cannot be used; the text begins with ``place``.
    """
    if not isinstance(value, str):
        raise FilterError(f"{place}: $regex needs a text")
    if len(value) > PATTERN_CHARACTERS:
        raise FilterError(f"{place}: pattern longer than {PATTERN_CHARACTERS} characters")
    try:
        compiled(value)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise FilterError(f"{place}: not an RE2 pattern: {reason}") from error
    return value


def _time_range(path: Path, value: Any, place: str, zone: datetime.tzinfo | None) -> Test:
    if not isinstance(value, dict):
        raise FilterError(f'{place}: $time needs {{"start": "YYYY-MM-DD HH:MM", "end": "..."}}')
    bounds = []
    for name, default in _TIME_BOUNDS.items():
        text = value.get(name, default)
        try:
            if not isinstance(text, str) or not _TIME.match(text):
                raise ValueError(text)
            moment = datetime.datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=zone)
            bounds.append(int(moment.timestamp()))
        except (ValueError, OverflowError) as error:
            raise FilterError(f"{place}.{name}: not a time YYYY-MM-DD HH:MM") from error
    return Every((Orders(path, ">=", bounds[0]), Orders(path, "<=", bounds[1])))


def values_at(document: Any, parts: tuple[str, ...]) -> Iterator[Any]:
    """Every value a key leads to: through lists by index and through each of their objects."""
    if not parts:
        yield document
        if isinstance(document, list):
            yield from document
        return
    name, rest = parts[0], parts[1:]
    if isinstance(document, dict):
        if name in document:
            yield from values_at(document[name], rest)
    elif isinstance(document, list):
        index = index_of(name)
        if index is not None and index < len(document):
            yield from values_at(document[index], rest)
        for each in document:
            if isinstance(each, dict) and name in each:
                yield from values_at(each[name], rest)


def kind_of(value: Any) -> str:
    """The type by which values compare: bool, number, text, list, object or null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list) else "object"


def _same(one: Any, other: Any) -> bool:
    kind = kind_of(one)
    if kind != kind_of(other):
        return False
    if kind in ("list", "object"):
        return text_of(one) == text_of(other)
    return bool(one == other)


def holds(test: Test, document: Mapping[str, Any]) -> bool:
    """Say whether a document, in canonical form, satisfies a test."""
    match test:
        case Every(tests):
            return all(holds(each, document) for each in tests)
        case Some(tests):
            return any(holds(each, document) for each in tests)
        case Not(inner):
            return not holds(inner, document)
    found = list(values_at(document, test.path.parts))
    match test:
        case IsIn(values=values):
            if None in values and not found:
                return True
            return any(_same(value, each) for each in found for value in values)
        case Orders(relation=relation, bound=bound):
            kind, compare = kind_of(bound), _COMPARE[relation]
            return any(kind_of(each) == kind and compare(each, bound) for each in found)
        case Matches(pattern=pattern):
            search = compiled(pattern).search
            return any(isinstance(each, str) and search(each) is not None for each in found)
