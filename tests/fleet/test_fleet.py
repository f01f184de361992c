"""Whole fleets in memory: their ends, their counts, what they show and what can be compared."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.python.failure import Failure

from elkeid.config import EventLogSettings
from elkeid.eventlog import EventLog
from elkeid.fleet.compare import Stored, compare
from elkeid.fleet.events import load_events
from elkeid.fleet.fleet import Fleet, NoGateway, Plan
from elkeid.fleet.link import Address
from elkeid.fleet.progress import Progress, summary_text
from elkeid.fleet.report import (
    AgentReport,
    ReportError,
    StreamReport,
    Summary,
    read_report,
    write_report,
)
from elkeid.fleet.resolve import ANSWER_BYTES, HttpLookup, LookupFailed, parse_answer
from elkeid.fleet.stored import stored_records
from elkeid.fleet.wheel import Ticked, TimerWheel
from elkeid.wire import mqdata, rawdata
from elkeid.wire.compression import decompressor
from elkeid.wire.datatypes import TASK_RESULTS, RecordClass
from tests.fleet.gateway import H2Gateway, Network

CONTROL, TELEMETRY, LOGS = RecordClass
ONE = Address("127.0.0.1", 1)
WALL = 1_700_000_000.0


class Scene:
    """A fleet on a network in memory."""

    def __init__(self, **chosen: Any) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.network.listening[str(ONE)] = H2Gateway
        self.listed: Deferred[list[Address]] = succeed([])
        plan = Plan(**{"private": (ONE,), "seed": 1, "spread": 0.1} | chosen)
        self.fleet = Fleet(
            plan,
            load_events(None),
            clock=self.clock,
            dial=self.network.dial,
            lookup=lambda _: self.listed,
            wall=lambda: WALL + self.clock.seconds(),
            cpu=lambda: 1.0,
        )

    def run(self) -> Deferred[None]:
        """Start the run."""
        return Deferred.fromCoroutine(self.fleet.run())

    def outcome(self) -> tuple[Summary, list[AgentReport]]:
        """What came of it."""
        reports = self.fleet.reports()
        return self.fleet.summary(reports), reports

    def stored(self) -> list[Stored]:
        """What the gateways got, as a log would hold it."""
        return [
            Stored(
                record.agent_id,
                int(record.fields["fleet_conn"]),
                record.record_class,
                int(record.fields["fleet_seq"]),
            )
            for gateway in self.network.connections
            for record in gateway.records
        ]


def test_a_run_of_a_fixed_time() -> None:
    """All agents connect, send at their rate, end together, and everything is confirmed."""
    scene = Scene(agents=20, rate=10, duration=5)
    done = scene.run()
    scene.network.advance(4.9)
    assert not done.called
    assert scene.fleet.totals.connected == 20
    scene.network.advance(0.3)
    assert done.called
    summary, reports = scene.outcome()
    assert summary.failed_agents == []
    assert summary.sent == summary.confirmed
    assert summary.records == pytest.approx(20 * 50 + 20, abs=40)
    assert summary.records == len(scene.stored())
    assert len({report.agent_id for report in reports}) == 20
    assert (summary.streams, summary.unconfirmed_streams, summary.exits) == (20, 0, 0)
    assert compare(reports, scene.stored()).good
    assert scene.clock.getDelayedCalls() == []


def test_no_result_without_a_task() -> None:
    """Agents that nobody gave a task replay all events there are, and bring no result."""
    scene = Scene(agents=2, rate=100, duration=3)
    scene.run()
    scene.network.advance(3.2)
    kinds = {record.data_type for each in scene.network.connections for record in each.records}
    assert {event.data_type for event in load_events(None).templates} < kinds
    assert not kinds & TASK_RESULTS


def test_a_run_of_a_fixed_total() -> None:
    """A run ends as soon as so many events are sent, to the record."""
    scene = Scene(agents=7, rate=30, total=1000)
    done = scene.run()
    scene.network.advance(8)
    assert done.called
    summary, _ = scene.outcome()
    assert summary.events_sent == 1000
    assert summary.records == 1007
    assert len(scene.stored()) == 1007


def test_agents_start_over_the_spread() -> None:
    """The starts are spread evenly, so that a thousand handshakes do not fall together."""
    scene = Scene(agents=10, rate=0, spread=10.0)
    scene.run()
    scene.network.advance(4.95)
    assert scene.fleet.totals.connected == 5
    scene.fleet.stop()
    scene.network.advance(0.1)
    summary, _ = scene.outcome()
    assert len(summary.failed_agents) == 5  # they never had a stream


def test_all_agents_exited() -> None:
    """When the last agent has exited the run is over, and says so."""
    scene = Scene(agents=3, rate=1)
    scene.network.listening.clear()
    done = scene.run()
    scene.network.advance(31, 0.05)
    assert done.called
    summary, reports = scene.outcome()
    assert (summary.exits, summary.failed_rounds, len(summary.failed_agents)) == (3, 21, 3)
    text = summary_text(summary, 1)
    assert "FAILED: 3 agents" in text
    assert "21 times: dial 127.0.0.1:1: refused" in text
    assert not any(report.streams for report in reports)


def test_a_silent_server_ends_the_run_all_the_same() -> None:
    """Streams without a status 30 s after the half-close are unconfirmed, and agents failed."""
    scene = Scene(agents=3, rate=1, duration=1)
    done = scene.run()
    scene.network.advance(0.5)
    scene.network.connections[1].answer_half_close = False
    scene.network.advance(1)
    assert not done.called
    scene.network.advance(30, 0.05)
    assert done.called
    summary, reports = scene.outcome()
    assert summary.failed_agents == [reports[1].agent_id]
    assert summary.unconfirmed_streams == 1
    assert sum(summary.confirmed.values()) < summary.records


def test_a_killed_server() -> None:
    """After the death and return of a server, what it had got is a prefix of what was sent."""
    scene = Scene(agents=10, rate=20, duration=25)
    done = scene.run()
    scene.network.advance(3.03)
    for index in range(10):
        scene.network.kill(index)
        if index % 2:  # this one had not got the last batch
            del scene.network.connections[index].messages[-1]
    scene.network.advance(22.2)
    assert done.called
    summary, reports = scene.outcome()
    assert summary.failed_agents == []
    assert (summary.streams, summary.unconfirmed_streams) == (20, 10)
    verdict = compare(reports, scene.stored())
    assert verdict.good, verdict.text()
    assert 0 < verdict.lost_unconfirmed == verdict.sent - verdict.stored
    assert verdict.confirmed == sum(summary.confirmed.values())


def test_the_gateway_is_looked_for_first() -> None:
    """Without any gateway a run does not begin; one sentence names all that was tried."""
    scene = Scene(agents=1, members=("127.0.0.1:8088",))
    scene.listed = fail(LookupFailed("service discovery: refused"))
    assert Deferred.fromCoroutine(scene.fleet.check_gateway()).called
    scene.network.flush()
    assert scene.network.connections[0].lost

    scene = Scene(agents=1, members=("127.0.0.1:8088",))
    scene.network.listening.clear()
    scene.listed = succeed([Address("10.0.0.1", 6751)])
    failed: list[Failure] = []
    Deferred.fromCoroutine(scene.fleet.check_gateway()).addErrback(failed.append)
    assert failed[0].check(NoGateway)
    said = failed[0].getErrorMessage()
    assert "10.0.0.1:6751 is not loopback" in said
    assert "127.0.0.1:1: refused" in said
    assert scene.network.dialled == ["127.0.0.1:1"]


def test_progress_lines() -> None:
    """Off a terminal each second is a line; on one, the line is rewritten."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out in (io.StringIO(), Terminal()):
        scene = Scene(agents=5, rate=10, duration=3)
        progress = Progress(scene.fleet, scene.clock, out)
        progress.start()
        scene.run()
        scene.network.advance(3.2)
        progress.stop()
        lines = out.getvalue().replace("\r\x1b[K", "\n").strip().split("\n")
        assert len(lines) == 4
        assert lines[1].startswith("2 s  5 of 5 connected  ")
        assert "  50/s  0 failures" in lines[1]
        assert ("\r" in out.getvalue()) is out.isatty()


def test_summaries_in_words() -> None:
    """The summary says what was sent, confirmed and lost, and what went wrong."""
    summary = Summary(
        agents=2,
        seconds=10.0,
        streams=3,
        sent={"control": 10, "telemetry": 1000, "logs": 5},
        confirmed={"control": 5, "telemetry": 500, "logs": 5},
        events_sent=1005,
        messages=100,
        bytes_sent=1,
        unconfirmed_streams=1,
        failed_rounds=2,
        exits=1,
        restarts=1,
        dropped=3,
        overwritten=4,
        lost_on_exit=5,
        tasks=6,
        syncs=7,
        wiped=1,
        remote_refused=8,
        cpu_seconds=0.01,
        worst_lag=1.5,
        failed_agents=["a"],
        errors={"dial refused": 9},
    )
    text = summary_text(summary, 42)
    for said in (
        "2 agents (seed 42) for 10.0 s: 1,015 records sent (10 control, 1,000 telemetry, 5 logs)",
        "102/s",
        "confirmed by the server: 510; in streams that died, so perhaps lost: 505",
        "3 dropped and 4 overwritten in full buffers, 5 left at an exit",
        "6 tasks, 7 configs, 1 of them unloaded every plugin",
        "no usable address: 2 times; 1 exits, 1 restarts",
        "not loopback: 8",
        "9 times: dial refused",
        "9.9 µs a record; ticks were late by at most 1500 ms",
        "this machine could not keep up",
        "FAILED: 1 agents exited or ended unconfirmed, such as a",
    ):
        assert said in text


# --- comparing


def agent(
    sent: tuple[int, int, int], *, confirmed: bool = False, agent_id: str = "a"
) -> AgentReport:
    """A report of one agent with one stream."""
    counts = {cls.label: count for cls, count in zip(RecordClass, sent, strict=True)}
    nothing = dict.fromkeys(counts, 0)
    stream = StreamReport(
        conn=0,
        address="x",
        sent=counts,
        confirmed=counts if confirmed else nothing,
        half_closed=confirmed,
        status=0 if confirmed else 14,
        message="",
    )
    return AgentReport(
        agent_id=agent_id,
        hostname="h",
        number=0,
        started=1.0,
        ended=2.0,
        streams=[stream],
        dropped=0,
        overwritten=0,
        lost_on_exit=0,
        failed_rounds=0,
        exits=0,
        plugins={},
        tasks=0,
        syncs=0,
        wiped=0,
    )


def rows(*numbers: int, cls: RecordClass = TELEMETRY, conn: int = 0) -> list[Stored]:
    """Stored records of agent a."""
    return [Stored("a", conn, cls, number) for number in numbers]


@pytest.mark.parametrize(
    ("stored", "confirmed", "said"),
    [
        (rows(0, 1, 2), True, ""),
        (rows(0, 1), False, ""),
        ([], False, ""),
        ([*rows(0, 1, 2), Stored("other", 9, LOGS, 9)], True, ""),
        (rows(0, 1), True, "1 of 3 records confirmed, but not stored"),
        (rows(0, 2), False, "a gap at 1, with 1 records stored beyond it"),
        (rows(0, 1, 1), False, "1 is stored twice"),
        (rows(0, 2, 2, 1), False, "2 is stored twice"),
        (rows(0, 2, 1), True, "1 is stored after 2"),
        (rows(0, 1, 2, 3), True, "3 is stored, but only 3 were sent"),
        (rows(0, cls=LOGS), False, "0 is stored, but only 0 were sent"),
        (rows(0, conn=1), False, "1 records stored of a stream never opened"),
    ],
)
def test_verdicts(stored: list[Stored], confirmed: bool, said: str) -> None:
    """Only a gapless prefix without doubles, in order, passes; all of it where confirmed."""
    verdict = compare([agent((0, 3, 0), confirmed=confirmed)], stored)
    assert verdict.good is (not said), verdict.text()
    assert said in verdict.text()
    assert verdict.text().startswith("BAD" if said else "good: 1 agents, 1 streams, 3 records")


def test_control_records_counted_as_logs() -> None:
    """What a gateway moved to another log for its rate is found there, and out of no order."""
    stored = [
        Stored("a", 0, CONTROL, 0, CONTROL),
        Stored("a", 0, CONTROL, 2, CONTROL),
        Stored("a", 0, CONTROL, 1, LOGS),
    ]
    assert compare([agent((3, 0, 0), confirmed=True)], stored).good
    stored[1], stored[0] = stored[0], stored[1]
    assert not compare([agent((3, 0, 0), confirmed=True)], stored).good


def test_many_faults_are_counted() -> None:
    """A long list of faults is cut, and its length told."""
    stored = [Stored(str(n), 0, TELEMETRY, 5) for n in range(100)]
    verdict = compare((agent((0, 9, 0), agent_id=str(n)) for n in range(100)), stored)
    assert verdict.faults == 100
    assert verdict.text().endswith("and 80 more")


def test_reports_on_disk(tmp_path: Path) -> None:
    """A report is one JSON object an agent, and reads back as it was."""
    path = tmp_path / "sent.jsonl"
    agents = [agent((1, 2, 3)), agent((4, 5, 6), confirmed=True, agent_id="b")]
    write_report(path, agents)
    assert list(read_report(path)) == agents
    first = json.loads(path.read_text().splitlines()[0])
    assert first["streams"][0]["sent"] == {"control": 1, "telemetry": 2, "logs": 3}
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(ReportError, match="line 3"):
        list(read_report(path))
    with pytest.raises(ReportError, match="No such file"):
        list(read_report(tmp_path / "gone"))
    with pytest.raises(ReportError, match="No such file"):
        write_report(tmp_path / "gone" / "x", agents)


def test_compared_with_the_event_log(tmp_path: Path) -> None:
    """What a fleet sent is found in the log as the gateway writes it, older runs left aside."""
    scene = Scene(agents=3, rate=20, duration=3)
    scene.run()
    scene.network.advance(3.2)
    _, reports = scene.outcome()
    log = EventLog(tmp_path / "log", EventLogSettings(), Clock(), lambda f, *a: succeed(f(*a)))
    opened = Deferred.fromCoroutine(log.open())
    assert opened.called
    for gateway in scene.network.connections:
        for body in gateway.messages:
            packet = rawdata.split(decompressor("snappy")(body, 1 << 20))
            suffix = mqdata.encode_suffix(packet.header, 5, b"")
            for cls, count, region in packet.runs:
                log.append(cls, count, suffix, region)
    log.append(TELEMETRY, 1, b"\x22\x01x", b"\x0a\x02\x08\x3b")  # of a real agent
    log.commit()
    ids = [report.agent_id for report in reports]
    verdict = compare(reports, stored_records(tmp_path / "log", ids, WALL))
    assert verdict.good, verdict.text()
    assert verdict.stored == verdict.confirmed == verdict.sent
    later = compare(reports, stored_records(tmp_path / "log", ids, WALL + 100))
    assert later.stored == 0
    Deferred.fromCoroutine(log.close())


# --- service discovery


def answer(**changed: Any) -> bytes:
    """An answer of service discovery with one gateway."""
    entry = {"name": "hids_svr_grpc", "ip": "127.0.0.1", "port": 6751, "weight": 0, "status": 0}
    return json.dumps({"data": [entry | changed], "msg": "success"}).encode()


def test_answers_are_read_strictly() -> None:
    """Wrong types anywhere void the answer; status and weight choose nothing."""
    assert parse_answer(answer(status=1, weight=99)) == [Address("127.0.0.1", 6751)]
    assert parse_answer(b'{"data": [{"ip": "::1", "port": 1}], "code": 0}') == [Address("::1", 1)]
    for bad in (
        answer(port="6751"),
        answer(port=1.5),
        answer(port=None),
        answer(weight="0"),
        answer(ip=1),
        b'{"data": [], "code": 0}',
        b'{"data": [{"ip": "::1", "port": 1}], "code": "0"}',
        b'{"data": null}',
        b"{}",
        b"<html>",
        b"",
    ):
        with pytest.raises(LookupFailed):
            parse_answer(bad)


class Sd:
    """One lookup over HTTP in memory."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.outcome: list[Any] = []
        self.lookup = HttpLookup(self.reactor)("127.0.0.1:8088")
        self.lookup.addBoth(self.outcome.append)
        (host, port, self.factory, _, _) = self.reactor.tcpClients[0]
        assert (host, port) == ("127.0.0.1", 8088)

    def connect(self) -> Any:
        """Connect; give what was sent."""
        self.protocol = self.factory.buildProtocol(None)
        self.transport = StringTransportWithDisconnection()
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)
        return self.transport.value()


def test_the_lookup_is_the_agents() -> None:
    """One plain GET, and the answer whatever its HTTP status."""
    for status in (b"200 OK", b"503 Busy"):
        sd = Sd()
        sent = sd.connect()
        assert sent.startswith(b"GET /registry/detail?name=hids_svr_grpc&count=10 HTTP/1.1\r\n")
        assert b"User-Agent: Go-http-client/1.1\r\n" in sent
        body = answer()
        head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        sd.protocol.dataReceived(head + body)
        assert sd.outcome == [[Address("127.0.0.1", 6751)]]


def test_lookups_that_fail() -> None:
    """Refusals, cut answers and endless ones are failures, told in words."""

    def refuse(sd: Sd) -> None:
        sd.factory.clientConnectionFailed(None, Failure(ConnectError(string="refused")))

    def cut(sd: Sd) -> None:
        sd.connect()
        sd.protocol.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
        sd.transport.loseConnection()

    def close(sd: Sd) -> None:
        sd.connect()
        sd.transport.loseConnection()

    def flood(sd: Sd) -> None:
        sd.connect()
        sd.protocol.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(2):
            sd.protocol.dataReceived(b" " * ANSWER_BYTES)

    for breach in (refuse, cut, close, flood):
        sd = Sd()
        breach(sd)
        sd.reactor.advance(1)
        assert len(sd.outcome) == 1, breach
        (failure,) = sd.outcome
        assert failure.check(LookupFailed), failure
        assert failure.getErrorMessage().startswith("service discovery: ")


def test_a_lookup_can_be_given_up() -> None:
    """Cancelling a hung lookup ends it."""
    sd = Sd()
    sd.connect()
    sd.lookup.cancel()
    assert len(sd.outcome) == 1


# --- the wheel


class Item(Ticked):
    """Ticks every ``every`` seconds."""

    def __init__(self, clock: Clock, every: float | None) -> None:
        super().__init__()
        self.clock, self.every = clock, every
        self.times: list[float] = []
        self.failed = 0

    def tick(self, now: float) -> float | None:
        self.times.append(round(now, 3))
        if self.every == 0:
            raise ValueError("broken")
        return None if self.every is None else now + self.every

    def tick_failed(self) -> None:
        self.failed += 1


def test_the_wheel_turns() -> None:
    """Each item is called at its time, once, and only as long as it asks."""
    clock = Clock()
    wheel = TimerWheel(clock)
    wheel.start()
    tenth, once, moved = Item(clock, 0.1), Item(clock, None), Item(clock, None)
    wheel.schedule(tenth, 0.05)
    wheel.schedule(once, 0.2)
    wheel.schedule(moved, 0.1)
    wheel.schedule(moved, 0.3)
    for _ in range(50):
        clock.advance(0.01)
    assert tenth.times == [0.05, 0.15, 0.25, 0.35, 0.45]
    assert once.times == [0.2]
    assert moved.times == [0.3]
    assert wheel.worst_lag < 0.02
    wheel.stop()
    assert clock.getDelayedCalls() == []


def test_a_late_wheel_says_so() -> None:
    """When the process stands still, nothing is lost, and the lag is shown."""
    clock = Clock()
    wheel = TimerWheel(clock)
    wheel.start()
    item = Item(clock, None)
    wheel.schedule(item, 0.1)
    clock.advance(5)
    assert item.times == [5.0]
    assert wheel.worst_lag == pytest.approx(5, abs=0.1)
    wheel.stop()
