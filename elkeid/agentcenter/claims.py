"""The latest disputes about agent ids, and hosts without one, for operators.

Bounded lists, the latest last: a hostile host that claims every id fills them with its own
address, and takes no more memory than they hold.
"""

from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

import msgspec

from elkeid.wire.rawdata import Header

Entry = TypeVar("Entry")

LIST_LIMIT: Final = 1_000
"""Entries of each list; some 300 KB. Counts go on for ever in metrics."""


class Conflict(msgspec.Struct):
    """A stream that did not get, or did not keep, the id it claimed.

    ``outcome``: ``refused`` (the holder lives, or another claim was being settled), ``left`` (it
    went before that was known), or ``displaced`` (a holder that answered no more).
    """

    agent_id: str
    address: str  # of the loser, without a port
    peer: str  # its latest address with a port
    holder: str  # address and port of the stream that has the id
    outcome: str
    count: int
    first_at: int  # unix seconds
    last_at: int


class Replacement(msgspec.Struct):
    """Streams of one id that replaced each other behind one address; many: two cloned hosts."""

    agent_id: str
    address: str
    peer: str
    count: int
    first_at: int
    last_at: int


class Unidentified(msgspec.Struct):
    """A host whose agent sends no id."""

    agent_id: str  # derived
    hostname: str
    intranet_ipv4: list[str]
    intranet_ipv6: list[str]
    peer: str
    count: int  # streams
    first_at: int
    last_at: int


class Recent(Generic[Entry]):
    """A list of the latest entries by key.

    Args:
        limit: entries; beyond it the one that changed longest ago is forgotten.
    """

    def __init__(self, limit: int = LIST_LIMIT) -> None:
        self._limit = limit
        self._entries: dict[Hashable, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Entry | None:
        """The entry of a key, which becomes the latest."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._entries[key] = entry
        return entry

    def add(self, key: Hashable, entry: Entry) -> None:
        """Add a new entry."""
        if len(self._entries) >= self._limit:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = entry

    def latest(self) -> list[Entry]:
        """All entries, the latest first."""
        return list(self._entries.values())[::-1]


class Claims:
    """What became of claims to ids, lately."""

    def __init__(self) -> None:
        self.conflicts: Recent[Conflict] = Recent()
        self.replaced: Recent[Replacement] = Recent()
        self.unidentified: Recent[Unidentified] = Recent()

    def lost(self, agent_id: str, loser: Any, holder: Any, outcome: str, wall: int) -> None:
        """``loser`` does not have the id; ``holder`` does. Both are `table.Holder`."""
        key = (agent_id, loser.peer_host)
        entry = self.conflicts.get(key)
        if entry is None:
            entry = Conflict(agent_id, loser.peer_host, "", "", "", 0, wall, wall)
            self.conflicts.add(key, entry)
        entry.peer, entry.holder, entry.outcome = loser.peer_addr, holder.peer_addr, outcome
        entry.count += 1
        entry.last_at = wall

    def took_over(self, agent_id: str, newcomer: Any, wall: int) -> None:
        """A stream replaced another one behind its own address."""
        key = (agent_id, newcomer.peer_host)
        entry = self.replaced.get(key)
        if entry is None:
            entry = Replacement(agent_id, newcomer.peer_host, "", 0, wall, wall)
            self.replaced.add(key, entry)
        entry.peer = newcomer.peer_addr
        entry.count += 1
        entry.last_at = wall

    def without_id(self, agent_id: str, header: Header, peer: str, wall: int) -> None:
        """A stream's agent sent an empty id."""
        entry = self.unidentified.get(agent_id)
        if entry is None:
            entry = Unidentified(
                agent_id,
                header.hostname.decode("utf-8", "replace"),
                [each.decode("utf-8", "replace") for each in header.intranet_ipv4],
                [each.decode("utf-8", "replace") for each in header.intranet_ipv6],
                peer,
                0,
                wall,
                wall,
            )
            self.unidentified.add(agent_id, entry)
        entry.peer = peer
        entry.count += 1
        entry.last_at = wall
