"""Agents' tags: asked of the Manager, remembered, and written into every record.

Source: docs/protocol.md, "Tags".
"""

import random
import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from elkeid.agentcenter.manager_client import ManagerClient, ManagerRefused
from elkeid.agentcenter.slices import Slices
from elkeid.agentcenter.table import Agent
from elkeid.agentcenter.tag_store import TagStore
from elkeid.config import MiB
from elkeid.eventlog.log import InThread
from elkeid.metrics import TagFigures
from elkeid.web.client import CallFailed

QUERY_PATH: Final = "/api/v1/agent/queryInfo"

QUERY_IDS: Final = 500
"""Ids of one call: some 20 KB."""

QUERIES: Final = 2
"""Calls under way at once."""

CALL_SECONDS: Final = 5.0
"""For one call, over all members."""

LINGER_SECONDS: Final = 0.01
"""Agents that come within this time of the first are asked for together."""

REFRESH_SECONDS: Final = 240.0
REFRESH_SPREAD_SECONDS: Final = 30.0
"""Between two looks at all agents' tags: the first, and up to the second more, as upstream."""

FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 60.0
"""Pauses after failures double from the first to the last."""

SAVE_SECONDS: Final = 5.0
"""What changed is written to disk so often: one small transaction."""

KNOWN_LIMIT: Final = 100_000
"""Agents remembered, those that came last; ten times what one process serves."""

TAGS_BYTES: Final = 4096
"""Of one agent's tags, joined; they are part of every batch of records."""

HELD_BYTES: Final = 64 * MiB
"""Of batches that wait for their tags, over all streams; beyond, they do not wait."""

STOP_SECONDS: Final = 0.5
"""For what is being written at a stop."""


class Waiting(Protocol):
    """A stream whose first batches wait for the tags of its agent."""

    agent_id: str

    def tagged(self, tags: bytes) -> None:
        """Wait no longer; these are the tags as far as they are known."""


class TagBook:
    """Knows the tags of agents. A `Follower` of the gateway.

    Args:
        agents: those that are connected.
        clock: for pauses.
        in_thread: runs a function in a pool.
        manager: is asked.
        store: keeps what is known over restarts.
        wait_seconds: how long the first batch of an unknown agent waits at most.
        slices: where streams that may go on wait for their turn.
    """

    log = Logger()

    def __init__(
        self,
        agents: Iterable[Agent],
        *,
        clock: IReactorTime,
        in_thread: InThread,
        manager: ManagerClient,
        store: TagStore,
        wait_seconds: float,
        slices: Slices,
    ) -> None:
        self._agents, self._clock, self._in_thread = agents, clock, in_thread
        self._manager, self._store, self._wait_seconds = manager, store, wait_seconds
        self._slices = slices
        # Agent id -> tags, and the number of the query that told them; last seen last.
        self._known: OrderedDict[str, tuple[bytes, int]] = OrderedDict()
        self._holders: dict[str, Agent] = {}
        self._urgent: dict[str, None] = {}  # ids to ask for, in order
        self._wanted: dict[str, None] = {}  # and after these
        self._failed: dict[str, None] = {}  # to be asked for again after a pause
        self._query = 0  # number of the last query
        self._under_way: set[Deferred[None]] = set()
        self._waiting: dict[Waiting, IDelayedCall] = {}
        self._waiting_ids: dict[str, list[Waiting]] = {}
        self._pause = FIRST_RETRY_SECONDS
        self._changed: dict[str, bytes] = {}
        self._gone: dict[str, None] = {}
        self._saving: Deferred[None] | None = None
        self._timers: dict[str, IDelayedCall] = {}
        self._open = self._stored = False
        self._failing = False
        self.held_bytes = 0
        self._queries: Counter[str] = Counter()
        self._waits: Counter[str] = Counter()

    async def open(self) -> None:
        """Read what is known, and begin to ask; without a disk begin with nothing."""
        try:
            found: dict[str, bytes] = await self._in_thread(self._store.open)
        except (OSError, sqlite3.Error) as error:
            self.log.error("tags are not kept on disk: {error}", error=error)
            found = {}
        else:
            self._stored = True
        for agent_id, tags in found.items():
            self._known[agent_id] = (tags, 0)
        self._forget_oldest()
        self._open = True
        self._refresh()

    async def stop(self) -> None:
        """Let everybody go who waits, end the calls, write what is not on disk yet."""
        self._open = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for stream in list(self._waiting):
            self._release(stream, "late")
        for call in list(self._under_way):
            call.cancel()
        if not self._stored:
            return
        if self._saving is None:
            self._save()
        if self._saving is not None:
            self._saving.addTimeout(STOP_SECONDS, self._clock)
            self._saving.addErrback(lambda failure: failure.trap(Exception) and None)
            await self._saving
        await self._in_thread(self._store.close)

    # --- what streams ask

    def tags_of(self, agent_id: str) -> bytes | None:
        """The tags of an agent, joined by commas; None when nothing is known of it."""
        known = self._known.get(agent_id)
        return None if known is None else known[0]

    def wait(self, stream: Waiting) -> bool:
        """Ask for the tags of a stream's agent; whether `tagged` will be called."""
        if not self._open or not self._wait_seconds or self.held_bytes >= HELD_BYTES:
            if self._open and self._wait_seconds:
                self._waits["full"] += 1
            return False
        self._waiting[stream] = self._clock.callLater(
            self._wait_seconds, self._soon, stream, "late"
        )
        self._waiting_ids.setdefault(stream.agent_id, []).append(stream)
        self._ask(stream.agent_id, urgent=True)
        return True

    def hold(self, stream: Waiting, size: int) -> bool:
        """Count bytes that wait; False when there is no room, and ``stream`` waits no longer."""
        if stream not in self._waiting:
            return False
        if self.held_bytes + size > HELD_BYTES:
            self._release(stream, "full")
            return False
        self.held_bytes += size
        return True

    def let_go(self, stream: Waiting, size: int) -> None:
        """A stream's ``size`` bytes wait no longer, nor does it."""
        self.held_bytes -= size
        timer = self._waiting.pop(stream, None)
        if timer is None:
            return
        if timer.active():
            timer.cancel()
        same = self._waiting_ids[stream.agent_id]
        same.remove(stream)
        if not same:
            del self._waiting_ids[stream.agent_id]

    def _soon(self, stream: Waiting, outcome: str) -> None:
        """Let it go on; many may, at one answer, and what waits of each may be megabytes."""
        self._slices.add(partial(self._release, stream, outcome))

    def _release(self, stream: Waiting, outcome: str) -> None:
        if stream not in self._waiting:
            return  # it has gone on, or is over
        self._waits[outcome] += 1
        self.let_go(stream, 0)
        stream.tagged(self.tags_of(stream.agent_id) or b"")

    # --- what the gateway tells

    def joined(self, agent: Agent) -> None:
        """Ask for its tags; one that is known goes on with those."""
        agent_id = agent.agent_id
        self._holders[agent_id] = agent
        known = agent_id in self._known
        if known:
            self._known.move_to_end(agent_id)
        if self._open:
            self._ask(agent_id, urgent=not known)

    def left(self, agent: Agent) -> None:
        """Its tags stay known; nobody asks for them now."""
        agent_id = agent.agent_id
        if self._holders.get(agent_id) is agent:
            del self._holders[agent_id]
            for ids in (self._urgent, self._wanted, self._failed):
                ids.pop(agent_id, None)

    def heartbeat(self, agent: Agent, data_type: int, fields: Mapping[bytes, bytes]) -> None:
        """Nothing to do."""

    def results(self, agent: Agent, results: Sequence[tuple[int, bytes]]) -> None:
        """Nothing to do."""

    # --- asking

    def _refresh(self) -> None:
        """Ask for everybody who is connected, and again after a while."""
        for agent in self._agents:
            self._ask(agent.agent_id, urgent=False)
        spread = random.uniform(0, REFRESH_SPREAD_SECONDS)  # noqa: S311 - gateways part ways
        self._after("refresh", REFRESH_SECONDS + spread, self._refresh)

    def refresh(self, agent_ids: Iterable[str] | None) -> int:
        """Ask for these agents, or all; return how many of them are connected."""
        if agent_ids is None:
            wanted = list(self._holders)
        else:
            wanted = [each for each in dict.fromkeys(agent_ids) if each in self._holders]
        for agent_id in wanted:
            self._ask(agent_id, urgent=False)
        return len(wanted)

    def _after(self, name: str, seconds: float, call: Any) -> None:
        """Have ``call`` made later, unless that is planned."""
        if not self._open or name in self._timers:
            return

        def due() -> None:
            del self._timers[name]
            call()

        self._timers[name] = self._clock.callLater(seconds, due)

    def _ask(self, agent_id: str, *, urgent: bool) -> None:
        self._failed.pop(agent_id, None)
        (self._urgent if urgent else self._wanted)[agent_id] = None
        self._after("ask", LINGER_SECONDS, self._send)

    def _send(self) -> None:
        """Begin as many queries as may be under way."""
        while self._open and len(self._under_way) < QUERIES:
            ids: list[str] = []
            for source in (self._urgent, self._wanted):
                while source and len(ids) < QUERY_IDS:
                    agent_id = next(iter(source))
                    del source[agent_id]
                    ids.append(agent_id)
            if not ids:
                return
            ids = list(dict.fromkeys(ids))
            self._query += 1
            call = Deferred.fromCoroutine(self._one_query(self._query, ids))
            if not call.called:
                self._under_way.add(call)
                call.addBoth(self._over, call)

    def _over(self, result: object, call: "Deferred[None]") -> None:
        self._under_way.discard(call)
        self._send()

    async def _one_query(self, number: int, ids: list[str]) -> None:
        try:
            answer = await self._manager.post(QUERY_PATH, {"id_list": ids}, seconds=CALL_SECONDS)
        except CancelledError:
            return
        except (CallFailed, ManagerRefused) as error:
            self._queries["failed"] += 1
            if not self._failing:
                self.log.warn("tags are not refreshed: {reason}", reason=error)
            self._failing = True
            self._failed.update(dict.fromkeys(ids))
            for agent_id in ids:
                self._tell(agent_id, "failed")
            self._after("retry", self._pause, self._retry)
            return
        self._queries["answered"] += 1
        if self._failing:
            self.log.info("tags are refreshed again")
        self._failing, self._pause = False, FIRST_RETRY_SECONDS
        told = answer.data if isinstance(answer.data, dict) else {}
        for agent_id in ids:
            self._learn(agent_id, number, told.get(agent_id))
            self._tell(agent_id, "answered")
        self._forget_oldest()

    def _retry(self) -> None:
        self._pause = min(2 * self._pause, LAST_RETRY_SECONDS)
        failed, self._failed = self._failed, {}
        for agent_id in failed.keys() & self._holders.keys():
            self._ask(agent_id, urgent=False)

    def _tell(self, agent_id: str, outcome: str) -> None:
        for stream in list(self._waiting_ids.get(agent_id, ())):
            self._soon(stream, outcome)

    def _learn(self, agent_id: str, number: int, told: object) -> None:
        """Take what a query told of an agent, unless a later one has told more already."""
        known = self._known.get(agent_id)
        if known is not None and known[1] > number:
            return
        tags = joined_tags(told)
        if tags is None:  # the Manager does not know the agent: what it said before holds
            return
        if known is None or known[0] != tags:
            self._changed[agent_id] = tags
            self._gone.pop(agent_id, None)
            self._after("save", SAVE_SECONDS, self._save)
        self._known[agent_id] = (tags, number)
        agent = self._holders.get(agent_id)
        if agent is not None:
            agent.stream.tags = tags

    def _forget_oldest(self) -> None:
        while len(self._known) > KNOWN_LIMIT:
            agent_id, _ = self._known.popitem(last=False)
            self._changed.pop(agent_id, None)
            self._gone[agent_id] = None
            self._after("save", SAVE_SECONDS, self._save)

    # --- the disk

    def _save(self) -> None:
        if self._saving is not None or not (self._changed or self._gone):
            return
        if not self._stored:
            self._changed, self._gone = {}, {}
            return
        changed, self._changed = self._changed, {}
        gone, self._gone = self._gone, {}
        saving = Deferred.fromCoroutine(self._save_in_thread(changed, gone))
        if not saving.called:
            self._saving = saving

    async def _save_in_thread(self, changed: dict[str, bytes], gone: dict[str, None]) -> None:
        try:
            await self._in_thread(self._store.save, changed, list(gone))
        except sqlite3.Error as error:
            self.log.error("tags are not kept on disk: {error}", error=error)
            self._changed = changed | self._changed
            self._gone = {key: None for key in gone if key not in self._known} | self._gone
        self._saving = None
        if self._changed or self._gone:
            self._after("save", SAVE_SECONDS, self._save)

    # --- figures

    def figures(self) -> TagFigures:
        """For metrics."""
        return TagFigures(
            known=len(self._known),
            held_bytes=self.held_bytes,
            waiting=len(self._waiting),
            queries=dict(self._queries),
            waits=dict(self._waits),
        )


def joined_tags(told: object) -> bytes | None:
    """What a Manager says of one agent, as it stands in records; None when it says nothing.

    Tags come joined by commas or as a list; whole ones are taken up to `TAGS_BYTES`.
    """
    if not isinstance(told, dict):
        return None
    tags = told.get("tags")
    several = tags.split(",") if isinstance(tags, str) else tags if isinstance(tags, list) else []
    taken: list[bytes] = []
    size = -1
    for tag in several:
        text = tag.encode("utf-8", "replace") if isinstance(tag, str) else b""
        size += len(text) + 1
        if size > TAGS_BYTES:
            break
        if text:
            taken.append(text)
        else:
            size -= 1
    return b",".join(taken)
