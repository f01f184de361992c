"""A check that whoever logs in spends time on it: a puzzle for the machine, not for eyes.

The answer to a challenge is a text that begins with the challenge and a colon, and whose SHA-256
begins with a number of zero bits. Finding one costs a client a fraction of a second, checking it
one hash; who guesses passwords pays it for every guess.
"""

import hmac
import secrets
from collections.abc import Callable
from hashlib import sha256

BITS = 18
"""Zero bits of an answer: 260,000 hashes on average, 0.2 s in plain Python."""

LIFE_SECONDS = 120
"""How long a challenge may be answered."""

ANSWER_CHARACTERS = 300
"""A longer one is no answer of ours."""

REMEMBERED = 10_000
"""Answers used within `LIFE_SECONDS`; a Manager checks fewer passwords in that time."""


class Captcha:
    """Makes challenges and checks answers.

    Args:
        key: the same for every Manager, so that each takes another's challenge.
        wall: seconds since the epoch.
    """

    def __init__(self, key: bytes, wall: Callable[[], float]) -> None:
        self._key = hmac.digest(key, b"login captcha", "sha256")
        self._wall = wall
        self._used: dict[str, float] = {}  # challenge -> its end

    def challenge(self, username: str, address: str) -> str:
        """A new challenge for this login."""
        begin = f"{self._wall() + LIFE_SECONDS:.0f}.{secrets.token_hex(8)}"
        return self._sealed(begin, username, address)

    def _sealed(self, begin: str, username: str, address: str) -> str:
        text = f"{begin}.{address}.{username}".encode("utf-8", "surrogatepass")
        return f"{begin}.{hmac.digest(self._key, text, 'sha256').hex()[:32]}"

    def is_solved(self, answer: str, username: str, address: str) -> bool:
        """Say whether this answers a challenge of this login, for the first time."""
        challenge, colon, _ = answer.partition(":")
        if not colon or len(answer) > ANSWER_CHARACTERS or not answer.isascii():
            return False
        begin = challenge.rpartition(".")[0]
        if not hmac.compare_digest(self._sealed(begin, username, address), challenge):
            return False
        now, end = self._wall(), float(begin.partition(".")[0])
        if end < now or challenge in self._used or not has_zero_bits(answer):
            return False
        self._used = {each: until for each, until in self._used.items() if until >= now}
        if len(self._used) >= REMEMBERED:
            return False
        self._used[challenge] = end
        return True


def has_zero_bits(answer: str) -> bool:
    """Say whether the hash of an answer begins as it must."""
    return int.from_bytes(sha256(answer.encode()).digest()) >> (256 - BITS) == 0
