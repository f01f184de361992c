"""Tasks in v6's words."""

from typing import Any

from elkeid.manager import anchors, lists
from elkeid.manager.lists import COUNT_AGAIN_SECONDS, COUNT_SECONDS

from .task_case import TaskCase

V6 = "/api/v6/agent"
REBOOT = "/api/v6/component/CreateRebootAgentTask"


class V6Tests(TaskCase):
    def reboot(self, **body: Any) -> str:
        """The id of a new task."""
        task_id: str = self.post(REBOOT, body)["task_id"]
        return task_id

    def test_reboot(self) -> None:
        """It is created, run by a number of hosts, and ends without an answer."""
        for path, more in ((REBOOT, {}), (f"{V6}/createAgentTask", {"action": "agt_reboot"})):
            created = self.post(path, {"id_list": ["a1", "a2"], "task_name": "x", **more})
            self.assertEqual(created["count"], 2)
            task_id = created["task_id"]
            body = {"task_id": task_id, "action": "run", "run_number": 2, "concurrence": 10}
            ran = self.post(f"{V6}/controlTask", body)
            self.assertEqual((ran["taskID"], ran["id_count"]), (task_id, 2))
            self.network.advance(3)
            sent = self.commands.got[-1].command["task"]
            self.assertEqual((sent["name"], sent["data_type"]), ("elkeid-agent", 1060))
            found = self.deployment.call("GET", f"{V6}/getTask/{task_id}", token=self.token).data
            self.assertEqual((found["task_status"], found["sub_task_succeed"]), ("finished", 2))

    def test_nobody_in_particular_is_nobody(self) -> None:
        """Empty lists and conditions select nobody, and none at all is refused."""
        for nobody in ({"id_list": []}, {"conditions": {}}, {"conditions": {"tags": []}}):
            self.assertEqual(self.post(REBOOT, nobody)["count"], 0, nobody)
        self.assertEqual(self.post(REBOOT, {"all": True})["count"], 2)
        self.assertEqual(self.post(REBOOT, {"conditions": {"hostname": "host-a1"}})["count"], 1)
        self.refused(REBOOT, {}, 5)
        self.refused(f"{V6}/createAgentTask", {"id_list": ["a1"], "action": ""}, 5)
        update = {"id_list": ["a1"], "action": "agt_update", "module_id": "m"}
        self.assertIn("no template", self.refused(f"{V6}/createAgentTask", update))

    def test_everybody(self) -> None:
        """``all`` means here what it means where hosts are tagged: all that are not retired."""
        for body in ({"all": True}, {"id_list": [], "all": True}, {"conditions": {}, "all": True}):
            self.assertEqual(self.post(REBOOT, body)["count"], 2, body)
        narrow = {"conditions": {"hostname": "host-a1"}, "all": True}
        self.assertEqual(self.post(REBOOT, narrow)["count"], 1)
        self.ac.lose("a2")
        self.network.advance(4)
        done = self.post("/api/v6/asset-center/RetireHosts", {"id_list": ["a2"]})
        self.assertEqual(done["count"], 1)
        task_id = self.reboot(all=True)
        self.assertEqual(set(self.states(task_id)), {"a1"})
        self.assertEqual(self.post(f"{V6}/GetErrorHostNum", {"all": True})["all_num"], 1)
        self.assertEqual(self.post(REBOOT, {"id_list": ["a2"]})["count"], 1)

    def test_lists(self) -> None:
        """Tasks the newest first, by name, state, user and tag; subtasks with hosts' names."""
        first = self.reboot(id_list=["a1", "a2"], task_name="night one")
        self.network.advance(2)
        second = self.reboot(id_list=["a1"], task_name="day")
        other = self.create(id_list=["a1"], task_name="night scan", action="scan")

        def ids(**body: Any) -> list[str]:
            return [each["task_id"] for each in self.post(f"{V6}/getTaskList", body)]

        self.assertEqual(ids(), [second, first])
        self.assertEqual(ids(task_name="^night"), [first])
        self.assertEqual(ids(action=["scan"]), [other])
        self.assertEqual(ids(task_user="admin"), [second, first])
        self.assertEqual(ids(task_user="nobody"), [])
        self.assertEqual(ids(task_status=["finished"]), [])
        self.refused(f"{V6}/getTaskList", {"task_name": "("}, 5)
        path = f"{V6}/getSubTaskList"
        rows = self.post(path, {"task_id": first, "hostname": "a2$"})
        self.assertEqual([(r["agent_id"], r["hostname"]) for r in rows], [("a2", "host-a2")])
        self.assertEqual(self.post(path, {"task_id": first, "status": ["failed"]}), [])
        whole = self.deployment.call(
            "POST", f"{path}?page_size=1&page=2", {"task_id": first}, token=self.token
        ).json
        self.assertEqual(whole["page_info"], {"total": 2, "page": 2, "page_size": 1})
        self.assertEqual(whole["data"][0]["agent_id"], "a2")
        self.refused(path, {"task_id": "x"})

    def test_error_hosts(self) -> None:
        """Offline and unknown ones are told apart from those that would get a task at once."""
        path = f"{V6}/GetErrorHostNum"
        for body, wanted in (
            ({"id_list": ["a1", "x"]}, (1, 2)),
            ({"conditions": {"hostname": "host-"}}, (0, 2)),
            ({"conditions": {}}, (0, 0)),
            ({"all": True}, (0, 2)),
        ):
            got = self.post(path, body)
            self.assertEqual((got["error_num"], got["all_num"]), wanted, body)
        self.network.advance(1)
        self.refused(path, {}, 5)

    def test_levels(self) -> None:
        """Writers of agents create and control, their readers see."""
        task_id = self.reboot(id_list=["a1"])
        run = {"task_id": task_id, "action": "cancel"}
        for level in range(9):
            token = self.deployment.add_user(f"user{level}", level)
            for path, body in (
                (REBOOT, {"id_list": []}),
                (f"{V6}/createAgentTask", {"id_list": [], "action": "agt_reboot"}),
                (f"{V6}/controlTask", run),
            ):
                got = self.deployment.call("POST", path, body, token=token)
                self.assertEqual(got.status != 403, level in {0, 1, 2}, (path, level))
            for path, body in (
                (f"{V6}/getTaskList", {}),
                (f"{V6}/getSubTaskList", {"task_id": task_id}),
                (f"{V6}/GetErrorHostNum", {"id_list": ["a1"]}),
            ):
                got = self.deployment.call("POST", path, body, token=token)
                self.assertEqual(got.status == 200, level in {0, 1, 2, 3, 6, 7, 8}, (path, level))


class DeepListTests(TaskCase):
    """Long lists of subtasks, as if a handful of rows were many."""

    def test_walks(self) -> None:
        """Pages of any size, in any order, are those of the whole list."""
        self.patch(anchors, "SHALLOW_ROWS", 0)
        ids = [f"a{number}" for number in range(1, 9)]
        for each in ids[2:]:
            self.ac.beat(each)
        self.network.advance(3)
        body = {"id_list": ids, "task_name": "x"}
        task_id = self.post(REBOOT, body)["task_id"]
        other = self.post(REBOOT, {**body, "id_list": ids[:3]})["task_id"]
        self.post(
            f"{V6}/controlTask",
            {"task_id": task_id, "action": "run", "run_number": 5, "concurrence": 10},
        )
        self.network.advance(3)
        rules = [{"operator": "$in", "value": ["created", "succeed"]}]
        block = {"key": "status", "condition": "$and", "rules": rules}
        walked: list[tuple[str, dict[str, Any] | None]] = [
            (f"/api/v1/agent/getSubTask/{task_id}", None),
            (f"/api/v1/agent/getSubTask/{other}", None),
            (f"{V6}/getSubTaskList", {"task_id": task_id}),
            (f"{V6}/getSubTaskList", {"task_id": task_id, "status": ["created", "succeed"]}),
            (f"{V6}/getSubTaskList", {"task_id": task_id, "status": ["succeed"]}),
            (f"{V6}/getSubTaskList", {"task_id": task_id, "hostname": "host-a[2-6]"}),
            ("/api/v1/agent/getSubTask/filter", {}),
            ("/api/v1/agent/getSubTask/filter", {"filter": [block]}),
            ("/api/v1/agent/getTask/filter", {}),
            (f"{V6}/getTaskList", {}),
        ]

        def page(number: int, size: int, path: str, body: dict[str, Any] | None) -> list[str]:
            method = "GET" if body is None else "POST"
            target = f"{path}?page={number}&page_size={size}"
            got = self.deployment.call(method, target, body, token=self.token).data
            items = got["items"] if isinstance(got, dict) else got
            return [f"{each['task_id']} {each.get('agent_id')}" for each in items]

        whole = [page(1, 100, *each) for each in walked]
        self.assertEqual([len(each) for each in whole], [8, 3, 8, 8, 5, 5, 11, 11, 2, 2])
        for size in (2, 1, 3):
            for number in (1, 2, 3, 4, 2, 8):
                for each, expected in zip(walked, whole, strict=True):
                    start = (number - 1) * size
                    self.assertEqual(page(number, size, *each), expected[start : start + size])
        for path, _ in walked:
            if "v1" in path and "filter" in path:
                self.assertEqual(page(1 << 53, 5_000, path, {}), [])

    def test_totals(self) -> None:
        """They are some seconds old at most, and counted anew beside those who ask."""
        self.patch(lists, "EXACT_ROWS", 0)
        first = self.post(REBOOT, {"all": True})["task_id"]

        def totals() -> list[int]:
            found = []
            for path, body in (
                ("/api/v1/agent/getTask/filter", {}),
                ("/api/v1/agent/getSubTask/filter", {}),
                (f"{V6}/getTaskList", {}),
                (f"{V6}/getSubTaskList", {"task_id": first, "status": ["created"]}),
            ):
                got = self.deployment.call("POST", path, body, token=self.token).json
                found.append((got.get("page_info") or got["data"])["total"])
            return found

        self.assertEqual(totals(), [1, 2, 1, 2])
        self.post(REBOOT, {"all": True})
        self.network.advance(1)
        self.assertEqual(totals(), [1, 2, 1, 2])
        self.network.advance(COUNT_AGAIN_SECONDS)
        self.assertEqual(totals(), [1, 2, 1, 2])
        self.assertEqual(totals(), [2, 4, 2, 2])
        run = {"task_id": first, "action": "cancel"}
        self.post(f"{V6}/controlTask", run)
        self.post(REBOOT, {"all": True})
        self.network.advance(COUNT_SECONDS + 1)
        self.assertEqual(totals(), [3, 6, 3, 0])
