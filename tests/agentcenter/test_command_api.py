"""``POST /command``: what stock Managers and ours are answered, and what no agent is ever sent."""

import json
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.command_api import CommandBody, CommandRoutes, parts_of
from elkeid.agentcenter.commands import COMMAND_SECONDS, Commands, Outcome
from elkeid.agentcenter.configs import Config
from elkeid.fleet.grpc_client import MessageReceived
from elkeid.web.refusals import ParameterInvalid
from elkeid.web.schemas import BodySchema
from elkeid.wire.command import COMMAND_BYTES, ConfigItem, Task, decode_command, encode_command
from elkeid.wire.compression import decompressor
from tests.agentcenter.face import Face
from tests.agentcenter.host import Host, batch, make_gateway

TASK = {"data_type": 5100, "name": "collector", "data": "{}", "token": "tok1"}
ENTRY = {
    "name": "driver",
    "type": "tar.gz",
    "version": "1.0.0.1",
    "sha256": "ab",
    "signature": "cd",
    "download_url": ["http://u/1", "http://u/2"],
    "detail": "",
}
GOLDEN_TASK = bytes.fromhex("121808ec271209636f6c6c6563746f721a027b7d2204746f6b31")
GOLDEN_CONFIG = bytes.fromhex(
    "1a390a0664726976657212067461722e677a1a07312e302e302e31220261622a026364320a687474703a2f2f752f31"
    "320a687474703a2f2f752f32"
)
EMPTIED = {"agent_id": "a1", "command": {"config": []}, "allow_empty": True}


class CommandApiTests(SynchronousTestCase):
    """`CommandRoutes`."""

    def setUp(self) -> None:
        self.gateway, _, self.clock = make_gateway()
        self.commands = Commands(self.gateway.table.get, self.clock)
        self.gateway.follow(self.commands)
        self.configs: list[tuple[str, dict[str, str], Outcome]] = []
        routes = CommandRoutes(self.commands, self.gateway.tokens, self.told)
        self.face = Face([routes], self.clock)
        self.host = Host(self.gateway)
        self.stream = self.host.open()
        self.host.send(self.stream, batch("a1", 1000))

    def told(self, agent_id: str, config: Config, outcome: Outcome) -> None:
        self.configs.append((agent_id, config.versions, outcome))

    def post(self, body: object, path: str = "/command") -> tuple[int, Any]:
        answer: tuple[int, Any] = self.face.ask("POST", path, body, seconds=5)
        return answer

    def received(self) -> list[bytes]:
        """What the host got meanwhile."""
        self.host.events.clear()
        self.host.pump()
        return [
            decompressor("snappy")(event.body, 8 << 20) if event.compressed else event.body
            for event in self.host.events
            if isinstance(event, MessageReceived)
        ]

    def test_task(self) -> None:
        """A task goes out byte by byte as stock gateways send it; both spellings are served."""
        for path in ("/command", "/command/"):
            answer = self.post({"agent_id": "a1", "command": {"task": TASK}}, path)
            self.assertEqual(answer, (200, {"code": 0, "msg": "success", "data": ""}))
            self.assertEqual(self.received(), [GOLDEN_TASK])
        self.assertEqual(self.configs, [])

    def test_config(self) -> None:
        """So does a config; an empty task beside it, as stock Managers send it, is dropped."""
        tasks: list[Any] = [{}, None, {"data_type": 0, "name": "", "data": "", "token": ""}]
        for task in tasks:
            command = {"agent_ctrl": 1, "task": task, "config": [ENTRY]}
            self.assertEqual(self.post({"agent_id": "a1", "command": command})[1]["code"], 0)
            self.assertEqual(self.received(), [GOLDEN_CONFIG])
        self.assertEqual(self.configs[0], ("a1", {"driver": "1.0.0.1"}, Outcome.WRITTEN))

    def test_both(self) -> None:
        """A task and a config go as two Commands: in one, agents would ignore the config."""
        command = {"task": TASK, "config": [ENTRY]}
        self.assertEqual(self.post({"agent_id": "a1", "command": command})[1]["code"], 0)
        self.assertEqual(self.received(), [GOLDEN_CONFIG, GOLDEN_TASK])

    def test_empty_task(self) -> None:
        """A task of zero values is a task: agents ignore it."""
        self.assertEqual(self.post({"agent_id": "a1", "command": {"task": {}}})[1]["code"], 0)
        self.assertEqual(self.received(), [b"\x12\x00"])

    def test_nulls(self) -> None:
        """Clients written in Go send null where there is nothing."""
        entry = {"name": "driver", "version": "1", "download_url": None, "detail": None}
        command = {"agent_ctrl": None, "task": None, "config": [entry]}
        self.assertEqual(self.post({"agent_id": "a1", "command": command})[1]["code"], 0)
        (sent,) = self.received()
        self.assertEqual(decode_command(sent).config, (ConfigItem("driver", version="1"),))

    def test_nothing_to_send(self) -> None:
        """Neither a task nor a config: refused before the agent is looked up, nothing sent."""
        for agent_id in ("a1", "nobody"):
            for command in (
                {},
                None,
                {"agent_ctrl": 1},
                {"task": None},
                {"config": []},
                {"config": None},
                {"task": None, "config": []},
            ):
                for more in ({}, {"allow_empty": False}, {"allow_empty": True, "x": 1}):
                    status, body = self.post({"agent_id": agent_id, "command": command} | more)
                    self.assertEqual((status, body["code"]), (400, 2), command)
                    self.assertEqual(body["msg"], "param invalid")
            self.assertEqual(self.post({"agent_id": agent_id})[1]["code"], 2)
        self.assertEqual(self.received(), [])
        self.assertEqual(self.commands.figures().outcomes, {})

    def test_near_to_the_words(self) -> None:
        """Emptying a host needs these very words: anything beside them refuses it."""
        for command in (
            {"config": [], "task": None},
            {"config": [], "agent_ctrl": 0},
            {"config": None},
            {},
        ):
            self.assertEqual(self.post(EMPTIED | {"command": command})[1]["code"], 2)
        for allow in (1, "true", None, False):
            self.assertEqual(self.post(EMPTIED | {"allow_empty": allow})[1]["code"], 2)
        self.assertEqual(self.received(), [])

    def test_emptied_on_purpose(self) -> None:
        """With them every plugin is unloaded."""
        self.assertEqual(self.post(EMPTIED)[1]["code"], 0)
        self.assertEqual(self.received(), [b""])
        self.assertEqual(self.configs, [("a1", {}, Outcome.WRITTEN)])

    def test_entries_without_a_name(self) -> None:
        """Agents would take such a list for an empty one: nobody is sent it."""
        for entries in ([{}], [ENTRY, {"name": ""}], [{"name": None, "version": "1"}]):
            status, body = self.post({"agent_id": "a1", "command": {"config": entries}})
            self.assertEqual((status, body["code"]), (400, 2))
            self.assertIn("name: empty", body["data"])
        status, body = self.post({"agent_id": "a1", "command": {"config": [{"name": "a b"}]}})
        self.assertEqual((status, body["code"]), (400, 2))
        self.assertIn("no entry has a name that an agent can load", body["data"])
        self.assertEqual(self.received(), [])

    def test_unidentified(self) -> None:
        """Agents that sent no id of their own get tasks, but no config."""
        body = {"agent_id": "noid-1", "command": {"config": [ENTRY]}}
        self.assertEqual(self.post(body)[1]["code"], 2)
        body = {"agent_id": "noid-1", "command": {"task": TASK}}
        self.assertEqual(self.post(body)[1]["code"], 3)

    def test_bad_bodies(self) -> None:
        """What is no JSON or of wrong types is 400 with code 2, as JSON like everything else."""
        for raw in (
            b"",
            b"{",
            b"[]",
            b'{"agent_id":1,"command":{"task":{}}}',
            b'{"command":{"task":{}}}',
            b'{"agent_id":"","command":{"task":{}}}',
            b'{"agent_id":"a1","command":[]}',
            b'{"agent_id":"a1","command":{"task":{"data_type":"5100"}}}',
            b'{"agent_id":"a1","command":{"task":{"data_type":2147483648}}}',
            b'{"agent_id":"a1","command":{"config":[1]}}',
            b'{"agent_id":"a1","command":{"config":{"name":"driver"}}}',
        ):
            status, body = self.post(raw)
            self.assertEqual((status, body["code"], body["msg"]), (400, 2, "param invalid"), raw)
        self.assertEqual(self.received(), [])

    def test_too_large(self) -> None:
        """More than an agent takes would end its stream: refused, whichever half it is."""
        long = "x" * COMMAND_BYTES
        for command in ({"task": TASK | {"data": long}}, {"config": [ENTRY | {"detail": long}]}):
            status, body = self.post({"agent_id": "a1", "command": command})
            self.assertEqual((status, body["code"]), (400, 2))
            self.assertIn(str(COMMAND_BYTES), body["data"])
        many = [ENTRY] * 1_001
        self.assertEqual(self.post({"agent_id": "a1", "command": {"config": many}})[1]["code"], 2)
        self.assertEqual(self.received(), [])

    def test_largest(self) -> None:
        """Just what an agent takes is sent."""
        size = 2 * COMMAND_BYTES - len(encode_command(Task(1, "p", "x" * COMMAND_BYTES)))
        task = {"data_type": 1, "name": "p", "data": "x" * size}
        answer = self.face.begin("POST", "/command", {"agent_id": "a1", "command": {"task": task}})
        self.face.flush()
        self.assertEqual([len(each) for each in self.received()], [COMMAND_BYTES])
        self.face.flush()
        self.assertEqual(self.successResultOf(answer)[1]["code"], 0)

    def refusal(self, body: object = None) -> tuple[str, str]:
        """Send, expect code 3; what is said to stock Managers, and to ours."""
        status, answer = self.post(body or {"agent_id": "a1", "command": {"task": TASK}})
        self.assertEqual((status, answer["code"], answer["msg"]), (200, 3, "some errors occurred"))
        return answer["data"], answer["outcome"]

    def test_not_connected(self) -> None:
        """An unknown agent is told in upstream's words."""
        told = self.refusal({"agent_id": "a2", "command": {"task": TASK}})
        self.assertEqual(told, ("agentID not found", "not_connected"))

    def test_not_taken(self) -> None:
        """One that is not begun, or not finished, is answered within 4 s."""
        self.host.frozen = True
        self.host.link.pauseProducing()
        began = self.clock.seconds()
        self.assertEqual(self.refusal(), ("the sendPool of the agent is full", "withdrawn"))
        self.assertLessEqual(self.clock.seconds() - began, COMMAND_SECONDS + 0.5)
        self.host.link.resumeProducing()
        noise = Random(1).randbytes(200_000).hex()
        told = self.refusal({"agent_id": "a1", "command": {"task": TASK | {"data": noise}}})
        self.assertEqual(
            told, ("the command has been sent but get results timed out", "partly_written")
        )
        for _ in range(32):
            self.commands.send("a1", [GOLDEN_TASK])
        self.assertEqual(self.refusal(), ("the sendPool of the agent is full", "queue_full"))

    def test_connection_lost(self) -> None:
        """One whose connection goes meanwhile says so."""
        self.host.link.pauseProducing()
        self.clock.callLater(1, self.host.drop)
        self.assertEqual(self.refusal(), ("transport is closing", "connection_lost"))

    def test_asker_hangs_up(self) -> None:
        """What was sent counts, also when nobody waits for the answer any more."""
        self.host.link.pauseProducing()
        upload: dict[str, Any] = {
            "data_type": 1050,
            "name": "elkeid-agent",
            "data": "{}",
            "token": "up",
        }
        body = {"agent_id": "a1", "command": {"task": upload, "config": [ENTRY]}}
        answer = self.face.begin("POST", "/command", body)
        self.face.flush()
        answer.addErrback(lambda failure: None)
        answer.cancel()
        self.face.flush()
        self.host.link.resumeProducing()
        self.assertEqual(self.received(), [GOLDEN_CONFIG, encode_command(Task(**upload))])
        self.assertEqual(self.configs, [("a1", {"driver": "1.0.0.1"}, Outcome.WRITTEN)])
        self.assertEqual(self.gateway.tokens.agent_of("up"), "a1")

    def test_unsigned(self) -> None:
        """Without a signature nothing is sent."""
        status, body = self.face.ask(
            "POST", "/command", {"agent_id": "a1", "command": {"task": TASK}}, signed=False
        )
        self.assertEqual((status, body["code"]), (403, 1))
        self.assertEqual(self.received(), [])

    def test_upload_tokens(self) -> None:
        """The token of an upload task is remembered once the agent was sent it."""
        upload = {"data_type": 1050, "name": "elkeid-agent", "data": "{}", "token": "up"}
        self.post({"agent_id": "a2", "command": {"task": upload}})
        self.assertIsNone(self.gateway.tokens.agent_of("up"))
        self.post({"agent_id": "a1", "command": {"task": upload}})
        self.assertEqual(self.gateway.tokens.agent_of("up"), "a1")
        self.post({"agent_id": "a1", "command": {"task": TASK}})
        self.assertIsNone(self.gateway.tokens.agent_of("tok1"))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from(["", "a1", "x"]),
    st.just([]),
    st.just({}),
)
TASKS = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("data_type", "name", "data", "token", "more"), VALUES)
    ),
)
ENTRIES = st.one_of(
    VALUES,
    st.lists(
        st.one_of(
            VALUES,
            st.fixed_dictionaries(
                {},
                optional={
                    "name": VALUES,
                    "version": VALUES,
                    "download_url": st.one_of(VALUES, st.lists(VALUES, max_size=2)),
                    "detail": VALUES,
                },
            ),
        ),
        max_size=3,
    ),
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "agent_id": VALUES,
        "allow_empty": st.one_of(VALUES, st.just(True)),
        "more": VALUES,
        "command": st.one_of(
            VALUES,
            st.fixed_dictionaries(
                {},
                optional={
                    "agent_ctrl": VALUES,
                    "task": TASKS,
                    "config": ENTRIES,
                    "more": VALUES,
                },
            ),
        ),
    },
)
SCHEMA = BodySchema(CommandBody)


@settings(max_examples=1_500, deadline=None)
@given(BODIES)
def test_never_an_empty_sync_by_accident(body: dict[str, Any]) -> None:
    """Whatever is posted, a Command without a task names plugins, or the body is the very words."""
    raw = json.dumps(body).encode()
    try:
        task, config = parts_of(SCHEMA.decode(raw), raw)
    except ParameterInvalid:
        return
    assert task is not None or config is not None
    if config is not None:
        command = decode_command(config.command)
        assert command.task is None
        if not command.config:
            assert task is None
            emptied = {"agent_id", "command", "allow_empty"}
            assert set(body) == emptied
            assert body["command"] == {"config": []}
            assert body["allow_empty"] is True
        assert all(item.name for item in command.config)
    if task is not None:
        assert decode_command(encode_command(task)).task == task
