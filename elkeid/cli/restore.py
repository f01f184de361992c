"""``elkeid restore``: bring back what `elkeid backup` wrote."""

import time
from pathlib import Path

import click

from elkeid.cli import Invocation
from elkeid.manager.backup import read_backup


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.pass_obj
def restore(invocation: Invocation, path: Path) -> None:
    """Bring back what elkeid backup wrote, into empty places.

    Keys folder and cursors must not be there yet, and the database have neither users nor agents.
    It may be of the other kind than the one the backup was taken of.

    \b
    Example:
      elkeid restore /var/backups/elkeid-monday
    """
    manifest = read_backup(invocation.settings, path)
    then = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.created_at))
    click.echo(f"restored what version {manifest.version} had on {then}")
