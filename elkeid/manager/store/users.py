"""Queries on users. Every function takes a connection and blocks."""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from attrs import field, frozen
from sqlalchemy import Connection, delete, func, insert, select, update

from elkeid.manager.store.schema import (
    known_address,
    login_failure,
    password_history,
    recovery_code,
    token,
    user,
)
from elkeid.manager.store.upsert import insert_missing, upsert

USERS_LIMIT = 10_000
"""Users of a deployment; people and a few machines, listed and searched whole."""

ADDRESSES_PER_USER = 20
"""Addresses from which a user is known to log in; beyond, the longest unused is forgotten."""


@frozen
class User:
    """One user as stored; `password` is an argon2 hash. Times are unix seconds.

    ``networks`` are those the user may come from; without any, from everywhere. The second factor
    is asked for once it is confirmed; ``otp_step`` is the time step of the last code used.
    """

    id: int
    username: str
    level: int
    password: str = field(repr=False)
    avatar: str
    password_update_time: int
    networks: tuple[str, ...] = ()
    otp_secret: str | None = field(default=None, repr=False)
    otp_confirmed: bool = False
    otp_step: int = 0


class UsersFull(Exception):
    """There are `USERS_LIMIT` users."""


class LastAdmin(Exception):
    """The change would leave no administrator."""


USER_COLUMNS = (
    user.c.id,
    user.c.username,
    user.c.level,
    user.c.password,
    user.c.avatar,
    user.c.password_update_time,
    user.c.networks,
    user.c.otp_secret,
    user.c.otp_confirmed,
    user.c.otp_step,
)


def user_of(row: Any) -> User:
    """The user in the first columns of a row, which are `USER_COLUMNS`."""
    values = list(row[: len(USER_COLUMNS)])
    values[6] = tuple(msgspec.json.decode(values[6], type=list[str]))
    return User(*values)


def find_user(connection: Connection, username: str) -> User | None:
    """The user of exactly this name; a text that no database takes is nobody's name."""
    if "\0" in username:
        return None
    row = connection.execute(select(*USER_COLUMNS).where(user.c.username == username)).first()
    return None if row is None else user_of(row)


def all_users(connection: Connection) -> list[User]:
    """Every user, by name."""
    query = select(*USER_COLUMNS).order_by(user.c.username)
    return [user_of(row) for row in connection.execute(query)]


def has_level(connection: Connection, level: int) -> bool:
    """Say whether any user has this level."""
    return (
        connection.execute(select(user.c.id).where(user.c.level == level).limit(1)).first()
        is not None
    )


def add_user(
    connection: Connection,
    username: str,
    level: int,
    password: str,
    now: int,
    *,
    avatar: str = "",
    networks: Sequence[str] = (),
) -> bool:
    """Add a user; ``password`` is a hash.

    Returns:
        False if the name is taken, in whatever case.

    Raises:
        UsersFull: nobody can be added.
    """
    like = select(user.c.id).where(func.lower(user.c.username) == username.lower()).limit(1)
    if connection.execute(like).first() is not None:
        return False
    if connection.execute(select(func.count()).select_from(user)).scalar_one() >= USERS_LIMIT:
        raise UsersFull
    values = {
        "username": username,
        "level": level,
        "password": password,
        "avatar": avatar,
        "networks": msgspec.json.encode(list(networks)).decode(),
        "created_at": now,
        "updated_at": now,
        "password_update_time": now,
    }
    added = connection.execute(insert_missing(connection, user, ["username"]), values)
    return bool(added.rowcount)


def change_user(
    connection: Connection,
    username: str,
    now: int,
    *,
    level: int | None = None,
    avatar: str | None = None,
    networks: Sequence[str] | None = None,
) -> bool:
    """Change what is given; the user's tokens end if that says what he may do, or from where.

    Returns:
        False if there is no such user.

    Raises:
        LastAdmin: nobody would be an administrator any more; nothing was changed.
    """
    _lock_admins(connection)
    found = find_user(connection, username)
    if found is None:
        return False
    values: dict[str, Any] = {"updated_at": now}
    if level is not None:
        values["level"] = level
    if avatar is not None:
        values["avatar"] = avatar
    if networks is not None:
        values["networks"] = msgspec.json.encode(list(networks)).decode()
    connection.execute(update(user).where(user.c.id == found.id).values(values))
    if found.level == 0 and not has_level(connection, 0):
        raise LastAdmin
    moved = networks is not None and set(networks) != set(found.networks)
    if moved or level not in (None, found.level):
        end_sessions(connection, found.id)
    return True


def delete_users(connection: Connection, usernames: Collection[str]) -> int:
    """Delete users with all that belongs to them, tokens first of all.

    Returns:
        How many there were.

    Raises:
        LastAdmin: nobody would be an administrator any more; nothing was changed.
    """
    _lock_admins(connection)
    names = [name for name in usernames if "\0" not in name]
    meant = select(user.c.id).where(user.c.username.in_(names))
    ids = list(connection.execute(meant).scalars())
    if not ids:
        return 0
    had_admin = has_level(connection, 0)
    for table in (token, recovery_code, known_address, password_history):
        connection.execute(delete(table).where(table.c.user_id.in_(ids)))
    connection.execute(delete(user).where(user.c.id.in_(ids)))
    if had_admin and not has_level(connection, 0):
        raise LastAdmin
    return len(ids)


def _lock_admins(connection: Connection) -> None:
    """Let two Managers not take the last two administrators at once."""
    connection.execute(select(user.c.id).where(user.c.level == 0).with_for_update()).all()


def end_sessions(connection: Connection, user_id: int, keep: str = "") -> None:
    """End all tokens of a user but the one with the hash ``keep``."""
    connection.execute(delete(token).where(token.c.user_id == user_id, token.c.hash != keep))


def set_password(
    connection: Connection,
    user_id: int,
    password: str,
    keep_token: str,
    now: int,
    *,
    history: int = 0,
) -> None:
    """Store another hash and end all of the user's tokens but one.

    Args:
        connection: within a transaction.
        user_id: whose.
        password: the hash.
        keep_token: hash of the token that stays.
        now: unix seconds.
        history: how many of the last hashes are remembered, the new one not counted.
    """
    old = connection.execute(
        select(user.c.password).where(user.c.id == user_id).with_for_update()
    ).scalar()
    if old is None:
        return
    connection.execute(
        update(user)
        .where(user.c.id == user_id)
        .values(password=password, password_update_time=now, updated_at=now)
    )
    if history:
        connection.execute(insert(password_history).values(user_id=user_id, password=old))
    remembered = connection.execute(
        select(password_history.c.id)
        .where(password_history.c.user_id == user_id)
        .order_by(password_history.c.id.desc())
    ).scalars()
    for surplus in list(remembered)[history:]:
        connection.execute(delete(password_history).where(password_history.c.id == surplus))
    end_sessions(connection, user_id, keep_token)


def old_passwords(connection: Connection, user_id: int, limit: int) -> list[str]:
    """The hashes a user had before this one, the newest first."""
    query = (
        select(password_history.c.password)
        .where(password_history.c.user_id == user_id)
        .order_by(password_history.c.id.desc())
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def begin_otp(connection: Connection, user_id: int, secret: str) -> bool:
    """Store the secret of a second factor that is not confirmed yet; False if one is in use."""
    changed = connection.execute(
        update(user)
        .where(user.c.id == user_id, user.c.otp_confirmed.is_(False))
        .values(otp_secret=secret, otp_step=0)
    )
    return bool(changed.rowcount)


def confirm_otp(
    connection: Connection,
    user_id: int,
    *,
    secret: str,
    step: int,
    recovery_hashes: Collection[str],
    keep_token: str,
) -> bool:
    """Ask for the second factor from now on; all tokens but one end.

    Returns:
        False if this secret was not the one that was begun last, or is confirmed already.
    """
    changed = connection.execute(
        update(user)
        .where(user.c.id == user_id, user.c.otp_confirmed.is_(False), user.c.otp_secret == secret)
        .values(otp_confirmed=True, otp_step=step)
    )
    if not changed.rowcount:
        return False
    connection.execute(delete(recovery_code).where(recovery_code.c.user_id == user_id))
    connection.execute(
        insert(recovery_code), [{"user_id": user_id, "hash": each} for each in recovery_hashes]
    )
    end_sessions(connection, user_id, keep_token)
    return True


def end_otp(connection: Connection, user_id: int) -> None:
    """Forget a second factor."""
    connection.execute(
        update(user)
        .where(user.c.id == user_id)
        .values(otp_secret=None, otp_confirmed=False, otp_step=0)
    )
    connection.execute(delete(recovery_code).where(recovery_code.c.user_id == user_id))


def use_otp_step(connection: Connection, user_id: int, step: int) -> bool:
    """Use up a time step and those before it; False if it was used already."""
    changed = connection.execute(
        update(user).where(user.c.id == user_id, user.c.otp_step < step).values(otp_step=step)
    )
    return bool(changed.rowcount)


def use_recovery_code(connection: Connection, user_id: int, code_hash: str) -> bool:
    """Use up a recovery code; False if there is none such."""
    gone = connection.execute(
        delete(recovery_code).where(
            recovery_code.c.user_id == user_id, recovery_code.c.hash == code_hash
        )
    )
    return bool(gone.rowcount)


def know_address(connection: Connection, user_id: int, address: str, now: int) -> None:
    """Remember that a user logged in from an address."""
    mine = known_address.c.user_id == user_id
    connection.execute(
        upsert(connection, known_address, ["user_id", "address"], ["seen_at"]),
        {"user_id": user_id, "address": address, "seen_at": now},
    )
    known = list(
        connection.execute(
            select(known_address.c.address).where(mine).order_by(known_address.c.seen_at.desc())
        ).scalars()
    )
    for surplus in known[ADDRESSES_PER_USER:]:
        connection.execute(delete(known_address).where(mine, known_address.c.address == surplus))


def is_known_address(connection: Connection, user_id: int, address: str, since: int) -> bool:
    """Say whether a user has logged in from an address since then, unix seconds."""
    query = select(known_address.c.address).where(
        known_address.c.user_id == user_id,
        known_address.c.address == address,
        known_address.c.seen_at >= since,
    )
    return connection.execute(query).first() is not None


def forgive(connection: Connection, subject: str) -> int:
    """Forget the failed logins of a user, from everywhere; ``subject`` as they were noted."""
    return connection.execute(
        delete(login_failure).where(login_failure.c.subject == subject)
    ).rowcount
