"""Managers that are killed at random while they work on one task: nothing is lost or doubled."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from elkeid.manager.documents import Source
from elkeid.manager.store.agents import apply_reports
from elkeid.manager.store.engine import Database
from elkeid.manager.store.results import apply_results
from elkeid.manager.store.schema import subtask, task, task_resend, task_slice
from elkeid.manager.store.task_rows import STATES
from elkeid.manager.store.tasks import NewTask, Run, create_task, run_task
from tests.integration.postgres import needs_postgres
from tests.manager.stores import KINDS, migrated_url, opened, report

pytestmark = pytest.mark.integration

DEADLINE = 600.0  # seconds until it counts as stuck
AC = Source("127.0.0.1", 6752)


@contextmanager
def worker(url: str, log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """An engine as a process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.task_worker", url, str(log)]
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Crashes:
    """Workers on one database, killed at random, and agents that answer what they are sent.

    Args:
        database: open.
        url: its.
        log: where workers write what they send.
        chance: decides what happens.
    """

    def __init__(self, database: Database, url: str, log: Path, chance: random.Random) -> None:
        self.database, self.url, self.log, self.chance = database, url, log, chance
        self.sends: Counter[str] = Counter()  # agent id
        self.tokens: dict[str, set[str]] = {}
        self.kills = 0
        self._unread = ""
        self._read = 0
        self._late: list[str] = []  # tokens whose results come later
        self._last = 0  # pid that sent last
        self._since = 0  # commands sent since the last kill

    def agents(self, count: int) -> None:
        """Have so many agents connected."""
        for start in range(0, count, 500):
            ids = range(start, min(start + 500, count))
            with self.database.writing() as connection:
                apply_reports(connection, AC, [report(f"agent-{n:06}") for n in ids])

    def begin(self) -> int:
        """The number of a task for all of them, which is run as soon as it is prepared."""
        spec = {"name": "collector", "data": "", "token": "", "data_type": 5051}
        new = NewTask(
            task_type="Agent_Task",
            task_name="",
            action="",
            task_user="admin",
            tag="",
            data={"task": spec},
            selection={"all": True},
            task_data_type=5051,
            awaits_result=True,
            result_seconds=3600,
            wait_seconds=3600,
            resends=0,
        )
        with self.database.writing() as connection:
            number, _ = create_task(connection, new, time.time())
        return number

    def run(self, number: int, total: int) -> None:
        """Release half, later the rest, and kill workers until it is finished."""
        end = time.monotonic() + DEADLINE
        with ExitStack() as stack:
            workers = [stack.enter_context(worker(self.url, self.log)) for _ in range(2)]
            while self.row(number).selecting:
                assert time.monotonic() < end
                assert all(each.poll() is None for each in workers), "a worker ended by itself"
                time.sleep(0.1)
            parts = [total // 2, total - total // 2]
            patience = 0
            while (row := self.row(number)).status != "finished":
                assert time.monotonic() < end, row
                self.check_counters(row)
                if parts and row.n_result_succeed >= row.distributed:
                    with self.database.writing() as connection:
                        run_task(
                            connection,
                            number,
                            Run(count=parts.pop(), concurrence=max(50, total // 100)),
                            time.time(),
                        )
                if self._since > patience:
                    for at, each in enumerate(workers):
                        if each.pid == self._last:  # it is in the middle of something
                            each.send_signal(signal.SIGKILL)
                            each.wait()
                            self.kills += 1
                            workers[at] = stack.enter_context(worker(self.url, self.log))
                    self._since, patience = 0, self.chance.randrange(total // 20, total // 8)
                self.answer()
                time.sleep(0.02)
            while self.slices():  # of those that were killed: others see to them a lease later
                assert time.monotonic() < end
                time.sleep(0.1)

    def slices(self) -> int:
        """How many claims are open."""
        with self.database.reading() as connection:
            count: int = connection.execute(
                select(func.count()).select_from(task_slice)
            ).scalar_one()
            return count

    def answer(self) -> None:
        """Bring results of what was sent: some late, some twice."""
        tokens = []
        if self.log.exists():
            with self.log.open() as file:
                file.seek(self._read)
                text = self._unread + file.read()
                self._read = file.tell()
            *lines, self._unread = text.split("\n")
            for line in lines:
                agent_id, token, pid = line.split()
                self._last = int(pid)
                self._since += 1
                self.sends[agent_id] += 1
                self.tokens.setdefault(agent_id, set()).add(token)
                tokens.append(token)
        late, self._late = self._late, []
        for token in tokens:
            (late if self.chance.random() < 0.9 else self._late).append(token)
        late += [token for token in late if self.chance.random() < 0.1]
        for start in range(0, len(late), 500):
            items = [
                {"token": token, "data_type": "5100", "status": "succeed", "msg": ""}
                for token in late[start : start + 500]
            ]
            with self.database.writing() as connection:
                apply_results(connection, items, int(time.time()))

    def row(self, number: int) -> Any:
        """The task's row."""
        with self.database.reading() as connection:
            return connection.execute(select(task).where(task.c.number == number)).one()

    def check_counters(self, row: Any) -> None:
        """They add up at every moment."""
        assert sum(getattr(row, f"n_{state}") for state in STATES) == row.id_count

    def check(self, number: int, total: int) -> int:
        """Every invariant at the end; returns the number of resends."""
        row = self.row(number)
        self.check_counters(row)
        assert (row.id_count, row.distributed, row.open) == (total, total, False)
        with self.database.reading() as connection:
            states = dict(
                connection.execute(
                    select(subtask.c.status, func.count())
                    .where(subtask.c.task == number)
                    .group_by(subtask.c.status)
                ).all()  # type: ignore[arg-type]
            )
            resends = Counter(connection.execute(select(task_resend.c.agent_id)).scalars())
            reasons = connection.execute(select(task_resend.c.reason)).scalars().all()
        assert states == {"result_succeed": total}
        assert {state: getattr(row, f"n_{state}") for state in STATES if state in states} == states
        assert len(self.sends) == total  # nobody was left out
        assert all(len(tokens) == 1 for tokens in self.tokens.values())
        doubled = {each: n - 1 for each, n in self.sends.items() if n > 1}
        assert all(n <= resends[each] for each, n in doubled.items()), doubled
        assert all(reasons)
        return sum(resends.values())


def crash(kind: str, folder: Path, total: int, capsys: Any) -> None:
    """The whole of it."""
    seed = random.SystemRandom().randrange(1 << 32)
    with migrated_url(kind, folder) as url, opened(url) as database:
        crashes = Crashes(database, url, folder / "sent", random.Random(seed))
        crashes.agents(total)
        number = crashes.begin()
        began = time.monotonic()
        with capsys.disabled():
            print(f"\n{kind}, {total} subtasks, seed {seed}", flush=True)
        crashes.run(number, total)
        took = time.monotonic() - began
        crashes.answer()
        resends = crashes.check(number, total)
        with capsys.disabled():
            print(f"{took:.0f} s, {crashes.kills} kills, {resends} resends, none lost")


@needs_postgres
def test_managers_are_killed(tmp_path: Path, capsys: Any) -> None:
    """Every subtask ends once; what was sent twice has its reason; counters are exact."""
    crash("postgresql", tmp_path, 250, capsys)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_managers_are_killed_during_a_large_task(kind: str, tmp_path: Path, capsys: Any) -> None:
    """The same with 20,000 subtasks."""
    crash(kind, tmp_path, 20_000, capsys)
