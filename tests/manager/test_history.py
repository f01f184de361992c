"""What is kept of hosts over time, and shown: connects, moves, protection, figures."""

from typing import Any
from unittest.mock import patch

from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager import history
from elkeid.manager.figures import COARSE_SECONDS, FINE_SECONDS
from elkeid.manager.store.figures import join_stretches, newest_stretch
from tests.web.memory import NOW

from .deployment import Deployment, Got, ScriptedAc


class HistoryCase(SynchronousTestCase):
    """A Manager with an AC."""

    settings: dict[str, Any] = {}  # noqa: RUF012

    def setUp(self) -> None:
        self.deployment = Deployment(token_seconds=86_400 * 20, **self.settings).start()
        self.addCleanup(self.deployment.end)
        self.token = self.deployment.login()
        self.ac = self.deployment.ac()
        self.begun = NOW

    def get(self, path: str) -> Got:
        """A whole answer."""
        return self.deployment.call("GET", path, token=self.token)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.deployment.network.advance(seconds)

    def now(self) -> int:
        """The time of day."""
        return int(self.deployment.network.wall())

    def beat(self, kernel: int | None = 0, ac: ScriptedAc | None = None, **info: Any) -> None:
        """Host a1 beats; its newest kernel event is ``kernel`` seconds old, None without any."""
        data_types = {"1000": {"count": 1, "last_seen": self.now()}}
        if kernel is not None:
            data_types["59"] = {"count": 1, "last_seen": self.now() - kernel}
        plugins = [{"name": "driver", "last_heartbeat_time": self.now()}]
        info = {"create_at": self.begun, "data_types": data_types, "plugins": plugins} | info
        (ac or self.ac).beat("a1", **info)
        self.advance(3)

    def events(self, query: str = "") -> list[dict[str, Any]]:
        """Of host a1, the oldest first."""
        page = self.get(f"/api/v1/agent/getHistory/a1{query}").data
        items: list[dict[str, Any]] = page["items"]
        return items[::-1]

    def told(self) -> list[tuple[str, ...]]:
        """What happened, in short."""
        keys = ("kind", "before", "after")
        return [tuple(str(each[key]) for key in keys if key in each) for each in self.events()]


class EventTests(HistoryCase):
    """``getHistory``."""

    def test_connections(self) -> None:
        """Connects and disconnects, each once."""
        self.beat()
        self.beat()
        self.ac.lose("a1")
        self.advance(3)
        left_at = self.now()
        self.begun = self.now()
        self.beat()
        self.assertEqual(self.told(), [("connected",), ("disconnected",), ("connected",)])
        first, second, third = self.events()
        self.assertEqual(
            first, {"number": 0, "at": NOW, "kind": "connected", "gateway": "127.0.0.1:6752"}
        )
        self.assertEqual(second["gateway"], "127.0.0.1:6752")
        self.assertLessEqual(abs(second["at"] - left_at), 3)
        self.assertEqual(third["at"], self.begun)

    def test_a_new_stream_unseen(self) -> None:
        """A stream that began anew between two looks is a connect."""
        self.beat()
        self.begun += 100
        self.beat()
        self.begun += 2  # clocks that differ a little
        self.beat()
        self.assertEqual(self.told(), [("connected",), ("connected",)])

    def test_moves(self) -> None:
        """A move names both gateways; what the old one still says afterwards counts for nothing."""
        other = self.deployment.ac(6753)
        self.beat()
        self.begun += 60
        self.beat(ac=other)
        self.begun -= 60
        self.beat(None)
        self.ac.lose("a1")
        self.advance(3)
        self.assertEqual(self.told(), [("connected",), ("moved", "127.0.0.1:6752")])
        self.assertEqual(self.events()[-1]["gateway"], "127.0.0.1:6753")

    def test_who_is_not_there_any_more(self) -> None:
        """A gateway that lists everybody and leaves a host out has lost it."""
        self.beat()
        self.ac.restart()
        self.ac.beat("a2")
        self.advance(3)
        self.assertEqual(self.told(), [("connected",), ("disconnected",)])

    def test_a_gateway_that_cannot_be_asked(self) -> None:
        """It may still have its hosts: nothing is said of them."""
        self.beat()
        self.ac.down()
        self.advance(30)
        self.ac.up()
        self.advance(10)
        self.beat()
        self.assertEqual(self.told(), [("connected",)])

    def test_pages(self) -> None:
        """In pages, the latest first; a far page is empty; an unknown host is code 3."""
        for _ in range(5):
            self.beat()
            self.begun += 100
        page = self.get("/api/v1/agent/getHistory/a1?page=2&page_size=2").data
        self.assertEqual((page["total"], page["pages"], page["count"]), (5, 3, 2))
        self.assertEqual([each["number"] for each in page["items"]], [2, 1])
        far = self.get(f"/api/v1/agent/getHistory/a1?page={1 << 53}&page_size=5000").data
        self.assertEqual(far["items"], [])
        got = self.get("/api/v1/agent/getHistory/nobody")
        self.assertEqual((got.status, got.json["code"]), (200, 3))
        self.assertEqual(self.get("/api/v1/agent/getHistory/a1?page=0").status, 400)

    def test_levels(self) -> None:
        """Who may see hosts."""
        self.beat()
        for level in range(9):
            token = self.deployment.add_user(f"user{level}", level)
            got = self.deployment.call("GET", "/api/v1/agent/getHistory/a1", token=token)
            self.assertEqual(got.status, 403 if level in (4, 5) else 200, level)
        self.assertEqual(self.deployment.call("GET", "/api/v1/agent/getHistory/a1").status, 401)


class BoundTests(HistoryCase):
    """What is kept is bounded."""

    settings = {"history_events": 10, "history_event_seconds": 3600}  # noqa: RUF012

    def test_ring(self) -> None:
        """A host keeps its last events."""
        for _ in range(13):
            self.beat()
            self.begun += 100
        self.assertEqual([each["number"] for each in self.events()], list(range(3, 13)))

    def test_time(self) -> None:
        """Old events go."""
        self.beat()
        self.deployment.network.clock.advance(3700)
        self.begun = self.now()
        self.beat()
        self.assertEqual([each["number"] for each in self.events()], [1])
        self.deployment.network.clock.advance(history.PACE_SECONDS)
        self.deployment.network.flush()
        self.assertEqual([each["number"] for each in self.events()], [1])


class ProtectionTests(HistoryCase):
    """Protection over time."""

    def test_silence_of_the_kernel(self) -> None:
        """Events that no longer come cost the host its state, and the history tells."""
        self.beat(0)
        self.beat(899)
        self.beat(901)
        self.beat(0)
        self.assertEqual(
            self.told(),
            [
                ("connected",),
                ("protection", "full", "no_kernel_events"),
                ("protection", "no_kernel_events", "full"),
            ],
        )
        self.assertEqual(self.events()[1]["reason"], "driver_silent")

    def test_a_gateway_that_has_counted_nothing(self) -> None:
        """After a move a host keeps its state until it had time to show."""
        self.beat(0)
        self.beat(None)
        self.deployment.network.clock.advance(800)
        self.beat(None)
        self.assertEqual(self.told(), [("connected",)])
        self.beat(0)
        self.beat(None)
        self.deployment.network.clock.advance(800)
        self.beat(None)
        self.assertEqual(self.told(), [("connected",)])
        self.deployment.network.clock.advance(200)
        self.beat(None)
        self.assertEqual(self.told()[1:], [("protection", "full", "no_kernel_events")])


class FigureTests(HistoryCase):
    """Curves."""

    def curve(self, route: str, start: int, end: int, period: int = 60) -> dict[str, Any]:
        """An answer's data."""
        query = f"AgentID=a1&StartTime={start}&EndTime={end}&Period={period}"
        data: dict[str, Any] = self.get(f"/api/v6/monitor/{route}?{query}").data
        return data

    def fill(self, minutes: int, **info: Any) -> None:
        """Beat once a minute."""
        for number in range(minutes):
            self.beat(cpu=number % 5 / 4, rss=1000, **info)
            self.deployment.network.clock.advance(57)

    def test_curves(self) -> None:
        """Each route has its names; points are means of five minutes, with least and greatest."""
        start = self.now() // FINE_SECONDS * FINE_SECONDS + FINE_SECONDS
        self.deployment.network.clock.advance(start - self.now())
        self.fill(11, tx_speed=1, rx_speed=2, read_speed=3, write_speed=4, du=5)
        data = self.curve("AgentCpuMetrics", start, start + 900)
        self.assertEqual(
            data,
            {
                "StartTime": start,
                "EndTime": start + 900,
                "Period": 60,
                "MetricDataResults": [
                    {
                        "Name": "cpu",
                        "DataPoints": [
                            {"Timestamp": at, "Value": 0.5, "Min": 0, "Max": 1}
                            for at in (start, start + 300)
                        ],
                    }
                ],
            },
        )
        for route, names in [
            ("AgentMemoryMetrics", {"memory": 1000}),
            ("AgentDiskMetrics", {"read": 3, "write": 4}),
            ("AgentDiskUsageMetrics", {"disk": 5}),
            ("AgentNetMetrics", {"upload": 1, "download": 2}),
        ]:
            results = self.curve(route, start, start + 900)["MetricDataResults"]
            shown = {each["Name"]: each["DataPoints"][0]["Value"] for each in results}
            self.assertEqual(shown, names)
        joined = self.curve("AgentCpuMetrics", start, start + 900, 2700)["MetricDataResults"]
        self.assertLessEqual(len(joined[0]["DataPoints"]), 2)

    def test_hours(self) -> None:
        """Hours are rolled up of the five minutes, and outlive them."""
        start = self.now() // COARSE_SECONDS * COARSE_SECONDS + COARSE_SECONDS
        self.deployment.network.clock.advance(start - self.now())
        self.fill(20)
        self.deployment.network.clock.advance(start + 3600 + 500 - self.now())
        self.deployment.network.flush()
        store = self.deployment.manager.store
        run = self.deployment.network.run
        self.assertEqual(run(store.read(newest_stretch, COARSE_SECONDS)), start)
        (curve,) = self.curve("AgentCpuMetrics", start, start + 3600, 3600)["MetricDataResults"]
        self.assertEqual(
            curve["DataPoints"], [{"Timestamp": start, "Value": 0.5, "Min": 0, "Max": 1}]
        )
        self.deployment.network.clock.advance(7 * 3600)
        self.deployment.network.flush()
        self.assertIsNone(run(store.read(newest_stretch, FINE_SECONDS)))
        (curve,) = self.curve("AgentCpuMetrics", start, start + 3600, 60)["MetricDataResults"]
        self.assertEqual(len(curve["DataPoints"]), 1)
        self.deployment.network.clock.advance(7 * 86_400)
        self.deployment.network.flush()
        self.assertIsNone(run(store.read(newest_stretch, COARSE_SECONDS)))

    def test_hours_after_a_clock_was_wrong(self) -> None:
        """Years ahead costs no walk through their hours; set right, hours are rolled up as ever."""
        network, wall = self.deployment.network, self.deployment.network.wall
        kept, store = self.deployment.manager.hosts.history, self.deployment.manager.store
        start = self.now() // COARSE_SECONDS * COARSE_SECONDS + COARSE_SECONDS
        network.clock.advance(start - self.now())
        years = 10 * 365 * 86_400
        with patch.object(kept, "_wall", lambda: wall() + years):
            with patch.object(history, "join_stretches", wraps=join_stretches) as joined:
                network.run(kept._roll_up())
            self.assertLess(joined.call_count, 10)
        self.fill(20)
        network.clock.advance(start + 3600 + 500 - self.now())
        network.flush()
        self.assertEqual(network.run(store.read(newest_stretch, COARSE_SECONDS)), start)

    def test_a_stop_loses_nothing(self) -> None:
        """What was in memory at a stop is there at the next start; of two halves the longer."""
        start = self.now() // FINE_SECONDS * FINE_SECONDS + FINE_SECONDS
        self.deployment.network.clock.advance(start - self.now())
        self.fill(3)
        self.deployment.stop()
        self.deployment.start()
        self.beat(cpu=100.0)
        self.deployment.network.clock.advance(600)
        self.deployment.network.flush()
        self.token = self.deployment.login()
        (curve,) = self.curve("AgentCpuMetrics", start, start + 300)["MetricDataResults"]
        self.assertEqual([each["Value"] for each in curve["DataPoints"]], [0.25])

    def test_nothing_known(self) -> None:
        """An unknown host, and times of which nothing is known, have empty curves."""
        for start, end in ((0, 10), (self.now(), self.now() + 100), (10, 5), (0, 1 << 40)):
            (curve,) = self.curve("AgentCpuMetrics", start, end)["MetricDataResults"]
            self.assertEqual(curve["DataPoints"], [])

    def test_refused(self) -> None:
        """All parameters are needed, in range."""
        good = {"AgentID": "a1", "StartTime": "0", "EndTime": "1", "Period": "60"}
        for key in good:
            for value in (None, "", "-1", "x"):
                if key == "AgentID" and value not in (None, ""):
                    continue
                asked = {**good, key: value}
                query = "&".join(f"{k}={v}" for k, v in asked.items() if v is not None)
                got = self.get(f"/api/v6/monitor/AgentCpuMetrics?{query}")
                self.assertEqual((got.status, got.json["code"]), (400, 5), query)

    def test_levels(self) -> None:
        """Every user; nobody without a token."""
        query = "AgentID=a1&StartTime=0&EndTime=1&Period=60"
        names = ("Cpu", "Memory", "Disk", "DiskUsage", "Net")
        paths = [f"/api/v6/monitor/Agent{name}Metrics?{query}" for name in names]
        paths += ["/api/v6/license/info", "/api/v6/license/detail"]
        for level in range(9):
            token = self.deployment.add_user(f"user{level}", level)
            for path in paths:
                self.assertEqual(self.deployment.call("GET", path, token=token).status, 200)
        for path in paths:
            self.assertEqual(self.deployment.call("GET", path).status, 401)

    def test_a_failing_database(self) -> None:
        """Figures that cannot be written are lost; later ones are not."""
        start = self.now() // FINE_SECONDS * FINE_SECONDS + FINE_SECONDS
        self.deployment.network.clock.advance(start - self.now())
        self.fill(5)
        with patch.object(history, "keep_rollups", side_effect=ValueError("a bug")):
            self.fill(3)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.fill(6)
        (curve,) = self.curve("AgentCpuMetrics", start, start + 900)["MetricDataResults"]
        self.assertEqual([each["Timestamp"] for each in curve["DataPoints"]], [start + 300])

    def rounds(self, count: int) -> None:
        """Let so many rounds pass."""
        self.deployment.network.advance(count * history.PACE_SECONDS, step=5)

    def test_an_outage_is_told_once(self) -> None:
        """While the database is away the log has one line of it, and one when it is back."""
        told: list[str] = []

        def keep(event: Any) -> None:
            if event["log_namespace"].startswith("elkeid.") and "histories" in formatEvent(event):
                told.append(event["log_level"].name)

        globalLogPublisher.addObserver(keep)
        self.addCleanup(globalLogPublisher.removeObserver, keep)
        store, kept = self.deployment.manager.store, self.deployment.manager.hosts.history
        self.fill(5)
        kept._hour = None  # as after a start: each round asks where hours are rolled up to
        store._open = False
        self.rounds(10)
        self.assertEqual(told, ["warn"])
        store._open = True
        self.rounds(3)
        self.assertEqual(told, ["warn", "info"])

    def test_a_round_without_work_ends_no_outage(self) -> None:
        """What was not asked for cannot have worked."""
        store, kept = self.deployment.manager.store, self.deployment.manager.hosts.history
        store._open = False
        kept._hour = None
        self.rounds(1)
        self.assertEqual(kept._outage.failures, 1)
        kept._hour = self.now()
        self.rounds(3)
        self.assertEqual(kept._outage.failures, 1)
        store._open = True


class LicenseTests(HistoryCase):
    """``/api/v6/license``."""

    def test_info(self) -> None:
        """Everything may be used."""
        modules = ("hub", "trace", "k8s", "rule", "rasp")
        self.assertEqual(
            self.get("/api/v6/license/info").data,
            {"company_name": "Elkeid Open Source", "status": dict.fromkeys(modules, True)},
        )
        each = {
            "status": "activated",
            "expire_time": self.now() + 99_999,
            "all_cores": 200,
            "used_cores": 0,
        }
        self.assertEqual(self.get("/api/v6/license/detail").data, dict.fromkeys(modules, each))
