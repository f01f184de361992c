"""Slowing down those who guess passwords."""

from collections import OrderedDict

from attrs import define

TRIES = 5
"""Failed logins of one user from one address before it has to wait."""

PEER_TRIES = 50
"""Failed logins from one address whatever the user: many operators may sit behind one."""

WAIT_SECONDS = 60.0
"""How long it waits then; also after this long without a failure, failures are forgotten."""

REMEMBERED = 20_000
"""Pairs of user and address, and addresses; beyond, the longest unchanged are forgotten."""


@define
class _Failures:
    count: int
    last: float  # seconds of the clock


class LoginThrottle:
    """Counts failed logins. Bounded; reads no clock.

    A user is never locked out altogether: only the address that fails waits.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, ...], _Failures] = OrderedDict()

    def wait(self, username: str, peer: str, now: float) -> float:
        """Seconds until this address may try this user again; 0 if now."""
        longest = 0.0
        for key, limit in (((username, peer), TRIES), ((peer,), PEER_TRIES)):
            failures = self._failures.get(key)
            if failures is not None and failures.count >= limit:
                longest = max(longest, failures.last + WAIT_SECONDS - now)
        return longest

    def failed(self, username: str, peer: str, now: float) -> None:
        """Note a failed login."""
        for key in ((username, peer), (peer,)):
            failures = self._failures.pop(key, None)
            if failures is None or now - failures.last >= WAIT_SECONDS:
                failures = _Failures(0, now)
            failures.count += 1
            failures.last = now
            self._failures[key] = failures
        while len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)

    def succeeded(self, username: str, peer: str) -> None:
        """Forget the failures of this user from this address."""
        self._failures.pop((username, peer), None)
