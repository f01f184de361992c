"""What all streams of a process may hold in memory at once.

A large message is paid for when its length is known, before its body is kept: what has been
admitted can always be finished. Who finds no room waits unread, the smallest message first. A
share that is not being used up makes room for others after a few seconds, the one with most
still to come first, so that announcing messages without sending them keeps nobody out for long.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

GRACE_SECONDS: Final = 5.0
"""A share is safe for so long: the largest message takes less on a link of 64 Mbit/s."""

LOOK_SECONDS: Final = 0.5
"""While somebody waits: what commands and held batches take is given back without a word."""


class Holder(Protocol):
    """Who asks for a share."""

    def granted(self, share: "Share") -> None:
        """There is room now, after a wait."""

    def left(self, share: "Share") -> int:
        """Bytes still to come of what the share is for."""

    def evict(self, share: "Share") -> None:
        """Others wait: end what the share is for, and give it back at once."""


class Share:
    """Room for one message."""

    __slots__ = ("at", "holder", "size", "stream_id", "waiting")

    def __init__(self, holder: Holder, stream_id: int, size: int) -> None:
        self.holder, self.stream_id, self.size = holder, stream_id, size
        self.waiting = False
        self.at = 0.0  # when it was granted


class MemoryBudget:
    """Gives shares.

    Args:
        limit: bytes in all.
        clock: for waits.
        elsewhere: bytes that count against the limit and are held by others.
    """

    def __init__(
        self, limit: int, clock: IReactorTime, elsewhere: Callable[[], int] = lambda: 0
    ) -> None:
        self.limit, self.elsewhere = limit, elsewhere
        self._clock = clock
        self._taken = 0
        self._shares: dict[Share, None] = {}  # granted, oldest first
        self._queue: list[tuple[int, int, Share]] = []  # size, order, share
        self._order = count()
        self._timer: IDelayedCall | None = None
        self.waits = 0  # messages that had to wait
        self.evictions = 0

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._taken + self.elsewhere()

    @property
    def waiting(self) -> int:
        """Messages that wait for room."""
        return len(self._queue)

    @property
    def spent(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._queue)

    def take(self, size: int) -> bool:
        """Take ``size`` bytes if there is room now; given back by `give`."""
        if self._queue or self.used + size > self.limit:
            return False
        self._taken += size
        return True

    def give(self, size: int) -> None:
        """Give back what `take` took."""
        self._taken -= size
        self._serve()

    def ask(self, share: Share) -> bool:
        """Take a share; when there is no room it waits, and its holder is told of the grant."""
        if self.take(share.size):
            self._grant(share)
            return True
        self.waits += 1
        share.waiting = True
        heappush(self._queue, (share.size, next(self._order), share))
        if self._timer is None:
            self._timer = self._clock.callLater(LOOK_SECONDS, self._look)
        return False

    def adopt(self, share: Share) -> None:
        """What `take` took becomes this share."""
        self._grant(share)

    def keep(self, share: Share) -> None:
        """A granted share stays, whoever waits, until `give` gives its bytes back."""
        del self._shares[share]

    def give_back(self, share: Share) -> None:
        """A share is used no more, or waited for no more."""
        if share.waiting:
            share.waiting = False
            self._queue = [each for each in self._queue if each[2] is not share]
            heapify(self._queue)
            if not self._queue and self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif share in self._shares:
            del self._shares[share]
            self.give(share.size)

    def _grant(self, share: Share) -> None:
        share.at = self._clock.seconds()
        self._shares[share] = None

    def _serve(self) -> None:
        while self._queue and self.used + self._queue[0][0] <= self.limit:
            share = heappop(self._queue)[2]
            share.waiting = False
            self._taken += share.size
            self._grant(share)
            share.holder.granted(share)
        if not self._queue and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Room may have come back; else make some."""
        self._timer = None
        self._serve()
        since = self._clock.seconds() - GRACE_SECONDS
        old = [share for share in self._shares if share.at <= since]
        old.sort(key=lambda share: share.holder.left(share))
        while self._queue and old:
            share = old.pop()
            self.evictions += 1
            share.holder.evict(share)  # gives back, which serves
        if self._queue:
            self._timer = self._clock.callLater(LOOK_SECONDS, self._look)
