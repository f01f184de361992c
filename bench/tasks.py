"""A task on 100,000 simulated agents, without a wire: created, and driven to its end.

    python -m bench.tasks [--agents 100000] [--concurrence 999] [--postgres] [--ids]

Everything but the AgentCenters is real: the engine, its threads, the database. A command is
taken in the next reactor turn, and its agent answers at once; results come in batches of 100, as
gateways send them. Before the figures stand the targets and the machine's yardstick. A run counts
only if every subtask has succeeded and the counters agree with the rows.

With ``--ids`` the task names as many agents one by one as it may, at most 200,000: those there
are, and unknown ones. Its body is decoded in the reactor, as the API does.
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from prometheus_client import CollectorRegistry
from sqlalchemy import func, select
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater, react
from twisted.python.threadpool import ThreadPool

from bench.gateway import REFERENCE_YARDSTICK, InvalidRun, yardstick
from elkeid import config
from elkeid.garbage import Keeper
from elkeid.lateness import LatenessMonitor
from elkeid.manager.documents import Source, agent_report
from elkeid.manager.result_intake import ResultIntake
from elkeid.manager.store.agents import apply_reports
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.schema import subtask, task
from elkeid.manager.store.store import THREADS, PoolThreads, Store
from elkeid.manager.store.task_work import Verdict
from elkeid.manager.task_bodies import CreateTask
from elkeid.manager.task_selection import IDS_LIMIT, Selection
from elkeid.manager.task_sending import Sent
from elkeid.manager.tasks import PLUGIN_TASK, Tasks, Wanted, make_tasks
from elkeid.web.schemas import BodySchema

CREATE_SECONDS = 10.0  # target for all agents
SUBTASKS_RATE = 2_000.0  # target, subtasks a second from the run to the end
BLOCKED_SECONDS = 0.05  # target, longest
RESULTS_BATCH = 100
AC = Source("127.0.0.1", 6752)
SPEC = {"name": "collector", "data": "", "token": "", "data_type": 5051}

reactor: Any = global_reactor


class Agents:
    """`Sender` whose agents answer at once."""

    def __init__(self, store: Store) -> None:
        self._intake = ResultIntake(store, time.time)
        self._results: list[dict[str, str]] = []
        self.bringing: list[Deferred[Any]] = []

    async def send(self, source: Source, body: Callable[[], bytes]) -> Sent:
        """Take it in the next turn."""
        token = msgspec.json.decode(body())["command"]["task"]["token"]
        await deferLater(reactor, 0)
        self._results.append({"token": token, "data_type": "5100", "status": "succeed", "msg": ""})
        if len(self._results) >= RESULTS_BATCH:
            self.bring()
        return Sent(Verdict.TAKEN)

    def bring(self) -> None:
        """Bring the results that there are."""
        batch, self._results = self._results, []
        if batch:
            self.bringing.append(
                Deferred.fromCoroutine(self._intake.bring(batch, 100 * len(batch)))
            )


async def fill(store: Store, count: int) -> None:
    """Have so many agents connected."""
    for start in range(0, count, 500):
        reports = []
        for number in range(start, min(start + 500, count)):
            info = {
                "agent_id": f"agent-{number:07}",
                "hostname": f"host-{number}",
                "state": "running",
                "last_heartbeat_time": int(time.time()),
            }
            made = agent_report({"agent_info": info, "plugins_info": []})
            assert made is not None
            reports.append(made)
        await store.write(apply_reports, AC, reports)


async def finished(store: Store, agents: Agents, task_id: str) -> Any:
    """Wait for the end; the task's row."""

    def row(connection: Any) -> Any:
        return connection.execute(select(task).where(task.c.task_id == task_id)).one()

    while True:
        agents.bring()
        found = await store.read(row)
        if found.status == "finished":
            await DeferredList(agents.bringing)
            return found
        await deferLater(reactor, 0.1)


def named(count: int) -> bytes:
    """A body that names all agents one by one, in no order, and unknown ones for the rest."""
    ids = [f"agent-{number:07}" for number in range(count)]
    ids += [str(uuid4()) for _ in range(IDS_LIMIT - count)]
    random.Random(7).shuffle(ids)
    return msgspec.json.encode({"data": {"task": SPEC}, "id_list": ids[:IDS_LIMIT]})


async def measure(url: str, count: int, concurrence: int, ids: bool) -> None:
    """One run."""
    pool = ThreadPool(0, THREADS, "store")
    pool.start()
    store = Store(make_database(url), PoolThreads(reactor, pool))
    await store.open()
    agents = Agents(store)
    settings = config.parse({}, Path(tempfile.gettempdir())).manager
    engine, tasks = make_tasks(
        reactor, store, agents, time.time, settings=settings, registry=CollectorRegistry()
    )
    try:
        await fill(store, count)
        engine.start()
        await drive(store, engine, tasks, agents, (count, concurrence, ids))
    finally:
        await engine.stop()
        await store.close()
        pool.stop()


async def drive(
    store: Store, engine: Any, tasks: Tasks, agents: Agents, size: tuple[int, int, bool]
) -> None:
    """Create, run, wait, check, print."""
    count, concurrence, ids = size
    body, schema = named(count) if ids else b"", BodySchema(CreateTask)
    lateness = LatenessMonitor(reactor, time.monotonic)
    keeper = Keeper(reactor)  # as in every process of ours
    keeper.start()
    lateness.start()
    await deferLater(reactor, 0.1)
    began, cpu = time.monotonic(), time.process_time()
    selection = Selection(id_list=schema.decode(body).id_list) if ids else Selection(all=True)
    wanted = Wanted(
        task_type=PLUGIN_TASK,
        data={"task": SPEC},
        selection=selection,
        user="admin",
    )
    created = await tasks.create(wanted)
    answered = time.monotonic() - began

    def preparing(connection: Any) -> bool:
        return bool(
            connection.execute(
                select(task.c.selecting).where(task.c.task_id == created.task_id)
            ).scalar_one()
        )

    while await store.read(preparing):
        await deferLater(reactor, 0.02)
    creation = time.monotonic() - began
    creation_worst = lateness.worst
    began = time.monotonic()
    await tasks.run(created.task_id, percent=1.0, count=None, concurrence=concurrence)
    row = await finished(store, agents, created.task_id)
    took = time.monotonic() - began
    cpu = time.process_time() - cpu
    lateness.stop()
    keeper.stop()

    def states(connection: Any) -> dict[str, int]:
        counted = select(subtask.c.status, func.count()).group_by(subtask.c.status)
        return dict(connection.execute(counted).all())

    if await store.read(states) != {"result_succeed": count} or row.n_result_succeed != count:
        raise InvalidRun(f"not every subtask succeeded: {row}")
    print(
        f"  created: answered in {answered:.2f} s, whole in {creation:.2f} s "
        f"(target {CREATE_SECONDS:g}), "
        f"reactor late by at most {creation_worst * 1000:.0f} ms meanwhile\n"
        f"  driven to its end: {took:.1f} s, {count / took:.0f} subtasks/s "
        f"(target {SUBTASKS_RATE:g})\n"
        f"  CPU {cpu / count * 1e6:.0f} us a subtask, both together; reactor late by at most "
        f"{lateness.worst * 1000:.0f} ms (target {BLOCKED_SECONDS * 1000:g})"
    )


async def main(_: Any, count: int, concurrence: int, postgres: bool, ids: bool) -> None:
    """On each database that was asked for."""
    print(
        f"{count} agents{', named one by one' if ids else ''}, concurrence {concurrence}; "
        f"yardstick {yardstick():.2f} s "
        f"(reference {REFERENCE_YARDSTICK}), load {os.getloadavg()[0]:.1f}"
    )
    folder = Path(tempfile.mkdtemp())
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        print("SQLite")
        await measure(f"sqlite:///{folder / 'manager.db'}", count, concurrence, ids)
        if postgres:
            from tests.integration.postgres import own_postgres  # noqa: PLC0415

            print("PostgreSQL")
            server = stack.enter_context(own_postgres(fsync="on"))
            await measure(server.url(server.new_database()), count, concurrence, ids)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--concurrence", type=int, default=999)
    parser.add_argument("--postgres", action="store_true", help="on a server of its own, too")
    parser.add_argument("--ids", action="store_true", help="name the agents one by one")
    given = parser.parse_args()
    if given.ids and given.agents > IDS_LIMIT:
        parser.error(f"--ids: at most {IDS_LIMIT} agents")

    def begin(clock: Any) -> Any:
        """For `react`."""
        return Deferred.fromCoroutine(
            main(clock, given.agents, given.concurrence, given.postgres, given.ids)
        )

    react(begin, [])
