"""Which stream holds which agent id, and what each agent last said of itself.

All agents share one client certificate, so an id proves nothing; the rules below keep a live
agent where it is. A newcomer from the holder's own address replaces it at once: an agent that
lost its connection comes back before we notice. A newcomer from elsewhere waits while the
holder is asked for a sign of life, and wins only if none comes.

The table is ordered by change: what changed last stands last, so that a reader that knows a
cursor costs only what changed since.
"""

import re
from collections import deque
from collections.abc import Iterator
from enum import Enum, auto
from secrets import token_hex
from typing import Any, Protocol

from attrs import frozen

from elkeid.agentcenter.arrivals import Arrivals
from elkeid.agentcenter.claims import Claims
from elkeid.agentcenter.configs import ConfigState
from elkeid.agentcenter.heartbeats import agent_info
from elkeid.wire.rawdata import Header

GONE_LIMIT = 100_000
"""Departures remembered for readers with a cursor; an older cursor gets everything."""

_CURSOR = re.compile(r"([0-9a-f]+)-([0-9]{1,20})-([0-9]{1,20})\Z")


class Holder(Protocol):
    """A stream, as far as the table needs to know it."""

    peer_host: str
    peer_addr: str
    tags: bytes  # of the agent, joined by commas
    arrivals: Arrivals  # what came of the agent


class Claim(Enum):
    """What became of a stream's claim to an id."""

    HELD = auto()  # nobody else had it, or the holder came from the same address
    PROBE = auto()  # another address holds it: ask the holder for a sign of life
    REFUSED = auto()  # another newcomer is already waiting for that answer


class Agent:
    """One connected agent; heartbeats stay encoded until somebody asks for them."""

    __slots__ = (
        "agent_id",
        "change",
        "config",
        "created_at",
        "hands_changed_at",
        "header",
        "heartbeat",
        "heartbeat_at",
        "plugins",
        "stream",
    )

    def __init__(self, agent_id: str, stream: Holder, created_at: int) -> None:
        self.agent_id = agent_id
        self.stream = stream
        self.created_at = created_at  # unix seconds
        self.hands_changed_at: float | None = None  # seconds of the gateway's clock
        self.header: Header | None = None  # of the batch with the last 1000 record
        self.heartbeat: bytes | None = None  # its body
        self.heartbeat_at = 0  # unix seconds
        self.plugins: dict[bytes, tuple[bytes, int]] = {}  # name -> 1001 body, unix seconds
        self.change = 0
        self.config: ConfigState | None = None  # from the first heartbeat on

    def heartbeat_bytes(self) -> int:
        """Bytes of the heartbeats that are kept."""
        own = 0 if self.heartbeat is None else len(self.heartbeat)
        return own + sum(len(body) for body, _ in self.plugins.values())

    def info(self) -> dict[str, Any]:
        """The detail of its last heartbeat; empty before the first."""
        if self.heartbeat is None or self.header is None:
            return {}
        return agent_info(
            self.heartbeat,
            self.header,
            agent_id=self.agent_id,
            agent_addr=self.stream.peer_addr,
            create_at=self.created_at,
            last_heartbeat_time=self.heartbeat_at,
        )


@frozen
class Changes:
    """What a reader of the table gets.

    ``complete`` tells that ``agents`` is the whole table, so that ids missing from it are gone.
    ``changes`` has the number of each one's last change, ``cursor`` is for who reads them all.
    """

    agents: list[Agent]
    changes: list[int]
    gone: list[str]
    cursor: str
    complete: bool

    def cursor_after(self, count: int) -> str:
        """The cursor for who reads only the first ``count`` of ``agents``, at least one."""
        run, _, departures = self.cursor.split("-")
        return f"{run}-{self.changes[count - 1]}-{departures}"


class AgentTable:
    """Agents by id; no I/O, no clock.

    Args:
        takeover_seconds: an id that changed hands does so again only after this time, unless
            its holder is gone.
    """

    def __init__(self, takeover_seconds: float) -> None:
        self._takeover_seconds = takeover_seconds
        self._agents: dict[str, Agent] = {}
        self._claimants: dict[str, Holder] = {}
        self._probed: dict[str, Holder] = {}
        self._run = token_hex(8)  # cursors of an earlier process are not ours
        self._change = 0
        self._gone: deque[tuple[int, str]] = deque(maxlen=GONE_LIMIT)
        self._forgotten = 0  # departures up to this change are no longer remembered
        self.replaced = 0
        self.hands_changed = 0
        self.conflicts = 0  # claims that lost
        self.claims = Claims()

    def __len__(self) -> int:
        return len(self._agents)

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())

    def get(self, agent_id: str) -> Agent | None:
        """The agent that holds this id, if any."""
        return self._agents.get(agent_id)

    def holds(self, agent_id: str, stream: Holder) -> Agent | None:
        """The agent of this id if ``stream`` is its holder."""
        agent = self._agents.get(agent_id)
        return agent if agent is not None and agent.stream is stream else None

    def touch(self, agent: Agent) -> None:
        """Note that something about ``agent`` changed: it moves to the end of the table."""
        self._change += 1
        agent.change = self._change
        self._agents.pop(agent.agent_id, None)
        self._agents[agent.agent_id] = agent

    def _seat(self, agent_id: str, stream: Holder, wall: int) -> Agent:
        agent = Agent(agent_id, stream, wall)
        self.touch(agent)
        return agent

    def _lost(self, agent_id: str, loser: Holder, holder: Holder, outcome: str, wall: int) -> None:
        self.conflicts += 1
        self.claims.lost(agent_id, loser, holder, outcome, wall)

    def claim(self, agent_id: str, stream: Holder, wall: int) -> tuple[Claim, Holder | None]:
        """A new stream says that it is ``agent_id``.

        Args:
            agent_id: the id of its first message.
            stream: the newcomer.
            wall: now, unix seconds.

        Returns:
            The verdict, and for ``HELD`` the stream it replaced, for ``PROBE`` the one to ask.
        """
        agent = self._agents.get(agent_id)
        if agent is None:
            self._seat(agent_id, stream, wall)
            return Claim.HELD, None
        old = agent.stream
        if old.peer_host == stream.peer_host:
            self.replaced += 1
            self.claims.took_over(agent_id, stream, wall)
            self._seat(agent_id, stream, wall).hands_changed_at = agent.hands_changed_at
            return Claim.HELD, old
        if agent_id in self._claimants:
            self._lost(agent_id, stream, old, "refused", wall)
            return Claim.REFUSED, None
        self._claimants[agent_id] = stream
        self._probed[agent_id] = old
        return Claim.PROBE, old

    def settle(
        self, agent_id: str, claimant: Holder, answered: bool, now: float, wall: int
    ) -> tuple[bool, Holder | None]:
        """The probe of a holder is over.

        Args:
            agent_id: the id in question.
            claimant: the stream that waits; nothing happens if it no longer does.
            answered: whether the holder gave a sign of life.
            now: seconds of the gateway's clock.
            wall: the same moment in unix seconds.

        Returns:
            Whether ``claimant`` holds the id now, and the stream it took it from.
        """
        if self._claimants.get(agent_id) is not claimant:
            return False, None
        del self._claimants[agent_id]
        probed = self._probed.pop(agent_id)
        agent = self._agents.get(agent_id)
        if agent is None:
            self._seat(agent_id, claimant, wall)
            return True, None
        changed = agent.hands_changed_at
        too_soon = changed is not None and now - changed < self._takeover_seconds
        if answered or too_soon or agent.stream is not probed:
            self._lost(agent_id, claimant, agent.stream, "refused", wall)
            return False, None
        self.hands_changed += 1
        self.claims.lost(agent_id, probed, claimant, "displaced", wall)
        self._seat(agent_id, claimant, wall).hands_changed_at = now
        return True, probed

    def release(self, agent_id: str, stream: Holder, wall: int) -> Holder | None:
        """A stream is over; return the newcomer that thereby holds its id, if one waited."""
        if self._claimants.get(agent_id) is stream:
            del self._claimants[agent_id]
            self._lost(agent_id, stream, self._probed.pop(agent_id), "left", wall)
            return None
        agent = self._agents.get(agent_id)
        if agent is None or agent.stream is not stream:
            return None
        del self._agents[agent_id]
        heir = self._claimants.pop(agent_id, None)
        if heir is not None:
            del self._probed[agent_id]
            self._seat(agent_id, heir, wall)
            return heir
        self._change += 1
        if len(self._gone) == GONE_LIMIT:
            self._forgotten = self._gone[0][0]
        self._gone.append((self._change, agent_id))
        return None

    def changes(self, cursor: str | None) -> Changes:
        """What changed since ``cursor``; everything for a cursor that is not of this process.

        A cursor has two places in the sequence of changes: up to where agents are known, and
        up to where departures are.
        """
        now = f"{self._run}-{self._change}-{self._change}"
        since = self._since(cursor)
        if since is None:
            everybody = list(self._agents.values())
            changes = [agent.change for agent in everybody]
            return Changes(everybody, changes, [], now, complete=True)
        known, departures = since
        agents = []
        for agent in reversed(self._agents.values()):
            if agent.change <= known:
                break
            agents.append(agent)
        agents.reverse()
        gone = []
        for change, agent_id in reversed(self._gone):
            if change <= departures:
                break
            if agent_id not in self._agents:
                gone.append(agent_id)
        return Changes(
            agents,
            [agent.change for agent in agents],
            list(dict.fromkeys(reversed(gone))),
            now,
            complete=False,
        )

    def _since(self, cursor: str | None) -> tuple[int, int] | None:
        match = _CURSOR.match(cursor or "")
        if match is None or match[1] != self._run:
            return None
        known, departures = int(match[2]), int(match[3])
        if known <= departures <= self._change and self._forgotten <= departures:
            return known, departures
        return None
