"""A million agents in the Manager's database: lists while heartbeats come in.

    python -m bench.manager --database sqlite        # a file in a temporary folder
    python -m bench.manager --database postgresql    # a server of its own on loopback

Fills a new database, then asks for pages as ``getStatus`` does, first alone, then while reports of
heartbeats are applied as polls do, and last a burst in which every report has new figures. A deep
page is found by passing all before it, the next behind it from where it ended. All by the reactor,
the store, its threads and the care for the garbage collector of the real Manager; only HTTP is left
out. It stops by itself, removes what it made, and prints no figures of a run in which anything was
lost.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import insert, text
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater, react
from twisted.python.threadpool import ThreadPool

from elkeid.garbage import Keeper
from elkeid.manager.agents import REPORTS_PER_WRITE, AgentStatus
from elkeid.manager.documents import Source
from elkeid.manager.filter import EVERYTHING, FilterBody, Test, parse
from elkeid.manager.lists import LongLists
from elkeid.manager.selection import HostConditions, looked_at
from elkeid.manager.store.agent_pages import Page, page_of_agents
from elkeid.manager.store.agents import apply_sorted, sort_out
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.engine import Database
from elkeid.manager.store.migrate import migrate
from elkeid.manager.store.schema import agent_tag, host_state
from elkeid.manager.store.store import THREADS, PoolThreads, Store, Threads
from tests.integration.postgres import own_postgres

SOURCE = Source("10.0.0.1", 6752)
ROUNDS = 400
"""Of each first page, so that the 99th percentile is the fourth slowest."""

DEEP_EVERY = 7
"""Rounds from one in which deep pages are asked for to the next: 58 in all."""

PAGE = 100
"""Agents of one page."""

TICK = 0.005

STATE = {
    "gateway": str(SOURCE),
    "connected": True,
    "connected_at": 1_699_990_000,
    "protection": "full",
    "reason": "kernel_events",
    "protection_since": 1_699_990_000,
    "kernel_version": "5.10.0-21-amd64",
    "events": 1,
}
"""What is kept of each host beside what its AC says."""

SLEEPER = f"""
import sys, threading, time
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
worst, last = 0.0, time.perf_counter()
while not ended.is_set():
    time.sleep({TICK})
    now = time.perf_counter()
    worst, last = max(worst, now - last - {TICK}), now
print(worst)
"""
"""Does nothing each `TICK` until its input ends, and prints by how many seconds it was late at
most: by so much this machine makes anybody late."""


@contextmanager
def sleeper(figures: dict[str, Any]) -> Iterator[None]:
    """Run a `SLEEPER` meanwhile, and note what it printed."""
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield
        finally:
            printed, _ = child.communicate()
    figures["a process that only sleeps, late by"] = f"{float(printed) * 1e3:.0f} ms"


def entry(number: int, seen: int, load: int) -> msgspec.Raw:
    """What an AC says of an agent: 24 fields, three plugins."""
    info = {
        "agent_id": f"{number:08x}-0000-4000-8000-{number:012x}",
        "agent_addr": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:40222",
        "hostname": f"{'web' if number % 2 else 'db'}-{number:07}",
        "intranet_ipv4": [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"],
        "extranet_ipv4": [],
        "intranet_ipv6": [],
        "extranet_ipv6": [],
        "version": "1.7.0.24",
        "product": "elkeid-agent",
        "state": "running",
        "state_detail": "[]",
        "platform": "debian",
        "platform_family": "debian",
        "platform_version": "11.6",
        "kernel_version": "5.10.0-21-amd64",
        "arch": "x86_64",
        "cpu": load / 1000,
        "rss": 41_000_000 + load,
        "nproc": 200 + load % 50,
        "load_1": load / 100,
        "create_at": 1_699_990_000,
        "last_heartbeat_time": seen,
    }
    plugins = [
        {"name": name, "pversion": "1.0.0.16", "cpu": load / 1000, "rss": 9_000_000, "pid": 812}
        for name in ("driver", "collector", "baseline")
    ]
    return msgspec.Raw(msgspec.json.encode({"agent_info": info, "plugins_info": plugins}))


def fill(database: Database, agents: int, now: int) -> None:
    """Store agents as first reports do, thousands at once; half of them have a tag, and all are
    protected."""
    for start in range(0, agents, 2_000):
        with database.writing() as connection:
            for some in range(start, min(start + 2_000, agents), 500):
                items = [entry(n, now, 0) for n in range(some, min(some + 500, agents))]
                found = sort_out(connection, SOURCE, items, 0.0)
                apply_sorted(connection, SOURCE, found, 0.0, now - 600.0)
                tags = [{"agent_id": each, "tag": "prod"} for each in found.ids[::2]]
                connection.execute(insert(agent_tag), tags)
                connection.execute(
                    insert(host_state), [{"agent_id": each, **STATE} for each in found.ids]
                )


def one(key: str, operator: str, value: Any) -> Test:
    """A filter of one rule."""
    rules = [{"operator": operator, "value": value}]
    raw = {"filter": [{"key": key, "condition": "$and", "rules": rules}]}
    return parse(msgspec.convert(raw, FilterBody))


LISTS = {
    "all": EVERYTHING,
    "hostname ^web-": one("hostname", "$regex", "^web-"),
    "tag prod": one("tags", "$eq", "prod"),
    "state running": one("agent_state", "$eq", "running"),
    "protection full": one("protection", "$eq", "full"),
    r"ip ^10\.": one("intranet_ipv4", "$regex", r"^10\."),
    "any address 10.": looked_at(HostConditions(ip="10.")),
}


@contextmanager
def new_database(kind: str) -> Iterator[Database]:
    """An open, migrated database that is removed at the end."""
    with ExitStack() as stack:
        if kind == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url = f"sqlite:///{Path(folder, 'manager.db')}"
        else:
            settings = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "1GB"}
            server = stack.enter_context(own_postgres(**settings, max_wal_size="4GB"))
            url = server.url(server.new_database())
        database = make_database(url)
        database.open()
        migrate(database)
        yield database


class NoFollower:
    """Nobody follows reports here."""

    def reported(self, *_: Any) -> None:
        """Nothing."""

    def left(self, *_: Any) -> None:
        """Nothing."""


class Bench:
    """One run."""

    def __init__(self, store: Store, threads: Threads, agents: int, now: int) -> None:
        self.store, self.threads, self.agents, self.now = store, threads, agents, now
        self.status = AgentStatus(
            store,
            reactor,  # type: ignore[arg-type]
            time.time,
            1e9,
            NoFollower(),
            lists=LongLists(time.time),
        )
        self.figures: dict[str, Any] = {}
        self._ticked = self._latest = 0.0

    def _tick(self) -> None:
        now = time.perf_counter()
        self._latest = max(self._latest, now - self._ticked - TICK)
        self._ticked = now

    async def pages(self, when: str) -> None:
        """Ask for first pages in turn, and now and then for a deep one and the next behind it."""
        deep = min(5_000, self.agents // (2 * PAGE) - 1)
        offset = (deep - 1) * PAGE
        took: dict[str, list[float]] = {}

        async def timed(name: str, asked: Coroutine[Any, Any, Page]) -> Page:
            begun = time.perf_counter()
            got = await asked
            took.setdefault(name, []).append(time.perf_counter() - begun)
            if len(got.items) != PAGE:
                raise SystemExit(f"invalid: {len(got.items)} of {name}")
            return got

        for number in range(ROUNDS):
            for name, test in LISTS.items():
                total = (await timed(f"{name}, page 1", self.status.page(test, 0, PAGE))).total
                if number % DEEP_EVERY:
                    continue
                search = partial(self.store.search, page_of_agents, test, total=total)
                got = await timed(f"{name}, page {deep}", search(offset, PAGE))
                start = got.starts[-1]
                behind = search(offset + PAGE, PAGE, start=start)
                await timed(f"{name}, page {deep + 1} behind it", behind)
        for name, all_of in took.items():
            ranked = sorted(all_of)
            middle, late = ranked[len(ranked) // 2], ranked[-(-len(ranked) * 99 // 100) - 1]
            self.figures[f"{when}: {name}"] = (
                f"median {middle * 1e3:.1f} ms, 99th percentile {late * 1e3:.1f} ms, "
                f"slowest {ranked[-1] * 1e3:.1f} ms of {len(ranked)}"
            )

    async def heartbeats(self, name: str, rate: int, seconds: float, changed: int) -> None:
        """Apply reports at a rate; of a hundred so many have new figures."""
        self.now += 60
        begun, done, number = time.perf_counter(), 0, 0
        while (elapsed := time.perf_counter() - begun) < seconds:
            if done > elapsed * rate:
                await deferLater(reactor, 0.002)
                continue
            items = await self.threads.run(self._entries, number, changed)
            number += REPORTS_PER_WRITE
            applied, _ = await self.status.apply(SOURCE, items, 0.0)
            if applied.changed != REPORTS_PER_WRITE:
                raise SystemExit(f"invalid: {applied} of {REPORTS_PER_WRITE}")
            done += REPORTS_PER_WRITE
        rates = done / (time.perf_counter() - begun)
        self.figures[name] = f"{rates:.0f}/s of {rate}/s asked for"

    def _entries(self, first: int, changed: int) -> list[msgspec.Raw]:
        return [
            entry(n % self.agents, self.now + n // self.agents, n % 100 < changed and self.now)
            for n in range(first, first + REPORTS_PER_WRITE)
        ]

    async def run(self, seconds: float) -> None:
        """All of it."""
        self._ticked = time.perf_counter()
        ticks = LoopingCall(self._tick)
        ticks.start(TICK)
        await self.pages("alone")
        beats = Deferred.fromCoroutine(
            self.heartbeats("heartbeats while listing, 1 % changed", 17_000, seconds, 1)
        )
        await self.pages("with heartbeats")
        await beats
        await self.heartbeats("burst, all changed", 10_000, seconds, 100)
        ticks.stop()
        self.figures["reactor's longest block"] = f"{self._latest * 1e3:.0f} ms"


async def main(arguments: argparse.Namespace) -> None:
    """Fill, measure, print."""
    now = int(time.time())
    with new_database(arguments.database) as database:
        begun = time.perf_counter()
        fill(database, arguments.agents, now)
        if arguments.database == "postgresql":
            with database.migrating() as connection:
                connection.execute(text("ANALYZE"))
        print(f"filled in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        database.close()
        pool = ThreadPool(0, THREADS, "bench")
        pool.start()
        try:
            threads = PoolThreads(reactor, pool)  # type: ignore[arg-type]
            store = Store(database, threads)
            await store.open()
            bench = Bench(store, threads, arguments.agents, now)
            keeper = Keeper(reactor)  # type: ignore[arg-type]
            keeper.start()
            with sleeper(bench.figures):
                await bench.run(arguments.seconds)
            keeper.stop()
            await store.close()
        finally:
            pool.stop()
        print(json.dumps(bench.figures, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--agents", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()

    react(lambda _: Deferred.fromCoroutine(main(given)), [])
