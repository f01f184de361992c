"""Requests that were accepted before: remembered for as long as their signatures could pass.

A signature passes for almost two `WINDOW_SECONDS`: from the moment that our clock comes near its
time stamp until it is as far beyond. Whoever overhears a request could send it again until then.

Source: docs/protocol.md, "AK/SK signatures".
"""

from typing import Final

from elkeid.wire.signature import WINDOW_SECONDS, Reason, SignatureRefused

SEEN_SECONDS: Final = 2 * WINDOW_SECONDS
SEEN_LIMIT: Final = 1 << 18
"""Requests remembered at most: 2,000 a second for `SEEN_SECONDS`, in about 40 MiB."""

NONCE_BYTES: Final = 128
"""Longest nonce that is taken: what is remembered must not be as large as a request."""

_READS: Final = frozenset(("GET", "HEAD"))


def nonce_of(query: str) -> str:
    """The undecoded value of the first ``nonce`` of a query (what follows ``?``), or nothing."""
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name == "nonce":
            return value
    return ""


class SeenRequests:
    """Refuses requests that were accepted before; no I/O, no clock.

    Only what carries a good signature may be shown to it, so nobody else can fill it.

    Args:
        limit: requests to remember; beyond, the oldest are forgotten early.

    Attributes:
        refused: repeated requests so far.
        forgotten: requests that were forgotten before their time.
    """

    def __init__(self, limit: int = SEEN_LIMIT) -> None:
        self._limit = limit
        self._seen: dict[str, float] = {}  # in the order of acceptance
        self.refused = 0
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._seen)

    def figures(self) -> tuple[int, int, int]:
        """Requests remembered, refused as seen before, and forgotten before their time."""
        return len(self._seen), self.refused, self.forgotten

    def accept(
        self, method: str, query: str, ak: str, signature: str, now: float, *, repeats: bool
    ) -> None:
        """Take a request whose signature holds, or refuse it as seen before.

        Args:
            method: upper-case; reads without a nonce may be repeated.
            query: what follows ``?``, undecoded; its ``nonce`` is good once in `SEEN_SECONDS`.
            ak: whose request.
            signature: tells requests without a nonce apart.
            now: unix seconds, the clock that time stamps are checked by.
            repeats: whether this route's requests may come again as they are, without a nonce.

        Raises:
            SignatureRefused: it, or its nonce, was seen before, or the nonce is too long.
        """
        self._expire(now)
        nonce = nonce_of(query)
        if len(nonce) > NONCE_BYTES:
            raise SignatureRefused(Reason.NONCE_UNFIT, f"(more than {NONCE_BYTES} bytes)")
        if nonce:
            self._once(f"{ak} {nonce}", now, Reason.NONCE_SEEN)
        elif not repeats and method not in _READS:
            self._once(signature, now, Reason.REPEATED)

    def _once(self, key: str, now: float, reason: Reason) -> None:
        if key in self._seen:
            self.refused += 1
            raise SignatureRefused(reason)
        if len(self._seen) >= self._limit:
            del self._seen[next(iter(self._seen))]
            self.forgotten += 1
        self._seen[key] = now

    def _expire(self, now: float) -> None:
        """Forget what is old; the entries stand in order unless the clock was set back."""
        while self._seen:
            key = next(iter(self._seen))
            if now - self._seen[key] < SEEN_SECONDS:
                return
            del self._seen[key]
