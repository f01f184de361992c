"""``getStatus``: pages, one agent, filters."""

import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from elkeid import __version__
from tests.web.memory import NOW

from .deployment import Deployment, ScriptedAc

FILTER = "/api/v1/agent/getStatus/filter"


def one(key: str, operator: str, value: Any) -> dict[str, Any]:
    """A filter of one rule."""
    rules = [{"operator": operator, "value": value}]
    return {"filter": [{"key": key, "condition": "$and", "rules": rules}]}


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)
        self.call = self.deployment.call
        self.token = self.deployment.login()
        self.ac: ScriptedAc = self.deployment.ac()

    def fill(self, count: int) -> None:
        """Let agents a-000, a-001, ... beat, and the Manager hear of them."""
        for number in range(count):
            self.ac.beat(f"a-{number:03}", cpu=number / 8, nproc=number % 3)
        self.deployment.network.advance(3)


class PageTests(_Case):
    def test_no_agents(self) -> None:
        """An empty page has a list, not null."""
        self.assertEqual(
            self.deployment.status(self.token),
            {
                "total": 0,
                "count": 0,
                "pages": 0,
                "page": 1,
                "page_size": 100,
                "has_prev": False,
                "has_next": False,
                "items": [],
            },
        )

    def test_pages_in_order(self) -> None:
        """Pages follow each other by agent id and cover everybody once."""
        self.fill(25)
        seen: list[str] = []
        for page in (1, 2, 3, 4):
            got = self.deployment.status(self.token, f"?page={page}&page_size=10")
            seen += [item["agent_id"] for item in got["items"]]
            expected = {1: (10, False, True), 2: (10, True, True), 3: (5, True, False)}
            self.assertEqual(
                (got["count"], got["has_prev"], got["has_next"]),
                expected.get(page, (0, True, False)),
            )
            self.assertEqual((got["total"], got["pages"], got["page_size"]), (25, 3, 10))
        self.assertEqual(seen, [f"a-{number:03}" for number in range(25)])

    def test_far_pages_are_empty(self) -> None:
        """A page beyond the end is no error, however far."""
        self.fill(3)
        got = self.deployment.status(self.token, f"?page={1 << 53}&page_size=5000")
        self.assertEqual((got["items"], got["total"], got["has_prev"]), ([], 3, True))

    def test_page_parameters(self) -> None:
        """What is no page is 400 with code 5 and the parameter's name, as JSON."""
        bad = [
            *((f"page={value}", "page") for value in ("0", "-1", "", "1.0", "1e2", "x", "true")),
            *((f"page_size={value}", "page_size") for value in ("0", "5001", "-5", "", "1.5")),
            ("order_value=x", "order_value"),
            (f"page={10**40}", "page"),
        ]
        for path, method, body in [
            ("/api/v1/agent/getStatus", "GET", None),
            (FILTER, "POST", {}),
        ]:
            for query, name in bad:
                got = self.call(method, f"{path}?{query}", body, token=self.token)
                self.assertEqual((got.status, got.json["code"]), (400, 5), query)
                self.assertTrue(got.json["data"].startswith(f"{name}: "), got.json)
                self.assertEqual(got.headers["content-type"], "application/json; charset=utf-8")
            good = "page=1&page_size=5000&order_key=x&order_value=-1&unknown=1"
            self.assertEqual(
                self.call(method, f"{path}?{good}", body, token=self.token).status, 200
            )

    def test_one_agent(self) -> None:
        """The whole document of an agent, with what the Manager adds."""
        self.ac.beat(
            "a-1",
            NOW,
            cpu=0.25,
            kernel_version=5.1,
            intranet_ipv4=["10.1.2.3"],
            extranet_ipv4=[],
            plugins=[{"name": "driver", "pversion": "1.0", "last_heartbeat_time": NOW}],
        )
        self.deployment.network.advance(3)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW))
        found = self.deployment.agent(self.token, "a-1")
        self.assertRegex(found.pop("_id"), r"\A[0-9a-f]{24}\Z")
        self.assertEqual(
            found,
            {
                "agent_id": "a-1",
                "agent_state": "running",
                "connected": True,
                "cpu": 0.25,
                "extranet_ipv4": [],
                "first_heartbeat_time": NOW,
                "first_heartbeat_time_format": stamp,
                "hostname": "host-a-1",
                "intranet_ipv4": ["10.1.2.3"],
                "kernel_version": "5.1",
                "last_heartbeat_time": NOW,
                "last_heartbeat_time_format": stamp,
                "plugins": [{"name": "driver", "pversion": "1.0", "last_heartbeat_time": NOW}],
                "protection": "full",
                "protection_reason": "driver_runs",
                "protection_since": NOW,
                "source_ip": "127.0.0.1",
                "source_port": 6752,
                "state": "running",
                "tags": [],
            },
        )

    def test_unknown_agent(self) -> None:
        """An agent never reported is code 3, with a text."""
        for agent_id in ("nobody", "%00", "a%2Fb", "%C3%A9", "x" * 5000):
            got = self.call("GET", f"/api/v1/agent/getStatus/{agent_id}", token=self.token)
            if got.status == 404:
                continue  # a slash within makes another path
            self.assertEqual((got.status, got.json["code"]), (200, 3), agent_id)
            self.assertIsInstance(got.json["data"], str)

    def test_agent_cannot_claim_the_managers_fields(self) -> None:
        """An agent that reports tags, states or sources of its own is not believed."""
        self.ac.beat("a-1", tags=["vip"], agent_state="offline", connected=False, source_ip="x")
        self.deployment.network.advance(3)
        found = self.deployment.agent(self.token, "a-1")
        self.assertEqual(
            (found["tags"], found["agent_state"], found["connected"], found["source_ip"]),
            ([], "running", True, "127.0.0.1"),
        )


class StateTests(_Case):
    def test_states(self) -> None:
        """Running or abnormal while it beats, offline after ten minutes of silence."""
        self.ac.beat("good")
        self.ac.beat("bad", state="abnormal")
        self.ac.beat("old", NOW - 600)
        self.deployment.network.advance(5)

        def states() -> dict[str, str]:
            items = self.deployment.status(self.token)["items"]
            return {item["agent_id"]: item["agent_state"] for item in items}

        self.assertEqual(states(), {"good": "running", "bad": "abnormal", "old": "offline"})
        self.deployment.network.clock.advance(601)
        self.assertEqual(set(states().values()), {"offline"})

    def test_state_filter(self) -> None:
        """States computed on reading can be asked for."""
        self.ac.beat("good")
        self.ac.beat("old", NOW - 700)
        self.deployment.network.advance(3)
        body = one("agent_state", "$eq", "offline")
        found = self.call("POST", FILTER, body, token=self.token).data
        self.assertEqual([item["agent_id"] for item in found["items"]], ["old"])


class FilterTests(_Case):
    def test_filter_with_pages(self) -> None:
        """A filter's total counts what matches, and pages go through that."""
        self.fill(20)
        body = one("nproc", "$eq", 1)
        got = self.call("POST", f"{FILTER}?page=2&page_size=5", body, token=self.token).data
        self.assertEqual((got["total"], got["count"], got["pages"]), (7, 2, 2))
        self.assertEqual([item["agent_id"] for item in got["items"]], ["a-016", "a-019"])

    def test_everything(self) -> None:
        """An empty filter, in each of its spellings, lists everybody."""
        self.fill(3)
        for body in (b"{}", b"null", b'{"filter":[]}', b'{"filter":null}', b' {"x":1} '):
            got = self.call("POST", FILTER, body, token=self.token, content_type=None)
            self.assertEqual(got.data["total"], 3, body)

    def test_refused_filters(self) -> None:
        """What is no filter is 400 with code 5 and the place of the fault."""
        bad: list[tuple[Any, str]] = [
            (b"", "body"),
            (b"[]", "body"),
            (b"{", "body"),
            ({"condition": ""}, "condition"),
            ({"filter": [{"key": "a", "condition": "$and", "rules": None}]}, "filter[0].rules"),
            (one("a", "$exists", 1), "filter[0].rules[0].operator"),
            (one("$expr", "$eq", 1), "filter[0].key"),
            (one("a", "$eq", None), "filter[0].rules[0].value"),
            (one("a", "$regex", "(?<=x)"), "filter[0].rules[0].value"),
            (one("a", "$time", 5), "filter[0].rules[0].value"),
        ]
        for body, place in bad:
            got = self.call("POST", FILTER, body, token=self.token)
            self.assertEqual((got.status, got.json["code"]), (400, 5), body)
            self.assertTrue(got.json["data"].startswith(f"{place}: "), got.json)

    def test_example_of_the_console(self) -> None:
        """Blocks, rules and words as consoles send them."""
        self.ac.beat("1", hostname="web-1")
        self.ac.beat("2", hostname="db-1")
        self.ac.beat("3", hostname="db-2")
        self.deployment.network.advance(3)
        body = {
            "condition": "$and",
            "filter": [
                {
                    "key": "hostname",
                    "condition": "$or",
                    "rules": [
                        {"operator": "$regex", "value": "^web-"},
                        {"operator": "$eq", "value": "db-1"},
                    ],
                }
            ],
        }
        found = self.call("POST", FILTER, body, token=self.token).data
        self.assertEqual([item["agent_id"] for item in found["items"]], ["1", "2"])


class CommonTests(_Case):
    def test_ping(self) -> None:
        """Upstream's version object, without a token."""
        self.assertEqual(
            self.call("GET", "/ping").json,
            {"commit": "", "build": "", "version": __version__, "ci": ""},
        )

    def test_unknown_paths(self) -> None:
        """What is not there is 404 in JSON, with or without a token."""
        for method, path in [
            ("GET", "/"),
            ("GET", "/api/v1/nothing"),
            ("DELETE", "/api/v1/user/login"),
            ("GET", "/api/v1/user/login"),
            ("POST", "/api/v1/agent/getStatus"),
            ("GET", "/api/v1/agent/getStatus/a/b"),
        ]:
            got = self.call(method, path, token=self.token)
            self.assertEqual((got.status, got.json["code"]), (404, 10), path)

    def test_trailing_slash(self) -> None:
        """Both spellings of a path are served."""
        self.assertEqual(
            self.call("GET", "/api/v1/agent/getStatus/", token=self.token).data["total"], 0
        )

    def test_ready(self) -> None:
        """Ready once ServiceDiscovery and an AgentCenter answer; else it says what is wrong."""
        self.assertEqual(self.call("GET", "/ready").json, {"ready": True})
        self.ac.down()
        self.deployment.network.advance(25)
        got = self.call("GET", "/ready")
        self.assertEqual(got.status, 503)
        (reason,) = got.json["reasons"]
        self.assertEqual(reason, "1 of 1 AgentCenters cannot be polled, the log says which and why")

    def test_metrics(self) -> None:
        """Figures of what was polled and answered."""
        self.fill(4)
        text = self.call("GET", "/metrics").text.decode()
        for line in (
            "elkeid_manager_agents 4.0",
            'elkeid_manager_reports_total{outcome="added"} 4.0',
            'elkeid_manager_logins_total{outcome="done"} 1.0',
            'elkeid_manager_answers_total{path="/api/v1/user/login",status="200"} 1.0',
            'elkeid_manager_clock_skew_seconds{ac="127.0.0.1:6752"}',
        ):
            self.assertIn(line, text)
