"""Calls from the gateway to the Manager."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.manager_client import ManagerClient, ManagerRefused
from elkeid.web.client import CallFailed, Reply, Unreachable


class Members:
    """Stands where the HTTP client is; each member answers as it is told."""

    def __init__(self, answers: dict[str, object]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.seconds: list[float] = []

    async def post(self, url: str, body: object, *, seconds: float, limit: int) -> Reply:
        member = url.split("/")[2]
        self.asked.append(member)
        self.seconds.append(seconds)
        answer = self.answers[member]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Reply)
        return answer


def reply(text: bytes, status: int = 200) -> Reply:
    return Reply(status, text, None)


class ManagerClientTests(SynchronousTestCase):
    """`ManagerClient`."""

    def ask(self, members: Members) -> Any:
        client = ManagerClient(members, list(members.answers))  # type: ignore[arg-type]
        return Deferred.fromCoroutine(client.post("/p", {}, seconds=4))

    def test_next_member_is_asked(self) -> None:
        """A member that cannot be used is passed over, within the one deadline."""
        members = Members(
            {
                "a:1": Unreachable("refused"),
                "b:1": reply(b"no", 500),
                "c:1": reply(b'{"code":0,"data":[1],"allow_empty":true}'),
            }
        )
        answer = self.successResultOf(self.ask(members))
        self.assertEqual((answer.data, answer.allow_empty), ([1], True))
        self.assertEqual(members.asked, ["a:1", "b:1", "c:1"])
        self.assertAlmostEqual(sum(members.seconds), 4)

    def test_refusal_is_final(self) -> None:
        """A code other than 0 is an answer: no other member is asked."""
        members = Members({"a:1": reply(b'{"code":10,"data":"none"}'), "b:1": reply(b"")})
        failure = self.failureResultOf(self.ask(members), ManagerRefused)
        self.assertEqual(failure.value.code, 10)
        self.assertEqual(members.asked, ["a:1"])

    def test_nobody_answers(self) -> None:
        """With every member down the last fault is told."""
        members = Members({"a:1": reply(b"[]"), "b:1": Unreachable("b:1 is down")})
        failure = self.failureResultOf(self.ask(members), CallFailed)
        self.assertIn("b:1 is down", str(failure.value))
