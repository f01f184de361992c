"""An engine of tasks as a process of its own, which may be killed at any time.

Its sender writes each command down, agent and token, and says that it was taken.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.threadpool import ThreadPool

from elkeid.manager.documents import Source
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.store import THREADS, PoolThreads, Store
from elkeid.manager.store.task_work import Verdict
from elkeid.manager.task_engine import EngineSettings, TaskEngine
from elkeid.manager.task_sending import Sent
from elkeid.metrics import TaskMetrics

reactor: Any = global_reactor
LEASE_SECONDS = 2.0


class WritingSender:
    """Appends a line for each command; a line is whole or not there."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def send(self, source: Source, body: Callable[[], bytes]) -> Sent:
        """Take a moment."""
        sent = msgspec.json.decode(body())
        await deferLater(reactor, random.uniform(0, 0.05))
        line = f"{sent['agent_id']} {sent['command']['task']['token']} {os.getpid()}\n"
        os.write(self._file, line.encode())
        await deferLater(reactor, random.uniform(0, 0.05))
        return Sent(Verdict.TAKEN)


async def run(url: str, path: str) -> None:
    """Work until killed."""
    pool = ThreadPool(0, THREADS, "store")
    pool.start()
    reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
    store = Store(make_database(url), PoolThreads(reactor, pool))
    await store.open()
    engine = TaskEngine(
        reactor,
        store,
        WritingSender(path),
        time.time,
        settings=EngineSettings(
            drop_hosts=5,
            drop_seconds=600,
            approval_hosts=0,
            lease_seconds=LEASE_SECONDS,
        ),
        metrics=TaskMetrics(CollectorRegistry(), lambda: 0),
    )
    engine.start()


def main() -> None:
    """``python -m tests.integration.task_worker URL PATH``."""
    url, path = sys.argv[1:]
    started = Deferred.fromCoroutine(run(url, path))
    started.addErrback(lambda failure: (failure.printTraceback(), reactor.stop()))
    reactor.run()


if __name__ == "__main__":
    main()
