"""``elkeid backup``: one file with what cannot be made again."""

from pathlib import Path

import click

from elkeid.cli import Invocation
from elkeid.manager.backup import write_backup


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.pass_obj
def backup(invocation: Invocation, path: Path) -> None:
    """Write database, keys and cursors to one file.

    The server may run meanwhile. Whoever has the file has the keys of every agent: it is
    readable by its owner alone, and should be kept so.

    \b
    Example:
      elkeid backup /var/backups/elkeid-monday
    """
    size = write_backup(invocation.settings, path)
    click.echo(f"{path}: {size} bytes")
