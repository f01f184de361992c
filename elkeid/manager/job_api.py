"""``/api/v0``: runs of tasks under the name of jobs, as upstream's low-level routes show them.

Upstream's Managers share the work on a job by calling each other; here all that is in the
database, and a job is a run of a task.

Source: docs/protocol.md, "Manager API", "Jobs".
"""

from contextlib import suppress
from typing import Annotated, Any

import msgspec

from elkeid.manager.inner_check import signed_only
from elkeid.manager.roles import AGENT_WRITERS, JOB_READERS
from elkeid.manager.store.store import Store
from elkeid.manager.store.task_lists import find_job
from elkeid.manager.tasks import Tasks
from elkeid.web.answers import Answer
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes

NOT_HERE = (
    "a job is a run of a task here: POST /api/v1/agent/createTask/task, "
    "then POST /api/v1/agent/controlTask"
)


class NewJob(msgspec.Struct):
    """What a job without a task would be."""

    name: str
    con_num: Annotated[int, msgspec.Meta(ge=1)] = 1
    timeout: Annotated[int, msgspec.Meta(ge=0)] = 0  # seconds


class JobId(msgspec.Struct):
    """Which job."""

    id: str


class JobState(msgspec.Struct):
    """A run and the states of what it has taken up; both empty if there is no such run."""

    info: dict[str, Any] = {}
    stat: dict[str, Any] = {}


class Done(msgspec.Struct):
    """That something was done, or in ``msg`` why not."""

    msg: str = "ok"


class StateAnswer(Done):
    """`JobState`, enveloped as v0 does."""

    data: JobState = msgspec.field(default_factory=JobState)


class ResultAnswer(Done):
    """Texts of a job's calls."""

    data: list[str] = []


class Announcement(msgspec.Struct):
    """What one Manager of upstream tells the others of a job."""

    action: str
    data: str  # JSON


class _AnnouncedJob(msgspec.Struct):
    id: str


class JobRoutes:
    """Jobs for users.

    Args:
        tasks: controls what a run belongs to.
        store: open.
    """

    routes = Routes("/api/v0/job", auth=AuthKind.TOKEN)

    def __init__(self, tasks: Tasks, store: Store) -> None:
        self._tasks, self._store = tasks, store

    @routes.post(
        "/new",
        body=NewJob,
        levels=AGENT_WRITERS,
        answer=Done,
        also={409: Done},
        enveloped=False,
        summary="Refuse to make a job without a task",
    )
    async def new(self, call: Call[None, NewJob]) -> object:
        """Upstream starts workers that never get anything to do, on every Manager."""
        return Answer(409, Done(NOT_HERE))

    @routes.post(
        "/distribute",
        reads=True,
        levels=AGENT_WRITERS,
        answer=dict[str, Any],
        enveloped=False,
        summary="Do nothing: runs hand out their work themselves",
    )
    async def distribute(self, call: Call) -> object:
        """As upstream."""
        return Answer(200, {})

    @routes.post(
        "/stop",
        body=JobId,
        levels=AGENT_WRITERS,
        answer=Done,
        enveloped=False,
        summary="Pause the task of a run",
    )
    async def stop(self, call: Call[None, JobId]) -> object:
        """Nothing more of it is sent until the task is resumed; ok for one that has ended, too."""
        job = await self._store.read(find_job, call.body.id)
        if job is not None:
            with suppress(CodedRefusal):  # it does not run
                await self._tasks.pause(job["info"]["task_id"], call.identity.user.username)
        return Answer(200, Done())

    @routes.get(
        "/stat",
        query=JobId,
        levels=JOB_READERS,
        answer=StateAnswer,
        enveloped=False,
        summary="Show a run",
    )
    async def stat(self, call: Call[JobId]) -> object:
        """With the states of the subtasks that it has taken up."""
        job = await self._store.read(find_job, call.query.id)
        state = JobState() if job is None else JobState(job["info"], job["stat"])
        return Answer(200, StateAnswer(data=state))

    @routes.get(
        "/result",
        query=JobId,
        levels=JOB_READERS,
        answer=ResultAnswer,
        enveloped=False,
        summary="Show the texts of a run's calls",
    )
    async def result(self, call: Call[JobId]) -> object:
        """None: what agents answered is with the subtasks."""
        return Answer(200, ResultAnswer())


class AnnouncementRoutes:
    """What Managers of upstream tell each other."""

    routes = Routes("/api/v0/inner", auth=AuthKind.SIGNED)

    @routes.post(
        "/sync",
        body=Announcement,
        answer=Done,
        also={400: Done},
        enveloped=False,
        reads=True,
        summary="Hear of another Manager's job",
    )
    async def sync(self, call: Call[None, Announcement]) -> object:
        """Managers meet in the database: there is nothing to start or to stop."""
        signed_only(call)
        if call.body.action in ("new", "stop"):
            try:
                msgspec.json.decode(call.body.data, type=_AnnouncedJob)
            except msgspec.DecodeError:
                return Answer(400, Done("post data error"))
        return Answer(200, Done())
