"""Metrics of single agents, for a bounded number of them: off unless a setting asks for them."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final

from elkeid.agentcenter.heartbeats import PLUGIN_LIMIT
from elkeid.agentcenter.table import Agent
from elkeid.wire.datatypes import AGENT_HEARTBEAT

GAUGES: Final = ("cpu", "rss", "du", "read_speed", "write_speed", "tx_speed", "rx_speed")
AGENT_NAME: Final = "agent"  # in place of a plugin's


class PerAgentMetrics:
    """Follows the first agents that come; the series of one that leaves vanish.

    Args:
        limit: agents.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loads: dict[str, dict[str, dict[str, float]]] = {}  # id -> name -> gauge -> value
        self._records: dict[str, int] = {}
        self._ever = 0  # records of agents that had a series of their own

    # --- what the gateway tells

    def joined(self, agent: Agent) -> None:
        """Follow the agent, if there is room."""
        if agent.agent_id in self._loads or len(self._loads) < self._limit:
            self._loads[agent.agent_id] = {}
            self._records.setdefault(agent.agent_id, 0)

    def heartbeat(self, agent: Agent, data_type: int, fields: Mapping[bytes, bytes]) -> None:
        """Note the numbers among its fields."""
        names = self._loads.get(agent.agent_id)
        if names is None:
            return
        name = AGENT_NAME
        if data_type != AGENT_HEARTBEAT:
            name = fields.get(b"name", b"").decode("utf-8", "replace")
        if name not in names and len(names) > PLUGIN_LIMIT:
            return
        names[name] = {
            gauge: value
            for gauge in GAUGES
            if (value := _number(fields.get(gauge.encode()))) is not None
        }

    def results(self, agent: Agent, results: Sequence[tuple[int, bytes]]) -> None:
        """They are no load."""

    def left(self, agent: Agent) -> None:
        """Its series vanish."""
        self._loads.pop(agent.agent_id, None)
        self._records.pop(agent.agent_id, None)

    def count(self, agent_id: str, records: int) -> None:
        """Records came of an agent."""
        if agent_id in self._records:
            self._records[agent_id] += records
            self._ever += records

    # --- what is shown

    def gauges(self) -> dict[str, dict[tuple[str, str], float]]:
        """Gauge -> (agent id, name) -> value."""
        shown: dict[str, dict[tuple[str, str], float]] = {gauge: {} for gauge in GAUGES}
        for agent_id, names in self._loads.items():
            for name, values in names.items():
                for gauge, value in values.items():
                    shown[gauge][agent_id, name] = value
        return shown

    def records(self, total: int) -> dict[str, int]:
        """Records by agent; under the empty id those of all agents without a series.

        Args:
            total: records of all agents, ever.
        """
        return {"": total - self._ever, **self._records}


def _number(text: bytes | None) -> float | None:
    try:
        value = float(text or b"")
    except ValueError:
        return None
    return value if isfinite(value) else None
