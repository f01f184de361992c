"""``/api/v0``: runs of tasks as upstream's low-level routes show them."""

from elkeid.web.client import Credentials

from .deployment import AK, SK
from .task_case import CONTROL, TaskCase

JOB = "/api/v0/job"
SYNC = "/api/v0/inner/sync"


class JobTests(TaskCase):
    def job(self, method: str, path: str, body: object = None, status: int = 200) -> object:
        """One call's whole answer."""
        got = self.deployment.call(method, f"{JOB}/{path}", body, token=self.token)
        self.assertEqual(got.status, status)
        return got.json

    def test_a_run_is_shown(self) -> None:
        """What is a run of a task has its states; an unknown one is empty."""
        ran = self.run_(self.create(id_list=["a1"]))
        self.answer("a1")
        shown = self.job("GET", f"stat?id={ran['jobID']}")
        assert isinstance(shown, dict)
        self.assertEqual(shown["msg"], "ok")
        self.assertEqual(shown["data"]["info"]["id"], ran["jobID"])
        self.assertEqual(shown["data"]["stat"], {"taken_up": 1, "result_succeed": 1})
        self.assertEqual(
            self.job("GET", "stat?id=x"), {"msg": "ok", "data": {"info": {}, "stat": {}}}
        )
        self.assertEqual(self.job("GET", f"result?id={ran['jobID']}"), {"msg": "ok", "data": []})

    def test_stop_pauses(self) -> None:
        """Nothing more is sent until the task is resumed; stopping again, or nothing, is ok."""
        self.ac.lose("a2")
        self.network.advance(4)
        task_id = self.create(id_list=["a1", "a2"])
        ran = self.run_(task_id)
        for _ in range(2):
            self.assertEqual(self.job("POST", "stop", {"id": ran["jobID"]}), {"msg": "ok"})
        self.assertEqual(self.job("POST", "stop", {"id": "x"}), {"msg": "ok"})
        self.assertIn("paused by", self.task(task_id)["paused"])
        self.post(CONTROL, {"task_id": task_id, "action": "resume"})
        self.assertEqual(self.task(task_id)["paused"], "")
        self.post(CONTROL, {"task_id": task_id, "action": "cancel"})
        self.network.advance(4)
        self.assertEqual(self.job("POST", "stop", {"id": ran["jobID"]}), {"msg": "ok"})
        self.assertEqual(self.task(task_id)["task_status"], "cancelled")

    def test_no_jobs_without_tasks(self) -> None:
        """Whoever asks for one is told the way, and nothing is started."""
        body = {"name": "Agent_Task", "con_num": 1_000_000, "timeout": 1}
        refused = self.job("POST", "new", body, status=409)
        assert isinstance(refused, dict)
        self.assertIn("createTask", refused["msg"])
        self.assertEqual(self.job("POST", "distribute", {"x": 1}), {})
        for bad in ({}, {"name": 5}, {"name": "x", "con_num": -1}):
            self.job("POST", "new", bad, status=400)
        self.job("GET", "stat", status=400)
        self.job("POST", "stop", {}, status=400)

    def test_announcements(self) -> None:
        """Another Manager's announcement is taken and asks for nothing; a broken one is told."""
        ac = self.network.client(Credentials(AK, SK))
        url = f"http://127.0.0.1:{self.deployment.settings.manager.port}{SYNC}"
        for action, data, status in (
            ("new", '{"id":"id-Agent_Task-1","name":"Agent_Task","con_num":5,"timeout":9}', 200),
            ("stop", '{"id":"id-Agent_Task-1"}', 200),
            ("another", "no JSON", 200),
            ("new", "no JSON", 400),
            ("stop", "{}", 400),
        ):
            reply = self.network.run(ac.post(url, {"action": action, "data": data}))
            self.assertEqual(reply.status, status, (action, data))
