"""Users: made, changed and deleted by administrators, their passwords and second factors."""

from collections.abc import Callable, Sequence

from elkeid.config import ManagerSettings
from elkeid.errors import RequestRefused
from elkeid.manager.access import Access, Identity, check_username
from elkeid.manager.filter import compiled, pattern_at
from elkeid.manager.passwords import PasswordRefused, Passwords, check_new_password
from elkeid.manager.roles import ADMINS
from elkeid.manager.store.store import Store, StoreBusy
from elkeid.manager.store.users import (
    USERS_LIMIT,
    LastAdmin,
    User,
    UsersFull,
    add_user,
    all_users,
    begin_otp,
    change_user,
    confirm_otp,
    delete_users,
    end_otp,
    old_passwords,
    set_password,
)
from elkeid.manager.totp import new_recovery_codes, new_secret, recovery_hash, step_of


class UserRefused(RequestRefused):
    """A change of users that is not made; the text says why."""


class NameTaken(UserRefused):
    """There is a user of this name already."""


class TooManyUsers(UserRefused):
    """Nobody can be added."""


class Accounts:
    """Changes users.

    Args:
        store: open.
        passwords: hashes.
        access: has the file with the first password.
        wall: seconds since the epoch.
        settings: of the Manager.
    """

    def __init__(
        self,
        store: Store,
        passwords: Passwords,
        access: Access,
        *,
        wall: Callable[[], float],
        settings: ManagerSettings,
    ) -> None:
        self._store, self._passwords, self._access = store, passwords, access
        self._wall, self._settings = wall, settings
        self._changing: set[int] = set()  # users whose new password is being looked at

    async def add(
        self, username: str, password: str, level: int, avatar: str, networks: Sequence[str]
    ) -> None:
        """Add a user.

        Raises:
            PasswordRefused: the password is too weak.
            NameTaken: in whatever case.
            TooManyUsers: there are `USERS_LIMIT`.
            UserRefused: the name cannot be one.
        """
        try:
            check_username(username)
        except ValueError as error:
            raise UserRefused(f"username: {error}") from error
        check_new_password(username, password, self._settings.password_characters)
        stored = await self._passwords.hash(password)
        try:
            added = await self._store.write(
                add_user,
                username,
                level,
                stored,
                int(self._wall()),
                avatar=avatar,
                networks=networks,
            )
        except UsersFull:
            raise TooManyUsers(
                f"there are {USERS_LIMIT} users already: delete some first"
            ) from None
        if not added:
            raise NameTaken(f"user {username} exists already")

    async def change(
        self,
        username: str,
        *,
        level: int | None,
        avatar: str | None,
        networks: Sequence[str] | None,
    ) -> None:
        """Change what is given.

        Raises:
            UserRefused: there is no such user, or no administrator would be left.
        """
        try:
            found = await self._store.write(
                change_user,
                username,
                int(self._wall()),
                level=level,
                avatar=avatar,
                networks=networks,
            )
        except LastAdmin:
            raise UserRefused(
                f"{username} is the last administrator: make another one first"
            ) from None
        if not found:
            raise UserRefused("there is no such user")

    async def delete(self, identity: Identity, usernames: Sequence[str]) -> None:
        """Delete users, all or none; who is not there is deleted already.

        Raises:
            UserRefused: the caller is among them, or no administrator would be left.
        """
        if identity.user.username in usernames:
            raise UserRefused("nobody deletes himself: let another administrator do it")
        try:
            await self._store.write(delete_users, usernames)
        except LastAdmin:
            raise UserRefused("this would delete the last administrator") from None

    async def listed(
        self, identity: Identity, pattern: str, levels: frozenset[int] | None
    ) -> list[User]:
        """The users that the caller may see: all, or the own account.

        Args:
            identity: who asks.
            pattern: RE2, to be found in the name; empty finds all.
            levels: only users of these; None: of all.

        Raises:
            FilterError: the pattern cannot be used.
        """
        if identity.user.level not in ADMINS:
            users = [identity.user]
        else:
            users = await self._store.read(all_users)
        if levels is not None:
            users = [user for user in users if user.level in levels]
        if not pattern:
            return users
        found = compiled(pattern_at(pattern, "username"))
        return [user for user in users if found.search(user.username)]

    async def change_password(self, identity: Identity, password: str) -> None:
        """Set the caller's password, and end all tokens of the user but this one.

        Raises:
            PasswordRefused: it is too weak, or was used before.
            StoreBusy: another change of the same user is under way, or too many passwords wait.
        """
        user = identity.user
        check_new_password(user.username, password, self._settings.password_characters)
        if user.id in self._changing:
            raise StoreBusy("the password is being changed already; try again")
        self._changing.add(user.id)
        try:
            await self._change_password(identity, password)
        finally:
            self._changing.discard(user.id)

    async def _change_password(self, identity: Identity, password: str) -> None:
        user = identity.user
        history = self._settings.password_history
        if history:
            older = await self._store.read(old_passwords, user.id, history - 1)
            for each in [user.password, *older]:
                if await self._passwords.verify(each, password):
                    raise PasswordRefused(
                        f"password: must differ from the last {history} passwords"
                    )
        stored = await self._passwords.hash(password)
        await self._store.write(
            set_password,
            user.id,
            stored,
            identity.token_hash,
            int(self._wall()),
            history=max(0, history - 1),
        )
        await self._access.forget_first_password(user.username)

    async def begin_otp(self, identity: Identity) -> str:
        """A new secret for the caller's second factor, which counts once it is confirmed."""
        secret = new_secret()
        if not await self._store.write(begin_otp, identity.user.id, secret):
            raise UserRefused("a second factor is in use: disable it first")
        return secret

    async def confirm_otp(self, identity: Identity, code: str) -> list[str]:
        """Ask the caller for codes from the next login on.

        Returns:
            Recovery codes, which are shown this once.

        Raises:
            UserRefused: nothing was begun, or the code is wrong.
        """
        user = identity.user
        if user.otp_confirmed or user.otp_secret is None:
            raise UserRefused("no second factor waits for confirmation")
        step = step_of(user.otp_secret, code, self._wall())
        if step is None:
            raise UserRefused("otp: wrong")
        codes = new_recovery_codes()
        confirmed = await self._store.write(
            confirm_otp,
            user.id,
            secret=user.otp_secret,
            step=step,
            recovery_hashes=[recovery_hash(each) for each in codes],
            keep_token=identity.token_hash,
        )
        if not confirmed:
            raise UserRefused("no second factor waits for confirmation")
        return codes

    async def end_otp(self, identity: Identity) -> None:
        """Ask the caller for no code any more."""
        await self._store.write(end_otp, identity.user.id)
