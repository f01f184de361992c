"""A Manager in memory, as the gateway's client of it sees one: it answers as a test says."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred

from elkeid.agentcenter.manager_client import ManagerClient
from elkeid.web.client import Reply, Unreachable

DOWN = object()


class Manager:
    """Stands where the HTTP client is.

    ``answer`` gives, for a path and a body, what becomes ``data``; or a `Reply`, a Deferred, or
    ``DOWN``.
    """

    def __init__(self, answer: Callable[[str, Any], Any] = lambda path, body: None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, Any]] = []
        http: Any = self
        self.client = ManagerClient(http, ["127.0.0.1:6701"])

    async def post(self, url: str, body: object, *, seconds: float, limit: int) -> Reply:
        path = urlsplit(url).path
        body = json.loads(json.dumps(body))
        self.asked.append((path, body))
        answer = self.answer(path, body)
        if isinstance(answer, Deferred):
            answer = await answer
        if answer is DOWN:
            raise Unreachable("the Manager is away")
        if isinstance(answer, Reply):
            return answer
        return Reply(200, json.dumps({"code": 0, "msg": "success", "data": answer}).encode(), None)


def refusal(code: int, status: int = 200) -> Reply:
    """An answer with a code other than 0."""
    return Reply(status, json.dumps({"code": code, "msg": "no", "data": None}).encode(), None)
