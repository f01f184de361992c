"""Lists of agents: which index gives a filter its order, and how many match.

A filter that asks for one tag, one address, a prefix of a name, or the like, is read along the
index of that, in its order; everything else goes by agent id. Every function takes a connection
and blocks.
"""

import math
from typing import Any

import msgspec
from attrs import frozen
from sqlalchemy import Connection, Select, func, or_, select, text

from elkeid.manager.documents import ADDRESS_FIELDS, TIME_LIMIT
from elkeid.manager.filter import EVERYTHING, Every, IsIn, Matches, Orders, Relation, Test
from elkeid.manager.store.agents import shown_agents
from elkeid.manager.store.filtersql import bounds_of, condition, flattened, literal_prefix
from elkeid.manager.store.schema import agent, agent_ip, agent_tag
from elkeid.manager.store.starts import Start, from_start, starts_of

_IN_ORDER = ("hostname", "version", "platform", "idc")

_TIMES = 2 * TIME_LIMIT
"""No time of a host lies beyond, or before the same with a minus."""

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
    way = _way(connection, test, by_id=by_id)
    if total is None:
        total = _count(connection, way)
    if offset >= total:
        return Page(total, [])
    if start is not None:
        way = _way(connection, test, by_id=by_id, start=start)
    query = way.query.with_only_columns(*way.order, maintain_column_froms=True)
    passed = offset if start is None else offset - start.offset
    rows = connection.execute(query.order_by(*way.order).offset(passed).limit(limit)).all()
    keys = [tuple(row) for row in rows]
    return Page(total, shown_agents(connection, [key[-1] for key in keys]), starts_of(offset, keys))


def count_of_agents(connection: Connection, test: Test) -> int:
    """How many agents satisfy a test."""
    return _count(connection, _way(connection, test, by_id=False))


def ids_of_agents(connection: Connection, test: Test, after: str, limit: int) -> list[str]:
    """The ids of the next agents that satisfy a test, by id, after one id."""
    way = _way(connection, test, by_id=True, start=Start(0, (after,), after=True))
    query = way.query.order_by(*way.order).limit(limit)
    return list(connection.execute(query).scalars().all())


def _count(connection: Connection, way: _Way) -> int:
    counted = way.query.with_only_columns(func.count(), maintain_column_froms=True)
    return int(connection.execute(counted).scalar_one())


def _way(connection: Connection, test: Test, *, by_id: bool, start: Start | None = None) -> _Way:
    """The way for a test, from a place on."""
    test = flattened(test)
    tests = test.tests if isinstance(test, Every) else (test,)
    found = None
    # An upper bound last: a lower one of the same field must not stay among the conditions.
    for each in sorted(tests, key=_is_upper):
        found = _along(each, by_id=by_id, whole=start is None)
        if found is not None:
            tests = tuple(other for other in tests if other is not each)
            break
    if found is None:
        found = _Way(select(agent.c.agent_id), agent.c.agent_id, _BY_ID, True)
    if start is not None:
        query = found.query.where(from_start(found.order, start))
        found = _Way(query, found.agent_id, found.order, found.has_agent)
    rest = Every(tests)
    if rest == EVERYTHING:
        return found
    query = found.query
    if not found.has_agent:
        query = query.join(agent, agent.c.agent_id == found.agent_id)
    wanted = condition(rest, connection.dialect.name)
    alone = found.order is _BY_ID and start is None
    sql = wanted.sql if alone else f"({wanted.sql})"
    query = query.where(text(sql).bindparams(**wanted.parameters))
    return _Way(query, found.agent_id, found.order, True)


def _is_upper(test: Test) -> bool:
    return isinstance(test, Orders) and test.relation.startswith("<")


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
        return _by_time(test.relation, min(max(bound, -_TIMES), _TIMES), whole=whole)
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
    number = math.floor(bound) if relation in (">", "<=") else math.ceil(bound)
    query = select(agent.c.agent_id)
    if whole or relation.startswith("<"):
        query = query.where(column.op(relation)(number))
    return _Way(query, agent.c.agent_id, (column, agent.c.agent_id), True)


def _within(query: Select[Any], column: Any, low: str | None, high: str | None) -> Select[Any]:
    query = query if low is None else query.where(column >= low)
    return query if high is None else query.where(column < high)
