"""``/api/v1/cluster``: the instances of the server, their load, ledger and disputes.

Source: docs/protocol.md, "Manager API", "Cluster".
"""

from typing import Annotated, Literal

import msgspec

from elkeid.manager.cluster import Cluster
from elkeid.manager.cluster_views import (
    Disputes,
    Distribution,
    DrainState,
    Instances,
    LedgerView,
    ResetDone,
)
from elkeid.manager.documents import AGENT_ID_CHARACTERS
from elkeid.manager.roles import CLUSTER_READERS, CLUSTER_WRITERS
from elkeid.web.refusals import ParameterInvalid
from elkeid.web.routes import AuthKind, Call, MiB, Routes

DRAIN_SECONDS = 60.0
"""A fleet that leaves in a minute does not storm its next gateway."""

RESET_LIMIT = 10_000
"""Agents reset by one call: as many as an AgentCenter takes by default."""

RESET_BYTES = 2 * MiB
"""Body of a reset: these ids at their full length."""

Address = Annotated[str, msgspec.Meta(min_length=3, max_length=300)]


class DrainBody(msgspec.Struct):
    """Which AgentCenter to drain, and how; ``deadline`` is in seconds."""

    address: Address
    deadline: Annotated[float, msgspec.Meta(ge=1, le=3600)] = DRAIN_SECONDS
    then: Literal["stay", "exit"] = "stay"
    force: bool = False  # also if no other AgentCenter has room


class UndrainBody(msgspec.Struct):
    """Which AgentCenter shall take agents again."""

    address: Address


class ResetBody(msgspec.Struct):
    """Which agents of an AgentCenter shall connect anew: some, or those named."""

    address: Address
    count: Annotated[int, msgspec.Meta(ge=1, le=RESET_LIMIT)] | None = None
    id_list: (
        Annotated[
            list[Annotated[str, msgspec.Meta(max_length=AGENT_ID_CHARACTERS)]],
            msgspec.Meta(min_length=1, max_length=RESET_LIMIT),
        ]
        | None
    ) = None


class ClusterRoutes:
    """What operators see of the server's instances, and may tell them.

    Args:
        cluster: knows them.
    """

    routes = Routes("/api/v1/cluster", auth=AuthKind.TOKEN)

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @routes.get(
        "/instances",
        levels=CLUSTER_READERS,
        answer=Instances,
        summary="List AgentCenters, members of ServiceDiscovery and Managers",
    )
    async def instances(self, call: Call) -> object:
        """With load, version, drain, clock, and what is wrong; no older than a second or two."""
        return await self._cluster.instances()

    @routes.get(
        "/distribution",
        levels=CLUSTER_READERS,
        answer=Distribution,
        summary="Show where agents are connected",
    )
    async def distribution(self, call: Call) -> object:
        """The fullest AgentCenter first; who did not answer is named."""
        return await self._cluster.distribution()

    @routes.get(
        "/ledger",
        levels=CLUSTER_READERS,
        answer=LedgerView,
        summary="Sum up what became of records at all AgentCenters",
    )
    async def ledger(self, call: Call) -> object:
        """Per class and reader; AgentCenters that are missing in the sum are named."""
        return await self._cluster.ledger()

    @routes.get(
        "/conflicts",
        levels=CLUSTER_READERS,
        answer=Disputes,
        summary="List disputes about agents' ids, and hosts without one",
    )
    async def conflicts(self, call: Call) -> object:
        """The latest first."""
        return await self._cluster.disputes()

    @routes.post(
        "/drain",
        body=DrainBody,
        levels=CLUSTER_WRITERS,
        answer=DrainState,
        summary="Send all agents of an AgentCenter elsewhere",
    )
    async def drain(self, call: Call[None, DrainBody]) -> object:
        """Answers when it has begun."""
        asked = call.body
        return await self._cluster.drain(asked.address, asked.deadline, asked.then, asked.force)

    @routes.post(
        "/undrain",
        body=UndrainBody,
        levels=CLUSTER_WRITERS,
        answer=DrainState,
        summary="Let an AgentCenter take agents again",
    )
    async def undrain(self, call: Call[None, UndrainBody]) -> object:
        """At once, also in the middle of a drain."""
        return await self._cluster.undrain(call.body.address)

    @routes.post(
        "/reset",
        body=ResetBody,
        limit=RESET_BYTES,
        levels=CLUSTER_WRITERS,
        answer=ResetDone,
        summary="End streams of an AgentCenter, so that these agents connect anew",
    )
    async def reset(self, call: Call[None, ResetBody]) -> object:
        """Nothing they sent is lost; they are back, there or elsewhere, after some 5 s."""
        asked = call.body
        if (asked.count is None) == (asked.id_list is None):
            raise ParameterInvalid("count: either count or id_list is needed")
        return await self._cluster.reset(asked.address, asked.count, asked.id_list)
