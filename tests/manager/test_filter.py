"""The filter language: what is refused, what it means, and that SQL means the same."""

import datetime
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elkeid.manager import filter as filters
from elkeid.manager.documents import Source, canonical
from elkeid.manager.filter import FilterBody, FilterError, holds, parse
from elkeid.manager.store.agents import apply_reports, disconnect, page_of_agents
from elkeid.manager.store.engine import Database

from .stores import database_at, report

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
def database() -> Iterator[Database]:
    """One database for all examples."""
    with tempfile.TemporaryDirectory() as folder, database_at(Path(folder, "db")) as opened:
        yield opened


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    fields=st.lists(documents, min_size=1, max_size=4),
    raws=st.lists(bodies, min_size=1, max_size=6),
)
def test_sql_means_what_the_evaluator_means(
    database: Database, fields: list[dict[str, Any]], raws: list[dict[str, Any]]
) -> None:
    """The database finds exactly the agents whose shown documents satisfy the filter."""
    with database.writing() as connection, connection.begin_nested() as undone:
        for number, each in enumerate(fields):
            seen = NOW - 400 * number
            reports = [report(f"agent-{number}", **each | {"last_heartbeat_time": seen})]
            apply_reports(connection, Source(AC.ip, AC.port + number % 2), reports)
        disconnect(connection, AC, ["agent-0"])
        shown = [
            msgspec.json.decode(item)
            for item in page_of_agents(connection, filters.EVERYTHING, 0, 10, FRESH_SINCE).items
        ]
        assert all(canonical(each) == each for each in shown)
        for raw in raws:
            test = parse(body(raw), datetime.UTC)
            expected = [each for each in shown if holds(test, each)]
            page = page_of_agents(connection, test, 0, 10, FRESH_SINCE)
            assert [msgspec.json.decode(item) for item in page.items] == expected, raw
            assert page.total == len(expected)
        undone.rollback()
