"""AK/SK authentication of requests; what is checked, and how, is `elkeid.wire.signature`'s."""

from collections.abc import Callable, Mapping
from urllib.parse import unquote_to_bytes

from elkeid.web.refusals import AuthenticationFailed
from elkeid.web.routes import Call
from elkeid.wire.replay import SeenRequests
from elkeid.wire.signature import Reason, SignatureRefused, verify

SD_REASONS = {Reason.TIME_OFF: "TimeStamp Error", Reason.WRONG_SIGNATURE: "Signature Error"}
"""ServiceDiscovery's own words for two reasons; AgentCenter and Manager have the common ones."""


class SignatureCheck:
    """Authenticates a `Call` by its AccessKey, TimeStamp and Signature headers.

    Of a header that comes twice the first counts. The identity is the access key, lower-case.
    A request that was accepted before is refused, see `elkeid.wire.replay`: each face remembers
    its own.

    Args:
        keys: access key -> secret key; read at every call, so it may change.
        now: seconds since the epoch.
        words: the face's own words for reasons: clients' logs know them.
    """

    def __init__(
        self,
        keys: Mapping[str, str],
        now: Callable[[], float],
        words: Mapping[Reason, str] | None = None,
    ) -> None:
        self._keys, self._now, self._words = keys, now, words or {}
        self.seen = SeenRequests()

    def __call__(self, call: Call) -> str:
        """Return the access key, or raise `AuthenticationFailed` with the reason."""
        query = call.raw_query.decode("utf-8", "surrogateescape")
        signature = call.header("Signature")
        now = self._now()
        try:
            ak = verify(
                ak=call.header("AccessKey"),
                timestamp=call.header("TimeStamp"),
                signature=signature,
                method=call.method,
                path=unquote_to_bytes(call.path).decode("utf-8", "surrogateescape"),
                query=query,
                body=call.raw_body,
                now=now,
                keys=self._keys,
                hashed=None if call.spool is None else call.spool.body_hash,
            )
            assert signature is not None
            repeats = call.route is not None and call.route.repeats
            self.seen.accept(call.method, query, ak, signature, now, repeats=repeats)
        except SignatureRefused as refused:
            words = self._words.get(refused.reason, refused.reason.value)
            raise AuthenticationFailed(f"{words} {refused.detail}".strip()) from refused
        return ak
