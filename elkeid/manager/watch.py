"""What becomes of hosts over time: where they are connected, how well protected, who returned.

Told of every report in the transaction that stores it. What a report confirms costs a look at one
narrow row; only what changes is written.
"""

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen
from sqlalchemy import Connection

from elkeid.manager.documents import AgentReport, Source
from elkeid.manager.figures import Figures
from elkeid.manager.protection import RANK, Protection, Verdict, judge
from elkeid.manager.store.hosts import (
    HostEvent,
    HostState,
    add_events,
    host_states,
    keep_states,
)

SLACK_SECONDS = 5
"""A stream's begin by our clock is known no better: gateways' clocks are, and are measured."""

VERSION_CHARACTERS = 128
"""Of a kernel's version; real ones have up to 64."""


class _Changes:
    """States and events to be written together."""

    def __init__(self, ring: int) -> None:
        self._ring = ring
        self._states: dict[str, HostState] = {}
        self._events: list[HostEvent] = []

    def keep(self, state: HostState) -> None:
        """Store this one."""
        self._states[state.agent_id] = state

    def happened(self, state: HostState, at: int, kind: str, **detail: Any) -> None:
        """Note an event of a host, and store its state."""
        self._events.append(HostEvent(state.agent_id, state.events, at, kind, detail))
        state.events += 1
        self.keep(state)

    def write(self, connection: Connection) -> None:
        """Do it."""
        keep_states(connection, self._states.values())
        add_events(connection, self._events, self._ring)


@frozen
class _Told:
    """What an AC tells of an agent."""

    gateway: str
    report: AgentReport
    verdict: Verdict
    begun: int  # of its stream, unix seconds of our clock

    @property
    def kernel_version(self) -> str:
        """As reported, or nothing."""
        value = self.report.fields.get("kernel_version")
        return value[:VERSION_CHARACTERS] if isinstance(value, str) else ""

    def is_later_than(self, state: HostState) -> bool:
        """Whether this is another stream than the one known."""
        return self.begun > state.connected_at + SLACK_SECONDS

    def differs_from(self, state: HostState | None) -> bool:
        """Whether it says anything new."""
        return state is None or (
            state.protection != self.verdict.state
            or state.reason != self.verdict.reason
            or state.doubted_at is not None
            or not state.connected
            or state.gateway != self.gateway
            or self.is_later_than(state)
            or state.retired_at is not None
            or state.kernel_version != self.kernel_version
        )


class HostWatch:
    """Follows reports. Its methods block, in a store's thread and transaction.

    Args:
        figures: keeps what heartbeats measure.
        wall: seconds since the epoch.
        quiet_seconds: see `judge`.
        silent_seconds: see `judge`.
        ring: events kept of each host.
    """

    def __init__(
        self,
        figures: Figures,
        wall: Callable[[], float],
        *,
        quiet_seconds: float,
        silent_seconds: float,
        ring: int,
    ) -> None:
        self._figures, self._wall = figures, wall
        self._quiet_seconds, self._silent_seconds = quiet_seconds, silent_seconds
        self._ring = ring

    def reported(
        self, connection: Connection, source: Source, reports: Sequence[AgentReport], skew: float
    ) -> None:
        """An AC told of some agents, at most `IDS_PER_STATEMENT`; that is stored."""
        for report in reports:
            self._figures.take(report)
        told = {
            report.agent_id: _Told(
                str(source),
                report,
                judge(report, skew, self._quiet_seconds, self._silent_seconds),
                _begun(report, skew),
            )
            for report in reports
        }
        known = host_states(connection, told)
        changed = [each for each, what in told.items() if what.differs_from(known.get(each))]
        if not changed:
            return
        # Another Manager may have seen the same meanwhile: look again at what nobody else changes.
        known = host_states(connection, changed, locked=True)
        changes = _Changes(self._ring)
        for agent_id in changed:
            self._update(changes, known.get(agent_id), told[agent_id])
        changes.write(connection)

    def _update(self, changes: _Changes, state: HostState | None, told: _Told) -> None:
        at, begun, gateway = told.report.last_heartbeat_time, told.begun, told.gateway
        if state is None:
            state = HostState(
                agent_id=told.report.agent_id,
                gateway=gateway,
                connected=True,
                connected_at=begun,
                protection=told.verdict.state,
                reason=told.verdict.reason,
                protection_since=at,
                kernel_version=told.kernel_version,
            )
            changes.happened(state, begun, "connected", gateway=gateway)
            return
        if state.gateway != gateway and begun + SLACK_SECONDS < state.connected_at:
            return  # it has moved on, and this AC has not noticed yet
        if state.retired_at is not None and at > state.retired_at:
            state.retired_at = None
            changes.happened(state, at, "returned")
        later = max(begun, state.connected_at)
        if state.gateway != gateway:
            changes.happened(state, later, "moved", gateway=gateway, before=state.gateway)
        elif not state.connected or told.is_later_than(state):
            changes.happened(state, later, "connected", gateway=gateway)
        state.gateway, state.connected, state.connected_at = gateway, True, later
        state.kernel_version = told.kernel_version
        self._protect(changes, state, at, told.verdict)
        changes.keep(state)

    def _protect(self, changes: _Changes, state: HostState, at: int, verdict: Verdict) -> None:
        worse = RANK[verdict.state] < RANK[Protection(state.protection)]
        if worse and not verdict.certain:
            if state.doubted_at is None:
                state.doubted_at = at
            if at - state.doubted_at < self._quiet_seconds:
                return
        state.doubted_at = None
        before, state.reason = state.protection, verdict.reason
        if before != verdict.state:
            state.protection, state.protection_since = verdict.state, at
            changes.happened(
                state, at, "protection", before=before, after=verdict.state, reason=verdict.reason
            )

    def left(self, connection: Connection, source: Source, ids: Sequence[str]) -> None:
        """Some agents, at most `IDS_PER_STATEMENT`, left an AC."""
        gateway, changes = str(source), _Changes(self._ring)
        for state in host_states(connection, ids, locked=True).values():
            if state.gateway == gateway and state.connected:
                state.connected = False
                changes.happened(state, int(self._wall()), "disconnected", gateway=gateway)
        changes.write(connection)


def _begun(report: AgentReport, skew: float) -> int:
    """When the agent's stream began, unix seconds of our clock."""
    value = report.fields.get("create_at")
    if not isinstance(value, int | float) or not 0 < value < report.last_heartbeat_time + 86_400:
        return 0
    return max(0, round(value - skew))
