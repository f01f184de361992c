"""``elkeid audit``: whether the audit log is what was written."""

import re

import click

from elkeid.cli import Invocation
from elkeid.cli.user import opened
from elkeid.errors import OperatorError
from elkeid.manager.auditcheck import AuditBroken, verify

_HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})\Z")


class AuditRefused(OperatorError):
    """The log is not what was written, or what was asked for makes no sense."""


@click.group()
def audit() -> None:
    """Check the audit log.

    \b
    Example:
      elkeid audit verify
    """


@audit.command("verify")
@click.option(
    "--head",
    metavar="SEQ:HASH",
    help="A head noted before, by syslog for example: the log must hold it still.",
)
@click.pass_obj
def check(invocation: Invocation, head: str | None) -> None:
    """Check that no entry was changed, removed or put in; status 1 names the first broken one.

    Whoever can write to the database can also make a whole new chain: only a head that was noted
    elsewhere shows that. It goes to syslog if manager.audit_syslog is set.

    \b
    Example:
      elkeid audit verify
      elkeid audit verify --head "$(cat noted-head)"
    """
    expected = None
    if head is not None:
        found = _HEAD.match(head)
        if found is None:
            raise AuditRefused("--head: must be SEQ:HASH, a number and 64 hexadecimal digits")
        expected = int(found[1]), found[2]
    with opened(invocation.settings) as database:
        try:
            verdict = verify(database, expected)
        except AuditBroken as error:
            raise AuditRefused(str(error)) from error
    click.echo(
        f"{verdict.count} entries from {verdict.first} to {verdict.head.seq} are whole, "
        f"head {verdict.head.seq}:{verdict.head.hash}"
    )
