"""Tasks under everything that may happen to Managers and agents, in any order.

Two Managers work by the store's functions on one database; each may be killed between any two
transactions. A model beside them remembers what agents were really sent and which subtasks have
ended.
"""

import itertools
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import define
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from sqlalchemy import func, select, update

from elkeid.manager.documents import Source
from elkeid.manager.filter import EVERYTHING
from elkeid.manager.store.agent_pages import ids_of_agents
from elkeid.manager.store.agents import apply_reports
from elkeid.manager.store.results import apply_results
from elkeid.manager.store.schema import agent, subtask, task, task_job, task_resend
from elkeid.manager.store.sqlite import SqliteDatabase
from elkeid.manager.store.task_rows import (
    CANCELLED,
    CREATED,
    FAILED,
    RESULT_FAILED,
    RESULT_SUCCEED,
    RUNNING,
    STATES,
    SUCCEED,
)
from elkeid.manager.store.task_work import (
    Claimant,
    Done,
    Order,
    Verdict,
    claim,
    end_late,
    end_waiting,
    expired_slices,
    note_done,
    outlooks,
    renew_leases,
    returned_agents,
    take_over,
)
from elkeid.manager.store.tasks import (
    ControlRefused,
    NewTask,
    Run,
    add_subtasks,
    cancel_subtasks,
    cancel_task,
    create_task,
    pause_task,
    resume_task,
    run_task,
)

from .stores import migrated, report

AGENTS = 6
LEASE = 30.0
RESULT_SECONDS, WAIT_SECONDS = 200.0, 500.0
FINAL = {FAILED, RESULT_SUCCEED, RESULT_FAILED, CANCELLED}
agents = st.integers(0, AGENTS - 1).map(lambda number: f"a{number}")
managers = st.sampled_from(("one", "two"))


@define
class Held:
    """A slice in a Manager's memory."""

    slice_id: str
    orders: list[Order]
    outcomes: list[Done]
    left: int
    dropped: bool = False


class Tasks(RuleBasedStateMachine):
    """One task of a few agents."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        migrated(self.folder / "manager.db")
        self.database = SqliteDatabase(f"sqlite:///{self.folder / 'manager.db'}")
        self.database.open()
        self.now = 1_700_000_000.0
        self.slices = 0
        self.memory: dict[str, list[Held]] = {"one": [], "two": []}
        self.sent: Counter[str] = Counter()  # agent id -> commands that may have reached it
        self.tokens: dict[str, set[str]] = {}
        self.ended: dict[str, str] = {}
        self.returns = True

    def teardown(self) -> None:
        """However it went, it can be brought to its end, or comes to it by itself."""
        try:
            if self.returns:
                self.finish()
            else:
                self.wait_for_the_end()
        finally:
            self.database.close()
            shutil.rmtree(self.folder)

    def write(self, query: Any, *args: Any, **more: Any) -> Any:
        """One transaction."""
        with self.database.writing() as connection:
            return query(connection, *args, **more)

    @initialize(resends=st.integers(0, 2), returns=st.booleans())
    def create(self, resends: int, returns: bool) -> None:
        """A task for everyone."""
        self.returns = returns
        source = Source("127.0.0.1", 6752)
        self.write(apply_reports, source, [report(f"a{n}") for n in range(AGENTS)])
        new = NewTask(
            task_type="Agent_Task",
            task_name="",
            action="",
            task_user="",
            tag="",
            data={},
            selection={},
            task_data_type=1,
            awaits_result=True,
            result_seconds=RESULT_SECONDS,
            wait_seconds=WAIT_SECONDS,
            resends=resends,
        )
        self.number, _ = self.write(create_task, new, self.now)
        after = ""
        while True:
            ids = self.write(ids_of_agents, EVERYTHING, after, 4)
            last = len(ids) < 4
            added = self.write(
                add_subtasks, self.number, after, ids, self.now, last=last, approval_hosts=0
            )
            assert added
            again = self.write(
                add_subtasks, self.number, after, ids, self.now, last=last, approval_hosts=0
            )
            assert not again or not ids
            if last:
                break
            after = ids[-1]

    # --- operators

    @rule(count=st.integers(1, AGENTS))
    def run(self, count: int) -> None:
        """Release some."""
        self.control(run_task, Run(count=count, concurrence=5))

    @rule()
    def pause(self) -> None:
        """Send no more for now."""
        self.control(pause_task, "paused")

    @rule()
    def resume(self) -> None:
        """Go on."""
        self.control(resume_task, False)

    @rule(sure=st.integers(0, 5))
    def cancel(self, sure: int) -> None:
        """Send no more at all; seldom, since it ends the fun."""
        if sure == 0:
            self.control(cancel_task)

    def control(self, query: Any, *args: Any) -> None:
        """What is refused changes nothing."""
        try:
            self.write(query, self.number, *args, self.now)
        except ControlRefused:
            return

    # --- Managers

    @rule(who=managers, limit=st.integers(1, 4))
    def claim(self, who: str, limit: int) -> None:
        """Take some; agents that came back first."""
        self.slices += 1
        returned, _ = self.write(returned_agents, self.number, "", 10)
        given_up = self.waiting_too_long()
        claimant = Claimant(owner=who, lease_seconds=LEASE, drop_hosts=5, drop_seconds=600)
        claimed = self.write(
            claim,
            self.number,
            f"slice-{self.slices}",
            [],
            claimant,
            limit=limit,
            now=self.now,
            returned=returned,
        )
        assert not given_up & {order.agent_id for order in claimed.orders}
        if claimed.slice_id is not None:
            orders = list(claimed.orders)
            self.memory[who].append(Held(claimed.slice_id, orders, [], len(orders)))

    def waiting_too_long(self) -> set[str]:
        """Agents that were waited for until the deadline."""
        with self.database.reading() as connection:
            return set(
                connection.execute(
                    select(subtask.c.agent_id)
                    .join_from(subtask, task_job, subtask.c.job == task_job.c.number)
                    .where(
                        subtask.c.status == CREATED,
                        subtask.c.due.is_not(None),
                        task_job.c.deadline < self.now,
                    )
                ).scalars()
            )

    @rule(who=managers, verdict=st.sampled_from(Verdict))
    def send(self, who: str, verdict: Verdict) -> None:
        """One order goes out, or does not."""
        held = next((each for each in self.memory[who] if each.orders), None)
        if held is None:
            return
        order = held.orders.pop(0)
        if verdict in (Verdict.TAKEN, Verdict.UNSURE):
            assert order.token is not None
            self.sent[order.agent_id] += 1
            self.tokens.setdefault(order.agent_id, set()).add(order.token)
        held.outcomes.append(Done(order, verdict, verdict.value, None, 1.0))
        held.left -= 1

    @rule(who=managers)
    def note(self, who: str) -> None:
        """What became of orders is written down."""
        for held in list(self.memory[who]):
            ended = not held.left
            if held.outcomes or ended:
                self.write(
                    note_done,
                    self.number,
                    held.slice_id,
                    held.outcomes,
                    self.now,
                    ended=ended,
                    dropped=held.dropped,
                )
                held.outcomes = []
                if ended:
                    self.memory[who].remove(held)

    @rule(who=managers)
    def die(self, who: str) -> None:
        """Killed: nothing of its memory is left."""
        self.memory[who] = []

    @rule(who=managers)
    def renew(self, who: str) -> None:
        """Leases go on; what was lost is forgotten, and not sent."""
        mine = [held.slice_id for held in self.memory[who]]
        kept = self.write(renew_leases, mine, self.now, LEASE)
        for held in self.memory[who]:
            if held.slice_id not in kept:
                held.left -= len(held.orders)
                held.dropped = held.dropped or bool(held.orders)
                held.orders = []

    @rule()
    def take_over(self) -> None:
        """Slices of Managers that are silent."""
        for slice_id, number in self.write(expired_slices, self.now):
            self.write(take_over, slice_id, number, self.now)

    @rule()
    def tidy(self) -> None:
        """Give up what is late, withdraw what is cancelled."""
        for query in (end_late, end_waiting):
            self.write(query, self.number, self.now, limit=3)
        self.write(cancel_subtasks, self.number, self.now)

    # --- the world

    @rule(seconds=st.sampled_from((1.0, 5.0, 40.0, 250.0)))
    def time_passes(self, seconds: float) -> None:
        """A Manager that knows how long it was silent sends nothing of what it lost."""
        self.now += seconds
        if seconds >= LEASE:
            for who in self.memory:
                self.renew(who)

    @rule(agent_id=agents, connected=st.booleans())
    def come_and_go(self, agent_id: str, connected: bool) -> None:
        """An agent's stream begins or ends."""
        with self.database.writing() as connection:
            connection.execute(
                update(agent).where(agent.c.agent_id == agent_id).values(connected=connected)
            )

    @precondition(lambda self: self.tokens)
    @rule(agent_id=agents, good=st.booleans(), twice=st.booleans())
    def answer(self, agent_id: str, good: bool, twice: bool) -> None:
        """An agent that was sent the task answers, perhaps twice."""
        status = "succeed" if good else "failed"
        for token in self.tokens.get(agent_id, ()):
            item = {"token": token, "data_type": "5100", "status": status}
            for _ in range(1 + twice):
                self.write(apply_results, [[item]], int(self.now))

    # --- what always holds

    def look(self) -> tuple[Any, dict[str, str], Counter[str]]:
        """The task's row, its subtasks' states, its resends."""
        with self.database.reading() as connection:
            row = connection.execute(select(task)).one()
            states = {
                each.agent_id: each.status
                for each in connection.execute(select(subtask.c.agent_id, subtask.c.status))
            }
            resends = Counter(connection.execute(select(task_resend.c.agent_id)).scalars())
            distinct = connection.execute(
                select(func.count(subtask.c.token.distinct()))
            ).scalar_one()
            tokens = connection.execute(select(func.count(subtask.c.token))).scalar_one()
        assert distinct == tokens
        return row, states, resends

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """Counters are exact, an end is an end, and a second send has its reason."""
        if not hasattr(self, "number"):
            return
        row, states, resends = self.look()
        counted = Counter(states.values())
        assert {name: getattr(row, f"n_{name}") for name in STATES} == {
            name: counted[name] for name in STATES
        }
        assert row.id_count == len(states) == AGENTS
        for agent_id, state in self.ended.items():
            assert states[agent_id] == state, agent_id
        self.ended |= {each: state for each, state in states.items() if state in FINAL}
        for agent_id, count in self.sent.items():
            assert count <= 1 + resends[agent_id], agent_id
        assert all(len(tokens) == 1 for tokens in self.tokens.values())
        done = all(state in FINAL for state in states.values())
        if row.status == "finished":
            assert done
        if done and row.status in (RUNNING, CANCELLED):
            assert row.status == CANCELLED
        assert row.open == (row.status == RUNNING or (row.status == CANCELLED and not done))

    def finish(self) -> None:
        """Everybody is there and everything works: the task ends."""
        if not hasattr(self, "number"):
            return
        for number in range(AGENTS):
            self.come_and_go(f"a{number}", True)
        for _ in range(30):
            self.resume()
            self.run(AGENTS)
            self.claim("one", 4)
            while any(held.orders for held in self.memory["one"]):
                self.send("one", Verdict.TAKEN)
            for who in self.memory:
                self.note(who)
            for number in range(AGENTS):
                self.answer(f"a{number}", True, False)
            self.take_over()
            self.tidy()
            self.time_passes(40.0)
            self.nothing_is_lost_or_doubled()
        row, states, _ = self.look()
        assert row.status in ("finished", CANCELLED), (row, states)
        assert not row.open
        assert set(states.values()) <= FINAL
        assert SUCCEED not in states.values()
        assert CREATED not in states.values()

    def wait_for_the_end(self) -> None:
        """Nobody comes back, no gateway takes anything: past the deadline all is final."""
        if not hasattr(self, "number"):
            return
        self.resume()
        self.run(AGENTS)
        end = self.now + WAIT_SECONDS + RESULT_SECONDS
        verdicts = itertools.cycle((Verdict.NOT_SENT, Verdict.UNSURE))
        while self.now <= end + LEASE:
            # The first looks before it sends, the second while it sends.
            for looks in (True, False):
                self.claim("one", AGENTS)
                if looks:
                    self.tidy_up()
                while any(held.orders for held in self.memory["one"]):
                    self.send("one", next(verdicts))
                self.time_passes(5.0)
                for who in self.memory:
                    self.note(who)
                self.take_over()
                self.time_passes(125.0)
        self.take_over()
        self.tidy_up()
        row, states, _ = self.look()
        assert set(states.values()) <= FINAL, states
        assert row.status in ("finished", CANCELLED), (row, states)
        assert not row.open

    def tidy_up(self) -> None:
        """As often as there is something to tidy up, as the engine decides it."""
        for outlook in self.write(outlooks, self.now, 10):
            for _ in range(AGENTS):
                if outlook.has_late:
                    self.write(end_late, self.number, self.now, limit=3)
                if outlook.has_expired:
                    self.write(end_waiting, self.number, self.now, limit=3)
                self.write(cancel_subtasks, self.number, self.now)


TestTasks = Tasks.TestCase
TestTasks.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
