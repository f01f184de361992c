"""Queries of those who work on tasks: claim, note what became of it, take over. They block.

``due`` of a subtask, unix seconds, says when something is to be done with it: of a ``created``
one when it may be sent (`AWAY`: when its agent is connected; NULL: when a run releases it), of a
``succeed`` one when its agent's answer is late.

A slice is some subtasks that one Manager is sending, and its lease on them. The Manager renews
the leases of all its slices; what is ``running`` in a slice whose lease has ended is taken over.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import msgspec
from attrs import Factory, define, frozen
from sqlalchemy import Connection, Select, delete, exists, func, insert, select, update

from elkeid.manager.documents import Source
from elkeid.manager.store.agents import hold_documents, plugins_of
from elkeid.manager.store.bulk import IDS_PER_STATEMENT, is_among, sliced, update_rows
from elkeid.manager.store.configs import find_config
from elkeid.manager.store.host_configs import (
    HostConfig,
    host_configs,
    hosts_dropped_since,
    store_host_configs,
)
from elkeid.manager.store.results import issue_tokens
from elkeid.manager.store.schema import (
    agent,
    subtask,
    task,
    task_job,
    task_resend,
    task_slice,
)
from elkeid.manager.store.task_rows import (
    CANCELLED,
    CREATED,
    FAILED,
    RESULT_FAILED,
    RUNNING,
    SUCCEED,
    LockedTask,
    lock_task,
)
from elkeid.manager.task_config import merged_config

AWAY: Final = -1.0
"""``due`` of a subtask whose agent is not connected."""

CONFIG_TASK: Final = "Agent_Config"

AGENT_NAME: Final = "elkeid-agent"
"""In a config this entry is the agent itself, which is no plugin."""

LOST_SENDS: Final = 5
"""Sends of one subtask whose outcome nobody noted; then it has failed, and kills Managers."""

SCAN: Final = 5_000
"""Subtasks of absent agents that one query looks through: some 15 ms."""

NO_ANSWER: Final = "Timeout waiting for agent response"
NEVER_CONNECTED: Final = "its agent was not connected before the deadline"
TOO_LATE: Final = "the deadline has passed"
NO_BASE: Final = "no config is stored for this host: what it runs would be unloaded"
NOTHING_LEFT: Final = "nothing would be left in its config: every plugin would be unloaded"
LEASE_LOST: Final = "the Manager that was sending it stopped before it noted the outcome"


@frozen
class Order:
    """One subtask to be sent now; it is ``running`` already.

    Attributes:
        token: what its result will come back by; None for configs.
        source: the AC that has the agent.
        config: the whole list that the host shall run, for a config task.
        sends: how often it may have been sent before.
        tries: how often it was surely not sent before.
    """

    agent_id: str
    token: str | None
    source: Source
    config: list[dict[str, Any]] | None
    sends: int
    tries: int


@frozen
class Claim:
    """What a Manager has taken upon itself.

    Attributes:
        slice_id: None if there is nothing to send.
        more: whether another claim may find more at once.
    """

    slice_id: str | None
    orders: list[Order]
    more: bool


@frozen(kw_only=True)
class Claimant:
    """Who claims, and by which rules.

    Attributes:
        owner: the id of this run of a Manager.
        lease_seconds: how long others wait for it.
        drop_hosts: hosts that may lose most plugins within ``drop_seconds``.
    """

    owner: str
    lease_seconds: float
    drop_hosts: int
    drop_seconds: float


NOTHING: Final = Claim(None, [], more=False)


def _candidates(connection: Connection, wanted: Select[Any]) -> list[Any]:
    """Rows of subtasks, limited already, with where their agents are."""
    # Agents are looked up one by one for these few: joined before the limit, PostgreSQL may walk
    # through all agents up to the first of them.
    some = wanted.subquery()
    query = select(some, agent.c.source_ip, agent.c.source_port, agent.c.connected).join_from(
        some, agent, some.c.agent_id == agent.c.agent_id, isouter=True
    )
    return list(connection.execute(query))


def claim(
    connection: Connection,
    number: int,
    slice_id: str,
    changes: Sequence[dict[str, Any]],
    claimant: Claimant,
    *,
    limit: int,
    now: float,
    returned: Sequence[str] = (),
) -> Claim:
    """Take subtasks of a task for sending: what is due, whose agent returned, then new ones.

    Args:
        connection: within a transaction.
        number: the task's.
        slice_id: for what is taken, new.
        changes: of a config task, the items to apply.
        claimant: who.
        limit: of subtasks.
        now: unix seconds.
        returned: agents that were away and are connected now.
    """
    locked = lock_task(connection, number, now)
    if locked is None or locked.row.status != RUNNING or locked.row.paused:
        return NOTHING
    of = subtask.c
    mine = select(of.agent_id, of.token, of.sends, of.tries, of.job, of.due).where(
        of.task == number, of.status == CREATED
    )
    waited = mine  # for nobody beyond a deadline, however late this look is
    late = _late_jobs(number, now)
    if connection.execute(late.limit(1)).first() is not None:
        waited = mine.where(of.job.not_in(late))
    due = waited.where(of.due.between(0, now)).order_by(of.due).limit(limit)
    found: list[tuple[Any, int | None]] = [(row, row.job) for row in _candidates(connection, due)]
    room = limit - len(found)
    if returned and room > 0:
        some = list(returned)[: min(room, IDS_PER_STATEMENT)]
        back = waited.where(of.due == AWAY, of.agent_id.in_(some))
        found += [(row, row.job) for row in _candidates(connection, back)]
    found += _fresh(connection, number, mine, limit - len(found))
    here = [(row, job) for row, job in found if row.connected and row.source_ip is not None]
    _wait(connection, locked, found)
    configs: dict[str, list[dict[str, Any]]] = {}
    if locked.row.task_type == CONFIG_TASK:
        configs = _configure(connection, locked, here, changes, claimant)
        here = [(row, job) for row, job in here if row.agent_id in configs]
    orders = _start(connection, locked, slice_id, here, configs)
    if orders:
        connection.execute(
            insert(task_slice).values(
                slice_id=slice_id,
                task=number,
                owner=claimant.owner,
                deadline=now + claimant.lease_seconds,
            )
        )
    locked.save(connection)
    more = len(found) >= limit and not locked.get("paused")
    return Claim(slice_id if orders else None, orders, more)


def _late_jobs(number: int, now: float) -> Select[Any]:
    """The runs of a task whose deadline has passed."""
    return select(task_job.c.number).where(task_job.c.task == number, task_job.c.deadline < now)


def _fresh(
    connection: Connection, number: int, mine: Any, room: int
) -> list[tuple[Any, int | None]]:
    """The next subtasks that runs have released, and move the runs' cursors past them."""
    found: list[tuple[Any, int | None]] = []
    jobs = connection.execute(
        select(task_job)
        .where(task_job.c.task == number, task_job.c.drained.is_(False))
        .order_by(task_job.c.number)
    ).all()
    for job in jobs:
        if room <= 0:
            break
        query = mine.where(subtask.c.agent_id > job.cursor, subtask.c.due.is_(None))
        if job.upto is not None:
            query = query.where(subtask.c.agent_id <= job.upto)
        rows = _candidates(connection, query.order_by(subtask.c.agent_id).limit(room))
        rows.sort(key=lambda row: row.agent_id)
        values: dict[str, Any] = {"drained": len(rows) < room}
        if rows:
            values["cursor"] = rows[-1].agent_id
        connection.execute(update(task_job).where(task_job.c.number == job.number).values(values))
        found += [(row, job.number) for row in rows]
        room -= len(rows)
    return found


def _wait(
    connection: Connection, locked: LockedTask, found: Iterable[tuple[Any, int | None]]
) -> None:
    """Let those wait whose agent is not connected."""
    away: dict[int | None, list[str]] = defaultdict(list)
    for row, job in found:
        if not (row.connected and row.source_ip is not None) and row.due != AWAY:
            away[job].append(row.agent_id)
    for job, ids in away.items():
        locked.set_subtasks(connection, ids, due=AWAY, job=job, update_time=int(locked.now))


_STARTED = (
    "status",
    "due",
    "job",
    "slice",
    "token",
    "sends",
    "sent_to",
    "started_at",
    "update_time",
    "status_msg",
    "response",
    "payload",
)


def _start(
    connection: Connection,
    locked: LockedTask,
    slice_id: str,
    here: Sequence[tuple[Any, int | None]],
    configs: dict[str, list[dict[str, Any]]],
) -> list[Order]:
    """Mark subtasks running, with tokens, before anything of them is sent."""
    if not here:
        return []
    now = int(locked.now)
    tokens = {row.agent_id: row.token for row, _ in here}
    if locked.row.task_type != CONFIG_TASK:
        lacking = [agent_id for agent_id, token in tokens.items() if token is None]
        tokens |= zip(lacking, issue_tokens(connection, lacking, now), strict=True)
    orders, rows, sources = [], [], dict[tuple[str, int], Source]()
    for row, job in here:
        place = row.source_ip, row.source_port
        source = sources.get(place) or sources.setdefault(place, Source(*place))
        config = configs.get(row.agent_id)
        order = Order(row.agent_id, tokens[row.agent_id], source, config, row.sends, row.tries)
        orders.append(order)
        rows.append(
            {
                "task": locked.number,
                "agent_id": row.agent_id,
                "status": RUNNING,
                "due": None,
                "job": job,
                "slice": slice_id,
                "token": order.token,
                "sends": row.sends + 1,
                "sent_to": str(source),
                "started_at": now,
                "update_time": now,
                "status_msg": None,
                "response": None,
                "payload": None if config is None else msgspec.json.encode(config).decode(),
            }
        )
    same = {"task": "="}
    update_rows(connection, subtask, rows, key="agent_id", columns=_STARTED, where=same)
    locked.move(CREATED, RUNNING, len(rows))
    return orders


def _configure(
    connection: Connection,
    locked: LockedTask,
    here: Sequence[tuple[Any, int | None]],
    changes: Sequence[dict[str, Any]],
    claimant: Claimant,
) -> dict[str, list[dict[str, Any]]]:
    """Work out and store what hosts shall run; those that must not get it fail or wait.

    A list that would take more than half of their plugins from too many hosts pauses the task.
    """
    now, result = locked.now, dict[str, list[dict[str, Any]]]()
    # Held, so that no other task changes a list between this look at it and the end: most hosts
    # have no row of their own in `host_config` that could be.
    hold_documents(connection, [row.agent_id for row, _ in here])
    default = find_config(connection)
    stored: list[HostConfig] = []
    refused: dict[str, list[str]] = defaultdict(list)
    held: list[str] = []
    allowed = claimant.drop_hosts - hosts_dropped_since(connection, now - claimant.drop_seconds)
    for some in sliced(here):
        ids = [row.agent_id for row, _ in some]
        own = host_configs(connection, ids)
        reported = plugins_of(connection, ids)
        for agent_id in ids:
            mine = own.get(agent_id)
            runs = reported.get(agent_id, frozenset())
            if mine is None and default is None and runs:
                refused[NO_BASE].append(agent_id)
                continue
            base = mine.items if mine is not None else default.items if default is not None else []
            items = merged_config(base, changes)
            if not items and not locked.row.allow_empty:
                refused[NOTHING_LEFT].append(agent_id)
                continue
            lost = runs - ({item["name"] for item in items} - {AGENT_NAME})
            drops = 2 * len(lost) > len(runs)
            if drops and not locked.row.drops_confirmed:
                if allowed <= 0:
                    held.append(agent_id)
                    continue
                allowed -= 1
            result[agent_id] = items
            stored.append(
                HostConfig(
                    agent_id=agent_id,
                    items=items,
                    allow_empty=locked.row.allow_empty,
                    drops_confirmed=locked.row.drops_confirmed or drops,
                    updated_at=int(now),
                    dropped_at=now if drops else None,
                )
            )
    store_host_configs(connection, stored)
    for reason, ids in refused.items():
        locked.set_subtasks(
            connection,
            ids,
            status=FAILED,
            due=None,
            status_msg=reason,
            update_time=int(now),
        )
        locked.move(CREATED, FAILED, len(ids))
    if held:
        by_job: dict[int | None, list[str]] = defaultdict(list)
        jobs = {row.agent_id: job for row, job in here}
        for agent_id in held:
            by_job[jobs[agent_id]].append(agent_id)
        for job, ids in by_job.items():
            locked.set_subtasks(connection, ids, due=now, job=job)
        locked.values["paused"] = (
            "held: it would take more than half of their plugins from too many hosts; "
            "resume with confirm_drops if that is meant"
        )
    return result


class Verdict(Enum):
    """What became of an order."""

    TAKEN = "taken"  # the AC wrote it to the agent's connection
    NOT_SENT = "not_sent"  # surely; it may be sent again without a second thought
    UNSURE = "unsure"  # it may have arrived
    REFUSED = "refused"  # it never will be taken


@frozen
class Done:
    """The outcome of an order.

    Attributes:
        reason: why it was not taken.
        response: what the AC said, or why there was no answer.
        pause: seconds until it may be tried again.
    """

    order: Order
    verdict: Verdict
    reason: str = ""
    response: str | None = None
    pause: float = 0.0


@define
class Noted:
    """What became of outcomes."""

    applied: int = 0
    superseded: int = 0  # a result came before, or the lease was lost
    resends: int = 0


def note_done(
    connection: Connection,
    number: int,
    slice_id: str,
    done: Sequence[Done],
    now: float,
    *,
    ended: bool,
    dropped: bool = False,
) -> Noted:
    """Note what became of orders of a slice.

    Args:
        connection: within a transaction.
        number: the task's.
        slice_id: theirs.
        done: outcomes.
        now: unix seconds.
        ended: whether these are the last of the slice.
        dropped: whether there are orders of the slice that nobody knows the outcome of.
    """
    noted = Noted()
    locked = lock_task(connection, number, now)
    if locked is None:
        return noted
    by_id = {each.order.agent_id: each for each in done}
    still: list[Any] = []
    for some in sliced(list(by_id)):
        still += connection.execute(
            select(subtask.c.agent_id, subtask.c.job).where(
                subtask.c.task == number,
                is_among(connection, subtask.c.agent_id, some),
                subtask.c.status == RUNNING,
                subtask.c.slice == slice_id,
            )
        )
    noted.applied, noted.superseded = len(still), len(done) - len(still)
    back = any(each.verdict in (Verdict.NOT_SENT, Verdict.UNSURE) for each in done)
    changes = _Changes(locked, _late_of(connection, locked) if back else frozenset())
    for row in still:
        changes.decide(by_id[row.agent_id], row.job)
    changes.write(connection)
    noted.resends = len(changes.resends)
    if ended:
        mine = task_slice.c.slice_id == slice_id
        if dropped:  # some are `running` still, to be taken over at once
            connection.execute(update(task_slice).where(mine).values(deadline=0.0))
        else:
            connection.execute(delete(task_slice).where(mine))
    locked.save(connection)
    return noted


def _in_slice(number: int, slice_id: str) -> tuple[Any, ...]:
    """Where subtasks of a slice are still being sent.

    ``due`` of these is NULL; saying so makes it one stretch of an index, and no walk through all
    subtasks of a task.
    """
    of = subtask.c
    return of.task == number, of.status == RUNNING, of.due.is_(None), of.slice == slice_id


def _late_of(connection: Connection, locked: LockedTask) -> frozenset[int]:
    """The runs of a task whose deadline has passed."""
    return frozenset(connection.execute(_late_jobs(locked.number, locked.now)).scalars())


@define
class _Changes:
    """Subtasks by the state they go to from ``running``, with what is written beside it.

    None goes back to ``created`` once the deadline of its run has passed: nobody looks there any
    more for what is to be given up.
    """

    locked: LockedTask
    late: frozenset[int]  # runs whose deadline has passed
    groups: dict[tuple[str, float | None, str | None, str | None], list[str]] = Factory(
        lambda: defaultdict(list)
    )
    unsent: list[str] = Factory(list)
    resends: list[dict[str, Any]] = Factory(list)
    waiting: set[int] = Factory(set)  # runs that something of goes back to `created`

    def decide(self, done: Done, job: int | None) -> None:
        """Say where one subtask goes."""
        row, now, order = self.locked.row, self.locked.now, done.order
        gone = row.status == CANCELLED
        if done.verdict is Verdict.TAKEN:
            due = now + row.result_seconds if row.awaits_result else None
            self.groups[SUCCEED, due, None, done.response].append(order.agent_id)
        elif done.verdict is Verdict.NOT_SENT:
            if row.quick:
                self._fail(done)
            elif gone:
                self.groups[CANCELLED, None, done.reason, done.response].append(order.agent_id)
            elif job in self.late:
                self._too_late(order.agent_id, done.reason, done.response)
            else:
                self.unsent.append(order.agent_id)
                self._back(order.agent_id, job, now + done.pause, done.reason, done.response)
        elif done.verdict is Verdict.UNSURE and order.sends < self._resends() and not gone:
            self.resend(
                order.agent_id,
                job,
                sends=order.sends + 1,
                reason=done.reason,
                due=now + done.pause,
                response=done.response,
            )
        else:
            self._fail(done)

    def _resends(self) -> int:
        """A config may be repeated, a task only as often as its creator says."""
        row = self.locked.row
        if row.quick:
            return 0
        return LOST_SENDS if row.task_type == CONFIG_TASK else int(row.resends)

    def _fail(self, done: Done) -> None:
        self.groups[FAILED, None, done.reason, done.response].append(done.order.agent_id)

    def _too_late(self, agent_id: str, reason: str, response: str | None) -> None:
        self.groups[FAILED, None, f"{reason}; {TOO_LATE}", response].append(agent_id)

    def _back(
        self, agent_id: str, job: int | None, due: float, reason: str, response: str | None
    ) -> None:
        self.groups[CREATED, due, reason, response].append(agent_id)
        if job is not None:
            self.waiting.add(job)

    def resend(
        self,
        agent_id: str,
        job: int | None,
        *,
        sends: int,
        reason: str,
        due: float,
        response: str | None = None,
    ) -> None:
        """Let a subtask be sent again that may have been sent before, and note why.

        Past its deadline it has failed instead.
        """
        if job in self.late:
            self._too_late(agent_id, reason, response)
            return
        self._back(agent_id, job, due, f"sent again: {reason}", None)
        self.resends.append(
            {
                "task": self.locked.number,
                "agent_id": agent_id,
                "sends": sends,
                "reason": reason,
                "at": int(self.locked.now),
            }
        )

    def write(self, connection: Connection) -> None:
        """Write it all."""
        now = int(self.locked.now)
        for (status, due, message, response), ids in self.groups.items():
            self.locked.set_subtasks(
                connection,
                ids,
                status=status,
                due=due,
                slice=None,
                status_msg=message,
                response=response,
                update_time=now,
            )
            self.locked.move(RUNNING, status, len(ids))
        if self.unsent:
            self.locked.set_subtasks(
                connection,
                self.unsent,
                sends=subtask.c.sends - 1,
                tries=subtask.c.tries + 1,
            )
        if self.resends:
            connection.execute(insert(task_resend), self.resends)
        for some in sliced(sorted(self.waiting)):
            # A Manager whose clock is ahead may have given up what else waited.
            connection.execute(
                update(task_job)
                .where(task_job.c.number.in_(some), task_job.c.expired.is_(True))
                .values(expired=False)
            )


def renew_leases(
    connection: Connection, slices: Sequence[str], now: float, lease_seconds: float
) -> frozenset[str]:
    """Renew the leases on these slices that have not ended; returns the slices still held."""
    held: set[str] = set()
    for some in sliced(slices):
        mine = task_slice.c.slice_id.in_(some)
        connection.execute(
            update(task_slice)
            .where(mine, task_slice.c.deadline >= now)
            .values(deadline=now + lease_seconds)
        )
        kept = select(task_slice.c.slice_id).where(mine, task_slice.c.deadline >= now)
        held.update(connection.execute(kept).scalars())
    return frozenset(held)


def end_leases(connection: Connection, owner: str) -> None:
    """Let others take over at once what a Manager that stops leaves behind."""
    connection.execute(update(task_slice).where(task_slice.c.owner == owner).values(deadline=0.0))


def begin_slice(
    connection: Connection, number: int, slice_id: str, owner: str, deadline: float
) -> None:
    """Note that a Manager is sending what another query has marked ``running``."""
    connection.execute(
        insert(task_slice).values(slice_id=slice_id, task=number, owner=owner, deadline=deadline)
    )


def expired_slices(connection: Connection, now: float, limit: int = 20) -> list[tuple[str, int]]:
    """Slices that may be taken over, with their tasks' numbers."""
    rows = connection.execute(
        select(task_slice.c.slice_id, task_slice.c.task)
        .where(task_slice.c.deadline < now)
        .order_by(task_slice.c.deadline)
        .limit(limit)
    )
    return [(row.slice_id, row.task) for row in rows]


def take_over(connection: Connection, slice_id: str, number: int, now: float) -> int:
    """Decide by what is recorded about the subtasks of a slice whose lease has ended.

    What has its result is not ``running`` any more. What is still so may or may not have been
    sent: it is sent again, by the same token, and why is noted.

    Returns:
        How many will be sent again.
    """
    locked = lock_task(connection, number, now, skip_locked=True)
    if locked is None:
        return 0
    lease = connection.execute(
        select(task_slice.c.deadline).where(task_slice.c.slice_id == slice_id).with_for_update()
    ).scalar()
    if lease is None or lease >= now:
        return 0
    changes = _Changes(locked, _late_of(connection, locked))
    rows = connection.execute(
        select(subtask.c.agent_id, subtask.c.job, subtask.c.sends).where(
            *_in_slice(number, slice_id)
        )
    ).all()
    for row in rows:
        if locked.row.quick or locked.row.status == CANCELLED or row.sends >= LOST_SENDS:
            changes.groups[FAILED, None, LEASE_LOST, None].append(row.agent_id)
        else:
            changes.resend(row.agent_id, row.job, sends=row.sends, reason=LEASE_LOST, due=now)
    changes.write(connection)
    connection.execute(delete(task_slice).where(task_slice.c.slice_id == slice_id))
    locked.save(connection)
    return len(changes.resends)


def returned_agents(
    connection: Connection, number: int, after: str, room: int
) -> tuple[list[str], str]:
    """Agents of waiting subtasks that are connected now.

    Args:
        connection: any.
        number: the task's.
        after: where the last look ended; empty at first.
        room: how many at most.

    Returns:
        Their ids, and where the next look goes on; empty when it begins anew.
    """
    waiting = (
        select(subtask.c.agent_id)
        .where(
            subtask.c.task == number,
            subtask.c.status == CREATED,
            subtask.c.due == AWAY,
            subtask.c.agent_id > after,
        )
        .order_by(subtask.c.agent_id)
        .limit(SCAN)
        .subquery()
    )
    rows = connection.execute(
        select(waiting.c.agent_id, agent.c.connected)
        .join_from(waiting, agent, waiting.c.agent_id == agent.c.agent_id, isouter=True)
        .order_by(waiting.c.agent_id)
    ).all()
    found: list[str] = []
    for row in rows:
        if row.connected:
            found.append(row.agent_id)
            if len(found) >= room:
                return found, row.agent_id
    return found, rows[-1].agent_id if len(rows) >= SCAN else ""


def end_late(connection: Connection, number: int, now: float, limit: int) -> int:
    """Give up answers that are late; returns how many."""
    locked = lock_task(connection, number, now, skip_locked=True)
    if locked is None:
        return 0
    ids = connection.execute(
        select(subtask.c.agent_id)
        .where(
            subtask.c.task == number,
            subtask.c.status == SUCCEED,
            subtask.c.due.between(0, now),
        )
        .limit(limit)
    ).scalars()
    return _give_up(connection, locked, (SUCCEED, RESULT_FAILED), {NO_ANSWER: ids.all()})


def end_waiting(connection: Connection, number: int, now: float, limit: int) -> int:
    """Give up what could not be sent before its run's deadline; returns how many."""
    locked = lock_task(connection, number, now, skip_locked=True)
    if locked is None:
        return 0
    rows = connection.execute(
        select(subtask.c.agent_id, subtask.c.due, subtask.c.status_msg)
        .where(
            subtask.c.task == number,
            subtask.c.status == CREATED,
            subtask.c.due >= AWAY,
            subtask.c.job.in_(_late_jobs(number, now)),
        )
        .limit(limit)
    ).all()
    reasons = defaultdict[str, list[str]](list)
    for row in rows:
        tried = row.due != AWAY and row.status_msg
        reasons[f"{row.status_msg}; {TOO_LATE}" if tried else NEVER_CONNECTED].append(row.agent_id)
    if len(rows) < limit:
        # Nothing more of these runs waits; what comes back to waiting says so itself.
        connection.execute(
            update(task_job)
            .where(
                task_job.c.task == number,
                task_job.c.deadline < now,
                task_job.c.drained.is_(True),
            )
            .values(expired=True)
        )
    return _give_up(connection, locked, (CREATED, FAILED), reasons)


def _give_up(
    connection: Connection,
    locked: LockedTask,
    move: tuple[str, str],
    reasons: Mapping[str, Sequence[str]],
) -> int:
    """End subtasks, by why; returns how many."""
    before, after = move
    count = 0
    for reason, ids in reasons.items():
        locked.set_subtasks(
            connection, ids, status=after, due=None, status_msg=reason, update_time=int(locked.now)
        )
        locked.move(before, after, len(ids))
        count += len(ids)
    locked.save(connection)
    return count


@frozen
class Outlook:
    """One open task, and what there is to be done with it now."""

    row: Any  # of `task`
    window: int  # subtasks at once, of its runs
    has_fresh: bool
    has_due: bool
    has_away: bool
    has_late: bool
    has_expired: bool

    @property
    def number(self) -> int:
        """Of the task."""
        number: int = self.row.number
        return number


def outlooks(connection: Connection, now: float, limit: int) -> list[Outlook]:
    """The open tasks, the oldest first."""
    of = subtask.c

    def any_(*where: Any) -> Any:
        return exists().where(of.task == task.c.number, *where).correlate(task)

    def job(*where: Any) -> Any:
        return exists().where(task_job.c.task == task.c.number, *where).correlate(task)

    window = (
        select(func.max(task_job.c.concurrence))
        .where(task_job.c.task == task.c.number)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(
            task,
            window.label("at_once"),
            job(task_job.c.drained.is_(False)).label("has_fresh"),
            any_(of.status == CREATED, of.due.between(0, now)).label("has_due"),
            any_(of.status == CREATED, of.due.between(AWAY, AWAY)).label("has_away"),
            any_(of.status == SUCCEED, of.due.between(0, now)).label("has_late"),
            job(task_job.c.deadline < now, task_job.c.expired.is_(False)).label("has_expired"),
        )
        .where(task.c.open.is_(True))
        .order_by(task.c.number)
        .limit(limit)
    ).all()
    return [
        Outlook(
            row,
            row.at_once or 1,
            bool(row.has_fresh),
            bool(row.has_due),
            bool(row.has_away),
            bool(row.has_late),
            bool(row.has_expired),
        )
        for row in rows
    ]
