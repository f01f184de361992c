"""Deadlines of runs, whatever a subtask does when they pass; on both databases."""

from typing import Any

import pytest
from attrs import define
from sqlalchemy import insert, select, update

from elkeid.manager.documents import Source
from elkeid.manager.store.agents import apply_reports
from elkeid.manager.store.engine import Database
from elkeid.manager.store.schema import agent, subtask, task_job
from elkeid.manager.store.task_rows import lock_task
from elkeid.manager.store.task_work import (
    Claim,
    Claimant,
    Done,
    Verdict,
    claim,
    end_leases,
    end_waiting,
    note_done,
    outlooks,
    take_over,
)
from elkeid.manager.store.tasks import (
    Decided,
    NewTask,
    Run,
    add_subtasks,
    create_task,
    decide_approval,
    run_task,
)
from tests.integration.postgres import needs_postgres

from .stores import migrated_url, opened, report
from .task_case import TaskCase

START = 1_700_000_000.0
WAIT = 5.0
CLAIMANT = Claimant(owner="one", lease_seconds=30.0, drop_hosts=5, drop_seconds=600)


def new_task(**more: Any) -> NewTask:
    """A task for a plugin, with retries."""
    asked: dict[str, Any] = {
        "task_type": "Agent_Task",
        "task_name": "",
        "action": "",
        "task_user": "alice",
        "tag": "",
        "data": {},
        "selection": {},
        "task_data_type": 1,
        "awaits_result": True,
        "result_seconds": 100.0,
        "wait_seconds": WAIT,
        "resends": 3,
    }
    return NewTask(**asked | more)


@define
class OneTask:
    """A task of some agents, that runs from `START` on."""

    database: Database
    number: int

    def write(self, query: Any, *args: Any, **more: Any) -> Any:
        """One transaction."""
        with self.database.writing() as connection:
            return query(connection, *args, **more)

    def claim(self, now: float) -> Claim:
        """Take what is to be sent."""
        slice_id = f"slice-{now}"
        made: Claim = self.write(claim, self.number, slice_id, [], CLAIMANT, limit=10, now=now)
        return made

    def note(self, claimed: Claim, verdict: Verdict, now: float) -> None:
        """The same became of all of it."""
        done = [Done(order, verdict, "so it is", None, 1.0) for order in claimed.orders]
        self.write(note_done, self.number, claimed.slice_id, done, now, ended=True)

    def look(self, now: float) -> None:
        """Give up what is to be, as the engine does."""
        for outlook in self.write(outlooks, now, 10):
            if outlook.has_expired:
                self.write(end_waiting, self.number, now, limit=10)

    def states(self) -> dict[str, tuple[str, str | None]]:
        """Agent id -> state and message."""
        with self.database.reading() as connection:
            rows = connection.execute(
                select(subtask.c.agent_id, subtask.c.status, subtask.c.status_msg)
            )
            return {row.agent_id: (row.status, row.status_msg) for row in rows}

    def is_open(self) -> bool:
        """Whether anybody looks after it."""
        return bool(self.write(outlooks, START, 10))


def running(database: Database, *agents: str, **more: Any) -> OneTask:
    """A task for these agents, all connected, that has been run."""
    with database.writing() as connection:
        source = Source("127.0.0.1", 6752)
        apply_reports(connection, source, [report(each) for each in agents])
        number, _ = create_task(connection, new_task(**more), START)
        add_subtasks(connection, number, "", agents, START, last=True, approval_hosts=0)
        run_task(connection, number, Run(percent=1.0, concurrence=5), START)
    return OneTask(database, number)


LATE = "; the deadline has passed"


@pytest.mark.parametrize("verdict", [Verdict.NOT_SENT, Verdict.UNSURE])
def test_sent_while_the_deadline_passes(any_database: Database, verdict: Verdict) -> None:
    """What comes back unsent after the deadline has failed at once."""
    one = running(any_database, "a1")
    claimed = one.claim(START + 1)
    assert len(claimed.orders) == 1
    one.look(START + 10)  # nothing waits: nobody needs to look again
    one.note(claimed, verdict, START + 16)
    assert one.states() == {"a1": ("failed", "so it is" + LATE)}
    assert not one.is_open()


def test_its_manager_died_while_the_deadline_passed(any_database: Database) -> None:
    """What is taken over after the deadline has failed: nobody knows whether it was sent."""
    one = running(any_database, "a1")
    claimed = one.claim(START + 1)
    one.look(START + 10)
    one.write(end_leases, "one")
    assert one.write(take_over, claimed.slice_id, one.number, START + 40) == 0
    (state,) = one.states().values()
    assert state[0] == "failed"
    assert state[1] is not None
    assert state[1].endswith(LATE)
    assert not one.is_open()


def test_a_clock_ahead_looked_first(any_database: Database) -> None:
    """What one Manager takes for past its deadline is looked at again if it waits for another."""
    one = running(any_database, "a1")
    claimed = one.claim(START + 1)
    one.look(START + 10)
    one.note(claimed, Verdict.NOT_SENT, START + 2)
    assert one.states()["a1"][0] == "created"
    one.look(START + 11)
    assert one.states() == {"a1": ("failed", "so it is" + LATE)}


def test_nobody_looked_for_months(any_database: Database) -> None:
    """Hosts that come back after the deadline get nothing, however late Managers are."""
    one = running(any_database, "a1", "a2", "a3")
    with any_database.writing() as connection:
        connection.execute(update(agent).where(agent.c.agent_id == "a1").values(connected=False))
    claimed = one.claim(START + 1)
    assert [order.agent_id for order in claimed.orders] == ["a2", "a3"]
    one.note(claimed, Verdict.NOT_SENT, START + 2)
    with any_database.writing() as connection:
        connection.execute(update(agent).values(connected=True))
    later = START + 1e7
    again = one.write(claim, one.number, "late", [], CLAIMANT, limit=10, now=later, returned=["a1"])
    assert again.orders == []
    one.look(later)
    away = ("failed", "its agent was not connected before the deadline")
    tried = ("failed", "so it is" + LATE)
    assert one.states() == {"a1": away, "a2": tried, "a3": tried}


def test_other_runs_wait_on(any_database: Database) -> None:
    """The deadline of one run ends nothing of another."""
    one = running(any_database, "a1")
    with any_database.writing() as connection:
        apply_reports(connection, Source("127.0.0.1", 6752), [report("a2")])
        connection.execute(
            insert(subtask).values(
                task=one.number, agent_id="a2", status="created", update_time=int(START)
            )
        )
        locked = lock_task(connection, one.number, START)
        assert locked is not None
        locked.move(None, "created", 1)
        locked.values["id_count"] = 2
        locked.save(connection)
        connection.execute(update(task_job).values(upto="a1"))
        run_task(connection, one.number, Run(percent=1.0, concurrence=5), START + 4)
    claimed = one.claim(START + 4)
    assert [order.agent_id for order in claimed.orders] == ["a1", "a2"]
    one.note(claimed, Verdict.NOT_SENT, START + 6)
    assert [state for state, _ in one.states().values()] == ["failed", "created"]
    assert [order.agent_id for order in one.claim(START + 8).orders] == ["a2"]


@pytest.mark.integration
@needs_postgres
def test_another_manager_holds_the_task(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Who could not look gives nothing up, and does not say that nothing waits."""
    folder = tmp_path_factory.mktemp("db")
    with (
        migrated_url("postgresql", folder) as url,
        opened(url) as database,
        opened(url) as other,
    ):
        one = running(database, "a1")
        one.note(one.claim(START + 1), Verdict.NOT_SENT, START + 2)
        with other.writing() as connection:
            assert lock_task(connection, one.number, START) is not None
            one.look(START + 10)
        assert one.states()["a1"][0] == "created"
        one.look(START + 10)
        assert one.states()["a1"][0] == "failed"


def test_approved_while_hosts_are_selected(any_database: Database) -> None:
    """A second person's word holds, though more hosts are selected after it."""
    decision = Decided("bob", approved=True, reason="change 4711")
    with any_database.writing() as connection:
        new = new_task(approval="waiting")
        number, _ = create_task(connection, new, START)
        add_subtasks(connection, number, "", ["a1", "a2"], START, last=False, approval_hosts=2)
        decide_approval(connection, number, decision, START)
        add_subtasks(connection, number, "a2", ["a3"], START, last=True, approval_hosts=2)
    with any_database.writing() as connection:
        run = Run(percent=1.0, concurrence=5)
        assert run_task(connection, number, run, START).count == 3


def test_found_to_need_approval(any_database: Database) -> None:
    """A task that grows beyond the limit while its hosts are selected needs a second person."""
    with any_database.writing() as connection:
        number, _ = create_task(connection, new_task(), START)
        add_subtasks(connection, number, "", ["a1", "a2"], START, last=True, approval_hosts=1)
        locked = lock_task(connection, number, START)
    assert locked is not None
    assert locked.row.approval == "waiting"


class GatewayGoneTests(TaskCase):
    def test_for_good(self) -> None:
        """Agents of a gateway that never comes back are given up at the deadline, and say why."""
        self.ac.down()
        task_id = self.create(id_list=["a1", "a2"], wait_seconds=60)
        self.run_(task_id)
        self.assertEqual(self.states(task_id), {"a1": "created", "a2": "created"})
        self.network.advance(70, step=1)
        self.assertEqual(self.states(task_id), {"a1": "failed", "a2": "failed"})
        self.assertIn("cannot be reached", self.subtask(task_id)["status_msg"])
        self.assertIn("the deadline has passed", self.subtask(task_id)["status_msg"])
        self.assertEqual(self.task(task_id)["task_status"], "finished")

    def test_silent_and_then_gone(self) -> None:
        """A gateway's silence outlasts the deadline, and the agent is gone when it ends."""
        self.commands.silent.add("a1")
        task_id = self.create(id_list=["a1"], wait_seconds=5, retries=3)
        self.run_(task_id)
        self.ac.lose("a1")
        self.network.advance(30, step=1)
        self.assertEqual(self.states(task_id), {"a1": "failed"})
        self.assertEqual(self.task(task_id)["task_status"], "finished")
