"""What AgentCenters ask the Manager for, and bring to it.

Source: docs/protocol.md, "Manager API", "For AgentCenters".
"""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from twisted.logger import Logger

from elkeid.manager.codes import UNKNOWN_ERROR
from elkeid.manager.drops import DropGuard
from elkeid.manager.inner_check import signed_only
from elkeid.manager.refusals import RefusedResults
from elkeid.manager.result_intake import ResultIntake
from elkeid.manager.store.configs import config_and_plugins
from elkeid.manager.store.results import TOKEN_LIMIT, Outcome, is_issued
from elkeid.manager.store.store import Store
from elkeid.manager.store.tags import tags_of
from elkeid.metrics import ManagerMetrics
from elkeid.web.answers import Enveloped
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, MiB, Routes

AGENT_NAME = "elkeid-agent"
"""In a config this entry is the agent itself, which is no plugin."""

IDS_BYTES = 8 * MiB
"""Body of a query for tags: 200,000 ids, more than one AgentCenter holds."""

RESULTS_BYTES = 16 * MiB
"""Body of a batch of results: a hundred large scans."""

RESULTS_PER_BATCH = 10_000
"""Results of one call, which are one transaction; AgentCenters send a hundred."""


class IdList(msgspec.Struct):
    """Whom a query is about."""

    id_list: list[str]


class AgentTags(msgspec.Struct):
    """What a gateway writes into every record of an agent; only ``tags`` is ever filled."""

    tags: str  # joined by commas
    psm_name: str = ""
    psm_path: str = ""
    enhanced: str = "false"


class TokenQuery(msgspec.Struct):
    """A task token that an agent brought."""

    token: str


class TokenKnown(msgspec.Struct):
    """Whether a token is of this Manager."""

    known: bool


class BesideResults(msgspec.Struct, omit_defaults=True):
    """Beside ``data`` of a batch of results."""

    refused: dict[str, int] = {}  # reason -> how many; absent if there are none


class BesideConfig(msgspec.Struct, omit_defaults=True):
    """Beside ``data`` of a config."""

    allow_empty: bool = False  # true if the list is empty because an operator wants it so


class HostDetail(msgspec.Struct):
    """What is read of a host's heartbeat when its config is asked for.

    The texts must be texts: a gateway that makes the number 5.1 of the kernel "5.10" is refused
    here, since no component could be chosen by it.
    """

    agent_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    kernel_version: str = ""
    platform_family: str = ""
    arch: str = ""


class InnerRoutes:
    """Routes for AgentCenters.

    Args:
        store: open.
        metrics: counts.
        drops: holds configs that disarm many hosts.
        wall: seconds since the epoch.
        monotonic: seconds that only go forward.
    """

    routes = Routes("/api", auth=AuthKind.SIGNED)
    log = Logger()

    def __init__(
        self,
        store: Store,
        metrics: ManagerMetrics,
        drops: DropGuard,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store, self._metrics, self._drops = store, metrics, drops
        self._results = ResultIntake(store, wall)
        self._refused = RefusedResults(self.log, monotonic)

    @routes.post(
        "/v1/agent/queryInfo",
        body=IdList,
        limit=IDS_BYTES,
        answer=dict[str, AgentTags],
        summary="Tell the tags of agents",
    )
    async def query_info(self, call: Call[None, IdList]) -> object:
        """Agents never reported are left out."""
        found = await self._store.read(tags_of, call.body.id_list)
        return {agent_id: AgentTags(",".join(tags)) for agent_id, tags in found.items()}

    @routes.post(
        "/v1/agent/updateSubTask",
        body=Annotated[list[Any], msgspec.Meta(max_length=RESULTS_PER_BATCH)],
        limit=RESULTS_BYTES,
        answer=None,
        beside=BesideResults,
        summary="Take results of tasks",
    )
    async def update_sub_task(self, call: Call[None, list[Any]]) -> object:
        """Code 0: what has a token of ours is on the disk; ``refused`` counts the others."""
        done = await self._results.bring(call.body, len(call.raw_body))
        self._count(done)
        refused = {
            reason: count
            for reason in ("unknown_token", "without_token", "surplus", "malformed")
            if (count := getattr(done, reason))
        }
        if refused:
            self._refused.count(call.peer, refused)
        return Enveloped(None, {"refused": refused} if refused else {})

    def _count(self, done: Outcome) -> None:
        for outcome in (
            "stored",
            "repeated",
            "unknown_token",
            "without_token",
            "surplus",
            "malformed",
        ):
            self._metrics.results.labels(outcome).inc(getattr(done, outcome))

    @routes.post(
        "/v1/inner/token",
        body=TokenQuery,
        answer=TokenKnown,
        summary="Tell whether a task token is of this Manager",
    )
    async def token(self, call: Call[None, TokenQuery]) -> object:
        """Signed calls only."""
        signed_only(call)
        token = call.body.token
        known = len(token) <= TOKEN_LIMIT and await self._store.read(is_issued, token)
        return TokenKnown(known)

    @routes.post(
        "/v6/component/GetComponentInstances",
        body=HostDetail,
        answer=list[dict[str, Any]],
        beside=BesideConfig,
        summary="Tell what a host shall run",
    )
    async def component_instances(self, call: Call[None, HostDetail]) -> object:
        """The whole list; code 10, which makes a gateway change nothing, where there is none."""
        host = call.body
        config, reported = await self._store.read(config_and_plugins, host.agent_id)
        if config is None:
            self._metrics.configs.labels("none_stored").inc()
            raise CodedRefusal(
                UNKNOWN_ERROR, "no config is stored for this host: it keeps what it has"
            )
        listed = {str(item["name"]) for item in config.items} - {AGENT_NAME}
        allowed = config.drops_confirmed or self._drops.allows(host.agent_id, reported, listed)
        if not allowed:
            self._metrics.configs.labels("held").inc()
            raise CodedRefusal(
                UNKNOWN_ERROR,
                "held: this config takes more than half of their plugins from too many hosts; "
                "store it again with confirm_drops",
            )
        self._metrics.configs.labels("told" if listed else "told_empty").inc()
        if not config.items:
            return Enveloped([], {"allow_empty": True})
        return config.items

    @routes.get(
        "/v6/kube/inner/cluster/list",
        answer=list[str],
        summary="List the Kubernetes clusters whose audit logs are taken",
    )
    async def clusters(self, call: Call) -> object:
        """None yet."""
        return []
