"""Work that was put off: in order, as much in a turn as others can stand."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.slices import TURN_SECONDS, Slices
from tests.agentcenter.host import Host, batch, make_gateway


class SlicesTests(SynchronousTestCase):
    """`Slices`."""

    def setUp(self) -> None:
        self.reactor = Clock()
        self.now = 0.0
        self.slices = Slices(self.reactor, lambda: self.now)
        self.done: list[str] = []
        self.turns: list[int] = []

    def work(self, name: str, seconds: float, again: int = 0) -> None:
        """Put off some work, which puts off more of itself."""

        def do() -> None:
            self.now += seconds
            self.done.append(name)
            if again:
                self.work(name, seconds, again - 1)

        self.slices.add(do)

    def turn(self) -> list[str]:
        """What is done in one turn of a reactor."""
        before = len(self.done)
        (timer,) = self.reactor.getDelayedCalls()
        timer.cancel()
        self.slices._serve()
        return self.done[before:]

    def test_together_they_take_one_turns_time(self) -> None:
        """However many wait, a turn ends when its time is spent; the rest goes first in the next.

        Who has more to do waits behind the others.
        """
        for name in "abcd":
            self.work(name, TURN_SECONDS * 0.6, again=1)
        self.assertEqual([self.turn() for _ in range(4)], [["a", "b"], ["c", "d"]] * 2)
        self.assertEqual(len(self.slices), 0)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_cheap_work_once_a_turn(self) -> None:
        """What puts off more of itself does not fill a turn alone."""
        self.work("a", 0, again=3)
        self.work("b", 0)
        self.assertEqual(self.turn(), ["a", "b"])
        self.assertEqual(self.turn(), ["a"])

    def test_given_up(self) -> None:
        """Work that is not wanted any more is not done, and keeps no timer."""

        def fail() -> None:
            raise AssertionError

        self.slices.add(fail)
        self.slices.discard(fail)
        self.slices.discard(fail)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_failures(self) -> None:
        """One that fails costs no other, and is told."""

        def fail() -> None:
            raise RuntimeError("bug")

        self.slices.add(fail)
        self.work("a", 0)
        self.assertEqual(self.turn(), ["a"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


def test_many_connections_with_much_work() -> None:
    """Each brings more than its slice; in one turn they take a turn's time together, not each."""
    gateway, log, _ = make_gateway()
    now = 0.0

    def costly() -> float:
        nonlocal now
        now += TURN_SECONDS / 4  # every look at the clock, so every message
        return now

    gateway.slices._monotonic = costly
    gateway.monotonic = costly
    hosts = [Host(gateway, f"10.0.0.{number}") for number in range(20)]
    for number, host in enumerate(hosts):
        stream = host.open()
        for count in range(6):
            host.client.send_message(stream, batch(f"a{number}", 60 + count), False)
        host.link.dataReceived(host.client.data_to_send())
    log.commit()
    served = len(log.kept)
    assert len(gateway.slices) == 20
    assert served < 6 * 20
    gateway.slices._serve()
    log.commit()
    assert 0 < len(log.kept) - served < 20
    gateway.clock.advance(0)
    log.commit()
    assert [len(log.of(f"a{number}")) for number in range(20)] == [6] * 20
