"""From the strings of a heartbeat to the detail that operators see.

Agents send every value as a string; readers of ``/conn/stat`` expect numbers where the text is
one. A fixed list of keys stays text whatever it looks like: a kernel "5.10" is not 5.1.

Source: docs/protocol.md, "Heartbeats".
"""

from typing import Any

from elkeid.wire import item
from elkeid.wire.datatypes import AGENT_HEARTBEAT, PLUGIN_HEARTBEAT
from elkeid.wire.gonumber import json_number
from elkeid.wire.heartbeat import PLUGIN_TEXT_FIELDS, TEXT_FIELDS
from elkeid.wire.rawdata import Header

ALWAYS_TEXT = TEXT_FIELDS | PLUGIN_TEXT_FIELDS | {"agent_id"}
"""Keys whose values are text for every reader, even when they look like numbers."""

PLUGIN_LIMIT = 64
"""Plugins shown per agent; real hosts load under ten, and names are the agent's to choose."""

HEARTBEATS = frozenset({AGENT_HEARTBEAT, PLUGIN_HEARTBEAT})

HEARTBEAT_BYTES = 64 << 10
"""Of one heartbeat's body; real ones take 1.5 KB, and the last of each is kept."""

AGENT_BYTES = 64 << 10
"""Of the last heartbeats of one agent together, its own and its plugins': real ones take 4 KB.
All agents of a process share one key, so 10,000 hostile ones cost 640 MiB at worst."""

NAME_BYTES = 128
"""Of a plugin's name."""

FIELD_LIMIT = 256
"""Fields of one heartbeat; real ones have about 45."""


def fields_of(body: bytes) -> dict[str, Any]:
    """Decode a heartbeat's fields, numbers as numbers.

    Raises:
        WireError: the body is no Item; the gateway keeps no such heartbeat.
    """
    texts = item.decode_text(body)
    result: dict[str, Any] = {}
    for key, text in texts.items():
        number = None if key in ALWAYS_TEXT else json_number(text)
        result[key] = text if number is None else number
    return result


def _texts(values: list[bytes]) -> list[str]:
    return [value.decode("utf-8", "replace") for value in values]


def agent_info(
    body: bytes,
    header: Header,
    *,
    agent_id: str,
    agent_addr: str,
    create_at: int,
    last_heartbeat_time: int,
) -> dict[str, Any]:
    """The detail of one agent, as ``/conn/stat`` shows it.

    Args:
        body: the last 1000 record's body, an Item.
        header: what its batch said of the host; overrides fields of the same name.
        agent_id: the id the stream goes by.
        agent_addr: the peer, ``ip:port``.
        create_at: start of the stream, unix seconds.
        last_heartbeat_time: arrival of this heartbeat, unix seconds, our clock.
    """
    return fields_of(body) | {
        "agent_id": agent_id,
        "agent_addr": agent_addr,
        "create_at": create_at,
        "intranet_ipv4": _texts(header.intranet_ipv4),
        "extranet_ipv4": _texts(header.extranet_ipv4),
        "intranet_ipv6": _texts(header.intranet_ipv6),
        "extranet_ipv6": _texts(header.extranet_ipv6),
        "version": header.version.decode("utf-8", "replace"),
        "hostname": header.hostname.decode("utf-8", "replace"),
        "product": header.product.decode("utf-8", "replace"),
        "last_heartbeat_time": last_heartbeat_time,
    }


def plugin_info(body: bytes, last_heartbeat_time: int) -> dict[str, Any]:
    """The detail of one plugin, from the body of its last 1001 record."""
    return fields_of(body) | {"last_heartbeat_time": last_heartbeat_time}
