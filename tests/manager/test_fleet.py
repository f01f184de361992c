"""The fleet in numbers, what there is among hosts, protection as it is shown, retired hosts."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager.figures import FINE_SECONDS
from elkeid.manager.overview import COUNT_SECONDS, Fleet
from elkeid.manager.store.fleet import HostCounts
from elkeid.manager.store.store import StoreBusy
from tests.web.memory import NOW

from .deployment import Deployment

V6 = "/api/v6/asset-center"
FILTER = "/api/v1/agent/getStatus/filter"


class FleetCase(SynchronousTestCase):
    """A Manager with a few hosts."""

    def setUp(self) -> None:
        self.deployment = Deployment(token_seconds=86_400 * 20).start()
        self.addCleanup(self.deployment.end)
        self.token = self.deployment.login()
        self.ac = self.deployment.ac()

    def get(self, path: str) -> Any:
        """``data`` of a success."""
        return self.deployment.call("GET", path, token=self.token).data

    def post(self, path: str, body: Any) -> Any:
        """``data`` of a success."""
        return self.deployment.call("POST", path, body, token=self.token).data

    def beat(self, agent_id: str, kernel: int | None = 0, **info: Any) -> None:
        """A host beats, its last kernel event some seconds ago, or it never had one."""
        now = int(self.deployment.network.wall())
        data_types = {"1000": {"count": 1, "last_seen": now}}
        if kernel is not None:
            data_types["59"] = {"count": 1, "last_seen": now - kernel}
        plugins = [{"name": "driver", "last_heartbeat_time": now}] if kernel != 0 else []
        info = {"create_at": NOW, "data_types": data_types, "plugins": plugins} | info
        self.ac.beat(agent_id, **info)

    def fill(self) -> None:
        """One host of each kind."""
        self.beat("full", platform="debian", idc="b", kernel_version="5.10", cpu=0.5, rss=100)
        self.beat("quiet", 1000, platform="rhel", idc="a", kernel_version="4.1", state="abnormal")
        self.beat("bare", None, platform="debian", plugins=[], cpu=0.25, rss=300)
        self.beat("old", last_heartbeat_time=NOW - 1000, idc="")
        self.deployment.network.advance(8)


class ProtectionTests(FleetCase):
    """Protection, as operators see it."""

    def test_shown(self) -> None:
        """With its reason, and since when."""
        self.fill()
        shown = {
            each["agent_id"]: (each["protection"], each["protection_reason"])
            for each in self.deployment.status(self.token)["items"]
        }
        self.assertEqual(
            shown,
            {
                "full": ("full", "kernel_events"),
                "quiet": ("no_kernel_events", "driver_silent"),
                "bare": ("heartbeat_only", "no_plugins"),
                "old": ("none", "silent"),
            },
        )
        self.assertEqual(self.deployment.agent(self.token, "full")["protection_since"], NOW + 3)

    def test_hosts_do_not_say_so_themselves(self) -> None:
        """What an agent calls its protection is not believed."""
        self.beat("liar", None, plugins=[], protection="full", retired_at=5)
        self.deployment.network.advance(3)
        found = self.deployment.agent(self.token, "liar")
        self.assertEqual(found["protection"], "heartbeat_only")
        self.assertNotIn("retired_at", found)

    def test_filter(self) -> None:
        """Hosts can be asked for by it."""
        self.fill()
        for operator, value, expected in [
            ("$eq", "full", ["full"]),
            ("$ne", "full", ["bare", "old", "quiet"]),
            ("$in", ["none", "heartbeat_only"], ["old", "bare"]),
        ]:
            rules = [{"operator": operator, "value": value}]
            body = {"filter": [{"key": "protection", "condition": "$and", "rules": rules}]}
            found = self.post(FILTER, body)
            self.assertEqual([each["agent_id"] for each in found["items"]], expected, value)


class NumberTests(FleetCase):
    """Statistics and overviews."""

    def test_statistics(self) -> None:
        """Hosts by state and protection."""
        self.fill()
        found = self.get(f"{V6}/DescribeHostStatistics")
        self.assertLessEqual(abs(found.pop("update_time") - self.deployment.network.wall()), 3)
        self.assertEqual(
            found,
            {
                "total": 4,
                "running": 2,
                "abnormal": 1,
                "offline": 1,
                "uninstalled": 0,
                "protection": {
                    "full": 1,
                    "no_kernel_events": 1,
                    "heartbeat_only": 1,
                    "none": 1,
                },
                "vulnerable": 0,
                "baseline": 0,
                "alerted": 0,
            },
        )
        asset = self.get("/api/v6/overview/DescribeAsset")
        del asset["update_time"]
        expected = {"host": 4, "cluster": 0, "container": 0, "injected_process": 0}
        self.assertEqual(asset, expected)

    def test_values(self) -> None:
        """Each value once, sorted; empty ones are left out."""
        self.fill()
        self.assertEqual(self.get(f"{V6}/DescribePlatform"), ["debian", "rhel"])
        self.assertEqual(self.get(f"{V6}/DescribeIDC"), ["a", "b"])
        self.assertEqual(self.get(f"{V6}/DescribeKernelVersion"), ["4.1", "5.10"])

    def test_nothing_yet(self) -> None:
        """Without hosts everything is 0 and empty."""
        self.assertEqual(self.get(f"{V6}/DescribePlatform"), [])
        self.assertEqual(self.get(f"{V6}/DescribeHostStatistics")["total"], 0)
        found = self.get("/api/v6/overview/DescribeAgent")
        del found["update_time"]
        self.assertEqual(set(found.values()), {0})

    def test_agents(self) -> None:
        """What agents take, and how it differs from a day ago."""
        self.fill()
        self.deployment.network.clock.advance(FINE_SECONDS + 60)
        self.deployment.network.flush()
        found = self.get("/api/v6/overview/DescribeAgent")
        self.assertEqual((found["cpu"], found["memory"]), (0.375, 200))
        self.assertEqual((found["running"], found["offline"]), (2, 1))
        self.assertEqual((found["running_diff"], found["cpu_diff"]), (0, 0))
        for _ in range(2):
            self.deployment.network.clock.advance(43_200)
            self.deployment.network.flush()
        self.beat("full", cpu=1.375, rss=100)
        self.deployment.network.advance(8)
        self.deployment.network.clock.advance(FINE_SECONDS + 60)
        self.deployment.network.flush()
        found = self.get("/api/v6/overview/DescribeAgent")
        self.assertEqual((found["running"], found["offline"]), (1, 3))
        self.assertEqual((found["running_diff"], found["offline_diff"]), (-1, 2))
        self.assertEqual((found["cpu_diff"], found["memory_diff"]), (1, -100))


class RetiredTests(FleetCase):
    """``RetireHosts`` and ``RestoreHosts``."""

    def setUp(self) -> None:
        super().setUp()
        self.beat("a1", hostname="web-1")
        self.beat("a2", hostname="web-2")
        self.deployment.network.advance(3)
        self.ac.lose("a1")
        self.deployment.network.advance(3)

    def shown(self, body: Any) -> list[tuple[str, str]]:
        """Hosts by these conditions, and their status."""
        return [(e["agent_id"], e["status"]) for e in self.post(f"{V6}/DescribeHosts", body)]

    def test_retire(self) -> None:
        """A host that is gone counts nowhere and is listed only when it is asked for."""
        answer = self.post(f"{V6}/RetireHosts", {"conditions": {"hostname": "web-"}})
        self.assertEqual(answer, {"count": 1, "connected": 1})
        self.assertEqual(self.shown({}), [("a2", "running")])
        self.assertEqual(self.shown({"status": ["uninstall"]}), [("a1", "uninstall")])
        found = self.deployment.agent(self.token, "a1")
        self.assertEqual(
            (found["agent_state"], found["protection"], found["protection_reason"]),
            ("uninstalled", "none", "retired"),
        )
        self.assertEqual(found["retired_at"], int(self.deployment.network.wall()))
        self.assertEqual(self.post(f"{V6}/RetireHosts", {"id_list": ["a1"]})["count"], 0)
        counts = self.get(f"{V6}/DescribeHostStatistics")
        self.assertEqual((counts["total"], counts["uninstalled"]), (1, 1))
        self.assertEqual(self.events("a1"), ["retired", "disconnected", "connected"])

    def events(self, agent_id: str) -> list[str]:
        """A host's history in short, the latest first."""
        page = self.get(f"/api/v1/agent/getHistory/{agent_id}")
        return [each["kind"] for each in page["items"]]

    def test_restore(self) -> None:
        """What was done is undone."""
        self.post(f"{V6}/RetireHosts", {"id_list": ["a1"]})
        body = {"conditions": {"status": ["uninstall"]}}
        self.assertEqual(self.post(f"{V6}/RestoreHosts", body), {"count": 1})
        self.assertEqual(self.post(f"{V6}/RestoreHosts", {"id_list": ["a1", "a2"]}), {"count": 0})
        self.assertEqual(self.shown({})[0][0], "a1")
        self.assertNotIn("retired_at", self.deployment.agent(self.token, "a1"))
        self.assertEqual(self.events("a1")[0], "returned")

    def test_it_returns_by_itself(self) -> None:
        """A host that is heard again is there again."""
        self.post(f"{V6}/RetireHosts", {"id_list": ["a1"]})
        self.deployment.network.advance(10)
        self.beat("a1", create_at=NOW + 10)
        self.deployment.network.advance(3)
        found = self.deployment.agent(self.token, "a1")
        self.assertEqual((found["agent_state"], found["protection"]), ("running", "full"))
        self.assertNotIn("retired_at", found)
        self.assertEqual(self.events("a1")[:2], ["connected", "returned"])

    def test_an_empty_selection_retires_nobody(self) -> None:
        """As with every change."""
        for body in ({"id_list": []}, {"conditions": {}}):
            answer = self.post(f"{V6}/RetireHosts", body)
            self.assertEqual(answer, {"count": 0, "connected": 0})
            self.assertEqual(self.post(f"{V6}/RestoreHosts", body), {"count": 0})


class CountingTests(SynchronousTestCase):
    """`Fleet` counts no more than it must."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[HostCounts]] = []
        self.fleet = Fleet(self, lambda: NOW, self.clock)  # type: ignore[arg-type]

    async def read(self, query: Any, *arguments: Any) -> HostCounts:
        """Stands where the store is."""
        self.asked.append(Deferred())
        return await self.asked[-1]

    def ask(self) -> "Deferred[HostCounts]":
        """Somebody asks."""
        return Deferred.fromCoroutine(self.fleet.counts())

    def test_together(self) -> None:
        """Who asks while it is counted gets the same numbers, the first ones or those of before."""
        first, second = self.ask(), self.ask()
        self.assertEqual(len(self.asked), 1)
        self.asked[0].callback(HostCounts(1))
        self.assertEqual(self.successResultOf(first).at, 1)
        self.assertEqual(self.successResultOf(second).at, 1)
        self.assertEqual(self.successResultOf(self.ask()).at, 1)
        self.clock.advance(COUNT_SECONDS)
        third, fourth = self.ask(), self.ask()
        self.assertEqual(self.successResultOf(fourth).at, 1)
        self.asked[1].callback(HostCounts(2))
        self.assertEqual(self.successResultOf(third).at, 2)

    def test_slow_counts(self) -> None:
        """The longer it takes the longer it holds."""
        first = self.ask()
        self.clock.advance(2.0)
        self.asked[0].callback(HostCounts(1))
        self.successResultOf(first)
        self.clock.advance(39.0)
        self.successResultOf(self.ask())
        self.clock.advance(1.0)
        self.assertNoResult(self.ask())

    def test_failures(self) -> None:
        """Everybody who waits hears of it, and the next one counts again."""
        waiting = [self.ask(), self.ask()]
        self.asked[0].errback(StoreBusy("busy"))
        for each in waiting:
            self.failureResultOf(each, StoreBusy)
        again = self.ask()
        self.asked[1].callback(HostCounts(1))
        self.successResultOf(again)
