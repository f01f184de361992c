"""What is told of the instances that make up the server, and by AgentCenters of themselves.

Source: docs/protocol.md, "Manager API", "Cluster".
"""

import msgspec

from elkeid.manager.claim_watch import AcrossConflict
from elkeid.manager.ledgers import BeforeReading, ClassLedger


class DrainState(msgspec.Struct):
    """How far the drain of an AgentCenter is; ``seconds`` are left until its deadline."""

    state: str
    connections: int
    agents: int
    seconds: float


class ResetDone(msgspec.Struct):
    """``count`` of the agents asked for, and what became of each."""

    count: int
    detail: dict[str, str]


class GatewayView(msgspec.Struct):
    """One AgentCenter; what it does not tell is null."""

    address: str
    health: str  # by its silence towards ServiceDiscovery: green, blue, yellow, orange, red
    registered_at: int  # unix seconds
    heard_at: int  # unix seconds; by ServiceDiscovery
    weight: int  # as ServiceDiscovery was told: its agents
    limit: float | None  # agents that it takes
    cpu: float | None  # share of one core
    version: str | None
    zone: str | None
    state: str | None  # serving, draining, drained
    connections: int | None
    agents: int | None
    drain_seconds: float | None  # until a drain's deadline
    clock_skew: float | None  # seconds ahead of this Manager
    polled_ago: float | None  # seconds since this Manager had a good answer for agents' status
    problems: list[str]


class DiscoveryView(msgspec.Struct):
    """One member of ServiceDiscovery."""

    address: str
    node: str | None  # its name; null of one of upstream
    members: list[str] | None  # as it is configured
    problems: list[str]


class ManagerView(msgspec.Struct):
    """One Manager."""

    address: str
    health: str
    registered_at: int
    heard_at: int
    version: str | None


class Instances(msgspec.Struct):
    """All instances."""

    gateways: list[GatewayView]
    discovery: list[DiscoveryView]
    managers: list[ManagerView]


class Silent(msgspec.Struct):
    """An AgentCenter that is missing in a sum, and why."""

    address: str
    reason: str


class Share(msgspec.Struct):
    """The part of all agents that is in one place."""

    name: str
    agents: int
    share: float  # of all agents, 0 to 1
    limit: float | None
    filled: float | None  # of the limit, 0 to 1 and beyond


class Distribution(msgspec.Struct):
    """Where agents are connected."""

    agents: int
    gateways: list[Share]  # fullest first
    zones: list[Share]  # "" for those that tell none
    silent: list[Silent]


class LedgerView(msgspec.Struct):
    """The ledger of all AgentCenters that answered."""

    classes: dict[str, ClassLedger]
    before_reading: BeforeReading
    answered: list[str]
    silent: list[Silent]
    imbalances: list[str]


class ConflictView(msgspec.Struct):
    """A stream that did not get, or did not keep, the id it claimed at one AgentCenter."""

    agent_id: str
    address: str  # of the loser
    peer: str
    holder: str
    outcome: str
    count: int
    first_at: int
    last_at: int
    gateway: str = ""


class ReplacementView(msgspec.Struct):
    """Streams of one id that replaced each other behind one address; many: two cloned hosts."""

    agent_id: str
    address: str
    peer: str
    count: int
    first_at: int
    last_at: int
    gateway: str = ""


class UnidentifiedHost(msgspec.Struct):
    """A host whose agent sends no id."""

    agent_id: str  # derived
    hostname: str
    intranet_ipv4: list[str]
    intranet_ipv6: list[str]
    peer: str
    count: int
    first_at: int
    last_at: int


class UnidentifiedView(msgspec.Struct):
    """A host whose agent sends no id, and the AgentCenter that tells of it."""

    connected: bool
    host: UnidentifiedHost
    gateway: str = ""


class Disputes(msgspec.Struct):
    """Disputed ids, and hosts without one, the latest first.

    ``across`` are streams that lost an id to another AgentCenter's, as this Manager judged; the
    rest is what AgentCenters tell of their own streams.
    """

    across: list[AcrossConflict]
    conflicts: list[ConflictView]
    replaced: list[ReplacementView]
    unidentified: list[UnidentifiedView]
    silent: list[Silent]
