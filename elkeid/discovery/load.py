"""What an instance tells of its load in ``extra``, and what follows from it.

Upstream's readers take ``extra`` for a free map and ignore it. Here these keys have a meaning;
a value of another type than stated counts as absent, for a map that is free may hold anything:

| key | type | meaning |
|---|---|---|
| ``limit`` | number above 0 | what the instance can take, in the unit of ``weight`` |
| ``cpu`` | number, 0 to 1 | share of one core that its process used lately; information only |
| ``draining`` | bool | takes nobody new: named last |
| ``renew`` | number above 0 | seconds between its renewals; `DiscoveryClient` adds it |
| ``zone`` | string | where it stands, for the zone preference |
| ``version`` | string | of its program; information only |

Source: docs/protocol.md, "ServiceDiscovery API".
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from elkeid import __version__

LIMIT: Final = "limit"
CPU: Final = "cpu"
DRAINING: Final = "draining"
RENEW: Final = "renew"
ZONE: Final = "zone"
VERSION: Final = "version"


class Listed(Protocol):
    """As much of a record as these questions need."""

    @property
    def ip(self) -> str:
        """Address."""

    @property
    def port(self) -> int:
        """Port."""

    @property
    def status(self) -> int:
        """0 is fresh."""

    @property
    def weight(self) -> int:
        """Load."""

    @property
    def extra(self) -> Mapping[str, Any] | None:
        """Free map."""


def report(limit: int, cpu: float, draining: bool) -> dict[str, Any]:
    """The ``extra`` of an AgentCenter.

    Args:
        limit: agents that it takes.
        cpu: share of one core, 0 to 1; kept within these bounds.
        draining: whether it is leaving.
    """
    return {
        LIMIT: limit,
        CPU: round(min(1.0, max(0.0, cpu)), 3),
        DRAINING: draining,
        VERSION: __version__,
    }


def limit_of(extra: Mapping[str, Any] | None) -> float | None:
    """What the instance can take, or None if it does not say."""
    return _positive(extra, LIMIT)


def renew_seconds(extra: Mapping[str, Any] | None) -> float | None:
    """Seconds between its renewals, or None if it does not say."""
    return _positive(extra, RENEW)


def is_draining(extra: Mapping[str, Any] | None) -> bool:
    """Whether it takes nobody new."""
    return (extra or {}).get(DRAINING) is True


def zone_of(extra: Mapping[str, Any] | None) -> str | None:
    """Where it stands, or None if it does not say."""
    return _text(extra, ZONE)


def version_of(extra: Mapping[str, Any] | None) -> str | None:
    """Of its program, or None if it does not say."""
    return _text(extra, VERSION)


def cpu_of(extra: Mapping[str, Any] | None) -> float | None:
    """Share of one core that it used lately, or None if it does not say."""
    return _positive(extra, CPU) or (0.0 if (extra or {}).get(CPU) == 0 else None)


def has_room(record: Listed) -> bool:
    """Whether an instance may be expected to take one more: fresh, not draining, below its limit.

    One that names no limit, as upstream's, is taken to have room.
    """
    limit = limit_of(record.extra)
    return (
        record.status == 0
        and not is_draining(record.extra)
        and (limit is None or record.weight < limit)
    )


def _text(extra: Mapping[str, Any] | None, key: str) -> str | None:
    value = (extra or {}).get(key)
    return value if isinstance(value, str) and value else None


def _positive(extra: Mapping[str, Any] | None, key: str) -> float | None:
    value = (extra or {}).get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 63:
        return float(value)
    return None
