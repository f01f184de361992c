"""What is stored of agents, on either database: heartbeats, states, ways to find agents."""

import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event, insert, select

from elkeid.manager.beats import beat_of
from elkeid.manager.documents import Source
from elkeid.manager.filter import EVERYTHING, FilterBody, Not, Test, compiled, parse
from elkeid.manager.selection import HostConditions, looked_at
from elkeid.manager.store import agent_pages
from elkeid.manager.store.agent_pages import (
    WAYS,
    count_of_agents,
    ids_of_agents,
    page_of_agents,
)
from elkeid.manager.store.agents import (
    Applied,
    apply_reports,
    apply_sorted,
    disconnect,
    find_agent,
    heard,
    plugins_of,
    retire,
    silent_agents,
    sort_out,
    turn_offline,
)
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.engine import Database
from elkeid.manager.store.filtersql import bounds_of, literal_prefix
from elkeid.manager.store.schema import agent_beat, agent_tag

from .stores import report

ONE, TWO = Source("10.0.0.1", 6752), Source("10.0.0.2", 6752)
NOW = 1_700_000_000
FRESH = NOW - 600.0


def asked(key: str, operator: str, value: Any) -> Test:
    """A filter of one rule."""
    rules = [{"operator": operator, "value": value}]
    raw = {"filter": [{"key": key, "condition": "$and", "rules": rules}]}
    return parse(msgspec.convert(raw, FilterBody))


def shown(connection: Connection, agent_id: str) -> dict[str, Any]:
    """One agent's document."""
    found = find_agent(connection, agent_id)
    assert found is not None
    document: dict[str, Any] = msgspec.json.decode(found)
    return document


def found(connection: Connection, test: Test, **how: Any) -> list[str]:
    """The ids of a list, in its order."""
    page = page_of_agents(connection, test, 0, 100, **how)
    assert page.total == count_of_agents(connection, test) == len(page.items)
    return [msgspec.json.decode(each)["agent_id"] for each in page.items]


def entry(agent_id: str, seen: int, plugins: Any = None, **info: Any) -> msgspec.Raw:
    """An entry of an AC's report, as sent."""
    body = {"agent_id": agent_id, "last_heartbeat_time": seen, **info}
    return msgspec.Raw(msgspec.json.encode({"agent_info": body, "plugins_info": plugins}))


def told(
    connection: Connection, *items: msgspec.Raw, source: Source = ONE, fresh_since: float = FRESH
) -> Applied:
    """Apply a report."""
    given_items = sort_out(connection, source, items, 0.0)
    return apply_sorted(connection, source, given_items, 0.0, fresh_since)


class _Statements:
    """Tables that statements write to."""

    def __init__(self, connection: Connection) -> None:
        self.written: set[str] = set()
        event.listen(connection, "before_cursor_execute", self._note)

    def _note(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        word, _, after = statement.partition(" ")
        if word in ("UPDATE", "INSERT", "DELETE"):
            self.written.add(after.removeprefix("INTO ").removeprefix("FROM ").split(" ")[0])


def test_heartbeat_touches_only_what_it_changes(any_database: Database) -> None:
    """Time alone, figures, and what is searched by are in rows of their own."""
    plugins = [{"name": "driver", "cpu": 0.5}]
    with any_database.writing() as connection:
        first = told(connection, entry("a", NOW, plugins, hostname="h", cpu=1))
        assert (first.added, first.changed) == (1, 0)
        for items, changed, tables in (
            ({"cpu": 1, "hostname": "h"}, 0, set()),
            ({"cpu": 1, "hostname": "h", "seen": 1}, 1, {"agent_beat"}),
            ({"cpu": 2, "hostname": "h", "seen": 2}, 1, {"agent_beat", "agent_hot"}),
        ):
            statements = _Statements(connection)
            seen = NOW + items.pop("seen", 0)
            done = told(connection, entry("a", seen, plugins, **dict(reversed(items.items()))))
            assert (done.added, done.changed, done.unchanged) == (0, changed, 1 - changed)
            assert statements.written == tables, items
            assert shown(connection, "a")["last_heartbeat_time"] == seen
        assert shown(connection, "a")["cpu"] == 2
        told(connection, entry("a", NOW + 3, plugins, hostname="h2", cpu=2, intranet_ipv4=["10.1"]))
        assert found(connection, asked("intranet_ipv4", "$eq", "10.1")) == ["a"]
        assert found(connection, asked("hostname", "$regex", "^h2")) == ["a"]
        assert plugins_of(connection, ["a", "b"]) == {"a": frozenset({"driver"})}


def test_figure_that_is_no_longer_reported_is_kept(any_database: Database) -> None:
    """Neither a heartbeat with fewer figures nor the next one loses what was known."""
    with any_database.writing() as connection:
        told(connection, entry("a", NOW, cpu=1, rss=2, load="x"))
        told(connection, entry("a", NOW + 1, cpu=3))
        told(connection, entry("a", NOW + 2, cpu=4))
        document = shown(connection, "a")
        assert (document["cpu"], document["rss"], document["load"]) == (4, 2, "x")
        told(connection, entry("a", NOW + 3, cpu="none"))
        told(connection, entry("a", NOW + 4, rss=9, load=1))
        document = shown(connection, "a")
        assert (document["cpu"], document["rss"], document["load"]) == ("none", 9, 1)


def test_states_are_stored_when_they_change(any_database: Database) -> None:
    """Silent agents turn offline, retired ones stay so until they speak; lists tell at once."""
    with any_database.writing() as connection:
        told(connection, *(entry(f"a{n}", NOW + n, state="running") for n in range(4)))
        told(connection, entry("bad", NOW + 9, state="abnormal"), entry("old", NOW - 601))
        states = {name: asked("agent_state", "$eq", name) for name in ("running", "offline")}
        assert found(connection, states["running"]) == ["a0", "a1", "a2", "a3"]
        assert found(connection, states["offline"]) == ["old"]
        assert found(connection, asked("agent_state", "$in", ["abnormal", "offline"])) == [
            "bad",
            "old",
        ]
        later = NOW + 2.0
        assert silent_agents(connection, later, "", 10) == ["a0", "a1"]
        assert silent_agents(connection, later, "a0", 10) == ["a1"]
        told(connection, entry("a1", NOW + 5, state="running"))  # between look and write
        assert turn_offline(connection, ["a0", "a1"], later) == 1
        assert found(connection, states["offline"]) == ["a0", "old"]
        assert silent_agents(connection, later, "", 10) == []
        told(connection, entry("a0", NOW + 6, state="running"), fresh_since=later)
        assert shown(connection, "a0")["agent_state"] == "running"
        assert retire(connection, ["a0", "nobody"]) == 1
        told(connection, entry("a0", NOW + 6, state="running"), fresh_since=later)
        assert shown(connection, "a0")["agent_state"] == "uninstalled"
        assert turn_offline(connection, ["a0"], NOW + 100.0) == 0
        assert retire(connection, ["a0"]) == 0
        told(connection, entry("a0", NOW + 7, state="running"), fresh_since=later)
        assert shown(connection, "a0")["agent_state"] == "running"


def test_connections(any_database: Database) -> None:
    """Whether an agent is connected is told where its AC answers, and survives a repetition."""
    with any_database.writing() as connection:
        told(connection, entry("a", NOW), entry("b", NOW))
        assert "connected" not in shown(connection, "a")
        heard(connection, {ONE: NOW})
        assert disconnect(connection, ONE, ["a", "nobody"]) == 1
        assert disconnect(connection, TWO, ["b"]) == 0
        assert [shown(connection, each)["connected"] for each in "ab"] == [False, True]
        assert found(connection, asked("connected", "$eq", False)) == ["a"]
        told(connection, entry("a", NOW))
        assert shown(connection, "a")["connected"] is True


def test_lists_along_an_index(any_database: Database) -> None:
    """A prefix of a name or address is listed in its order, everything else by id; none twice."""
    with any_database.writing() as connection:
        reports = [
            report("1", hostname="web-2", intranet_ipv4=["10.1.0.2", "10.1.0.1", "10.2.0.1"]),
            report("2", hostname="web-1", intranet_ipv4=["10.1.0.9", "9.1.1.1"], idc="x"),
            report("3", hostname="db", intranet_ipv4="10.1.0.0"),
            report("4", hostname="web-10", intranet_ipv4=[5, None, {"a": 1}]),
        ]
        apply_reports(connection, ONE, reports)
        web = asked("hostname", "$regex", "^web-")
        assert found(connection, web) == ["2", "4", "1"]
        assert found(connection, web, by_id=True) == ["1", "2", "4"]
        assert ids_of_agents(connection, web, "1", 10) == ["2", "4"]
        assert found(connection, asked("hostname", "$regex", r"^web\-[12]$")) == ["1", "2"]
        assert found(connection, asked("intranet_ipv4", "$regex", r"^10\.")) == ["3", "1", "2"]
        assert found(connection, asked("intranet_ipv4", "$regex", r"^10\.1")) == ["3", "1", "2"]
        assert found(connection, asked("intranet_ipv4", "$eq", "10.2.0.1")) == ["1"]
        assert found(connection, asked("intranet_ipv4", "$in", ["10.2.0.1", "9.1.1.1"])) == [
            "1",
            "2",
        ]
        assert found(connection, asked("intranet_ipv4", "$eq", 5)) == ["4"]
        both = parse(
            msgspec.convert(
                {
                    "filter": [
                        {
                            "key": key,
                            "condition": "$and",
                            "rules": [{"operator": "$regex", "value": value}],
                        }
                        for key, value in (("intranet_ipv4", r"^10\.1"), ("hostname", "^web"))
                    ]
                },
                FilterBody,
            )
        )
        assert found(connection, both) == ["1", "2"]
        page = page_of_agents(connection, web, 1, 1)
        assert (page.total, len(page.items)) == (3, 1)
        assert page_of_agents(connection, web, 1, 1, total=99).total == 99
        assert found(connection, EVERYTHING) == ["1", "2", "3", "4"]


def test_lists_along_several_indices(
    any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where any of a few will do, one stretch stands behind the other; nobody is in two."""
    with any_database.writing() as connection:
        reports = [
            report("1", intranet_ipv4=["10.1.0.2"], extranet_ipv4=["10.1.0.1"], idc="b"),
            report("2", intranet_ipv4=["9.9.9.9"], extranet_ipv4=["10.1.7.7", "10.1.7.8"]),
            report("3", intranet_ipv4=["10.1.0.1"], intranet_ipv6=["10.1::"], idc="a"),
            report("4", extranet_ipv6=["10.1::4"], idc="a"),
            report("5", intranet_ipv4=["10.2.0.1"], extranet_ipv4=["10.10.0.1"]),
        ]
        apply_reports(connection, ONE, reports)
        tags = [("1", "x"), ("3", "x"), ("3", "y"), ("2", "y"), ("5", "z")]
        rows = [{"agent_id": each, "tag": tag} for each, tag in tags]
        connection.execute(insert(agent_tag), rows)
        conditions = HostConditions(ip="10.1.")
        assert found(connection, looked_at(conditions)) == ["3", "1", "2"]
        conditions.ip = "10.1"
        everyone = looked_at(conditions)
        assert found(connection, everyone) == ["3", "1", "2", "5", "4"]
        assert ids_of_agents(connection, everyone, "1", 10) == ["2", "3", "4", "5"]
        assert found(connection, Not(everyone)) == []
        assert found(connection, asked("tags", "$in", ["y", "x", "y"])) == ["2", "3", "1"]
        assert found(connection, asked("tags", "$nin", ["y", "x"])) == ["4", "5"]
        assert found(connection, asked("idc", "$in", ["b", "a", "c"])) == ["1", "3", "4"]
        assert found(connection, asked("idc", "$in", ["b", "a", 5])) == ["1", "3", "4"]
        assert found(connection, asked("idc", "$in", [["b"], "a"])) == ["3", "4"]
        many = [*(f"t{number}" for number in range(WAYS)), "x"]
        assert found(connection, asked("tags", "$in", many)) == ["1", "3"]
        for offset in range(5):  # a page that begins on a way behind others
            page = page_of_agents(connection, everyone, offset, 2, total=5)
            ids = [msgspec.json.decode(each)["agent_id"] for each in page.items]
            assert ids == ["3", "1", "2", "5", "4"][offset : offset + 2]
            for start in page.starts:
                again = page_of_agents(connection, everyone, offset + 2, 2, total=5, start=start)
                assert again == page_of_agents(connection, everyone, offset + 2, 2, total=5)
        retire(connection, ["1"])
        assert found(connection, everyone) == ["3", "2", "5", "4"]
        monkeypatch.setattr(agent_pages, "FEW_RETIRED", 0)
        assert found(connection, everyone) == ["3", "2", "5", "4"]


def test_managers_that_hear_the_same_at_once(any_database: Database, any_url: str) -> None:
    """Two Managers that poll the same AC write the same agents without a conflict."""
    databases = [any_database, make_database(any_url)]
    databases[1].open()
    rounds, failures = 5, list[BaseException]()
    together = threading.Barrier(2)

    def poll(database: Database) -> None:
        try:
            for number in range(rounds):
                items = [entry(f"a{n}", NOW + number, cpu=number, state="x") for n in range(40)]
                together.wait(30)
                with database.reading() as connection:
                    given_items = sort_out(connection, ONE, items, 0.0)
                with database.writing() as connection:
                    apply_sorted(connection, ONE, given_items, 0.0, FRESH)
        except BaseException as error:
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=poll, args=(each,)) for each in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with any_database.reading() as connection:
        assert count_of_agents(connection, EVERYTHING) == 40
        assert set(connection.execute(select(agent_beat.c.last_heartbeat_time)).scalars()) == {
            NOW + rounds - 1
        }
        assert shown(connection, "a7")["cpu"] == rounds - 1
    databases[1].close()


def test_prints_tell_reports_apart() -> None:
    """Anything but the agent's own time makes another print; what cannot be told has none."""
    base = beat_of(entry("a", NOW, [{"last_heartbeat_time": 1}], cpu=1), ONE, 0.0)
    later = beat_of(entry("a", NOW + 1, [{"last_heartbeat_time": 1}], cpu=1), ONE, 5.0)
    assert base is not None
    assert later is not None
    assert base.raw_print == later.raw_print
    assert (base.last_heartbeat_time, later.last_heartbeat_time) == (NOW, NOW - 4)
    for other in (
        beat_of(entry("a", NOW, [{"last_heartbeat_time": 1}], cpu=1), TWO, 0.0),
        beat_of(entry("a", NOW, [{"last_heartbeat_time": 2}], cpu=1), ONE, 0.0),
        beat_of(entry("a", NOW, [{"last_heartbeat_time": 1}], cpu=2), ONE, 0.0),
        beat_of(entry("b", NOW, [{"last_heartbeat_time": 1}], cpu=1), ONE, 0.0),
    ):
        assert other is not None
        assert other.raw_print != base.raw_print
    nested = entry("a", NOW, deep={"last_heartbeat_time": NOW})
    for item in (
        nested,
        entry("a\0", NOW),
        entry("a", -1),
        msgspec.Raw(b"[]"),
        msgspec.Raw(b"\xff"),
    ):
        assert beat_of(item, ONE, 0.0) is None
    unusual = b'{"agent_info":{"agent_id":"a","last_heartbeat_time":1.7e9},"plugins_info":null}'
    assert beat_of(msgspec.Raw(unusual), ONE, 0.0) is None


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^web-", ("web-", True)),
        (r"^10\.1\.", ("10.1.", True)),
        ("^web-[0-9]", ("web-", False)),
        ("^web-?x", ("web", False)),
        ("^web$", ("web", False)),
        ("^ab+", ("a", False)),
        ("^a|b", ("", False)),
        ("web", ("", False)),
        ("^(web)", ("", False)),
        ("^", ("", True)),
        (r"^a\d", ("a", False)),
        ("^é", ("é", True)),
    ],
)
def test_what_matches_begin_with(pattern: str, expected: tuple[str, bool]) -> None:
    """Only what every match must begin with is looked up in an index."""
    assert literal_prefix(pattern) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=4), st.text(max_size=6))
def test_bounds_hold_exactly_what_begins_so(prefix: str, other: str) -> None:
    """A text lies within the bounds of a prefix if, and only if, it begins with it."""
    low, high = bounds_of(prefix)
    for each in (other, prefix + other, prefix[:-1] + other):
        assert (low <= each and (high is None or each < high)) == each.startswith(prefix)


@settings(max_examples=200, deadline=None)
@given(
    st.text("^ab|*?.\\+{1}()[]$-", max_size=6).map(lambda rest: "^" + rest),
    st.text("ab.-", max_size=5),
)
def test_prefix_never_hides_a_match(pattern: str, said: str) -> None:
    """Every text that a pattern finds begins with the pattern's literal prefix."""
    try:
        search = compiled(pattern).search
    except Exception:
        return
    prefix, whole = literal_prefix(pattern)
    if search(said) is not None:
        assert said.startswith(prefix)
    elif whole:
        assert not said.startswith(prefix)
