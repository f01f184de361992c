"""Many simulated agents in one process, from their first start to the last status.

The run ends when its time is over, when enough was sent, when every agent has exited, or when
`Fleet.stop` is called; then every stream is half-closed, and its status awaited.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from elkeid.config import is_loopback
from elkeid.errors import OperatorError, PeerError
from elkeid.fleet.agent import Allowance, SimulatedAgent, World
from elkeid.fleet.events import Events
from elkeid.fleet.host import HEARTBEAT_SECONDS, Host
from elkeid.fleet.link import Address, AgentLink
from elkeid.fleet.report import AgentReport, Summary
from elkeid.fleet.resolve import AddressBook, Lookup
from elkeid.fleet.wheel import TimerWheel
from elkeid.wire.datatypes import RecordClass

STATUS_SECONDS = 30.0  # for all streams to be answered after the half-close
STARTS_PER_SECOND = 100  # by default; each costs both sides some 3 ms, mostly for TLS
WATCH_SECONDS = 0.05  # how often the end of a run is looked for


class NoGateway(OperatorError):
    """No gateway can be reached, so that no agent could be simulated."""


@frozen(kw_only=True)
class Plan:
    """What to simulate.

    Attributes:
        agents: how many.
        rate: replayed events/s of each agent; 0 sends heartbeats only.
        spread: seconds over which the agents start; None for `STARTS_PER_SECOND`.
        duration: seconds until the end; 0 for none.
        total: replayed events of all agents after which the run ends; None for no such end.
        seed: hosts, ids and names follow from it.
        members: service discovery, ``host:port`` each; agents take them in turn; may be empty.
        private: addresses to try when service discovery gives none that works.
        allow_remote: whether addresses that are not loopback may be dialled.
        hostnames: pattern with ``{n}`` for the agent's number; empty for made-up names.
        restart: whether exited agents come back after 45 s; those that were told to exit, and
            those that updated themselves, always do.
        cuts: connections broken a second, at random, without a word to the gateway.
        bare: whether agents begin without plugins, as after a boot, instead of a stock set.
        beat: seconds between heartbeats; shorter than real agents' for more control records.
    """

    agents: int
    rate: float = 1.0
    spread: float | None = None
    duration: float = 0.0
    total: int | None = None
    seed: int = 0
    id_prefix: str = ""
    hostnames: str = ""
    members: Sequence[str] = ()
    private: Sequence[Address] = field(factory=tuple)
    allow_remote: bool = False
    restart: bool = False
    bare: bool = False
    beat: float = HEARTBEAT_SECONDS
    cuts: float = 0.0

    def book(self, number: int) -> AddressBook:
        """Where the agent of this number looks for gateways."""
        member = self.members[number % len(self.members)] if self.members else None
        return AddressBook(member, self.private)

    def permitted(self, address: Address) -> bool:
        """Whether this address may be dialled."""
        return self.allow_remote or is_loopback(address.host)


class Fleet:
    """All agents of one run.

    Args:
        plan: what to simulate.
        events: what they replay.
        clock: for all timers.
        dial: connects to one address.
        lookup: asks service discovery.
        wall: unix time.
        cpu: CPU seconds that this process has taken.
    """

    def __init__(
        self,
        plan: Plan,
        events: Events,
        *,
        clock: IReactorTime,
        dial: Callable[[Address], Deferred[AgentLink]],
        lookup: Lookup,
        wall: Callable[[], float] = time.time,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self.plan = plan
        self._clock, self._cpu = clock, cpu
        self._wheel = TimerWheel(clock)
        self._world = World(
            clock=clock,
            wall=wall,
            wheel=self._wheel,
            dial=dial,
            lookup=lookup,
            permitted=plan.permitted,
            templates=events.templates,
            rate=plan.rate,
            restart=plan.restart,
            bare=plan.bare,
            beat=plan.beat,
            chance=random.Random(plan.seed).random,  # noqa: S311 - a simulation
            allowance=Allowance(plan.total),
        )
        self.totals = self._world.totals
        self._agents = [
            SimulatedAgent(
                number,
                Host(plan.seed, number, plan.id_prefix, plan.hostnames.format(n=number)),
                plan.book(number),
                self._world,
            )
            for number in range(plan.agents)
        ]
        self._alive = plan.agents
        self._began: float = 0.0
        self._cpu_began = 0.0
        self._seconds = 0.0
        self._over: Deferred[str] = Deferred()
        self._watch = LoopingCall(self._look)
        self._watch.clock = clock
        self._cuts_due = 0.0
        self._choice = random.Random(f"{plan.seed}/cuts")  # noqa: S311 - a simulation

    @property
    def seconds(self) -> float:
        """Since the start of the run."""
        return self._clock.seconds() - self._began

    @property
    def alive(self) -> int:
        """Agents that have neither exited for good nor finished."""
        return self._alive

    async def check_gateway(self) -> None:
        """Make sure that a first agent would find a gateway, and leave no trace of it.

        Raises:
            NoGateway: one sentence that says what was tried.
        """
        book, tried = self.plan.book(0), []
        addresses: list[Address] = []
        if book.member is not None:
            try:
                addresses += await self._world.lookup(book.member)
            except PeerError as error:
                tried.append(f"{book.member}: {error}")
        addresses += book.private
        for address in addresses:
            if not self.plan.permitted(address):
                tried.append(
                    f"{address} is not loopback (load is kept on this machine "
                    "unless --allow-remote is given)"
                )
                continue
            try:
                link = await self._world.dial(address)
            except PeerError as error:
                tried.append(str(error))
            else:
                link.close()
                return
        raise NoGateway(
            f"no gateway can be used ({'; '.join(tried)}): start one with `twistd -n elkeid`, "
            "or name one with --sd or --address"
        )

    async def run(self) -> None:
        """Run to the end; afterwards `reports` and `summary` hold what came of it."""
        plan = self.plan
        self._began, self._cpu_began = self._clock.seconds(), self._cpu()
        spread = plan.agents / STARTS_PER_SECOND if plan.spread is None else plan.spread
        for agent in self._agents:
            agent.done.addCallback(self._agent_done)
            self._wheel.schedule(agent, self._began + spread * agent.number / plan.agents)
        self._wheel.start()
        watching = self._watch.start(WATCH_SECONDS, now=False)
        watching.addErrback(self._watch_failed)
        try:
            await self._over
        finally:
            if self._watch.running:
                self._watch.stop()
        await self._finish()
        self._wheel.stop()
        self._seconds = self.seconds

    def stop(self) -> None:
        """End the run as if its time were over."""
        if not self._over.called:
            self._over.callback("stopped")

    def _agent_done(self, _: None) -> None:
        self._alive -= 1
        if not self._alive:
            self.stop()

    def _look(self) -> None:
        plan = self.plan
        self._cuts_due += plan.cuts * WATCH_SECONDS
        while self._cuts_due >= 1:
            self._cuts_due -= 1
            self._choice.choice(self._agents).cut()
        late = plan.duration and self.seconds >= plan.duration
        enough = plan.total is not None and self.totals.events_sent >= plan.total
        if late or enough:
            self.stop()

    def _watch_failed(self, failure: Any) -> None:
        if not self._over.called:
            self._over.errback(failure)

    async def _finish(self) -> None:
        waiting = []
        for agent in self._agents:
            if not agent.done.called:
                ended: Deferred[None] = Deferred()
                agent.done.chainDeferred(ended)
                waiting.append(ended)
                agent.finish()
        everything = DeferredList(waiting)
        everything.addTimeout(STATUS_SECONDS, self._clock)
        try:
            await everything
        except DeferredTimeout:
            self.totals.note(f"no status within {STATUS_SECONDS:g} s of the half-close")
            for agent in self._agents:
                agent.stop()

    def reports(self) -> list[AgentReport]:
        """What each agent counted."""
        return [agent.report() for agent in self._agents]

    def summary(self, reports: Sequence[AgentReport]) -> Summary:
        """The sum of ``reports``, and what only the fleet as a whole knows."""
        streams = [stream for agent in reports for stream in agent.streams]
        totals = self.totals
        return Summary(
            agents=len(reports),
            seconds=round(self._seconds, 3),
            streams=len(streams),
            sent=_added(stream.sent for stream in streams),
            confirmed=_added(stream.confirmed for stream in streams),
            events_sent=totals.events_sent,
            messages=totals.messages,
            bytes_sent=totals.bytes_sent,
            unconfirmed_streams=sum(
                any(stream.sent.values()) and stream.sent != stream.confirmed for stream in streams
            ),
            failed_rounds=totals.failed_rounds,
            exits=totals.exits,
            restarts=totals.restarts,
            dropped=sum(agent.dropped for agent in reports),
            overwritten=sum(agent.overwritten for agent in reports),
            lost_on_exit=sum(agent.lost_on_exit for agent in reports),
            tasks=sum(agent.tasks for agent in reports),
            syncs=sum(agent.syncs for agent in reports),
            wiped=sum(agent.wiped for agent in reports),
            remote_refused=totals.remote_refused,
            cpu_seconds=round(self._cpu() - self._cpu_began, 3),
            worst_lag=round(self._wheel.worst_lag, 3),
            failed_agents=[
                agent.agent_id
                for agent in reports
                if not agent.confirmed_at_end or (agent.exits and not self.plan.restart)
            ],
            results=sum(agent.results for agent in reports),
            dropped_syncs=sum(agent.dropped_syncs for agent in reports),
            refused_tasks=sum(agent.refused_tasks for agent in reports),
            uploads=sum(agent.uploads for agent in reports),
            failed_uploads=sum(agent.failed_uploads for agent in reports),
            updates=sum(agent.updates for agent in reports),
            errors=dict(sorted(totals.errors.items(), key=lambda item: -item[1])),
        )


def _added(counts: Any) -> dict[str, int]:
    sums = dict.fromkeys((cls.label for cls in RecordClass), 0)
    for each in counts:
        for label, count in each.items():
            sums[label] += count
    return sums
