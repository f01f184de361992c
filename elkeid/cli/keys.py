"""``elkeid keys``: make keys, and take them to other machines."""

from pathlib import Path

import click

from elkeid.cli import Invocation
from elkeid.errors import KeysError
from elkeid.keys import (
    ALL_FILES,
    ROLE_FILES,
    create_keys,
    export_archive,
    import_archive,
    load_keys,
    renew_server,
)
from elkeid.private_files import write_new_private

LOSS_WARNING = (
    "Keep a backup of this folder in a safe place: agents trust these keys alone, "
    "and losing them means reinstalling every agent."
)


@click.group()
def keys() -> None:
    """Make keys, and take them to other machines.

    \b
    Example, for an agent gateway on a machine of its own:
      elkeid keys export ac                  # where the keys are
      scp elkeid-keys-ac.tar gateway:        # the archive holds secrets
      elkeid keys import elkeid-keys-ac.tar  # on the gateway
    """


@keys.command()
@click.pass_obj
def init(obj: Invocation) -> None:
    """Make a new set of keys, unless there are some.

    \b
    Example:
      elkeid keys init
    """
    folder = obj.settings.server.keys_dir
    if create_keys(obj.settings):
        click.echo(f"Made new keys in {folder}. {LOSS_WARNING}")
        return
    missing = [name for name in ALL_FILES if not (folder / name).exists()]
    if missing:
        raise KeysError(
            f"{folder} holds a part of a set of keys, without {', '.join(missing)}: "
            "restore these from a backup, or move the folder away to begin anew"
        )
    load_keys(obj.settings, ROLE_FILES)
    click.echo(f"{folder} holds a complete set of keys; nothing was changed.")


@keys.command()
@click.argument("role", type=click.Choice(list(ROLE_FILES)))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.tar",
    help="Archive to write; elkeid-keys-ROLE.tar by default.",
)
@click.pass_obj
def export(obj: Invocation, role: str, out: Path | None) -> None:
    """Pack what ROLE needs into an archive, never with ca.key.

    ROLE is ac, sd (sd-tls with discovery.tls_port) or manager; agent is what agents are
    built with.

    \b
    Example:
      elkeid keys export ac --out ac.tar
    """
    out = out or Path(f"elkeid-keys-{role}.tar")
    packed = export_archive(obj.settings, role)
    try:
        write_new_private(out, packed)
    except FileExistsError as error:
        raise KeysError(f"{out} is there already; choose another --out") from error
    except OSError as error:
        raise KeysError(f"{out} cannot be written: {error.strerror}; choose another --out") from (
            error
        )
    click.echo(
        f"Wrote {', '.join(ROLE_FILES[role])} to {out}. It holds secrets: take it to its machine "
        f"over a safe way, run `elkeid keys import {out.name}` there, then delete it."
    )


@keys.command()
@click.pass_obj
def renew(obj: Invocation) -> None:
    """Make a new server certificate, signed by the same authority; agents need nothing new.

    A running server takes it at SIGHUP, without dropping a connection.

    \b
    Example:
      elkeid keys renew
      pkill -HUP -f "twistd.* elkeid"
    """
    names = renew_server(obj.settings)
    folder = obj.settings.server.keys_dir
    click.echo(
        f"Renewed {folder / 'server.crt'} and server.key for {', '.join(names)}. Send SIGHUP to "
        "the server to use them now. For other machines: `elkeid keys export ac`, and there "
        "`elkeid keys import --renew`."
    )


@keys.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--renew",
    is_flag=True,
    help="Replace the server's certificate, and ca.crt by one that holds all its authorities.",
)
@click.pass_obj
def import_(obj: Invocation, file: Path, renew: bool) -> None:
    """Put the keys of an archive in place; nothing that differs is replaced without --renew.

    \b
    Example:
      elkeid keys import elkeid-keys-ac.tar
    """
    new = import_archive(obj.settings, file, renew=renew)
    folder = obj.settings.server.keys_dir
    if new:
        click.echo(f"Put {', '.join(new)} into {folder}. {file} can be deleted now.")
    else:
        click.echo(f"{folder} holds all of these already; nothing was changed.")
