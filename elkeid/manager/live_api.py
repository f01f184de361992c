"""``/api/v1/live``: what happens, as it happens.

Source: docs/protocol.md, "Manager API", "Live feed".
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import msgspec
from attrs import evolve
from twisted.web.http_headers import Headers

from elkeid.manager.access import Identity
from elkeid.manager.live import EVENT_NAMES, EventName, FeedFull, Listener, LiveFeed, Sink
from elkeid.manager.roles import AGENT_READERS
from elkeid.manager.store.store import Threads
from elkeid.web.answers import Takeover
from elkeid.web.refusals import Busy, ParameterInvalid
from elkeid.web.routes import AuthKind, Call, Routes


class Check(Protocol):
    """Who may come in; `TokenCheck`."""

    async def __call__(self, call: Call) -> Identity:
        """The caller."""

    async def again(self, call: Call, identity: Identity) -> None:
        """Refuse a caller that would not be let in now."""


class LiveQuery(msgspec.Struct):
    """Which events to tell of; all, if none is named."""

    event: list[EventName] = []


class LiveEvent(msgspec.Struct, omit_defaults=True):
    """A message of the feed; ``ready`` comes first, ``missed`` where a listener was too slow."""

    event: str
    at: int = 0  # unix seconds
    agent_id: str = ""  # of online, offline, moved, conflict
    gateway: str = ""  # where the agent is, or was
    before: str = ""  # of moved: where it was
    address: str = ""  # of conflict: of the stream that lost
    holder: str = ""  # of conflict: of the stream that has the id
    task_id: str = ""  # of task
    task_name: str = ""
    status: str = ""
    paused: str = ""
    id_count: int = 0
    counters: dict[str, int] = {}
    count: int = 0  # of missed


class LiveRoutes:
    """The feed.

    Args:
        feed: what is told.
        check: who may listen.
        threads: where the library is loaded.
        reactor: for its timers.
    """

    routes = Routes("/api/v1", auth=AuthKind.NONE)

    def __init__(self, feed: LiveFeed, check: Check, threads: Threads, reactor: Any) -> None:
        self._feed, self._check, self._threads, self._reactor = feed, check, threads, reactor
        self._factory: Any = None

    @routes.get(
        "/live",
        query=LiveQuery,
        levels=AGENT_READERS,
        upgrades=True,
        answer=LiveEvent,
        summary="Follow agents and tasks over a WebSocket",
    )
    async def live(self, call: Call[LiveQuery, None]) -> object:
        """With the header `token`, or `{"token":"..."}` as the first message."""
        if (call.header("upgrade") or "").lower() != "websocket":
            raise ParameterInvalid("upgrade: this route speaks WebSocket")
        identity: Identity | None = None
        try:
            if call.header("token") is not None:
                identity = await self._check(call)
                self._feed.admit(identity.user.username)
            else:
                self._feed.admit_stranger()
        except FeedFull as error:
            raise Busy(str(error)) from error
        socket = await self._threads.run(_load)
        if self._factory is None:
            self._factory = socket.factory(self._reactor)
        wanted = frozenset(call.query.event) or EVENT_NAMES
        protocol = socket.LiveProtocol(
            self._feed,
            self._reactor,
            partial(self._listener, call, identity, wanted),
            identity is not None,
        )
        protocol.factory = self._factory
        return Takeover(protocol)

    async def _listener(
        self,
        call: Call,
        identity: Identity | None,
        wanted: frozenset[str],
        sink: Sink,
        token: str | None,
    ) -> Listener:
        if identity is None:
            call = evolve(call, headers=Headers({"token": [token or ""]}))
            identity = await self._check(call)
        recheck: Callable[[], Awaitable[None]] = partial(self._check.again, call, identity)
        return Listener(identity.user.username, wanted, sink, recheck)


def _load() -> Any:
    """The library takes a third of a second to import: in a thread, and only when it is used."""
    from elkeid.manager import live_socket  # noqa: PLC0415 - see above

    return live_socket
