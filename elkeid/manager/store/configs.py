"""Queries on stored configs: what hosts shall run. Every function takes a connection and blocks."""

from typing import Any

import msgspec
from attrs import frozen
from sqlalchemy import Connection, select

from elkeid.manager.store.agents import plugins_of
from elkeid.manager.store.host_configs import host_configs
from elkeid.manager.store.schema import stored_config
from elkeid.manager.store.upsert import upsert

DEFAULT = "default"
"""The config of every host that has none of its own."""


@frozen
class StoredConfig:
    """A config as an operator stored it.

    Attributes:
        items: a JSON object for each plugin, as gateways take them; none if the operator said so.
        drops_confirmed: whether it may take plugins from many hosts at once.
        created_at: unix seconds.
        updated_at: unix seconds.
    """

    items: list[dict[str, Any]]
    drops_confirmed: bool
    created_at: int
    updated_at: int


def find_config(connection: Connection, name: str = DEFAULT) -> StoredConfig | None:
    """The stored config of this name."""
    row = connection.execute(select(stored_config).where(stored_config.c.name == name)).first()
    if row is None:
        return None
    items = msgspec.json.decode(row.items, type=list[dict[str, Any]])
    return StoredConfig(items, row.drops_confirmed, row.created_at, row.updated_at)


def store_config(
    connection: Connection,
    items: list[dict[str, Any]],
    *,
    drops_confirmed: bool,
    now: int,
    name: str = DEFAULT,
) -> StoredConfig:
    """Store a config in place of the one there is."""
    values = {
        "name": name,
        "items": msgspec.json.encode(items).decode(),
        "drops_confirmed": drops_confirmed,
        "created_at": now,
        "updated_at": now,
    }
    changes = ["items", "drops_confirmed", "updated_at"]
    connection.execute(upsert(connection, stored_config, ["name"], changes), values)
    stored = find_config(connection, name)
    assert stored is not None
    return stored


def config_and_plugins(
    connection: Connection, agent_id: str
) -> tuple[StoredConfig | None, frozenset[str]]:
    """The config for a host, its own or the default one, and the plugins last reported."""
    plugins = plugins_of(connection, [agent_id]).get(agent_id, frozenset())
    own = host_configs(connection, [agent_id]).get(agent_id)
    if own is None:
        return find_config(connection), plugins
    stored = StoredConfig(own.items, own.drops_confirmed, own.updated_at, own.updated_at)
    return stored, plugins
