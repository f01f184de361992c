"""Who may come in: tokens that live while they are used, and the first admin."""

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from attrs import frozen
from sqlalchemy import Connection
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elkeid.config import ManagerSettings
from elkeid.errors import RequestRefused, StoreError
from elkeid.manager.audit import AuditLog
from elkeid.manager.passwords import Passwords, random_password
from elkeid.manager.roles import ADMIN_LEVEL
from elkeid.manager.store.audit import CALL
from elkeid.manager.store.logins import purge_failures
from elkeid.manager.store.store import Store, Threads
from elkeid.manager.store.tokens import (
    SessionRow,
    extend_token,
    find_session,
    remove_tokens,
    sessions_of,
    slide_tokens,
)
from elkeid.manager.store.users import User, add_user, end_sessions, find_user, has_level
from elkeid.private_files import write_new_private
from elkeid.web.peers import Networks
from elkeid.welcome import ADMIN, ADMIN_PASSWORD_FILE

FLUSH_SECONDS = 30.0
"""Use of tokens is written so often; a crash shortens their lives by no more."""

WRITE_AT_ONCE_SECONDS = 2 * FLUSH_SECONDS
"""A use of a token whose stored life is shorter is written before it is answered: another Manager
knows no other, and would end the token before the next writing. It also removes tokens so long
after their stored end."""

TOKEN_BYTES = 32
"""Random bytes of a token; only its SHA-256 is stored, which needs no salt then."""

TOKEN_CHARACTERS = 256
"""A longer header is no token of ours and is not looked up."""

SESSION_ID_CHARACTERS = 16
"""Of a token's hash, to name a session in lists: it opens nothing."""

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}\Z")


class TokenRefused(RequestRefused):
    """No token, or none that lives; ``user`` is whose it was, if that is known."""

    def __init__(self, reason: str, user: User | None = None) -> None:
        self.user = user
        super().__init__(reason)


class _AdminThere(Exception):
    """Another Manager has just made the first admin."""


@frozen
class Identity:
    """Who a request comes from."""

    user: User
    token_hash: str


def check_username(name: str) -> None:
    """Raise `ValueError` unless this may be a user's name, which also goes into a header."""
    if not _NAME.match(name):
        raise ValueError("a user name has 1 to 64 characters: letters, digits, . _ @ -")


def hash_of(token: str) -> str:
    """What is stored of a token."""
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def may_come_from(user: User, peer: str) -> bool:
    """Say whether a user may come from this address."""
    return not user.networks or peer in Networks(user.networks)


class Access:
    """Knows who the bearer of a token is.

    Args:
        store: open.
        passwords: prepared by `prepare`.
        threads: for the file with the first password.
        clock: for writing back the use of tokens.
        wall: seconds since the epoch.
        settings: of the Manager.
        audit: notes the first admin.
        keys_dir: where the first password lies until it is changed.
    """

    log = Logger()

    def __init__(
        self,
        store: Store,
        passwords: Passwords,
        threads: Threads,
        clock: IReactorTime,
        *,
        wall: Callable[[], float],
        settings: ManagerSettings,
        audit: AuditLog,
        keys_dir: Path,
    ) -> None:
        self._store, self._passwords, self._threads = store, passwords, threads
        self._wall, self._settings, self._audit = wall, settings, audit
        self._password_file = keys_dir / ADMIN_PASSWORD_FILE
        self._used: dict[str, float] = {}  # token hash -> end of life, not yet stored
        self._flushing = LoopingCall(self._flush)
        self._flushing.clock = clock

    async def start(self) -> None:
        """Make the first admin if there is none; from now on write back the use of tokens."""
        await self._passwords.prepare()
        await self._ensure_admin()
        self._flushing.start(FLUSH_SECONDS, now=False)

    async def stop(self) -> None:
        """Write back the use of tokens."""
        if self._flushing.running:
            self._flushing.stop()
            await self._flush()

    async def _ensure_admin(self) -> None:
        if await self._store.read(has_level, ADMIN_LEVEL):
            return
        if await self._store.read(find_user, ADMIN) is not None:
            self.log.warn("no user is an administrator: elkeid user add NAME --role admin")
            return
        password = random_password()
        stored = await self._passwords.hash(password)
        entry = self._audit.entry(
            CALL, username="system", objects=(ADMIN,), note="first start: made an administrator"
        )
        try:
            await self._audit.with_effect(entry, self._make_admin, password, stored)
        except _AdminThere:
            self.log.info("first start: another Manager made user {name}", name=ADMIN)
            return
        self.log.info(
            "first start: made user {name}, its password is in {file}",
            name=ADMIN,
            file=str(self._password_file),
        )

    def _make_admin(self, connection: Connection, password: str, stored: str) -> None:
        """Add the first admin, and write down the password before that is committed.

        Of Managers that start at once only one comes to write: they may share the folder.
        """
        if not add_user(connection, ADMIN, ADMIN_LEVEL, stored, int(self._wall())):
            raise _AdminThere
        # One that is there belongs to no user: a first start that did not come to its end.
        self._password_file.unlink(missing_ok=True)
        write_new_private(self._password_file, f"{password}\n".encode())

    async def forget_first_password(self, username: str) -> None:
        """Remove the file with the first password, once it is that user's no more."""
        if username != ADMIN:
            return
        try:
            await self._threads.run(self._password_file.unlink, True)
        except OSError:
            self.log.failure("{file} must be removed by hand", file=str(self._password_file))

    async def identify(self, token: str | None) -> Identity:
        """The user of a token, which lives on from now.

        Raises:
            TokenRefused: there is no such token, or it has expired.
        """
        if not token:
            raise TokenRefused("token: missing")
        if len(token) > TOKEN_CHARACTERS:
            raise TokenRefused("token: invalid or expired")
        identity, stored_end = await self._living(hash_of(token))
        now = self._wall()
        self._used[identity.token_hash] = end = now + self._settings.token_seconds
        if stored_end - now < WRITE_AT_ONCE_SECONDS and end - stored_end >= 1:
            try:
                await self._store.write(extend_token, identity.token_hash, end)
            except StoreError:
                self.log.warn("the use of a token could not be stored at once; trying on")
        return identity

    async def recheck(self, identity: Identity) -> Identity:
        """The same user as stored now; that is no use of the token.

        Raises:
            TokenRefused: the token has ended meanwhile.
        """
        return (await self._living(identity.token_hash))[0]

    async def _living(self, token_hash: str) -> tuple[Identity, float]:
        session = await self._store.read(find_session, token_hash)
        now = self._wall()
        if session is None:
            self._used.pop(token_hash, None)
            raise TokenRefused("token: invalid or expired")
        expires_at = max(session.expires_at, self._used.get(token_hash, 0))
        if min(expires_at, session.created_at + self._settings.token_max_seconds) <= now:
            raise TokenRefused("token: invalid or expired", session.user)
        return Identity(session.user, token_hash), session.expires_at

    def must_change_password(self, user: User) -> bool:
        """Say whether a user's password has become too old."""
        most = self._settings.password_seconds
        return bool(most) and self._wall() - user.password_update_time >= most

    async def logout(self, identity: Identity) -> None:
        """End a token."""
        await self._store.write(remove_tokens, [identity.token_hash])
        self._used.pop(identity.token_hash, None)

    async def sessions(self, identity: Identity) -> list[SessionRow]:
        """The caller's tokens that live."""
        rows = await self._store.read(sessions_of, identity.user.id)
        oldest = self._wall() - self._settings.token_max_seconds
        shown = [
            SessionRow(
                row.token_hash,
                row.created_at,
                max(row.expires_at, self._used.get(row.token_hash, 0)),
                row.peer,
            )
            for row in rows
            if row.created_at > oldest
        ]
        return [row for row in shown if row.expires_at > self._wall()]

    async def revoke(self, identity: Identity, session_id: str | None) -> int:
        """End one of the caller's tokens, or all but the one that asks.

        Returns:
            How many ended.
        """
        rows = await self.sessions(identity)
        if session_id is None:
            await self._store.write(end_sessions, identity.user.id, identity.token_hash)
            return len(rows) - 1
        meant = [
            row.token_hash for row in rows if row.token_hash[:SESSION_ID_CHARACTERS] == session_id
        ]
        await self._store.write(remove_tokens, meant)
        return len(meant)

    async def _flush(self) -> None:
        used, self._used = self._used, {}
        now, settings = self._wall(), self._settings
        try:
            await self._store.write(
                slide_tokens,
                used,
                now - WRITE_AT_ONCE_SECONDS,
                now - settings.token_max_seconds,
            )
            await self._store.write(purge_failures, int(now - settings.lockout_seconds))
        except Exception as error:  # a LoopingCall ends for good at the first one
            self._used = used | self._used  # next time
            if not isinstance(error, StoreError):
                self.log.failure("the use of tokens could not be stored; trying on")
