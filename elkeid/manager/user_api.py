"""``/api/v1/user``: log in and out, the own account; for administrators, change and delete users.

Source: docs/protocol.md, "Manager API", "Users".
"""

from typing import Annotated, Any, Literal

import msgspec

from elkeid.manager import logins as guard
from elkeid.manager.access import SESSION_ID_CHARACTERS, Access, Identity
from elkeid.manager.accounts import Accounts
from elkeid.manager.codes import MESSAGES, PARAM_INVALID, UNKNOWN_ERROR
from elkeid.manager.passwords import PasswordRefused
from elkeid.manager.roles import ADMINS, EVERY_USER
from elkeid.web.answers import Answer
from elkeid.web.peers import Networks
from elkeid.web.refusals import AnswerInstead, CodedRefusal, ParameterInvalid
from elkeid.web.routes import AuthKind, Call, Routes

BODY_BYTES = 64 << 10  # of a login; read and parsed before anybody is known
_HIDDEN = "***"

Level = Annotated[int, msgspec.Meta(ge=0, le=8)]
Avatar = Annotated[str, msgspec.Meta(max_length=64 << 10)]
LoginNetworks = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=64)
]
"""Networks such as ``10.0.0.0/8``, or addresses."""


class Login(msgspec.Struct):
    """A user name and a password, in clear, and what else may be asked for."""

    username: str
    password: str
    otp: Annotated[str, msgspec.Meta(max_length=64)] = ""
    captcha: Annotated[str, msgspec.Meta(max_length=512)] = ""


class Credentials(msgspec.Struct):
    """A user name and a password, in clear."""

    username: str
    password: str


class NewPassword(msgspec.Struct):
    """A user name, the password to set and, where it is required, the one that is set."""

    username: str
    password: str
    old_password: str | None = None


class Token(msgspec.Struct):
    """A token, for the header of that name."""

    token: str


class UserInfo(msgspec.Struct):
    """The caller, as consoles know users; password and salt are never shown."""

    username: str
    password: str
    salt: str
    avatar: str
    level: int
    config: list[dict[str, Any]] | None
    xml: bool
    password_update_time: int


class Checked(msgspec.Struct):
    """Whether a password is the right one."""

    if_check: bool


class UserChange(msgspec.Struct):
    """What becomes of a user; what is not given stays."""

    username: str
    level: Level | None = None
    avatar: Avatar | None = None
    source_ip_list: LoginNetworks | None = None


class UserName(msgspec.Struct):
    """Whom."""

    username: str


class SessionInfo(msgspec.Struct):
    """One of the caller's tokens; times are unix seconds."""

    id: str
    created_at: int
    expires_at: int
    peer: str
    current: bool


class SessionChoice(msgspec.Struct):
    """Which of the caller's tokens shall end; without an id all but the one that asks."""

    id: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class Ended(msgspec.Struct):
    """How many tokens ended."""

    count: int


def refusal_of(error: guard.LoginRefused) -> AnswerInstead:
    """The answer to a login that is not let in."""
    body = {"code": error.code, "msg": MESSAGES[error.code], "data": error.reason}
    return AnswerInstead(Answer(200, body | dict(error.beside)))


def checked_networks(networks: list[str] | None) -> list[str] | None:
    """Networks that can be used; `ParameterInvalid` else."""
    try:
        Networks(networks or ())
    except ValueError as error:
        raise ParameterInvalid(f"source_ip_list: {error}") from error
    return networks


class UserRoutes:
    """What every user may do with the own account, and administrators with all.

    Args:
        access: knows tokens.
        logins: decides about logins.
        accounts: changes users.
        require_old_password: ask for the old password before it is changed.
    """

    routes = Routes("/api/v1/user", auth=AuthKind.TOKEN)

    def __init__(
        self,
        access: Access,
        logins: guard.Logins,
        accounts: Accounts,
        *,
        require_old_password: bool,
    ) -> None:
        self._access, self._logins, self._accounts = access, logins, accounts
        self._require_old_password = require_old_password

    @routes.post(
        "/login",
        auth=AuthKind.NONE,
        body=Login,
        limit=BODY_BYTES,
        answer=Token,
        summary="Log in; the token lives as long as it is used",
    )
    async def login(self, call: Call[None, Login]) -> object:
        """Code 1 for a wrong name or password, without saying which."""
        typed = guard.Credentials(
            call.body.username, call.body.password, call.body.otp, call.body.captcha
        )
        return Token(await self._logins.login(call, typed))

    @routes.get(
        "/logout",
        levels=EVERY_USER,
        answer=None,
        acts=True,
        summary="End the token that this request bears",
    )
    async def logout(self, call: Call) -> object:
        """The token is unknown from now on."""
        await self._access.logout(call.identity)
        return None

    @routes.get("/info", levels=EVERY_USER, answer=UserInfo, summary="Show the caller")
    async def info(self, call: Call) -> object:
        """Nothing secret."""
        identity: Identity = call.identity
        user = identity.user
        return UserInfo(
            username=user.username,
            password=_HIDDEN,
            salt=_HIDDEN,
            avatar=user.avatar,
            level=user.level,
            config=None,
            xml=False,
            password_update_time=user.password_update_time,
        )

    @routes.post(
        "/resetPassword",
        body=NewPassword,
        limit=BODY_BYTES,
        levels=EVERY_USER,
        answer=Literal["ok"],
        summary="Change the caller's password; the caller's other tokens end",
    )
    async def reset_password(self, call: Call[None, NewPassword]) -> object:
        """Only the own one: code 10 for another user, code 5 for a weak password."""
        self._must_be_caller(call)
        old = call.body.old_password
        if old is not None:
            await self._logins.prove(call, call.identity.user, old)
        elif self._require_old_password:
            raise CodedRefusal(PARAM_INVALID, "old_password: required here")
        try:
            with self._logins.turn(call.peer):
                await self._accounts.change_password(call.identity, call.body.password)
        except PasswordRefused as error:
            raise CodedRefusal(PARAM_INVALID, str(error)) from error
        return "ok"

    @routes.post(
        "/checkUser",
        body=Credentials,
        limit=BODY_BYTES,
        reads=True,
        levels=EVERY_USER,
        answer=Checked,
        summary="Say whether this is the caller's password",
    )
    async def check_user(self, call: Call[None, Credentials]) -> object:
        """Only the own one: code 10 for another user; guessing is slowed down as at the login."""
        self._must_be_caller(call)
        try:
            await self._logins.prove(call, call.identity.user, call.body.password)
        except guard.LoginRefused as error:
            if error.reason == guard.WRONG:
                return Checked(False)
            raise
        return Checked(True)

    @routes.post(
        "/update",
        body=UserChange,
        levels=ADMINS,
        answer=Literal["ok"],
        summary="Change a user's level, avatar or login networks",
    )
    async def update(self, call: Call[None, UserChange]) -> object:
        """What is not given stays. The user's tokens end if level or networks changed."""
        asked = call.body
        await self._accounts.change(
            asked.username,
            level=asked.level,
            avatar=asked.avatar,
            networks=checked_networks(asked.source_ip_list),
        )
        return "ok"

    @routes.post(
        "/del", body=UserName, levels=ADMINS, answer=Literal["ok"], summary="Delete a user"
    )
    async def delete(self, call: Call[None, UserName]) -> object:
        """With all tokens, at once; who is not there is deleted already."""
        await self._accounts.delete(call.identity, [call.body.username])
        return "ok"

    @routes.get(
        "/sessions",
        levels=EVERY_USER,
        answer=list[SessionInfo],
        summary="List the caller's tokens",
    )
    async def sessions(self, call: Call) -> object:
        """The newest first; the ids open nothing."""
        identity: Identity = call.identity
        return [
            SessionInfo(
                id=row.token_hash[:SESSION_ID_CHARACTERS],
                created_at=row.created_at,
                expires_at=int(row.expires_at),
                peer=row.peer,
                current=row.token_hash == identity.token_hash,
            )
            for row in await self._access.sessions(identity)
        ]

    @routes.post(
        "/revoke",
        body=SessionChoice,
        levels=EVERY_USER,
        answer=Ended,
        summary="End some of the caller's tokens",
    )
    async def revoke(self, call: Call[None, SessionChoice]) -> object:
        """Nobody else's; an id of none ends none."""
        return Ended(await self._access.revoke(call.identity, call.body.id))

    def _must_be_caller(self, call: Call) -> None:
        if call.body.username != call.identity.user.username:
            raise CodedRefusal(UNKNOWN_ERROR, "permission denied")
