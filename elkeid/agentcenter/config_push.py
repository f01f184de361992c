"""What each host shall run: asked of the Manager, sent, and repeated until the host shows it.

A host is asked for when its connection brings the first heartbeat, and when the Manager says that
something changed. While the Manager is away, it gets what it ran last. Sent is not applied: an
agent syncs one config at a time, keeps one more and drops others without a word.

Source: docs/protocol.md, "Configs".
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from heapq import heapify, heappop, heappush
from itertools import count
from random import Random
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.agentcenter.commands import Commands, Outcome
from elkeid.agentcenter.configs import (
    AGENT_NAME,
    Config,
    ConfigInvalid,
    ConfigState,
    Entry,
    State,
    config_of,
)
from elkeid.agentcenter.identity import DERIVED_PREFIX
from elkeid.agentcenter.manager_client import ManagerAnswer, ManagerRefused
from elkeid.agentcenter.table import Agent, AgentTable
from elkeid.errors import PeerError
from elkeid.log_limit import LimitedLog
from elkeid.metrics import ConfigFigures
from elkeid.web.client import Unreachable
from elkeid.wire.datatypes import AGENT_HEARTBEAT

PATH: Final = "/api/v6/component/GetComponentInstances"

FETCHES: Final = 16
"""Questions under way at once: at 10 ms each, 10,000 hosts are asked for within 7 s."""

FETCH_SECONDS: Final = 4.0
"""For one question; what a host ran last still reaches it within 10 s of its heartbeat."""

ANSWER_BYTES: Final = 16 << 20
"""Of one answer: a config of 4 MiB encoded, in JSON."""

FALLBACK_SECONDS: Final = 3.0
"""A host that waits longer for the Manager's word gets what it ran last."""

SEARCH_SECONDS: Final = (30.0, 600.0)
"""Pause until what a host ran last is looked for again, if nobody knew."""

OUTAGE_SECONDS: Final = (0.5, 15.0)
"""Pause after a question that no Manager answered, first and at most; then one is tried."""

ANSWERED_SECONDS: Final = (2.0, 60.0)
"""Pause for one host after an answer that cannot be used."""

REFUSED_SECONDS: Final = (30.0, 600.0)
"""Pause for one host that the Manager has no config for."""

SEND_SECONDS: Final = 60.0
"""For a config to be begun; then it is tried again."""

RESEND_SECONDS: Final = (5.0, 60.0)
"""Pause after a config that could not be sent."""

REPEAT_SECONDS: Final = (150.0, 1_800.0)
"""Pause until a config is repeated. Heartbeats show within 70 s what was applied; a sync may
download for 10 minutes, while one repetition waits in the agent and another is dropped."""

VERSION_BYTES: Final = 1024
"""Of a plugin's version, as far as it is compared; real ones have ten."""

LIVE_SECONDS: Final = 90
"""A plugin heard of so lately runs: heartbeats come every 60 s."""

CONFIRM_SECONDS: Final = 2.0
"""A config that looks applied is looked at again: a batch brings heartbeats one by one."""

TICK_SECONDS: Final = 0.25
"""Shortest pause between two looks at what is due."""

PLANS: Final = 1_000, 8
"""Entries of the schedule, and of each agent, beyond which void ones are thrown away; of each
agent at most four are not void."""

REACHED = (Outcome.WRITTEN, Outcome.PARTLY)


class NoConfig(PeerError):
    """The Manager's answer holds no config; ``reason`` is ``null`` or ``empty``."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the Manager answered with {reason} data")


class Manager(Protocol):
    """Whom configs are asked of; `ManagerClient`."""

    async def post(self, path: str, body: object, *, seconds: float, limit: int) -> ManagerAnswer:
        """POST, or raise a `PeerError`."""


class LastKnown(Protocol):
    """What hosts ran last; `LastConfigs`."""

    def delivered(self, agent_id: str, config: Config) -> None:
        """A host was sent its present config."""

    def newest(self, agent_id: str) -> Deferred[Config | None]:
        """What it was sent last, here or at a peer; never fails."""


class _Kind(IntEnum):
    ASK = 0
    SEND = 1
    FALL = 2
    CHECK = 3


class ConfigPush:
    """Keeps hosts at the config they shall have; a `Follower` of the gateway.

    Args:
        table: the connected agents.
        commands: sends to them.
        manager: is asked.
        last: remembers what was delivered.
        clock: for pauses.
        wall: unix seconds, the clock of the table's heartbeats.
        random: spreads pauses.
        trust_empty: take an empty answer for "run nothing" without further words.
    """

    log = Logger()

    def __init__(
        self,
        table: AgentTable,
        commands: Commands,
        manager: Manager,
        last: LastKnown,
        *,
        clock: IReactorTime,
        wall: Callable[[], int],
        random: Random,
        trust_empty: bool,
    ) -> None:
        self._table, self._commands, self._manager = table, commands, manager
        self._last, self._clock, self._random = last, clock, random
        self._wall, self._trust_empty = wall, trust_empty
        self.complaints = LimitedLog(self.log, clock.seconds)  # about one host each
        self._queue: deque[Agent] = deque()
        self._active: set[Deferred[None]] = set()
        self._outage = 0  # questions in a row that no Manager answered
        self._pause: IDelayedCall | None = None  # of asking, in an outage
        self._schedule: list[tuple[float, int, Agent, _Kind]] = []
        self._numbers = count()
        self._tick: IDelayedCall | None = None
        self._stopped = False
        self.fetches: Counter[str] = Counter()  # by outcome
        self.sent: Counter[str] = Counter()  # by source
        self.repeated = 0
        self.searches: Counter[str] = Counter()  # by outcome

    # --- what others tell

    def joined(self, agent: Agent) -> None:
        """Nothing to do before it says what kind of host it is."""

    def heartbeat(self, agent: Agent, data_type: int, fields: Mapping[bytes, bytes]) -> None:
        """The first one of an agent makes us ask; later ones show what was applied."""
        state = agent.config
        if data_type == AGENT_HEARTBEAT:
            if agent.agent_id.startswith(DERIVED_PREFIX):
                return
            if state is None:
                state = agent.config = ConfigState()
            if not state.asked:
                self._ask(agent, state)
        if state is None or state.state is not State.SENT:
            return
        if data_type != AGENT_HEARTBEAT:
            version = fields.get(b"pversion", b"")
            # A longer one is no version, and takes memory.
            state.heard[fields.get(b"name", b"")] = (
                version if len(version) <= VERSION_BYTES else b""
            )
        if not state.due[_Kind.CHECK] and self._looks_applied(agent, state):
            self._later(CONFIRM_SECONDS, agent, state, _Kind.CHECK)

    def results(self, agent: Agent, results: Sequence[Any]) -> None:
        """Nothing to do."""

    def left(self, agent: Agent) -> None:
        """Nothing to do: what was planned for it is void."""

    def refresh(self, agent_ids: Iterable[str] | None) -> int:
        """Something changed at the Manager: ask again, for these agents or all.

        Returns:
            How many of them are connected and will be asked for.
        """
        found = 0
        agents = self._table if agent_ids is None else map(self._table.get, agent_ids)
        for agent in list(agents):
            if agent is not None and agent.config is not None and agent.heartbeat is not None:
                found += 1
                self._ask(agent, agent.config)
        return found

    def commanded(self, agent_id: str, config: Config, outcome: Outcome) -> None:
        """A config came from an operator: it is what the host shall have, if it was sent."""
        agent = self._table.get(agent_id)
        if agent is None or outcome not in REACHED:
            return
        state = agent.config
        if state is None:
            state = agent.config = ConfigState()
        self._replace(state, config, "command")
        self._mark_sent(agent, state, outcome)

    def stop(self) -> None:
        """Ask and send no more."""
        self._stopped = True
        for timer in (self._tick, self._pause):
            if timer is not None and timer.active():
                timer.cancel()
        for under_way in list(self._active):
            under_way.cancel()

    def figures(self) -> ConfigFigures:
        """What is shown of this part."""
        states = Counter(
            (State.NONE if agent.config is None else agent.config.state).value
            for agent in self._table
        )
        return ConfigFigures(
            agents={state.value: states[state.value] for state in State},
            waiting=len(self._queue) + len(self._active),
            fetches=dict(self.fetches),
            sent=dict(self.sent),
            repeated=self.repeated,
            searches=dict(self.searches),
        )

    # --- asking

    def _here(self, agent: Agent) -> bool:
        return self._table.get(agent.agent_id) is agent

    def _ask(self, agent: Agent, state: ConfigState) -> None:
        if state.asking:
            state.again = True
            return
        state.asked = state.asking = True
        state.due[_Kind.ASK] = 0.0
        self._queue.append(agent)
        if self._outage:
            self._fall_back(agent, state)
        elif state.desired is None:
            self._later(FALLBACK_SECONDS, agent, state, _Kind.FALL)
        self._next()

    def _next(self) -> None:
        """Ask for those whose turn it is; in an outage for one at a time."""
        limit = 1 if self._outage else FETCHES
        while self._queue and len(self._active) < limit and not self._pausing():
            agent = self._queue.popleft()
            state = agent.config
            if state is None or self._stopped or not self._here(agent):
                continue
            fetch = Deferred.fromCoroutine(self._fetch(agent, state))
            self._active.add(fetch)
            fetch.addBoth(self._fetched, fetch)

    def _pausing(self) -> bool:
        return self._pause is not None and self._pause.active()

    def _fetched(self, result: object, fetch: Deferred[None]) -> None:
        self._active.discard(fetch)
        if isinstance(result, Failure):
            result.trap(CancelledError)  # by stop()
        if not self._stopped:
            self._next()

    async def _fetch(self, agent: Agent, state: ConfigState) -> None:
        version = state.version
        try:
            answer = await self._manager.post(
                PATH, agent.info(), seconds=FETCH_SECONDS, limit=ANSWER_BYTES
            )
            config = self._judge(answer)
        except PeerError as error:
            self._failed(agent, state, error)
            return
        except CancelledError:
            raise
        except Exception:
            self.log.failure("{agent}: asking for its config failed", agent=agent.agent_id)
            self._failed(agent, state, ConfigInvalid("see the log"))
            return
        if self._outage:
            self.log.info("the Manager answers again")
        self._outage = 0
        self.fetches["ok"] += 1
        state.asking, state.failures = False, 0
        if not self._here(agent):
            return
        if state.version == version:  # else a command brought a newer one meanwhile
            self._desire(agent, state, config, "manager")
        self._once_more(agent, state)

    def _once_more(self, agent: Agent, state: ConfigState) -> None:
        if state.again:
            state.again = False
            self._ask(agent, state)

    def _judge(self, answer: ManagerAnswer) -> Config:
        """The config in an answer.

        Raises:
            NoConfig: there is none, and nothing says that none is meant.
            ConfigInvalid: no host may be sent it.
        """
        if answer.data is None and not self._trust_empty:
            raise NoConfig("null")
        try:
            entries = msgspec.convert([] if answer.data is None else answer.data, list[Entry])
        except msgspec.ValidationError as error:
            raise ConfigInvalid(str(error)) from error
        if not entries and not (answer.allow_empty or self._trust_empty):
            raise NoConfig("empty")
        return config_of(entries)

    def _failed(self, agent: Agent, state: ConfigState, error: PeerError) -> None:
        if isinstance(error, Unreachable):
            self.fetches["unreachable"] += 1
            if not self._outage:
                self.log.warn("configs cannot be asked for: {error}; trying on", error=error)
            if not self._pausing():  # else it is one of many that were under way
                self._outage += 1
                pause = self._spread(OUTAGE_SECONDS, self._outage)
                self._pause = self._clock.callLater(pause, self._next)
            if self._here(agent):
                self._queue.append(agent)
                self._fall_back(agent, state)
            return
        self._outage = 0
        state.asking, state.failures = False, state.failures + 1
        refused = isinstance(error, ManagerRefused | NoConfig)
        if isinstance(error, NoConfig):
            self.fetches[error.reason] += 1
        else:
            self.fetches["refused" if refused else "invalid"] += 1
        if not self._here(agent):
            return
        if state.failures == 1 and not refused:
            self.complaints.warn("{agent}: no config: {error}", agent=agent.agent_id, error=error)
        if isinstance(error, NoConfig):
            state.due[_Kind.FALL] = 0.0  # the Manager's word: there is nothing to send
        else:
            self._fall_back(agent, state)
        pauses = REFUSED_SECONDS if refused else ANSWERED_SECONDS
        self._later(self._spread(pauses, state.failures), agent, state, _Kind.ASK)
        self._once_more(agent, state)

    def _spread(self, bounds: tuple[float, float], attempt: int) -> float:
        """A pause that doubles with each attempt (from 1), and differs between hosts."""
        first, most = bounds
        pause = min(most, first * 2.0 ** min(attempt - 1, 20))
        return pause * self._random.uniform(0.75, 1.25)

    # --- what it ran last

    def _fall_back(self, agent: Agent, state: ConfigState) -> None:
        """Give the host what it ran last; if nobody knew before, another search is planned."""
        if not state.searches:
            self._search(agent, state)

    def _search(self, agent: Agent, state: ConfigState) -> None:
        state.due[_Kind.FALL] = 0.0
        if state.desired is not None or state.falling:
            return
        state.falling = True
        self._last.newest(agent.agent_id).addCallback(self._found, agent, state)

    def _found(self, config: Config | None, agent: Agent, state: ConfigState) -> None:
        state.falling = False
        if not self._here(agent) or state.desired is not None or self._stopped:
            return
        # A host that was told to run nothing either runs nothing, or is better left alone.
        if config is None or config.empty:
            self.searches["unknown" if config is None else "empty"] += 1
            state.searches += 1
            pause = self._spread(SEARCH_SECONDS, state.searches)
            self._later(pause, agent, state, _Kind.FALL)
            return
        self.searches["found"] += 1
        self._desire(agent, state, config, "last-known")

    # --- sending

    def _replace(self, state: ConfigState, config: Config, source: str) -> None:
        state.desired, state.source, state.attempt = config, source, 0
        state.delivered = False
        state.version += 1
        state.due[_Kind.FALL] = state.due[_Kind.SEND] = state.due[_Kind.CHECK] = 0.0

    def _desire(self, agent: Agent, state: ConfigState, config: Config, source: str) -> None:
        self._replace(state, config, source)
        self._send(agent, state)

    def _send(self, agent: Agent, state: ConfigState) -> None:
        assert state.desired is not None
        self._commands.send(agent.agent_id, [state.desired.command], SEND_SECONDS).addCallback(
            self._settled, agent, state, state.version
        )

    def _settled(self, outcome: Outcome, agent: Agent, state: ConfigState, version: int) -> None:
        if self._stopped or state.version != version or not self._here(agent):
            return
        if outcome in REACHED:
            self._mark_sent(agent, state, outcome)
        elif outcome in (Outcome.QUEUE_FULL, Outcome.WITHDRAWN):
            state.failures += 1
            pause = self._spread(RESEND_SECONDS, state.failures)
            self._later(pause, agent, state, _Kind.SEND)

    def _mark_sent(self, agent: Agent, state: ConfigState, outcome: Outcome) -> None:
        assert state.desired is not None
        state.attempt += 1
        if state.attempt > 1:
            self.repeated += 1
        else:
            self.sent[state.source] += 1
        if outcome is Outcome.WRITTEN:
            self._delivered(agent, state)
        state.state, state.sent_at, state.applied_at = State.SENT, self._wall(), 0
        state.heard.clear()
        state.failures = 0
        state.due[_Kind.CHECK] = 0.0
        self._later(self._spread(REPEAT_SECONDS, state.attempt), agent, state, _Kind.SEND)
        self._table.touch(agent)

    def _delivered(self, agent: Agent, state: ConfigState) -> None:
        """Remember it for when no Manager answers, once; what was remembered keeps its time."""
        if not state.delivered and state.source != "last-known":
            assert state.desired is not None
            state.delivered = True
            self._last.delivered(agent.agent_id, state.desired)

    # --- what was applied

    def _looks_applied(self, agent: Agent, state: ConfigState) -> bool:
        """Whether heartbeats since it was sent show what the config says, and nothing else."""
        assert state.desired is not None
        wanted = state.desired.versions
        for name, version in wanted.items():
            if name == AGENT_NAME:
                shown = b"" if agent.header is None else agent.header.version
            else:
                shown = state.heard.get(name.encode(), b"")
                if name.encode() not in state.heard:
                    return False
            if shown != version.encode():
                return False
        now = self._wall()
        names = {name.encode() for name in wanted}
        return not any(
            name not in names and now - at < LIVE_SECONDS for name, (_, at) in agent.plugins.items()
        )

    def _check(self, agent: Agent, state: ConfigState) -> None:
        if state.state is State.SENT and self._looks_applied(agent, state):
            state.state, state.applied_at = State.APPLIED, self._wall()
            state.heard.clear()
            state.due[_Kind.SEND] = 0.0
            self._delivered(agent, state)
            self._table.touch(agent)

    # --- the schedule

    def _later(self, seconds: float, agent: Agent, state: ConfigState, kind: _Kind) -> None:
        """Do this after so many seconds, instead of what of its kind was planned before."""
        due = state.due[kind] = self._clock.seconds() + seconds
        heappush(self._schedule, (due, next(self._numbers), agent, kind))
        if len(self._schedule) > PLANS[0] + PLANS[1] * len(self._table):
            self._schedule = [plan for plan in self._schedule if self._holds(plan)]
            heapify(self._schedule)
        self._arm()

    def _holds(self, plan: tuple[float, int, Agent, _Kind]) -> bool:
        due, _, agent, kind = plan
        state = agent.config
        return state is not None and state.due[kind] == due and self._here(agent)

    def _arm(self) -> None:
        if not self._schedule or self._stopped:
            return
        due, now = self._schedule[0][0], self._clock.seconds()
        due = max(due, now + TICK_SECONDS)
        if self._tick is None or not self._tick.active():
            self._tick = self._clock.callLater(due - now, self._do_what_is_due)
        elif self._tick.getTime() > due:
            self._tick.reset(due - now)

    def _do_what_is_due(self) -> None:
        now = self._clock.seconds()
        while self._schedule and self._schedule[0][0] <= now:
            plan = heappop(self._schedule)
            agent, kind = plan[2:]
            state = agent.config
            if state is None or not self._holds(plan):
                continue
            state.due[kind] = 0.0
            if kind is _Kind.ASK:
                self._ask(agent, state)
            elif kind is _Kind.SEND:
                self._send(agent, state)
            elif kind is _Kind.FALL:
                self._search(agent, state)
            else:
                self._check(agent, state)
        self._arm()
