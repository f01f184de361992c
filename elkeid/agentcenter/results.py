"""Task results on their way to the Manager: on disk first, then sent until they are taken.

Source: docs/protocol.md, "Task results".
"""

import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.agentcenter.kept_results import KEPT_FILE, KeptResults
from elkeid.agentcenter.manager_client import ManagerClient, ManagerRefused
from elkeid.agentcenter.outbox import READER, OutboxReader, Result, log_settings
from elkeid.agentcenter.table import Agent
from elkeid.errors import OperatorError
from elkeid.eventlog.files import FileOperations
from elkeid.eventlog.log import EventLog, InThread
from elkeid.metrics import ResultFigures
from elkeid.web.client import CallFailed, Unreachable
from elkeid.wire import item
from elkeid.wire.datatypes import RecordClass
from elkeid.wire.protobuf import length_delimited
from elkeid.wire.rawdata import encode_record

RESULTS_PATH: Final = "/api/v1/agent/updateSubTask"

CALL_SECONDS: Final = 10.0
"""For one batch, over all members."""

LINGER_SECONDS: Final = 0.2
"""Results that come within this time of the first go out together."""

FIRST_RETRY_SECONDS: Final = 0.5
LAST_RETRY_SECONDS: Final = 30.0
"""Pauses double from the first to the last, each cut by up to half, at random."""

SHARES: Final = 32
"""One agent's results may take this part of the disk cap, or one batch: 40,000 usual results."""

REFUSALS: Final = 3
"""Of one call by answers that are no failure of ours, before it is halved to find the culprit."""

KEPT_AT_ONCE: Final = 20
"""Results kept aside that are tried before new ones are."""

STOP_SECONDS: Final = 1.0
"""For a call under way at a stop; what it brings would be sent again at the next start."""


@frozen
class Refusal:
    """Why a Manager did not take results; ``final`` when it never will."""

    reason: str
    final: bool


class ResultsOutbox:
    """Keeps task results on disk and brings them to the Manager, in order, at least once.

    A `Follower` of the gateway. What was noted down is on disk after `commit`, which the event
    log calls before its own; so a result is never behind its record.

    Args:
        directory: of the outbox, made if missing.
        cap_bytes: what it may take on disk; beyond, the oldest results are given up.
        fsync: longest time that a power cut may cost, seconds.
        clock: for pauses.
        in_thread: runs a function in a pool.
        manager: takes the results.
        wall: seconds since the epoch.
        files: the file operations; tests pass a set that fails.
    """

    log = Logger()

    def __init__(
        self,
        directory: Path,
        *,
        cap_bytes: int,
        fsync: float,
        clock: IReactorTime,
        in_thread: InThread,
        manager: ManagerClient,
        wall: Callable[[], float],
        files: FileOperations | None = None,
    ) -> None:
        self._directory, self._clock, self._in_thread = directory, clock, in_thread
        self._manager, self._wall = manager, wall
        self._log = EventLog(directory, log_settings(fsync, cap_bytes), clock, in_thread, files)
        self._reader: OutboxReader | None = None
        self._noted = False
        self._failures = 0  # of the log, when `commit` was last asked
        self._news = False
        self._wake_call: IDelayedCall | None = None
        self._waiter: Deferred[None] | None = None
        self._running: Deferred[None] | None = None
        self._stopping = False
        self._pausing = False
        self._failing = ""
        self._unsaved = ""  # why progress could not be noted down lately
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._kept = KeptResults(directory / KEPT_FILE)
        self._kept_call: IDelayedCall | None = None
        self._share_bytes = cap_bytes // SHARES
        self._waiting: Counter[str] = Counter()  # agent id -> bytes that came since the start
        self.retries = 0
        self.taken_late = 0

    async def open(self) -> None:
        """Open the log and begin to send what is in it.

        Raises:
            OperatorError: the disk does not let us, or another process has it.
        """
        await self._log.open()
        self._reader = await self._in_thread(OutboxReader, self._directory, self._wall)
        try:
            await self._in_thread(self._kept.open)
        except (OSError, sqlite3.Error) as error:
            path = self._directory / KEPT_FILE
            raise OperatorError(f"{path}: {error}; repair it, or move it away") from error
        self._running = Deferred.fromCoroutine(self._run(self._reader))
        self._running.addErrback(_ended)

    async def stop(self) -> None:
        """End what is under way within `STOP_SECONDS`, and make everything durable."""
        self._stopping = True
        if self._wake_call is not None:
            self._wake_call.cancel()
            self._wake_call = None
        self._plan_kept(None)
        if self._running is not None:
            running = self._running
            self._rouse()
            timer = self._clock.callLater(STOP_SECONDS, running.cancel)
            if self._pausing:
                running.cancel()
            await running
            if timer.active():
                timer.cancel()
            self._plan_kept(None)
        if self._reader is not None:
            await self._in_thread(self._reader.close)
        await self._in_thread(self._kept.close)
        await self._log.close()

    # --- what comes in

    def joined(self, agent: Agent) -> None:
        """Nothing to do: results speak for themselves."""

    def left(self, agent: Agent) -> None:
        """Nothing to do: what it brought is kept."""

    def heartbeat(self, agent: Agent, data_type: int, fields: Mapping[bytes, bytes]) -> None:
        """Nothing to do."""

    def results(self, agent: Agent, results: Sequence[tuple[int, bytes]]) -> None:
        """Note down what an agent brought."""
        now = int(self._wall())
        self._append(
            agent.agent_id, [encode_record(data_type, now, body) for data_type, body in results]
        )

    def refused(self, count: int) -> None:
        """Count results that could not even wait until it was clear whose they are."""
        self._log.drop(RecordClass.CONTROL, "memory", count)

    def add(self, agent_id: str, data_type: int, fields: Mapping[str, str]) -> None:
        """Note down a result of our own."""
        self._append(agent_id, [encode_record(data_type, int(self._wall()), item.encode(fields))])

    def _append(self, agent_id: str, records: list[bytes]) -> None:
        size = sum(len(record) for record in records)
        waiting = self._waiting[agent_id]
        if waiting and waiting + size > self._share_bytes:
            self._log.drop(RecordClass.CONTROL, "share", len(records))
            return
        self._waiting[agent_id] += size
        self._noted = True
        self._log.append(
            RecordClass.CONTROL,
            len(records),
            length_delimited(4, agent_id.encode("utf-8", "replace")),
            b"".join(length_delimited(1, record) for record in records),
        )
        if self._wake_call is None and not self._stopping:
            self._wake_call = self._clock.callLater(LINGER_SECONDS, self._wake)

    def commit(self) -> bool:
        """Write what was noted down; whether all that came since the last call is on disk now."""
        if self._noted:  # called at every commit of the event log, so it must cost nothing
            self._noted = False
            self._log.commit()
        failures, self._failures = self._failures, self._log.failures
        return failures == self._failures

    # --- what goes out

    def _wake(self) -> None:
        self._wake_call = None
        self._rouse()

    def _rouse(self) -> None:
        self._news = True
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter.callback(None)

    async def _run(self, reader: OutboxReader) -> None:
        batch: list[Result] = []
        while not self._stopping:
            self._news = False
            try:
                await self._try_kept(reader)
                batch = batch or await self._in_thread(reader.next)
                if batch:
                    await self._deliver(reader, batch)
                    batch = []
                    continue
            except CancelledError:
                raise
            except Exception:  # a disk that cannot be read, or a bug: neither ends the sending
                self.log.failure("{path}: task results wait", path=self._directory)
                await self._pause(LAST_RETRY_SECONDS)
                continue
            if not self._news and not self._stopping:
                self._plan_kept(self._kept.next_due())
                self._waiter = Deferred()
                await self._waiter

    async def _pause(self, seconds: float) -> None:
        if self._stopping:
            raise CancelledError
        self._pausing = True
        await deferLater(self._clock, seconds)
        self._pausing = False

    async def _deliver(self, reader: OutboxReader, batch: list[Result]) -> None:
        """Bring a batch to the Manager, without those that it does not take."""
        size, tries = len(batch), REFUSALS
        while batch:
            await self._try_kept(reader)
            held = list(takewhile(lambda each: self._kept.holds(each.fields), batch))
            if held and self._kept.full:
                await self._pause(LAST_RETRY_SECONDS)
                continue
            part = held or list(
                takewhile(lambda each: not self._kept.holds(each.fields), batch[:size])
            )
            refusal = (
                Refusal("one of the same token waits", final=False)
                if held
                else await self._send([each.fields for each in part if each.fields], tries)
            )
            if refusal is not None:
                tries = 1  # enough while looking for the culprits
            if refusal is not None and not held and len(part) > 1:
                size = len(part) // 2  # one of these is at fault
                continue
            if refusal is not None and not refusal.final:
                if self._kept.full:
                    continue
                await self._keep(part, refusal)
            elif refusal is not None:
                self.log.warn("a task result is set aside: {reason}", reason=refusal.reason)
            await self._settle(reader, part, refusal)
            batch = batch[len(part) :]
            size = len(batch)

    async def _settle(
        self, reader: OutboxReader, part: list[Result], refusal: Refusal | None
    ) -> None:
        try:
            if refusal is None:
                await self._in_thread(reader.settle, part)
            else:
                await self._in_thread(
                    reader.settle, part, refusal.reason, elsewhere=not refusal.final
                )
        except OSError as error:  # they would be sent again after a restart
            if str(error) != self._unsaved:  # once, however many follow
                self._unsaved = str(error)
                self.log.error("{path}: {error}", path=self._directory, error=error)
        else:
            self._unsaved = ""
        for result in part:
            self._waiting[result.agent_id] -= result.stored
            if self._waiting[result.agent_id] <= 0:  # below zero: it came in an earlier run
                del self._waiting[result.agent_id]

    async def _send(self, items: list[dict[str, str]], tries: int) -> Refusal | None:
        """Send until the Manager takes these, or refuses them for good or ``tries`` times."""
        refusals = 0
        while items:
            try:
                await self._call(items)
            except (ManagerRefused, CallFailed) as error:
                if isinstance(error, ManagerRefused) and error.final:
                    return Refusal(str(error), final=True)
                if not self._failing:
                    self.log.warn("task results wait: {reason}", reason=error)
                self._failing = str(error)
                refusals += not isinstance(error, Unreachable)
            else:
                return None
            # Many gateways must not come back at the same moment.
            pause = self._retry_seconds
            self._retry_seconds = min(2 * pause, LAST_RETRY_SECONDS)
            await self._pause(pause * random.uniform(0.5, 1))  # noqa: S311
            if refusals >= tries:
                return Refusal(self._failing, final=False)
        return None

    async def _call(self, items: list[dict[str, str]]) -> None:
        try:
            await self._manager.post(RESULTS_PATH, items, seconds=CALL_SECONDS)
        except (ManagerRefused, CallFailed) as error:
            if not isinstance(error, ManagerRefused) or not error.final:
                self.retries += 1
            raise
        self._retry_seconds = FIRST_RETRY_SECONDS
        if self._failing:
            self.log.info("task results are taken again")
        self._failing = ""

    # --- those that are refused while others are taken

    async def _keep(self, part: list[Result], refusal: Refusal) -> None:
        """Keep results aside on disk, so that those behind them get past."""
        while True:
            try:
                await self._in_thread(
                    self._kept.keep, [each.fields for each in part], self._clock.seconds()
                )
            except sqlite3.Error as error:
                self.log.error("{path}: {error}", path=self._directory, error=error)
                await self._pause(LAST_RETRY_SECONDS)
            else:
                break
        self.log.warn(
            "{n} task results are kept aside, and tried again: {reason}",
            n=len(part),
            reason=refusal.reason,
        )

    async def _try_kept(self, reader: OutboxReader) -> None:
        """Send again those whose time has come, one by one."""
        for _ in range(KEPT_AT_ONCE):
            kept = self._kept.due(self._clock.seconds())
            if kept is None or self._stopping:
                return
            try:
                await self._call([kept.fields])
            except Unreachable:
                self._kept.postpone(self._clock.seconds())
                return
            except (ManagerRefused, CallFailed) as error:
                if not isinstance(error, ManagerRefused) or not error.final:
                    self._kept.refused_again(kept, self._clock.seconds())
                    continue
                self.log.warn("a task result is set aside: {reason}", reason=error)
                await self._in_thread(reader.keep, kept.fields, str(error))
            else:
                self.taken_late += 1
            try:
                await self._in_thread(self._kept.remove, kept)
            except sqlite3.Error as error:  # it would be sent again after a restart
                self.log.error("{path}: {error}", path=self._directory, error=error)

    def _plan_kept(self, due: float | None) -> None:
        """Look after what is kept aside at a time of the clock; None: not at all."""
        if self._kept_call is not None and self._kept_call.active():
            self._kept_call.cancel()
        self._kept_call = None
        if due is not None:
            pause = max(due - self._clock.seconds(), 0.0)
            self._kept_call = self._clock.callLater(pause, self._rouse)

    # --- figures

    def problems(self) -> list[str]:
        """What keeps results from being kept, for ``/ready``."""
        return [f"task results: {each}" for each in self._log.problems((RecordClass.CONTROL,))]

    def figures(self) -> ResultFigures:
        """For metrics; commits, and reads a small file."""
        account = self._log.ledger().get(RecordClass.CONTROL.label)
        if account is None or self._reader is None:
            return ResultFigures(retries=self.retries)
        place = account["readers"][READER]
        stats = self._log.stats().classes[RecordClass.CONTROL]
        return ResultFigures(
            waiting=place["waiting"],
            sent=place["acknowledged"],
            set_aside=place["set_aside"],
            expired=sum(place["expired"].values()),
            dropped=sum(account["dropped"].values()),
            retries=self.retries,
            unreadable=self._reader.unreadable,
            shortened=self._reader.shortened,
            kept=len(self._kept),
            taken_late=self.taken_late,
            bytes_on_disk=stats.bytes_on_disk,
        )


def _ended(failure: Failure) -> None:
    failure.trap(CancelledError)  # by a stop
