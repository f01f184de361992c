"""Queries on agents' tags. Every function takes a connection and blocks.

A tag stands twice: as a row, to be found by, and in the agent's document, which readers get.
Both change in one transaction.
"""

from collections.abc import Callable, Collection
from typing import Any, Self

import msgspec
from attrs import define
from sqlalchemy import Connection, and_, delete, insert, or_, select

from elkeid.manager.documents import text_of
from elkeid.manager.store.agents import slices
from elkeid.manager.store.bulk import update_rows
from elkeid.manager.store.fleet import distinct_values
from elkeid.manager.store.schema import agent, agent_detail, agent_tag

TAGS_PER_HOST = 32
"""Tags of one host: gateways write at most 4 KiB of them into every batch of records."""

PAIRS_PER_STATEMENT = 100
"""Pairs of agent and tag in one statement: SQLite nests conditions at most 1,000 deep."""


@define
class Retagged:
    """What became of a change of tags."""

    changed: int = 0  # hosts
    full: int = 0  # hosts that would have had more than `TAGS_PER_HOST`; they stay as they are

    def __iadd__(self, other: Self) -> Self:
        """Sum up."""
        self.changed += other.changed
        self.full += other.full
        return self


def tags_of(connection: Connection, ids: Collection[str]) -> dict[str, list[str]]:
    """The tags of these agents, sorted; an agent never reported is left out."""
    found: dict[str, list[str]] = {}
    for some in slices(ids):
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


def all_tags(connection: Connection) -> list[str]:
    """Every tag that some agent has, sorted."""
    return distinct_values(connection, agent_tag.c.tag)


def retag(
    connection: Connection, ids: Collection[str], change: Callable[[set[str]], set[str]]
) -> Retagged:
    """Change the tags of agents, at most `IDS_PER_STATEMENT`; those never reported are left out.

    Args:
        connection: that writes.
        ids: whose.
        change: what becomes of an agent's tags.
    """
    # The documents are held until the end: nobody else changes these agents' tags meanwhile.
    documents = {
        row.agent_id: row.fields
        for row in connection.execute(
            select(agent_detail.c.agent_id, agent_detail.c.fields)
            .where(agent_detail.c.agent_id.in_(list(ids)))
            .order_by(agent_detail.c.agent_id)
            .with_for_update()
        )
    }
    done = Retagged()
    added: list[dict[str, str]] = []
    removed: list[tuple[str, str]] = []
    written: list[dict[str, str]] = []
    for agent_id, before in tags_of(connection, documents).items():
        old = set(before)
        new = change(old)
        if new == old:
            continue
        if len(new) > TAGS_PER_HOST and len(new) > len(old):
            done.full += 1
            continue
        done.changed += 1
        added += [{"agent_id": agent_id, "tag": tag} for tag in new - old]
        removed += [(agent_id, tag) for tag in old - new]
        document = _tagged(documents[agent_id], sorted(new))
        written.append({"agent_id": agent_id, "fields": document})
    for start in range(0, len(removed), PAIRS_PER_STATEMENT):
        pairs = removed[start : start + PAIRS_PER_STATEMENT]
        connection.execute(delete(agent_tag).where(or_(*[_pair(*each) for each in pairs])))
    if added:
        connection.execute(insert(agent_tag), added)
    update_rows(connection, agent_detail, written, key="agent_id", columns=["fields"])
    return done


def _pair(agent_id: str, tag: str) -> Any:
    return and_(agent_tag.c.agent_id == agent_id, agent_tag.c.tag == tag)


def _tagged(document: str, tags: list[str]) -> str:
    decoded: dict[str, Any] = msgspec.json.decode(document)
    return text_of(decoded | {"tags": tags})
