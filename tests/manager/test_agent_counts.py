"""The number of matches of long lists: remembered, and counted anew beside those who ask."""

from typing import Any

from sqlalchemy import Connection
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elkeid.manager import agents, lists
from elkeid.manager.agents import AgentStatus
from elkeid.manager.documents import Source
from elkeid.manager.filter import Test
from elkeid.manager.lists import COUNT_AGAIN_SECONDS, COUNT_SECONDS, LongLists
from elkeid.manager.store.agent_pages import count_of_agents
from elkeid.manager.store.agents import apply_reports

from .stores import HeldStoreCase, report
from .test_agent_store import asked

LISTED = [asked("hostname", "$regex", f"^{name}") for name in ("w", "we", "web")]
SOURCE = Source("10.0.0.1", 6752)


class CountTests(HeldStoreCase):
    def setUp(self) -> None:
        self.patch(lists, "EXACT_ROWS", 0)
        self.patch(agents, "count_of_agents", self.count)
        self.counts = 0
        super().setUp()
        self.clock = Clock()
        self.status = AgentStatus(
            self.store,
            self.clock,
            self.clock.seconds,
            1e9,
            None,  # type: ignore[arg-type]
            lists=LongLists(self.clock.seconds),
        )
        self.add("a1", "a2")

    def count(self, connection: Connection, test: Test) -> int:
        """The real one, watched."""
        self.counts += 1
        return count_of_agents(connection, test)

    def add(self, *ids: str) -> None:
        """Have these agents, too."""
        reports = [report(each, hostname=f"web-{each}") for each in ids]
        self.done(self.store.write(apply_reports, SOURCE, reports))

    def totals(self) -> list[int]:
        """Of all lists."""
        return [self.done(self.status.page(test, 0, 100)).total for test in LISTED]

    def test_counts_take_turns(self) -> None:
        """However long lists are counted anew, one is at a time: pages are not behind them."""
        self.assertEqual(self.totals(), [2, 2, 2])
        self.add("a3")
        self.clock.advance(COUNT_AGAIN_SECONDS + 0.1)
        search, begun = self.store.search, list[Deferred[None]]()

        async def slow(query: Any, *args: Any, **kwargs: Any) -> Any:
            if query == self.count:
                begun.append(Deferred())
                await begun[-1]
            return await search(query, *args, **kwargs)

        self.patch(self.store, "search", slow)
        self.assertEqual(self.totals(), [2, 2, 2])
        for number in range(1, len(LISTED) + 1):
            self.assertEqual(len(begun), number)
            begun[-1].callback(None)
            self.threads.go()
        self.assertEqual(len(begun), len(LISTED))
        self.assertEqual(self.totals(), [3, 3, 3])

    def test_never_older_than_promised(self) -> None:
        """A number that nobody has asked for meanwhile is counted while one waits."""
        self.assertEqual(self.totals(), [2, 2, 2])
        self.add("a3")
        self.clock.advance(COUNT_SECONDS + 0.1)
        self.assertEqual(self.totals(), [3, 3, 3])
        self.assertEqual(self.counts, 0)

    def test_a_count_that_fails(self) -> None:
        """The next lists are counted all the same."""
        self.assertEqual(self.totals(), [2, 2, 2])
        self.patch(agents, "count_of_agents", _broken)
        self.clock.advance(COUNT_AGAIN_SECONDS + 0.1)
        self.assertEqual(self.totals(), [2, 2, 2])
        while self.threads.waiting:
            self.threads.go()
        self.flushLoggedErrors()
        self.patch(agents, "count_of_agents", self.count)
        self.add("a3")
        self.totals()
        while self.threads.waiting:
            self.threads.go()
        self.assertEqual(self.totals(), [3, 3, 3])


def _broken(connection: Connection, test: Test) -> None:
    connection.exec_driver_sql("SELECT * FROM nowhere")
