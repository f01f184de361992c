"""What is said in the log of results that were refused: one line a minute, with sums.

Hosts choose what they report, so a line for each batch would let one of them fill a disk.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from twisted.logger import Logger

LINE_SECONDS: Final = 60.0
"""Between two lines: 200 kB a day, whatever hosts send."""


class RefusedResults:
    """Sums up what was refused.

    The first refusal is told at once; those of the minute after it stand in the next line, which
    comes with the first refusal after that minute.

    Args:
        log: where lines go.
        monotonic: seconds that only go forward.
    """

    def __init__(self, log: Logger, monotonic: Callable[[], float]) -> None:
        self._log, self._monotonic = log, monotonic
        self._told_at: float | None = None
        self._counts: Counter[str] = Counter()  # reason -> since the last line

    def count(self, peer: str, refused: Mapping[str, int]) -> None:
        """Results that a peer brought were refused: reason -> how many."""
        self._counts.update(refused)
        now = self._monotonic()
        if self._told_at is not None and now - self._told_at < LINE_SECONDS:
            return
        self._log.warn(
            "{count} results were refused ({reasons}); the last came from {peer}",
            count=self._counts.total(),
            reasons=", ".join(f"{reason}: {n}" for reason, n in sorted(self._counts.items())),
            peer=peer,
        )
        self._told_at, self._counts = now, Counter()
