"""``elkeid limits``: every limit, why it is there, and what a peer gets beyond it."""

import json
from collections.abc import Sequence

import click
from attrs import asdict

from elkeid.agentcenter.limits import limits as agentcenter_limits
from elkeid.cli import Invocation
from elkeid.config import Settings
from elkeid.descriptors import share, shown
from elkeid.discovery.limits import limits as discovery_limits
from elkeid.eventlog.limits import limits as eventlog_limits
from elkeid.limits import Limit
from elkeid.manager.limits import limits as manager_limits
from elkeid.process import raise_open_files
from elkeid.web.limits import limits as web_limits

ROLES = ("sd", "manager", "ac")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--markdown", is_flag=True, help="A table for documents.")
@click.pass_obj
def limits(obj: Invocation, as_json: bool, markdown: bool) -> None:
    """Print the limits of what peers may cost, with the values that the settings give.

    \b
    Example:
      elkeid limits --json | jq -r '.name'
    """
    table = all_limits(obj.settings)
    if as_json:
        for each in table:
            click.echo(json.dumps(asdict(each)))
    elif markdown:
        click.echo(markdown_table(table), nl=False)
    else:
        for each in table:
            click.echo(f"{each.name} = {each.value:.15g} ({each.unit})")
            click.echo(f"    {each.reason}. Beyond: {each.answer}. Metric: {each.metric}.")
        shares = share(raise_open_files(), obj.settings, ROLES)
        click.echo(f"All roles in one process, from here: {shown(shares, obj.settings, ROLES)}.")


def all_limits(settings: Settings) -> list[Limit]:
    """Those of every role, with the values that these settings give."""
    return [
        *agentcenter_limits(settings.agentcenter),
        *discovery_limits(settings.discovery),
        *eventlog_limits(settings.eventlog),
        *web_limits(),
        *manager_limits(settings.manager),
    ]


def markdown_table(table: Sequence[Limit]) -> str:
    """The table as Markdown."""
    lines = [
        "| limit | value | of | why | beyond it | metric | test |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{each.name}` | {each.value:.15g} | {each.unit} | {each.reason} | {each.answer} "
        f"| `{each.metric}` | `{each.test}` |"
        for each in table
    ]
    return "\n".join(lines) + "\n"
