"""One agent id, one stream, across the gateway processes of one host.

An agent that lost its connection dials the shared port again, and the kernel may give it to
another process than before. Within one process a newcomer from the holder's own address replaces
the old stream at once; here each process tells the others who joined, so that they do the same.
A claim from another address is left to the Manager, which sees what all gateways report.

Source: docs/protocol.md, "Workers".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.table import Agent
from elkeid.agentcenter.transfer import TransferStream
from elkeid.web.client import CallFailed, JsonClient, Reply
from elkeid.web.routes import AuthKind, Call, MiB, Routes
from elkeid.wire.grpc import Status

GATHER_SECONDS: Final = 0.1
"""Who joined within this time is told in one call: after a restart it is a whole fleet."""

BATCH: Final = 1000  # agents in one call, at most
BATCH_LIMIT: Final = 2 * MiB  # bytes of a call's body
CALL_SECONDS: Final = 2.0


class Joined(msgspec.Struct, array_like=True):
    """A stream that became the agent of its id at another process of this host.

    ``at`` is in seconds of the host's monotonic clock, which all its processes share.
    """

    agent_id: str
    peer_host: str
    peer_addr: str
    at: float


class JoinedBody(msgspec.Struct):
    """Body of ``POST /worker/joined``."""

    agents: list[Joined]


class Siblings:
    """Tells the other processes who joined here, and ends what joined there later.

    Args:
        gateway: of this process; must be followed by this.
        http: makes signed calls.
        places: ``host:port`` of the others' APIs.
        clock: for gathering.
        monotonic: seconds of the host's monotonic clock.
    """

    routes = Routes("/worker", auth=AuthKind.SIGNED)
    log = Logger()

    def __init__(
        self,
        gateway: Gateway,
        http: JsonClient,
        places: Sequence[str],
        clock: IReactorTime,
        monotonic: Callable[[], float],
    ) -> None:
        self._gateway, self._http, self._places = gateway, http, places
        self._clock, self._monotonic = clock, monotonic
        self._since: dict[str, float] = {}  # agent id -> when its present stream joined
        self._news: dict[str, Joined] = {}
        self._timer: IDelayedCall | None = None
        self._telling: Deferred[None] | None = None

    # --- what the gateway tells

    def joined(self, agent: Agent) -> None:
        """See `Follower`."""
        now = self._monotonic()
        self._since[agent.agent_id] = now
        stream = agent.stream
        self._news[agent.agent_id] = Joined(agent.agent_id, stream.peer_host, stream.peer_addr, now)
        if self._timer is None and self._telling is None:
            self._timer = self._clock.callLater(GATHER_SECONDS, self._tell)

    def left(self, agent: Agent) -> None:
        """See `Follower`."""
        self._since.pop(agent.agent_id, None)
        self._news.pop(agent.agent_id, None)

    def heartbeat(self, agent: Agent, data_type: int, fields: Mapping[bytes, bytes]) -> None:
        """See `Follower`."""

    def results(self, agent: Agent, results: Sequence[tuple[int, bytes]]) -> None:
        """See `Follower`."""

    # --- telling the others

    def _tell(self) -> None:
        self._timer = None
        self._telling = Deferred.fromCoroutine(self._tell_all())

    async def _tell_all(self) -> None:
        try:
            while self._news:
                ids = list(self._news)[:BATCH]
                batch = [self._news.pop(agent_id) for agent_id in ids]
                # Where a call fails the process is gone, and with it the streams that it held.
                await self.ask("/worker/joined", {"agents": batch})
        except CancelledError:
            return
        except Exception:
            self.log.failure("cannot tell the other workers who joined")
        self._telling = None

    async def ask(self, path: str, body: object) -> list[Reply | CallFailed]:
        """Make the same POST to each of the others, at once; how each call went."""

        async def post(place: str) -> Reply | CallFailed:
            try:
                return await self._http.post(f"https://{place}{path}", body, seconds=CALL_SECONDS)
            except CallFailed as error:
                return error

        asked = [Deferred.fromCoroutine(post(place)) for place in self._places]
        return [await answer for answer in asked]

    async def stop(self) -> None:
        """Tell nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        await self._http.close()

    # --- being told

    @routes.post(
        "/joined",
        body=JoinedBody,
        limit=BATCH_LIMIT,
        answer=int,
        summary="Agents that joined another gateway process of this host",
    )
    async def told(self, call: Call[None, JoinedBody]) -> int:
        """How many streams here were replaced so."""
        replaced, table = 0, self._gateway.table
        for news in call.body.agents:
            agent = table.get(news.agent_id)
            if agent is None or agent.stream.peer_host != news.peer_host:
                continue
            if self._since.get(news.agent_id, 0.0) >= news.at:
                continue  # it has come here since
            assert isinstance(agent.stream, TransferStream)
            agent.stream.end(Status.ABORTED, "another stream of this agent, at another worker")
            table.claims.took_over(news.agent_id, news, self._gateway.wall())
            replaced += 1
        table.replaced += replaced
        return replaced
