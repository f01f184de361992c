"""Which partition an agent's records go to, as upstream's gateway chooses it.

Both gateways may feed one topic; an agent's records stay in order when they agree.
"""

from typing import Final

_OFFSET: Final = 0x811C9DC5
_PRIME: Final = 0x01000193
_REMEMBERED: Final = 65536
"""Agents whose hash is kept: six times what one process serves. Then all are forgotten."""

_hashes: dict[bytes, int] = {}


def partition_of(key: bytes, count: int) -> int:
    """The partition of a key: FNV-1a as a signed number, remainder truncated, made positive.

    Args:
        key: the agent id.
        count: partitions of the topic, at least 1.

    Source: docs/kafka.md, "Messages".
    """
    found = _hashes.get(key)
    if found is None:
        found = _OFFSET
        for byte in key:
            found = (found ^ byte) * _PRIME & 0xFFFFFFFF
        # |signed| has the same truncated remainder as |signed| itself.
        found = 0x100000000 - found if found & 0x80000000 else found
        if len(_hashes) >= _REMEMBERED:
            _hashes.clear()
        _hashes[key] = found
    return found % count
