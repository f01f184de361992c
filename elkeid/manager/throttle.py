"""When a login has to wait: guessing is made slow, and the real user is never locked out by it.

Three things are counted, in the database, for all Managers together: failures of a user from an
address, from an address whatever the user, and of a user whatever the address. Only the first
makes somebody wait without a way out, and it takes failures from that very address. The others
ask for work (`elkeid.manager.captcha`), and lock a user at last, but never for an address from
which that user has logged in before. So somebody elsewhere can lock nobody out of the usual
place; somebody behind the same address can, for minutes.
"""

from collections.abc import Mapping
from hashlib import sha256

from attrs import frozen

from elkeid.manager.store.logins import Failures

FIRST_WAIT = 60.0
"""Seconds after as many failures as ``manager.login_tries``; doubled with each one more."""

CAPTCHA_TRIES = 50
"""Failures from an address, or of a user, after which logins cost a client some work. Many
operators may sit behind one address."""

USER_TRIES = 500
"""Failures of a user from everywhere, after which only known addresses get in."""

KNOWN_SECONDS = 30 * 86400
"""An address is known for so long after the user logged in from there."""

_MOST_DOUBLINGS = 20  # beyond any longest wait


@frozen
class Counted:
    """The keys under which the failures of a login are counted."""

    pair: str
    address: str
    user: str
    subject: str

    def all(self) -> dict[str, str]:
        """Key -> subject, as `note_failure` takes them."""
        return {self.pair: self.subject, self.address: "", self.user: self.subject}


@frozen
class Free:
    """Go on."""


@frozen
class Work:
    """Go on once a challenge is solved."""


@frozen
class Locked:
    """Try again in so many seconds."""

    seconds: float


Verdict = Free | Work | Locked


def subject_of(username: str) -> str:
    """What stands for a user name, which may be anything that somebody types."""
    return sha256(username.encode("utf-8", "surrogatepass")).hexdigest()


def counted(username: str, address: str) -> Counted:
    """The keys of a login."""
    subject = subject_of(username)

    def key(*parts: str) -> str:
        return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    return Counted(key("pair", subject, address), key("address", address), subject, subject)


@frozen
class Throttle:
    """The rules.

    Attributes:
        tries: failures of a user from one address before it has to wait.
        most_seconds: the longest wait; failures are forgotten so long after the last.
    """

    tries: int
    most_seconds: float

    def verdict(
        self,
        keys: Counted,
        failures: Mapping[str, Failures],
        now: float,
        *,
        known: bool,
        under_way: int = 0,
    ) -> Verdict:
        """Say what a login may do.

        Args:
            keys: of this login.
            failures: what is remembered of them.
            now: unix seconds.
            known: whether the user has logged in from there before.
            under_way: logins of this user from this address that are being checked.
        """
        pair = self._live(failures.get(keys.pair), now)
        count = 0 if pair is None else pair.count
        if pair is not None and count >= self.tries:
            doublings = min(count - self.tries, _MOST_DOUBLINGS)
            wait = min(FIRST_WAIT * 2**doublings, self.most_seconds)
            left = pair.last_at + wait - now
            if left > 0:
                return Locked(left)
        if under_way >= max(1, self.tries - count):
            return Locked(1.0)
        of_user = self._live(failures.get(keys.user), now)
        if of_user is not None and not known:
            if of_user.count >= USER_TRIES:
                return Locked(of_user.last_at + self.most_seconds - now)
            if of_user.count >= CAPTCHA_TRIES:
                return Work()
        address = self._live(failures.get(keys.address), now)
        if address is not None and address.count >= CAPTCHA_TRIES:
            return Work()
        return Free()

    def _live(self, failures: Failures | None, now: float) -> Failures | None:
        # One that lies ahead was noted by a clock that was set back since.
        if failures is None or abs(now - failures.last_at) >= self.most_seconds:
            return None
        return failures
