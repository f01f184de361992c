"""A Manager with AgentCenters that take commands, for tests of tasks."""

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.answers import Answer, CodeEnvelope
from elkeid.web.api import Api
from elkeid.web.client import Credentials
from elkeid.web.refusals import AuthenticationFailed
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.web.signed import SignatureCheck
from elkeid.web.site import FaceSite

from .deployment import AK, SK, Deployment, ScriptedAc

CREATE = "/api/v1/agent/createTask/task"
CONFIG = "/api/v1/agent/createTask/config"
DELETE = "/api/v1/agent/createTask/delConfig"
CTRL = "/api/v1/agent/createTask/ctrl"
CONTROL = "/api/v1/agent/controlTask"
QUICK = "/api/v1/agent/quickTask/task"
RESULTS = "/api/v1/agent/updateSubTask"
SCAN = {"task": {"name": "collector", "data_type": 5051, "data": ""}}


class AnyCommand(msgspec.Struct):
    """Body of ``/command``."""

    agent_id: str
    command: dict[str, Any]
    allow_empty: bool = False


class CommandAc:
    """``/command`` of an AgentCenter: what it got, and what it shall answer.

    ``answers`` holds answers by agent id; agents that the AC does not hold are not connected.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self, ac: ScriptedAc) -> None:
        self.ac = ac
        self.got: list[AnyCommand] = []
        self.answers: dict[str, Answer] = {}
        self.silent: set[str] = set()
        self.held: list[Deferred[None]] = []
        self.hold = False
        network = ac.network
        api = Api(
            CodeEnvelope({0: "success"}, {AuthenticationFailed: 1}, 3),
            [ac, self],
            {AuthKind.SIGNED: SignatureCheck({AK: SK}, network.wall)},
        )
        ac.down()
        ac.site = FaceSite(api, network.clock)
        ac.up()

    @routes.post("/command", body=AnyCommand, summary="as told")
    async def command(self, call: Call[None, AnyCommand]) -> object:
        """Take it, or say why not."""
        body = call.body
        answer = self.answers.get(body.agent_id)
        if answer is None and body.agent_id not in self.ac.agents:
            answer = not_taken("agentID not found", "not_connected")
        if answer is not None:
            return answer
        self.got.append(body)
        if self.hold:
            waiting: Deferred[None] = Deferred()
            self.held.append(waiting)
            await waiting
        if body.agent_id in self.silent:
            await Deferred()
        return ""

    def tokens(self) -> dict[str, str]:
        """Agent id -> the token of its last task."""
        return {each.agent_id: each.command["task"]["token"] for each in self.got}


def not_taken(data: str, outcome: str, code: int = 3) -> Answer:
    """An answer of an AC of ours that did not write the command."""
    return Answer(200, {"code": code, "msg": "failed", "data": data, "outcome": outcome})


class TaskCase(SynchronousTestCase):
    """A Manager with one AC of two agents, ``a1`` and ``a2``."""

    settings: dict[str, Any] = {}  # noqa: RUF012

    def setUp(self) -> None:
        """Start it."""
        self.deployment = Deployment(**self.settings).start()
        self.addCleanup(self.deployment.end)
        self.network = self.deployment.network
        self.commands = CommandAc(self.deployment.ac())
        self.ac = self.commands.ac
        for agent_id in ("a1", "a2"):
            self.ac.beat(agent_id, plugins=[{"name": "collector"}])
        self.network.advance(4)
        self.token = self.deployment.login()
        self.gateway = self.network.client(Credentials(AK, SK))

    def post(self, path: str, body: Any, token: str | None = None) -> Any:
        """``data`` of a success."""
        return self.deployment.call("POST", path, body, token=token or self.token).data

    def refused(self, path: str, body: Any, code: int = 10, token: str | None = None) -> str:
        """``data`` of a refusal with this code."""
        got = self.deployment.call("POST", path, body, token=token or self.token)
        self.assertEqual(got.json["code"], code, got)
        data: str = got.json["data"]
        return data

    def get(self, path: str) -> Any:
        """``data`` of a GET."""
        return self.deployment.call("GET", f"/api/v1/agent/{path}", token=self.token).data

    def create(self, path: str = CREATE, **body: Any) -> str:
        """The id of a new task."""
        if "data" not in body:
            body["data"] = SCAN
        created = self.post(path, body)
        task_id: str = created["task_id"]
        return task_id

    def run_(self, task_id: str, percent: float = 1.0, concurrence: int = 10) -> dict[str, Any]:
        """Run a task, and let it go on for three seconds."""
        body = {"task_id": task_id, "action": "run"}
        ran: dict[str, Any] = self.post(
            CONTROL, body | {"rolling_percent": percent, "concurrence": concurrence}
        )
        self.network.advance(3)
        return ran

    def answer(self, agent_id: str, status: str = "succeed", **more: Any) -> dict[str, Any]:
        """The agent answers its last task; what the Manager says to that."""
        item = {"data_type": "5100", "token": self.commands.tokens()[agent_id], "status": status}
        return self.bring([item | {"msg": ""} | more])

    def bring(self, items: list[Any]) -> dict[str, Any]:
        """An AC brings results."""
        url = f"http://127.0.0.1:{self.deployment.settings.manager.port}{RESULTS}"
        reply = self.network.run(self.gateway.post(url, items))
        answer: dict[str, Any] = msgspec.json.decode(reply.body)
        self.assertEqual(answer["code"], 0)
        return answer

    def task(self, task_id: str) -> dict[str, Any]:
        """``getTask``."""
        found: dict[str, Any] = self.get(f"getTask/{task_id}")
        total = sum(value for key, value in found.items() if key.startswith("sub_task_"))
        self.assertEqual(total, found["id_count"])
        return found

    def subtask(self, task_id: str, agent_id: str = "a1") -> dict[str, Any]:
        """One subtask."""
        found: dict[str, Any] = next(
            each for each in self.get(f"getSubTask/{task_id}") if each["agent_id"] == agent_id
        )
        return found

    def states(self, task_id: str) -> dict[str, str]:
        """Agent id -> state."""
        return {each["agent_id"]: each["status"] for each in self.get(f"getSubTask/{task_id}")}
