"""What clients send and get about tasks.

Source: docs/protocol.md, "Manager API", "Tasks".
"""

from typing import Annotated, Any, Literal

import msgspec

from elkeid.manager.config_api import CONFIG_ITEMS, ConfigItem
from elkeid.manager.filter import FilterBody
from elkeid.manager.selection import AgentId, HostSelector, Words
from elkeid.manager.task_selection import IDS_LIMIT

DATA_CHARACTERS = 3 << 20
"""Of a task's text; agents take no Command above 4 MiB, in which it stands in UTF-8."""

SECONDS_LIMIT = 90 * 86400
"""Of an answer's or an agent's delay: a task that takes longer than a quarter is a new one."""

CONCURRENCE_LIMIT = 999
"""Commands of one task under way at once in each Manager."""

RESENDS_LIMIT = 10
"""Of one subtask whose arrival is not known; each may be carried out."""

REASON_CHARACTERS = 1_000

Seconds = Annotated[int, msgspec.Meta(ge=0, le=SECONDS_LIMIT)]
_Name = Annotated[str, msgspec.Meta(max_length=256)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
_Ids = Annotated[list[AgentId], msgspec.Meta(max_length=IDS_LIMIT)]
TaskId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class TaskSpec(msgspec.Struct):
    """What a plugin, or the agent itself, is told; the token is ours to make."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    data_type: _Int32
    data: Annotated[str, msgspec.Meta(max_length=DATA_CHARACTERS)] = ""
    token: Annotated[str, msgspec.Meta(max_length=64)] = ""


class TaskData(msgspec.Struct):
    """What agents are sent."""

    agent_ctrl: _Int32 = 0
    task: TaskSpec | None = None
    config: Annotated[list[ConfigItem], msgspec.Meta(max_length=CONFIG_ITEMS)] | None = None


class CreateTask(msgspec.Struct):
    """Body of ``createTask/ctrl``, ``/config`` and ``/task``; other keys are ignored."""

    data: TaskData
    tag: Annotated[str, msgspec.Meta(max_length=128)] = ""
    id_list: _Ids | None = None
    filter: FilterBody | None = None
    all: bool = False
    task_name: _Name = ""
    action: Annotated[str, msgspec.Meta(max_length=64)] = ""
    subtask_running_timeout: Seconds = 0
    wait_seconds: Seconds | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=RESENDS_LIMIT)] = 0
    allow_empty: bool = False
    confirm_drops: bool = False


class DeleteConfig(msgspec.Struct):
    """Body of ``createTask/delConfig``: plugins that hosts shall not run any more."""

    data: Annotated[
        list[Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_-]{1,64}\Z")]],
        msgspec.Meta(min_length=1, max_length=CONFIG_ITEMS),
    ]
    tag: Annotated[str, msgspec.Meta(max_length=128)] = ""
    id_list: _Ids | None = None
    wait_seconds: Seconds | None = None
    allow_empty: bool = False
    confirm_drops: bool = False


class Created(msgspec.Struct):
    """A task that is there; ``approval`` says whether a second person must approve it."""

    task_id: str
    count: int
    approval: str = ""


class ControlTask(msgspec.Struct):
    """Body of ``controlTask`` of v1; what an action does not need may be left out."""

    task_id: TaskId
    action: str
    rolling_percent: float | None = None
    run_number: int | None = None
    concurrence: int | None = None
    confirm_drops: bool = False


class Controlled(msgspec.Struct, omit_defaults=True):
    """What became of a ``controlTask``; the last two are of a run."""

    taskID: str
    jobID: str = ""
    id_count: int = 0


class QuickSpec(msgspec.Struct):
    """The command of a quick task; only its task is used."""

    task: TaskSpec


class QuickTask(msgspec.Struct):
    """Body of ``quickTask/task``."""

    agent_id: AgentId
    command: QuickSpec


class QuickQuery(msgspec.Struct):
    """Whether a result is wanted, and for how long."""

    token: bool = False
    timeout: Seconds = 0


class Decide(msgspec.Struct):
    """Body of ``approveTask``: a second person's word."""

    task_id: TaskId
    approve: bool
    reason: Annotated[str, msgspec.Meta(pattern=r"\S", max_length=REASON_CHARACTERS)]


class JobQuery(msgspec.Struct):
    """Upstream's ``result=true`` is accepted: results stand in subtasks."""

    result: bool = False


class JobShown(msgspec.Struct):
    """One run."""

    info: dict[str, Any]
    stat: dict[str, Any]
    res: list[str] | None = None


class Decision(msgspec.Struct):
    """A second person's word on a task."""

    username: str
    approved: bool
    reason: str
    time: int


class BesideSubtasks(msgspec.Struct):
    """What stands beside a page of one task's subtasks."""

    total: int
    pages: int
    page: int
    page_size: int


class BesideConfig(msgspec.Struct):
    """Whether a host has a list of its own."""

    own: bool


class CreateAgentTask(HostSelector, kw_only=True):
    """Body of v6's ``createAgentTask``."""

    action: Literal["agt_reboot", "agt_update"]
    task_name: _Name = ""
    module_id: Annotated[str, msgspec.Meta(max_length=64)] = ""


class CreateRebootTask(HostSelector, kw_only=True):
    """Body of v6's ``CreateRebootAgentTask``."""

    task_name: _Name = ""


class TaskListQuery(msgspec.Struct):
    """Body of v6's ``getTaskList``; what is missing or empty asks for nothing."""

    task_name: Annotated[str, msgspec.Meta(max_length=256)] = ""  # a regular expression
    task_status: Words | None = None
    action: Words | None = None
    task_user: Annotated[str, msgspec.Meta(max_length=64)] = ""
    tag: Annotated[str, msgspec.Meta(max_length=128)] = ""


class ListedTask(msgspec.Struct):
    """A task in v6's list."""

    task_id: str
    task_name: str
    task_status: str
    action: str
    task_user: str
    tag: str
    id_count: int
    sub_task_created: int
    sub_task_running: int
    sub_task_failed: int
    sub_task_succeed: int
    sub_task_cancelled: int
    create_time: int
    update_time: int


class SubTaskListQuery(msgspec.Struct):
    """Body of v6's ``getSubTaskList``."""

    task_id: TaskId
    status: Words | None = None
    hostname: Annotated[str, msgspec.Meta(max_length=256)] = ""  # a regular expression


class ListedSubtask(msgspec.Struct):
    """A subtask in v6's list."""

    task_id: str
    agent_id: str
    status: str
    hostname: str
    update_time: int


class ErrorHosts(msgspec.Struct):
    """Selected hosts, and how many of them a task would have to wait for."""

    error_num: int
    all_num: int
