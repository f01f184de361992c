"""The live feed: what happens, told to whoever listens, in bounded memory.

A listener that is slower than the news keeps the latest of them and is told how many it missed.

Source: docs/protocol.md, "Manager API", "Live feed".
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol, get_args

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elkeid.errors import RequestRefused, StoreError
from elkeid.web.answers import encode_json
from elkeid.web.refusals import Refusal

EventName = Literal["online", "offline", "moved", "conflict", "task"]
"""What is told."""

EVENT_NAMES: Final = frozenset(get_args(EventName))

QUEUE_EVENTS: Final = 1_000
"""Kept for a slow listener: what a fleet of 10,000 says in some seconds."""

QUEUE_BYTES: Final = 256 << 10
"""Of these; events have some 150 bytes."""

LISTENERS: Final = 200
"""Of one Manager: with full queues and buffers they take some 70 MB."""

USER_LISTENERS: Final = 10
"""Of one user: more are forgotten windows, or somebody keeps others out."""

STRANGERS: Final = 50
"""Connections whose token has not come, or is being looked at: they need none to be there."""

TOKEN_SECONDS: Final = 5.0
"""For the message with the token, where no header brought it."""

MESSAGE_BYTES: Final = 1_024
"""Of what a listener may send: its token, once."""

RECHECK_SECONDS: Final = 10.0
"""A token that has ended closes its feed within so long."""


class FeedFull(RequestRefused):
    """No more listeners; the text says whose are too many."""


class EventQueue:
    """What waits for one listener: the latest events, and how many older ones were dropped.

    Args:
        events: that are kept.
        size: bytes of these.
    """

    def __init__(self, events: int = QUEUE_EVENTS, size: int = QUEUE_BYTES) -> None:
        self._events, self._size = events, size
        self._waiting: deque[bytes] = deque()
        self.bytes = 0
        self.missed = 0  # dropped, and not told yet

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, event: bytes) -> int:
        """Keep an event; returns how many were dropped for it."""
        self._waiting.append(event)
        self.bytes += len(event)
        dropped = 0
        while len(self._waiting) > self._events or self.bytes > self._size:
            self.bytes -= len(self._waiting.popleft())
            dropped += 1
        self.missed += dropped
        return dropped

    def take(self) -> bytes | None:
        """What to tell next: first how many are missing; None if there is nothing."""
        if self.missed:
            missed, self.missed = self.missed, 0
            return encode_json({"event": "missed", "count": missed})
        if not self._waiting:
            return None
        event = self._waiting.popleft()
        self.bytes -= len(event)
        return event


class Sink(Protocol):
    """The way to a listener."""

    def tell(self, event: bytes) -> None:
        """Send a message."""

    def end(self, reason: str) -> None:
        """Close: the listener may not listen any more."""


class Listener:
    """One who listens.

    Args:
        username: whose.
        wanted: events to tell of.
        sink: the way there; it says when it is full, and when no longer.
        recheck: raises a `Refusal` once this listener may not listen any more.
    """

    def __init__(
        self,
        username: str,
        wanted: frozenset[str],
        sink: Sink,
        recheck: Callable[[], Awaitable[None]],
    ) -> None:
        self.username, self.wanted, self._sink, self.recheck = username, wanted, sink, recheck
        self.queue = EventQueue()
        self._full = False

    def tell(self, event: bytes) -> int:
        """Send an event, or keep it until there is room; returns how many were dropped."""
        if self._full:
            return self.queue.put(event)
        self._sink.tell(event)
        return 0

    def pause(self) -> None:
        """The way is full."""
        self._full = True

    def resume(self) -> None:
        """There is room again."""
        self._full = False
        while not self._full and (event := self.queue.take()) is not None:
            self._sink.tell(event)

    def end(self, reason: str) -> None:
        """Close."""
        self._sink.end(reason)


class LiveFeed:
    """Tells events to listeners.

    Args:
        clock: for looking whether they still may listen.
        wall: seconds since the epoch.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._listeners: set[Listener] = set()
        self.strangers: set[object] = set()  # connections of nobody known yet
        self._told = self._missed = 0
        self._checks = LoopingCall(self._check)
        self._checks.clock = clock
        self._checking: Deferred[None] | None = None

    def start(self) -> None:
        """Look after listeners from now on."""
        self._checks.start(RECHECK_SECONDS, now=False)

    async def stop(self) -> None:
        """Close all."""
        if self._checks.running:
            self._checks.stop()
        for listener in list(self._listeners):
            listener.end("this Manager stops")
        if self._checking is not None:
            await self._checking

    def admit(self, username: str) -> None:
        """Raise `FeedFull` if this user's listener could not join now."""
        if len(self._listeners) >= LISTENERS:
            raise FeedFull(f"{LISTENERS} listen already, as many as one Manager serves")
        if sum(each.username == username for each in self._listeners) >= USER_LISTENERS:
            raise FeedFull(f"this user has {USER_LISTENERS} listeners already")

    def admit_stranger(self) -> None:
        """Raise `FeedFull` if too many connections have not told a token."""
        if len(self.strangers) >= STRANGERS:
            raise FeedFull("too many connections without a token")

    def join(self, listener: Listener) -> None:
        """Tell a listener from now on; `FeedFull` as of `admit`."""
        self.admit(listener.username)
        self._listeners.add(listener)

    def leave(self, listener: Listener) -> None:
        """Tell it no more."""
        self._listeners.discard(listener)

    def tell(self, event: EventName, **fields: Any) -> None:
        """Tell everybody who wants such events; returns at once.

        Args:
            event: its name.
            fields: what it says; JSON-ready.
        """
        text: bytes | None = None
        for listener in list(self._listeners):
            if event not in listener.wanted:
                continue
            if text is None:
                text = encode_json({"event": event, "at": int(self._wall()), **fields})
            self._told += 1
            self._missed += listener.tell(text)

    def figures(self) -> tuple[int, int, int]:
        """For metrics: listeners now, events told to them and missed by them so far."""
        return len(self._listeners), self._told, self._missed

    def _check(self) -> Deferred[None]:
        self._checking = Deferred.fromCoroutine(self._check_all())
        return self._checking

    async def _check_all(self) -> None:
        for listener in list(self._listeners):
            try:
                await listener.recheck()
            except Refusal as refusal:
                listener.end(refusal.reason)
            except StoreError:
                continue  # the next look tells
            except Exception:
                self.log.failure("cannot tell whether {user} may listen", user=listener.username)
        self._checking = None
