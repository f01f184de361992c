"""What a running fleet shows: one line a second, rewritten in place on a terminal."""

from typing import TextIO

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from elkeid.fleet.fleet import Fleet
from elkeid.fleet.report import Summary

REFRESH_SECONDS = 1.0
LATE_SECONDS = 1.0  # ten ticks; agents that late do not load a server as real ones do
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """Shows a fleet's counts each second.

    Args:
        fleet: what to show.
        clock: for the seconds.
        out: where to; in place when it is a terminal, else a line each time.
    """

    def __init__(self, fleet: Fleet, clock: IReactorTime, out: TextIO) -> None:
        self._fleet, self._out = fleet, out
        self._in_place = out.isatty()
        self._sent, self._at = 0, 0.0
        self._loop = LoopingCall(self._show)
        self._loop.clock = clock

    def start(self) -> None:
        """Show from now on."""
        self._loop.start(REFRESH_SECONDS, now=False)

    def stop(self) -> None:
        """Show a last time."""
        if self._loop.running:
            self._loop.stop()
            self._show()
            if self._in_place:
                self._out.write("\n")
            self._out.flush()

    def line(self) -> str:
        """The counts as they are now."""
        fleet, totals = self._fleet, self._fleet.totals
        seconds = fleet.seconds
        passed = seconds - self._at
        rate = (totals.sent - self._sent) / passed if passed > 0 else 0.0
        self._sent, self._at = totals.sent, seconds
        text = (
            f"{seconds:.0f} s  {totals.connected:,} of {fleet.plan.agents:,} connected  "
            f"{totals.sent:,} records sent  {rate:,.0f}/s  {sum(totals.errors.values()):,} failures"
        )
        if totals.exits:
            text += f"  {totals.exits:,} exited"
        return text

    def _show(self) -> None:
        line = self.line()
        self._out.write(_CLEAR_LINE + line if self._in_place else line + "\n")
        self._out.flush()


def summary_text(summary: Summary, seed: int) -> str:
    """A summary for people."""
    records, confirmed = summary.records, sum(summary.confirmed.values())
    each = _listed(summary.sent)
    lines = [
        f"{summary.agents:,} agents (seed {seed}) for {summary.seconds:.1f} s: "
        f"{records:,} records sent ({each}) in {summary.messages:,} messages, "
        f"{records / summary.seconds if summary.seconds else 0:,.0f}/s",
        f"  confirmed by the server: {confirmed:,}; "
        f"in streams that died, so perhaps lost: {records - confirmed:,}",
    ]
    if summary.dropped or summary.overwritten or summary.lost_on_exit:
        lines.append(
            f"  never sent: {summary.dropped:,} dropped and {summary.overwritten:,} overwritten "
            f"in full buffers, {summary.lost_on_exit:,} left at an exit"
        )
    if summary.tasks or summary.syncs:
        lines.append(
            f"  commands: {summary.tasks:,} tasks, {summary.syncs:,} configs, "
            f"{summary.wiped:,} of them unloaded every plugin"
        )
        lines.append(
            f"  {summary.results:,} results, {summary.refused_tasks:,} tasks refused, "
            f"{summary.dropped_syncs:,} configs dropped, {summary.uploads:,} files sent, "
            f"{summary.failed_uploads:,} failed, {summary.updates:,} updates"
        )
    if summary.failed_rounds or summary.exits:
        lines.append(
            f"  no usable address: {summary.failed_rounds:,} times; "
            f"{summary.exits:,} exits, {summary.restarts:,} restarts"
        )
    if summary.remote_refused:
        lines.append(
            f"  addresses not dialled because they are not loopback: {summary.remote_refused:,} "
            "(--allow-remote lifts this)"
        )
    lines += [f"  {count:,} times: {what}" for what, count in list(summary.errors.items())[:10]]
    if records:
        lines.append(
            f"  this simulator took {summary.cpu_seconds:.2f} s of CPU, "
            f"{summary.cpu_seconds / records * 1e6:.1f} µs a record; "
            f"ticks were late by at most {summary.worst_lag * 1000:.0f} ms"
        )
    if summary.worst_lag > LATE_SECONDS:
        lines.append(
            "  this machine could not keep up: read no speed from this run, "
            "and try fewer --agents or a longer --spread"
        )
    if summary.failed_agents:
        lines.append(
            f"  FAILED: {len(summary.failed_agents):,} agents exited or ended unconfirmed, "
            f"such as {summary.failed_agents[0]}"
        )
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {label}" for label, count in counts.items())
