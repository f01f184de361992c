"""Prometheus names in one place: one class per part, each on the registry it is given.

Names that upstream consumers query are kept exactly (docs/protocol.md, "Metrics").
"""

from prometheus_client import CollectorRegistry


class DiscoveryMetrics:
    """What the registry counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry


class ManagerMetrics:
    """What the Manager counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry


class AgentCenterMetrics:
    """What the gateway counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
