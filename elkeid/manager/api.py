"""The Manager's HTTP face put together."""

from collections.abc import Mapping, Sequence
from typing import Any

from elkeid import __version__
from elkeid.errors import StoreError
from elkeid.manager.access import Access, Identity, TokenRefused, may_come_from
from elkeid.manager.accounts import UserRefused
from elkeid.manager.audit import AuditLog
from elkeid.manager.cluster import RemoteFailed, TargetRefused
from elkeid.manager.codes import (
    ADDRESS_NOT_ALLOWED,
    AUTH_FAILED,
    BUSY,
    DATABASE_ERROR,
    EXCEED_LIMIT,
    MESSAGES,
    PARAM_INVALID,
    PASSWORD_TOO_OLD,
    REMOTE_FAILED,
    SUCCESS,
    UNKNOWN_ERROR,
)
from elkeid.manager.exports import ExportsBusy
from elkeid.manager.filter import FilterError
from elkeid.manager.hosts import TooManyHosts
from elkeid.manager.logins import LoginRefused
from elkeid.manager.shared_api import refusal_of
from elkeid.manager.store.store import StoreBusy, searching_for
from elkeid.manager.store.users import User
from elkeid.manager.uploads import UploadRefused
from elkeid.manager.user_api import refusal_of as login_refusal
from elkeid.metrics import ManagerMetrics
from elkeid.web.answers import CodeEnvelope
from elkeid.web.api import Api, Authenticator, Gate, Group
from elkeid.web.openapi import About
from elkeid.web.plain import Liveness, MetricsPage
from elkeid.web.refusals import (
    AccessDenied,
    AuthenticationFailed,
    BodyTooLarge,
    Busy,
    CodedRefusal,
    NoSuchRoute,
    ParameterInvalid,
    Refusal,
)
from elkeid.web.routes import AuthKind, Call, Route, Routes

ENVELOPE = CodeEnvelope(
    MESSAGES,
    {
        ParameterInvalid: PARAM_INVALID,
        BodyTooLarge: PARAM_INVALID,
        AuthenticationFailed: AUTH_FAILED,
        AccessDenied: AUTH_FAILED,
        NoSuchRoute: UNKNOWN_ERROR,
        Busy: BUSY,
    },
    UNKNOWN_ERROR,
    {AuthenticationFailed: 401},
)

PONG = {"commit": "", "build": "", "version": __version__, "ci": ""}

ABOUT = About(
    title="Elkeid Manager",
    version=__version__,
    description="Operators and consoles log in, and send their token in the header `token`. "
    "AgentCenters sign their calls. JSON answers have an envelope: `code` 0 is success with "
    "`data`; any other is a refusal, whatever the HTTP status, with its reason in `data`.",
    codes={code: text for code, text in MESSAGES.items() if code != SUCCESS},
)

_UNCOUNTED = ("/ping", "/ready", "/metrics")


OLD_PASSWORD_PATHS = frozenset(
    {"/api/v1/user/resetPassword", "/api/v1/user/info", "/api/v1/user/logout"}
)
"""What a user whose password is too old may still do."""


class TokenCheck:
    """Authenticates by the ``token`` header, and lets in the levels that the route names.

    Args:
        access: knows the tokens.
        audit: has known users that are refused.
    """

    def __init__(self, access: Access, audit: AuditLog) -> None:
        self._access, self._audit = access, audit

    async def __call__(self, call: Call) -> Identity:
        """The caller; its name goes into the answer's header ``user``, denied or not."""
        try:
            identity = await self._access.identify(call.header("token"))
        except TokenRefused as error:
            if error.user is not None:
                await self._audit.refused(call, error.user, 401, AUTH_FAILED, str(error))
            raise AuthenticationFailed(str(error)) from error
        user = identity.user
        searching_for(user.id)
        call.answer_headers["user"] = user.username
        refusal = self._refusal(call, user)
        if refusal is not None:
            code = getattr(refusal, "code", AUTH_FAILED)
            await self._audit.refused(call, user, refusal.status, code, refusal.reason)
            raise refusal
        return identity

    async def again(self, call: Call, identity: Identity) -> None:
        """Refuse a caller that was let in, if it would not be now; no use of the token.

        Raises:
            AuthenticationFailed: the token has ended.
            Refusal: the user may not do this any more.
        """
        try:
            now = await self._access.recheck(identity)
        except TokenRefused as error:
            raise AuthenticationFailed(str(error)) from error
        refusal = self._refusal(call, now.user)
        if refusal is not None:
            raise refusal

    def _refusal(self, call: Call, user: User) -> Refusal | None:
        """Why a known user may not do this; None if he may."""
        if not may_come_from(user, call.peer):
            reason = "this user may not come from this address"
            return CodedRefusal(ADDRESS_NOT_ALLOWED, reason, AccessDenied.status)
        if call.route is None or user.level not in call.route.levels:
            return AccessDenied(f"users of level {user.level} may not do this")
        if call.route.path not in OLD_PASSWORD_PATHS and self._access.must_change_password(user):
            reason = "the password is too old: change it first"
            return CodedRefusal(PASSWORD_TOO_OLD, reason, AccessDenied.status)
        return None


class ElsewhereRoutes:
    """Stands for the whole API on a port that may not serve it.

    Args:
        where: a sentence that says where the API is.
    """

    routes = Routes()

    def __init__(self, where: str) -> None:
        self._where = where

    async def _refuse(self, call: Call) -> object:
        """Nothing is read, nobody is asked for a token: it would travel in clear."""
        raise AccessDenied(self._where)

    for _method in ("GET", "POST", "PUT", "DELETE"):
        routes.route(
            _method,
            "/<path:anything>",
            answer=None,
            also={403: dict[str, Any]},
            summary="Say where the API is",
        )(_refuse)


def make_api(
    groups: Sequence[Group],
    liveness: Liveness,
    checks: Mapping[AuthKind, Authenticator],
    metrics: ManagerMetrics,
    metrics_networks: Sequence[str],
    *,
    audit: AuditLog,
    proxies: Sequence[str],
    gates: Mapping[AuthKind, Gate],
) -> Api:
    """Put a face together.

    Args:
        groups: the handlers to serve.
        liveness: ``/ping`` and ``/ready``.
        checks: who may use the routes of each kind.
        metrics: shown under ``/metrics``.
        metrics_networks: who may see them.
        audit: has every call that changes something.
        proxies: networks of proxies in front.
        gates: which addresses may call the routes of a kind at all.
    """

    def observe(route: Route | None, status: int) -> None:
        path = "" if route is None else route.path
        if path not in _UNCOUNTED:
            metrics.answers.labels(path, str(status)).inc()

    api = Api(
        ENVELOPE,
        [liveness, *groups],
        checks,
        {
            LoginRefused: login_refusal,
            UserRefused: lambda error: CodedRefusal(UNKNOWN_ERROR, str(error)),
            UploadRefused: refusal_of,
            TooManyHosts: lambda error: CodedRefusal(EXCEED_LIMIT, str(error)),
            ExportsBusy: lambda error: Busy(str(error)),
            TargetRefused: lambda error: CodedRefusal(UNKNOWN_ERROR, str(error)),
            RemoteFailed: lambda error: CodedRefusal(REMOTE_FAILED, str(error)),
            FilterError: lambda error: ParameterInvalid(str(error)),
            StoreBusy: lambda error: Busy(str(error)),
            StoreError: lambda error: CodedRefusal(DATABASE_ERROR, str(error)),
        },
        observe,
        witness=audit,
        proxies=proxies,
        gates=gates,
    )
    api.mount("/metrics", MetricsPage(metrics.registry, metrics_networks, api.refusal, proxies))
    return api
