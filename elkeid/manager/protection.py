"""How well a host is protected, from what it really sends; no I/O.

An agent that beats says only that the agent lives. What detects is the driver in the kernel, and
its events are the proof that it works: every host starts programs within minutes.

Source: docs/protocol.md, "Manager API", "Protection".
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from attrs import frozen

from elkeid.manager.documents import AgentReport
from elkeid.wire.datatypes import KERNEL_TYPES

DRIVER: Final = "driver"
"""The plugin that brings events of the kernel."""

_KERNEL_KEYS: Final = frozenset(map(str, KERNEL_TYPES))


class Protection(StrEnum):
    """From all to nothing."""

    FULL = "full"
    NO_KERNEL_EVENTS = "no_kernel_events"
    HEARTBEAT_ONLY = "heartbeat_only"
    NONE = "none"


RANK: Final = {each: rank for rank, each in enumerate(reversed(Protection))}


@frozen
class Verdict:
    """What one report tells.

    ``certain`` is false where something only has not been seen yet: after an agent has moved, its
    gateway has counted nothing, and plugins come one after another.
    """

    state: Protection
    reason: str
    certain: bool


def kernel_event_at(data_types: Mapping[str, Any]) -> float | None:
    """When the newest event of the kernel came, by the gateway's clock; None without any."""
    newest: float | None = None
    for kind in data_types.keys() & _KERNEL_KEYS:
        counted = data_types[kind]
        seen = counted.get("last_seen") if type(counted) is dict else None
        if isinstance(seen, int | float) and (newest is None or seen > newest):
            newest = seen
    return newest


def judge(report: AgentReport, skew: float, quiet_seconds: float, silent_seconds: float) -> Verdict:
    """Say how well a host that beats is protected.

    Args:
        report: with its heartbeat.
        skew: how far its gateway's clock is ahead, seconds.
        quiet_seconds: a kernel without events for longer brings none.
        silent_seconds: a plugin without a heartbeat for longer is gone.
    """
    now = report.last_heartbeat_time
    live: set[str] = set()
    exited: set[str] = set()
    for plugin in report.plugins:
        name, seen = str(plugin.get("name")), plugin.get("last_heartbeat_time", 0)
        gone = plugin.get("status") == "exited" or now - seen > silent_seconds
        (exited if gone else live).add(name)
    counted = report.fields.get("data_types")
    by_records = isinstance(counted, dict)
    last = kernel_event_at(counted) if isinstance(counted, dict) else None
    quiet = last is not None and now - (last - skew) > quiet_seconds
    if DRIVER in exited and DRIVER not in live:
        reason = "driver_exited"
    elif by_records:
        if last is not None and not quiet:
            return Verdict(Protection.FULL, "kernel_events", True)
        reason = "driver_silent" if DRIVER in live else "driver_missing"
    elif DRIVER in live:
        return Verdict(Protection.FULL, "driver_runs", True)
    else:
        reason = "driver_missing"
    if live:
        certain = quiet or reason == "driver_exited"
        return Verdict(Protection.NO_KERNEL_EVENTS, reason, certain)
    return Verdict(Protection.HEARTBEAT_ONLY, "no_plugins", quiet or bool(exited))
