"""``/api/v1/agent/...Task...``: what hosts are told to do, and what came of it."""

from typing import Any

import msgspec

from elkeid.manager.codes import PARAM_INVALID, UNKNOWN_ERROR
from elkeid.manager.filter import FilterBody, Test, parse
from elkeid.manager.lists import LongLists
from elkeid.manager.pages import ModelPage, PageQuery, model_page
from elkeid.manager.roles import (
    AGENT_READERS,
    AGENT_WRITERS,
    APPROVERS,
    JOB_READERS,
)
from elkeid.manager.store.configs import find_config
from elkeid.manager.store.starts import Start
from elkeid.manager.store.store import Store
from elkeid.manager.store.task_lists import (
    AS_CREATED,
    Found,
    approvals_waiting,
    count_of_subtasks,
    count_of_tasks,
    decisions_on,
    find_job,
    find_task,
    page_of_subtasks,
    page_of_tasks,
    stored_host_config,
    subtasks_of,
)
from elkeid.manager.store.task_work import CONFIG_TASK
from elkeid.manager.store.tasks import Decided
from elkeid.manager.task_bodies import (
    BesideConfig,
    BesideSubtasks,
    Controlled,
    ControlTask,
    Created,
    CreateTask,
    Decide,
    Decision,
    DeleteConfig,
    JobQuery,
    JobShown,
    QuickQuery,
    QuickTask,
    TaskId,
)
from elkeid.manager.task_selection import Selection
from elkeid.manager.tasks import CTRL_TASK, NO_TASK, PLUGIN_TASK, Tasks, Wanted, task_data
from elkeid.web.answers import Enveloped
from elkeid.web.refusals import CodedRefusal, ParameterInvalid
from elkeid.web.routes import AuthKind, Call, MiB, Routes

CREATE_BYTES = 12 * MiB
"""Body of a new task: 200,000 ids of 36 characters, or a task of 3 MiB."""

NO_SUCH_TASK = "there is no such task"


class TaskRoutes:
    """Tasks in v1's words.

    Args:
        tasks: creates and controls them.
        store: open.
        lists: remembers where pages began, and how many match.
    """

    routes = Routes("/api/v1/agent", auth=AuthKind.TOKEN)

    def __init__(self, tasks: Tasks, store: Store, lists: LongLists) -> None:
        self._tasks, self._store, self._lists = tasks, store, lists

    @routes.post(
        "/createTask/task",
        body=CreateTask,
        limit=CREATE_BYTES,
        levels=AGENT_WRITERS,
        answer=Created,
        summary="Create a task for plugins or agents; it is sent when it is run",
    )
    async def create_task(self, call: Call[None, CreateTask]) -> object:
        """``count`` hosts are selected now."""
        return await self._create(call, PLUGIN_TASK, task_data(call.body.data.task))

    @routes.post(
        "/createTask/ctrl",
        body=CreateTask,
        limit=CREATE_BYTES,
        levels=AGENT_WRITERS,
        answer=Created,
        summary="Create a task that carries a control number besides",
    )
    async def create_ctrl(self, call: Call[None, CreateTask]) -> object:
        """No agent knows these numbers, and one alone would unload every plugin: refused."""
        data = call.body.data
        if data.agent_ctrl and data.task is None:
            raise ParameterInvalid(
                "data.task: required; agents take a control number alone for an empty config, "
                "and would unload every plugin"
            )
        return await self._create(call, CTRL_TASK, task_data(data.task, data.agent_ctrl))

    @routes.post(
        "/createTask/config",
        body=CreateTask,
        limit=CREATE_BYTES,
        levels=AGENT_WRITERS,
        answer=Created,
        summary="Create a task that changes what hosts shall run",
    )
    async def create_config(self, call: Call[None, CreateTask]) -> object:
        """Items are merged into each host's own list by name."""
        items = call.body.data.config
        if not items:
            raise ParameterInvalid("data.config: required, and not empty")
        data = {"task": NO_TASK, "config": [item.stored() for item in items]}
        return await self._create(call, CONFIG_TASK, data)

    @routes.post(
        "/createTask/delConfig",
        body=DeleteConfig,
        limit=CREATE_BYTES,
        levels=AGENT_WRITERS,
        answer=Created,
        summary="Create a task that takes plugins from hosts",
    )
    async def create_delete(self, call: Call[None, DeleteConfig]) -> object:
        """Each host keeps the rest of its list."""
        body = call.body
        wanted = Wanted(
            task_type=CONFIG_TASK,
            data={"task": NO_TASK, "config": [{"name": name} for name in body.data]},
            selection=Selection(tag=body.tag, id_list=body.id_list or []),
            user=call.identity.user.username,
            wait_seconds=body.wait_seconds,
            allow_empty=body.allow_empty,
            drops_confirmed=body.confirm_drops,
        )
        return await self._tasks.create(wanted)

    async def _create(
        self, call: Call[None, CreateTask], kind: str, data: dict[str, Any]
    ) -> Created:
        body = call.body
        return await self._tasks.create(
            Wanted(
                task_type=kind,
                data=data,
                selection=Selection(body.tag, body.id_list or [], body.filter, body.all),
                user=call.identity.user.username,
                task_name=body.task_name,
                action=body.action,
                result_seconds=body.subtask_running_timeout,
                wait_seconds=body.wait_seconds,
                resends=body.retries,
                allow_empty=body.allow_empty,
                drops_confirmed=body.confirm_drops,
            )
        )

    @routes.post(
        "/controlTask",
        body=ControlTask,
        levels=AGENT_WRITERS,
        answer=Controlled,
        summary="Run a task's next hosts, pause, resume or cancel it",
    )
    async def control(self, call: Call[None, ControlTask]) -> object:
        """A run releases hosts; they are sent the task as fast as ``concurrence`` lets them."""
        return await controlled(self._tasks, call.body, call.identity.user.username)

    @routes.post(
        "/quickTask/task",
        query=QuickQuery,
        body=QuickTask,
        limit=CREATE_BYTES,
        levels=AGENT_WRITERS,
        answer=str,
        summary="Send one task to one agent now",
    )
    async def quick(self, call: Call[QuickQuery, QuickTask]) -> object:
        """With ``token=true`` an id to find its result by: ``getSubTask/<id>``."""
        spec = task_data(call.body.command.task)["task"]
        return await self._tasks.quick(
            call.body.agent_id,
            spec,
            call.identity.user.username,
            recorded=call.query.token,
            seconds=call.query.timeout,
        )

    @routes.get(
        "/getTask/<string:task_id>",
        levels=AGENT_READERS,
        answer=dict[str, Any],
        summary="Show one task and how far it is",
    )
    async def show(self, call: Call) -> object:
        """Of long lists of hosts the first thousand."""
        return await shown_task(self._store, call.parts["task_id"])

    @routes.post(
        "/getTask/filter",
        query=PageQuery,
        body=FilterBody | None,
        reads=True,
        levels=AGENT_READERS,
        answer=ModelPage,
        summary="List the tasks that satisfy a filter",
    )
    async def list_tasks(self, call: Call[PageQuery, FilterBody | None]) -> object:
        """As created, or by ``order_key`` if ``order_value`` is 1 or -1."""
        asked, order = call.query, AS_CREATED
        if asked.order_key and asked.order_value in (1, -1):
            order = asked.order_key, asked.order_value < 0
        found = await found_tasks(self._store, self._lists, parse(call.body), asked, order)
        return model_page(asked, found.total, found.items)

    @routes.get(
        "/getSubTask/<string:task_id>",
        query=PageQuery,
        levels=AGENT_READERS,
        answer=list[dict[str, Any]],
        beside=BesideSubtasks,
        summary="List the subtasks of a task",
    )
    async def list_subtasks(self, call: Call[PageQuery]) -> object:
        """One page, by agent id; which one and how many there are stands beside ``data``."""
        asked, task_id = call.query, call.parts["task_id"]
        reading = self._lists.anchors.near(("subtasks", task_id), asked.offset)
        found = await self._store.read(
            subtasks_of, task_id, asked.offset, asked.page_size, reading.start
        )
        if found is None:
            raise CodedRefusal(UNKNOWN_ERROR, NO_SUCH_TASK)
        reading.found(*found.starts)
        page = model_page(asked, found.total, [])
        beside = {"total": page.total, "pages": page.pages, "page": page.page}
        return Enveloped(found.items, {**beside, "page_size": page.page_size})

    @routes.post(
        "/getSubTask/filter",
        query=PageQuery,
        body=FilterBody | None,
        reads=True,
        levels=AGENT_READERS,
        answer=ModelPage,
        summary="List the subtasks that satisfy a filter",
    )
    async def filter_subtasks(self, call: Call[PageQuery, FilterBody | None]) -> object:
        """By task and agent id."""
        asked, test, search = call.query, parse(call.body), self._store.search
        page = asked.offset, asked.page_size

        async def look(total: int | None, start: Start | None) -> Found:
            return await search(page_of_subtasks, test, *page, total=total, start=start)

        async def count() -> int:
            return await search(count_of_subtasks, test)

        found = await self._lists.page(f"subtasks {test!r}", asked.offset, look, count)
        return model_page(asked, found.total, found.items)

    @routes.get(
        "/getJob/<string:job_id>",
        query=JobQuery,
        levels=JOB_READERS,
        answer=JobShown,
        summary="Show one run of a task",
    )
    async def show_job(self, call: Call[JobQuery]) -> object:
        """With the states of the subtasks that it has taken up."""
        job = await self._store.read(find_job, call.parts["job_id"])
        if job is None:
            raise CodedRefusal(UNKNOWN_ERROR, "there is no such job")
        return JobShown(job["info"], job["stat"])

    @routes.get(
        "/getConfig/<string:agent_id>",
        levels=AGENT_READERS,
        answer=list[dict[str, Any]],
        beside=BesideConfig,
        summary="Show what one host shall run",
    )
    async def show_config(self, call: Call) -> object:
        """Its own list, else the default one; ``own`` beside ``data`` tells which."""
        own = await self._store.read(stored_host_config, call.parts["agent_id"])
        if own is not None:
            return Enveloped(own, {"own": True})
        default = await self._store.read(find_config)
        return Enveloped([] if default is None else default.items, {"own": False})

    @routes.get(
        "/getApprovals",
        query=PageQuery,
        levels=AGENT_READERS,
        answer=ModelPage,
        summary="List the tasks that wait for a second person",
    )
    async def approvals(self, call: Call[PageQuery]) -> object:
        """The oldest first."""
        asked = call.query
        found = await self._store.read(approvals_waiting, asked.offset, asked.page_size)
        return model_page(asked, found.total, found.items)

    @routes.get(
        "/getApproval/<string:task_id>",
        levels=AGENT_READERS,
        answer=list[Decision],
        summary="Show who approved or refused a task, and why",
    )
    async def decisions(self, call: Call) -> object:
        """An empty list for a task that nobody decided on."""
        found = await self._store.read(decisions_on, call.parts["task_id"])
        return msgspec.convert(found, list[Decision])

    @routes.post(
        "/approveTask",
        body=Decide,
        levels=APPROVERS,
        answer=Controlled,
        summary="Approve or refuse a task that someone else created",
    )
    async def approve(self, call: Call[None, Decide]) -> object:
        """A refusal cancels the task."""
        body = call.body
        decision = Decided(call.identity.user.username, body.approve, body.reason)
        await self._tasks.decide(body.task_id, decision)
        return Controlled(body.task_id)


async def controlled(tasks: Tasks, body: ControlTask, username: str) -> Controlled:
    """Do what a ``controlTask`` of either generation asks for."""
    task_id: TaskId = body.task_id
    match body.action:
        case "run":
            begun = await tasks.run(
                task_id,
                percent=body.rolling_percent,
                count=body.run_number,
                concurrence=body.concurrence,
            )
            return Controlled(task_id, begun.job_id, begun.count)
        case "cancel":
            await tasks.cancel(task_id)
        case "pause":
            await tasks.pause(task_id, username)
        case "resume":
            await tasks.resume(task_id, body.confirm_drops)
        case _:
            raise CodedRefusal(PARAM_INVALID, "action: run, pause, resume or cancel")
    return Controlled(task_id)


async def found_tasks(
    store: Store, lists: LongLists, test: Test, asked: PageQuery, order: tuple[str, bool]
) -> Found:
    """A page of a list of tasks of either generation; see `page_of_tasks`."""
    page = asked.offset, asked.page_size

    async def look(total: int | None, start: Start | None) -> Found:
        return await store.search(page_of_tasks, test, *page, order, total=total, start=start)

    async def count() -> int:
        return await store.search(count_of_tasks, test)

    return await lists.page(f"tasks {order} {test!r}", asked.offset, look, count)


async def shown_task(store: Store, task_id: str) -> dict[str, Any]:
    """``data`` of a ``getTask`` of either generation."""
    found = await store.read(find_task, task_id)
    if found is None:
        raise CodedRefusal(UNKNOWN_ERROR, NO_SUCH_TASK)
    return found
