"""Queries on users and their tokens. Every function takes a connection and blocks."""

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from elkeid.manager.store.schema import token, user

TOKENS_PER_USER = 1_000
"""Live tokens of one user; a client that logs in for every call loses its oldest."""


@frozen
class User:
    """One user as stored; `password` is an argon2 hash. Times are unix seconds."""

    id: int
    username: str
    level: int
    password: str = field(repr=False)
    avatar: str
    password_update_time: int


@frozen
class Session:
    """A live token: whose it is and when it ends, unix seconds, as last stored."""

    user: User
    expires_at: float


_USER = (
    user.c.id,
    user.c.username,
    user.c.level,
    user.c.password,
    user.c.avatar,
    user.c.password_update_time,
)


def _user(row: Any) -> User:
    return User(*row[: len(_USER)])


def find_user(connection: Connection, username: str) -> User | None:
    """The user of exactly this name."""
    row = connection.execute(select(*_USER).where(user.c.username == username)).first()
    return None if row is None else _user(row)


def has_level(connection: Connection, level: int) -> bool:
    """Say whether any user has this level."""
    return (
        connection.execute(select(user.c.id).where(user.c.level == level).limit(1)).first()
        is not None
    )


def add_user(connection: Connection, username: str, level: int, password: str, now: int) -> bool:
    """Add a user; ``password`` is a hash. False if the name is taken."""
    values = {
        "username": username,
        "level": level,
        "password": password,
        "created_at": now,
        "updated_at": now,
        "password_update_time": now,
    }
    try:
        with connection.begin_nested():
            connection.execute(insert(user).values(values))
    except IntegrityError:
        return False
    return True


def set_password(
    connection: Connection, user_id: int, password: str, keep_token: str, now: int
) -> None:
    """Store another hash and end all of the user's tokens but one.

    Args:
        connection: within a transaction.
        user_id: whose.
        password: the hash.
        keep_token: hash of the token that stays.
        now: unix seconds.
    """
    connection.execute(
        update(user)
        .where(user.c.id == user_id)
        .values(password=password, password_update_time=now, updated_at=now)
    )
    connection.execute(delete(token).where(token.c.user_id == user_id, token.c.hash != keep_token))


def add_token(
    connection: Connection, token_hash: str, user_id: int, now: int, expires_at: float
) -> None:
    """Store a token; beyond `TOKENS_PER_USER` the ones that would expire first go."""
    connection.execute(
        insert(token).values(
            hash=token_hash, user_id=user_id, created_at=now, expires_at=expires_at
        )
    )
    count = connection.execute(
        select(func.count()).select_from(token).where(token.c.user_id == user_id)
    ).scalar_one()
    if count > TOKENS_PER_USER:
        surplus = (
            select(token.c.hash)
            .where(token.c.user_id == user_id, token.c.hash != token_hash)
            .order_by(token.c.expires_at)
            .limit(count - TOKENS_PER_USER)
        )
        connection.execute(delete(token).where(token.c.hash.in_(surplus)))


def find_session(connection: Connection, token_hash: str) -> Session | None:
    """The user of a token, expired or not."""
    row = connection.execute(
        select(*_USER, token.c.expires_at)
        .join_from(token, user, token.c.user_id == user.c.id)
        .where(token.c.hash == token_hash)
    ).first()
    return None if row is None else Session(_user(row), row.expires_at)


def remove_tokens(connection: Connection, hashes: Iterable[str]) -> None:
    """Forget tokens."""
    connection.execute(delete(token).where(token.c.hash.in_(list(hashes))))


def slide_tokens(connection: Connection, expiries: Mapping[str, float], now: float) -> int:
    """Store new ends of life, and forget tokens that have expired.

    Args:
        connection: within a transaction.
        expiries: token hash -> unix seconds.
        now: unix seconds.

    Returns:
        How many tokens had expired.
    """
    for token_hash, expires_at in expiries.items():
        connection.execute(
            update(token).where(token.c.hash == token_hash).values(expires_at=expires_at)
        )
    return connection.execute(delete(token).where(token.c.expires_at <= now)).rowcount
