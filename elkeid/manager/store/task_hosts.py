"""Queries on the hosts that a task is for: how many there are, and the next ones. They block.

A task may name 200,000 hosts one by one. Decoding that many ids, or handing them to the database,
is nothing to be done for each slice of them, nor on the reactor: they are made ready once, in a
thread, and then walked along. No step holds the interpreter, and with it the reactor, for long.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from heapq import merge
from threading import Lock
from typing import Final

import msgspec
from attrs import define, field, frozen
from sqlalchemy import Connection, select

from elkeid.manager.filter import Every, IsIn, Not, Path, Test
from elkeid.manager.store.agent_pages import count_of_agents, ids_of_agents
from elkeid.manager.store.bulk import is_among
from elkeid.manager.store.schema import agent, task, task_body
from elkeid.manager.task_selection import Selection, others_of

SORTED_AT_ONCE: Final = 10_000
"""Ids sorted in one step, which nothing can interrupt: some 3 ms."""

LOOKED_UP_AT_ONCE: Final = 2_000
"""Named ids that one statement looks up: some 5 ms."""

IDS_KEPT: Final = 400_000
"""Ids kept ready, of all tasks that are being prepared: some 40 MB. A task that finds itself
pushed out is made ready again for its next slice, in some 0.3 s of a thread."""


@frozen
class Chosen:
    """A selection, ready for queries.

    Attributes:
        ids: hosts named one by one, ascending, each once; they need not exist.
        others: what further hosts satisfy; None if there are none.
    """

    ids: Sequence[str]
    others: Test | None


def chosen_of(selection: Selection) -> Chosen:
    """Make a selection ready.

    Raises:
        FilterError: its filter cannot be used.
    """
    ids, given = list[str](), selection.id_list
    for each in merge(
        *(
            sorted(given[start : start + SORTED_AT_ONCE])
            for start in range(0, len(given), SORTED_AT_ONCE)
        )
    ):
        if not ids or ids[-1] != each:
            ids.append(each)
    return Chosen(ids, others_of(selection))


def choose(connection: Connection, selection: Selection) -> tuple[Chosen, int]:
    """Make a selection ready and count its hosts.

    Raises:
        FilterError: its filter cannot be used.
    """
    chosen = chosen_of(selection)
    return chosen, count_chosen(connection, chosen)


def presence_of(connection: Connection, selection: Selection, online: Test) -> tuple[int, int]:
    """How many hosts are selected, those named that do not exist too; how many are online.

    Args:
        connection: any.
        selection: whom.
        online: what hosts satisfy that are.

    Raises:
        FilterError: the filter cannot be used.
    """
    chosen = chosen_of(selection)
    there = count_chosen(connection, chosen, (online,))
    return len(chosen.ids) or count_chosen(connection, chosen), there


def count_chosen(connection: Connection, chosen: Chosen, also: tuple[Test, ...] = ()) -> int:
    """How many of the selected hosts exist and satisfy some tests, too."""
    count = 0
    if chosen.others is not None:
        count = count_of_agents(connection, Every((chosen.others, *also)))
        also = (*also, Not(chosen.others))
    for some in _parts(chosen.ids):
        if also:
            test = Every((IsIn(Path(("agent_id",)), tuple(some)), *also))
            count += count_of_agents(connection, test)
        else:
            count += len(_existing(connection, some))
    return count


def chosen_after(connection: Connection, chosen: Chosen, after: str, limit: int) -> list[str]:
    """The ids of the next selected hosts that exist, ascending, after one id."""
    found: list[str] = []
    for some in _parts(chosen.ids, bisect_right(chosen.ids, after)):
        found += sorted(_existing(connection, some))
        if len(found) >= limit:
            break
    if chosen.others is not None:
        others = ids_of_agents(connection, chosen.others, after, limit)
        found = sorted({*found[:limit], *others}) if found else others
    return found[:limit]


def _parts(ids: Sequence[str], start: int = 0) -> Iterator[Sequence[str]]:
    for at in range(start, len(ids), LOOKED_UP_AT_ONCE):
        yield ids[at : at + LOOKED_UP_AT_ONCE]


def _existing(connection: Connection, ids: Sequence[str]) -> Sequence[str]:
    among = is_among(connection, agent.c.agent_id, ids)
    return connection.execute(select(agent.c.agent_id).where(among)).scalars().all()


@frozen
class Next:
    """The next hosts of a task.

    Attributes:
        after: the last host that it has.
        ids: of the next ones, ascending.
    """

    after: str
    ids: list[str]


@define
class Choices:
    """The selections of tasks that are being prepared, ready. For any thread."""

    _ready: OrderedDict[int, Chosen] = field(factory=OrderedDict, init=False)
    _lock: Lock = field(factory=Lock, init=False)

    def keep(self, number: int, chosen: Chosen) -> None:
        """Have a task's selection ready, at the cost of those that were not used for longest."""
        with self._lock:
            self._ready[number] = chosen
            self._ready.move_to_end(number)
            kept = sum(len(each.ids) for each in self._ready.values())
            while kept > IDS_KEPT and len(self._ready) > 1:
                kept -= len(self._ready.popitem(last=False)[1].ids)

    def drop(self, number: int) -> None:
        """Forget a task's selection."""
        with self._lock:
            self._ready.pop(number, None)

    def next_hosts(self, connection: Connection, number: int, limit: int) -> Next | None:
        """The next hosts of a task; None if it has all of them.

        Raises:
            FilterError: the filter that is stored cannot be used.
            msgspec.MsgspecError: the stored selection cannot be read.
        """
        after = connection.execute(
            select(task.c.selected_upto).where(task.c.number == number, task.c.selecting.is_(True))
        ).scalar()
        if after is None:
            self.drop(number)
            return None
        with self._lock:
            chosen = self._ready.get(number)
        if chosen is None:
            stored = connection.execute(
                select(task_body.c.selection).where(task_body.c.task == number)
            ).scalar_one()
            chosen = chosen_of(msgspec.json.decode(stored, type=Selection))
        self.keep(number, chosen)
        return Next(after, chosen_after(connection, chosen, after, limit))
