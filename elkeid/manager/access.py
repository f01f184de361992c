"""Who may come in: logins, tokens that live while they are used, passwords, the first admin."""

import re
import secrets
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elkeid.errors import RequestRefused
from elkeid.manager.passwords import Passwords, check_new_password, random_password
from elkeid.manager.roles import ADMIN_LEVEL
from elkeid.manager.store.store import Store, StoreBusy, StoreFailed, Threads
from elkeid.manager.store.users import (
    User,
    add_token,
    add_user,
    find_session,
    find_user,
    has_level,
    remove_tokens,
    set_password,
    slide_tokens,
)
from elkeid.manager.throttle import LoginThrottle
from elkeid.private_files import write_new_private
from elkeid.welcome import ADMIN, ADMIN_PASSWORD_FILE

FLUSH_SECONDS = 30.0
"""Use of tokens is written so often; a crash shortens their lives by no more."""

TOKEN_BYTES = 32
"""Random bytes of a token; only its SHA-256 is stored, which needs no salt then."""

TOKEN_CHARACTERS = 256
"""A longer header is no token of ours and is not looked up."""

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}\Z")


class LoginRefused(RequestRefused):
    """User or password are wrong, or it is too early to try again."""


class TokenRefused(RequestRefused):
    """No token, or none that lives."""


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


class Access:
    """Decides who may come in.

    Args:
        store: open.
        passwords: prepared by `prepare`.
        threads: for the file with the first password.
        clock: for writing back the use of tokens.
        wall: seconds since the epoch.
        token_seconds: life of a token after its last use.
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
        token_seconds: float,
        keys_dir: Path,
    ) -> None:
        self._store, self._passwords, self._threads = store, passwords, threads
        self._wall, self._token_seconds = wall, token_seconds
        self._password_file = keys_dir / ADMIN_PASSWORD_FILE
        self._throttle = LoginThrottle()
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
        await self._threads.run(self._write_password, password)
        stored = await self._passwords.hash(password)
        await self._store.write(add_user, ADMIN, ADMIN_LEVEL, stored, int(self._wall()))
        self.log.info(
            "first start: made user {name}, its password is in {file}",
            name=ADMIN,
            file=str(self._password_file),
        )

    def _write_password(self, password: str) -> None:
        # One that is there belongs to no user: a first start that did not come to its end.
        self._password_file.unlink(missing_ok=True)
        write_new_private(self._password_file, f"{password}\n".encode())

    async def login(self, username: str, password: str, peer: str) -> str:
        """Check a password and give a new token.

        Args:
            username: as typed; case matters.
            password: as typed.
            peer: IP address of the client.

        Raises:
            LoginRefused: the same words whether the user exists or not.
            StoreBusy: too many logins at once.
        """
        wait = self._throttle.wait(username, peer, self._wall())
        if wait > 0:
            raise LoginRefused(f"too many failed logins, try again in {wait:.0f} s")
        user = await self._store.read(find_user, username)
        right = await self._passwords.verify(None if user is None else user.password, password)
        if user is None or not right:
            self._throttle.failed(username, peer, self._wall())
            raise LoginRefused("verify password failed")
        self._throttle.succeeded(username, peer)
        token, now = secrets.token_urlsafe(TOKEN_BYTES), self._wall()
        expires_at = now + self._token_seconds
        await self._store.write(add_token, hash_of(token), user.id, int(now), expires_at)
        return token

    async def identify(self, token: str | None) -> Identity:
        """The user of a token, which lives on from now.

        Raises:
            TokenRefused: there is no such token, or it has expired.
        """
        if not token:
            raise TokenRefused("token: missing")
        if len(token) > TOKEN_CHARACTERS:
            raise TokenRefused("token: invalid or expired")
        token_hash = hash_of(token)
        session = await self._store.read(find_session, token_hash)
        now = self._wall()
        if session is None or max(session.expires_at, self._used.get(token_hash, 0)) <= now:
            raise TokenRefused("token: invalid or expired")
        self._used[token_hash] = now + self._token_seconds
        return Identity(session.user, token_hash)

    async def logout(self, identity: Identity) -> None:
        """End a token."""
        await self._store.write(remove_tokens, [identity.token_hash])
        self._used.pop(identity.token_hash, None)

    async def change_password(self, identity: Identity, password: str) -> None:
        """Set the caller's password, and end all tokens of the user but this one.

        Raises:
            PasswordRefused: it is too weak.
        """
        user = identity.user
        check_new_password(user.username, password)
        stored = await self._passwords.hash(password)
        await self._store.write(
            set_password, user.id, stored, identity.token_hash, int(self._wall())
        )
        if user.username == ADMIN:
            try:
                await self._threads.run(self._password_file.unlink, True)
            except OSError:
                self.log.failure("{file} must be removed by hand", file=str(self._password_file))

    async def _flush(self) -> None:
        used, self._used = self._used, {}
        try:
            await self._store.write(slide_tokens, used, self._wall())
        except (StoreBusy, StoreFailed):
            self._used = used | self._used  # next time
        except Exception:  # a LoopingCall ends for good at the first error
            self.log.failure("the use of tokens could not be stored; trying on")
