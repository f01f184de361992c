"""Pages of lists of a million subtasks: the first ones, and deep ones.

    python -m bench.task_lists [--subtasks 1000000] [--database sqlite|postgresql]

Fills a new database with subtasks of four tasks in all states, then reads pages of 100 as
``getSubTask/filter`` does, without HTTP: the first page, with and without counting the list, and
page 5,000, found by passing all before it and from where the one before it ended. It refuses to
print figures if a page has not the rows that it should have.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import insert, text

from bench.gateway import REFERENCE_YARDSTICK, InvalidRun, yardstick
from bench.manager import new_database, one
from elkeid.manager.filter import EVERYTHING, Every, Test
from elkeid.manager.store.engine import Database
from elkeid.manager.store.schema import subtask, task, task_body, task_job
from elkeid.manager.store.task_lists import Found, page_of_subtasks
from elkeid.manager.store.task_rows import FAILED, RESULT_FAILED, RESULT_SUCCEED

SHARES = (0.6, 0.2, 0.15, 0.05)
"""Of the subtasks, by task."""

AGAIN = 40
"""Times that each page is read."""

PAGE, DEEP = 100, 5_000

LISTS: tuple[tuple[str, Test], ...] = (
    ("all", EVERYTHING),
    ("in one state, most of them", one("status", "$eq", RESULT_SUCCEED)),
    ("in one state, a tenth", one("status", "$eq", FAILED)),
    ("in either of two states", one("status", "$in", [FAILED, RESULT_FAILED])),
    (
        "of one task in one state",
        Every((one("task_id", "$eq", "t1"), one("status", "$eq", FAILED))),
    ),
    ("of one run", one("job_id", "$eq", "j1.1")),
    ("of one agent", one("agent_id", "$eq", "agent-0000017")),
)


def state(which: int) -> str:
    """A tenth each has failed here and there."""
    return {0: FAILED, 1: RESULT_FAILED}.get(which % 10, RESULT_SUCCEED)


def row_of(table: Any, **given: Any) -> dict[str, Any]:
    """A row with something in each column that needs it."""
    empty = {str: "", int: 0, float: 0.0, bool: False}
    needed = [each for each in table.c if not each.nullable and each.server_default is None]
    return {each.name: empty[each.type.python_type] for each in needed} | given


def fill(database: Database, count: int) -> None:
    """Have four tasks, each with two runs of half its hosts."""
    for number, share in enumerate(SHARES, 1):
        hosts = int(count * share)
        told = {"number": number, "task_id": f"t{number}", "id_count": hosts}
        with database.writing() as connection:
            connection.execute(insert(task), row_of(task, **told))
            body = row_of(task_body, task=number, data='{"task":{}}', selection="{}")
            connection.execute(insert(task_body), body)
            for which, upto in ((0, f"agent-{hosts // 2:07}"), (1, None)):
                run = {"number": 2 * number + which, "job_id": f"j{number}.{which}", "upto": upto}
                connection.execute(insert(task_job), row_of(task_job, task=number, **run))
        for begin in range(0, hosts, 20_000):
            rows = [
                row_of(
                    subtask,
                    task=number,
                    agent_id=f"agent-{which:07}",
                    status=state(which),
                    job=2 * number + (which > hosts // 2),
                    token=f"{number}-{which:016}",
                )
                for which in range(begin, min(begin + 20_000, hosts))
            ]
            with database.writing() as connection:
                connection.execute(insert(subtask), rows)
    with database.writing() as connection:
        if connection.dialect.name == "postgresql":  # as its server does by itself in a minute
            connection.execute(text("ANALYZE"))


def timed(read: Callable[[], Found], expected: int) -> str:
    """Median and longest, in milliseconds."""
    took = list[float]()
    for _ in range(AGAIN):
        began = time.perf_counter()
        found = read()
        took.append((time.perf_counter() - began) * 1000)
        if len(found.items) != expected:
            raise InvalidRun(f"{len(found.items)} rows instead of {expected}")
    return f"{sorted(took)[AGAIN // 2]:7.1f} {max(took):7.1f}"


def measure(database: Database, kinds: Sequence[tuple[str, Test]]) -> None:
    """Read the pages of each list."""
    heads = ("page 1, counted", "page 1", "page 5,000, passing", "page 5,000, from a place")
    print(f"  {'ms, median and longest':28}" + "".join(f"{each:>26}" for each in heads))
    for name, test in kinds:

        def page(offset: int, **known: Any) -> Found:
            with database.reading() as connection:
                return page_of_subtasks(connection, test, offset, PAGE, **known)  # noqa: B023

        total = page(0).total
        first, last = min(total, PAGE), (total // PAGE - 1) * PAGE
        told = [timed(partial(page, 0), first), timed(partial(page, 0, total=total), first)]
        deep = min((DEEP - 1) * PAGE, last)  # or the last whole page
        if deep > 0:
            start = page(deep - PAGE, total=total).starts[-1]
            told.append(timed(partial(page, deep, total=total), PAGE))
            told.append(timed(partial(page, deep, total=total, start=start), PAGE))
        print(f"  {name:28}" + "".join(f"{each:>26}" for each in told))


def main(count: int, kind: str) -> None:
    """Fill and measure."""
    print(
        f"{kind}, {count} subtasks; yardstick {yardstick():.2f} s "
        f"(reference {REFERENCE_YARDSTICK}), load {os.getloadavg()[0]:.1f}"
    )
    with new_database(kind) as database:
        began = time.monotonic()
        fill(database, count)
        print(f"  filled in {time.monotonic() - began:.0f} s")
        measure(database, LISTS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subtasks", type=int, default=1_000_000)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    given = parser.parse_args()
    main(given.subtasks, given.database)
