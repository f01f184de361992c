"""Tasks in v6's words: ``/api/v6/agent/...``, and restarting agents."""

from typing import Any

import msgspec

from elkeid.manager.codes import UNKNOWN_ERROR
from elkeid.manager.filter import Every, IsIn, Matches, Path, Test, pattern_at
from elkeid.manager.lists import LongLists
from elkeid.manager.pages import Paged, PageQuery, listed
from elkeid.manager.roles import AGENT_READERS, AGENT_WRITERS
from elkeid.manager.selection import SELECTOR_BYTES, HostSelector, check_named
from elkeid.manager.store.starts import Start
from elkeid.manager.store.store import Store
from elkeid.manager.store.task_lists import Found, count_of_listed, listed_subtasks
from elkeid.manager.store.task_work import AGENT_NAME
from elkeid.manager.task_api import NO_SUCH_TASK, controlled, found_tasks, shown_task
from elkeid.manager.task_bodies import (
    Controlled,
    ControlTask,
    CreateAgentTask,
    Created,
    CreateRebootTask,
    ErrorHosts,
    ListedSubtask,
    ListedTask,
    SubTaskListQuery,
    TaskListQuery,
)
from elkeid.manager.task_selection import Selection
from elkeid.manager.tasks import PLUGIN_TASK, REBOOT, Tasks, Wanted
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes

LISTED_ACTIONS = ("reboot_agent", "agt_reboot", "sync_config")
"""What ``getTaskList`` shows if no action is asked for: what v6 itself creates."""

_REBOOT = {"task": {"name": AGENT_NAME, "data": "", "token": "", "data_type": REBOOT}}


class AgentTaskRoutes:
    """Tasks of v6.

    Args:
        tasks: creates and controls them.
        store: open.
        lists: remembers where pages began, and how many match.
    """

    routes = Routes("/api/v6", auth=AuthKind.TOKEN)

    def __init__(self, tasks: Tasks, store: Store, lists: LongLists) -> None:
        self._tasks, self._store, self._lists = tasks, store, lists

    @routes.get(
        "/agent/getTask/<string:task_id>",
        levels=AGENT_READERS,
        answer=dict[str, Any],
        summary="Show one task and how far it is",
    )
    async def show(self, call: Call) -> object:
        """As in v1."""
        return await shown_task(self._store, call.parts["task_id"])

    @routes.post(
        "/agent/controlTask",
        body=ControlTask,
        levels=AGENT_WRITERS,
        answer=Controlled,
        summary="Run a task's next hosts, pause, resume or cancel it",
    )
    async def control(self, call: Call[None, ControlTask]) -> object:
        """As in v1; a run names ``run_number`` hosts."""
        return await controlled(self._tasks, call.body, call.identity.user.username)

    @routes.post(
        "/agent/createAgentTask",
        body=CreateAgentTask,
        limit=SELECTOR_BYTES,
        levels=AGENT_WRITERS,
        answer=Created,
        summary="Create a task that restarts agents",
    )
    async def create(self, call: Call[None, CreateAgentTask]) -> object:
        """Updates go by configs: there are no templates to update agents by."""
        body = call.body
        if body.action == "agt_update":
            raise CodedRefusal(
                UNKNOWN_ERROR,
                f"module_id: there is no template {body.module_id!r}; agents are updated by "
                "createTask/config",
            )
        return await self._reboot(body, body.task_name, body.action, call)

    @routes.post(
        "/component/CreateRebootAgentTask",
        body=CreateRebootTask,
        limit=SELECTOR_BYTES,
        levels=AGENT_WRITERS,
        answer=Created,
        summary="Create a task that restarts agents",
    )
    async def create_reboot(self, call: Call[None, CreateRebootTask]) -> object:
        """It is sent when it is run."""
        return await self._reboot(call.body, call.body.task_name, "reboot_agent", call)

    async def _reboot(self, hosts: HostSelector, name: str, action: str, call: Call) -> Created:
        return await self._tasks.create(
            Wanted(
                task_type=PLUGIN_TASK,
                data=_REBOOT,
                selection=selection_of(hosts),
                user=call.identity.user.username,
                task_name=name,
                action=action,
            )
        )

    @routes.post(
        "/agent/getTaskList",
        query=PageQuery,
        body=TaskListQuery,
        reads=True,
        levels=AGENT_READERS,
        answer=list[ListedTask],
        beside=Paged,
        summary="List tasks",
    )
    async def tasks(self, call: Call[PageQuery, TaskListQuery]) -> object:
        """The newest first."""
        asked, body = call.query, call.body
        tests: list[Test] = [IsIn(Path(("action",)), tuple(body.action or LISTED_ACTIONS))]
        if body.task_name:
            pattern = pattern_at(body.task_name, "task_name")
            tests.append(Matches(Path(("task_name",)), pattern))
        if body.task_status:
            tests.append(IsIn(Path(("task_status",)), tuple(body.task_status)))
        for key in ("task_user", "tag"):
            if value := getattr(body, key):
                tests.append(IsIn(Path((key,)), (value,)))
        newest_first = "", True
        found = await found_tasks(
            self._store, self._lists, Every(tuple(tests)), asked, newest_first
        )
        return listed(asked, found.total, msgspec.convert(found.items, list[ListedTask]))

    @routes.post(
        "/agent/getSubTaskList",
        query=PageQuery,
        body=SubTaskListQuery,
        reads=True,
        levels=AGENT_READERS,
        answer=list[ListedSubtask],
        beside=Paged,
        summary="List the subtasks of a task with their hosts' names",
    )
    async def subtasks(self, call: Call[PageQuery, SubTaskListQuery]) -> object:
        """By agent id; hosts that are not known any more have no name."""
        asked, body = call.query, call.body
        hostname = pattern_at(body.hostname, "hostname") if body.hostname else ""
        states = sorted(set(body.status or ()))
        search, page = self._store.search, (asked.offset, asked.page_size)
        of = body.task_id, states, hostname

        async def look(total: int | None, start: Start | None) -> Found:
            found = await search(listed_subtasks, *of, page, total=total, start=start)
            if found is None:
                raise CodedRefusal(UNKNOWN_ERROR, NO_SUCH_TASK)
            return found

        async def count() -> int:
            return await search(count_of_listed, *of)

        found = await self._lists.page(f"subtasks of {of}", asked.offset, look, count)
        return listed(asked, found.total, msgspec.convert(found.items, list[ListedSubtask]))

    @routes.post(
        "/agent/GetErrorHostNum",
        body=HostSelector,
        limit=SELECTOR_BYTES,
        reads=True,
        levels=AGENT_READERS,
        answer=ErrorHosts,
        summary="Count selected hosts, and those that a task would have to wait for",
    )
    async def error_hosts(self, call: Call[None, HostSelector]) -> object:
        """Hosts that are offline, or never heard of."""
        everyone, there = await self._tasks.presence(selection_of(call.body))
        return ErrorHosts(everyone - there, everyone)


def selection_of(hosts: HostSelector) -> Selection:
    """What a selector of v6 means for a task: ids, if there are any, else conditions.

    Raises:
        ParameterInvalid: neither was given.
    """
    check_named(hosts)
    if hosts.id_list:
        return Selection(id_list=hosts.id_list)
    return Selection(conditions=hosts.conditions, all=hosts.all)
