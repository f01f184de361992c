"""``elkeid fleet``: simulated agents, and whether what they sent was stored."""

import secrets
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

import click
import msgspec
from attrs import evolve
from twisted.internet.task import react
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from elkeid.cli import Invocation
from elkeid.config import Settings, is_loopback, split_endpoint
from elkeid.descriptors import OTHER_FILES
from elkeid.errors import OperatorError
from elkeid.fleet.compare import compare
from elkeid.fleet.events import Events, load_events
from elkeid.fleet.fleet import Fleet, Plan
from elkeid.fleet.host import HEARTBEAT_SECONDS
from elkeid.fleet.link import Address, Dialler
from elkeid.fleet.progress import Progress, summary_text
from elkeid.fleet.report import Summary, read_report, write_report
from elkeid.fleet.resolve import HttpLookup
from elkeid.fleet.stored import stored_records
from elkeid.keys import load_keys
from elkeid.process import raise_open_files
from elkeid.tls import agent_client_options


@click.group()
def fleet() -> None:
    """Simulate agents, thousands in one process.

    \b
    Example:
      elkeid fleet run --agents 50
      elkeid fleet run --agents 2000 --rate 10 --duration 60 --report sent.jsonl
      elkeid fleet check sent.jsonl
    """


def _endpoint(_: object, __: object, value: Any) -> Any:
    """Check ``host:port``, once or several times."""
    try:
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None:
                split_endpoint(each)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _pattern(_: object, __: object, value: str) -> str:
    try:
        names = {value.format(n=number) for number in (0, 1)}
    except (ValueError, LookupError, AttributeError) as error:
        raise click.BadParameter("write {n} or {n:05} for the agent's number") from error
    if value and len(names) == 1:
        raise click.BadParameter("it must hold {n}, the agent's number")
    return value


@fleet.command()
@click.option("--agents", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(0, 20_000),
    default=1.0,
    show_default=True,
    help="Events replayed by each agent a second; 0 sends heartbeats only.",
)
@click.option(
    "--events",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Events to replay, one {"data_type": N, "fields": {...}} a line; samples by default.',
)
@click.option(
    "--sd",
    metavar="HOST:PORT",
    callback=_endpoint,
    help="Service discovery to ask; discovery.members of the settings by default.",
)
@click.option(
    "--address",
    "addresses",
    metavar="HOST:PORT",
    multiple=True,
    callback=_endpoint,
    help="Gateway to dial when service discovery gives none; without --sd, the only one. "
    "Repeat for more.",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with ca.crt, client.crt and client.key; server.keys_dir by default.",
)
@click.option(
    "--duration",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Seconds to run; 0 until Ctrl-C.",
)
@click.option(
    "--total",
    type=click.IntRange(1),
    metavar="RECORDS",
    help="Stop after so many replayed events in all; heartbeats come on top.",
)
@click.option(
    "--spread",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Time over which the agents start; 100 a second by default.",
)
@click.option("--restart", is_flag=True, help="Agents that exit start again after 45 s.")
@click.option(
    "--cuts",
    type=click.FloatRange(0, 1000),
    default=0.0,
    show_default=True,
    help="Connections broken at random, so many a second.",
)
@click.option(
    "--beat",
    type=click.FloatRange(1, 3600),
    default=HEARTBEAT_SECONDS,
    show_default=True,
    help="Seconds between heartbeats of an agent and its plugins; real ones beat once a minute.",
)
@click.option("--bare", is_flag=True, help="Agents begin without plugins, as after a boot.")
@click.option(
    "--seed",
    type=int,
    help="Hosts, names and agent ids follow from it; a new one each run by default.",
)
@click.option("--id-prefix", default="", metavar="TEXT", help="Put before each agent id.")
@click.option(
    "--hostnames",
    default="",
    metavar="PATTERN",
    callback=_pattern,
    help='Such as "load-{n:05}"; made-up names by default.',
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what each agent sent, one JSON object a line.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option(
    "--allow-remote",
    is_flag=True,
    help="Dial addresses that are not loopback. Only at servers that are yours to load.",
)
@click.pass_obj
def run(
    obj: Invocation,
    /,
    *,
    sd: str | None,
    addresses: tuple[str, ...],
    keys: Path | None,
    events: Path | None,
    seed: int | None,
    report: Path | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Run simulated agents against a gateway.

    They find it, dial, batch, buffer, fail and come back as real agents do. Beside the replayed
    events they send heartbeats of their own, and results of the tasks that they are given. Each
    record carries the text fields fleet_conn, the number of its stream in the agent's life, and
    fleet_seq, which counts from 0 for each agent, stream and class (control, telemetry, logs).

    Ctrl-C ends the run as its time would: every agent closes its stream and waits for the
    server's word that all was taken. A second Ctrl-C ends at once. The exit status is 1 when
    any agent exited or ended without that word.

    \b
    Examples:
      elkeid fleet run --agents 50
      elkeid fleet run --agents 2000 --rate 10 --duration 60 --report sent.jsonl
      elkeid fleet run --address 127.0.0.1:6751 --total 100000 --rate 100 --json
    """
    settings = obj.settings
    if keys is not None:
        settings = evolve(settings, server=evolve(settings.server, keys_dir=keys.absolute()))
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    members, private = _where(settings, sd, addresses)
    plan = Plan(seed=seed, members=members, private=private, **chosen)
    _refuse_remote(plan)
    replayed = load_events(events)
    tls = agent_client_options(load_keys(settings, ["agent"]))
    _make_room(plan.agents)
    _show_errors(sys.stderr)
    react(_Run(plan, replayed, tls, report, as_json).main, [])


def _where(
    settings: Settings, sd: str | None, addresses: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[Address, ...]]:
    """Which service discovery to ask, and what to dial without."""
    if sd or addresses:
        return (sd,) if sd else (), tuple(Address(*split_endpoint(each)) for each in addresses)
    # As stock agents have it built in: the gateway of this machine, beside service discovery.
    return settings.discovery.members, (Address("127.0.0.1", settings.agentcenter.grpc_port),)


def _refuse_remote(plan: Plan) -> None:
    hosts = [split_endpoint(member)[0] for member in plan.members]
    hosts += [address.host for address in plan.private]
    for host in hosts:
        if not plan.allow_remote and not is_loopback(host):
            raise OperatorError(
                f"{host} is not loopback: load is kept on this machine; if the servers there are "
                "yours to load, add --allow-remote"
            )


def _make_room(agents: int) -> None:
    files = raise_open_files()
    if files is not None and files < agents + OTHER_FILES:
        raise OperatorError(
            f"{agents} agents need {agents + OTHER_FILES} open files, and the hard limit is "
            f"{files}: raise it (ulimit -Hn), or run fewer with --agents"
        )


def _show_errors(out: TextIO) -> None:
    """Let what goes wrong in this process itself reach the terminal, and nothing less."""
    bad = LogLevelFilterPredicate(defaultLogLevel=LogLevel.error)
    observer = FilteringLogObserver(textFileLogObserver(out), [bad])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)


class _Run:
    """One run, from the reactor's start to the exit status."""

    def __init__(
        self, plan: Plan, events: Events, tls: Any, report: Path | None, as_json: bool
    ) -> None:
        self._plan, self._events, self._tls = plan, events, tls
        self._report, self._as_json = report, as_json

    async def main(self, reactor: Any) -> None:
        """Run; raise `SystemExit` with the status, or with a sentence."""
        plan = self._plan
        dial = Dialler(reactor, self._tls).dial
        fleet = Fleet(plan, self._events, clock=reactor, dial=dial, lookup=HttpLookup(reactor))
        try:
            await fleet.check_gateway()
            if self._report is not None:
                write_report(self._report, [])  # before the work, not after, if it cannot be
            _stop_on_signals(fleet, reactor)
            progress = Progress(fleet, reactor, sys.stderr)
            progress.start()
            try:
                await fleet.run()
            finally:
                progress.stop()
            reports = fleet.reports()
            if self._report is not None:
                write_report(self._report, reports)
        except OperatorError as error:
            raise SystemExit(f"Error: {error}") from error
        summary = fleet.summary(reports)
        click.echo(self._shown(summary))
        if summary.failed_agents:
            raise SystemExit(1)

    def _shown(self, summary: Summary) -> str:
        if self._as_json:
            shown = msgspec.to_builtins(summary) | {"seed": self._plan.seed}
            return msgspec.json.encode(shown).decode()
        text = summary_text(summary, self._plan.seed)
        if self._events.left_out:
            text += (
                f"\n  {self._events.left_out} heartbeats and task results among the events were "
                "left out: agents send their own"
            )
        return text


def _stop_on_signals(fleet: Fleet, reactor: Any) -> None:
    """End the run in order at the first SIGINT or SIGTERM, at once at the second."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        reactor.callFromThread(fleet.stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


@fleet.command()
@click.argument("report", type=click.Path(path_type=Path))
@click.pass_obj
def check(obj: Invocation, report: Path) -> None:
    """Compare a REPORT of `fleet run` with the event log of this machine.

    What is stored of each agent, stream and class must be a prefix of what was sent, without
    gap or double, and all of it where the server confirmed the stream. The exit status is 1 when
    it is not.

    \b
    Example:
      elkeid fleet run --agents 200 --rate 50 --duration 30 --report sent.jsonl
      elkeid fleet check sent.jsonl
    """
    agents = list(read_report(report))
    if not agents:
        raise OperatorError(f"{report} lists no agent; the run that wrote it did not end")
    since = min((agent.started for agent in agents if agent.started is not None), default=0.0)
    directory = obj.settings.server.data_dir / "eventlog"
    ids = [agent.agent_id for agent in agents]
    try:
        verdict = compare(agents, stored_records(directory, ids, since))
    except OSError as error:
        raise OperatorError(f"{error.filename or directory}: {error.strerror or error}") from error
    click.echo(verdict.text())
    if not verdict.good:
        raise SystemExit(1)
