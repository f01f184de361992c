"""Turns of handshakes: bounded at once, bounded in rate, and fair between addresses."""

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from elkeid.agentcenter.handshakes import (
    SLOW_LIMIT,
    SLOW_SECONDS,
    TURN_STARTS,
    UNDER_WAY,
    Handshakes,
)


@define(eq=False)
class Guest:
    host: str
    turns: Handshakes
    started: bool = False
    given_up: bool = False
    fails: bool = field(default=False)

    def start(self) -> None:
        self.started = True
        if self.fails:
            self.turns.leave(self)

    def give_up(self) -> None:
        self.given_up = True
        self.turns.leave(self)


def enter(turns: Handshakes, count: int, host: str = "10.0.0.1") -> list[Guest]:
    guests = [Guest(host, turns) for _ in range(count)]
    for guest in guests:
        turns.enter(guest)
    return guests


def test_no_more_than_so_many_at_once() -> None:
    """The rest waits; each that ends lets the next begin, in order."""
    clock = Clock()
    turns = Handshakes(clock, 1e6)
    guests = enter(turns, UNDER_WAY + 2)
    assert [guest.started for guest in guests] == [True] * UNDER_WAY + [False] * 2
    assert (turns.under_way, turns.waiting) == (UNDER_WAY, 2)
    clock.advance(0.001)
    turns.leave(guests[0])
    assert [guest.started for guest in guests[-2:]] == [True, False]
    turns.leave(guests[1])
    assert guests[-1].started
    turns.stop()
    assert not clock.getDelayedCalls()


def test_many_begin_in_turns() -> None:
    """When all may begin at once, other work of the reactor comes in between."""
    clock = Clock()
    turns = Handshakes(clock, 1e6)
    slow = enter(turns, UNDER_WAY)
    others = enter(turns, UNDER_WAY, "10.0.0.2")
    clock.advance(SLOW_SECONDS)
    assert sum(guest.started for guest in others) == TURN_STARTS
    clock.pump([0.001] * 4)
    assert all(guest.started for guest in others)
    assert turns.slow == len(slow)


def test_rate() -> None:
    """After a first burst turns are given at the rate, also when every handshake ends at once."""
    clock = Clock()
    turns = Handshakes(clock, 10)
    guests = [Guest("10.0.0.1", turns, fails=True) for _ in range(UNDER_WAY + 20)]
    for guest in guests:
        turns.enter(guest)
    assert sum(guest.started for guest in guests) == UNDER_WAY
    clock.pump([0.1] * 10)
    assert UNDER_WAY + 9 <= sum(guest.started for guest in guests) <= UNDER_WAY + 10
    clock.pump([0.1] * 12)
    assert all(guest.started for guest in guests)
    assert (turns.under_way, turns.waiting) == (0, 0)


def test_addresses_with_few_under_way_come_first() -> None:
    """One host with hundreds of connections does not keep out hosts with one."""
    clock = Clock()
    turns = Handshakes(clock, 1e6)
    greedy = enter(turns, 500, "10.6.6.6")
    honest = [enter(turns, 1, f"10.0.0.{n}")[0] for n in range(10)]
    clock.advance(0.001)
    for guest in greedy[:10]:
        turns.leave(guest)
    assert all(guest.started for guest in honest)
    assert sum(guest.started for guest in greedy) == UNDER_WAY


def test_slow_handshakes_let_others_go_on() -> None:
    """They wait for their peers and cost nothing meanwhile; without others nothing changes."""
    clock = Clock()
    turns = Handshakes(clock, 1e6)
    slow = enter(turns, UNDER_WAY, "10.6.6.6")
    clock.advance(SLOW_SECONDS - 0.01)
    late = enter(turns, 1)[0]
    assert not late.started
    clock.advance(0.011)
    assert late.started
    assert (turns.under_way, turns.slow) == (1, UNDER_WAY)
    assert not any(guest.given_up for guest in slow)
    turns.leave(slow[0])
    assert turns.slow == UNDER_WAY - 1


def test_stalled_handshakes_make_room_when_there_are_too_many() -> None:
    """The oldest is given up, and only when others wait for a turn."""
    clock = Clock()
    turns = Handshakes(clock, 1e6)
    stalled: list[Guest] = []
    while len(stalled) < SLOW_LIMIT + UNDER_WAY:
        stalled += enter(turns, UNDER_WAY, "10.6.6.6")
        clock.advance(SLOW_SECONDS)
        clock.pump([0.001] * 4)
    clock.advance(100)
    assert (turns.slow, turns.under_way) == (SLOW_LIMIT, UNDER_WAY)
    assert not any(guest.given_up for guest in stalled)
    late = enter(turns, 1)[0]
    clock.advance(0.01)
    assert late.started
    assert stalled[0].given_up
    assert turns.slow <= SLOW_LIMIT
    turns.stop()
    assert clock.getDelayedCalls() == []


def test_guest_that_leaves_while_it_waits() -> None:
    """Its turn goes to the next."""
    clock = Clock()
    turns = Handshakes(clock, 1e6)
    first = enter(turns, UNDER_WAY)
    clock.advance(0.001)
    gone = enter(turns, 1, "10.0.0.2")[0]
    stays = enter(turns, 1, "10.0.0.3")[0]
    turns.leave(gone)
    turns.leave(first[0])
    assert (gone.started, stays.started, turns.waiting) == (False, True, 0)
    turns.stop()


class Turns(RuleBasedStateMachine):
    """Any order of comings, goings and time: counts hold, and nobody waits without a reason."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.turns = Handshakes(self.clock, 100)
        self.guests: list[Guest] = []

    @rule(host=st.sampled_from("abc"), count=st.integers(1, 50), fails=st.booleans())
    def come(self, host: str, count: int, fails: bool) -> None:
        for _ in range(count):
            guest = Guest(host, self.turns, fails=fails)
            self.turns.enter(guest)
            self.guests.append(guest)

    @precondition(lambda self: self.guests)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        guest = self.guests.pop(data.draw(st.integers(0, len(self.guests) - 1)))
        self.turns.leave(guest)

    @rule(seconds=st.floats(0.001, 10))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def counts(self) -> None:
        waiting = [guest for guest in self.guests if not guest.started]
        assert self.turns.waiting == len(waiting)
        assert self.turns.under_way <= UNDER_WAY
        assert not waiting or self.clock.getDelayedCalls()

    def teardown(self) -> None:
        for _ in range(2_000):
            if not self.turns.waiting:
                break
            self.clock.advance(0.1)
        assert not self.turns.waiting


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
