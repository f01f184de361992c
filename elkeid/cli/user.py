"""``elkeid user``: add users of the Manager, beside the running server too."""

import sys
import time

import click
from sqlalchemy.exc import DBAPIError

from elkeid.cli import Invocation
from elkeid.errors import OperatorError, StoreError
from elkeid.manager.access import check_username
from elkeid.manager.passwords import HASHER, PasswordRefused, check_new_password
from elkeid.manager.roles import ROLES, level_of
from elkeid.manager.store.backends import database_of
from elkeid.manager.store.migrate import migrate
from elkeid.manager.store.users import add_user


class UserRefused(OperatorError):
    """The user cannot be added as asked."""


@click.group()
def user() -> None:
    """Add users of the Manager.

    \b
    Example:
      elkeid user add alice --role agent-ro
    """


@user.command()
@click.argument("name")
@click.option(
    "--role",
    required=True,
    help=f"What the user may do: {', '.join(ROLES)}, or the level's number.",
)
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input: its first line."
)
@click.pass_obj
def add(invocation: Invocation, name: str, role: str, password_stdin: bool) -> None:
    """Add a user; asks for the password twice, unless it comes from standard input.

    \b
    Example:
      elkeid user add alice --role agent-ro
      pass show alice | elkeid user add alice --role agent-ro --password-stdin
    """
    settings = invocation.settings
    try:
        check_username(name)
        level = level_of(role)
        if password_stdin:
            password = sys.stdin.readline().rstrip("\r\n")
        else:
            password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        check_new_password(name, password)
    except (ValueError, PasswordRefused) as error:
        raise UserRefused(str(error)) from error
    database = database_of(settings)
    database.open()
    try:
        migrate(database)
        stored = HASHER.hash(password)
        with database.writing() as connection:
            added = add_user(connection, name, level, stored, int(time.time()))
    except DBAPIError as error:
        raise StoreError(f"{database.name} cannot be written ({error.orig}); try again") from error
    finally:
        database.close()
    if not added:
        raise UserRefused(f"user {name} exists already: choose another name")
    click.echo(f"user {name} added, level {level}")
