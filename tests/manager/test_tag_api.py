"""Tags: given, taken, replaced, listed, by both generations of the API; gateways hear of it."""

from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager import hosts
from elkeid.manager.store.tags import TAGS_PER_HOST

from .deployment import Deployment

V1 = "/api/v1/agent"
V6 = "/api/v6/asset-center"


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)
        self.token = self.deployment.login()
        self.ac = self.deployment.ac()
        self.ac.beat("a1", hostname="web-1", intranet_ipv4=["10.0.0.1"])
        self.ac.beat("a2", hostname="web-2", extranet_ipv4=["192.0.2.2"])
        self.ac.beat("a3", hostname="db-1", intranet_ipv6=["fd00::3"], extranet_ipv6=["fd00::9"])
        self.deployment.network.advance(3)

    def post(self, path: str, body: Any) -> Any:
        """A whole answer."""
        return self.deployment.call("POST", path, body, token=self.token)

    def ok(self, path: str, body: Any) -> Any:
        """``data`` of a success."""
        return self.post(path, body).data

    def get(self, path: str) -> Any:
        """``data`` of a success."""
        return self.deployment.call("GET", path, token=self.token).data

    def tags(self) -> dict[str, str]:
        """Everybody's."""
        data: dict[str, str] = self.ok(f"{V1}/getTags", {"id_list": ["a1", "a2", "a3", "nobody"]})
        return data


class V1Tests(_Case):
    """Routes of the first generation."""

    def test_by_lists(self) -> None:
        """Ids and addresses of every kind name hosts; unknown ones are passed over."""
        body = {
            "tag": "x",
            "id_list": ["a1", "nobody"],
            "ipv4_list": ["192.0.2.2"],
            "ipv6_list": ["fd00::9"],
        }
        self.assertIsNone(self.ok(f"{V1}/addTags", body))
        self.assertIsNone(self.ok(f"{V1}/addTags", body))
        self.assertEqual(self.tags(), {"a1": "x", "a2": "x", "a3": "x"})
        self.ok(f"{V1}/addTags", {"tag": "b", "ipv6_list": ["fd00::3"]})
        self.assertIsNone(self.ok(f"{V1}/delTags", {"tag": "x", "ipv4_list": ["10.0.0.1"]}))
        self.assertEqual(self.tags(), {"a1": "", "a2": "x", "a3": "b,x"})
        self.assertEqual(self.get(f"{V1}/getTags"), ["b", "x"])
        self.assertEqual(self.get(f"{V6}/DescribeTags"), ["b", "x"])
        self.assertEqual(self.deployment.agent(self.token, "a3")["tags"], ["b", "x"])

    def test_ways_in_slices(self) -> None:
        """Hosts named in several ways are gone through once, however small the steps."""
        body = {"tag": "x", "id_list": ["a1"], "ipv4_list": ["192.0.2.2"], "ipv6_list": ["fd00::3"]}
        with patch.object(hosts, "HOSTS_PER_SLICE", 1):
            self.ok(f"{V1}/addTags", body)
        self.assertEqual(self.tags(), {"a1": "x", "a2": "x", "a3": "x"})

    def test_nobody(self) -> None:
        """A tag without hosts changes none; without tags the lists are empty."""
        self.ok(f"{V1}/addTags", {"tag": "x"})
        self.ok(f"{V1}/addTags", {"tag": "x", "id_list": [], "ipv4_list": []})
        self.assertEqual(self.get(f"{V1}/getTags"), [])
        self.assertEqual(self.ok(f"{V1}/getTags", {"id_list": []}), {})

    def test_by_filter(self) -> None:
        """The count tells who did not have it; everybody must be said."""
        rules = [{"operator": "$regex", "value": "^web-"}]
        body = {"filter": [{"key": "hostname", "condition": "$and", "rules": rules}]}
        self.ok(f"{V1}/addTags", {"tag": "w", "id_list": ["a1"]})
        self.assertEqual(self.ok(f"{V1}/addTags/filter?tag=w", body), {"count": 1})
        self.assertEqual(self.tags(), {"a1": "w", "a2": "w", "a3": ""})
        for empty in ({}, b"null", {"filter": []}):
            got = self.post(f"{V1}/addTags/filter?tag=w", empty)
            self.assertEqual((got.status, got.json["code"]), (400, 5))
        self.assertEqual(self.ok(f"{V1}/addTags/filter?tag=w&all=true", {}), {"count": 1})

    def test_everybody_is_whoever_is_not_retired(self) -> None:
        """Retired hosts are meant by what a filter says of them, and not by ``all``."""
        self.ac.lose("a3")
        self.deployment.network.advance(4)
        self.ok(f"{V6}/RetireHosts", {"id_list": ["a3"]})
        self.assertEqual(self.ok(f"{V1}/addTags/filter?tag=w&all=true", {}), {"count": 2})
        self.assertEqual(self.tags(), {"a1": "w", "a2": "w", "a3": ""})
        rules = [{"operator": "$eq", "value": "uninstalled"}]
        retired = {"filter": [{"key": "agent_state", "condition": "$and", "rules": rules}]}
        self.assertEqual(self.ok(f"{V1}/addTags/filter?tag=w", retired), {"count": 1})

    def test_refused(self) -> None:
        """Bodies and queries that break their schema are code 5."""
        for path, body in [
            ("addTags", {}),
            ("addTags", {"tag": ""}),
            ("addTags", {"tag": 5}),
            ("addTags", {"tag": "x", "id_list": "a1"}),
            ("addTags", {"tag": "x", "id_list": ["a"] * 10_001}),
            ("delTags", {"id_list": ["a1"]}),
            ("addTags/filter", {}),
            ("addTags/filter?tag=", {}),
            ("addTags/filter?tag=x", {"filter": [{"key": "a"}]}),
            ("getTags", {}),
            ("getTags", {"id_list": None}),
        ]:
            got = self.post(f"{V1}/{path}", body)
            self.assertEqual((got.status, got.json["code"]), (400, 5), (path, body))

    def test_names(self) -> None:
        """What would break the form that gateways get is no tag."""
        for tag in ("a,b", "a\nb", "\x00", "\x7f", " a", "a ", "\u2028", "é" * 51, "x" * 101):
            for path, body in [
                (f"{V1}/addTags", {"tag": tag, "id_list": ["a1"]}),
                (f"{V6}/AddTags", {"tags": ["good", tag], "id_list": ["a1"]}),
                (f"{V6}/UpdateTags", {"tags": [tag], "id_list": ["a1"]}),
            ]:
                got = self.post(path, body)
                self.assertEqual((got.status, got.json["code"]), (400, 5), tag)
        self.assertEqual(self.tags()["a1"], "")
        for tag in ("a b", "é" * 50, "x" * 100, "$(id)", "<b>", "'; --"):
            self.ok(f"{V1}/addTags", {"tag": tag, "id_list": ["a1"]})
        self.assertEqual(len(self.get(f"{V1}/getTags")), 6)


class V6Tests(_Case):
    """Routes of the sixth generation."""

    def test_change(self) -> None:
        """Added beside, replaced, taken."""
        self.assertIsNone(
            self.ok(f"{V6}/AddTags", {"tags": ["a", "b"], "conditions": {"hostname": "web-"}})
        )
        self.assertEqual(self.tags(), {"a1": "a,b", "a2": "a,b", "a3": ""})
        self.ok(f"{V6}/UpdateTags", {"tags": ["c", "a"], "id_list": ["a1", "a3"]})
        self.assertEqual(self.tags(), {"a1": "a,c", "a2": "a,b", "a3": "a,c"})
        self.ok(f"{V6}/DeleteTags", {"tags": ["a", "zz"], "conditions": {"tags": ["a"]}})
        self.assertEqual(self.tags(), {"a1": "c", "a2": "b", "a3": "c"})
        self.ok(f"{V6}/UpdateTags", {"tags": [], "id_list": ["a1"]})
        self.assertEqual(self.tags()["a1"], "")
        self.assertEqual(self.get(f"{V6}/DescribeTags"), ["b", "c"])

    def test_an_empty_selection_changes_nobody(self) -> None:
        """A form sent empty does not reach the fleet; ``all`` does."""
        for body in ({"id_list": []}, {"conditions": {}}, {"conditions": {"tags": []}}):
            for route in ("AddTags", "UpdateTags", "DeleteTags"):
                self.ok(f"{V6}/{route}", {"tags": ["x"], **body})
        self.assertEqual(set(self.tags().values()), {""})
        self.ok(f"{V6}/AddTags", {"tags": ["x"], "conditions": {}, "all": True})
        self.assertEqual(set(self.tags().values()), {"x"})

    def test_refused(self) -> None:
        """Bodies that break their schema are code 5."""
        for body in (
            {},
            {"tags": ["x"]},
            {"id_list": ["a1"]},
            {"tags": None, "id_list": ["a1"]},
            {"tags": ["x", "x"], "id_list": ["a1"]},
            {"tags": [1], "id_list": ["a1"]},
            {"tags": [f"t{number}" for number in range(TAGS_PER_HOST + 1)], "id_list": ["a1"]},
            {"tags": ["x"], "conditions": {"status": ["dead"]}},
        ):
            got = self.post(f"{V6}/AddTags", body)
            self.assertEqual((got.status, got.json["code"]), (400, 5), body)

    def test_hosts_have_room_for_so_many(self) -> None:
        """A host with all the tags that it may have gets no more, and the answer says so."""
        many = [f"t{number:02}" for number in range(TAGS_PER_HOST)]
        self.ok(f"{V6}/AddTags", {"tags": many, "id_list": ["a1"]})
        got = self.post(f"{V6}/AddTags", {"tags": ["zz"], "id_list": ["a1", "a2"]})
        self.assertEqual((got.status, got.json["code"]), (200, 15))
        self.assertIn("1 hosts would have more than", got.json["data"])
        self.assertEqual(self.tags(), {"a1": ",".join(many), "a2": "zz", "a3": ""})
        self.ok(f"{V6}/DeleteTags", {"tags": many[:1], "id_list": ["a1"]})
        self.ok(f"{V6}/AddTags", {"tags": ["zz"], "id_list": ["a1"]})

    def test_slices(self) -> None:
        """A change goes through all hosts, some at a time; one for too many is refused whole."""
        with patch.object(hosts, "HOSTS_PER_SLICE", 2):
            self.ok(f"{V6}/AddTags", {"tags": ["x"], "conditions": {}, "all": True})
        self.assertEqual(set(self.tags().values()), {"x"})
        with patch.object(hosts, "HOSTS_PER_CHANGE", 2):
            got = self.post(f"{V6}/AddTags", {"tags": ["y"], "conditions": {}, "all": True})
        self.assertEqual((got.status, got.json["code"]), (200, 15))
        self.assertEqual(set(self.tags().values()), {"x"})


class AccessTests(_Case):
    """Who may change and see tags."""

    def test_levels(self) -> None:
        """Writers change, readers of hosts look, others neither."""
        writing = [
            (f"{V1}/addTags", {"tag": "x"}),
            (f"{V1}/delTags", {"tag": "x"}),
            (f"{V1}/addTags/filter?tag=x&all=1", {}),
            (f"{V6}/AddTags", {"tags": [], "id_list": []}),
            (f"{V6}/UpdateTags", {"tags": [], "id_list": []}),
            (f"{V6}/DeleteTags", {"tags": [], "id_list": []}),
        ]
        reading = [
            ("GET", f"{V1}/getTags", None),
            ("POST", f"{V1}/getTags", {"id_list": []}),
            ("GET", f"{V6}/DescribeTags", None),
        ]
        for level in range(9):
            token = self.deployment.add_user(f"user{level}", level)
            for path, body in writing:
                got = self.deployment.call("POST", path, body, token=token)
                self.assertEqual(got.status, 200 if level <= 2 else 403, (level, path))
            for method, path, body in reading:
                got = self.deployment.call(method, path, body, token=token)
                self.assertEqual(got.status, 403 if level in (4, 5) else 200, (level, path))
        for path, body in writing:
            self.assertEqual(self.deployment.call("POST", path, body).status, 401)


class NewsTests(_Case):
    """Gateways hear of changes."""

    def test_told(self) -> None:
        """Those whose tags changed are named, at every gateway."""
        self.ok(f"{V6}/AddTags", {"tags": ["x"], "id_list": ["a1", "a2"]})
        self.ok(f"{V6}/AddTags", {"tags": ["x"], "id_list": ["a1", "a2"]})
        self.deployment.network.advance(3)
        self.assertEqual(self.ac.refreshed, [["a1", "a2"]])
