"""A second factor: codes of an authenticator app (RFC 6238), and codes for the day it is lost."""

import base64
import secrets
from hashlib import sha256
from urllib.parse import quote

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor import InvalidToken
from cryptography.hazmat.primitives.twofactor.totp import TOTP

STEP_SECONDS = 30
DIGITS = 6

WINDOW = 1
"""Steps before and after now whose codes count: clocks of phones are half a minute off."""

SECRET_BYTES = 20
"""As RFC 4226 recommends."""

RECOVERY_CODES = 10
RECOVERY_BYTES = 10
"""80 random bits a code, so that its plain SHA-256 can be stored."""


def new_secret() -> str:
    """A secret in base32, as people type it into an app."""
    return base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()


def uri_of(secret: str, username: str) -> str:
    """What an app reads as a QR code."""
    return (
        f"otpauth://totp/Elkeid:{quote(username)}?secret={secret}"
        f"&issuer=Elkeid&algorithm=SHA1&digits={DIGITS}&period={STEP_SECONDS}"
    )


def step_of(secret: str, code: str, now: float) -> int | None:
    """The time step that a code belongs to; None if to none near now.

    Args:
        secret: in base32.
        code: as typed.
        now: unix seconds.
    """
    digits = code.strip()
    if len(digits) != DIGITS or not (digits.isascii() and digits.isdigit()):
        return None
    # SHA-1 is what apps know, and enough for a keyed hash.
    totp = TOTP(base64.b32decode(secret), DIGITS, SHA1(), STEP_SECONDS)  # noqa: S303
    current = int(now) // STEP_SECONDS
    for step in range(current - WINDOW, current + WINDOW + 1):
        try:
            totp.verify(digits.encode(), step * STEP_SECONDS)
        except InvalidToken:
            continue
        return step
    return None


def new_recovery_codes() -> list[str]:
    """Codes that stand for the app, each once."""
    return [
        base64.b32encode(secrets.token_bytes(RECOVERY_BYTES)).decode().lower()
        for _ in range(RECOVERY_CODES)
    ]


def recovery_hash(code: str) -> str:
    """What is stored of a recovery code; spaces, dashes and case do not matter."""
    plain = code.replace("-", "").replace(" ", "").lower()
    return sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
