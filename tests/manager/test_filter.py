"""The filter language: what is refused, what it means, and that SQL means the same."""

import datetime
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from elkeid.manager import filter as filters
from elkeid.manager.documents import Source, canonical
from elkeid.manager.filter import FilterBody, FilterError, holds, parse
from elkeid.manager.store.agent_pages import page_of_agents
from elkeid.manager.store.agents import apply_reports, disconnect, heard
from elkeid.manager.store.engine import Database
from elkeid.manager.store.filtersql import condition
from elkeid.manager.store.postgres_regex import ere_of
from tests.integration.postgres import needs_postgres

from .stores import database_of_kind, report

AC = Source("10.0.0.5", 6752)
NOW = 1_700_000_600
FRESH_SINCE = NOW - 600


def body(raw: Any) -> FilterBody | None:
    """A request's body, as its schema gives it."""
    return msgspec.convert(raw, FilterBody | None)


def rule(key: str, operator: str, value: Any) -> dict[str, Any]:
    """A filter of one rule."""
    return {
        "filter": [
            {"key": key, "condition": "$and", "rules": [{"operator": operator, "value": value}]}
        ]
    }


def matching(raw: Any, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The documents that satisfy a filter."""
    test = parse(body(raw), datetime.UTC)
    return [each for each in documents if holds(test, each)]


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {},
        {"filter": None},
        {"filter": []},
        {"condition": "$nor", "filter": [{"key": "a", "condition": "$and", "rules": []}]},
    ],
)
def test_nothing_asked_matches_everything(raw: Any) -> None:
    """No rule at all, whatever the joining words say, finds every host."""
    assert parse(body(raw)) == filters.EVERYTHING


@pytest.mark.parametrize(
    "raw",
    [
        {"condition": ""},
        {"condition": "$not"},
        {"filter": [{"key": "a", "condition": "$and"}]},
        {"filter": [{"key": "a", "condition": "$and", "rules": None}]},
        {"filter": [{"key": "a", "rules": []}]},
        {"filter": [{"condition": "$and", "rules": []}]},
        {"filter": [{"key": "a", "condition": "$xor", "rules": []}]},
        rule("a", "$exists", True),
        rule("a", "$where", "1"),
        {"filter": [{"key": "a", "condition": "$and", "rules": [{"operator": "$eq"}]}]},
        {"filter": {"key": "a"}},
        [],
    ],
)
def test_shapes_that_are_refused(raw: Any) -> None:
    """A filter with an unknown word or a missing part never runs."""
    with pytest.raises(msgspec.ValidationError):
        body(raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (rule("a", "$eq", None), r"filter\[0\]\.rules\[0\]\.value: required"),
        (rule("", "$eq", 1), r"filter\[0\]\.key"),
        (rule("$expr", "$eq", 1), r"filter\[0\]\.key"),
        (rule("a.$b", "$eq", 1), r"filter\[0\]\.key"),
        (rule("a..b", "$eq", 1), r"filter\[0\]\.key"),
        (rule("a'b", "$eq", 1), r"filter\[0\]\.key"),
        (rule('a"b', "$eq", 1), r"filter\[0\]\.key"),
        (rule("a" * 129, "$eq", 1), r"filter\[0\]\.key"),
        (rule("a.b.c.d.e", "$eq", 1), "4 parts"),
        (rule("a", "$in", "x"), "needs a list"),
        (rule("a", "$nin", {"x": 1}), "needs a list"),
        (rule("a", "$in", [1] * 10_001), "10000 values"),
        (rule("a", "$gt", [1]), "needs a text, number or boolean"),
        (rule("a", "$regex", 1), "needs a text"),
        (rule("a", "$eq", 10**400), "out of range"),
        (rule("a", "$regex", "("), "not an RE2 pattern: missing"),
        (rule("a", "$regex", "(?=x)"), "not an RE2 pattern: invalid perl operator"),
        (rule("a", "$regex", "x" * 513), "512 characters"),
        (rule("a", "$regex", "((a{30}){30}){30}"), "not an RE2 pattern"),
        (rule("a", "$time", "2023-01-01 00:00"), "needs"),
        (rule("a", "$time", {"start": 5}), r"value\.start: not a time"),
        (rule("a", "$time", {"end": "2023-13-01 00:00"}), r"value\.end: not a time"),
        (rule("a", "$eq", [[[[[[[[[1]]]]]]]]]), "nested deeper"),
        ({"filter": [rule("a", "$eq", 1)["filter"][0]] * 201}, "200 rules"),
    ],
)
def test_values_that_are_refused(raw: Any, reason: str) -> None:
    """The reason names the place in the filter, so that its author finds it."""
    with pytest.raises(FilterError, match=reason):
        parse(body(raw))


DOCUMENTS: list[dict[str, Any]] = [
    {"_": 0, "hostname": "web-1", "cpu": 0.5, "tags": ["prod", "eu"], "on": True},
    {"_": 1, "hostname": "db-1", "cpu": 2, "tags": [], "on": False},
    {"_": 2, "hostname": "web-2", "tags": ["test"], "plugins": [{"name": "driver", "pid": 7}]},
    {"_": 3, "hostname": 5, "cpu": "0.5", "plugins": [{"name": "rasp"}, {"pid": 9}], "n": None},
]


@pytest.mark.parametrize(
    ("key", "operator", "value", "expected"),
    [
        ("hostname", "$eq", "web-1", [0]),
        ("hostname", "$eq", 5, [3]),
        ("hostname", "$eq", "5", []),
        ("hostname", "$ne", "web-1", [1, 2, 3]),
        ("missing", "$ne", "x", [0, 1, 2, 3]),
        ("missing", "$nin", ["x"], [0, 1, 2, 3]),
        ("missing", "$eq", "", []),
        ("cpu", "$gt", 0.5, [1]),
        ("cpu", "$gte", 0.5, [0, 1]),
        ("cpu", "$lt", "1", [3]),
        ("cpu", "$lte", 2.0, [0, 1]),
        ("on", "$eq", True, [0]),
        ("on", "$eq", 1, []),
        ("on", "$gte", False, [0, 1]),
        ("tags", "$eq", "eu", [0]),
        ("tags", "$eq", ["prod", "eu"], [0]),
        ("tags", "$eq", ["eu", "prod"], []),
        ("tags", "$ne", "eu", [1, 2, 3]),
        ("tags", "$in", ["test", "eu"], [0, 2]),
        ("tags", "$in", [[]], [1]),
        ("tags.0", "$eq", "prod", [0]),
        ("tags", "$regex", "^t", [2]),
        ("plugins.name", "$eq", "driver", [2]),
        ("plugins.pid", "$gt", 8, [3]),
        ("plugins.1.pid", "$eq", 9, [3]),
        ("plugins", "$eq", {"pid": 7, "name": "driver"}, [2]),
        ("hostname", "$regex", "^web-", [0, 2]),
        ("hostname", "$regex", "b", [0, 1, 2]),
        ("n", "$in", [None], [0, 1, 2, 3]),
        ("hostname", "$in", [None, "db-1"], [1]),
        ("cpu", "$in", [], []),
        ("cpu", "$nin", [], [0, 1, 2, 3]),
    ],
)
def test_meaning_of_operators(key: str, operator: str, value: Any, expected: list[int]) -> None:
    """Types matter, a list matches by any element, a missing field matches only negations."""
    found = matching(rule(key, operator, value), DOCUMENTS)
    assert [each["_"] for each in found] == expected


def test_joining_words() -> None:
    """Rules of a block and blocks of a filter join by their own words."""
    web = {"operator": "$regex", "value": "^web"}
    db = {"operator": "$eq", "value": "db-1"}
    for outer, inner, expected in [
        ("$and", "$or", [0, 1, 2]),
        ("$and", "$and", []),
        ("$and", "$nor", [3]),
        ("$nor", "$or", [3]),
        ("$nor", "$nor", [0, 1, 2]),
        ("$or", "$or", [0, 1, 2]),
    ]:
        raw = {
            "condition": outer,
            "filter": [{"key": "hostname", "condition": inner, "rules": [web, db]}],
        }
        assert [each["_"] for each in matching(raw, DOCUMENTS)] == expected, (outer, inner)


def test_time_is_a_range_of_seconds() -> None:
    """``$time`` includes both ends, to the minute; a missing end is open."""
    stamps = [{"t": 1_699_999_999}, {"t": 1_700_000_040}, {"t": 1_700_000_041}, {"t": "x"}]
    day = {"start": "2023-11-14 22:14", "end": "2023-11-14 22:14"}
    assert matching(rule("t", "$time", day), stamps) == [{"t": 1_700_000_040}]
    assert len(matching(rule("t", "$time", {"start": "2023-11-14 22:14"}), stamps)) == 2
    assert len(matching(rule("t", "$time", {"end": "2023-11-14 22:14"}), stamps)) == 2
    assert len(matching(rule("t", "$time", {}), stamps)) == 3


# Random documents and filters, drawn from few names and values so that they meet.

KEYS = ["hostname", "state", "cpu", "tags", "plugins", "a", "b-c", "version", "source_port"]
texts = st.sampled_from(
    ["", "a", "b", "web-1", "é", "\0", "\ufffd", "5", "10", "'", '"', "\\", "😀"]
)
numbers = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**70, 1e300, 5.0, -0.0, 6752]),
    st.decimals(-10, 10, places=2).map(float),
    st.floats(1e-9, 1e12).map(lambda value: float(f"{value:.17g}")),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "name", "0", "b-c"]), inner, max_size=2),
    ),
    max_leaves=6,
)
documents = st.builds(
    lambda fields, plugins: {**fields, "plugins": plugins},
    st.dictionaries(st.sampled_from([key for key in KEYS if key != "plugins"]), values, max_size=5),
    st.lists(
        st.dictionaries(st.sampled_from(["a", "name", "0", "tags"]), values, max_size=3),
        max_size=3,
    ),
)
paths = st.one_of(
    st.sampled_from([*KEYS, "agent_id", "agent_state", "connected", "last_heartbeat_time"]),
    st.lists(
        st.sampled_from(["a", "tags", "plugins", "name", "0", "1", "b-c", "hostname"]),
        min_size=2,
        max_size=4,
    ).map(".".join),
)
asked = st.one_of(
    values, st.sampled_from(["running", "offline", "abnormal", "agent-1", AC.ip, NOW])
)
rules = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne"]), asked.filter(lambda v: v is not None)),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(asked, max_size=4)),
    st.tuples(
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.one_of(st.booleans(), numbers, texts)
    ),
    st.tuples(
        st.just("$regex"), st.sampled_from(["", "^a", "b", "^$", r"\d", "[^a]", "é", "(?i)WEB"])
    ),
    st.tuples(st.just("$time"), st.sampled_from([{}, {"start": "2023-11-14 22:13"}])),
).map(lambda pair: {"operator": pair[0], "value": pair[1]})
joiners = st.sampled_from(["$and", "$or", "$nor"])
bodies = st.fixed_dictionaries(
    {
        "condition": joiners,
        "filter": st.lists(
            st.fixed_dictionaries(
                {"key": paths, "condition": joiners, "rules": st.lists(rules, max_size=3)}
            ),
            max_size=3,
        ),
    }
)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One database for all examples."""
    with database_of_kind("sqlite", tmp_path_factory.mktemp("db")) as opened:
        yield opened


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One database for all examples."""
    with database_of_kind("postgresql", tmp_path_factory.mktemp("db")) as opened:
        yield opened


fleets = st.lists(documents, min_size=1, max_size=4)
questions = st.lists(bodies, min_size=1, max_size=6)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fields=fleets, raws=questions)
def test_sql_means_what_the_evaluator_means(
    sqlite: Database, fields: list[dict[str, Any]], raws: list[dict[str, Any]]
) -> None:
    """The database finds exactly the agents whose shown documents satisfy the filter."""
    compare(sqlite, fields, raws)


@pytest.mark.integration
@needs_postgres
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fields=fleets, raws=questions)
def test_postgres_means_what_the_evaluator_means(
    postgres: Database, fields: list[dict[str, Any]], raws: list[dict[str, Any]]
) -> None:
    """The same filter finds the same agents, whichever database a fleet is in."""
    compare(postgres, fields, raws)


def compare(database: Database, fields: list[dict[str, Any]], raws: list[dict[str, Any]]) -> None:
    """Ask a database and the evaluator."""
    with database.writing() as connection, connection.begin_nested() as undone:
        for number, each in enumerate(fields):
            seen = NOW - 400 * number
            reports = [report(f"agent-{number}", **each | {"last_heartbeat_time": seen})]
            source = Source(AC.ip, AC.port + number % 2)
            apply_reports(connection, source, reports, FRESH_SINCE)
        disconnect(connection, AC, ["agent-0"])
        heard(connection, {AC: NOW})
        shown = [
            msgspec.json.decode(item)
            for item in page_of_agents(connection, filters.EVERYTHING, 0, 10).items
        ]
        assert all(canonical(each) == each for each in shown)
        for raw in raws:
            test = parse(body(raw), datetime.UTC)
            expected = [each for each in shown if holds(test, each)]
            page = page_of_agents(connection, test, 0, 10, by_id=True)
            assert [msgspec.json.decode(item) for item in page.items] == expected, raw
            ordered = page_of_agents(connection, test, 0, 10)
            assert sorted(ordered.items, key=bytes) == sorted(page.items, key=bytes), raw
            assert page.total == len(expected)
        undone.rollback()


PATTERNS = [
    *("", "^web-", "a|", "|", "(a)(b)?", "(?:x)", "(?P<n>a)b", "(^)*a", "($)+", "a*", "a*?b"),
    *(r"\d+", r"\W", r"[\d_-]", "[^a]", "[]a]", "[a-]", r"[\]\-^]", "[[:alpha:][:digit:]]"),
    *("(?s).", "(?m)^b$", "(?i)aBc", "(?i:k)s", "(?i)[a-c]x", "a{2}", "a{1,}", "a{0,2}b"),
    *("a{", "{", "#", "a b", "(?-i)a", "(?U)a+", "()", "(|a)b", "[\t]", "~", "!", "."),
    *(r"\bweb\b", r"\Aa\z", r"\Q.*\E+", r"\x41\x{42}", r"\n|\t", r"\.", r"\/", r"\101"),
    *("é", "[é-ü]"),
]
LETTERS = [
    "a",
    "b",
    "web-",
    "aa",
    "ABC",
    "k",
    "\u212a",
    "s",
    "\u017f",
    "x",
    "1",
    "_",
    "-",
    " ",
    "A",
]
LETTERS += ["\n", "\t", "é", "ü", "]", "^", "{", ".", "*", "#", "/", "B", "~", "!", "***:a"]


@pytest.mark.integration
@needs_postgres
def test_postgres_runs_patterns_of_re2(postgres: Database) -> None:
    """A pattern finds the same texts in PostgreSQL as in SQLite, flags and classes included."""
    said = ["", *LETTERS, *(one + two for one in LETTERS for two in LETTERS)]
    ask = text("SELECT t.x ~ CAST(:p AS text) FROM unnest(CAST(:said AS text[])) AS t(x)")
    with postgres.reading() as connection:
        for pattern in PATTERNS:
            search = filters.compiled(pattern).search
            found = connection.execute(ask, {"p": ere_of(pattern), "said": said}).scalars()
            wrong = [
                each
                for each, is_found in zip(said, found, strict=True)
                if is_found != (search(each) is not None)
            ]
            assert not wrong, (pattern, ere_of(pattern), wrong[:5])


@pytest.mark.parametrize(
    "pattern", [r"\pL", r"[\W]", "a{1,300}", "(?i)é", "(?i)[[:alpha:]]", "[[:^digit:]]", r"\x00"]
)
def test_patterns_that_postgres_cannot_run(pattern: str) -> None:
    """What has no counterpart is refused with a reason, never searched for wrongly."""
    filters.compiled(pattern)
    with pytest.raises(FilterError, match="with PostgreSQL"):
        ere_of(pattern)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_rules_that_are_too_much_together(dialect: str) -> None:
    """Names that may lead many ways cost more than plain ones; a statement stays small."""

    def asked(key: str, count: int) -> dict[str, Any]:
        rules = [{"operator": "$nin", "value": [None, 1, "a"]}] * count
        return {"filter": [{"key": key, "condition": "$or", "rules": rules}]}

    for key, count in (("cpu", 200), ("plugins.name", 200), ("0.1.2.3", 20)):
        test = parse(body(asked(key, count)), datetime.UTC)
        assert len(condition(test, dialect).sql) < 1_500_000
    with pytest.raises(FilterError, match="too many rules"):
        condition(parse(body(asked("0.1.2.3", 200)), datetime.UTC), dialect)
