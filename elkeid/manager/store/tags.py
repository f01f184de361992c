"""Queries on agents' tags. Every function takes a connection and blocks.

A tag stands twice: as a row, to be found by, and in the agent's document, which readers get.
Both change in one transaction.
"""

from collections.abc import Collection, Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from elkeid.manager.documents import text_of
from elkeid.manager.store.agents import IDS_PER_STATEMENT
from elkeid.manager.store.schema import agent, agent_detail, agent_tag


def tags_of(connection: Connection, ids: Collection[str]) -> dict[str, list[str]]:
    """The tags of these agents, sorted; an agent never reported is left out."""
    found: dict[str, list[str]] = {}
    for some in _slices(ids):
        known = connection.execute(select(agent.c.agent_id).where(agent.c.agent_id.in_(some)))
        found |= {agent_id: [] for agent_id in known.scalars()}
        rows = connection.execute(
            select(agent_tag.c.agent_id, agent_tag.c.tag)
            .where(agent_tag.c.agent_id.in_(some))
            .order_by(agent_tag.c.tag)
        )
        for agent_id, tag in rows:
            found[agent_id].append(tag)
    return found


def add_tag(connection: Connection, ids: Collection[str], tag: str) -> int:
    """Give a tag to agents; those that have it, and those never reported, stay as they are.

    Returns:
        How many agents changed.
    """
    changed = [each for each, tags in tags_of(connection, ids).items() if tag not in tags]
    if changed:
        connection.execute(
            insert(agent_tag), [{"agent_id": agent_id, "tag": tag} for agent_id in changed]
        )
        _rewrite(connection, changed)
    return len(changed)


def remove_tag(connection: Connection, ids: Collection[str], tag: str) -> int:
    """Take a tag from agents; those without it stay as they are.

    Returns:
        How many agents changed.
    """
    changed = [each for each, tags in tags_of(connection, ids).items() if tag in tags]
    for some in _slices(changed):
        connection.execute(
            delete(agent_tag).where(agent_tag.c.agent_id.in_(some), agent_tag.c.tag == tag)
        )
    _rewrite(connection, changed)
    return len(changed)


_DOCUMENT = (
    update(agent_detail)
    .where(agent_detail.c.agent_id == bindparam("b_id"))
    .values(document=bindparam("b_document"))
)


def _rewrite(connection: Connection, ids: Collection[str]) -> None:
    """Bring the documents of these agents up to what the rows say."""
    tags = tags_of(connection, ids)
    for some in _slices(ids):
        rows = connection.execute(
            select(agent_detail.c.agent_id, agent_detail.c.document).where(
                agent_detail.c.agent_id.in_(some)
            )
        ).all()
        connection.execute(
            _DOCUMENT,
            [
                {"b_id": row.agent_id, "b_document": _tagged(row.document, tags[row.agent_id])}
                for row in rows
            ],
        )


def _tagged(document: str, tags: list[str]) -> str:
    decoded: dict[str, Any] = msgspec.json.decode(document)
    return text_of(decoded | {"tags": tags})


def _slices(ids: Iterable[str]) -> Iterable[list[str]]:
    wanted = list(dict.fromkeys(ids))
    for start in range(0, len(wanted), IDS_PER_STATEMENT):
        yield wanted[start : start + IDS_PER_STATEMENT]
