"""``elkeid user``: users of the Manager, beside the running server too; all of it is audited."""

import getpass
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from elkeid.cli import Invocation
from elkeid.config import Settings
from elkeid.errors import OperatorError, StoreError
from elkeid.manager.access import check_username
from elkeid.manager.passwords import HASHER, PasswordRefused, check_new_password
from elkeid.manager.roles import ROLES, level_of
from elkeid.manager.store.audit import CALL, Entry, append
from elkeid.manager.store.backends import database_of
from elkeid.manager.store.engine import Database
from elkeid.manager.store.migrate import migrate
from elkeid.manager.store.users import (
    USERS_LIMIT,
    LastAdmin,
    UsersFull,
    add_user,
    all_users,
    delete_users,
    end_otp,
    end_sessions,
    find_user,
    forgive,
    set_password,
)
from elkeid.manager.throttle import subject_of

T = TypeVar("T")
_LEVEL_NAMES = {level: role for role, level in ROLES.items()}


class UserRefused(OperatorError):
    """The user cannot be added or changed as asked."""


@click.group()
def user() -> None:
    """Add, list, delete, reset and unlock users of the Manager.

    \b
    Example:
      elkeid user add alice --role agent-ro
    """


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database at its newest schema; what is wrong with it becomes one sentence."""
    database = database_of(settings)
    database.open()
    try:
        migrate(database)
        yield database
    except DBAPIError as error:
        raise StoreError(f"{database.name} cannot be written ({error.orig}); try again") from error
    finally:
        database.close()


def audited(
    database: Database, command: str, name: str, query: Callable[..., T], *args: Any, **kwargs: Any
) -> T:
    """Do something to a user and write it down, both or none."""
    entry = Entry(
        at_ms=int(time.time() * 1000),
        kind=CALL,
        username=f"os:{_system_user()}"[:80],
        peer="local",
        method="CLI",
        path=f"elkeid user {command}",
        status=200,
        code=0,
        objects=(name,),
    )
    with database.writing() as connection:
        append(connection, entry)
        return query(connection, *args, **kwargs)


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for it
        return str(os.getuid())


def typed_password(name: str, from_stdin: bool, settings: Settings) -> str:
    """A password that may be set; asked for twice at a terminal."""
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    check_new_password(name, password, settings.manager.password_characters)
    return password


def _name(_: object, __: object, name: str) -> str:
    """Check that a name is text: no database takes anything else."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("not UTF-8") from error
    return name


@user.command()
@click.argument("name", callback=_name)
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
        password = typed_password(name, password_stdin, settings)
    except (ValueError, PasswordRefused) as error:
        raise UserRefused(str(error)) from error
    with opened(settings) as database:
        stored = HASHER.hash(password)
        audited(database, "add", name, _add, name, level, stored)
    click.echo(f"user {name} added, level {level}")


def _add(connection: Connection, name: str, level: int, stored: str) -> None:
    try:
        added = add_user(connection, name, level, stored, int(time.time()))
    except UsersFull:
        raise UserRefused(
            f"there are {USERS_LIMIT} users already: delete some first (elkeid user del)"
        ) from None
    if not added:
        raise UserRefused(f"user {name} exists already: choose another name")


@user.command("list")
@click.pass_obj
def list_users(invocation: Invocation) -> None:
    """List users: name, role, level, second factor, networks.

    \b
    Example:
      elkeid user list
    """
    with opened(invocation.settings) as database, database.reading() as connection:
        for each in all_users(connection):
            role = _LEVEL_NAMES.get(each.level, "unknown")
            factor = "otp" if each.otp_confirmed else "-"
            networks = ",".join(each.networks) or "anywhere"
            click.echo(f"{each.username}\t{role}\t{each.level}\t{factor}\t{networks}")


@user.command("del")
@click.argument("name", callback=_name)
@click.pass_obj
def delete(invocation: Invocation, name: str) -> None:
    """Delete a user; the user's tokens end at once.

    \b
    Example:
      elkeid user del alice
    """
    with opened(invocation.settings) as database:
        try:
            audited(database, "del", name, _delete, name)
        except LastAdmin:
            raise UserRefused(
                f"user {name} is the last administrator: add another one first"
            ) from None
    click.echo(f"user {name} deleted")


def _delete(connection: Connection, name: str) -> None:
    if not delete_users(connection, [name]):
        raise _unknown(name)


@user.command()
@click.argument("name", callback=_name)
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input: its first line."
)
@click.option("--otp-off", is_flag=True, help="Remove the second factor too: the phone is lost.")
@click.pass_obj
def reset(invocation: Invocation, name: str, password_stdin: bool, otp_off: bool) -> None:
    """Set a user's password; the user's tokens end, failed logins are forgotten.

    \b
    Example:
      elkeid user reset alice
      elkeid user reset alice --otp-off
    """
    settings = invocation.settings
    with opened(settings) as database:
        with database.reading() as connection:
            if find_user(connection, name) is None:
                raise _unknown(name)
        try:
            password = typed_password(name, password_stdin, settings)
        except PasswordRefused as error:
            raise UserRefused(str(error)) from error
        stored, history = HASHER.hash(password), settings.manager.password_history
        audited(database, "reset", name, _reset, name, stored, history=history, otp_off=otp_off)
    click.echo(f"password of user {name} set, all sessions ended")


def _reset(connection: Connection, name: str, stored: str, *, history: int, otp_off: bool) -> None:
    found = find_user(connection, name)
    if found is None:
        raise _unknown(name)
    set_password(connection, found.id, stored, "", int(time.time()), history=max(0, history - 1))
    if otp_off:
        end_otp(connection, found.id)
    end_sessions(connection, found.id)
    forgive(connection, subject_of(name))


@user.command()
@click.argument("name", callback=_name)
@click.pass_obj
def unlock(invocation: Invocation, name: str) -> None:
    """Forget a user's failed logins, so that nobody has to wait any more.

    \b
    Example:
      elkeid user unlock alice
    """
    with opened(invocation.settings) as database:
        count = audited(database, "unlock", name, forgive, subject_of(name))
    click.echo(f"user {name}: {count} counts of failed logins forgotten")


def _unknown(name: str) -> UserRefused:
    return UserRefused(f"there is no user {name}: elkeid user list shows who there is")
