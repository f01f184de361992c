"""Heaviest agents first: whose records are dropped when the disk is short of room."""

from math import inf
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from elkeid.agentcenter.counters import Counters
from elkeid.agentcenter.intake import Intake
from elkeid.agentcenter.shedding import CALM_SECONDS, Shedder, level
from elkeid.config import AgentCenterSettings
from elkeid.eventlog.room import Room
from elkeid.wire.datatypes import RecordClass
from elkeid.wire.protobuf import length_delimited
from elkeid.wire.rawdata import encode_record, split
from tests.agentcenter.test_intake import Sender
from tests.eventlog.support import Server

CONTROL, TELEMETRY, LOGS = RecordClass
KB, MB = 1000, 1_000_000


@given(st.lists(st.floats(0, 1e9), max_size=50), st.floats(0, 1e9))
def test_level_shares_out_all_there_is(rates: list[float], room: float) -> None:
    """All is given out; nobody who wants less than the level is cut."""
    found = level(room, rates)
    if found == inf:
        assert sum(rates) <= room * 1.000001 + 1e-6
    else:
        assert abs(sum(min(rate, found) for rate in rates) - room) <= room * 1e-6 + 1e-6


def test_level_is_of_the_heaviest() -> None:
    """Two agents of ten bytes get theirs, the other two what is left, alike."""
    assert level(100, [10, 500, 10, 900]) == 40
    assert level(100, [50, 50]) == inf
    assert level(0, [1]) == 0
    assert level(0, []) == inf


class Agent:
    """Sends batches of one record."""

    def __init__(self, intake: Intake, name: str, host: str = "10.0.0.1") -> None:
        self.intake, self.name = intake, name.encode()
        self.sender = Sender(peer_host=host)

    def send(self, size: int, data_type: int = 59) -> None:
        raw = length_delimited(1, encode_record(data_type, 1, bytes(size)))
        packet = split(raw + length_delimited(2, self.name))
        self.intake.append(self.sender, packet.header, packet)

    @property
    def lost(self) -> int:
        return self.sender.dropped


class Bench:
    """A real log on a small volume, and the intake before it."""

    def __init__(self, folder: Path, volume: int) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.server = Server(
            folder,
            self.clock,
            min_free_bytes=MB,
            segment_bytes=64 << 20,
            telemetry_cap_bytes=1 << 30,
        )
        self.server.disk.volume = volume
        self.clock.advance(10)
        self.intake = Intake(
            AgentCenterSettings(), self.server.log, self.clock.seconds, self.wall, Counters()
        )
        self.shedder = self.intake.shedder
        self.server.log.looked = self.shedder.look
        self.light = [Agent(self.intake, f"light-{n}") for n in range(20)]
        self.heavy = [Agent(self.intake, f"heavy-{n}") for n in range(2)]

    def wall(self) -> int:
        return int(self.clock.seconds())

    def run(self, seconds: int, trickle: int = 0) -> None:
        """Light agents send 1 kB/s each, heavy ones 200; ``trickle`` bytes/s come free."""
        for _ in range(seconds * 5):
            for agent in self.heavy:
                agent.send(20 * KB)
                agent.send(20 * KB)
            if self.wall() % 5 == 0:  # uneven, as real ones are
                for agent in self.light:
                    agent.send(KB)
            assert self.server.disk.volume is not None
            self.server.disk.volume += trickle // 5
            self.clock.advance(0.2)

    @property
    def light_lost(self) -> int:
        return sum(agent.lost for agent in self.light)

    def dropped(self, cls: RecordClass = TELEMETRY) -> dict[str, int]:
        found: dict[str, int] = self.server.ledger(cls)["dropped"]
        return found


def test_light_agents_lose_nothing_while_some_room_comes(tmp_path: Path) -> None:
    """With room for an eighth of what comes, agents that send little lose no record of it."""
    bench = Bench(tmp_path, 8 * MB)
    bench.run(120, trickle=60 * KB)
    assert bench.light_lost == 0
    lost = sum(agent.lost for agent in bench.heavy)
    assert lost > 500
    assert bench.dropped() == {"heavy": lost}  # never so short that the log refuses all
    assert all(agent.lost > lost // 3 for agent in bench.heavy)  # alike
    assert bench.server.log.stats().free_bytes < 4 * MB  # what came free was given out
    assert bench.shedder.agents == 2
    assert 5 * KB < bench.shedder.level < 60 * KB
    assert "records of agents that send more than" in bench.shedder.problems()[0]
    bench.server.close()


def test_without_any_room_all_are_alike(tmp_path: Path) -> None:
    """When nothing comes free everybody is cut in the end; what is stored stays above the floor."""
    bench = Bench(tmp_path, 8 * MB)
    bench.run(60)
    assert bench.light_lost == 0
    bench.run(240)
    assert bench.light_lost > 0
    assert set(bench.dropped()) == {"heavy"}
    assert bench.server.log.stats().free_bytes >= MB
    bench.server.close()


def test_light_agents_come_back_first(tmp_path: Path) -> None:
    """While the log refuses everybody rates are measured; what room comes then is for the light."""
    bench = Bench(tmp_path, MB // 2)
    bench.run(30)
    assert set(bench.dropped()) == {"min_free"}
    assert bench.shedder.active
    assert bench.shedder.problems() == []  # the log says so itself
    before = bench.server.ledger()["appended"]
    bench.server.disk.volume += 1_200 * KB
    bench.clock.advance(1)
    bench.run(60, trickle=30 * KB)
    assert bench.light_lost == 0
    assert bench.server.ledger()["appended"] > before + 1000
    assert bench.dropped()["heavy"] > 100
    bench.server.close()


def test_with_room_again_nothing_is_dropped_or_measured(tmp_path: Path) -> None:
    """Room for all ends it, at once for the agents and after a while of calm altogether."""
    bench = Bench(tmp_path, 4 * MB)
    bench.run(60, trickle=30 * KB)
    assert bench.shedder.level < inf
    bench.server.disk.volume = 1 << 40
    bench.clock.advance(2)
    bench.clock.advance(10)
    before = bench.dropped()
    bench.run(int(CALM_SECONDS) - 10)
    assert bench.shedder.active
    bench.run(20)
    assert bench.dropped() == before
    assert not bench.shedder.active
    assert bench.shedder.level == inf
    assert bench.shedder.problems() == []
    bench.server.close()


def test_control_records_are_not_shed(tmp_path: Path) -> None:
    """A heavy agent's heartbeats and results are stored, its logs are shed like telemetry."""
    bench = Bench(tmp_path, 4 * MB)
    bench.run(60)
    agent = bench.heavy[0]
    agent.send(KB, 1000)
    agent.send(KB, 1010)
    bench.clock.advance(0)
    assert bench.server.ledger(CONTROL)["appended"] == 1
    assert bench.dropped(CONTROL) == {}
    assert bench.dropped(LOGS) == {"heavy": 1}
    bench.server.close()


def test_segments_go_before_records(tmp_path: Path) -> None:
    """As long as there is a segment to delete, nothing new of anybody is dropped."""
    bench = Bench(tmp_path, 8 * MB)
    bench.server.log._logs[TELEMETRY]._segment_bytes = MB
    bench.run(60)
    assert bench.dropped() == {}
    assert bench.server.ledger()["appended"] > 1000
    assert not bench.shedder.active
    bench.server.close()


def shedder(rate: float, *rates: tuple[str, int]) -> tuple[Shedder, Clock]:
    """One that knows of agents and what they send."""
    clock = Clock()
    made = Shedder(clock.seconds)
    clock.advance(1)
    made.look(Room(0, 0))
    for name, size in rates:
        made.admits((name, b"x"), size)
    clock.advance(1)
    made.look(Room(rate, 0))
    return made, clock


def test_an_id_from_elsewhere_has_a_share_of_its_own() -> None:
    """Who goes by another agent's id does not spend what that one may store."""
    made, _ = shedder(1000, ("a", 5000), ("b", 100))
    assert made.admits(("a", b"x"), 900)
    assert not made.admits(("a", b"x"), 900)
    assert made.admits(("b", b"x"), 100)


def test_one_huge_batch_does_not_spend_the_room_of_all() -> None:
    """A batch that would take what is there for everybody is dropped, whoever sends it."""
    made, _ = shedder(1000, ("a", 5000), ("b", 100))
    assert not made.admits(("b", b"x"), 1 << 20)
    assert made.admits(("b", b"x"), 100)


def test_an_agent_that_never_came_before_is_let_in() -> None:
    """It is light until the next look says otherwise."""
    made, clock = shedder(1000, ("a", 5000), ("b", 100))
    assert made.admits(("new", b"x"), 500)
    for _ in range(20):
        made.admits(("new", b"x"), 500)
    clock.advance(1)
    made.look(Room(1000, 0))
    assert made.agents == 1
    assert made.level < 500
    assert made.admits(("new", b"x"), 500)  # then it has its share, like the other
    assert not made.admits(("new", b"x"), 500)


def test_looks_in_quick_succession_count_once() -> None:
    """Deletions make the log look again at once; rates are not taken from moments."""
    made, clock = shedder(1000, ("a", 5000))
    found = made.level
    clock.advance(0.01)
    made.look(Room(1, 0))
    assert made.level == found


def test_silent_agents_are_forgotten() -> None:
    """Memory is for those who send: others' accounts go as their rates fade."""
    made, clock = shedder(1000, ("a", 5000), ("b", 100))
    for _ in range(200):
        clock.advance(1)
        made.look(Room(0, 0))
    assert not made._accounts
