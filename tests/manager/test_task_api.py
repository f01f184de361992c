"""Tasks as operators have them: the documented example, refusals, and what agents get."""

from typing import Any

from twisted.logger import globalLogPublisher

from elkeid.web.answers import Answer

from .stored_results import count_results
from .task_case import (
    CONFIG,
    CONTROL,
    CREATE,
    CTRL,
    DELETE,
    QUICK,
    SCAN,
    TaskCase,
    not_taken,
)

DRIVER = {
    "name": "driver",
    "version": "1.0.0.16",
    "sha256": "ab" * 32,
    "download_url": ["http://host/driver.tar.gz"],
    "signature": "cd" * 32,
    "type": "tar.gz",
}
FILTER = {"condition": "$and", "filter": []}


def rule(key: str, value: Any, operator: str = "$eq") -> dict[str, Any]:
    """A filter of one rule."""
    rules = [{"operator": operator, "value": value}]
    return {"condition": "$and", "filter": [{"key": key, "condition": "$and", "rules": rules}]}


class ExampleTests(TaskCase):
    def test_worked_example(self) -> None:
        """Create for two, run half, a result, run the rest, an answer that never comes."""
        created = self.post(
            CREATE,
            {
                "id_list": ["a1", "a2"],
                "task_name": "port scan",
                "subtask_running_timeout": 900,
                "data": SCAN,
            },
        )
        self.assertEqual(created["count"], 2)
        task_id = created["task_id"]
        before = self.task(task_id)
        self.assertEqual((before["task_status"], before["inner_status"]), ("created", "created"))
        self.assertEqual((before["todo_list"], before["id_count"]), (["a1", "a2"], 2))
        self.assertEqual(before["data"]["task"], {**SCAN["task"], "token": ""})
        self.assertEqual(before["task_user"], "admin")
        self.assertEqual(self.states(task_id), {"a1": "created", "a2": "created"})
        self.network.advance(3)
        self.assertEqual(self.commands.got, [])

        ran = self.run_(task_id, 0.5)
        self.assertEqual((ran["taskID"], ran["id_count"]), (task_id, 1))
        half = self.task(task_id)
        self.assertEqual((half["task_status"], half["inner_status"]), ("running", "running"))
        self.assertEqual((half["todo_list"], half["job_list"]), (["a2"], [ran["jobID"]]))
        self.assertEqual((half["distributed_count"], half["sub_task_running"]), (1, 1))
        (sent,) = self.commands.got
        token = sent.command["task"]["token"]
        self.assertEqual(len(token), 20)
        self.assertEqual(sent.command, {"task": {**SCAN["task"], "token": token}})
        subtask = self.subtask(task_id)
        self.assertEqual((subtask["status"], subtask["token"]), ("succeed", token))
        self.assertEqual(subtask["task_url"], "https://127.0.0.1:6752/command/")
        self.assertEqual(subtask["task_data"], {"agent_id": "a1", "command": sent.command})
        self.assertEqual(subtask["job_id"], ran["jobID"])
        self.assertEqual(subtask["job_time_out_time"] - subtask["job_start_time"], 900)

        self.answer("a1")
        subtask = self.subtask(task_id)
        self.assertEqual(subtask["status"], "result_succeed")
        self.assertEqual(subtask["task_result"]["token"], token)
        self.assertEqual(self.task(task_id)["task_status"], "running")

        self.run_(task_id, 0.5)
        whole = self.task(task_id)
        self.assertEqual((whole["inner_status"], whole["todo_list"]), ("finished", []))
        self.assertEqual(whole["task_status"], "running")
        self.network.advance(905, step=5)
        ended = self.task(task_id)
        self.assertEqual(ended["task_status"], "finished")
        self.assertEqual((ended["sub_task_succeed"], ended["sub_task_failed"]), (1, 1))
        late = self.subtask(task_id, "a2")
        self.assertEqual(late["status"], "result_failed")
        self.assertEqual(late["status_msg"], "Timeout waiting for agent response")
        self.answer("a2")
        self.assertEqual(self.subtask(task_id, "a2")["status"], "result_failed")
        job = self.get(f"getJob/{ran['jobID']}")
        self.assertEqual((job["info"]["count"], job["stat"]["result_succeed"]), (1, 1))

    def test_agent_says_it_failed(self) -> None:
        """Its words are shown."""
        task_id = self.create(id_list=["a1"])
        self.run_(task_id)
        self.answer("a1", "failed", msg="no such user")
        subtask = self.subtask(task_id)
        self.assertEqual(
            (subtask["status"], subtask["status_msg"]), ("result_failed", "no such user")
        )
        self.assertEqual(self.task(task_id)["task_status"], "finished")

    def test_results_without_a_status_end_nothing(self) -> None:
        """A finding of a scan is kept; only the data types that always end do without."""
        task_id = self.create(id_list=["a1", "a2"])
        self.run_(task_id)
        tokens = self.commands.tokens()
        self.bring([{"data_type": "2001", "token": tokens["a1"], "found": "x"}])
        self.bring([{"data_type": "6000", "token": tokens["a2"]}])
        self.assertEqual(self.states(task_id), {"a1": "succeed", "a2": "result_failed"})
        self.assertEqual(self.subtask(task_id)["task_result"]["found"], "x")
        self.bring([{"data_type": "2001", "token": tokens["a1"], "status": "succeed"}])
        self.assertEqual(self.states(task_id)["a1"], "result_succeed")

    def test_result_before_its_send_is_noted(self) -> None:
        """A fast answer counts, and what the AC says afterwards changes nothing."""
        self.commands.hold = True
        task_id = self.create(id_list=["a1"])
        self.run_(task_id)
        self.assertEqual(self.states(task_id), {"a1": "running"})
        self.answer("a1")
        self.assertEqual(self.states(task_id), {"a1": "result_succeed"})
        self.commands.held.pop().callback(None)
        self.network.advance(2)
        self.assertEqual(self.states(task_id), {"a1": "result_succeed"})
        self.assertEqual(self.task(task_id)["task_status"], "finished")


class AwayTests(TaskCase):
    def test_offline_agent_gets_it_on_return(self) -> None:
        """It waits as created, and is sent once when the agent is back."""
        self.ac.lose("a1")
        self.network.advance(4)
        task_id = self.create(id_list=["a1"])
        self.run_(task_id)
        self.assertEqual(self.subtask(task_id)["status_msg"], "its agent is not connected")
        self.ac.beat("a1")
        self.network.advance(6)
        self.assertEqual([each.agent_id for each in self.commands.got], ["a1"])
        self.answer("a1")
        self.assertEqual(self.task(task_id)["task_status"], "finished")

    def test_nobody_waits_for_ever(self) -> None:
        """After ``wait_seconds`` a host that did not come back has failed."""
        self.ac.lose("a1")
        self.network.advance(4)
        task_id = self.create(id_list=["a1"], wait_seconds=60)
        self.run_(task_id)
        self.network.advance(62, step=1)
        subtask = self.subtask(task_id)
        self.assertEqual(subtask["status"], "failed")
        self.assertEqual(subtask["status_msg"], "its agent was not connected before the deadline")
        self.assertEqual(self.task(task_id)["task_status"], "finished")

    def test_agent_moves_to_another_gateway(self) -> None:
        """The old one does not have it; it is found at the new one."""
        other = self.deployment.ac(6762)
        there = type(self.commands)(other)
        self.network.advance(4)
        self.commands.answers["a1"] = not_taken("agentID not found", "not_connected")
        task_id = self.create(id_list=["a1"])
        self.run_(task_id)
        self.assertEqual(self.states(task_id), {"a1": "created"})
        other.beat("a1")
        self.network.advance(10)
        self.assertEqual([each.agent_id for each in there.got], ["a1"])
        self.assertEqual(self.subtask(task_id)["task_url"], "https://127.0.0.1:6762/command/")
        self.assertEqual(self.subtask(task_id)["resends"], [])

    def test_gateway_cannot_be_dialled(self) -> None:
        """What was surely not sent is tried again until it is."""
        self.ac.down()
        task_id = self.create(id_list=["a1"])
        self.run_(task_id)
        self.assertIn("cannot be reached", self.subtask(task_id)["status_msg"])
        self.ac.up()
        self.network.advance(12)
        self.assertEqual(self.states(task_id), {"a1": "succeed"})
        self.assertEqual(len(self.commands.got), 1)


class DoubtTests(TaskCase):
    def test_no_answer_fails_a_task(self) -> None:
        """Without ``retries`` a task that may have arrived is not sent again."""
        self.commands.silent.add("a1")
        task_id = self.create(id_list=["a1"])
        self.run_(task_id)
        self.network.advance(20, step=1)
        subtask = self.subtask(task_id)
        self.assertEqual(subtask["status"], "failed")
        self.assertIn("gave no answer", subtask["status_msg"])
        self.assertEqual(len(self.commands.got), 1)

    def test_retries_are_recorded(self) -> None:
        """With them it is sent again, by the same token, and why is shown."""
        self.commands.answers["a1"] = not_taken("transport is closing", "connection_lost")
        task_id = self.create(id_list=["a1"], retries=5)
        self.run_(task_id)
        del self.commands.answers["a1"]
        self.network.advance(5)
        subtask = self.subtask(task_id)
        self.assertEqual(subtask["status"], "succeed")
        self.assertEqual({each["reason"] for each in subtask["resends"]}, {"transport is closing"})

    def test_refusals_are_final(self) -> None:
        """An AC that says the command is invalid will say so again."""
        self.commands.answers["a1"] = not_taken("command.task: too large", "", code=2)
        task_id = self.create(id_list=["a1"], retries=5)
        self.run_(task_id)
        self.assertEqual(self.states(task_id), {"a1": "failed"})
        self.assertIn("too large", self.subtask(task_id)["status_msg"])

    def test_partly_written_counts_as_sent(self) -> None:
        """The rest follows by itself."""
        words = "the command has been sent but get results timed out"
        self.commands.answers["a1"] = not_taken(words, "partly_written")
        task_id = self.create(id_list=["a1"])
        self.run_(task_id)
        self.assertEqual(self.states(task_id), {"a1": "succeed"})

    def test_nonsense_from_a_gateway(self) -> None:
        """An answer that is none is doubt, too."""
        self.commands.answers["a1"] = Answer(500, {"oh": "no"})
        task_id = self.create(id_list=["a1"])
        self.run_(task_id)
        self.assertIn("no usable answer", self.subtask(task_id)["status_msg"])


class SelectionTests(TaskCase):
    def test_nobody_in_particular_is_nobody(self) -> None:
        """Empty lists and filters select nobody; a fleet is meant only by these very words."""
        for nobody in ({}, {"id_list": []}, {"filter": FILTER}, {"tag": ""}, {"filter": None}):
            self.assertEqual(self.post(CREATE, {"data": SCAN, **nobody})["count"], 0, nobody)
        self.assertEqual(self.post(CREATE, {"data": SCAN, "all": True})["count"], 2)

    def test_retired_hosts(self) -> None:
        """They are meant by their ids, tags and a filter, but are no part of the fleet."""
        self.ac.lose("a2")
        self.network.advance(4)
        self.post("/api/v6/asset-center/RetireHosts", {"id_list": ["a2"]})
        self.assertEqual(self.post(CREATE, {"data": SCAN, "all": True})["count"], 1)
        named = {"data": SCAN, "id_list": ["a2"]}
        self.assertEqual(self.post(CREATE, named)["count"], 1)
        self.assertEqual(self.post(CREATE, named | {"all": True})["count"], 2)

    def test_union(self) -> None:
        """Tag, ids and filter together; unknown ids are left out, nobody counts twice."""
        self.ac.beat("b1")
        self.ac.beat("b2")
        self.network.advance(4)
        self.post("/api/v1/agent/addTags", {"tag": "web", "id_list": ["a1"]})
        body = {
            "data": SCAN,
            "tag": "web",
            "id_list": ["a1", "b1", "unknown"],
            "filter": rule("hostname", "^host-b", "$regex"),
        }
        created = self.post(CREATE, body)
        self.assertEqual(created["count"], 3)
        self.assertEqual(set(self.states(created["task_id"])), {"a1", "b1", "b2"})
        shown = self.task(created["task_id"])
        self.assertEqual((shown["tag"], shown["filter"]), ("web", body["filter"]))

    def test_data_is_required(self) -> None:
        """Nothing to send is no task."""
        for data in (None, {}, {"task": {}}, {"task": {"name": "", "data_type": 1}}):
            self.refused(CREATE, {"id_list": ["a1"], "data": data}, 5)
        self.refused(CREATE, {"id_list": ["a1"]}, 5)
        self.refused(CONFIG, {"id_list": ["a1"], "data": {"config": []}}, 5)
        self.refused(DELETE, {"id_list": ["a1"], "data": []}, 5)

    def test_control_number_alone_would_empty_hosts(self) -> None:
        """It is refused; beside a task it is passed on, and an answer is not awaited."""
        words = self.refused(CTRL, {"id_list": ["a1"], "data": {"agent_ctrl": 1}}, 5)
        self.assertIn("unload every plugin", words)
        task_id = self.create(CTRL, id_list=["a1"], data={"agent_ctrl": 1, **SCAN})
        self.run_(task_id)
        self.assertEqual(self.commands.got[0].command["agent_ctrl"], 1)
        ended = self.task(task_id)
        self.assertEqual((ended["task_type"], ended["task_status"]), ("Agent_Ctrl", "finished"))

    def test_wrong_filters(self) -> None:
        """Keys and expressions are checked when the task is created."""
        for bad in (rule("$where", 1), rule("hostname", "(", "$regex")):
            self.refused(CREATE, {"data": SCAN, "filter": bad}, 5)


class ControlTests(TaskCase):
    def test_refused_runs(self) -> None:
        """Values out of range are code 5, what cannot be done now code 10."""
        task_id = self.create(id_list=["a1"])
        run = {"task_id": task_id, "action": "run", "rolling_percent": 1, "concurrence": 1}
        for bad in (
            {"rolling_percent": 0},
            {"rolling_percent": 1.1},
            {"concurrence": 0},
            {"concurrence": 1000},
            {"rolling_percent": None},
            {"action": "explode"},
        ):
            self.refused(CONTROL, run | bad, 5)
        for action in ("run", "cancel", "pause", "resume"):
            self.assertIn(
                "no such task", self.refused(CONTROL, run | {"task_id": "x", "action": action})
            )
        self.run_(task_id)
        self.assertIn("released already", self.refused(CONTROL, run))
        self.answer("a1")
        self.assertIn("finished", self.refused(CONTROL, run))
        self.assertIn("finished", self.refused(CONTROL, run | {"action": "cancel"}))

    def test_run_number(self) -> None:
        """So many hosts at once, and no more than there are."""
        task_id = self.create(id_list=["a1", "a2"])
        body = {"task_id": task_id, "action": "run", "run_number": 1, "concurrence": 1}
        self.assertEqual(self.post(CONTROL, body)["id_count"], 1)
        self.assertEqual(self.post(CONTROL, body | {"run_number": 50})["id_count"], 1)
        self.network.advance(4)
        self.assertEqual(len(self.commands.got), 2)

    def test_cancel_withdraws_what_was_not_sent(self) -> None:
        """What was sent goes on to its end."""
        self.commands.hold = True
        task_id = self.create(id_list=["a1", "a2"])
        self.run_(task_id, 0.5)
        self.post(CONTROL, {"task_id": task_id, "action": "cancel"})
        self.network.advance(3)
        self.assertEqual(self.states(task_id), {"a1": "running", "a2": "cancelled"})
        self.commands.held.pop().callback(None)
        self.network.advance(2)
        self.answer("a1")
        ended = self.task(task_id)
        self.assertEqual((ended["task_status"], ended["inner_status"]), ("cancelled", "cancelled"))
        self.assertEqual((ended["sub_task_succeed"], ended["sub_task_cancelled"]), (1, 1))
        self.network.advance(3)
        self.assertEqual(len(self.commands.got), 1)

    def test_pause_and_resume(self) -> None:
        """Nothing is sent in between."""
        self.ac.lose("a1")
        self.network.advance(4)
        task_id = self.create(id_list=["a1"])
        self.refused(CONTROL, {"task_id": task_id, "action": "pause"})
        self.run_(task_id)
        self.post(CONTROL, {"task_id": task_id, "action": "pause"})
        self.assertEqual(self.task(task_id)["inner_status"], "paused")
        self.ac.beat("a1")
        self.network.advance(6)
        self.assertEqual(self.commands.got, [])
        self.post(CONTROL, {"task_id": task_id, "action": "resume"})
        self.refused(CONTROL, {"task_id": task_id, "action": "resume"})
        self.network.advance(4)
        self.assertEqual(len(self.commands.got), 1)

    def test_lists(self) -> None:
        """Filters and order by fields that there are; another one is refused by its name."""
        first = self.create(id_list=["a1"], task_name="x")
        second = self.create(id_list=["a1", "a2"], task_name="y")
        self.run_(first)
        path = "/api/v1/agent/getTask/filter"
        page = self.post(path, {})
        self.assertEqual([each["task_id"] for each in page["items"]], [first, second])
        page = self.post(f"{path}?order_key=id_count&order_value=-1", {})
        self.assertEqual([each["task_id"] for each in page["items"]], [second, first])
        page = self.post(path, rule("task_status", "running"))
        self.assertEqual((page["total"], page["items"][0]["task_id"]), (1, first))
        self.assertIn("no field", self.refused(f"{path}?order_key=x&order_value=1", {}, 5))
        self.refused(path, rule("password", "x"), 5)
        path = "/api/v1/agent/getSubTask/filter"
        page = self.post(path, rule("status", ["created"], "$in"))
        self.assertEqual(page["total"], 2)
        self.assertEqual(self.post(path, rule("agent_id", "^a", "$regex"))["total"], 3)
        self.assertEqual(self.post(path, rule("agent_id", "a1", "$ne"))["total"], 1)
        whole = self.deployment.call(
            "GET", f"/api/v1/agent/getSubTask/{second}?page=2&page_size=1", token=self.token
        ).json
        self.assertEqual((whole["total"], whole["data"][0]["agent_id"]), (2, "a2"))

    def test_unknown_ids(self) -> None:
        """They are said to be unknown, not shown as empty."""
        for path in ("getTask/x", "getSubTask/x", "getJob/x"):
            got = self.deployment.call("GET", f"/api/v1/agent/{path}", token=self.token)
            self.assertEqual(got.json["code"], 10, path)

    def test_reboot_awaits_no_answer(self) -> None:
        """An agent that exits says nothing more."""
        data = {"task": {"name": "elkeid-agent", "data_type": 1060}}
        task_id = self.create(id_list=["a1"], action="reboot_agent", data=data)
        self.run_(task_id)
        self.assertEqual(self.task(task_id)["task_status"], "finished")


class QuickTests(TaskCase):
    body: dict[str, Any] = {"agent_id": "a1", "command": SCAN}  # noqa: RUF012

    def test_without_a_token(self) -> None:
        """It is sent, and nothing is kept."""
        self.assertEqual(self.post(QUICK, self.body), "")
        self.assertEqual(self.commands.got[0].command["task"]["token"], "")

    def test_with_a_token(self) -> None:
        """Its subtask is found by the id, and gets its result."""
        task_id = self.post(f"{QUICK}?token=true&timeout=60", self.body)
        self.assertRegex(task_id, r"\Atask-[0-9a-v]{20}\Z")
        self.assertEqual(self.states(task_id), {"a1": "succeed"})
        self.answer("a1")
        self.assertEqual(self.states(task_id), {"a1": "result_succeed"})
        page = self.post("/api/v1/agent/getTask/filter", {})
        self.assertEqual(page["total"], 0)

    def test_its_answer_is_late(self) -> None:
        """After ``timeout`` nothing is waited for."""
        task_id = self.post(f"{QUICK}?token=true&timeout=10", self.body)
        self.network.advance(13, step=1)
        self.assertEqual(self.states(task_id), {"a1": "result_failed"})

    def test_refusals(self) -> None:
        """An agent that is not there, or whose AC says no, is code 10 with the reason."""
        self.assertIn("ever been", self.refused(QUICK, self.body | {"agent_id": "x"}))
        self.commands.answers["a1"] = not_taken("agentID not found", "not_connected")
        for query in ("", "?token=true"):
            self.assertEqual(self.refused(QUICK + query, self.body), "agentID not found")
        self.ac.lose("a2")
        self.network.advance(4)
        self.assertIn("not connected", self.refused(QUICK, self.body | {"agent_id": "a2"}))


class ConfigTests(TaskCase):
    settings = {"drop_hosts": 1}  # noqa: RUF012

    def setUp(self) -> None:
        super().setUp()
        items = [DRIVER, DRIVER | {"name": "collector"}]
        self.post("/api/v1/agent/updateDefaultConfig", {"type": "agent_config", "config": items})

    def config(self, agent_id: str = "a1") -> dict[str, str]:
        """Plugin -> version, of what a host shall run."""
        return {each["name"]: each["version"] for each in self.get(f"getConfig/{agent_id}")}

    def test_changes_are_merged(self) -> None:
        """Fields overwrite, names are added, the whole list is sent and kept."""
        changes = [{"name": "driver", "version": "2"}, DRIVER | {"name": "scanner"}, {"name": "x"}]
        task_id = self.create(CONFIG, id_list=["a1"], data={"config": changes})
        self.run_(task_id)
        wanted = {"driver": "2", "collector": "1.0.0.16", "scanner": "1.0.0.16"}
        (sent,) = self.commands.got
        self.assertEqual({e["name"]: e["version"] for e in sent.command["config"]}, wanted)
        self.assertNotIn("task", sent.command)
        self.assertEqual(self.config(), wanted)
        self.assertEqual(self.config("a2"), {"driver": "1.0.0.16", "collector": "1.0.0.16"})
        self.assertEqual(self.task(task_id)["task_status"], "finished")
        url = f"http://127.0.0.1:{self.deployment.settings.manager.port}"
        told = self.network.run(
            self.gateway.post(f"{url}/api/v6/component/GetComponentInstances", {"agent_id": "a1"})
        )
        self.assertIn(b"scanner", told.body)

    def test_taking_a_plugin_from_each(self) -> None:
        """Every host keeps the rest of its list, the same one."""
        task_id = self.create(DELETE, id_list=["a1", "a2"], data=["driver"])
        self.run_(task_id)
        lists = [[item["name"] for item in each.command["config"]] for each in self.commands.got]
        self.assertEqual(lists, [["collector"], ["collector"]])

    def test_never_emptied_by_accident(self) -> None:
        """A list that would be empty fails unless that is meant."""
        task_id = self.create(DELETE, id_list=["a1"], data=["driver", "collector"])
        self.run_(task_id)
        self.assertEqual(self.states(task_id), {"a1": "failed"})
        self.assertIn("unloaded", self.subtask(task_id)["status_msg"])
        self.assertEqual(self.commands.got, [])
        meant = self.create(DELETE, id_list=["a1"], data=["driver", "collector"], allow_empty=True)
        self.run_(meant)
        (sent,) = self.commands.got
        self.assertEqual((sent.command, sent.allow_empty), ({"config": []}, True))
        self.assertEqual(self.config(), {})

    def test_mass_drop_is_held(self) -> None:
        """Beyond ``drop_hosts`` the task pauses itself until someone confirms."""
        task_id = self.create(DELETE, id_list=["a1", "a2"], data=["collector"])
        self.run_(task_id)
        self.assertEqual([each.agent_id for each in self.commands.got], ["a1"])
        held = self.task(task_id)
        self.assertEqual(held["inner_status"], "paused")
        self.assertIn("confirm_drops", held["paused"])
        self.assertEqual(self.config("a2"), {"driver": "1.0.0.16", "collector": "1.0.0.16"})
        body = {"task_id": task_id, "action": "resume", "confirm_drops": True}
        self.post(CONTROL, body)
        self.network.advance(4)
        self.assertEqual(self.task(task_id)["task_status"], "finished")
        self.assertEqual(len(self.commands.got), 2)

    def test_doubt_repeats_a_config(self) -> None:
        """A config may arrive twice."""
        self.commands.answers["a1"] = not_taken("transport is closing", "connection_lost")
        task_id = self.create(CONFIG, id_list=["a1"], data={"config": [DRIVER]})
        self.run_(task_id)
        del self.commands.answers["a1"]
        self.network.advance(5)
        self.assertEqual(self.states(task_id), {"a1": "succeed"})


class NoDefaultTests(TaskCase):
    def test_no_list_to_begin_from(self) -> None:
        """A host that runs plugins by nobody's list would lose them."""
        task_id = self.create(CONFIG, id_list=["a1"], data={"config": [DRIVER]})
        self.run_(task_id)
        self.assertEqual(self.states(task_id), {"a1": "failed"})
        self.assertIn("no config is stored", self.subtask(task_id)["status_msg"])


class ApprovalTests(TaskCase):
    settings = {"approval_hosts": 1, "approval_uploads": True}  # noqa: RUF012

    def setUp(self) -> None:
        super().setUp()
        self.second = self.deployment.add_user("second", 1)

    def test_second_person(self) -> None:
        """Nothing runs before someone else has approved, with a reason, which is kept."""
        task_id = self.create(id_list=["a1", "a2"])
        run = {"task_id": task_id, "action": "run", "rolling_percent": 1, "concurrence": 1}
        self.assertIn("second person", self.refused(CONTROL, run))
        waiting = self.get("getApprovals")["items"]
        self.assertEqual([each["task_id"] for each in waiting], [task_id])
        decide = {"task_id": task_id, "approve": True, "reason": "change 4711"}
        path = "/api/v1/agent/approveTask"
        self.assertIn("who created", self.refused(path, decide))
        for nothing in ("", " \t"):
            self.refused(path, decide | {"reason": nothing}, 5, self.second)
        self.post(path, decide, self.second)
        self.assertIn("does not wait", self.refused(path, decide, token=self.second))
        (said,) = self.get(f"getApproval/{task_id}")
        self.assertEqual(
            (said["username"], said["approved"], said["reason"]), ("second", True, "change 4711")
        )
        self.run_(task_id)
        self.assertEqual(len(self.commands.got), 2)

    def test_refusal_cancels(self) -> None:
        """And it cannot be run any more."""
        task_id = self.create(id_list=["a1", "a2"])
        body = {"task_id": task_id, "approve": False, "reason": "why?"}
        self.post("/api/v1/agent/approveTask", body, self.second)
        self.network.advance(3)
        found = self.task(task_id)
        self.assertEqual((found["task_status"], found["sub_task_cancelled"]), ("cancelled", 2))
        self.assertEqual(self.get("getApprovals")["items"], [])

    def test_small_tasks_need_nobody(self) -> None:
        """One host is not more than one."""
        self.run_(self.create(id_list=["a1"]))
        self.assertEqual(len(self.commands.got), 1)

    def test_uploads(self) -> None:
        """A file of a single host is asked for by two, and not by a quick task."""
        spec = {"name": "elkeid-agent", "data_type": 1050, "data": '{"path":"/x"}'}
        created = self.post(CREATE, {"id_list": ["a1"], "data": {"task": spec}})
        self.assertEqual(created["approval"], "waiting")
        body = {"agent_id": "a1", "command": {"task": spec}}
        self.assertIn("approval", self.refused(QUICK, body))


class AccessTests(TaskCase):
    def test_levels(self) -> None:
        """Only writers of agents create and control; readers see; jobs are seen by readers too."""
        task_id = self.create(id_list=["a1"])
        job = self.run_(task_id)["jobID"]
        bodies = {
            CREATE: {"data": SCAN},
            CONFIG: {"data": {"config": [DRIVER]}},
            DELETE: {"data": ["x"]},
            CTRL: {"data": SCAN},
            CONTROL: {"task_id": task_id, "action": "cancel"},
            QUICK: {"agent_id": "a2", "command": SCAN},
        }
        reads = {
            f"getTask/{task_id}": {0, 1, 2, 3, 6, 7, 8},
            f"getSubTask/{task_id}": {0, 1, 2, 3, 6, 7, 8},
            f"getJob/{job}": {0, 1, 2, 3, 4, 6, 7, 8},
            "getConfig/a1": {0, 1, 2, 3, 6, 7, 8},
        }
        for level in range(9):
            token = self.deployment.add_user(f"user{level}", level)
            for path, body in bodies.items():
                got = self.deployment.call("POST", path, body, token=token)
                self.assertEqual(got.status != 403, level in {0, 1, 2}, (path, level))
            for path, levels in reads.items():
                got = self.deployment.call("GET", f"/api/v1/agent/{path}", token=token)
                self.assertEqual(got.status == 200, level in levels, (path, level))
        for path, body in bodies.items():
            self.assertEqual(self.deployment.call("POST", path, body).status, 401)
        self.assertEqual(self.deployment.call("GET", "/api/v1/agent/getConfig/a1").status, 401)


class RetentionTests(TaskCase):
    settings = {"task_retention": 3600}  # noqa: RUF012

    def test_old_tasks_are_forgotten(self) -> None:
        """What has ended goes, with its results; what has work left stays."""
        old = self.create(id_list=["a1"])
        self.run_(old)
        self.answer("a1")
        quick = self.post(f"{QUICK}?token=true", {"agent_id": "a1", "command": SCAN})
        self.answer("a1")
        self.ac.lose("a2")
        self.network.advance(4)
        waiting = self.create(id_list=["a2"])
        self.run_(waiting)
        self.network.advance(4300, step=60)
        self.token = self.deployment.login()
        for task_id in (old, quick):
            self.refused("/api/v1/agent/controlTask", {"task_id": task_id, "action": "cancel"})
            got = self.deployment.call(
                "GET", f"/api/v1/agent/getSubTask/{task_id}", token=self.token
            )
            self.assertEqual(got.json["code"], 10)
        self.assertEqual(self.states(waiting), {"a2": "created"})
        count = self.network.run(self.deployment.manager.store.read(count_results))
        self.assertEqual(count, 0)


class FollowTests(TaskCase):
    def test_progress(self) -> None:
        """A listener hears of each change once, and of the end."""
        heard: list[Any] = []
        end = self.deployment.manager.task_engine.follow(heard.append)
        task_id = self.create(id_list=["a1"])
        self.run_(task_id)
        self.answer("a1")
        self.network.advance(5)
        self.assertEqual({each.task_id for each in heard}, {task_id})
        self.assertEqual(heard[-1].status, "finished")
        self.assertEqual(heard[-1].counters["sub_task_succeed"], 1)
        self.assertLessEqual(len(heard), 5)
        end()
        told = len(heard)
        self.run_(self.create(id_list=["a1"]))
        self.assertEqual(len(heard), told)


class OutageTests(TaskCase):
    def test_is_told_once(self) -> None:
        """While the database is away the log has one line of it, and one when it is back."""
        told: dict[str, list[str]] = {}

        def keep(event: Any) -> None:
            if event["log_namespace"].startswith("elkeid.") and event["log_level"].name != "debug":
                what = event.get("what", event["log_format"])
                told.setdefault(what, []).append(event["log_level"].name)

        globalLogPublisher.addObserver(keep)
        self.addCleanup(globalLogPublisher.removeObserver, keep)
        self.commands.hold = True
        task_id = self.create(id_list=["a1", "a2"])
        self.run_(task_id, concurrence=1)
        self.deployment.manager.store._open = False
        self.commands.held.pop().callback(None)
        self.network.advance(20, step=0.5)
        tasks, states = "tasks wait for the database", "agents' states are not brought up to date"
        self.assertEqual((told[tasks], told[states]), (["warn"], ["warn"]))
        self.assertEqual({len(levels) for levels in told.values()}, {1}, told)
        self.commands.hold = False
        self.deployment.manager.store._open = True
        self.network.advance(5, step=0.5)
        self.assertEqual((told[tasks], told[states]), (["warn", "info"], ["warn", "info"]))
        self.assertEqual(self.states(task_id), {"a1": "succeed", "a2": "succeed"})


class RestartTests(TaskCase):
    def test_manager_stops_in_the_middle(self) -> None:
        """The next one goes on; what nobody knows of is sent again, and it is said why."""
        self.commands.hold = True
        task_id = self.create(id_list=["a1", "a2"])
        self.run_(task_id, concurrence=1)
        self.assertEqual(sorted(self.states(task_id).values()), ["created", "running"])
        engine = self.deployment.manager.task_engine
        # As if the process had been killed: nothing is noted.
        engine._stopping = True
        assert engine._timer is not None
        engine._timer.cancel()
        self.deployment.manager.store._open = False
        self.deployment.stop()
        self.commands.hold = False
        self.deployment.start()
        self.network.advance(40, step=1)
        self.token = self.deployment.login()
        self.assertEqual(self.states(task_id), {"a1": "succeed", "a2": "succeed"})
        subtask = self.subtask(task_id)
        self.assertIn("stopped before", subtask["resends"][0]["reason"])
        tokens = [e.command["task"]["token"] for e in self.commands.got if e.agent_id == "a1"]
        self.assertEqual(tokens, [subtask["token"]] * 2)
        for agent_id in ("a1", "a2"):
            self.answer(agent_id)
        self.assertEqual(self.task(task_id)["task_status"], "finished")
