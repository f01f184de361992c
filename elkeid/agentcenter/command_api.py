"""``POST /command``: what Managers of either make send to agents.

Source: docs/protocol.md, "Commands".
"""

from collections.abc import Callable
from typing import Final

import msgspec
from twisted.internet.defer import Deferred

from elkeid.agentcenter.commands import Commands, Outcome
from elkeid.agentcenter.configs import Config, ConfigInvalid, Entry, Int32, Text, config_of
from elkeid.agentcenter.identity import DERIVED_PREFIX
from elkeid.agentcenter.tokens import TokenBook
from elkeid.web.answers import Answer
from elkeid.web.refusals import ParameterInvalid
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.wire.command import COMMAND_BYTES, Task, encode_command

BODY_BYTES: Final = 12 << 20
"""A task of 4 MiB is mostly JSON itself, and every quote in it takes two bytes more."""

UPLOAD: Final = 1050
"""Data type of a task that makes an agent upload a file under the task's token."""

REACHED: Final = (Outcome.WRITTEN, Outcome.PARTLY)
"""The agent has it, or will."""

REASONS: Final = {
    Outcome.NOT_CONNECTED: "agentID not found",
    Outcome.QUEUE_FULL: "the sendPool of the agent is full",
    Outcome.WITHDRAWN: "the sendPool of the agent is full",
    Outcome.PARTLY: "the command has been sent but get results timed out",
    Outcome.LOST: "transport is closing",
}
"""``data`` of a refusal, in the words that clients know; ``outcome`` beside it is exact."""


class TaskBody(msgspec.Struct):
    """A `Task` in JSON."""

    data_type: Int32 | None = None
    name: Text = None
    data: Text = None
    token: Text = None


class CommandPart(msgspec.Struct):
    """A task, a config or both. ``agent_ctrl`` is known to no agent, and not passed on."""

    agent_ctrl: Int32 | None = None
    task: TaskBody | None = None
    config: list[Entry] | None = None


class CommandBody(msgspec.Struct):
    """Body of ``POST /command``."""

    agent_id: str
    command: CommandPart | None = None
    allow_empty: bool = False


class CommandRoutes:
    """Takes commands.

    Args:
        commands: sends them.
        tokens: is told of upload tasks that an agent was sent.
        sent: is told of configs: agent id, config, outcome.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(
        self,
        commands: Commands,
        tokens: TokenBook,
        sent: Callable[[str, Config, Outcome], None],
    ) -> None:
        self._commands, self._tokens, self._sent = commands, tokens, sent

    @routes.post(
        "/command",
        body=CommandBody,
        answer=str,
        limit=BODY_BYTES,
        summary="Send a task, a config or both to an agent, and say what became of it",
    )
    async def command(self, call: Call[None, CommandBody]) -> object:
        """Code 0 when it was wholly written to the agent's connection, else 3 and the reason."""
        body = call.body
        if not body.agent_id:
            raise ParameterInvalid("agent_id: empty")
        task, config = parts_of(body, call.raw_body)
        # The config first: it may be repeated, should the other half fail and be sent again.
        parts = [] if config is None else [config.command]
        if task is not None:
            parts.append(encode_command(task))
            if len(parts[-1]) > COMMAND_BYTES:
                raise ParameterInvalid(
                    f"command.task: {len(parts[-1])} bytes encoded; agents take "
                    f"{COMMAND_BYTES} at most"
                )
        # Whoever asked may hang up; what was sent is noted all the same.
        answer: Deferred[Outcome] = Deferred()

        def settled(outcome: Outcome) -> None:
            if config is not None:
                self._sent(body.agent_id, config, outcome)
            if task is not None and task.data_type == UPLOAD and outcome in REACHED:
                self._tokens.sent(task.token, body.agent_id)
            answer.callback(outcome)

        self._commands.send(body.agent_id, parts).addCallback(settled)
        outcome = await answer
        if outcome is Outcome.WRITTEN:
            return ""
        return Answer(
            200,
            {
                "code": 3,
                "msg": "some errors occurred",
                "data": REASONS[outcome],
                "outcome": outcome.value,
            },
        )


def parts_of(body: CommandBody, raw: bytes) -> tuple[Task | None, Config | None]:
    """Task and config to send; at least one of them, and never an empty config by accident.

    An agent takes a Command without a task for the whole list of what it shall run, and unloads
    every plugin at an empty one. So that needs these very words:
    ``{"agent_id": ..., "command": {"config": []}, "allow_empty": true}``.

    Args:
        body: as decoded.
        raw: the same, as it came.

    Raises:
        ParameterInvalid: there is nothing to send, or what no agent may be sent.
    """
    part = body.command or CommandPart()
    if not part.config:
        if part.task is not None:
            return _task(part.task), None
        emptied = {
            "agent_id": body.agent_id,
            "command": {"config": []},
            "allow_empty": True,
        }
        if msgspec.json.decode(raw) != emptied:
            raise ParameterInvalid(
                "command: neither a task nor a config; an empty one would unload every plugin"
            )
    if body.agent_id.startswith(DERIVED_PREFIX):
        raise ParameterInvalid("command.config: an agent without an id of its own gets no config")
    try:
        config = config_of(part.config or ())
    except ConfigInvalid as error:
        raise ParameterInvalid(f"command.{error}") from error
    task = None if part.task is None else _task(part.task)
    # Stock Managers send an empty task beside every config.
    return (None if task == Task() else task), config


def _task(body: TaskBody) -> Task:
    return Task(body.data_type or 0, body.name or "", body.data or "", body.token or "")
