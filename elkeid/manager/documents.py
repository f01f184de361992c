"""Agents as documents: JSON as the store keeps it, and what an AC's report becomes.

Documents are plain JSON values in one canonical form, so that equal values have equal text:
integral floats are integers, integers fit 64 bits, no string holds U+0000 (which neither SQLite's
JSON functions nor PostgreSQL's can carry), object keys are sorted, no space between tokens.

The fields are those of docs/protocol.md, "Manager API".
"""

import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec
from attrs import frozen

from elkeid.errors import PeerError
from elkeid.wire.heartbeat import PLUGIN_TEXT_FIELDS, TEXT_FIELDS

DOCUMENT_BYTES = 64 << 10
"""One agent's document; real ones have about 4 KiB, and a page holds up to 5,000 of them."""

FIELD_LIMIT = 512
"""Fields of one document; the AC lets through 256 of a heartbeat, merging may double that."""

DEPTH_LIMIT = 8
"""Nesting of a document; real ones have 3, and the database's JSON parser has its own limit."""

PLUGIN_LIMIT = 256
"""Plugins of one agent; real hosts load under ten."""

AGENT_ID_CHARACTERS = 128
"""Real ids have 36 characters; upstream allows any."""

FOUND_CHARACTERS = 256
"""Of a field that hosts are found by, such as the name: names in DNS have up to 253. What is longer
is cut; an index takes so much."""

ADDRESS_FIELDS = ("intranet_ipv4", "extranet_ipv4", "intranet_ipv6", "extranet_ipv6")

ADDRESS_CHARACTERS = 64
"""IPv6 addresses have up to 45; what is longer is cut."""

ADDRESS_LIMIT = 256
"""Addresses of one kind of one host; the rest is left out."""

FOUND_KEYS = ("hostname", "state", "version", "platform", "idc")

TIME_LIMIT = 1 << 40
"""Unix seconds that still format as a date (the year 36812); a later time is nonsense."""

_INT64 = 1 << 63

MANAGER_KEYS = frozenset(
    {
        "_id",
        "agent_state",
        "config",
        "config_update_time",
        "connected",
        "first_heartbeat_time",
        "first_heartbeat_time_format",
        "last_heartbeat_time_format",
        "plugins",
        "protection",
        "protection_reason",
        "protection_since",
        "retired_at",
        "risk",
        "source_ip",
        "source_port",
        "tags",
    }
)
"""Fields that are the Manager's: an agent that reports one of these names is not believed."""

TEXT_KEYS = TEXT_FIELDS | {"hostname"}
"""Text for every reader; an AC that makes a number of "5.10" breaks typed readers of the page."""

_encode = msgspec.json.Encoder(order="sorted").encode


class MalformedItem(PeerError):
    """One agent's entry in an AC's report cannot be used; the others can."""


@frozen
class Source:
    """The AC that reported an agent: its HTTP address."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@frozen
class AgentReport:
    """One agent as an AC reported it, in canonical form.

    ``fields`` are those of the agent and the AC; `MANAGER_KEYS` are not among them.
    Times are unix seconds of our own clock.
    """

    agent_id: str
    last_heartbeat_time: int
    fields: dict[str, Any]
    plugins: list[dict[str, Any]]


def canonical(value: Any, depth: int = DEPTH_LIMIT) -> Any:
    """The canonical form of a decoded JSON value; objects and lists are copied.

    Raises:
        MalformedItem: nested deeper than ``depth``, or not a JSON value.
    """
    kind = type(value)
    if kind is str:
        return value.replace("\0", "\ufffd") if "\0" in value else value
    if kind is bool or value is None:
        return value
    if kind is int:
        if -_INT64 <= value < _INT64:
            return value
        try:
            return _number(float(value))
        except OverflowError:
            raise MalformedItem("a number out of range") from None
    if kind is float:
        return _number(value)
    if depth <= 0:
        raise MalformedItem(f"nested deeper than {DEPTH_LIMIT}")
    if kind is list:
        return [canonical(each, depth - 1) for each in value]
    if kind is dict:
        # Most of what is in an object is a text that is as it should be: no call for these.
        return {
            key.replace("\0", "\ufffd") if "\0" in key else key: each
            if type(each) is str and "\0" not in each
            else canonical(each, depth - 1)
            for key, each in value.items()
        }
    raise MalformedItem(f"{kind.__name__} is no JSON value")


def _number(value: float) -> int | float:
    # Beyond 2**53 a float's neighbours are further than 1 apart: its own text is the honest one.
    if value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return value


def text_of(value: Any) -> str:
    """The JSON text of a canonical value: equal values, equal text."""
    return _encode(value).decode()


def document_id(agent_id: str) -> str:
    """The ``_id`` of an agent's document: 24 hexadecimal digits, always the same ones."""
    return sha256(agent_id.encode()).hexdigest()[:24]


def local_format(seconds: int) -> str:
    """``YYYY-MM-DD HH:MM:SS`` in this machine's zone, as upstream's console shows times."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _as_text(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return text_of(value)


def _addresses(value: Any) -> Any:
    if isinstance(value, str):
        return value[:ADDRESS_CHARACTERS]
    if not isinstance(value, list):
        return value
    return [
        each[:ADDRESS_CHARACTERS] if isinstance(each, str) else each
        for each in value[:ADDRESS_LIMIT]
    ]


def _timestamp(value: Any, skew: float) -> int:
    if type(value) not in (int, float) or not 0 < value < TIME_LIMIT:
        raise MalformedItem("last_heartbeat_time is no unix time")
    reported: float = value
    return max(0, round(reported - skew))


def agent_report(item: Mapping[str, Any], skew: float = 0.0) -> AgentReport | None:
    """Check and normalise one entry of ``/conn/stat``.

    Args:
        item: ``{"agent_info": {...}, "plugins_info": [...]}``, as decoded.
        skew: how far the AC's clock is ahead of ours, seconds; times are corrected by it.

    Returns:
        The report, or None for an agent that has not sent a heartbeat yet.

    Raises:
        MalformedItem: the entry cannot be used.
    """
    info, plugins = item.get("agent_info"), item.get("plugins_info")
    if info is None or info == {}:
        return None
    if not isinstance(info, dict) or not isinstance(plugins, list | None):
        raise MalformedItem("agent_info is no object, or plugins_info no list")
    agent_id = info.get("agent_id")
    if not isinstance(agent_id, str) or not 0 < len(agent_id) <= AGENT_ID_CHARACTERS:
        raise MalformedItem("agent_id is no text, empty or too long")
    if len(plugins or ()) > PLUGIN_LIMIT:
        raise MalformedItem(f"more than {PLUGIN_LIMIT} plugins")
    seen = _timestamp(info.get("last_heartbeat_time"), skew)
    fields = canonical({k: v for k, v in info.items() if k not in MANAGER_KEYS})
    for key in TEXT_KEYS:
        if key in fields:
            fields[key] = _as_text(fields[key])
    for key in FOUND_KEYS:
        if fields.get(key) is not None:
            fields[key] = fields[key][:FOUND_CHARACTERS]
    for key in ADDRESS_FIELDS:
        if key in fields:
            fields[key] = _addresses(fields[key])
    fields["last_heartbeat_time"] = seen
    reported = []
    for plugin in plugins or ():
        if not isinstance(plugin, dict):
            raise MalformedItem("a plugin is no object")
        detail = canonical(plugin)
        for key in PLUGIN_TEXT_FIELDS:
            if key in detail:
                detail[key] = _as_text(detail[key])
        if "last_heartbeat_time" in detail:
            detail["last_heartbeat_time"] = _timestamp(detail["last_heartbeat_time"], skew)
        reported.append(detail)
    report = AgentReport(fields["agent_id"], seen, fields, reported)
    if len(fields) > FIELD_LIMIT:
        raise MalformedItem(f"more than {FIELD_LIMIT} fields")
    if len(text_of(fields)) + len(text_of(reported)) > DOCUMENT_BYTES:
        raise MalformedItem(f"larger than {DOCUMENT_BYTES} bytes")
    return report


def merged(
    old: Mapping[str, Any] | None, report: AgentReport, source: Source
) -> tuple[dict[str, Any], str]:
    """The stored document after a report, and its text.

    A field that is not reported any more keeps its last value, as readers of upstream expect;
    plugins are replaced as a whole. The Manager's own fields stay.

    Args:
        old: the document so far, None for an agent never seen before.
        report: what its AC says now.
        source: that AC.
    """
    seen = report.last_heartbeat_time
    base: Mapping[str, Any] = {"tags": [], "first_heartbeat_time": seen} if old is None else old
    first = base["first_heartbeat_time"]
    own = {
        "_id": document_id(report.agent_id),
        "first_heartbeat_time": first,
        "first_heartbeat_time_format": local_format(first),
        "last_heartbeat_time_format": local_format(seen),
        "plugins": report.plugins,
        "source_ip": source.ip,
        "source_port": source.port,
    }
    document = {**base, **report.fields, **own}
    text = text_of(document)
    if len(document) > FIELD_LIMIT or len(text) > 2 * DOCUMENT_BYTES:
        # An agent that renames its fields keeps only the last ones.
        kept = {key: base[key] for key in MANAGER_KEYS & base.keys()}
        document = {**kept, **report.fields, **own}
        text = text_of(document)
    return document, text


BEAT_KEYS = ("last_heartbeat_time", "last_heartbeat_time_format")
"""Fields that every heartbeat changes."""


def hot_fields(report: AgentReport) -> dict[str, Any]:
    """Of a report what any heartbeat may change: figures, and plugins with theirs."""
    hot: dict[str, Any] = {
        key: value
        for key, value in report.fields.items()
        if type(value) in (int, float) and key not in BEAT_KEYS
    }
    hot["plugins"] = report.plugins
    return hot


def split(document: Mapping[str, Any], hot: Mapping[str, Any]) -> tuple[str, str]:
    """A document as it is stored: the text of what changes slowly, and of what is hot."""
    slow = {k: v for k, v in document.items() if k not in hot and k not in BEAT_KEYS}
    return text_of(slow), text_of(hot)


def joined(slow: str, hot: str, last_heartbeat_time: int) -> dict[str, Any]:
    """The document of which `split` made these texts."""
    document: dict[str, Any] = msgspec.json.decode(slow)
    document |= msgspec.json.decode(hot)
    document["last_heartbeat_time"] = last_heartbeat_time
    document["last_heartbeat_time_format"] = local_format(last_heartbeat_time)
    return document
