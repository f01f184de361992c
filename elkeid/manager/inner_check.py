"""Who may call the routes that are for AgentCenters."""

from collections.abc import Callable, Iterable, Mapping

from elkeid.web.peers import Networks
from elkeid.web.refusals import AccessDenied, AuthenticationFailed
from elkeid.web.routes import Call
from elkeid.web.signed import SignatureCheck
from elkeid.wire.replay import nonce_of

SIGNATURE_HEADERS = ("AccessKey", "TimeStamp", "Signature")


class InnerCheck:
    """Authenticates a call by its signature, and by the network that it comes from.

    Whoever signs is one of ours, and signs a nonce.

    The identity is the access key; None for a call without a signature, where such are taken.

    Args:
        keys: access key -> secret key.
        now: seconds since the epoch.
        networks: where AgentCenters are; nobody else is served, signature or not.
        accept_unsigned: take calls without any signature; AgentCenters of upstream cannot sign.
    """

    def __init__(
        self,
        keys: Mapping[str, str],
        now: Callable[[], float],
        networks: Iterable[str],
        accept_unsigned: bool,
    ) -> None:
        self._signature = SignatureCheck(keys, now)
        self.seen = self._signature.seen
        self._networks, self._accept_unsigned = Networks(networks), accept_unsigned

    def admit(self, address: str) -> None:
        """Refuse an IP address where no AgentCenter is."""
        if address not in self._networks:
            raise AccessDenied(f"{address} is in none of manager.inner_networks")

    def __call__(self, call: Call) -> str | None:
        """Return the access key, None where none is needed, or refuse."""
        self.admit(call.peer)
        unsigned = all(call.header(name) is None for name in SIGNATURE_HEADERS)
        if unsigned and self._accept_unsigned:
            return None
        access_key = self._signature(call)
        if not nonce_of(call.raw_query.decode("latin-1")):
            raise AuthenticationFailed("sign a nonce in the query")
        return access_key


def signed_only(call: Call) -> None:
    """Refuse a call without a signature on a route that only our own AgentCenters know."""
    if call.identity is None:
        raise AuthenticationFailed("this route takes signed requests only")
