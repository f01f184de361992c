"""Tasks as operators have them: created, approved, run, paused, cancelled.

Source: docs/tasks.md.
"""

from collections.abc import Callable
from secrets import token_hex
from typing import Any, Final

import msgspec
from attrs import frozen
from prometheus_client import CollectorRegistry
from sqlalchemy import Connection
from twisted.internet.interfaces import IReactorTime

from elkeid.config import ManagerSettings
from elkeid.manager.codes import PARAM_INVALID, UNKNOWN_ERROR
from elkeid.manager.documents import Source
from elkeid.manager.filter import IsIn, Path
from elkeid.manager.store.results import issue_tokens
from elkeid.manager.store.store import Store
from elkeid.manager.store.task_hosts import choose, presence_of
from elkeid.manager.store.task_lists import body_of, whereabouts
from elkeid.manager.store.task_retention import forget_some
from elkeid.manager.store.task_work import (
    AGENT_NAME,
    CONFIG_TASK,
    Done,
    Order,
    Verdict,
    begin_slice,
    note_done,
)
from elkeid.manager.store.tasks import (
    WAITING,
    Begun,
    ControlRefused,
    Decided,
    NewTask,
    Quick,
    Run,
    cancel_task,
    create_quick,
    create_task,
    decide_approval,
    number_of,
    pause_task,
    resume_task,
    run_task,
)
from elkeid.manager.task_bodies import CONCURRENCE_LIMIT, Created
from elkeid.manager.task_engine import LEASE_SECONDS, EngineSettings, TaskEngine
from elkeid.manager.task_selection import Selection
from elkeid.manager.task_sending import Sender, Sent
from elkeid.metrics import TaskMetrics
from elkeid.web.refusals import CodedRefusal, ParameterInvalid

PLUGIN_TASK: Final = "Agent_Task"
CTRL_TASK: Final = "Agent_Ctrl"

UPLOAD: Final = 1050
"""Data type of a task that makes an agent upload a file."""

REBOOT: Final = 1060
"""Data type of a task that makes an agent exit, to be started again; it answers nothing."""

REBOOT_ACTIONS: Final = frozenset({"reboot_agent", "agt_reboot"})

ONLINE: Final = IsIn(Path(("agent_state",)), ("running", "abnormal"))

PREPARE_SECONDS: Final = 1.0
"""Of selecting before the answer: small tasks can be run as soon as they are created."""


@frozen
class TaskDefaults:
    """Of ``[manager]``."""

    result_seconds: float
    wait_seconds: float
    approval_hosts: int
    approval_uploads: bool


@frozen(kw_only=True)
class Wanted:
    """A task as it was asked for.

    Attributes:
        result_seconds: 0 for the default.
        wait_seconds: None for the default.
    """

    task_type: str
    data: dict[str, Any]
    selection: Selection
    user: str
    task_name: str = ""
    action: str = ""
    result_seconds: float = 0
    wait_seconds: float | None = None
    resends: int = 0
    allow_empty: bool = False
    drops_confirmed: bool = False


class Tasks:
    """Creates and controls tasks.

    Args:
        store: open.
        engine: does the work.
        sender: for quick tasks.
        wall: seconds since the epoch.
        defaults: see there.
    """

    def __init__(
        self,
        store: Store,
        engine: TaskEngine,
        sender: Sender,
        wall: Callable[[], float],
        defaults: TaskDefaults,
    ) -> None:
        self._store, self._engine, self._sender = store, engine, sender
        self._wall, self._defaults = wall, defaults

    async def create(self, wanted: Wanted) -> Created:
        """Store a task; nothing is sent before it is run.

        Raises:
            FilterError: the filter cannot be used.
        """
        chosen, count = await self._store.search(choose, wanted.selection)
        needs_approval = self._uploads(wanted.data) or (0 < self._defaults.approval_hosts < count)
        new = self._new(wanted, WAITING if needs_approval else "")
        number, task_id = await self._store.write(create_task, new, self._wall())
        if not await self._engine.prepare(number, PREPARE_SECONDS, chosen):
            self._engine.wake()
        return Created(task_id, count, new.approval)

    async def presence(self, selection: Selection) -> tuple[int, int]:
        """How many hosts are selected, unknown ids too, and how many of them are not offline.

        Raises:
            FilterError: the filter cannot be used.
        """
        return await self._store.search(presence_of, selection, ONLINE)

    def _uploads(self, data: dict[str, Any]) -> bool:
        spec = data["task"]
        return (
            self._defaults.approval_uploads
            and spec["name"] == AGENT_NAME
            and spec["data_type"] == UPLOAD
        )

    def _new(self, wanted: Wanted, approval: str) -> NewTask:
        reboot = wanted.action in REBOOT_ACTIONS
        spec = wanted.data["task"]
        wait = wanted.wait_seconds
        return NewTask(
            task_type=wanted.task_type,
            task_name=wanted.task_name,
            action=wanted.action,
            task_user=wanted.user,
            tag=wanted.selection.tag,
            data=wanted.data,
            selection=msgspec.to_builtins(wanted.selection),
            task_data_type=None if wanted.task_type == CONFIG_TASK else spec["data_type"],
            awaits_result=wanted.task_type == PLUGIN_TASK and not reboot,
            result_seconds=wanted.result_seconds or self._defaults.result_seconds,
            wait_seconds=self._defaults.wait_seconds if wait is None else wait,
            resends=wanted.resends,
            allow_empty=wanted.allow_empty,
            drops_confirmed=wanted.drops_confirmed,
            approval=approval,
        )

    async def run(
        self, task_id: str, *, percent: float | None, count: int | None, concurrence: int | None
    ) -> Begun:
        """Release the next hosts of a task.

        Args:
            task_id: which.
            percent: this part of all its hosts, above 0 and up to 1; or
            count: so many.
            concurrence: commands under way at once in each Manager.
        """
        if percent is not None and not 0 < percent <= 1:
            raise CodedRefusal(PARAM_INVALID, "rolling_percent: more than 0, at most 1")
        if percent is None and (count is None or count <= 0):
            raise CodedRefusal(PARAM_INVALID, "rolling_percent or run_number: required")
        if concurrence is None or not 0 < concurrence <= CONCURRENCE_LIMIT:
            raise CodedRefusal(PARAM_INVALID, f"concurrence: from 1 to {CONCURRENCE_LIMIT}")
        run = Run(percent=percent, count=count, concurrence=concurrence)
        begun: Begun = await self._control(run_task, task_id, run)
        self._engine.wake()
        return begun

    async def cancel(self, task_id: str) -> None:
        """Send nothing more of a task."""
        await self._control(cancel_task, task_id)
        self._engine.wake()

    async def pause(self, task_id: str, username: str) -> None:
        """Send nothing more of a task until it is resumed."""
        await self._control(pause_task, task_id, f"paused by {username}")

    async def resume(self, task_id: str, confirm_drops: bool) -> None:
        """Go on with a paused task."""
        await self._control(resume_task, task_id, confirm_drops)
        self._engine.wake()

    async def decide(self, task_id: str, decision: Decided) -> None:
        """Note a second person's word."""
        await self._control(decide_approval, task_id, decision)

    async def forget_some(self, before: float) -> bool:
        """Forget the next subtasks of a task that ended before a unix time, or the task itself.

        Returns:
            Whether there may be more.
        """
        return await self._store.write(forget_some, before, self._wall())

    async def _control(self, query: Callable[..., Any], task_id: str, *args: Any) -> Any:
        try:
            return await self._store.write(_control, query, task_id, args, self._wall())
        except ControlRefused as error:
            raise CodedRefusal(UNKNOWN_ERROR, str(error)) from error

    async def quick(
        self, agent_id: str, spec: dict[str, Any], user: str, *, recorded: bool, seconds: int
    ) -> str:
        """Send one task to one agent now.

        Args:
            agent_id: whose.
            spec: ``name``, ``data`` and ``data_type``.
            user: who asks.
            recorded: whether its result is wanted: it gets a token, and a subtask to look at.
            seconds: for the result; 0 for the default.

        Returns:
            The id by which its subtask is found; empty for one that is not recorded.
        """
        data = {"task": spec}
        if self._uploads(data):
            raise CodedRefusal(
                UNKNOWN_ERROR, "uploads need a second person's approval: use createTask/task"
            )
        place = await self._store.read(whereabouts, agent_id)
        if place is None:
            raise CodedRefusal(UNKNOWN_ERROR, "no agent with this id has ever been reported")
        if not place.connected or place.source_ip is None:
            raise CodedRefusal(UNKNOWN_ERROR, "the agent is not connected")
        source = Source(place.source_ip, place.source_port)
        order = Order(agent_id, None, source, None, 0, 0)
        if not recorded:
            sent = await self._send(order, data)
            self._check(sent)
            return ""
        new = self._new(
            Wanted(
                task_type=PLUGIN_TASK,
                data=data,
                selection=Selection(id_list=[agent_id]),
                user=user,
                action="quick",
                result_seconds=seconds,
            ),
            "",
        )
        number, task_id, to = await self._store.write(
            _begin_quick, new, order, self._engine.owner, self._wall()
        )
        order = Order(agent_id, to.token, source, None, 0, 0)
        sent = await self._send(order, data)
        done = Done(order, sent.verdict, sent.reason, sent.response)
        await self._store.write(note_done, number, to.slice_id, [done], self._wall(), ended=True)
        self._check(sent)
        return task_id

    async def _send(self, order: Order, data: dict[str, Any]) -> Sent:
        def body() -> bytes:
            return msgspec.json.encode(body_of(order.agent_id, order.token, data, None))

        return await self._sender.send(order.source, body)

    def _check(self, sent: Sent) -> None:
        if sent.verdict is not Verdict.TAKEN:
            raise CodedRefusal(UNKNOWN_ERROR, sent.reason)


def _control(
    connection: Connection,
    query: Callable[..., Any],
    task_id: str,
    args: tuple[Any, ...],
    now: float,
) -> Any:
    number = number_of(connection, task_id)
    if number is None:
        raise ControlRefused("there is no such task")
    return query(connection, number, *args, now)


def _begin_quick(
    connection: Connection, new: NewTask, order: Order, owner: str, now: float
) -> tuple[int, str, Quick]:
    (token,) = issue_tokens(connection, [order.agent_id], int(now))
    to = Quick(order.agent_id, token, str(order.source), token_hex(12))
    number, task_id = create_quick(connection, new, to, now)
    begin_slice(connection, number, to.slice_id, owner, now + LEASE_SECONDS)
    return number, task_id, to


def task_data(spec: Any, agent_ctrl: int = 0) -> dict[str, Any]:
    """``data`` of a task for a plugin, as documents have it.

    Raises:
        ParameterInvalid: there is nothing to send.
    """
    if spec is None:
        raise ParameterInvalid("data.task: required")
    data: dict[str, Any] = {
        "task": {
            "name": spec.name,
            "data": spec.data,
            "token": "",
            "data_type": spec.data_type,
        }
    }
    if agent_ctrl:
        data["agent_ctrl"] = agent_ctrl
    return data


NO_TASK: Final = {"name": "", "data": "", "token": "", "data_type": 0}
"""``data.task`` of a config task."""


def make_tasks(
    clock: IReactorTime,
    store: Store,
    sender: Sender,
    wall: Callable[[], float],
    *,
    settings: ManagerSettings,
    registry: CollectorRegistry,
) -> tuple[TaskEngine, Tasks]:
    """The engine, not started, and what operators use it by.

    Args:
        clock: for pauses.
        store: open before the engine starts.
        sender: brings commands to ACs.
        wall: seconds since the epoch.
        settings: ``[manager]``.
        registry: where metrics are shown.
    """
    engine = TaskEngine(
        clock,
        store,
        sender,
        wall,
        settings=EngineSettings(
            drop_hosts=settings.drop_hosts,
            drop_seconds=settings.drop_seconds,
            approval_hosts=settings.approval_hosts,
            lease_seconds=settings.task_lease_seconds,
        ),
        metrics=TaskMetrics(registry, lambda: engine.open),
    )
    defaults = TaskDefaults(
        result_seconds=settings.task_result_seconds,
        wait_seconds=settings.task_wait_seconds,
        approval_hosts=settings.approval_hosts,
        approval_uploads=settings.approval_uploads,
    )
    return engine, Tasks(store, engine, sender, wall, defaults)
