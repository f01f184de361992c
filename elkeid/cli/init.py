"""``elkeid init``: set up a server for a network in one step."""

import ipaddress
import os
import tomllib
from pathlib import Path

import click

from elkeid.cli import Invocation
from elkeid.cli.keys import LOSS_WARNING
from elkeid.config import DEFAULT_FILE, is_host, is_loopback, parse
from elkeid.errors import ConfigError
from elkeid.keys import create_keys, load_keys

TLS_PORT = 6702  # beside the Manager's plain 6701


@click.command()
@click.option(
    "--advertise",
    required=True,
    metavar="ADDRESS",
    help="The IP address or name by which agents and operators reach this machine.",
)
@click.pass_obj
def init(obj: Invocation, advertise: str) -> None:
    """Set up a server for a network in one step.

    Writes settings and keys for a server with every role that ADDRESS leads to.

    \b
    Example:
      elkeid init --advertise 192.0.2.10
    """
    if not is_host(advertise) or _is_wildcard(advertise):
        raise ConfigError(
            [
                "--advertise: must be the IPv4 or IPv6 address (without brackets) or the name of "
                "this machine"
            ]
        )
    path = (obj.config or Path(DEFAULT_FILE)).absolute()
    text = settings_text(advertise)
    settings = parse(tomllib.loads(text), path.resolve().parent)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as error:
        raise ConfigError([f"{path} is there already: change it by hand, or move it away"]) from (
            error
        )
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}"]) from error
    click.echo(f"Wrote {path}.")
    folder = settings.server.keys_dir
    if create_keys(settings):
        click.echo(f"Made new keys in {folder}. {LOSS_WARNING}")
    else:
        load_keys(settings, ("ac", "sd", "manager"))
        click.echo(f"Kept the keys in {folder}.")
    where = f"[{advertise}]" if ":" in advertise else advertise
    click.echo(
        "\nNext:\n"
        f"  1. Let agents reach {where} on TCP 6751 and 8088, operators on {TLS_PORT}.\n"
        f"  2. Build agents with {folder}/ca.crt, client.crt and client.key, and with\n"
        f"     {where}:8088 as their service discovery.\n"
        "  3. Start the server: twistd -n elkeid\n"
        f"  4. The first start writes the password of the user admin to {folder}/admin-password."
    )


def settings_text(advertise: str) -> str:
    """The settings file for a server with every role that ``advertise`` leads to."""
    is_v6 = ":" in advertise
    listen = "::" if is_v6 else "0.0.0.0"  # noqa: S104 -- the point of this command
    loopback = is_loopback(advertise)
    if loopback:
        listen = "::1" if is_v6 else "127.0.0.1"
    return (
        "# All settings, their defaults and reasons: docs/settings.md.\n"
        "\n"
        "[server]\n"
        f'advertise = "{advertise}"\n'
        "\n"
        "[agentcenter]\n"
        f'listen = "{listen}"\n'
        "\n"
        "[discovery]\n"
        f'listen = "{listen}"\n'
        f'members = ["{"[::1]" if is_v6 else "127.0.0.1"}:8088"]\n'
        "\n"
        "[manager]\n"
        f'listen = "{listen}"\n'
        f"tls_port = {TLS_PORT}  # users log in here; plain HTTP is not for passwords\n"
    )


def _is_wildcard(advertise: str) -> bool:
    try:
        return ipaddress.ip_address(advertise).is_unspecified
    except ValueError:
        return False
