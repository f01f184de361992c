"""Telling a heartbeat that says nothing new from one that does, without decoding it whole.

Most of what an AC reports between two polls differs from what it reported before in the time
alone. A hash of an entry's bytes with that time cut out tells so for a fraction of the cost of
decoding; a second hash, of what changes slowly, tells when only figures changed.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import msgspec
from attrs import Factory, define, frozen

from elkeid.manager.documents import (
    BEAT_KEYS,
    TIME_LIMIT,
    AgentReport,
    MalformedItem,
    Source,
    agent_report,
    hot_fields,
    text_of,
)


class _Entry(msgspec.Struct):
    agent_info: msgspec.Raw
    plugins_info: msgspec.Raw


class _Info(msgspec.Struct):
    agent_id: str
    last_heartbeat_time: int


_entry = msgspec.json.Decoder(_Entry).decode
_info = msgspec.json.Decoder(_Info).decode


@frozen
class Beat:
    """An entry of a report, as far as can be told quickly."""

    agent_id: str
    last_heartbeat_time: int  # unix seconds of our own clock
    raw_print: int
    item: msgspec.Raw


@define
class Sorted:
    """Entries of a report by what has to be done.

    Attributes:
        beats: only the time is new.
        reports: with their `raw_print`; 0 where there is none.
        unchanged: how many are known already.
        malformed: how many cannot be used.
        ids: of all that can.
    """

    beats: list[Beat] = Factory(list)
    reports: list[tuple[AgentReport, int]] = Factory(list)
    unchanged: int = 0
    malformed: int = 0
    ids: list[str] = Factory(list)


def _hash(parts: Iterable[bytes]) -> int:
    """64 bits, never 0. Whoever finds two reports of one hash hides a change of his own host."""
    digest = blake2b(b"\0".join(parts), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1


def beat_of(item: msgspec.Raw, source: Source, skew: float) -> Beat | None:
    """Look at an entry; None if it takes decoding to say more.

    Args:
        item: as sent.
        source: the AC.
        skew: how far its clock is ahead, seconds.
    """
    try:
        entry = _entry(item)
        info = _info(entry.agent_info)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    seen = info.last_heartbeat_time
    mark = b'"last_heartbeat_time":%d' % seen
    bare = bytes(entry.agent_info)
    if not 0 < seen < TIME_LIMIT or "\0" in info.agent_id or bare.count(mark) != 1:
        return None
    raw_print = _hash((bare.replace(mark, b""), bytes(entry.plugins_info), str(source).encode()))
    return Beat(info.agent_id, max(0, round(seen - skew)), raw_print, item)


def decoded(item: msgspec.Raw, skew: float) -> AgentReport | None:
    """An entry as a report, None for an agent without a heartbeat.

    Raises:
        MalformedItem: it cannot be used.
    """
    try:
        entry: Any = msgspec.json.decode(item)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedItem("no JSON") from error
    if not isinstance(entry, dict):
        raise MalformedItem("no object")
    return agent_report(entry, skew)


def slow_print(report: AgentReport, source: Source) -> int:
    """A hash of all of a report but its time and figures."""
    hot = hot_fields(report)
    slow = {k: v for k, v in report.fields.items() if k not in hot and k not in BEAT_KEYS}
    names = "\0".join(sorted(hot))
    return _hash((text_of(slow).encode(), names.encode(), str(source).encode()))
