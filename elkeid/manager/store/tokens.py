"""Queries on the tokens of users who logged in. Every function takes a connection and blocks."""

from collections.abc import Iterable, Mapping

from attrs import frozen
from sqlalchemy import Connection, delete, func, insert, select, update

from elkeid.manager.store.bulk import update_rows
from elkeid.manager.store.schema import token, user
from elkeid.manager.store.users import USER_COLUMNS, User, user_of

TOKENS_PER_USER = 1_000
"""Live tokens of one user; a client that logs in for every call loses its oldest."""


@frozen
class Session:
    """A token as last stored: whose it is, its begin and its end in unix seconds."""

    user: User
    created_at: int
    expires_at: float


@frozen
class SessionRow:
    """A token of a list of them; ``peer`` is the address that logged in."""

    token_hash: str
    created_at: int
    expires_at: float
    peer: str


def add_token(
    connection: Connection,
    token_hash: str,
    user_id: int,
    now: int,
    expires_at: float,
    *,
    peer: str = "",
) -> None:
    """Store a token; beyond `TOKENS_PER_USER` the ones that would expire first go."""
    connection.execute(
        insert(token).values(
            hash=token_hash, user_id=user_id, created_at=now, expires_at=expires_at, peer=peer
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
        select(*USER_COLUMNS, token.c.created_at.label("began"), token.c.expires_at)
        .join_from(token, user, token.c.user_id == user.c.id)
        .where(token.c.hash == token_hash)
    ).first()
    return None if row is None else Session(user_of(row), row.began, row.expires_at)


def sessions_of(connection: Connection, user_id: int) -> list[SessionRow]:
    """The tokens of a user, the newest first."""
    query = (
        select(token.c.hash, token.c.created_at, token.c.expires_at, token.c.peer)
        .where(token.c.user_id == user_id)
        .order_by(token.c.created_at.desc(), token.c.hash)
    )
    return [SessionRow(*row) for row in connection.execute(query)]


def remove_tokens(connection: Connection, hashes: Iterable[str]) -> None:
    """Forget tokens."""
    connection.execute(delete(token).where(token.c.hash.in_(list(hashes))))


def extend_token(connection: Connection, token_hash: str, expires_at: float) -> None:
    """Store a later end of life, unix seconds."""
    connection.execute(
        update(token)
        .where(token.c.hash == token_hash, token.c.expires_at < expires_at)
        .values(expires_at=expires_at)
    )


def slide_tokens(
    connection: Connection, expiries: Mapping[str, float], ended_before: float, begun_after: float
) -> int:
    """Store new ends of life, and forget tokens that have expired.

    Args:
        connection: within a transaction.
        expiries: token hash -> unix seconds.
        ended_before: unix seconds; tokens whose life ended by then are forgotten.
        begun_after: unix seconds; older tokens have lived long enough.

    Returns:
        How many tokens had expired.
    """
    rows = [{"hash": each, "expires_at": expiries[each]} for each in sorted(expiries)]
    update_rows(connection, token, rows, key="hash", columns=["expires_at"])
    return connection.execute(
        delete(token).where(
            (token.c.expires_at <= ended_before) | (token.c.created_at <= begun_after)
        )
    ).rowcount
