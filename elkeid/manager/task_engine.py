"""The engine of tasks: one in every Manager, all over one database.

Each second it looks what open tasks need, and does it: select hosts, claim and send, give up
what is late, take over what another Manager left behind. It keeps nothing that the database does
not have, but for the outcomes of calls under way.

Source: docs/tasks.md.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any, Final

import msgspec
from attrs import Factory, define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.discovery.loops import Outage
from elkeid.errors import StoreError
from elkeid.manager.filter import FilterError
from elkeid.manager.store.store import Store
from elkeid.manager.store.task_hosts import Choices, Chosen
from elkeid.manager.store.task_lists import body_of, rows_of, task_data
from elkeid.manager.store.task_rows import CANCELLED, RUNNING
from elkeid.manager.store.task_work import (
    Claimant,
    Done,
    Order,
    Outlook,
    Verdict,
    claim,
    end_late,
    end_leases,
    end_waiting,
    expired_slices,
    note_done,
    outlooks,
    renew_leases,
    returned_agents,
    take_over,
)
from elkeid.manager.store.tasks import (
    SLICE,
    add_subtasks,
    cancel_subtasks,
)
from elkeid.manager.task_progress import Listener, Progress
from elkeid.manager.task_sending import Sender
from elkeid.metrics import TaskMetrics

LOOK_SECONDS: Final = 1.0
"""Pause between two looks at what there is to do."""

LEASE_SECONDS: Final = 30.0
"""A Manager that is silent for so long has stopped: what it was sending is taken over."""

RENEWALS: Final = 6
"""Of a lease within its time: some may fail."""

CLAIM: Final = 500
"""Subtasks of one claim: a transaction of some 30 ms."""

NOTE_SECONDS: Final = 0.1
"""Outcomes that come within this time of the first are noted together."""

AT_ONCE: Final = 50
"""Calls begun in one reactor turn: some 5 ms."""

OPEN_LIMIT: Final = 1_000
"""Open tasks that are worked on, the oldest first; looking at one costs some 30 us."""

DATA_KEPT: Final = 64
"""Tasks whose data are kept in memory."""

STOP_SECONDS: Final = 5.0
"""For calls under way at a stop."""

PAUSES: Final = (1.0, 60.0)
"""Between tries of a subtask that was not sent: first, doubled each time, and at most."""

STORE_PAUSE: Final = 1.0
"""After a failure of the database."""


@frozen(kw_only=True)
class EngineSettings:
    """Of ``[manager]``, as far as the engine is concerned."""

    drop_hosts: int
    drop_seconds: float
    approval_hosts: int
    lease_seconds: float = LEASE_SECONDS


@define
class _Slice:
    """Orders that this Manager is sending, and their outcomes that are not noted yet."""

    slice_id: str
    number: int
    left: int  # orders without an outcome
    safe_until: float  # of the engine's clock; then others may have the lease
    done: list[Done] = Factory(list)
    timer: IDelayedCall | None = None
    noting: bool = False
    dropped: bool = False  # orders whose outcome is not known


@define
class _Worker:
    """What this Manager does for one task."""

    number: int
    window: int = 1
    under_way: int = 0
    running: bool = False
    again: bool = False
    scan: str = ""
    returned: list[str] = Factory(list)
    room: Deferred[None] | None = None
    busy: set[str] = field(factory=set)  # chores under way


class TaskEngine:
    """Drives tasks to their end.

    Args:
        clock: for pauses; its time must only go forward.
        store: open before `start`.
        sender: brings commands to ACs.
        wall: seconds since the epoch, the same for all Managers within a few seconds.
        settings: see there.
        metrics: counts.
        owner: the id of this run; a random one by default.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: Store,
        sender: Sender,
        wall: Callable[[], float],
        *,
        settings: EngineSettings,
        metrics: TaskMetrics,
        owner: str | None = None,
    ) -> None:
        self._clock, self._store, self._sender, self._wall = clock, store, sender, wall
        self._settings, self._metrics = settings, metrics
        self.owner = owner or token_hex(8)
        self._claimant = Claimant(
            owner=self.owner,
            lease_seconds=settings.lease_seconds,
            drop_hosts=settings.drop_hosts,
            drop_seconds=settings.drop_seconds,
        )
        self._workers: dict[int, _Worker] = {}
        self._slices: dict[str, _Slice] = {}
        self._data: OrderedDict[int, Any] = OrderedDict()
        self._choices = Choices()
        self._progress = Progress()
        self._timer: IDelayedCall | None = None
        self._looking = False
        self._renew_at = 0.0  # of the clock
        self._outage = Outage("tasks wait for the database")
        self._failures = 0  # of the outage, at the end of the last look
        self._stopping = True
        self._under_way: set[Deferred[None]] = set()
        self._idle: list[Deferred[None]] = []
        self.open = 0  # tasks, when last looked

    # --- from the outside

    def start(self) -> None:
        """Begin to look for work."""
        self._stopping = False
        self._timer = self._clock.callLater(0, self._look_now)

    async def stop(self) -> None:
        """Claim nothing more, note what is under way, leave the rest to others."""
        if self._stopping:
            return
        self._stopping = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for worker in self._workers.values():
            self._wake(worker)
        if self._under_way:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            late = self._clock.callLater(STOP_SECONDS, self._give_up_waiting)
            await idle
            if late.active():
                late.cancel()
        for each in list(self._under_way):
            each.cancel()
        for held in list(self._slices.values()):
            if held.timer is not None and held.timer.active():
                held.timer.cancel()
            await self._note(held)
        try:
            await self._store.write(end_leases, self.owner)
        except StoreError as error:
            self.log.warn("tasks under way are taken over when their leases end: {e}", e=error)

    def wake(self) -> None:
        """Look at once: something has changed."""
        if not self._stopping and self._timer is not None and self._timer.active():
            self._timer.reset(0)

    def follow(self, listener: Listener) -> Callable[[], None]:
        """Tell a listener of each task's progress, at most once a second each.

        Returns:
            What ends that.
        """
        return self._progress.follow(listener)

    async def prepare(self, number: int, seconds: float, chosen: Chosen) -> bool:
        """Select a task's hosts for a while.

        Args:
            number: the task's.
            seconds: then the rest is left to the engine.
            chosen: whom the task is for.

        Returns:
            Whether they are all selected.
        """
        self._choices.keep(number, chosen)
        end = self._clock.seconds() + seconds
        while await self._prepare_next(number):
            if self._clock.seconds() >= end:
                return False
        return True

    # --- looking

    def _look_now(self) -> None:
        self._spawn(self._look())

    async def _look(self) -> None:
        try:
            if not self._stopping:
                await self._look_around()
                if self._failures == self._outage.failures:  # nor has anything else failed since
                    self._outage.worked()
        except StoreError as error:
            self._outage.failed(error)
        except Exception:
            self.log.failure("looking after tasks failed; trying on")
        finally:
            self._failures = self._outage.failures
            if not self._stopping:
                self._timer = self._clock.callLater(LOOK_SECONDS, self._look_now)

    async def _look_around(self) -> None:
        now = self._wall()
        if self._slices and self._clock.seconds() >= self._renew_at:
            await self._renew(now)
        found = await self._store.read(outlooks, now, OPEN_LIMIT)
        self.open = len(found)
        for slice_id, number in await self._store.read(expired_slices, now):
            resent = await self._store.write(take_over, slice_id, number, now)
            self._metrics.resends.labels("lease_lost").inc(resent)
        self._progress.saw([outlook.row for outlook in found])
        open_numbers = {outlook.number for outlook in found}
        closed = [number for number in self._progress.known if number not in open_numbers]
        if closed:
            self._progress.saw(await self._store.read(rows_of, closed), closed=True)
        for number in [n for n in self._workers if n not in open_numbers]:
            worker = self._workers[number]
            if not worker.running and not worker.under_way and not worker.busy:
                del self._workers[number]
        for outlook in found:
            self._attend(outlook)

    async def _renew(self, now: float) -> None:
        began = self._clock.seconds()
        mine = list(self._slices.values())
        held = await self._store.write(
            renew_leases, [each.slice_id for each in mine], now, self._settings.lease_seconds
        )
        self._renew_at = began + self._settings.lease_seconds / RENEWALS
        for each in mine:
            if each.slice_id in held:
                each.safe_until = began + self._settings.lease_seconds

    def _attend(self, outlook: Outlook) -> None:
        number, row = outlook.number, outlook.row
        worker = self._workers.setdefault(number, _Worker(number))
        worker.window = outlook.window
        if row.selecting:
            self._chore(worker, "prepare", self._prepare_all(number))
        if row.status == CANCELLED and row.n_created:
            self._chore(worker, "withdraw", self._repeat(cancel_subtasks, number))
        if outlook.has_late:
            self._chore(worker, "late", self._repeat(end_late, number, limit=SLICE))
        if outlook.has_expired:
            self._chore(worker, "waiting", self._repeat(end_waiting, number, limit=SLICE))
        if row.status != RUNNING or row.paused:
            return
        if outlook.has_away:
            self._chore(worker, "scan", self._scan(worker))
        if outlook.has_fresh or outlook.has_due:
            self._set_off(worker)

    def _chore(self, worker: _Worker, name: str, work: Any) -> None:
        """Do something for a task, unless it is being done already."""
        if name in worker.busy:
            work.close()
            return
        worker.busy.add(name)

        async def run() -> None:
            try:
                await work
            except StoreError as error:
                self._outage.failed(error)
            finally:
                worker.busy.discard(name)

        self._spawn(run())

    async def _repeat(self, query: Any, number: int, **more: Any) -> None:
        while not self._stopping and await self._store.write(
            query, number, now=self._wall(), **more
        ):
            pass

    async def _scan(self, worker: _Worker) -> None:
        """Look whether agents that were away have come back: one stretch of them at a time."""
        found, worker.scan = await self._store.read(
            returned_agents, worker.number, worker.scan, CLAIM
        )
        if found:
            worker.returned = found
            self._set_off(worker)

    # --- selecting

    async def _prepare_all(self, number: int) -> None:
        while not self._stopping and await self._prepare_next(number):
            pass

    async def _prepare_next(self, number: int) -> bool:
        """Give a task its next hosts; says whether there may be more to give."""
        try:
            found = await self._store.read(self._choices.next_hosts, number, SLICE)
        except (FilterError, msgspec.MsgspecError):
            self.log.failure("task {number}: its selection cannot be read", number=number)
            self._choices.keep(number, Chosen((), None))
            return True
        if found is None:
            return False
        last = len(found.ids) < SLICE
        await self._store.write(
            add_subtasks,
            number,
            found.after,
            found.ids,
            self._wall(),
            last=last,
            approval_hosts=self._settings.approval_hosts,
        )
        if last:
            self._choices.drop(number)
        return not last

    # --- sending

    def _set_off(self, worker: _Worker) -> None:
        worker.again = True
        if not worker.running:
            worker.running = True
            self._spawn(self._work(worker))

    async def _work(self, worker: _Worker) -> None:
        try:
            while worker.again and not self._stopping:
                worker.again = False
                while await self._claim_some(worker):
                    pass
        except StoreError as error:
            self._outage.failed(error)
        finally:
            worker.running = False

    async def _claim_some(self, worker: _Worker) -> bool:
        """Claim and begin to send; says whether there may be more to claim now."""
        # Half of the window at a time: one claim for each single subtask would cost too much.
        while worker.under_way > worker.window // 2 and not self._stopping:
            worker.room = Deferred()
            await worker.room
        if self._stopping:
            return False
        limit = min(CLAIM, max(1, worker.window - worker.under_way))
        returned, worker.returned = worker.returned, []
        data = await self._data_of(worker.number)
        if data is None:
            return False
        began = self._clock.seconds()
        claimed = await self._store.write(
            claim,
            worker.number,
            token_hex(12),
            data.get("config") or [],
            self._claimant,
            limit=limit,
            now=self._wall(),
            returned=returned,
        )
        if claimed.slice_id is not None:
            safe_until = began + self._settings.lease_seconds
            held = _Slice(claimed.slice_id, worker.number, len(claimed.orders), safe_until)
            self._slices[held.slice_id] = held
            worker.under_way += len(claimed.orders)
            await self._begin(worker, held, claimed.orders, data)
        more: bool = claimed.more
        return more

    async def _begin(
        self, worker: _Worker, held: _Slice, orders: Sequence[Order], data: Any
    ) -> None:
        for start in range(0, len(orders), AT_ONCE):
            if start:
                await deferLater(self._clock, 0)
            for order in orders[start : start + AT_ONCE]:
                self._spawn(self._send(worker, held, order, data))

    async def _send(self, worker: _Worker, held: _Slice, order: Order, data: Any) -> None:
        done: Done | None = None
        try:
            if self._clock.seconds() >= held.safe_until:
                return  # another Manager may be sending it
            if self._stopping:
                done = Done(order, Verdict.NOT_SENT, "the Manager stopped")
            else:
                done = await self._deliver(order, data)
            self._metrics.sends.labels(done.verdict.value).inc()
            held.done.append(done)
        finally:
            held.dropped = held.dropped or done is None
            held.left -= 1
            worker.under_way -= 1
            self._wake(worker)
            self._note_soon(held)

    def _wake(self, worker: _Worker) -> None:
        if worker.room is not None and (self._stopping or worker.under_way <= worker.window // 2):
            room, worker.room = worker.room, None
            room.callback(None)

    async def _deliver(self, order: Order, data: Any) -> Done:
        def body() -> bytes:
            payload = None if order.config is None else msgspec.json.encode(order.config).decode()
            return msgspec.json.encode(body_of(order.agent_id, order.token, data, payload))

        try:
            sent = await self._sender.send(order.source, body)
        except CancelledError:
            raise
        except Exception:
            self.log.failure("sending to {agent} failed", agent=order.agent_id)
            return Done(order, Verdict.UNSURE, "internal error, see the Manager's log")
        first, most = PAUSES
        pause = min(most, first * 2.0 ** min(order.tries + order.sends, 16))
        return Done(order, sent.verdict, sent.reason, sent.response, pause)

    # --- noting

    def _note_soon(self, held: _Slice) -> None:
        if held.noting:
            return
        if held.timer is not None and held.timer.active():
            if held.left:
                return
            held.timer.cancel()
        pause = NOTE_SECONDS if held.left else 0
        held.timer = self._clock.callLater(pause, self._note_now, held)

    def _note_now(self, held: _Slice) -> None:
        held.noting = True
        self._spawn(self._note(held))

    async def _note(self, held: _Slice) -> None:
        """Note the outcomes that there are; what fails is tried again until others take over."""
        done, held.done = held.done, []
        ended = not held.left
        pause = NOTE_SECONDS
        try:
            noted = await self._store.write(
                note_done,
                held.number,
                held.slice_id,
                done,
                self._wall(),
                ended=ended,
                dropped=held.dropped,
            )
        except StoreError as error:
            held.done = done + held.done
            self._outage.failed(error)
            pause = STORE_PAUSE
        else:
            self._metrics.superseded.inc(noted.superseded)
            self._metrics.resends.labels("unsure").inc(noted.resends)
            if ended:
                self._slices.pop(held.slice_id, None)
                return
        finally:
            held.noting = False
        if (held.done or not held.left) and not self._stopping:
            held.timer = self._clock.callLater(pause, self._note_now, held)

    async def _data_of(self, number: int) -> Any:
        if number not in self._data:
            self._data[number] = await self._store.read(task_data, number)
            while len(self._data) > DATA_KEPT:
                self._data.popitem(last=False)
        self._data.move_to_end(number)
        return self._data[number]

    # --- keeping track

    def _spawn(self, work: Any) -> None:
        running: Deferred[None] = Deferred.fromCoroutine(work)
        if running.called:
            running.addErrback(self._failed)
            return
        self._under_way.add(running)
        running.addBoth(self._ended, running)

    def _ended(self, result: object, running: "Deferred[None]") -> None:
        self._under_way.discard(running)
        if isinstance(result, Failure):
            self._failed(result)
        if not self._under_way:
            self._give_up_waiting()

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self.log.failure("work on a task failed", failure)

    def _give_up_waiting(self) -> None:
        idle, self._idle = self._idle, []
        for each in idle:
            each.callback(None)
