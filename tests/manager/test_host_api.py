"""Hosts as consoles list and show them."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.web.memory import NOW

from .deployment import Deployment

V6 = "/api/v6/asset-center"

NONE_FOUND = {"critical": 0, "high": 0, "medium": 0, "low": 0}


class HostCase(SynchronousTestCase):
    """A Manager with one AC and a user who is logged in."""

    def setUp(self) -> None:
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)
        self.token = self.deployment.login()
        self.ac = self.deployment.ac()

    def post(self, path: str, body: Any) -> Any:
        """A whole answer."""
        return self.deployment.call("POST", V6 + path, body, token=self.token)

    def get(self, path: str) -> Any:
        """A whole answer."""
        return self.deployment.call("GET", V6 + path, token=self.token)


class ListTests(HostCase):
    """``DescribeHosts``."""

    def test_item(self) -> None:
        """The fields that consoles know, and a page beside them."""
        self.ac.beat(
            "a1",
            idc="b",
            platform="debian",
            cpu=0.25,
            rss=41_000_000.0,
            intranet_ipv4=["10.0.0.1"],
            state_detail="[]",
        )
        self.deployment.network.advance(3)
        got = self.post("/DescribeHosts?page_size=10", {})
        self.assertEqual(
            got.json,
            {
                "code": 0,
                "msg": "success",
                "data": [
                    {
                        "agent_id": "a1",
                        "hostname": "host-a1",
                        "extranet_ipv4": [],
                        "extranet_ipv6": [],
                        "intranet_ipv4": ["10.0.0.1"],
                        "intranet_ipv6": [],
                        "idc": "b",
                        "platform": "debian",
                        "tags": [],
                        "status": "running",
                        "state_detail": "[]",
                        "cpu": 0.25,
                        "memory": 41_000_000,
                        "first_heartbeat_time": NOW + 3,
                        "last_heartbeat_time": NOW + 3,
                        "risk": {
                            "vuln": 0,
                            "alarm": 0,
                            "baseline": 0,
                            "event": 0,
                            "rasp_alarm": 0,
                            "virus": 0,
                        },
                    }
                ],
                "page_info": {"total": 1, "page": 1, "page_size": 10},
            },
        )

    def test_conditions(self) -> None:
        """Those that meet all conditions, in pages by id; nobody gives an empty list."""
        for number in range(7):
            self.ac.beat(f"a{number}", hostname=f"{'web' if number % 2 else 'db'}-{number}")
        self.ac.beat("b", NOW - 700, hostname="web-old")
        self.deployment.network.advance(3)
        got = self.post("/DescribeHosts?page=2&page_size=2", {"hostname": "web-"}).json
        self.assertEqual([each["agent_id"] for each in got["data"]], ["a5", "b"])
        self.assertEqual(got["page_info"], {"total": 4, "page": 2, "page_size": 2})
        got = self.post("/DescribeHosts", {"hostname": "web-", "status": ["offline"]}).json
        self.assertEqual([each["status"] for each in got["data"]], ["offline"])
        got = self.post("/DescribeHosts", {"status": ["uninstall"]}).json
        self.assertEqual((got["data"], got["page_info"]["total"]), ([], 0))

    def test_what_agents_choose(self) -> None:
        """A field of a type that nobody expects does not spoil the page."""
        self.ac.beat(
            "a1", idc=5, platform=7, cpu="much", rss=[1], intranet_ipv4="x", state_detail={}
        )
        self.ac.beat("a2", platform="debian")
        self.deployment.network.advance(3)
        first, second = self.post("/DescribeHosts", {}).json["data"]
        self.assertEqual((first["idc"], first["platform"]), ("5", "7"))
        self.assertEqual((first["cpu"], first["memory"], first["intranet_ipv4"]), (0, 0, []))
        self.assertEqual(second["platform"], "debian")

    def test_refused(self) -> None:
        """Bodies and pages that break their schema are code 5."""
        for path, body in [
            ("/DescribeHosts", b""),
            ("/DescribeHosts", []),
            ("/DescribeHosts", {"hostname": 5}),
            ("/DescribeHosts", {"status": ["dead"]}),
            ("/DescribeHosts", {"tags": "x"}),
            ("/DescribeHosts?page=0", {}),
            ("/DescribeHosts?page_size=5001", {}),
        ]:
            got = self.post(path, body)
            self.assertEqual((got.status, got.json["code"]), (400, 5), (path, body))


class DetailTests(HostCase):
    """``DescribeHostDetail``."""

    def test_detail(self) -> None:
        """All that is known of a host; a silent plugin has exited."""
        self.ac.beat(
            "a1",
            kernel_version="5.10",
            boot_time=NOW - 100,
            load_1=0.5,
            nproc=8,
            total_mem=1 << 34,
            plugins=[
                {
                    "name": "driver",
                    "pversion": "1.0",
                    "cpu": 0.5,
                    "rss": 9,
                    "last_heartbeat_time": NOW,
                },
                {"name": "scanner", "last_heartbeat_time": NOW - 1000},
                {"name": "rasp", "last_heartbeat_time": NOW, "status": "exited"},
            ],
        )
        self.deployment.network.advance(3)
        found = self.get("/DescribeHostDetail?agent_id=a1").data
        self.assertEqual(
            (found["kernel_version"], found["boot_at"], found["boot_time"], found["nproc"]),
            ("5.10", NOW - 100, NOW - 100, 8),
        )
        self.assertEqual(
            [(each["name"], each["status"]) for each in found["plugins"]],
            [("driver", "running"), ("scanner", "exited"), ("rasp", "exited")],
        )
        self.assertEqual(found["plugins"][0]["memory"], 9)
        for key in ("alarm", "rasp_alarm", "virus", "vuln", "event", "rasp_event"):
            self.assertEqual(found[key], NONE_FOUND)
        self.assertEqual(found["baseline"], {"high": 0, "medium": 0, "low": 0, "pass": 0})

    def test_refused(self) -> None:
        """No id is code 5, one that nobody has reported code 3."""
        for query in ("", "?agent_id="):
            got = self.get("/DescribeHostDetail" + query)
            self.assertEqual((got.status, got.json["code"]), (400, 5))
        got = self.get("/DescribeHostDetail?agent_id=nobody")
        self.assertEqual((got.status, got.json["code"]), (200, 3))


class AccessTests(HostCase):
    """Who may look."""

    def test_levels(self) -> None:
        """Those who look after hosts, alarms or risks."""
        self.ac.beat("a1")
        self.deployment.network.advance(3)
        routes = [("POST", "/DescribeHosts", {}), ("GET", "/DescribeHostDetail?agent_id=a1", None)]
        for method, path, body in routes:
            self.assertEqual(self.deployment.call(method, V6 + path, body).status, 401)
        for level in range(9):
            token = self.deployment.add_user(f"user{level}", level)
            for method, path, body in routes:
                got = self.deployment.call(method, V6 + path, body, token=token)
                self.assertEqual(got.status, 403 if level in (4, 5) else 200, (level, path))
