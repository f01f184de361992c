"""``/api/v1/user``: log in and out, who am I, change the own password."""

from typing import Any, Literal

import msgspec

from elkeid.manager.access import Access, Identity, LoginRefused
from elkeid.manager.codes import PARAM_INVALID, UNKNOWN_ERROR
from elkeid.manager.passwords import PasswordRefused
from elkeid.manager.roles import EVERY_USER
from elkeid.metrics import ManagerMetrics
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes

BODY_BYTES = 64 << 10  # of a login; read and parsed before anybody is known
_HIDDEN = "***"


class Credentials(msgspec.Struct):
    """A user name and a password, in clear."""

    username: str
    password: str


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


class UserRoutes:
    """What every user may do with the own account.

    Args:
        access: who may come in.
        metrics: counts logins.
    """

    routes = Routes("/api/v1/user", auth=AuthKind.TOKEN)

    def __init__(self, access: Access, metrics: ManagerMetrics) -> None:
        self._access, self._metrics = access, metrics

    @routes.post(
        "/login",
        auth=AuthKind.NONE,
        body=Credentials,
        limit=BODY_BYTES,
        answer=Token,
        summary="Log in; the token lives as long as it is used",
    )
    async def login(self, call: Call[None, Credentials]) -> object:
        """Code 1 for a wrong name or password, without saying which."""
        try:
            token = await self._access.login(call.body.username, call.body.password, call.peer)
        except LoginRefused:
            self._metrics.logins.labels("refused").inc()
            raise
        self._metrics.logins.labels("done").inc()
        return Token(token)

    @routes.get(
        "/logout", levels=EVERY_USER, answer=None, summary="End the token that this request bears"
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
        body=Credentials,
        limit=BODY_BYTES,
        levels=EVERY_USER,
        answer=Literal["ok"],
        summary="Change the caller's password; the caller's other tokens end",
    )
    async def reset_password(self, call: Call[None, Credentials]) -> object:
        """Only the own one: code 10 for another user, code 5 for a weak password."""
        identity: Identity = call.identity
        if call.body.username != identity.user.username:
            raise CodedRefusal(UNKNOWN_ERROR, "permission denied")
        try:
            await self._access.change_password(identity, call.body.password)
        except PasswordRefused as error:
            raise CodedRefusal(PARAM_INVALID, str(error)) from error
        return "ok"
