"""What one reactor turn reads over all connections, and who is first in the next."""

from twisted.internet.task import Clock

from elkeid.agentcenter.sockets import TURN_BYTES, TURN_SECONDS, ReadTurn


class Socket:
    """A connection that always has more to read."""

    def __init__(self, turn: ReadTurn, name: str, order: list[str], size: int, cost: float) -> None:
        self.turn, self.name, self.order = turn, name, order
        self.size, self.cost = size, cost
        self.deferred = False

    def read_on(self) -> None:
        if self.turn.bytes_left <= 0 or self.turn.seconds_left <= 0:
            self.turn.wait(self)
            return
        self.turn.bytes_left -= self.size
        self.turn.seconds_left -= self.cost
        self.order.append(self.name)


def test_bytes_end_a_turn_and_everybody_gets_one() -> None:
    """Who found nothing left reads first in the next turn, before those who read already."""
    clock, order = Clock(), list[str]()
    turn = ReadTurn(clock, clock.seconds)
    sockets = [Socket(turn, name, order, TURN_BYTES // 2, 0.0) for name in "abc"]
    for _ in range(2):  # two rounds of the reactor
        for each in sockets:
            each.read_on()
        clock.advance(0)
    assert order == ["a", "b", "c", "a", "b", "c"]
    assert turn.cut == 2


def test_time_ends_a_turn() -> None:
    """Small reads that hold much work count by what they took."""
    clock, order = Clock(), list[str]()
    turn = ReadTurn(clock, clock.seconds)
    for name in "abc":
        Socket(turn, name, order, 10, TURN_SECONDS * 0.6).read_on()
    assert order == ["a", "b"]
    clock.advance(0)
    assert order == ["a", "b", "c"]
