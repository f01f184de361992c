"""The ``elkeid`` command: one lazily imported module for each group of commands.

A command that needs settings takes ``@click.pass_obj`` and asks `Invocation.settings`. Errors of
the `OperatorError` family end any command with one sentence and status 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from elkeid.config import Settings, load
from elkeid.errors import ConfigError, OperatorError
from elkeid.workers import MOST, Worker, settings_of

# Name -> module of this package, which holds a command of that name, and its line of help.
COMMANDS = {
    "init": ("elkeid.cli.init", "Set up a server for a network in one step."),
    "keys": ("elkeid.cli.keys", "Make keys, and take them to other machines."),
    "user": ("elkeid.cli.user", "Add, list, delete, reset and unlock users of the Manager."),
    "audit": ("elkeid.cli.audit", "Check the audit log."),
    "backup": ("elkeid.cli.backup", "Write database, keys and cursors to one file."),
    "restore": ("elkeid.cli.restore", "Bring back what elkeid backup wrote, into empty places."),
    "call": ("elkeid.cli.call", "Call a gateway's HTTP API, signed, and print its answer."),
    "limits": (
        "elkeid.cli.limits",
        "Print the limits of what peers may cost, with the values that the settings give.",
    ),
    "log": ("elkeid.cli.log", "Look at the event log."),
    "ledger": ("elkeid.cli.ledger", "Show where every record went, and whether it balances."),
    "kafka": ("elkeid.cli.kafka", "Read back what went to Kafka."),
    "fleet": ("elkeid.cli.fleet", "Simulate agents, thousands in one process."),
}


class Invocation:
    """What all commands of one invocation share."""

    def __init__(self, config: Path | None, worker: int | None = None) -> None:
        self.config, self._worker = config, worker

    @cached_property
    def settings(self) -> Settings:
        """The settings, found as the server finds them; `ConfigError` if they are at fault."""
        settings = load(self.config)
        if self._worker is None:
            return settings
        return settings_of(Worker(self._worker, self._worker + 1), settings)


class LazyGroup(click.Group):
    """Imports a command's module when that command runs, not to print help or to start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See `click.Group`."""
        return [name for name, (module, _) in COMMANDS.items() if find_spec(module) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See `click.Group`."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Group`; takes the lines from `COMMANDS`."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Group`."""
        with told_in_a_sentence():
            return super().invoke(ctx)


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """Turn an operator's mistake into its sentence and exit status 1."""
    try:
        yield
    except ConfigError as error:
        raise click.ClickException("\n".join(error.faults)) from error
    except OperatorError as error:
        raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Settings file; elkeid.toml if there is one, else built-in defaults.",
)
@click.option(
    "--worker",
    type=click.IntRange(0, MOST - 1),
    metavar="NUMBER",
    help="Of a server with --workers: the gateway whose data is meant.",
)
@click.version_option(package_name="elkeid", message="elkeid %(version)s")
@click.pass_context
def main(ctx: click.Context, config: Path | None, worker: int | None) -> None:
    """The back end of host security agents: what operators do beside the running server.

    \b
    Example:
      elkeid --config /etc/elkeid/elkeid.toml keys export ac
    """
    ctx.obj = Invocation(config, worker)
