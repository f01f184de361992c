r"""AK/SK signatures of HTTP requests, made and checked.

The text that is signed has six parts joined by the two characters ``\`` and ``n``: method, path,
query, access key (AK), time stamp, and SHA-256 of the body (nothing for an empty body). The
signature is the HMAC-SHA256 of it under the secret key (SK), in lower-case hex.

Source: docs/protocol.md, "AK/SK signatures".
"""

import hmac
import json
import re
from collections.abc import Mapping
from enum import Enum
from hashlib import sha256
from typing import Final

from elkeid.errors import PeerError

WINDOW_SECONDS: Final = 60
"""A time stamp this far off, or farther, is refused."""

_SEPARATOR = b"\\n"  # a backslash and an n, not a line feed
_INTEGER = re.compile(r"[+-]?[0-9]+\Z")


class Reason(Enum):
    """Why a signature was refused; each face has its own words for these."""

    HEADER_MISSED = "header missed: AccessKey|Signature|TimeStamp"
    TIME_UNREADABLE = "TimeStamp Error"
    TIME_OFF = "timestamp error"
    UNKNOWN_KEY = "User not exist"
    WRONG_SIGNATURE = "signature error"
    NONCE_SEEN = "nonce seen before"
    NONCE_UNFIT = "nonce unfit"
    REPEATED = "request seen before: sign a nonce"


class SignatureRefused(PeerError):
    """A request whose signature does not hold.

    Attributes:
        reason: which check failed.
        detail: more in words, or nothing; no secrets.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason.value} {detail}".strip())


def body_hash(body: bytes) -> str:
    """A body's part of the text: SHA-256 in lower-case hex, nothing for an empty body."""
    return sha256(body).hexdigest() if body else ""


def sign(  # noqa: PLR0917 # the six parts of the text in their order, and the key
    method: str,
    path: str,
    query: str,
    ak: str,
    sk: str,
    timestamp: int | str,
    body: bytes = b"",
    *,
    hashed: str | None = None,
) -> str:
    """Sign a request.

    Args:
        method: as in the request, upper-case.
        path: of the URL, percent-decoded; bytes that are not UTF-8 as surrogate escapes.
        query: what follows ``?``, undecoded; empty if nothing.
        ak: access key.
        sk: secret key.
        timestamp: unix seconds; as text when it was received as text.
        body: of the request.
        hashed: the `body_hash` of a body that is not in memory, in place of ``body``.

    Returns:
        64 lower-case hex digits.
    """
    parts = (
        method,
        path.strip(" ").removesuffix("/"),
        query,
        ak,
        str(timestamp),
        body_hash(body) if hashed is None else hashed,
    )
    text = _SEPARATOR.join(part.encode("utf-8", "surrogateescape") for part in parts)
    return hmac.digest(sk.encode(), text, "sha256").hex()


def verify(
    *,
    ak: str | None,
    timestamp: str | None,
    signature: str | None,
    method: str,
    path: str,
    query: str,
    body: bytes,
    now: float,
    keys: Mapping[str, str],
    hashed: str | None = None,
) -> str:
    """Check a request's signature.

    Args:
        ak: header AccessKey, the first if there are several; None or empty if there is none.
        timestamp: header TimeStamp, likewise.
        signature: header Signature, likewise.
        method: as in the request.
        path: of the URL, percent-decoded; bytes that are not UTF-8 as surrogate escapes.
        query: what follows ``?``, undecoded.
        body: of the request.
        now: unix seconds, our clock.
        keys: secret key by access key, all of these lower-case. A key sent in another case is
            the same key; the signature may be made with it in lower case or as it was sent.
        hashed: the `body_hash` of a body that is not in memory, in place of ``body``.

    Returns:
        The access key, in lower case.

    Raises:
        SignatureRefused: with the first check that failed: headers present, time stamp an
            integer, less than `WINDOW_SECONDS` off, key known, signature right.
    """
    if not (ak and timestamp and signature):
        raise SignatureRefused(Reason.HEADER_MISSED)
    sent = _parse_integer(timestamp)
    if abs(int(now) - sent) >= WINDOW_SECONDS:
        raise SignatureRefused(
            Reason.TIME_OFF, f"(the request says {sent}, this server {int(now)})"
        )
    name = ak.lower()
    sk = keys.get(name)
    if sk is None:
        raise SignatureRefused(Reason.UNKNOWN_KEY)
    given = signature.encode("utf-8", "surrogateescape")
    for signed_with in (name, ak) if ak != name else (name,):
        expected = sign(method, path, query, signed_with, sk, timestamp, body, hashed=hashed)
        if hmac.compare_digest(expected.encode(), given):
            return name
    raise SignatureRefused(Reason.WRONG_SIGNATURE)


def _parse_integer(text: str) -> int:
    """Read a signed 64-bit integer; refusals carry the text that Go clients are used to."""
    wrong = "invalid syntax"
    if _INTEGER.match(text):
        value = int(text) if len(text) <= 20 else 1 << 63
        if -(1 << 63) <= value < 1 << 63:
            return value
        wrong = "value out of range"
    shown = json.dumps(text[:64], ensure_ascii=False)
    raise SignatureRefused(Reason.TIME_UNREADABLE, f"strconv.ParseInt: parsing {shown}: {wrong}")
