"""What clients answer when a login asks for more than a password, made as they make it."""

import base64

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from elkeid.manager.captcha import has_zero_bits
from elkeid.manager.totp import DIGITS, STEP_SECONDS


def solve(challenge: str) -> str:
    """An answer to a challenge."""
    number = 0
    while not has_zero_bits(f"{challenge}:{number}"):
        number += 1
    return f"{challenge}:{number}"


def code_at(secret: str, step: int) -> str:
    """The code of a time step, as an authenticator app shows it."""
    totp = TOTP(base64.b32decode(secret), DIGITS, SHA1(), STEP_SECONDS)
    return totp.generate(step * STEP_SECONDS).decode()
