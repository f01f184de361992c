"""Which AgentCenter has which agent, and whose the id is when two have it: the rule, no I/O.

All agents share one certificate, so an id proves nothing. Of two streams of an id from the same
address the later one counts: the agent has moved, and its old AgentCenter has not noticed yet.
Of two from different addresses the elder one keeps the id as long as it gives signs of life.
Both orders are those of the streams' beginnings, whichever report comes first: several Managers
come to the same end.

Source: docs/protocol.md, "Agent ids".
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from attrs import frozen

from elkeid.manager.documents import Source

_ADDRESS_BITS: Final = 32
_TIME_BITS: Final = 41
_ADDRESS_MASK: Final = (1 << _ADDRESS_BITS) - 1
_TIME_MASK: Final = (1 << _TIME_BITS) - 1


class Verdict(Enum):
    """What a report of an agent means."""

    NEW = auto()  # nobody had it
    SAME = auto()  # its AgentCenter had it
    MOVED = auto()  # it has left another AgentCenter, which has not noticed yet
    STALE = auto()  # an old stream of an agent that is elsewhere by now
    CONTESTED = auto()  # another address has the id elsewhere


@frozen
class Claim:
    """A stream that says it is some agent.

    Args:
        source: the AgentCenter that has it.
        address: of its peer, without a port; empty if that is not known.
        since: when it began, unix seconds of our clock; 0 if that is not known.
    """

    source: Source
    address: str
    since: int


@frozen
class Held:
    """What is remembered of the stream that has an id; of its address only a hash."""

    source: Source
    address: int
    since: int


def _hash(address: str) -> int:
    """Nothing for an unknown address; salted, so that no peer can choose a collision."""
    return (hash(address) & _ADDRESS_MASK) or 1 if address else 0


def is_elder(claim: Claim, held: Held) -> bool:
    """Whether a claim's stream began before that of the holder."""
    return (claim.since, str(claim.source)) < (held.since, str(held.source))


class ClaimTable:
    """Who has which id: some 200 bytes an agent."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}  # id -> source number, address hash, since; one number
        self._sources: list[Source] = []
        self._numbers: dict[Source, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def holder(self, agent_id: str) -> Held | None:
        """The stream that has an id."""
        packed = self._held.get(agent_id)
        if packed is None:
            return None
        address = (packed >> _TIME_BITS) & _ADDRESS_MASK
        return Held(
            self._sources[packed >> _TIME_BITS + _ADDRESS_BITS], address, packed & _TIME_MASK
        )

    def judge(self, agent_id: str, claim: Claim) -> Verdict:
        """What a claim means; changes nothing."""
        held = self.holder(agent_id)
        if held is None:
            return Verdict.NEW
        if held.source == claim.source:
            return Verdict.SAME
        address = _hash(claim.address)
        if address and held.address and address != held.address:
            return Verdict.CONTESTED
        return Verdict.STALE if is_elder(claim, held) else Verdict.MOVED

    def take(self, agent_id: str, claim: Claim) -> None:
        """The id is this stream's from now on."""
        number = self._numbers.get(claim.source)
        if number is None:
            number = self._numbers[claim.source] = len(self._sources)
            self._sources.append(claim.source)
        since = min(max(claim.since, 0), _TIME_MASK)
        packed = number << _ADDRESS_BITS | _hash(claim.address)
        self._held[agent_id] = packed << _TIME_BITS | since

    def release(self, agent_id: str, source: Source) -> bool:
        """An AgentCenter has the agent no more; says whether it had the id."""
        held = self.holder(agent_id)
        if held is None or held.source != source:
            return False
        del self._held[agent_id]
        return True

    def names(self) -> list[str]:
        """All ids."""
        return list(self._held)

    def of(self, source: Source, names: Sequence[str]) -> list[str]:
        """Those among ``names`` that an AgentCenter has."""
        number = self._numbers.get(source)
        if number is None:
            return []
        held, shift = self._held, _TIME_BITS + _ADDRESS_BITS
        return [
            name
            for name in names
            if (packed := held.get(name)) is not None and packed >> shift == number
        ]
