"""Order, deadlines and failures of starting and stopping, on a fake clock."""

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.errors import KeysError
from elkeid.lifecycle import (
    LET_GO_SECONDS,
    RESERVED_SECONDS,
    STOP_SECONDS,
    OrderedRoles,
    Role,
    sentence,
    stop_each,
)


class Scripted:
    """A role whose start and stop end when the test says so; at once by default."""

    def __init__(self, name: str, story: list[str]) -> None:
        self.name, self._story = name, story
        self.start_ends: Deferred[None] | None = None
        self.stop_ends: Deferred[None] | None = None

    async def start(self) -> None:
        """See `Role`."""
        self._story.append(f"{self.name} starts")
        if self.start_ends is not None:
            await self.start_ends
        self._story.append(f"{self.name} started")

    async def stop(self) -> None:
        """See `Role`."""
        self._story.append(f"{self.name} stops")
        if self.stop_ends is not None:
            await self.stop_ends
        self._story.append(f"{self.name} stopped")


class OrderedRolesTests(SynchronousTestCase):
    """What an operator and the roles can rely on."""

    def setUp(self) -> None:
        """Three roles that note what happens to them."""
        self.clock = Clock()
        self.story: list[str] = []
        self.errors: list[BaseException] = []
        self.a, self.b, self.c = (Scripted(name, self.story) for name in "abc")
        self.service = self.serve(self.a, self.b, self.c)

    def serve(self, *roles: Role) -> OrderedRoles:
        """A service of these roles."""

        def maker(role: Role) -> Callable[[], Role]:
            return lambda: role

        return OrderedRoles(
            self.clock,
            [maker(role) for role in roles],
            ready=lambda: self.story.append("ready"),
            fatal=self.errors.append,
        )

    def assert_quiet(self) -> None:
        """No timer is left behind."""
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_start_waits_for_each(self) -> None:
        """A role starts when those before it serve; ready comes last and once."""
        self.b.start_ends = Deferred()
        self.service.startService()
        self.assertEqual(self.story, ["a starts", "a started", "b starts"])
        self.b.start_ends.callback(None)
        self.assertEqual(self.story[3:], ["b started", "c starts", "c started", "ready"])
        self.assertEqual(self.errors, [])
        self.assert_quiet()

    def test_a_role_is_made_after_those_before_it_started(self) -> None:
        """A role can be made of what an earlier role found out at its start."""
        self.a.start_ends = Deferred()
        made: list[str] = []

        def make_b() -> Role:
            made.append("b")
            return self.b

        service = OrderedRoles(self.clock, [lambda: self.a, make_b], lambda: None, self.fail)
        service.startService()
        self.assertEqual(made, [])
        self.a.start_ends.callback(None)
        self.assertEqual(made, ["b"])

    def test_stop_is_the_reverse_and_waits(self) -> None:
        """What started last stops first, and the next only after it."""
        self.service.startService()
        self.b.stop_ends = Deferred()
        del self.story[:]
        stopping = self.service.stopService()
        self.assertEqual(self.story, ["c stops", "c stopped", "b stops"])
        self.assertNoResult(stopping)
        self.b.stop_ends.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.story[3:], ["b stopped", "a stops", "a stopped"])
        self.assert_quiet()

    def test_failing_stop_skips_no_other(self) -> None:
        """A role that fails to stop is logged; the others still stop."""
        self.service.startService()
        self.c.stop_ends = Deferred()
        stopping = self.service.stopService()
        self.c.stop_ends.errback(ZeroDivisionError("in stop"))
        self.successResultOf(stopping)
        self.assertIn("a stopped", self.story)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_hanging_stop_has_a_deadline(self) -> None:
        """A role that never stops costs the others nothing but the time reserved for it."""
        self.service.startService()
        cancelled: list[Deferred[None]] = []
        self.c.stop_ends = Deferred(cancelled.append)
        stopping = self.service.stopService()
        self.clock.advance(STOP_SECONDS - 2 * RESERVED_SECONDS - 0.01)
        self.assertNoResult(stopping)
        self.clock.advance(0.02)
        self.successResultOf(stopping)
        self.assertEqual(self.story[-2:], ["a stops", "a stopped"])
        self.assertEqual(cancelled, [self.c.stop_ends])
        self.assert_quiet()

    def test_all_hanging_end_in_time(self) -> None:
        """However many roles hang, even in spite of being cancelled, stopping ends in time."""

        class Stubborn(Scripted):
            async def stop(self) -> None:
                while True:
                    try:
                        await Deferred()
                    except CancelledError:
                        self._story.append(f"{self.name} would not")

        service = self.serve(*(Stubborn(name, self.story) for name in "xyz"))
        service.startService()
        stopping = service.stopService()
        for _ in range(int(STOP_SECONDS * 10)):
            self.clock.advance(0.1)
        self.clock.advance(0.1)
        self.successResultOf(stopping)
        self.assertEqual(self.story[-3:], ["z would not", "y would not", "x would not"])
        self.assert_quiet()

    def test_known_failing_start(self) -> None:
        """A start that fails stops what had started, itself included, then tells why."""
        self.b.start_ends = Deferred()
        self.service.startService()
        error = KeysError("server.key is missing; run the import")
        self.b.start_ends.errback(error)
        self.assertEqual(self.story[3:], ["b stops", "b stopped", "a stops", "a stopped"])
        self.assertEqual(self.errors, [error])
        self.assertEqual(self.flushLoggedErrors(), [])  # a sentence, no traceback
        self.successResultOf(self.service.stopService())
        self.assertEqual(len(self.story), 7)
        self.assert_quiet()

    def test_failing_start_at_once(self) -> None:
        """A start that fails in the same reactor turn is told in the same way."""
        error = KeysError("no keys")

        class Failing(Scripted):
            async def start(self) -> None:
                raise error

        service = self.serve(self.a, Failing("f", self.story))
        service.startService()
        self.assertEqual(self.errors, [error])
        self.assertEqual(self.story[2:], ["f stops", "f stopped", "a stops", "a stopped"])

    def test_role_that_cannot_be_made(self) -> None:
        """A fault in making a role ends the start too, with its traceback in the log."""

        def broken() -> Role:
            raise ZeroDivisionError

        service = OrderedRoles(
            self.clock, [lambda: self.a, broken], lambda: None, self.errors.append
        )
        service.startService()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual([type(error) for error in self.errors], [ZeroDivisionError])
        self.assertIn("a stopped", self.story)

    def test_fatal_comes_after_the_stops(self) -> None:
        """The process is given up only after those that had started were stopped."""
        self.b.start_ends, self.a.stop_ends = Deferred(), Deferred()
        self.service.startService()
        self.b.start_ends.errback(KeysError("no"))
        self.assertEqual(self.errors, [])
        self.a.stop_ends.callback(None)
        self.assertEqual(len(self.errors), 1)

    def test_signal_during_start(self) -> None:
        """Told to stop while starting, it gives up the start and stops what there is."""
        self.b.start_ends = Deferred()
        self.service.startService()
        self.successResultOf(self.service.stopService())
        self.assertEqual(
            self.story[2:], ["b starts", "b stops", "b stopped", "a stops", "a stopped"]
        )
        self.assertEqual(self.errors, [])
        self.assert_quiet()

    def test_signal_during_a_start_that_holds_on(self) -> None:
        """A role is not stopped beside its own start, unless that would last too long."""
        for patience, lets_go in [(0.5, True), (LET_GO_SECONDS + 0.1, False)]:
            held: Deferred[None] = Deferred()
            story: list[str] = []

            class Holding(Scripted):
                async def start(self, held: Deferred[None] = held) -> None:
                    try:
                        await Deferred()
                    except CancelledError:
                        await held  # closes what it had opened

            service = self.serve(Holding("h", story))
            service.startService()
            stopping = service.stopService()
            self.assertEqual(story, [])
            self.clock.advance(patience)
            if lets_go:
                self.assertEqual(story, [])
                held.callback(None)
            self.successResultOf(stopping)
            self.assertEqual(story, ["h stops", "h stopped"])
            self.assert_quiet()

    def test_signal_during_the_stops_of_a_failed_start(self) -> None:
        """Two reasons to stop make one stop, and both wait for its end."""
        self.b.start_ends, self.a.stop_ends = Deferred(), Deferred()
        self.service.startService()
        self.b.start_ends.errback(KeysError("no"))
        stopping = self.service.stopService()
        self.assertNoResult(stopping)
        self.a.stop_ends.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.story.count("a stops"), 1)
        self.assertEqual(len(self.errors), 1)

    def test_stop_twice(self) -> None:
        """Stopping again waits for the same end and stops nothing twice."""
        self.service.startService()
        self.successResultOf(self.service.stopService())
        self.successResultOf(self.service.stopService())
        self.assertEqual(self.story.count("a stops"), 1)


class SentenceTests(SynchronousTestCase):
    """Which errors are told as a sentence."""

    def test_port_in_use(self) -> None:
        """A taken port is named with what to do about it."""
        taken = OSError(98, "Address already in use")
        told = sentence(CannotListenError("127.0.0.1", 6751, taken))
        self.assertEqual(
            told,
            "cannot listen on 127.0.0.1:6751: Address already in use; stop the process that "
            "holds the port, or choose another address or port in the settings",
        )

    def test_bug(self) -> None:
        """A bug has no sentence: its traceback is what helps."""
        self.assertIsNone(sentence(ZeroDivisionError()))


class StopEachTests(SynchronousTestCase):
    """`stop_each`."""

    def setUp(self) -> None:
        """Note which steps were taken."""
        self.story: list[str] = []

    def works(self) -> None:
        """Do its part."""
        self.story.append("works")

    async def fails(self) -> None:
        """Find a full disk."""
        self.story.append("fails")
        raise OSError("no space")

    def test_a_step_that_fails_skips_no_other(self) -> None:
        """Each part is stopped, whatever the ones before it met; the failure is logged."""
        stopped = Deferred.fromCoroutine(
            stop_each(OrderedRoles.log, self.fails, self.works, self.fails, self.works)
        )
        self.successResultOf(stopped)
        self.assertEqual(self.story, ["fails", "works", "fails", "works"])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 2)

    def test_time_is_up(self) -> None:
        """A stop that is cancelled begins no further step."""
        hangs: Deferred[None] = Deferred()
        stopped = Deferred.fromCoroutine(stop_each(OrderedRoles.log, lambda: hangs, self.works))
        stopped.cancel()
        self.failureResultOf(stopped, CancelledError)
        self.assertEqual(self.story, [])
