"""Lists of agents: which index gives a filter its order, and how many match.

A filter that asks for one tag, one address, a prefix of a name, or the like, is read along the
index of that, in its order; everything else goes by agent id. Where any of a few such things will
do, as of several tags, what is found along one index stands behind what was found along another,
and no agent is found twice. Every function takes a connection and blocks.
"""

from typing import Any

import msgspec
from attrs import evolve, frozen
from sqlalchemy import Connection, Select, func, or_, select, text

from elkeid.manager.documents import ADDRESS_FIELDS, TIME_LIMIT
from elkeid.manager.filter import (
    EVERYTHING,
    Every,
    IsIn,
    Matches,
    Not,
    Orders,
    Path,
    Relation,
    Some,
    Test,
)
from elkeid.manager.store.agents import UNINSTALLED, shown_agents
from elkeid.manager.store.filtersql import (
    bounds_of,
    condition,
    flattened,
    literal_prefix,
    whole_bound,
)
from elkeid.manager.store.schema import agent, agent_ip, agent_tag
from elkeid.manager.store.starts import Start, from_start, starts_of

WAYS = 16
"""Of one list: as many queries find a page in the worst case."""

FEW_RETIRED = 200
"""Hosts that are left out by their ids; of more the state is looked at."""

_NOT_RETIRED = Not(IsIn(Path(("agent_state",)), (UNINSTALLED,)))

_EQUAL = frozenset({"hostname", "state", "agent_state", "version", "platform", "idc", "protection"})
"""Fields with an index of their own that goes on by id."""

_IN_ORDER = ("hostname", "version", "platform", "idc")


_BY_ID = (agent.c.agent_id,)


@frozen
class Page:
    """A page of agents.

    Attributes:
        total: how many match.
        items: each a whole JSON object.
        starts: places in the list that were found.
    """

    total: int
    items: list[msgspec.Raw]
    starts: tuple[Start, ...] = ()


@frozen
class _Way:
    """A way to the ids: a query of them, and what it is ordered by."""

    query: Select[Any]
    agent_id: Any
    order: tuple[Any, ...]
    has_agent: bool  # whether the table `agent` is in it
    number: int = 0  # among those of a list


def page_of_agents(
    connection: Connection,
    test: Test,
    offset: int,
    limit: int,
    *,
    total: int | None = None,
    start: Start | None = None,
    by_id: bool = False,
) -> Page:
    """A page of the agents that satisfy a test, in an order that the test alone decides.

    Args:
        connection: within one view, so that total and items agree.
        test: see `elkeid.manager.filter.parse`.
        offset: how many to pass over.
        limit: how many at most.
        total: how many match, if that is known already.
        start: a place in this list, at most ``offset`` rows after its beginning.
        by_id: in the order of their ids, whatever the test.
    """
    ways = _ways(connection, test, by_id=by_id)
    if total is None:
        total = sum(_count(connection, way) for way in ways)
    if offset >= total:
        return Page(total, [])
    passed = offset
    if start is not None:
        ways = _ways(connection, test, by_id=by_id, start=start)
        passed -= start.offset
    keys: list[tuple[Any, ...]] = []
    for way in ways:
        query = way.query.with_only_columns(*way.order, maintain_column_froms=True)
        query = query.order_by(*way.order).offset(passed).limit(limit - len(keys))
        rows = connection.execute(query).all()
        keys += [(way.number, *row) for row in rows]
        if len(keys) == limit or way is ways[-1]:
            break
        passed = 0 if rows or not passed else passed - _count(connection, way)
    return Page(total, shown_agents(connection, [key[-1] for key in keys]), starts_of(offset, keys))


def count_of_agents(connection: Connection, test: Test) -> int:
    """How many agents satisfy a test."""
    return sum(_count(connection, way) for way in _ways(connection, test, by_id=False))


def ids_of_agents(connection: Connection, test: Test, after: str, limit: int) -> list[str]:
    """The ids of the next agents that satisfy a test, by id, after one id."""
    (way,) = _ways(connection, test, by_id=True, start=Start(0, (0, after), after=True))
    query = way.query.order_by(*way.order).limit(limit)
    return list(connection.execute(query).scalars().all())


def _count(connection: Connection, way: _Way) -> int:
    counted = way.query.with_only_columns(func.count(), maintain_column_froms=True)
    return int(connection.execute(counted).scalar_one())


def _ways(
    connection: Connection, test: Test, *, by_id: bool, start: Start | None = None
) -> list[_Way]:
    """The ways for a test, at least one; what is found along them makes the list.

    Args:
        connection: tells the dialect.
        test: any.
        by_id: one way, in the order of ids.
        start: a place to begin at; its key says on which way, and where there.
    """
    dialect = connection.dialect.name
    test = flattened(test)
    tests = test.tests if isinstance(test, Every) else (test,)
    number, place = (0, None) if start is None else (start.key[0], _place(start))
    retired: list[str] | None = None
    if _NOT_RETIRED in tests:
        retired = _few_retired(connection)
    for each in sorted(tests, key=_rank):
        parts = _parts(each, by_id=by_id)
        if not parts:
            continue
        rest = tuple(other for other in tests if other is not each)
        made = list[_Way]()
        for at in range(number, len(parts)):
            begin = place if at == number else None
            found = _along(parts[at], by_id=by_id, whole=begin is None)
            assert found is not None  # so are parts made
            others = (*rest, *(() if _is_one_column(each) else map(Not, parts[:at])))
            if retired is not None and not found.has_agent:
                others = tuple(other for other in others if other != _NOT_RETIRED)
                kept = found.query.where(found.agent_id.not_in(retired)) if retired else found.query
                found = evolve(found, query=kept)
            made.append(_narrowed(found, at, Every(others), begin, dialect))
        return made
    found = _Way(select(agent.c.agent_id), agent.c.agent_id, _BY_ID, True)
    return [_narrowed(found, 0, Every(tests), place, dialect)]


def _few_retired(connection: Connection) -> list[str] | None:
    """Those that are retired, if they are so few that no state needs to be looked at."""
    query = select(agent.c.agent_id).where(agent.c.agent_state == UNINSTALLED)
    ids = list(connection.execute(query.limit(FEW_RETIRED + 1)).scalars())
    return ids if len(ids) <= FEW_RETIRED else None


def _place(start: Start) -> Start:
    return Start(start.offset, start.key[1:], start.after)


def _narrowed(way: _Way, number: int, rest: Every, start: Start | None, dialect: str) -> _Way:
    """A way with a number, from a place on, for agents that also satisfy the rest of a test."""
    query, after = way.query, None
    if start is not None:
        query = query.where(from_start(way.order, start))
        if len(way.order) == 1:
            after = start.key[0]
    if flattened(rest) == EVERYTHING:
        return evolve(way, query=query, number=number)
    if not way.has_agent:
        query = query.join(agent, agent.c.agent_id == way.agent_id)
        if after is not None:  # what is joined begins there too: no planner sees that by itself
            query = query.where(agent.c.agent_id >= after)
    wanted = condition(rest, dialect, after)
    alone = query.whereclause is None
    sql = wanted.sql if alone else f"({wanted.sql})"
    query = query.where(text(sql).bindparams(**wanted.parameters))
    return evolve(way, query=query, number=number, has_agent=True)


def _parts(test: Test, *, by_id: bool) -> tuple[Test, ...]:
    """Tests that each have a way and of which any is enough for a test; none if there are none."""
    parts: tuple[Test, ...] = (test,)
    if isinstance(test, Some) and not by_id:
        parts = test.tests
    elif isinstance(test, IsIn) and not by_id and all(isinstance(v, str) for v in test.values):
        parts = tuple(IsIn(test.path, (value,)) for value in dict.fromkeys(test.values))
    if len(parts) > WAYS or not all(_along(each, by_id=by_id, whole=True) for each in parts):
        return ()
    return parts


def _rank(test: Test) -> int:
    """Ways that find least stand first."""
    if isinstance(test, IsIn):
        return 3 if _is_one_column(test) else 0
    # An upper bound last: a lower one of the same field must not stay among conditions.
    return 2 if isinstance(test, Orders) and test.relation.startswith("<") else 1


def _is_one_column(test: Test) -> bool:
    """Whether an agent can be equal to one value only of those that a test names."""
    return isinstance(test, IsIn) and test.path.parts[0] in _EQUAL


def _along(test: Test, *, by_id: bool, whole: bool) -> _Way | None:
    """The way along the index of a single test, if it has one.

    Args:
        test: the test.
        by_id: only one in the order of ids.
        whole: from its beginning; else its lower bound is left out, since databases seek by that
            even where they are told of a place far behind it.
    """
    if not isinstance(test, IsIn | Matches | Orders) or len(test.path.parts) != 1:
        return None
    field = test.path.parts[0]
    if isinstance(test, Orders):
        bound = test.bound
        if by_id or field != "first_heartbeat_time" or isinstance(bound, str | bool):
            return None
        return _by_time(test.relation, bound, whole=whole)
    if isinstance(test, IsIn):
        if len(test.values) != 1 or not isinstance(test.values[0], str):
            return None
        value = test.values[0]
        if field == "tags":
            query = select(agent_tag.c.agent_id).where(agent_tag.c.tag == value)
            return _Way(query, agent_tag.c.agent_id, (agent_tag.c.agent_id,), False)
        if field in ADDRESS_FIELDS:
            query = select(agent_ip.c.agent_id).where(
                agent_ip.c.field == field, agent_ip.c.address == value
            )
            return _Way(query, agent_ip.c.agent_id, (agent_ip.c.agent_id,), False)
        if field in _EQUAL:
            return _Way(
                select(agent.c.agent_id).where(agent.c[field] == value), *_BY_ID, _BY_ID, True
            )
        return None
    prefix, alone = literal_prefix(test.pattern)
    if by_id or not prefix or not alone:
        return None
    low, high = bounds_of(prefix)
    if field in _IN_ORDER:
        column = agent.c[field]
        query = _within(select(agent.c.agent_id), column, low if whole else None, high)
        return _Way(query, agent.c.agent_id, (column, agent.c.agent_id), True)
    if field in ADDRESS_FIELDS:
        address, previous = agent_ip.c.address, agent_ip.c.previous
        query = select(agent_ip.c.agent_id).where(
            agent_ip.c.field == field, or_(previous.is_(None), previous < low)
        )
        query = _within(query, address, low if whole else None, high)
        return _Way(query, agent_ip.c.agent_id, (address, agent_ip.c.agent_id), False)
    return None


def _by_time(relation: Relation, bound: float, *, whole: bool) -> _Way:
    """The way from the host that was heard of first on, to the last one or to a bound."""
    column = agent.c.first_heartbeat_time
    # Whole numbers: databases leave the index where a fraction is compared.
    number = whole_bound(relation, bound, 2 * TIME_LIMIT)
    query = select(agent.c.agent_id)
    if whole or relation.startswith("<"):
        query = query.where(column.op(relation)(number))
    return _Way(query, agent.c.agent_id, (column, agent.c.agent_id), True)


def _within(query: Select[Any], column: Any, low: str | None, high: str | None) -> Select[Any]:
    query = query if low is None else query.where(column >= low)
    return query if high is None else query.where(column < high)
