"""What becomes of a batch's records: classes, rates, order."""

from attrs import Factory, define, field
from twisted.internet.task import Clock

from elkeid.agentcenter.arrivals import Arrivals
from elkeid.agentcenter.counters import Counters
from elkeid.agentcenter.intake import DATA_TYPE_LIMIT, Intake
from elkeid.agentcenter.rates import ClassBudget
from elkeid.config import AgentCenterSettings
from elkeid.wire import item
from elkeid.wire.datatypes import RecordClass
from elkeid.wire.mqdata import decode, records
from elkeid.wire.protobuf import length_delimited
from elkeid.wire.rawdata import Header, encode_record, split

CONTROL, TELEMETRY, LOGS = RecordClass.CONTROL, RecordClass.TELEMETRY, RecordClass.LOGS


@define
class MemoryLog:
    kept: list[tuple[RecordClass, int, int]] = Factory(list)  # class, data type, time
    counts: dict[RecordClass, int] = Factory(dict)
    dropped: dict[tuple[RecordClass, str], int] = Factory(dict)

    def append(self, cls: RecordClass, count: int, suffix: bytes, region: bytes) -> None:
        found = [decode(record + suffix) for record in records(region)]
        assert len(found) == count > 0
        assert all(each.agent_id == "a1" and each.svr_time == 1_700_000_000 for each in found)
        self.kept += [(cls, each.data_type, each.agent_time) for each in found]

    def drop(self, cls: RecordClass, reason: str, count: int) -> None:
        self.dropped[cls, reason] = self.dropped.get((cls, reason), 0) + count


@define
class Sender:
    arrivals: Arrivals = field(factory=Arrivals)
    budget: ClassBudget | None = None
    dropped: int = 0
    header: Header | None = None
    peer_host: str = "10.0.0.1"
    tags: bytes = b""


class Bench:
    def __init__(self) -> None:
        self.log, self.clock, self.counters = MemoryLog(), Clock(), Counters()
        self.sender = Sender()
        self.intake = Intake(
            AgentCenterSettings(),
            self.log,
            self.clock.seconds,
            lambda: 1_700_000_000,
            self.counters,
        )
        self.time = 0

    def send(self, *data_types: int) -> None:
        body = item.encode({"k": "v"})
        raw = b""
        for data_type in data_types:
            self.time += 1
            raw += length_delimited(1, encode_record(data_type, self.time, body))
        packet = split(raw + length_delimited(2, b"a1"))
        self.intake.append(self.sender, packet.header, packet)

    def of(self, cls: RecordClass) -> list[tuple[int, int]]:
        return [(kind, at) for kept, kind, at in self.log.kept if kept is cls]


def test_records_go_to_their_classes_in_order() -> None:
    """Heartbeats and results are control, error logs are logs, the rest is telemetry."""
    bench = Bench()
    bench.send(59, 1000, 42, 1010, 5100, 59)
    assert bench.of(TELEMETRY) == [(59, 1), (42, 3), (59, 6)]
    assert bench.of(CONTROL) == [(1000, 2), (5100, 5)]
    assert bench.of(LOGS) == [(1010, 4)]
    assert bench.counters.records == 6
    assert bench.counters.data_types == {59: 2, 42: 1, 1000: 1, 1010: 1, 5100: 1}


def test_flood_of_logs_is_cut_and_counted() -> None:
    """200 at once, then 20 a second: an agent in an error loop repeats itself."""
    bench = Bench()
    bench.send(*[1010] * 250)
    assert len(bench.of(LOGS)) == 200
    assert bench.log.dropped == {(LOGS, "rate"): 50}
    assert bench.sender.dropped == 50
    assert bench.of(LOGS)[-1] == (1010, 200)  # the first ones are kept
    bench.clock.advance(1)
    bench.send(*[1011] * 30)
    assert len(bench.of(LOGS)) == 220
    assert bench.log.dropped == {(LOGS, "rate"): 60}


def test_flood_of_heartbeats_counts_as_logs() -> None:
    """Beyond ten seconds' worth, control records take the logs' budget and log."""
    bench = Bench()
    bench.send(*[1000] * 350)
    assert len(bench.of(CONTROL)) == 100
    assert len(bench.of(LOGS)) == 200
    assert bench.log.dropped == {(LOGS, "rate"): 50}


def test_task_results_are_never_dropped_for_rate() -> None:
    """Even in a flood every result is kept, in order."""
    bench = Bench()
    bench.send(*[1000, 5100] * 300)
    kept = [at for kind, at in bench.of(CONTROL) + bench.of(LOGS) if kind == 5100]
    assert kept == list(range(2, 601, 2))
    assert bench.log.dropped == {(LOGS, "rate"): 50}


def test_telemetry_has_no_rate_of_its_own() -> None:
    """A busy host's events are all kept."""
    bench = Bench()
    bench.send(*[59] * 2048)
    assert len(bench.of(TELEMETRY)) == 2048
    assert bench.log.dropped == {}


def test_made_up_data_types_do_not_fill_the_metrics() -> None:
    """Beyond the limit, data types are counted together."""
    bench = Bench()
    bench.send(*range(DATA_TYPE_LIMIT - 50, DATA_TYPE_LIMIT + 100), -5)
    assert len(bench.counters.data_types) == 50 + 1
    assert bench.counters.data_types[-1] == 101
