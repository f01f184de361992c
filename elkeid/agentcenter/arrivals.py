"""What came of each agent: records by data type, when each was last seen, and what got lost.

Counts are kept by agent id, over its streams, and for a while after it left: an agent that
comes back goes on with them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from elkeid.agentcenter.loss import AgentLoss
from elkeid.wire.datatypes import (
    AGENT_HEARTBEAT,
    ERROR_LOGS,
    KERNEL_TYPES,
    PLUGIN_HEARTBEAT,
)

if TYPE_CHECKING:
    from elkeid.agentcenter.table import Agent

TYPE_LIMIT: Final = 256
"""Data types counted one by one for an agent; 165 are known, and numbers are the peer's choice.
What comes beyond counts as -1."""

LEFT_LIMIT: Final = 10_000
"""Agents that left and are remembered, about 1 KiB each; the oldest is forgotten first."""

_OWN = (AGENT_HEARTBEAT, PLUGIN_HEARTBEAT, *ERROR_LOGS)
"""What agents themselves send; everything else comes from their plugins."""


class Arrivals:
    """Of one agent."""

    __slots__ = ("before", "counts", "kernel", "last_seen", "loss", "news", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}  # data type -> records
        self.last_seen: dict[int, int] = {}  # data type -> unix seconds
        self.total = 0  # records
        self.before = 0  # records before the last batch
        self.loss: AgentLoss | None = None  # from the first heartbeat on
        self.kernel = False  # whether an event of the kernel has come
        self.news = False  # whether the first one just did: Managers need not wait a minute

    def take(self, counts: Mapping[int, int], count: int, now: int) -> None:
        """Note a batch: records by data type, their number, the time in unix seconds."""
        self.before = self.total
        self.total += count
        known, last_seen = self.counts, self.last_seen
        for data_type, more in counts.items():
            if data_type in known:
                known[data_type] += more
                last_seen[data_type] = now
            else:
                self._first(data_type, more, now)

    def _first(self, data_type: int, count: int, now: int) -> None:
        if len(self.counts) >= TYPE_LIMIT:
            data_type = -1
        self.counts[data_type] = self.counts.get(data_type, 0) + count
        self.last_seen[data_type] = now
        if data_type in KERNEL_TYPES and not self.kernel:
            self.kernel = self.news = True

    def merge(self, other: "Arrivals") -> None:
        """Add what another stream of the same agent brought."""
        for data_type, count in other.counts.items():
            self.take({data_type: count}, count, other.last_seen[data_type])

    @property
    def own(self) -> int:
        """Records that the agent itself made."""
        return sum(self.counts.get(kind, 0) for kind in _OWN)

    def shown(self) -> dict[str, Any]:
        """What ``/conn/stat`` adds to an agent's detail."""
        loss = self.loss or AgentLoss()
        return {
            "data_types": {
                str(kind): {"count": count, "last_seen": self.last_seen[kind]}
                for kind, count in self.counts.items()
            },
            "loss": {
                "dropped_in_buffer": loss.dropped,
                "lost_in_flight": loss.in_flight,
                "intervals": loss.intervals,
                "skipped": loss.skipped,
            },
        }


class ArrivalBook:
    """Follows agents: joins the counts of their streams, and sums what they lost.

    Args:
        monotonic: seconds that only go forward.

    Attributes:
        dropped: records lost in agents' buffers, in sum.
        in_flight: records that agents sent and that were not read, in sum.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._here: dict[str, Arrivals] = {}
        self._left: dict[str, Arrivals] = {}  # oldest first
        self.dropped = self.in_flight = 0

    def joined(self, agent: "Agent") -> None:
        """Go on with what is known of this id."""
        agent_id, stream = agent.agent_id, agent.stream
        known = self._here.get(agent_id) or self._left.pop(agent_id, None)
        if known is None:
            known = stream.arrivals
        elif known is not stream.arrivals:
            known.merge(stream.arrivals)
            stream.arrivals = known
        self._here[agent_id] = known

    def heartbeat(self, agent: "Agent", data_type: int, fields: Mapping[bytes, bytes]) -> None:
        """Compare an agent's counters with ours."""
        arrivals = agent.stream.arrivals
        if arrivals.loss is None:
            arrivals.loss = AgentLoss()
        if data_type == AGENT_HEARTBEAT:
            dropped, in_flight = arrivals.loss.agent(
                fields, self._monotonic(), arrivals.before, arrivals.own
            )
            self.dropped += dropped
            self.in_flight += in_flight
        else:
            arrivals.loss.plugin(fields)

    def results(self, agent: "Agent", results: Sequence[tuple[int, bytes]]) -> None:
        """They are counted with their batch."""

    def left(self, agent: "Agent") -> None:
        """Remember what is known, for when the agent comes back."""
        known = self._here.pop(agent.agent_id, None)
        if known is None:
            return
        if len(self._left) >= LEFT_LIMIT:
            del self._left[next(iter(self._left))]
        self._left[agent.agent_id] = known
