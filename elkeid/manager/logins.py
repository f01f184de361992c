"""Logging in: a password, and whatever else guards it."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import Factory, frozen
from sqlalchemy import Connection

from elkeid.config import ManagerSettings
from elkeid.errors import RequestRefused
from elkeid.manager.access import TOKEN_BYTES, Access, hash_of, may_come_from
from elkeid.manager.audit import AuditLog
from elkeid.manager.captcha import BITS, Captcha
from elkeid.manager.codes import (
    ADDRESS_NOT_ALLOWED,
    AUTH_FAILED,
    CAPTCHA_NEEDED,
    OTP_REQUIRED,
    PASSWORD_TOO_OLD,
    USER_LOCKED,
)
from elkeid.manager.passwords import Passwords
from elkeid.manager.store.audit import CALL, REFUSED, Entry
from elkeid.manager.store.logins import Failures, failures_of, forget_failures, note_failure
from elkeid.manager.store.store import Store, StoreBusy
from elkeid.manager.store.tokens import add_token
from elkeid.manager.store.users import (
    User,
    find_user,
    is_known_address,
    know_address,
    use_otp_step,
    use_recovery_code,
)
from elkeid.manager.throttle import (
    KNOWN_SECONDS,
    Counted,
    Locked,
    Throttle,
    Work,
    counted,
)
from elkeid.manager.totp import recovery_hash, step_of
from elkeid.metrics import ManagerMetrics
from elkeid.web.peers import address_of
from elkeid.web.rates import AddressRates
from elkeid.web.routes import Call

TURNED_AWAY_RATE = 0.2
"""Logins a second and address that wait or lack an answer and are written down; these cost us
nothing, so they may be many, and the one that began the wait is in the log anyway."""

TURNED_AWAY_BURST = 10.0

CHECKS_PER_ADDRESS = 10
"""Passwords from one address, of logins or new ones, that wait for their check: a fifth of all that
may, so that a flood from there, of whatever names, holds up others by two seconds at most."""

WRONG = "verify password failed"


class LoginRefused(RequestRefused):
    """A login that is not let in.

    Args:
        code: of the API's enumeration.
        reason: for the client; the same for a wrong password as for a user that there is not.
        outcome: for the metric.
        beside: what else the client needs.
    """

    def __init__(
        self, code: int, reason: str, outcome: str, beside: Mapping[str, Any] | None = None
    ) -> None:
        self.code, self.reason, self.outcome = code, reason, outcome
        self.beside = beside or {}
        super().__init__(reason)


@frozen
class Credentials:
    """What somebody types to get in."""

    username: str
    password: str
    otp: str = ""
    captcha: str = ""


@frozen
class _Known:
    """What is known of a login before its password is checked."""

    user: User | None
    failures: Mapping[str, Failures] = Factory(dict)
    from_known_address: bool = False


def _known(
    connection: Connection, username: str, keys: Counted, address: str, since: int
) -> _Known:
    user = find_user(connection, username)
    failures = failures_of(connection, list(keys.all()))
    if user is None:
        return _Known(None, failures)
    return _Known(user, failures, is_known_address(connection, user.id, address, since))


class Logins:
    """Decides about logins.

    Args:
        store: open.
        passwords: checks them.
        access: says which passwords are too old.
        audit: has every login.
        metrics: counts.
        wall: seconds since the epoch.
        settings: of the Manager.
        captcha_key: the same for every Manager.
    """

    def __init__(
        self,
        store: Store,
        passwords: Passwords,
        access: Access,
        audit: AuditLog,
        *,
        metrics: ManagerMetrics,
        wall: Callable[[], float],
        settings: ManagerSettings,
        captcha_key: bytes,
    ) -> None:
        self._store, self._passwords, self._access, self._audit = store, passwords, access, audit
        self._metrics, self._wall, self._settings = metrics, wall, settings
        self._throttle = Throttle(settings.login_tries, settings.lockout_seconds)
        self._captcha = Captcha(captcha_key, wall)
        self._under_way: Counter[str] = Counter()
        self._turned_away = AddressRates(TURNED_AWAY_RATE, TURNED_AWAY_BURST, wall)

    async def login(self, call: Call, typed: Credentials) -> str:
        """Give a new token.

        Raises:
            LoginRefused: its code says why.
            StoreBusy: too many logins at once, from everywhere or from this address.
            AuditFailed: it cannot be written down.
        """
        try:
            token = await self._login(call, typed)
        except LoginRefused as error:
            self._metrics.logins.labels(error.outcome).inc()
            raise
        self._metrics.logins.labels("done").inc()
        return token

    async def _login(self, call: Call, typed: Credentials) -> str:
        user = await self._checked(call, typed)
        if user.otp_confirmed:
            await self._check_second_factor(call, user, typed.otp)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        await self._audit.with_effect(
            self._audit.call_entry(CALL, call, user, status=200, code=0, note="logged in"),
            self._let_in,
            hash_of(token),
            user,
            call.peer,
        )
        if self._access.must_change_password(user):
            raise LoginRefused(
                PASSWORD_TOO_OLD,
                "the password is too old: change it with this token, which serves nothing else",
                "password_too_old",
                {"token": token},
            )
        return token

    def _let_in(self, connection: Connection, token_hash: str, user: User, peer: str) -> None:
        now, address = self._wall(), address_of(peer)
        expires_at = now + self._settings.token_seconds
        add_token(connection, token_hash, user.id, int(now), expires_at, peer=peer[:64])
        forget_failures(connection, [counted(user.username, address).pair])
        know_address(connection, user.id, address, int(now))

    async def prove(self, call: Call, user: User, password: str) -> None:
        """Check the password of a user who is in already; guessing it is slowed down likewise.

        Raises:
            LoginRefused: it is wrong, or it is too early to try again.
        """
        await self._checked(call, Credentials(user.username, password), second_look=True)
        pair = counted(user.username, address_of(call.peer)).pair
        await self._store.write(forget_failures, [pair])

    async def _checked(self, call: Call, typed: Credentials, *, second_look: bool = False) -> User:
        address = address_of(call.peer)
        keys = counted(typed.username, address)
        known = await self._store.read(
            _known, typed.username, keys, address, int(self._wall() - KNOWN_SECONDS)
        )
        await self._gate(call, typed, keys, known, captcha=not second_look)
        user = known.user
        if user is not None and not may_come_from(user, call.peer):
            reason = "this user may not log in from this address"
            await self._turn_away(call, typed.username, ADDRESS_NOT_ALLOWED, reason, user)
            raise LoginRefused(ADDRESS_NOT_ALLOWED, reason, "network")
        with self.turn(call.peer), self._counting(keys.pair):
            stored = None if user is None else user.password
            right = await self._passwords.verify(stored, typed.password)
        if user is None or not right:
            await self._failed(call, typed.username, AUTH_FAILED, WRONG, user)
            raise LoginRefused(AUTH_FAILED, WRONG, "refused")
        return user

    @contextmanager
    def turn(self, peer: str) -> Iterator[None]:
        """Let an address wait for the check or the hash of a password, among its others.

        Raises:
            StoreBusy: `CHECKS_PER_ADDRESS` wait already.
        """
        address = address_of(peer)
        if self._under_way[address] >= CHECKS_PER_ADDRESS:
            raise StoreBusy("too many logins at once from this address; try again")
        with self._counting(address):
            yield

    @contextmanager
    def _counting(self, key: str) -> Iterator[None]:
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]

    async def _gate(
        self, call: Call, typed: Credentials, keys: Counted, known: _Known, *, captcha: bool
    ) -> None:
        verdict = self._throttle.verdict(
            keys,
            known.failures,
            self._wall(),
            known=known.from_known_address,
            under_way=self._under_way[keys.pair],
        )
        if isinstance(verdict, Locked):
            reason = f"too many failed logins, try again in {max(1, verdict.seconds):.0f} s"
            await self._turn_away(call, typed.username, USER_LOCKED, reason, known.user)
            raise LoginRefused(USER_LOCKED, reason, "locked")
        address = address_of(call.peer)
        if (
            isinstance(verdict, Work)
            and captcha
            and not self._captcha.is_solved(typed.captcha, typed.username, address)
        ):
            reason = "too many failed logins: answer the challenge in `captcha`"
            await self._turn_away(call, typed.username, CAPTCHA_NEEDED, reason, known.user)
            challenge = self._captcha.challenge(typed.username, address)
            beside = {"captcha": {"challenge": challenge, "bits": BITS}}
            raise LoginRefused(CAPTCHA_NEEDED, reason, "captcha", beside)

    async def _check_second_factor(self, call: Call, user: User, otp: str) -> None:
        if not otp:
            await self._turn_away(call, user.username, OTP_REQUIRED, "otp: missing", user)
            raise LoginRefused(OTP_REQUIRED, "otp: missing", "otp_missing")
        step = step_of(user.otp_secret or "", otp, self._wall())
        if step is not None:
            fresh = await self._store.write(use_otp_step, user.id, step)
        else:
            fresh = await self._store.write(use_recovery_code, user.id, recovery_hash(otp))
        if not fresh:
            await self._failed(call, user.username, OTP_REQUIRED, "otp: wrong or used", user)
            raise LoginRefused(OTP_REQUIRED, "otp: wrong or used before", "otp_wrong")

    async def _failed(
        self, call: Call, username: str, code: int, reason: str, user: User | None
    ) -> None:
        now = int(self._wall())
        keys = counted(username, address_of(call.peer)).all()
        forget_before = int(now - self._settings.lockout_seconds)
        await self._audit.with_effect(
            self._refusal(call, username, code, reason, user),
            note_failure,
            keys,
            now,
            forget_before,
        )

    async def _turn_away(
        self, call: Call, username: str, code: int, reason: str, user: User | None
    ) -> None:
        if self._turned_away.take(address_of(call.peer)):
            await self._audit.write(self._refusal(call, username, code, reason, user))
        else:
            self._metrics.audit.labels("left_out").inc()

    def _refusal(
        self, call: Call, username: str, code: int, reason: str, user: User | None
    ) -> Entry:
        who: dict[str, Any] = {} if user else {"username": username}
        return self._audit.call_entry(
            REFUSED, call, user, status=200, code=code, note=reason, **who
        )
