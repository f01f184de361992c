"""Simulated agents behave as real ones do, told by a fake clock."""

from functools import partial
from typing import Any

import pytest
from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from elkeid.fleet.agent import Allowance, SimulatedAgent, World
from elkeid.fleet.buffer import BUFFER_RECORDS
from elkeid.fleet.host import STOCK_PLUGINS, Host
from elkeid.fleet.link import Address
from elkeid.fleet.records import event_template
from elkeid.fleet.resolve import AddressBook, LookupFailed
from elkeid.fleet.wheel import TimerWheel
from elkeid.wire.command import ConfigItem, Task, encode_command
from elkeid.wire.compression import decompressor
from elkeid.wire.http2_frames import goaway_frame
from tests.fleet.gateway import H2Gateway, Network

ONE, TWO, THREE = Address("127.0.0.1", 1), Address("127.0.0.1", 2), Address("::1", 3)
WALL = 1_700_000_000.0


class Scene:
    """One agent in a network in memory."""

    def __init__(
        self,
        *,
        private: tuple[Address, ...] = (ONE,),
        rate: float = 0.0,
        restart: bool = False,
        total: int | None = None,
        member: str | None = None,
        beat: float = 60.0,
    ) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.listed: Any = []
        self.lookups = 0
        wheel = TimerWheel(self.clock)
        wheel.start()
        self.world = World(
            clock=self.clock,
            wall=lambda: WALL + self.clock.seconds(),
            wheel=wheel,
            dial=self.network.dial,
            lookup=self._lookup,
            permitted=lambda address: not address.host.startswith("10."),
            templates=[event_template(59, {"n": "a"}), event_template(1010, {"n": "b"})],
            rate=rate,
            restart=restart,
            chance=lambda: 0.5,
            allowance=Allowance(total),
            beat=beat,
        )
        self.agent = SimulatedAgent(0, Host(1, 0), AddressBook(member, private), self.world)

    def _lookup(self, member: str) -> Deferred[list[Address]]:
        self.lookups += 1
        if isinstance(self.listed, Deferred):
            return self.listed
        if isinstance(self.listed, Exception):
            return fail(self.listed)
        return succeed(list(self.listed))

    def listen(self, *addresses: Address, **options: Any) -> None:
        """Have gateways at these addresses."""
        for address in addresses:
            self.network.listening[str(address)] = partial(H2Gateway, **options)

    def close(self, *addresses: Address) -> None:
        """Have nothing there any more."""
        for address in addresses:
            del self.network.listening[str(address)]

    def start(self) -> "Scene":
        """Start the agent now."""
        self.agent.start()
        self.network.flush()
        return self

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.network.advance(seconds, 0.05)

    @property
    def gateway(self) -> H2Gateway:
        """The latest connection's other end."""
        return self.network.connections[-1]

    @property
    def streams(self) -> list[tuple[str, int]]:
        """Addresses and numbers of the streams opened so far."""
        return [(stream.address, stream.conn) for stream in self.agent.report().streams]


def test_first_heartbeat_then_one_a_minute() -> None:
    """A heartbeat comes at once, the next after 60 s, and the plugins' only then."""
    scene = Scene()
    scene.listen(ONE)
    scene.start()
    scene.advance(0.2)
    (first,) = scene.gateway.records
    assert first.data_type == 1000
    assert first.time == int(WALL)
    scene.advance(59)
    assert len(scene.gateway.records) == 1
    scene.advance(1.2)
    second, *plugins = scene.gateway.records[1:]
    assert (second.data_type, second.fields["net_mode"]) == (1000, "private")
    assert [p.fields["name"] for p in plugins] == list(STOCK_PLUGINS)
    assert [r.fields["fleet_seq"] for r in scene.gateway.records] == [str(n) for n in range(8)]


def test_heartbeats_as_often_as_asked() -> None:
    """Agent and plugins beat by the interval given, and tell speeds of that time."""
    scene = Scene(rate=10, beat=2)
    scene.listen(ONE)
    scene.start()
    scene.advance(6.2)
    beats = [record for record in scene.gateway.records if record.data_type == 1000]
    assert [record.time - int(WALL) for record in beats] == [0, 2, 4, 6]
    assert float(beats[-1].fields["tx_tps"]) == pytest.approx(10 + 7 / 2, abs=1)
    plugins = [record for record in scene.gateway.records if record.data_type == 1001]
    assert [record.fields["name"] for record in plugins] == [*STOCK_PLUGINS] * 3
    share = sum(float(record.fields["tx_tps"]) for record in plugins[-6:])
    assert share == pytest.approx(10, abs=1)


def test_everything_of_a_tick_is_one_message() -> None:
    """At 50 events a second, each message of a 100 ms tick carries five."""
    scene = Scene(rate=50)
    scene.listen(ONE)
    scene.start()
    scene.advance(5)
    messages = scene.gateway.messages
    assert 48 <= len(messages) <= 51
    events = [r for r in scene.gateway.records if r.data_type != 1000]
    assert 245 <= len(events) <= 251
    assert [r.fields["fleet_seq"] for r in events if r.data_type == 59] == [
        str(n) for n in range((len(events) + 1) // 2)
    ]


def test_addresses_in_the_order_received() -> None:
    """Service discovery's list is dialled in order, then the private addresses."""
    scene = Scene(member="sd:1", private=(THREE,))
    scene.listed = [TWO, ONE, TWO]
    scene.listen(THREE)
    scene.start()
    assert scene.network.dialled == [str(TWO), str(ONE), str(TWO), "[::1]:3"]
    assert scene.streams == [("[::1]:3", 0)]


def test_remote_addresses_are_left_out() -> None:
    """An address that may not be dialled is skipped and counted."""
    scene = Scene(member="sd:1", private=())
    scene.listed = [Address("10.0.0.1", 6751), ONE]
    scene.listen(ONE)
    scene.start()
    assert scene.network.dialled == [str(ONE)]
    assert scene.world.totals.remote_refused == 1


def test_service_discovery_away() -> None:
    """Without an answer of service discovery the private address is used."""
    scene = Scene(member="sd:1")
    scene.listed = LookupFailed("no such luck")
    scene.listen(ONE)
    scene.start()
    assert scene.streams == [(str(ONE), 0)]
    assert scene.world.totals.errors == {"no such luck": 1}


def test_seventh_failure_ends_the_agent() -> None:
    """Seven rounds without a usable address, 5 s apart, and the agent exits."""
    scene = Scene(private=(ONE, TWO))
    scene.start()
    scene.advance(29.9)
    assert len(scene.network.dialled) == 12
    assert not scene.agent.done.called
    scene.advance(0.2)
    assert scene.network.times[::2] == pytest.approx([0, 5, 10, 15, 20, 25, 30], abs=0.1)
    assert scene.agent.done.called
    report = scene.agent.report()
    assert (report.failed_rounds, report.exits, report.lost_on_exit) == (7, 1, 1)
    assert not report.confirmed_at_end
    scene.advance(100)
    assert len(scene.network.dialled) == 14


def test_loss_of_the_server_to_the_exit() -> None:
    """When the server dies, the agent exits about 40 s later; the first redial is no failure."""
    scene = Scene()
    scene.listen(ONE)
    scene.start()
    scene.advance(1)
    scene.close(ONE)
    scene.network.kill()
    lost = scene.clock.seconds()
    scene.advance(39.9)
    assert not scene.agent.done.called
    scene.advance(0.3)
    assert scene.agent.done.called
    assert [round(at - lost) for at in scene.network.times[1:]] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert scene.agent.report().failed_rounds == 7


def test_comes_back_after_a_restart_of_the_server() -> None:
    """A server that is back within 40 s has its agents again, on a new stream."""
    scene = Scene(rate=10)
    scene.listen(ONE)
    scene.start()
    scene.advance(2)
    scene.close(ONE)
    scene.network.kill()
    scene.advance(21)
    scene.listen(ONE)
    scene.advance(6)
    assert scene.agent.streaming
    assert [conn for _, conn in scene.streams] == [0, 1]
    records = scene.gateway.records
    assert {r.fields["fleet_conn"] for r in records} == {"1"}
    logs = [r.fields["fleet_seq"] for r in records if r.data_type == 1010]
    assert logs == [str(n) for n in range(len(logs))]
    assert len(records) > 250  # the buffer kept what came meanwhile
    first, second = scene.agent.report().streams
    assert (first.status, first.half_closed) == (14, False)
    assert sum(first.confirmed.values()) == 0
    assert second.status is None


def test_failures_in_a_row_only() -> None:
    """A connection in between forgives all failures before it."""
    scene = Scene()
    scene.start()
    scene.advance(26)
    scene.listen(ONE)
    scene.advance(5)
    assert scene.agent.streaming
    scene.close(ONE)
    scene.network.kill()
    scene.advance(39)
    assert not scene.agent.done.called


def test_restart_after_an_exit() -> None:
    """With restarts, an agent that exited starts anew 45 s later and goes on counting streams."""
    scene = Scene(restart=True)
    scene.listen(ONE)
    scene.start()
    scene.advance(1)
    scene.close(ONE)
    scene.network.kill()
    scene.advance(41)
    assert scene.agent.exits == 1
    scene.listen(ONE)
    scene.advance(43)
    assert not scene.agent.streaming
    scene.advance(3)
    assert scene.streams == [(str(ONE), 0), (str(ONE), 1)]
    assert [(r.data_type, r.fields["fleet_conn"]) for r in scene.gateway.records] == [(1000, "1")]
    assert scene.world.totals.restarts == 1


def test_a_refused_stream_keeps_the_connection() -> None:
    """Refused streams come again every 5 s on one connection, six in all; then it is redialled."""
    scene = Scene()
    scene.listen(ONE, status=(2, "out of max connection limit"))
    scene.start()
    scene.advance(24.9)
    assert len(scene.network.dialled) == 1
    assert len(scene.gateway.headers) == 5
    scene.advance(0.2)
    assert len(scene.gateway.headers) == 6
    scene.advance(5)
    assert len(scene.network.dialled) == 2
    assert scene.network.connections[0].lost
    assert not scene.agent.done.called
    assert {s.message for s in scene.agent.report().streams} == {"out of max connection limit"}


def test_goaway_redials_the_same_address() -> None:
    """After GOAWAY and the stream's end, the same address is dialled again, list or not."""
    scene = Scene(member="sd:1")
    scene.listed = [TWO, ONE]
    scene.listen(ONE, TWO)
    scene.start()
    assert scene.network.dialled == [str(TWO)]
    scene.listed = [ONE]
    scene.gateway.transport.write(goaway_frame(1, 0))
    scene.network.flush()
    assert scene.agent.streaming  # GOAWAY alone ends no stream
    scene.network.kill()
    scene.advance(5.2)
    assert scene.network.dialled == [str(TWO), str(TWO)]
    assert scene.lookups == 1
    assert scene.agent.streaming


def test_a_failed_redial_resolves_again() -> None:
    """When the same address does not answer any more, the whole list is asked for anew."""
    scene = Scene(member="sd:1")
    scene.listed = [TWO, ONE]
    scene.listen(ONE, TWO)
    scene.start()
    scene.close(TWO)
    scene.network.kill()
    scene.advance(10.2)
    assert scene.network.dialled == [str(TWO)] * 3 + [str(ONE)]
    assert scene.lookups == 2
    assert scene.streams == [(str(TWO), 0), (str(ONE), 1)]
    assert scene.agent.report().failed_rounds == 0


def test_the_buffer_overflows_silently() -> None:
    """Without a server 2048 records are kept; the rest of the plugins' is dropped and counted."""
    scene = Scene(rate=200)
    scene.start()
    scene.advance(15)
    report = scene.agent.report()
    assert report.dropped == pytest.approx(15 * 200 - BUFFER_RECORDS, abs=25)
    scene.listen(ONE)
    scene.advance(5.2)
    batch = scene.gateway.records
    assert len(scene.gateway.messages[0]) > 1000
    assert len(batch) >= BUFFER_RECORDS
    assert batch[0].data_type == 1000


def test_own_heartbeats_displace_the_oldest() -> None:
    """In a full buffer the agent's heartbeats are written over slot 0."""
    scene = Scene(rate=500, restart=True)
    scene.world.clock.advance(0)  # type: ignore[attr-defined]
    scene.listed = Deferred()
    scene.agent = SimulatedAgent(0, Host(1, 0), AddressBook("sd:1", ()), scene.world)
    scene.start()
    scene.advance(61)
    assert scene.agent.report().overwritten == 7


def test_a_server_that_does_not_read() -> None:
    """When the gateway's window is used up, records wait in the agent's buffer, not in ours."""
    scene = Scene(rate=500)
    scene.listen(ONE, settings={4: 0})
    scene.start()
    scene.advance(30)
    link = scene.agent._link
    assert link is not None
    assert link.blocked
    assert link._http2.waiting_on(1) < 200_000
    assert scene.agent.report().dropped > 1000
    assert scene.gateway.messages == []


def test_half_close_confirms() -> None:
    """At the end what is buffered goes out, and OK trailers confirm all of it."""
    scene = Scene(rate=10)
    scene.listen(ONE)
    scene.start()
    scene.advance(3)
    scene.agent.finish()
    scene.network.flush()
    assert scene.agent.done.called
    report = scene.agent.report()
    (stream,) = report.streams
    assert (stream.half_closed, stream.status) == (True, 0)
    assert stream.sent == stream.confirmed
    assert report.confirmed_at_end
    assert sum(stream.sent.values()) == len(scene.gateway.records)
    scene.advance(30)
    assert len(scene.network.dialled) == 1
    assert scene.gateway.lost


@pytest.mark.parametrize("seconds", [0.0, 1.0, 7.0])
def test_finish_without_a_stream(seconds: float) -> None:
    """An agent that waits, dials or never began ends at once when told to."""
    scene = Scene()
    if seconds:
        scene.start()
        scene.advance(seconds)
    scene.agent.finish()
    assert scene.agent.done.called
    scene.agent.stop()
    scene.advance(100)
    assert not scene.agent.report().confirmed_at_end


def test_finish_in_a_lookup_or_dial() -> None:
    """A hung service discovery or a silent address holds up no end."""
    scene = Scene(member="sd:1")
    scene.listed = Deferred()
    scene.start()
    scene.advance(1000)  # real agents have no timeout here
    assert not scene.agent.done.called
    scene.agent.finish()
    assert scene.agent.done.called
    assert scene.network.dialled == []

    scene = Scene()
    scene.network.listening[str(ONE)] = partial(H2Gateway)
    hung: Deferred[Any] = Deferred()
    scene.world.dial = lambda _: hung
    scene.start()
    scene.agent.finish()
    assert scene.agent.done.called


def test_a_silent_server_at_the_end() -> None:
    """A stream that gets no status can be stopped, and is not confirmed."""
    scene = Scene()
    scene.listen(ONE)
    scene.start()
    scene.gateway.answer_half_close = False
    scene.agent.finish()
    scene.network.flush()
    assert not scene.agent.done.called
    scene.agent.stop()
    assert scene.agent.done.called
    assert not scene.agent.report().confirmed_at_end


def told(scene: Scene, task: Task | None = None, config: tuple[ConfigItem, ...] = ()) -> None:
    """Send one Command on the latest stream."""
    transfer = (":path", "/grpc.Transfer/Transfer")
    stream_id = max(n for n, headers in scene.gateway.headers.items() if transfer in headers)
    scene.gateway.command(stream_id, encode_command(task, config))
    scene.network.flush()


def results(scene: Scene) -> list[tuple[int, dict[str, str]]]:
    """What came back of tasks, and log records, without the simulator's own fields."""
    return [
        (r.data_type, {k: v for k, v in r.fields.items() if not k.startswith("fleet_")})
        for r in scene.gateway.records
        if r.data_type not in (1000, 1001)
    ]


def listening() -> Scene:
    """An agent with a stream."""
    scene = Scene()
    scene.listen(ONE)
    return scene.start()


def test_tasks_and_configs() -> None:
    """A Command with a task is only a task; one without is the list of plugins to have."""
    scene = listening()
    agent, gateway = scene.agent, scene.gateway
    told(scene, Task(5050, "collector", "{}", "t1"), (ConfigItem("driver"),))
    scene.advance(3)
    assert (agent.orders.tally.tasks, agent.orders.tally.syncs) == (1, 0)
    assert set(agent.orders.loaded) == set(STOCK_PLUGINS)
    since = agent.orders.loaded["driver"].since
    driver = ConfigItem("driver", version=STOCK_PLUGINS["driver"])
    told(scene, config=(driver, ConfigItem("etrace", version="1")))
    assert set(agent.orders.loaded) == set(STOCK_PLUGINS)  # a sync takes time
    scene.advance(2.1)
    assert {n: p.version for n, p in agent.orders.loaded.items()} == {
        "driver": STOCK_PLUGINS["driver"],
        "etrace": "1",
    }
    assert agent.orders.loaded["driver"].since == since
    assert agent.orders.loaded["etrace"].since > since
    scene.advance(60)
    beats = [r.fields for r in gateway.records if r.data_type == 1001]
    assert [(r["name"], r["pversion"]) for r in beats] == [
        ("driver", STOCK_PLUGINS["driver"]),
        ("etrace", "1"),
    ]
    told(scene)
    assert (agent.orders.loaded, agent.orders.tally.wiped) == ({}, 1)
    told(scene)
    report = agent.report()
    assert (report.plugins, report.syncs, report.wiped) == ({}, 3, 1)


def test_one_sync_waits_and_no_more() -> None:
    """While a sync runs one config waits; another is dropped, and only a log record says so."""
    scene = listening()
    for version in ("1", "2", "3"):
        told(scene, config=(ConfigItem("etrace", version=version),))
    scene.advance(2.1)
    assert scene.agent.orders.loaded["etrace"].version == "1"
    scene.advance(2.1)
    assert scene.agent.orders.loaded["etrace"].version == "2"
    scene.advance(5)
    report = scene.agent.report()
    assert (report.plugins, report.syncs, report.dropped_syncs) == ({"etrace": "2"}, 3, 1)
    assert [data_type for data_type, _ in results(scene)] == [1010]


def test_results_of_plugins() -> None:
    """A plugin answers with a record of its own, with the token; as its task says, or never."""
    scene = listening()
    for name, data in (
        ("collector", ""),
        ("baseline", '{"simulate": "fail"}'),
        ("scanner", "[]"),
        ("rasp", '{"simulate": "silence"}'),
    ):
        told(scene, Task(5050, name, data, f"t-{name}"))
    scene.advance(1)
    assert results(scene) == [
        (5100, {"token": "t-collector", "status": "succeed", "msg": ""}),
        (8010, {"token": "t-baseline", "status": "failed", "msg": "told to fail"}),
        (6000, {"token": "t-scanner", "status": "succeed", "msg": ""}),
    ]
    assert scene.agent.report().results == 3


def test_tasks_for_nobody() -> None:
    """A plugin that is busy or not there takes no task; only a log record says so."""
    scene = listening()
    told(scene, Task(5050, "collector", "", "t1"))
    told(scene, Task(5050, "collector", "", "t2"))
    told(scene, Task(5050, "nobody", "", "t3"))
    told(scene, Task(7, "elkeid-agent", "", "t4"))
    scene.advance(1)
    assert [(kind, fields.get("token")) for kind, fields in results(scene)] == [
        (1010, None),
        (1010, None),
        (5100, "t1"),
    ]
    assert scene.agent.report().refused_tasks == 2


def test_told_to_exit() -> None:
    """The agent exits, comes back after 45 s, and has no plugins until it is told."""
    scene = listening()
    told(scene, Task(1060, "elkeid-agent", "", "t"))
    assert not scene.agent.streaming
    scene.advance(44)
    assert len(scene.network.dialled) == 1
    scene.advance(2)
    assert scene.agent.streaming
    report = scene.agent.report()
    assert (report.exits, report.plugins) == (1, {})
    assert results(scene) == []


def test_updating_itself() -> None:
    """Another version of the agent: it is installed, the process ends and comes back as that."""
    scene = listening()
    here = scene.agent.orders.version
    config = (ConfigItem("elkeid-agent", version=here), ConfigItem("driver", version="5"))
    told(scene, config=config)
    scene.advance(2.1)
    assert scene.agent.report().plugins == {"driver": "5"}
    told(scene, config=(ConfigItem("elkeid-agent", version="9.9"), ConfigItem("driver")))
    scene.advance(1)
    assert scene.agent.streaming
    scene.advance(2)
    assert not scene.agent.streaming
    scene.advance(46)
    report = scene.agent.report()
    assert (report.version, report.updates, report.plugins) == ("9.9", 1, {})
    assert b"9.9" in decompressor("snappy")(scene.gateway.messages[0], 1 << 20)


def test_idc_and_region() -> None:
    """The next heartbeat says what the agent was told; nothing answers, but for an error."""
    scene = listening()
    told(scene, Task(1051, "elkeid-agent", '{"idc":"i7","region":"r7"}', "t1"))
    told(scene, Task(1051, "elkeid-agent", "nonsense", "t2"))
    scene.advance(61)
    beat = [r.fields for r in scene.gateway.records if r.data_type == 1000][-1]
    assert (beat["idc"], beat["region"]) == ("i7", "r7")
    ((kind, fields),) = results(scene)
    assert (kind, fields["token"], fields["status"]) == (5100, "t2", "failed")


def upload(scene: Scene, path: str, size: int = 1000, more: str = "") -> None:
    """Ask for a file."""
    data = f'{{"path":"{path}","buf_size":{size}{more}}}'
    told(scene, Task(1050, "elkeid-agent", data, "tok"))


def test_a_file_goes_up() -> None:
    """A second stream of the same connection carries it, a piece a second, then half-closes."""
    scene = listening()
    upload(scene, "/var/log/x.2500.bin")
    headers = scene.gateway.headers[3]
    assert (":path", "/grpc.FileExt/Upload") in headers
    assert headers[-1] == ("grpc-timeout", "600S")
    scene.gateway.answer(3)
    scene.advance(3)
    messages = [decompressor("snappy")(m, 1 << 20) for m in scene.gateway.messages]
    pieces = [each for each in messages if each.startswith(b"\x0a\x03tok\x12")]
    assert [len(piece) for piece in pieces] == [1000 + 8, 1000 + 8, 500 + 8]
    assert scene.gateway.half_closed == [3]
    assert scene.agent.streaming
    report = scene.agent.report()
    assert (report.uploads, report.failed_uploads, report.results) == (1, 0, 0)


def test_files_that_do_not_go_up() -> None:
    """Not there, too large, busy, or the stream ends: the agent itself answers."""
    scene = listening()
    upload(scene, "/missing/x")
    upload(scene, "/x.700000.bin", 1000)
    upload(scene, "/x.5000.bin")
    upload(scene, "/x.5000.bin")
    scene.advance(1)
    scene.gateway.end(3, 9, "no such token")
    scene.network.flush()
    told(scene, Task(1050, "elkeid-agent", "nonsense", "tok"))
    scene.advance(1)
    assert scene.agent.streaming
    report = scene.agent.report()
    assert (report.uploads, report.failed_uploads, report.results) == (0, 1, 5)


def test_a_file_goes_up_elsewhere() -> None:
    """When the agent dials anew for a file, that may be another gateway."""
    scene = Scene(private=(ONE, TWO))
    scene.listen(ONE, TWO)
    scene.start()
    upload(scene, "/x.5.bin", 1000, ',"simulate":"elsewhere"')
    scene.advance(1)
    assert scene.network.dialled == [str(ONE), str(TWO)]
    assert (":path", "/grpc.FileExt/Upload") in scene.gateway.headers[1]
    assert scene.agent.report().uploads == 1
    assert scene.gateway.lost
    assert scene.agent.streaming


def test_a_cut_connection() -> None:
    """An agent whose connection breaks opens another stream 5 s later."""
    scene = listening()
    scene.agent.cut()
    scene.network.flush()
    scene.agent.cut()
    assert not scene.agent.streaming
    scene.advance(5.2)
    assert scene.agent.streaming
    assert len(scene.network.dialled) == 2


def test_bare_agents() -> None:
    """An agent may begin without plugins, as after a boot."""
    scene = listening()
    bare = SimulatedAgent(1, Host(1, 1), AddressBook(None, (ONE,)), evolve(scene.world, bare=True))
    bare.start()
    assert bare.report().plugins == {}


def test_a_bad_command_ends_the_stream() -> None:
    """A Command that cannot be read costs the stream; the agent comes back."""
    scene = Scene()
    scene.listen(ONE)
    scene.start()
    scene.gateway.command(1, b"\x12\xff")
    scene.network.flush()
    assert not scene.agent.streaming
    assert scene.gateway.resets == [(1, 8)]
    scene.advance(5.2)
    assert scene.agent.streaming
    assert len(scene.network.dialled) == 1


def test_a_total_is_exact() -> None:
    """With a total, exactly so many events are sent, whatever was lost on the way."""
    scene = Scene(rate=100, total=2500)
    scene.start()
    scene.advance(24)  # fills the buffer; what is dropped does not count
    scene.listen(ONE)
    scene.advance(60)
    events = [r for r in scene.gateway.records if r.data_type not in (1000, 1001)]
    assert len(events) == scene.world.totals.events_sent == 2500
