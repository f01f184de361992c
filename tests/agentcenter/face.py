"""The gateway's HTTP face in memory: signed requests, answers as JSON."""

import json
from collections.abc import Iterable
from itertools import count
from typing import Any

from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elkeid.agentcenter.api import ENVELOPE
from elkeid.web.api import Api, Group
from elkeid.web.routes import AuthKind
from elkeid.web.signed import SignatureCheck
from elkeid.wire.signature import sign
from tests.agentcenter.host import WALL

AK, SK = "demoaccesskey01", "demo-secret-key-0123456789abcdef"


class Face:
    """Serves some groups of routes.

    Args:
        groups: objects with ``routes``.
        clock: what handlers wait by.
    """

    def __init__(self, groups: Iterable[Group], clock: Clock) -> None:
        self._clock = clock
        check = SignatureCheck({AK: SK}, lambda: float(WALL))
        self._treq = StubTreq(Api(ENVELOPE, groups, {AuthKind.SIGNED: check}))
        self._numbers = count()

    def begin(
        self, method: str, path: str, body: Any = None, *, query: str = "", signed: bool = True
    ) -> Deferred[tuple[int, Any]]:
        """Begin a request; ``body`` is what becomes JSON, or bytes. Fires with status and JSON."""
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        query += f"{'&' if query else ''}nonce={next(self._numbers)}"
        headers = {"AccessKey": AK, "TimeStamp": str(WALL)}
        if signed:
            headers["Signature"] = sign(method, path, query, AK, SK, WALL, raw)
        answer = self._treq.request(
            method, f"https://gateway{path}?{query}", headers=headers, data=raw
        )
        return Deferred.fromCoroutine(self._read(answer))

    async def _read(self, answer: Deferred[Any]) -> tuple[int, Any]:
        response = await answer
        assert response.headers.getRawHeaders("content-type") == ["application/json; charset=utf-8"]
        return response.code, json.loads(await response.content())

    def flush(self, turns: int = 10) -> None:
        """Let handlers go on that wait for no time to pass."""
        for _ in range(turns):
            self._clock.advance(0)
            self._treq.flush()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: str = "",
        signed: bool = True,
        seconds: float = 0,
    ) -> Any:
        """Make a request that needs no more time than that; status and JSON."""
        answer = self.begin(method, path, body, query=query, signed=signed)
        found: list[Any] = []
        answer.addBoth(found.append)
        self.flush()
        end = self._clock.seconds() + seconds
        while not found and self._clock.seconds() < end:
            self._clock.advance(0.5)
            self.flush()
        assert found, "it waits for something"
        return found[0]
