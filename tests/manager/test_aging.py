"""Retention while the clock does not tell how much time has passed."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.errors import StoreError
from elkeid.manager.aging import CATCH_UP, REMARK_SECONDS, Aging
from elkeid.manager.retention import PAUSE_SECONDS
from elkeid.manager.store.aging import aged_until, set_aged_until
from elkeid.manager.store.engine import Database
from elkeid.manager.store.store import Store
from elkeid.manager.store.uploads import add_upload, upload_names

from .deployment import Deployment
from .stores import opened, store_at

DAY = 86400.0
YEAR = 365 * DAY
NOW = 1_700_000_000.0


class Machine:
    """A clock that can be set, and time that passes as it does."""

    def __init__(self) -> None:
        self.wrong, self.passed = 0.0, Clock()

    def wall(self) -> float:
        """What the clock says."""
        return NOW + self.wrong + self.passed.seconds()

    def aging(self, store: Store) -> Aging:
        """Of a process that starts now."""
        return Aging(store, self.wall, self.passed.seconds)


def result(coroutine: Any) -> Any:
    """Of what waits for nothing."""
    found: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(found.append)
    return found[0]


class AgingTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.store = store_at(Path(folder.name))
        self.successResultOf(Deferred.fromCoroutine(self.store.open()))
        self.addCleanup(lambda: result(self.store.close()))
        self.machine = Machine()
        self.aging = self.machine.aging(self.store)

    def now(self, aging: Aging | None = None) -> float:
        """By which retention counts, as seconds since the begin of the test."""
        return float(result((aging or self.aging).now()) - NOW)

    def test_right_clock(self) -> None:
        """As long as the clock goes as time does, it is believed; nothing is remarked."""
        for _ in range(200):
            self.assertEqual(self.now(), self.machine.passed.seconds())
            self.machine.passed.advance(PAUSE_SECONDS)
        self.assertEqual((self.aging.ahead, self.aging.remarks()), (0, []))

    def test_clock_jumps_ahead(self) -> None:
        """Things age twice as fast as time passes, no faster, until the clock is right again."""
        self.now()
        self.machine.wrong = 10 * YEAR
        for _ in range(6):
            self.machine.passed.advance(PAUSE_SECONDS)
            self.assertEqual(self.now(), 2 * self.machine.passed.seconds())
        (remark,) = self.aging.remarks()
        self.assertIn("the clock is 3650.0 days ahead of the time that was seen to pass", remark)
        self.machine.wrong = 0
        self.assertEqual(self.aging.remarks(), [])
        self.assertEqual(self.now(), self.machine.passed.seconds())
        self.machine.passed.advance(DAY)
        self.assertEqual(self.now(), self.machine.passed.seconds())

    def test_restarts_gain_nothing(self) -> None:
        """Whoever starts again goes on from what was kept, however often."""
        self.now()
        self.machine.wrong = YEAR
        for _ in range(100):
            self.machine.passed.advance(60)
            again = self.machine.aging(self.store)
            self.now(again)
            self.machine.passed.advance(60)
            self.now(again)
        self.assertLessEqual(self.now(), CATCH_UP * self.machine.passed.seconds())

    def test_two_managers_are_no_faster(self) -> None:
        """Each goes by what it has seen itself."""
        other = self.machine.aging(self.store)
        self.now()
        self.now(other)
        self.machine.wrong = YEAR
        for _ in range(50):
            self.machine.passed.advance(60)
            for each in (self.aging, other):
                self.assertLessEqual(self.now(each), CATCH_UP * self.machine.passed.seconds())

    def test_server_that_was_off(self) -> None:
        """A week later it has made up for a week."""
        self.now()
        self.machine.wrong = 7 * DAY
        started = self.machine.aging(self.store)
        self.assertEqual(self.now(started), 0)
        self.assertEqual(len(started.remarks()), 1)
        self.machine.passed.advance(7 * DAY)
        self.assertEqual(self.now(started), 14 * DAY)
        self.assertEqual(started.remarks(), [])

    def test_clock_that_was_behind(self) -> None:
        """A machine that starts in 1970 loses nothing of what was known, once it knows the time."""
        self.now()
        self.machine.wrong = -NOW
        started = self.machine.aging(self.store)
        self.assertEqual(self.now(started), -NOW)
        self.machine.wrong = 0
        self.assertEqual(self.now(started), 0)
        self.machine.passed.advance(60)
        self.assertEqual(self.now(started), 60)

    def test_short_stop_is_nothing(self) -> None:
        """What makes up for itself within a day is not remarked."""
        self.now()
        self.machine.wrong = REMARK_SECONDS
        self.now()
        self.assertEqual(self.aging.remarks(), [])

    def test_database_that_fails(self) -> None:
        """Without it nobody knows; when it is back, what passed meanwhile has passed."""
        self.now()
        result(self.store.close())
        self.machine.passed.advance(PAUSE_SECONDS)
        self.assertTrue(result(self.aging.now()).check(StoreError))
        self.successResultOf(Deferred.fromCoroutine(self.store.open()))
        self.machine.passed.advance(PAUSE_SECONDS)
        self.assertEqual(self.now(), 2 * PAUSE_SECONDS)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.floats(0, 3600),
                st.floats(-20 * YEAR, 20 * YEAR),
                st.integers(0, 2),
            ),
            max_size=30,
        )
    )
    def test_no_clock_makes_things_old(self, steps: list[tuple[float, float, int]]) -> None:
        """However clocks are set and processes start: age is at most twice what has passed."""
        with tempfile.TemporaryDirectory() as folder:
            store = store_at(Path(folder))
            result(store.open())
            machine = Machine()
            ages = [machine.aging(store) for _ in range(2)]
            result(ages[0].now())
            for seconds, wrong, which in steps:
                machine.passed.advance(seconds)
                machine.wrong = wrong
                if which == 2:
                    ages[1] = machine.aging(store)
                now = result(ages[min(which, 1)].now())
                self.assertLessEqual(now, NOW + CATCH_UP * machine.passed.seconds() + 1e-3)
                self.assertLessEqual(now, machine.wall())
            result(store.close())


def test_what_is_kept(any_url: str) -> None:
    """The first to ask sets it; it only goes forward, for all Managers."""
    with opened(any_url) as first, opened(any_url) as second:

        def write(database: Database, query: Any, value: float) -> Any:
            with database.writing() as connection:
                return query(connection, value)

        assert write(first, aged_until, 10.5) == 10.5
        assert write(second, aged_until, 99.0) == 10.5
        write(second, set_aged_until, 20.0)
        write(first, set_aged_until, 15.0)
        assert write(first, aged_until, 0.0) == 20.0


class ManagerTests(SynchronousTestCase):
    def test_jump_deletes_nothing(self) -> None:
        """A clock ahead by ten years costs no file, task or entry, and `/ready` tells of it."""
        deployment = Deployment(upload_seconds=86400, audit_seconds=86400).start()
        self.addCleanup(deployment.end)
        manager, network = deployment.manager, deployment.network
        now = int(network.wall())
        network.run(manager.store.write(add_upload, "a" * 32, "b" * 64, 3, now))
        entries = len(deployment.call("GET", "/api/v1/audit", token=deployment.login()).data)
        deployment.stop()
        wall = network.wall
        self.patch(network, "wall", lambda: wall() + 10 * YEAR)
        deployment.start()
        for _ in range(7):  # every rule is applied
            network.advance(PAUSE_SECONDS, step=PAUSE_SECONDS)
        manager = deployment.manager
        self.assertEqual(len(network.run(manager.store.read(upload_names))), 1)
        token = deployment.login()
        self.assertGreater(len(deployment.call("GET", "/api/v1/audit", token=token).data), entries)
        ready = deployment.call("GET", "/ready").json
        (remark,) = ready["remarks"]
        self.assertIn("the clock is 3650.0 days ahead", remark)
        self.assertIn(
            "elkeid_manager_clock_ahead_seconds 3.15",
            deployment.call("GET", "/metrics").text.decode(),
        )
