"""The estimate of what agents lost, against simulated agents that know what they lost."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.agentcenter.loss import BUFFER_RECORDS, NOISE_RECORDS, NOISE_SHARE, AgentLoss, rate

OWN = 3  # records an agent makes itself in an interval: its heartbeat, two plugins'


class Agent:
    """An agent with two plugins, as the estimate hears of it."""

    def __init__(self) -> None:
        self.loss = AgentLoss()
        self.now = 1000.0
        self.read = self.own = 0
        self.pid = 1
        self.plugins = {"driver": 10, "collector": 20}

    def interval(
        self,
        handed: int,
        *,
        dropped: int = 0,
        lost: int = 0,
        waiting: int = 0,
        late: float = 0.0,
        passed: float = 60.0,
    ) -> tuple[int, int]:
        """An interval and the heartbeats at its end; returns what the agent's one showed.

        Args:
            handed: records of plugins.
            dropped: of these, in the buffer.
            lost: of those sent, in flight.
            waiting: more of them are still in the buffer than an interval ago.
            late: seconds that the heartbeat takes longer than the one before.
            passed: since the last heartbeats.
        """
        sent = handed - dropped - waiting + OWN
        self.read += sent - lost
        self.own += OWN
        self.now += passed
        shown = self.loss.agent(
            {
                b"tx_tps": b"%.8f" % (sent / 60),
                b"pid": b"%d" % self.pid,
                b"start_time": b"1700000000",
            },
            self.now + late,
            self.read,
            self.own,
        )
        share = handed // len(self.plugins) if self.plugins else 0
        rest = handed
        for name, pid in self.plugins.items():
            rest -= share
            mine = share + (rest if name == list(self.plugins)[-1] else 0)
            self.loss.plugin(
                {b"name": name.encode(), b"pid": b"%d" % pid, b"tx_tps": b"%.8f" % (mine / 60)}
            )
        return shown


def test_no_loss() -> None:
    """Steady traffic shows none, and every interval but the first counts."""
    agent = Agent()
    for _ in range(10):
        assert agent.interval(6_000) == (0, 0)
    assert (agent.loss.intervals, agent.loss.skipped) == (9, 0)


def test_dropped_in_the_buffer() -> None:
    """What plugins handed over and the agent did not send is found, two heartbeats later."""
    agent = Agent()
    for _ in range(4):
        agent.interval(6_000)
    agent.interval(60_000, dropped=5_000)
    assert agent.interval(6_000) == (0, 0)
    assert agent.interval(6_000) == (5_000, 0)
    for _ in range(5):
        assert agent.interval(6_000) == (0, 0)
    assert (agent.loss.dropped, agent.loss.in_flight) == (5_000, 0)


def test_lost_in_flight() -> None:
    """What the agent sent and we did not read is found at the second heartbeat that shows it."""
    agent = Agent()
    for _ in range(3):
        agent.interval(6_000)
    assert agent.interval(6_000, lost=700) == (0, 0)
    assert agent.interval(6_000) == (0, 700)
    assert (agent.loss.dropped, agent.loss.in_flight) == (0, 700)


def test_waiting_records_are_not_lost() -> None:
    """A full buffer that is sent later is no loss, whichever way it shifts."""
    agent = Agent()
    agent.interval(6_000)
    agent.interval(6_000)
    for _ in range(5):
        agent.interval(6_000, waiting=BUFFER_RECORDS)
        agent.interval(6_000, waiting=-BUFFER_RECORDS)
    agent.interval(6_000)
    assert (agent.loss.dropped, agent.loss.in_flight) == (0, 0)


def test_restarts_and_absences_give_no_figure() -> None:
    """An interval of unknown length is skipped; the next one is a fresh start."""
    agent = Agent()
    agent.interval(6_000)
    agent.interval(6_000)
    agent.pid = 2  # a new process: its rate is of no known interval
    assert agent.interval(100_000, dropped=50_000, lost=20_000) == (0, 0)
    agent.interval(6_000)
    agent.interval(100_000, lost=40_000, passed=180.0)  # it was elsewhere
    agent.interval(6_000)
    agent.interval(6_000)
    assert (agent.loss.dropped, agent.loss.in_flight) == (0, 0)
    assert agent.loss.skipped == 2


def test_plugins_that_come_and_go_give_no_figure() -> None:
    """A plugin that ended has no heartbeat for its last records, one that began half a minute."""
    agent = Agent()
    for _ in range(3):
        agent.interval(6_000)
    del agent.plugins["driver"]
    agent.interval(6_000, dropped=3_000)
    agent.interval(6_000)
    agent.plugins["driver"] = 11
    agent.interval(6_000, dropped=3_000)
    agent.interval(6_000)
    agent.interval(6_000)
    assert agent.loss.dropped == 0


def test_rates() -> None:
    """What is no rate is None: it is the peer's text."""
    assert rate({b"tx_tps": b"12.50000000"}) == 12.5
    for text in (b"", b"x", b"nan", b"inf", b"-1", b"1e300", b"\xff"):
        assert rate({b"tx_tps": text}) is None
    assert rate({}) is None
    agent = AgentLoss()
    for number in range(3):
        assert agent.agent({b"tx_tps": b"nan"}, number * 60.0, 0, 0) == (0, 0)
        agent.plugin({b"name": b"x", b"tx_tps": b"nan"})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    drops=st.booleans(),
    losses=st.booleans(),
    waits=st.booleans(),
    rate_of_records=st.integers(0, 100_000),
)
def test_against_the_truth(
    seed: int, drops: bool, losses: bool, waits: bool, rate_of_records: int
) -> None:
    """It is wrong by what can wait in a buffer and by the noise at most, and invents nothing."""
    chance = random.Random(seed)
    agent = Agent()
    agent.interval(0)
    agent.interval(0)
    agent.interval(0)
    dropped = lost = buffered = handed_most = 0
    for _ in range(30):
        handed = chance.randint(0, rate_of_records)
        handed_most = max(handed_most, handed)
        drop = chance.randint(0, handed) if drops and chance.random() < 0.2 else 0
        level = chance.randint(0, min(BUFFER_RECORDS, handed - drop)) if waits else 0
        waiting, buffered = level - buffered, level
        lose = chance.randint(0, max(handed - drop - waiting, 0) // 2) if losses else 0
        late = chance.uniform(0, 2)
        agent.interval(handed, dropped=drop, lost=lose, waiting=waiting, late=late)
        dropped, lost = dropped + drop, lost + lose
    for _ in range(3):  # what was shown once counts only when it is shown again
        agent.interval(0, waiting=-buffered)
        buffered = 0
    noise = NOISE_RECORDS + NOISE_SHARE * handed_most
    held = BUFFER_RECORDS if waits else 0
    assert dropped - held - noise <= agent.loss.dropped <= dropped + held
    assert lost - noise <= agent.loss.in_flight <= lost


def test_a_plugin_heard_of_twice_gives_no_figure() -> None:
    """Which of the two is of this interval nobody knows; and names cost no memory."""
    loss = AgentLoss()
    rates = {b"tx_tps": b"10", b"pid": b"1"}
    for minute in range(6):
        loss.agent({b"tx_tps": b"10", b"pid": b"7"}, 60.0 * minute, 600 * minute, 0)
        for _ in range(1 + (minute == 3)):
            loss.plugin({b"name": b"driver", **rates})
    assert loss.dropped == 0
    assert loss.intervals == 5
