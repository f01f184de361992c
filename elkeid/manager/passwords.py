"""Passwords: what is accepted, how they are kept, and checks that tell nothing.

Hashing is slow on purpose and runs in threads, one at a time.
"""

import secrets
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from twisted.internet.defer import Deferred, DeferredLock
from twisted.python.failure import Failure

from elkeid.manager.store.store import StoreBusy, Threads

T = TypeVar("T")

MIN_CHARACTERS = 12
"""Shorter ones are guessed; no rule on their content, which only makes them predictable."""

DIFFERENT_CHARACTERS = 5
"""Fewer are one key held down, or a few in turn."""

LEAST_LEFT = 4
"""Different letters, or four digits for one, that must be left beside common words."""

_DIGITS_PER_LETTER = 4

_SHORTEST_WORD = 3

_WORDS = """
password passwort passwd passphrase pass secret geheim hidden changeme change me letmein let
welcome willkommen admin administrator root user guest login logon master manager server
default system test demo sample example elkeid bytedance hids agent qwertyuiop qwerty qwertz
azerty asdfghjkl asdf zxcvbnm zxcv abcdefghijklmnopqrstuvwxyz abcdefgh abcdef abc monkey
dragon football baseball sunshine princess iloveyou shadow superman batman trustno whatever
freedom michael jordan hello access flower summer winter spring autumn computer internet
company office security linux windows
"""

_COMMON = frozenset(_WORDS.split())
"""What lists of the most used passwords are made of, beside digits and signs."""

_LOOKALIKES = str.maketrans("013457@$!", "oleastasi")
"""What stands for a letter."""

MAX_CHARACTERS = 1024
"""Longer ones are no password; hashing reads every byte."""

WAITING_LIMIT = 50
"""Hashes in progress or waiting: ten seconds' worth; a flood of logins gets "busy"."""

HASHER = PasswordHasher(time_cost=3, memory_cost=64 << 10, parallelism=1)
"""Argon2id with 64 MiB and 3 passes, the second choice of RFC 9106, on one lane instead of four:
a login happens every few hours, must not take more than one core from the gateway, and costs
about 0.2 s of it."""


class PasswordRefused(ValueError):
    """A new password that is not good enough; the text says why."""


def check_new_password(username: str, password: str, min_characters: int = MIN_CHARACTERS) -> None:
    """Raise `PasswordRefused` unless a password may be set."""
    if len(password) < min_characters:
        raise PasswordRefused(f"password: at least {min_characters} characters")
    if len(password) > MAX_CHARACTERS:
        raise PasswordRefused(f"password: at most {MAX_CHARACTERS} characters")
    if password.lower() == username.lower():
        raise PasswordRefused("password: must differ from the user name")
    if len(set(password)) < DIFFERENT_CHARACTERS:
        raise PasswordRefused(f"password: at least {DIFFERENT_CHARACTERS} different characters")
    if _is_common(username, password):
        raise PasswordRefused(
            "password: made of words and rows of keys that are tried first; take other words"
        )


def _is_common(username: str, password: str) -> bool:
    """Say whether little is left once what everybody tries is taken away."""
    text = password.lower().translate(_LOOKALIKES)
    covered = [False] * len(text)
    for word in (*_COMMON, username.lower().translate(_LOOKALIKES)):
        at = text.find(word) if len(word) >= _SHORTEST_WORD else -1
        while at >= 0:
            covered[at : at + len(word)] = [True] * len(word)
            at = text.find(word, at + 1)
    rest = [each for each, gone in zip(password, covered, strict=False) if not gone]
    letters = len({each.lower() for each in rest if each.isalpha()})
    return letters + sum(each.isdigit() for each in rest) // _DIGITS_PER_LETTER < LEAST_LEFT


def random_password() -> str:
    """A password of 144 random bits, 24 characters."""
    return secrets.token_urlsafe(18)


class Passwords:
    """Hashes and verifies, in threads, one at a time.

    Args:
        threads: where.
        hasher: how; a weak one in tests.
    """

    def __init__(self, threads: Threads, hasher: PasswordHasher = HASHER) -> None:
        self._threads, self._hasher = threads, hasher
        self._turn = DeferredLock()
        self._waiting = 0
        self._nobody = ""  # the hash that unknown users are checked against

    async def prepare(self) -> None:
        """Make what `verify` needs to take as long for unknown users as for known ones."""
        self._nobody = await self.hash(random_password())

    async def hash(self, password: str) -> str:
        """The hash to store; `StoreBusy` if too many wait."""
        return await self._in_turn(self._hasher.hash, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Say whether a password is the one stored.

        Args:
            stored: its hash; None for a user who does not exist, which takes as long.
            password: as typed.

        Raises:
            StoreBusy: too many wait.
        """
        right = await self._in_turn(self._verify, stored or self._nobody, password)
        return right and stored is not None

    def _verify(self, stored: str, password: str) -> bool:
        if len(password) > MAX_CHARACTERS:
            password = ""
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    def _in_turn(self, function: Callable[..., T], *args: str) -> "Deferred[T]":
        """Run when it is its turn; a caller that gives up leaves the turn to its end."""
        if self._waiting >= WAITING_LIMIT:
            raise StoreBusy("too many logins at once; try again")
        self._waiting += 1
        waiting: Deferred[T] = Deferred()

        def ended(result: T | Failure) -> None:
            self._waiting -= 1
            if isinstance(result, Failure):
                waiting.errback(result)
            else:
                waiting.callback(result)

        self._turn.run(self._threads.run, function, *args).addBoth(ended)
        return waiting
