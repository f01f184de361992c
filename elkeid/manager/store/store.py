"""The store as the reactor sees it: queries run in threads, bounded, writes one at a time."""

from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from twisted.internet.defer import Deferred, DeferredLock, DeferredSemaphore
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from elkeid.errors import StoreError
from elkeid.manager.store.engine import READERS, Database
from elkeid.manager.store.migrate import migrate

P = ParamSpec("P")
T = TypeVar("T")

THREADS = READERS + 1
"""Every reader's connection and the writer's."""

WAITING_LIMIT = 500
"""Queries in progress or waiting; beyond, requests are refused instead of piling up."""

SEARCHES_AT_ONCE = READERS - 1
"""Reads that a client's own words make long; one reader stays free for all the others, such as
those of tokens, tasks and reports."""

SEARCHES_LIMIT = 50
"""Searches in progress or waiting; beyond, they are refused instead of piling up."""

SEARCHES_PER_USER = 10
"""Of them for one user: a page of the console asks for two or three at once, and four others still
find places beside a user who asks for as many as there are."""

TRIES = 5
"""Of a write that meets other Managers' locks crosswise; the second one nearly always works."""


CAUSES = 10
"""Of one outage that the log is told of."""

_TROUBLE = "the database cannot be used now, the log says why"
"""What anybody may be told: the cause may name its address and its users."""


class StoreBusy(StoreError):
    """`WAITING_LIMIT` queries wait already, or the store is closed."""


class StoreFailed(StoreError):
    """The database refused a query; the log has the reason."""


_searcher: ContextVar[int | None] = ContextVar("searcher", default=None)


def searching_for(user_id: int) -> None:
    """Let searches count as this user's from now on, in the coroutine that calls this."""
    _searcher.set(user_id)


class Threads(Protocol):
    """Runs blocking functions elsewhere."""

    def run(self, function: Callable[..., T], *args: Any) -> "Deferred[T]":
        """Fire with what ``function(*args)`` returns or raises."""


class PoolThreads:
    """`Threads` over a pool of Twisted's.

    Args:
        reactor: whose thread gets the results.
        pool: started and stopped by its owner.
    """

    def __init__(self, reactor: IReactorFromThreads, pool: ThreadPool) -> None:
        self._reactor, self._pool = reactor, pool

    def run(self, function: Callable[..., T], *args: Any) -> "Deferred[T]":
        """Run in a thread of the pool."""
        return deferToThreadPool(self._reactor, self._pool, function, *args)


class Store:
    """Runs queries: functions that take a connection first, and never see the reactor.

    A caller that stops waiting (its client has left) changes nothing: the query ends by itself.

    Args:
        database: not open yet.
        threads: where queries run, at most `THREADS` at once.
    """

    log = Logger()

    def __init__(self, database: Database, threads: Threads) -> None:
        self._database, self._threads = database, threads
        self._writing = DeferredLock()
        self._searching = DeferredSemaphore(SEARCHES_AT_ONCE)
        self._searches: Counter[int | None] = Counter()  # by user
        self._pending = 0
        self._idle: list[Deferred[None]] = []
        self._open = False
        self._failure = ""  # of the last write
        self._causes: set[str] = set()  # why the database itself fails now, as told to the log

    def problems(self) -> list[str]:
        """Why queries cannot be served, for ``/ready``."""
        if not self._open:
            return ["the database is not open"]
        trouble = _TROUBLE if self._causes else ""
        return list(dict.fromkeys(each for each in (trouble, self._failure) if each))

    @property
    def pending(self) -> int:
        """Queries in progress or waiting."""
        return self._pending

    async def open(self) -> None:
        """Open the database and bring it to the newest schema; `StoreError` when that cannot be."""

        def opened() -> bool:
            self._database.open()
            return migrate(self._database)

        await self._threads.run(opened)
        self._open = True

    async def close(self) -> None:
        """Refuse new queries, cut reads short, let writes end, close the database."""
        self._open = False
        self._database.end_reads()
        if self._pending:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle
        await self._threads.run(self._database.close)

    async def read(
        self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query on a consistent view.

        Raises:
            StoreBusy: too many wait.
            StoreFailed: the database refused it.
            QueryTooLong: it took too long.
        """

        self._admit()
        return await self._watch(self._threads.run(self._reading(query, *args, **kwargs)))

    async def search(
        self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`read` for what a client's own words make long: however many, others are served.

        A caller that stops waiting before its turn leaves the line.

        Raises:
            StoreBusy: too many wait, in all or for the user of `searching_for`.
            StoreFailed: the database refused it.
            QueryTooLong: it took too long.
        """
        whose = _searcher.get()
        if self._searches.total() >= SEARCHES_LIMIT:
            raise StoreBusy("too many searches at once; try again")
        if whose is not None and self._searches[whose] >= SEARCHES_PER_USER:
            raise StoreBusy("too many searches of one user at once; wait for their answers")
        self._searches[whose] += 1
        try:
            await self._searching.acquire()
        except BaseException:
            self._left(whose)
            raise

        def over(result: T | Failure) -> T | Failure:
            self._left(whose)
            self._searching.release()
            return result

        try:
            self._admit()
        except StoreBusy as error:
            over(Failure(error))
            raise
        work = self._threads.run(self._reading(query, *args, **kwargs))
        return await self._watch(work.addBoth(over))

    def _left(self, whose: int | None) -> None:
        self._searches[whose] -= 1
        if not self._searches[whose]:
            del self._searches[whose]

    def _reading(
        self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], T]:
        """What a thread does for a read."""

        def work() -> T:
            with self._database.reading() as connection:
                return query(connection, *args, **kwargs)

        return work

    async def write(
        self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query in a transaction of its own, after the writes before it.

        It runs again if its transaction was undone because it and one of another Manager each
        waited for the other.

        Raises:
            StoreBusy: too many wait.
            StoreFailed: the database refused it; nothing was changed.
        """

        def work() -> T:
            for left in reversed(range(TRIES)):
                try:
                    with self._database.writing() as connection:
                        return query(connection, *args, **kwargs)
                except DBAPIError as error:
                    if not left or not self._database.may_retry(error):
                        raise
            raise AssertionError("unreachable")

        self._admit()
        try:
            result = await self._watch(self._writing.run(self._threads.run, work))
        except StoreFailed as error:
            self._failure = str(error)
            raise
        self._failure = ""
        return result

    def _admit(self) -> None:
        if not self._open or self._pending >= WAITING_LIMIT:
            raise StoreBusy("the database has too much to do; try again")
        self._pending += 1

    def _report(self, failure: Failure) -> str:
        """Say what is wrong with the database in one line; log whole what must be a bug."""
        error = failure.value
        if not isinstance(error, DBAPIError) or not self._database.is_trouble(error):
            self.log.failure("the database refused a query", failure)
            return "the database refused a query, see the log"
        cause = " ".join(str(error.orig).split())
        # Each once, however many queries meet it.
        if cause not in self._causes and len(self._causes) < CAUSES:
            self._causes.add(cause)
            self.log.error("the database failed: {cause}; trying on", cause=cause)
        return _TROUBLE

    def _watch(self, work: "Deferred[T]") -> "Deferred[T]":
        """A Deferred that may be given up without giving up the work."""
        waiting: Deferred[T] = Deferred()

        def ended(result: T | Failure) -> None:
            self._pending -= 1
            if isinstance(result, Failure) and result.check(SQLAlchemyError):
                result = Failure(StoreFailed(self._report(result)))
            elif self._causes and not isinstance(result, Failure):
                self.log.info("the database works again")
                self._causes.clear()
            if self._pending == 0:
                idle, self._idle = self._idle, []
                for each in idle:
                    each.callback(None)
            if isinstance(result, Failure):
                waiting.errback(result)
            else:
                waiting.callback(result)

        work.addBoth(ended)
        return waiting
