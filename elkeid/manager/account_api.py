"""``/api/v6/user``: users as consoles list, make and delete them, and second factors.

Source: docs/protocol.md, "Manager API", "Users".
"""

from typing import Annotated, Literal

import msgspec

from elkeid.manager.access import Identity
from elkeid.manager.accounts import Accounts, NameTaken, TooManyUsers, UserRefused
from elkeid.manager.codes import DUPLICATE, EXCEED_LIMIT, PARAM_INVALID
from elkeid.manager.filter import PATTERN_CHARACTERS
from elkeid.manager.logins import Logins
from elkeid.manager.pages import Paged, PageQuery, listed
from elkeid.manager.passwords import PasswordRefused
from elkeid.manager.roles import ADMINS, EVERY_USER
from elkeid.manager.totp import uri_of
from elkeid.manager.user_api import (
    BODY_BYTES,
    Avatar,
    Level,
    LoginNetworks,
    checked_networks,
)
from elkeid.web.refusals import CodedRefusal, ParameterInvalid
from elkeid.web.routes import AuthKind, Call, Routes

NAMES_LIMIT = 1_000
"""Users deleted by one call."""

CONSOLE_ROLES: dict[str, frozenset[int]] = {
    "admin": frozenset({0}),
    "advancedUser": frozenset({1, 2}),
    "ordinaryUser": frozenset({3}),
    "advancedOM": frozenset({8}),
    "alarmOM": frozenset({6}),
    "BaselineVulOM": frozenset({7}),
}
"""What consoles call levels; those of the hub have no name there."""

RoleName = Literal[
    "admin", "advancedUser", "ordinaryUser", "advancedOM", "alarmOM", "BaselineVulOM"
]


class NewUser(msgspec.Struct):
    """A user to make. There is no level that is meant when none is given."""

    username: str
    password: str
    level: Level
    avatar: Avatar = ""
    source_ip_list: LoginNetworks | None = None


class UserNames(msgspec.Struct):
    """Whom."""

    userNameList: Annotated[list[str], msgspec.Meta(max_length=NAMES_LIMIT)]


class UserSearch(msgspec.Struct):
    """Which users: of a name that matches, and of any of these roles."""

    username: Annotated[str, msgspec.Meta(max_length=PATTERN_CHARACTERS)] = ""
    role: list[RoleName] | None = None


class UserRow(msgspec.Struct):
    """A user of a list."""

    username: str
    level: int
    source_ip_list: list[str]
    ip_limit: bool
    otp_enable: bool


class OtpState(msgspec.Struct):
    """Whether logins of the caller need a second factor."""

    otp_enable: bool


class Password(msgspec.Struct):
    """The caller's password, typed again."""

    password: str


class OtpSecret(msgspec.Struct):
    """A secret for an app, and the same as the text of a QR code."""

    secret: str
    uri: str


class OtpCode(msgspec.Struct):
    """A code, as the app shows it."""

    otp: Annotated[str, msgspec.Meta(max_length=64)]


class RecoveryCodes(msgspec.Struct):
    """Codes for the day the app is lost, each of use once; they are shown this once."""

    recovery_codes: list[str]


class AccountRoutes:
    """Users in the console's manner.

    Args:
        accounts: changes users.
        logins: checks passwords again.
    """

    routes = Routes("/api/v6/user", auth=AuthKind.TOKEN)

    def __init__(self, accounts: Accounts, logins: Logins) -> None:
        self._accounts, self._logins = accounts, logins

    @routes.post(
        "/new",
        body=NewUser,
        limit=2 * BODY_BYTES,
        levels=ADMINS,
        answer=Literal["ok"],
        summary="Make a user",
    )
    async def new(self, call: Call[None, NewUser]) -> object:
        """Code 2 for a name that is taken, 5 for a weak password, 15 for too many users."""
        asked = call.body
        networks = checked_networks(asked.source_ip_list) or []
        try:
            with self._logins.turn(call.peer):
                await self._accounts.add(
                    asked.username, asked.password, asked.level, asked.avatar, networks
                )
        except PasswordRefused as error:
            raise CodedRefusal(PARAM_INVALID, str(error)) from error
        except NameTaken as error:
            raise CodedRefusal(DUPLICATE, str(error)) from error
        except TooManyUsers as error:
            raise CodedRefusal(EXCEED_LIMIT, str(error)) from error
        except UserRefused as error:
            raise ParameterInvalid(str(error)) from error
        return "ok"

    @routes.post(
        "/DelList",
        body=UserNames,
        levels=ADMINS,
        answer=Literal["ok"],
        summary="Delete users: all of these or none",
    )
    async def delete(self, call: Call[None, UserNames]) -> object:
        """With all tokens, at once; who is not there is deleted already."""
        await self._accounts.delete(call.identity, call.body.userNameList)
        return "ok"

    @routes.post(
        "/List",
        query=PageQuery,
        body=UserSearch | None,
        reads=True,
        levels=EVERY_USER,
        answer=list[UserRow],
        beside=Paged,
        summary="List users: administrators see all, others themselves",
    )
    async def list_users(self, call: Call[PageQuery, UserSearch | None]) -> object:
        """By name."""
        search = call.body or UserSearch()
        levels = None
        if search.role:
            levels = frozenset().union(*(CONSOLE_ROLES[role] for role in search.role))
        users = await self._accounts.listed(call.identity, search.username, levels)
        asked = call.query
        page = users[asked.offset : asked.offset + asked.page_size]
        rows = [
            UserRow(
                username=user.username,
                level=user.level,
                source_ip_list=list(user.networks),
                ip_limit=bool(user.networks),
                otp_enable=user.otp_confirmed,
            )
            for user in page
        ]
        return listed(asked, len(users), rows)

    @routes.post(
        "/otp/status",
        reads=True,
        levels=EVERY_USER,
        answer=OtpState,
        summary="Say whether the caller's logins need a second factor",
    )
    async def otp_status(self, call: Call) -> object:
        """The truth."""
        identity: Identity = call.identity
        return OtpState(identity.user.otp_confirmed)

    @routes.post(
        "/otp/enrol",
        body=Password,
        limit=BODY_BYTES,
        levels=EVERY_USER,
        answer=OtpSecret,
        summary="Begin a second factor for the caller",
    )
    async def enrol(self, call: Call[None, Password]) -> object:
        """It counts once it is confirmed; code 1 for a wrong password."""
        await self._logins.prove(call, call.identity.user, call.body.password)
        secret = await self._accounts.begin_otp(call.identity)
        return OtpSecret(secret, uri_of(secret, call.identity.user.username))

    @routes.post(
        "/otp/confirm",
        body=OtpCode,
        limit=BODY_BYTES,
        levels=EVERY_USER,
        answer=RecoveryCodes,
        summary="Confirm it: from now on logins need a code",
    )
    async def confirm(self, call: Call[None, OtpCode]) -> object:
        """The caller's other tokens end."""
        return RecoveryCodes(await self._accounts.confirm_otp(call.identity, call.body.otp))

    @routes.post(
        "/otp/disable",
        body=Password,
        limit=BODY_BYTES,
        levels=EVERY_USER,
        answer=Literal["ok"],
        summary="Ask the caller for no second factor any more",
    )
    async def disable(self, call: Call[None, Password]) -> object:
        """Code 1 for a wrong password."""
        await self._logins.prove(call, call.identity.user, call.body.password)
        await self._accounts.end_otp(call.identity)
        return "ok"
