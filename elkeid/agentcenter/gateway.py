"""What all connections of a gateway share: who is here, what is counted, what comes next."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from elkeid.agentcenter.arrivals import ArrivalBook
from elkeid.agentcenter.counters import Counters
from elkeid.agentcenter.farewell import Farewell
from elkeid.agentcenter.heartbeats import (
    AGENT_BYTES,
    FIELD_LIMIT,
    NAME_BYTES,
    PLUGIN_LIMIT,
)
from elkeid.agentcenter.intake import Intake
from elkeid.agentcenter.link import AgentLink, Call
from elkeid.agentcenter.memory import MemoryBudget
from elkeid.agentcenter.per_agent import PerAgentMetrics
from elkeid.agentcenter.rates import FlowBudget
from elkeid.agentcenter.slices import Slices
from elkeid.agentcenter.table import Agent, AgentTable
from elkeid.agentcenter.tags import TagBook
from elkeid.agentcenter.tokens import TokenBook
from elkeid.agentcenter.transfer import TransferStream
from elkeid.agentcenter.unpacking import INLINE_BYTES, InThread, Unpacker
from elkeid.config import AgentCenterSettings
from elkeid.errors import WireError
from elkeid.eventlog.log import EventLog
from elkeid.log_limit import LimitedLog
from elkeid.wire import item
from elkeid.wire.datatypes import AGENT_HEARTBEAT
from elkeid.wire.grpc import CallStarted, ConnectionLimits, GrpcServerConnection, Status
from elkeid.wire.rawdata import Header

TRANSFER_PATH = "/grpc.Transfer/Transfer"

CallMaker = Callable[[AgentLink, CallStarted], Call]
"""Makes the server's side of one gRPC call."""


class Follower(Protocol):
    """A part of the gateway that follows agents: each call is made in the reactor's thread.

    Calls are rare (a few a minute for each agent) and must return at once.
    """

    def joined(self, agent: Agent) -> None:
        """A stream became the agent of its id; ``agent.stream`` is that stream.

        When one stream replaces another, the newcomer joins before the old one has ended, and
        no `left` is told of the old one.
        """

    def heartbeat(self, agent: Agent, data_type: int, fields: Mapping[bytes, bytes]) -> None:
        """A heartbeat (1000 or 1001) of the agent was applied; ``fields`` are its texts."""

    def results(self, agent: Agent, results: Sequence[tuple[int, bytes]]) -> None:
        """Task results came, in order: data type and body (an Item) of each."""

    def left(self, agent: Agent) -> None:
        """The agent's stream is over, and nobody holds its id any more, or an heir joins next."""


class Gateway:
    """What the connections of one AgentCenter process share.

    Args:
        settings: limits and rules.
        event_log: where records go; open.
        clock: for deadlines and rates.
        wall: the time in unix seconds, for what others read; None for the system's.
        monotonic: seconds that only go forward, for rates.
        in_thread: see `Unpacker`.
    """

    log = Logger()

    def __init__(
        self,
        settings: AgentCenterSettings,
        event_log: EventLog,
        clock: IReactorTime,
        wall: Callable[[], int] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        in_thread: InThread = execute,
    ) -> None:
        self.settings = settings
        self.event_log = event_log
        self.clock = clock
        self.wall = _wall_clock() if wall is None else wall
        self.monotonic = monotonic
        self.table = AgentTable(settings.takeover_seconds)
        self.counters = Counters()
        self.tokens = TokenBook(monotonic)
        self.tags: TagBook | None = None  # None: nobody knows any
        self.intake = Intake(settings, event_log, monotonic, self.wall, self.counters)
        self.per_agent: PerAgentMetrics | None = None
        self.flow_floor = FlowBudget.floor(settings)
        self.unpacker = Unpacker(in_thread)
        self.inline_bytes = min(INLINE_BYTES, settings.decompressed_bytes)
        # One message at a time is decompressed: its room is kept free for good.
        self.memory = MemoryBudget(
            settings.memory_bytes - settings.decompressed_bytes, clock, self._held_elsewhere
        )
        self.slices = Slices(clock, monotonic)
        # Told of task results that are given up because there is no memory to let them wait.
        self.results_refused: Callable[[int], None] = lambda count: None
        self.held_elsewhere: list[Callable[[], int]] = []  # bytes in other parts' queues
        self._limits = ConnectionLimits(message_bytes=settings.message_bytes)
        self._services: dict[str, CallMaker] = {TRANSFER_PATH: self._transfer}
        self.arrivals = ArrivalBook(monotonic)
        self._followers: list[Follower] = [self.arrivals]
        self.links: set[AgentLink] = set()
        self.turns_away: Callable[[], bool] = lambda: False  # full, and others have room
        self.streams = 0  # Transfer calls that hold a place under connection_limit
        self.draining: int | None = None  # the status that new calls are refused with
        self.closed = False  # the agents' port is: who has not shaken hands yet goes elsewhere
        self.farewell: Farewell | None = None
        self.complaints = LimitedLog(self.log, monotonic)  # about peers

    def _held_elsewhere(self) -> int:
        return sum(held() for held in self.held_elsewhere)

    def serve(self, path: str, make: CallMaker) -> None:
        """Answer calls of another gRPC method; before the port opens."""
        self._services[path] = make

    def know_tags(self, tags: TagBook) -> None:
        """Write the tags of ``tags`` into records; before the port opens."""
        self.tags = tags
        self.follow(tags)

    def follow(self, follower: Follower) -> None:
        """Tell ``follower`` of agents that come, speak and go; before the port opens."""
        self._followers.append(follower)

    def link(self, peer: tuple[str, int], shaken: Callable[[], None] = lambda: None) -> AgentLink:
        """Make the protocol for one new connection.

        Args:
            peer: the agent's address and port.
            shaken: called once, when the TLS handshake is over, well or not.
        """
        grpc = GrpcServerConnection(self._limits, self._services)
        return AgentLink(
            grpc,
            self,
            self.clock,
            self.monotonic,
            self.settings,
            peer=peer,
            shaken=shaken,
            memory=self.memory,
            slices=self.slices,
        )

    # --- what connections tell

    def connected(self, link: AgentLink) -> None:
        """A TLS handshake is done."""
        self.counters.handshakes += 1
        self.links.add(link)
        if self.closed:
            link.abort()  # it has not heard a word of HTTP/2: it tries its next address at once

    def refused_message(self, reason: str) -> None:
        """A half-sent message ended its call."""
        self.counters.refused_messages[reason] += 1

    def lost(self, link: AgentLink, spoke: bool) -> None:
        """A connection is gone."""
        self.links.discard(link)
        if not spoke:
            self.counters.failed_handshakes += 1
        if self.farewell is not None:
            self.farewell.gone(link)

    def take_leave(self, seconds: float) -> Deferred[None]:
        """Say goodbye to every connection of this moment, and read each to its end.

        Args:
            seconds: over which goodbyes are spread.

        Returns:
            What fires when all these are gone.
        """
        self.farewell = Farewell(self.links, self.clock, seconds)
        return self.farewell.over

    def abort(self) -> None:
        """Reset every connection that is left."""
        for link in list(self.links):
            link.abort()

    def started(self, link: AgentLink, event: CallStarted) -> Call:
        """A peer opened a call."""
        return self._services[event.path](link, event)

    def _transfer(self, link: AgentLink, event: CallStarted) -> Call:
        stream = TransferStream(self, link, event.stream_id, event.encoding)
        if self.draining is not None:
            self.counters.refused["stopping"] += 1
            stream.end(self.draining, "this AgentCenter is stopping")
        elif self.streams >= self.settings.connection_limit:
            self.counters.refused["limit"] += 1
            stream.end(Status.UNKNOWN, "out of max connection limit")
            if self.turns_away():  # else it comes back on this connection, again and again
                self.clock.callLater(0, link.go_away)
        else:
            self.streams += 1
            stream.admitted = True
        return stream

    def released(self, stream: TransferStream) -> None:
        """A Transfer call is over; its place and its id are free."""
        if stream.admitted:
            self.streams -= 1
        if not stream.agent_id:
            return
        agent = self.table.holds(stream.agent_id, stream)
        heir = self.table.release(stream.agent_id, stream, self.wall())
        if agent is not None:
            for follower in self._followers:
                follower.left(agent)
        if isinstance(heir, TransferStream):
            heir.granted()

    # --- what agents say of themselves

    def joined(self, stream: TransferStream) -> None:
        """A stream became the holder of its id."""
        agent = self.table.holds(stream.agent_id, stream)
        if agent is not None:
            for follower in self._followers:
                follower.joined(agent)

    def results(self, stream: TransferStream, results: list[tuple[int, bytes]]) -> None:
        """Hand on task results, (data type, body) each, of the stream that holds its id.

        Those of a stream without a place here count as well, unless another has its id: the
        agent will not send them again.
        """
        agent = self.table.holds(stream.agent_id, stream)
        if agent is None and stream.turned_away and self.table.get(stream.agent_id) is None:
            agent = Agent(stream.agent_id, stream, self.wall())
        if agent is not None:
            for follower in self._followers:
                follower.results(agent, results)

    def apply(self, stream: TransferStream, header: Header, data_type: int, body: bytes) -> None:
        """Note a heartbeat of the stream that holds its id."""
        agent = self.table.holds(stream.agent_id, stream)
        if agent is None:
            return
        try:
            texts = item.decode(body, FIELD_LIMIT)
        except WireError as error:
            self.bad_heartbeat(stream, str(error))
            return
        name = texts.get(b"name", b"")
        replaced = agent.heartbeat
        if data_type != AGENT_HEARTBEAT:
            replaced = agent.plugins.get(name, (b"", 0))[0]
        if agent.heartbeat_bytes() - len(replaced or b"") + len(body) > AGENT_BYTES:
            self.bad_heartbeat(stream, f"more than {AGENT_BYTES} bytes with the others")
            return
        if data_type == AGENT_HEARTBEAT:
            agent.header, agent.heartbeat, agent.heartbeat_at = header, body, self.wall()
        else:
            if not 0 < len(name) <= NAME_BYTES:
                self.bad_heartbeat(stream, "a plugin's, without a name of a fit length")
                return
            if name not in agent.plugins and len(agent.plugins) >= PLUGIN_LIMIT:
                self.bad_heartbeat(stream, f"of more than {PLUGIN_LIMIT} plugins")
                return
            agent.plugins[_shared(name)] = (body, self.wall())
        self.table.touch(agent)
        for follower in self._followers:
            follower.heartbeat(agent, data_type, texts)

    def news(self, stream: TransferStream) -> None:
        """What is shown of a stream's agent changed without a heartbeat."""
        agent = self.table.holds(stream.agent_id, stream)
        if agent is not None and agent.heartbeat is not None:
            self.table.touch(agent)

    def bad_heartbeat(self, stream: TransferStream, reason: str) -> None:
        """Count a heartbeat that is kept as a record, but not applied; say so once a stream."""
        self.counters.bad_heartbeats += 1
        if not stream.complained:
            stream.complained = True
            self.complaints.info(
                "{peer} ({agent}): heartbeat not applied: {reason}",
                peer=stream.peer_addr,
                agent=stream.agent_id,
                reason=reason,
            )


def _wall_clock() -> Callable[[], int]:
    """Unix seconds, as one object a second: many of them are kept for each agent."""
    second = 0

    def wall() -> int:
        nonlocal second
        now = int(time.time())
        if now != second:
            second = now
        return second

    return wall


@lru_cache(maxsize=256)
def _shared(name: bytes) -> bytes:
    """The first of all equal names of plugins: agents run the same ones, so they share memory."""
    return name
