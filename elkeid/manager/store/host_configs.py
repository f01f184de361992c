"""Queries on the configs that single hosts have instead of the default one. They block."""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from attrs import frozen
from sqlalchemy import Connection, func, select

from elkeid.manager.store.schema import host_config
from elkeid.manager.store.upsert import upsert


@frozen(kw_only=True)
class HostConfig:
    """What one host shall run.

    Attributes:
        items: a JSON object for each plugin, as gateways take them.
        allow_empty: whether an operator meant it, should it be empty.
        drops_confirmed: whether it may take most of the host's plugins.
        updated_at: unix seconds.
        dropped_at: unix seconds, if it took most of the host's plugins when it was stored.
    """

    agent_id: str
    items: list[dict[str, Any]]
    allow_empty: bool
    drops_confirmed: bool
    updated_at: int
    dropped_at: float | None = None


def host_configs(connection: Connection, ids: Collection[str]) -> dict[str, HostConfig]:
    """The own configs of these hosts, at most a statement's worth; most have none."""
    rows = connection.execute(select(host_config).where(host_config.c.agent_id.in_(ids)))
    return {
        row.agent_id: HostConfig(
            agent_id=row.agent_id,
            items=msgspec.json.decode(row.items, type=list[dict[str, Any]]),
            allow_empty=row.allow_empty,
            drops_confirmed=row.drops_confirmed,
            updated_at=row.updated_at,
            dropped_at=row.dropped_at,
        )
        for row in rows
    }


def store_host_configs(connection: Connection, configs: Sequence[HostConfig]) -> None:
    """Store configs in place of those that these hosts have."""
    rows = [
        {
            "agent_id": each.agent_id,
            "items": msgspec.json.encode(each.items).decode(),
            "allow_empty": each.allow_empty,
            "drops_confirmed": each.drops_confirmed,
            "updated_at": each.updated_at,
            "dropped_at": each.dropped_at,
        }
        for each in configs
    ]
    if rows:
        changes = ["items", "allow_empty", "drops_confirmed", "updated_at", "dropped_at"]
        connection.execute(upsert(connection, host_config, ["agent_id"], changes), rows)


def hosts_dropped_since(connection: Connection, since: float) -> int:
    """How many hosts have lost most of their plugins to a config of their own since then."""
    return connection.execute(
        select(func.count()).select_from(host_config).where(host_config.c.dropped_at > since)
    ).scalar_one()
