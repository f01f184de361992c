"""AK/SK authentication of requests; the string to sign is `elkeid.wire.signature`'s."""

from collections.abc import Callable, Mapping
from hmac import compare_digest
from urllib.parse import unquote_to_bytes

from attrs import frozen

from elkeid.web.refusals import AuthenticationFailed
from elkeid.web.routes import Call
from elkeid.wire import signature

WINDOW_SECONDS = 60  # a timestamp this far off, or farther, is refused
HEADERS = ("AccessKey", "Signature", "TimeStamp")


@frozen
class Reasons:
    """The words in which a face tells why a signature is refused: clients' logs know them."""

    timestamp: str = "timestamp error"
    signature: str = "signature error"


SD_REASONS = Reasons("TimeStamp Error", "Signature Error")


class SignatureCheck:
    """Authenticates a `Call` by its AccessKey, TimeStamp and Signature headers.

    Access keys are lower-case by definition; one that comes in another case is taken as if
    lower-case, also in the string to sign. The identity is the access key.

    Args:
        keys: access key -> secret key.
        now: seconds since the epoch.
        reasons: the face's words.
    """

    def __init__(
        self, keys: Mapping[str, str], now: Callable[[], float], reasons: Reasons | None = None
    ) -> None:
        self._keys, self._now, self._reasons = keys, now, reasons or Reasons()

    def __call__(self, call: Call) -> str:
        """Return the access key, or raise `AuthenticationFailed` with the reason."""
        ak, given, stamp = (call.header(name) or "" for name in HEADERS)
        if not (ak and given and stamp):
            raise AuthenticationFailed(f"header missed: {'|'.join(HEADERS)}")
        timestamp = self._in_window(stamp)
        ak = ak.lower()
        sk = self._keys.get(ak)
        if sk is None:
            raise AuthenticationFailed("User not exist")
        expected = signature.sign(
            call.method,
            unquote_to_bytes(call.path).decode("utf-8", "surrogateescape"),
            call.raw_query.decode("latin-1"),
            ak,
            sk,
            timestamp,
            call.raw_body,
        )
        if not compare_digest(expected.encode(), given.encode()):
            raise AuthenticationFailed(self._reasons.signature)
        return ak

    def _in_window(self, stamp: str) -> str:
        digits = stamp[1:] if stamp[:1] in ("-", "+") else stamp
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
            raise AuthenticationFailed("TimeStamp Error: not an integer of seconds")
        now = int(self._now())
        if abs(now - int(stamp)) >= WINDOW_SECONDS:
            raise AuthenticationFailed(
                f"{self._reasons.timestamp}: the request says {int(stamp)}, this server {now}"
            )
        return stamp
