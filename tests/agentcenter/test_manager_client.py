"""Calls from the gateway to the Manager."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.manager_client import ManagerClient, ManagerRefused, NoSuchRoute
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

    def test_final_refusals(self) -> None:
        """What breaks the schema is told from what may be taken later."""
        for answer, status, final in (
            (b'{"code":5,"data":"param invalid"}', 400, True),
            (b'{"code":5,"data":"param invalid"}', 200, True),
            (b'{"code":7,"msg":"busy"}', 413, True),
            (b'{"code":3,"msg":"db"}', 200, False),
        ):
            failure = self.failureResultOf(
                self.ask(Members({"a:1": reply(answer, status)})), ManagerRefused
            )
            self.assertEqual(failure.value.final, final)

    def test_no_answer_of_a_manager(self) -> None:
        """What is no envelope refuses nothing for good: something else answered."""
        for answer, status in ((b"<html>", 400), (b'{"code":0}', 400), (b'{"code":1}', 401)):
            failure = self.failureResultOf(
                self.ask(Members({"a:1": reply(answer, status)})), CallFailed
            )
            self.assertNotIsInstance(failure.value, NoSuchRoute)

    def test_unknown_route(self) -> None:
        """A stock Manager does not know the routes that are ours alone."""
        members = Members({"a:1": reply(b'{"code":10}', 404)})
        self.failureResultOf(self.ask(members), NoSuchRoute)
