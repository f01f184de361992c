"""Results on their way into the database: what comes while some are written is written together.

A transaction costs a database as much as writing some dozens of results, so gateways that bring
many batches at once would wait for each other's transactions.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from attrs import frozen
from twisted.internet.defer import Deferred

from elkeid.manager.store.results import Outcome, apply_results
from elkeid.manager.store.store import WAITING_LIMIT, Store, StoreBusy

TOGETHER: Final = 500
"""Results of one transaction, unless a single batch has more: some 50 ms."""

TOGETHER_BYTES: Final = 1024 * 1024
"""The same for their size: large scans go alone."""


@frozen
class _Batch:
    """What one call brought, and who waits for its end."""

    items: Sequence[Any]
    size: int
    ended: "Deferred[Outcome]"


class ResultIntake:
    """Writes batches of results, each whole and in the order of their arrival.

    Args:
        store: open before the first `bring`.
        wall: seconds since the epoch.
    """

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        self._store, self._wall = store, wall
        self._waiting: deque[_Batch] = deque()
        self._running = False

    async def bring(self, items: Sequence[Any], size: int) -> Outcome:
        """Store results; they are on the disk when this returns.

        A caller that stops waiting changes nothing: what it brought is written all the same.

        Args:
            items: as decoded; see `apply_results`.
            size: bytes that they were.

        Raises:
            StoreError: nothing of it was stored; batches of others are none the worse.
        """
        if len(self._waiting) >= WAITING_LIMIT:
            raise StoreBusy("the database has too much to do; try again")
        batch = _Batch(items, size, Deferred())
        self._waiting.append(batch)
        if not self._running:
            self._running = True
            Deferred.fromCoroutine(self._run())
        return await batch.ended

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._write(self._next())
        finally:
            self._running = False

    def _next(self) -> list[_Batch]:
        """The batches of the next transaction: at least one."""
        some = [self._waiting.popleft()]
        items, size = len(some[0].items), some[0].size
        while self._waiting:
            items += len(self._waiting[0].items)
            size += self._waiting[0].size
            if items > TOGETHER or size > TOGETHER_BYTES:
                break
            some.append(self._waiting.popleft())
        return some

    async def _write(self, some: list[_Batch]) -> None:
        now = int(self._wall())
        try:
            outcomes = await self._store.write(apply_results, [each.items for each in some], now)
        except Exception as error:
            if len(some) == 1 or isinstance(error, StoreBusy):
                for each in some:
                    each.ended.errback(error)
                return
            for each in some:  # one of them may be at fault
                await self._write([each])
        else:
            for each, done in zip(some, outcomes, strict=True):
                each.ended.callback(done)
