"""Which uploads were asked for: a host may bring a file only under a token that was sent to it."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

TOKEN_LIMIT: Final = 20_000
"""Tokens remembered of each kind; beyond, the oldest are forgotten and must be confirmed."""

TOKEN_SECONDS: Final = 3600.0
"""Life of a token: an agent begins at once, and gives up ten minutes later."""


class TokenBook:
    """Remembers the tokens of upload tasks (data type 1050), and those that are used up.

    Args:
        monotonic: seconds that only go forward.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._sent: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._spent: OrderedDict[str, float] = OrderedDict()

    def sent(self, token: str, agent_id: str) -> None:
        """A task with this token was written to this agent's connection."""
        self._sent[token] = (agent_id, self._monotonic())
        self._sent.move_to_end(token)
        if len(self._sent) > TOKEN_LIMIT:
            self._sent.popitem(last=False)

    def agent_of(self, token: str) -> str | None:
        """The agent that was sent this token and has not used it up, or None."""
        found = self._sent.get(token)
        if found is None or self.spent(token) or self._old(found[1]):
            return None
        return found[0]

    def spend(self, token: str) -> None:
        """The file of this token was delivered: no other comes under it."""
        self._spent[token] = self._monotonic()
        self._spent.move_to_end(token)
        if len(self._spent) > TOKEN_LIMIT:
            self._spent.popitem(last=False)

    def spent(self, token: str) -> bool:
        """Say whether a file of this token was delivered by this process."""
        at = self._spent.get(token)
        return at is not None and not self._old(at)

    def _old(self, at: float) -> bool:
        return self._monotonic() - at > TOKEN_SECONDS
