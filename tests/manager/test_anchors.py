"""Pages deep in long lists: read from where another page ended, and the same as by counting."""

from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, insert
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elkeid.manager import anchors as limits
from elkeid.manager.agents import AgentStatus
from elkeid.manager.anchors import ANCHOR_SECONDS, ANCHORS, LISTS, SHALLOW_ROWS, Anchors
from elkeid.manager.documents import Source
from elkeid.manager.filter import EVERYTHING, Every, Some, Test
from elkeid.manager.lists import LongLists
from elkeid.manager.selection import HostConditions, looked_at
from elkeid.manager.store.agent_pages import page_of_agents
from elkeid.manager.store.agents import apply_reports
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.engine import Database
from elkeid.manager.store.schema import agent, agent_tag
from elkeid.manager.store.starts import Start
from elkeid.manager.store.store import Store

from .stores import InlineThreads, report
from .test_agent_store import asked

T = TypeVar("T")


def result(coroutine: Coroutine[Any, Any, T]) -> T:
    """What it returns, at once."""
    got: list[T] = []
    Deferred.fromCoroutine(coroutine).addCallback(got.append)
    return got[0]


def place(offset: int, *key: str, after: bool = True) -> Start:
    """A place in a list."""
    return Start(offset, key or (f"{offset}",), after)


class TestAnchors:
    """Which places are remembered, and for how long."""

    def setup_method(self) -> None:
        """None yet."""
        self.clock = Clock()
        self.anchors = Anchors(self.clock.seconds)

    def near(self, offset: int, of: str = "a") -> int | None:
        """Rows before the place that a page is read from."""
        start = self.anchors.near(of, offset).start
        return None if start is None else start.offset

    def test_the_nearest_before(self) -> None:
        """A page is read from the last place that is not behind its beginning."""
        deep = SHALLOW_ROWS
        self.anchors.near("a", 0).found(place(deep + 100), place(deep + 300), place(deep + 200))
        assert self.near(deep + 99) is None
        assert self.near(deep + 100) == deep + 100
        assert self.near(deep + 299) == deep + 200
        assert self.near(1 << 50) == deep + 300
        assert self.near(1 << 50, "b") is None

    def test_short_lists_have_none(self) -> None:
        """What a database counts quickly is counted."""
        self.anchors.near("a", 0).found(place(SHALLOW_ROWS - 1))
        assert (self.near(1 << 50), self.anchors.count) == (None, 0)

    def test_what_was_found_from_a_place_ends_with_it(self) -> None:
        """However long one walks on, a place is at most `ANCHOR_SECONDS` old."""
        self.anchors.near("a", 0).found(place(SHALLOW_ROWS))
        for step in range(1, 5):
            self.clock.advance(ANCHOR_SECONDS / 5)
            here = SHALLOW_ROWS + step * 100
            self.anchors.near("a", here).found(place(here))
            assert self.near(here) == here
        self.clock.advance(ANCHOR_SECONDS / 5 + 0.1)
        assert self.near(1 << 50) is None

    def test_a_newer_find_of_the_same_place_counts(self) -> None:
        """Nor does an older one replace it."""
        old = self.anchors.near("a", 0)
        self.clock.advance(ANCHOR_SECONDS / 2)
        self.anchors.near("a", 0).found(place(SHALLOW_ROWS, "new"))
        old.found(place(SHALLOW_ROWS, "old"))
        start = self.anchors.near("a", SHALLOW_ROWS).start
        assert start is not None
        assert start.key == ("new",)
        self.clock.advance(ANCHOR_SECONDS / 2 + 0.1)
        assert self.near(SHALLOW_ROWS) == SHALLOW_ROWS

    def test_a_clock_set_back(self) -> None:
        """What is remembered as of later is not used."""
        self.clock.advance(100)
        self.anchors.near("a", 0).found(place(SHALLOW_ROWS))
        self.clock.rightNow = 50
        assert self.near(SHALLOW_ROWS) is None

    def test_bounds(self) -> None:
        """Lists and places beyond the limits push the longest unused ones out."""
        for number in range(ANCHORS + 5):
            self.anchors.near("a", 0).found(place(SHALLOW_ROWS + number))
        assert self.anchors.count == ANCHORS
        assert self.near(SHALLOW_ROWS + 4) is None
        for number in range(LISTS):
            self.anchors.near(f"l{number}", 0).found(place(SHALLOW_ROWS))
        assert self.anchors.count == LISTS
        assert self.near(1 << 50) is None


@pytest.fixture
def no_shallow_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists have anchors from the first row on."""
    monkeypatch.setattr(limits, "SHALLOW_ROWS", 0)


AGENTS = 40


def fill(database: Database) -> None:
    """Hosts with the same names and addresses, tagged ones among them."""
    with database.writing() as connection:
        reports = [
            report(
                f"{number * 7 % AGENTS:02}",
                1_700_000_000 + number % 5,
                hostname=f"{'web' if number % 3 else 'db'}-{number % 4}",
                platform="debian" if number % 2 else "debian-sid",
                intranet_ipv4=[f"10.0.{number % 3}.{number % 2}", f"10.1.0.{number % 5}"],
                extranet_ipv4=[f"10.0.9.{number % 3}"] if number % 4 else [],
                intranet_ipv6=["10.0::1"] if number % 7 == 0 else [],
                version=f"1.{number % 2}",
            )
            for number in range(AGENTS)
        ]
        apply_reports(connection, Source("10.0.0.1", 6752), reports)
        rows = [{"agent_id": f"{number:02}", "tag": "prod"} for number in range(0, AGENTS, 2)]
        rows += [{"agent_id": f"{number:02}", "tag": "few"} for number in range(1, AGENTS, 6)]
        rows += [{"agent_id": f"{number:02}", "tag": "few"} for number in range(0, AGENTS, 8)]
        connection.execute(insert(agent_tag), rows)


LISTED: tuple[Test, ...] = (
    EVERYTHING,
    asked("hostname", "$regex", "^web"),
    asked("hostname", "$regex", "^w.b"),
    asked("platform", "$regex", "^deb"),
    asked("tags", "$eq", "prod"),
    asked("agent_state", "$in", ["running", "offline"]),
    asked("intranet_ipv4", "$regex", r"^10\.0"),
    asked("intranet_ipv4", "$eq", "10.0.1.1"),
    asked("tags", "$in", ["few", "prod"]),
    asked("version", "$in", ["1.1", "1.7", "1.0"]),
    Some((asked("hostname", "$regex", "^web-1"), asked("hostname", "$regex", "^[w]eb-2"))),
    looked_at(HostConditions(ip="10.0")),
    looked_at(HostConditions(ip="10.", tags=["prod"])),
    asked("first_heartbeat_time", "$gte", 1_700_000_000.5),
    asked("first_heartbeat_time", "$lt", 1_700_000_003),
    Every(
        (
            asked("first_heartbeat_time", "$lte", 1_700_000_003),
            asked("first_heartbeat_time", "$gt", 1_700_000_000),
        )
    ),
    Every((asked("version", "$regex", r"^1\."), asked("tags", "$ne", "prod"))),
)


@pytest.fixture
def status(any_url: str) -> Iterator[tuple[AgentStatus, Clock, Database]]:
    """Agents over a filled database."""
    database, clock = make_database(any_url), Clock()
    store = Store(database, InlineThreads())
    result(store.open())
    fill(database)
    agents = AgentStatus(
        store,
        clock,
        clock.seconds,
        1e9,
        None,  # type: ignore[arg-type]
        lists=LongLists(clock.seconds),
    )
    yield agents, clock, database
    result(store.close())


Given = tuple[AgentStatus, Clock, Database]


@pytest.mark.usefixtures("no_shallow_rows")
def test_pages_are_those_found_by_counting(status: Given) -> None:
    """On a table that nobody changes, whatever was asked for before, at whatever pace."""
    agents, clock, database = status
    with database.reading() as connection:
        expected = [page_of_agents(connection, test, 0, AGENTS).items for test in LISTED]
    assert all(len(each) > 5 for each in expected)

    step = st.tuples(
        st.integers(0, len(LISTED) - 1),
        st.integers(1, 12),
        st.sampled_from((1, 2, 3, 7, 10, AGENTS)),
        st.sampled_from((0.0, 0.0, ANCHOR_SECONDS / 4)),
    )

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(step, min_size=2, max_size=10))
    def check(steps: list[tuple[int, int, int, float]]) -> None:
        for which, page, size, pause in steps:
            offset = (page - 1) * size
            got = result(agents.page(LISTED[which], offset, size))
            assert got.items == expected[which][offset : offset + size]
            assert got.total == len(expected[which])
            clock.advance(pause)

    check()


@pytest.mark.usefixtures("no_shallow_rows")
def test_each_list_is_walked_without_passing_rows(status: Given) -> None:
    """The second page and all after it are read from where the one before ended."""
    agents, _, database = status
    with database.reading() as connection:
        expected = [page_of_agents(connection, test, 0, AGENTS).items for test in LISTED]
        engine = connection.engine
    passed: list[Any] = []

    def see(_: Any, __: Any, sql: str, parameters: Any, *___: Any) -> None:
        if "OFFSET" in sql:
            values = list(parameters.values() if isinstance(parameters, dict) else parameters)
            passed.append(values[-1])

    event.listen(engine, "before_cursor_execute", see)
    for test, whole in zip(LISTED, expected, strict=True):
        walked: list[msgspec.Raw] = []
        while len(walked) < len(whole):
            walked += result(agents.page(test, len(walked), 3)).items
        assert walked == whole
    event.remove(engine, "before_cursor_execute", see)
    assert passed
    assert not any(passed)


@pytest.mark.usefixtures("no_shallow_rows")
def test_a_walk_goes_on_behind_what_it_had(status: Given) -> None:
    """Rows that go meanwhile hide no other from who walks on; later the list is as it is."""
    agents, clock, database = status

    def ids(offset: int, size: int) -> list[str]:
        items = result(agents.page(EVERYTHING, offset, size)).items
        return [msgspec.json.decode(each)["agent_id"] for each in items]

    assert ids(0, 10)[-1] == "09"
    with database.writing() as connection:
        connection.execute(delete(agent).where(agent.c.agent_id.in_(["03", "09", "10"])))
    assert ids(10, 10)[0] == "11"
    assert ids(0, 4) == ["00", "01", "02", "04"]
    clock.advance(ANCHOR_SECONDS + 0.1)
    assert ids(10, 10)[0] == "13"
