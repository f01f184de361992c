"""``POST /conn/reset``: streams end in peace, some or chosen ones."""

from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.farewell import ROUND
from elkeid.agentcenter.reset import ResetRoutes
from elkeid.wire.grpc import Status
from tests.agentcenter.face import Face
from tests.agentcenter.host import Host, batch, make_gateway


class ResetTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.gateway, self.log, self.clock = make_gateway()
        self.face = Face([ResetRoutes(self.gateway, self.clock, Random(1))], self.clock)
        self.hosts: dict[str, tuple[Host, int]] = {}

    def join(self, *ids: str) -> None:
        """Connect agents."""
        for agent_id in ids:
            host = Host(self.gateway, f"10.0.0.{len(self.hosts) % 250}")
            stream = host.open()
            host.send(stream, batch(agent_id, 1000))
            self.hosts[agent_id] = host, stream

    def reset(self, body: Any, **more: Any) -> tuple[int, Any]:
        """Ask for it; then let every agent hear what it was told."""
        answer: tuple[int, Any] = self.face.ask("POST", "/conn/reset", body, **more)
        for host, _ in self.hosts.values():
            host.pump()
        return answer

    def ended(self) -> dict[str, int]:
        """The agents whose streams were ended, and with which status."""
        found = {name: host.ended(stream) for name, (host, stream) in self.hosts.items()}
        return {name: event.status for name, event in found.items() if event is not None}

    def test_strict(self) -> None:
        """The agents of a list; those that are not here are told, and counted too."""
        self.join("a1", "a2", "a3")
        status, body = self.reset({"type": "strict", "id_list": ["a2", "nope"]})
        self.assertEqual(status, 200)
        self.assertEqual(
            body,
            {
                "code": 0,
                "msg": "success",
                "data": {"count": 2, "detail": {"a2": "ok", "nope": "agentID not found"}},
            },
        )
        self.assertEqual(self.ended(), {"a2": Status.OK})

    def test_what_was_under_way_is_kept(self) -> None:
        """The stream is read to its end, and the agent is back on the same connection."""
        self.join("a1")
        host, stream = self.hosts["a1"]
        host.frozen = True
        self.reset({"type": "strict", "id_list": ["a1"]})
        host.frozen = False
        host.client.send_message(stream, batch("a1", 5000), False)
        host.client.half_close(stream)
        host.pump()
        self.assertEqual(self.log.of("a1"), [1000, 5000])
        self.assertEqual(self.ended(), {"a1": Status.OK})
        host.send(host.open(), batch("a1", 5001))
        self.assertEqual(self.log.of("a1"), [1000, 5000, 5001])
        self.assertFalse(host.lost)

    def test_random(self) -> None:
        """So many of all, or all of them."""
        self.join("a1", "a2", "a3")
        for asked, count in [(None, 0), (0, 0), (-1, 0), (2, 2)]:
            body = self.reset({"type": "random", "count": asked})[1]
            self.assertEqual(body["data"]["count"], count, asked)
            self.assertEqual(len(body["data"]["detail"]), count)
        self.assertEqual(set(body["data"]["detail"].values()), {"ok"})
        self.assertEqual(self.ended().keys(), body["data"]["detail"].keys())
        body = self.reset({"type": "random", "count": 99})[1]
        self.assertEqual(body["data"]["count"], 1)  # the others are gone for now
        self.assertEqual(len(self.ended()), 3)

    def test_many(self) -> None:
        """A fleet is told over several reactor turns, in one answer."""
        ids = [f"a{number}" for number in range(2 * ROUND + 1)]
        self.join(*ids)
        answer = self.face.begin("POST", "/conn/reset", {"type": "strict", "id_list": ids})
        self.assertNoResult(answer)
        self.face.flush(2)
        self.assertEqual(self.successResultOf(answer)[1]["data"]["count"], len(ids))

    def test_refusals(self) -> None:
        """A missing type, another type, no JSON, no signature: each in JSON, nobody is ended."""
        self.join("a1")
        for body, status, code, data in [
            ({"id_list": ["a1"]}, 400, 2, "type: required, random or strict"),
            ({"type": "", "id_list": ["a1"]}, 400, 2, "type: required, random or strict"),
            ({"type": None}, 400, 2, "type: required, random or strict"),
            ({"type": "all"}, 200, 2, "type only support strict|random"),
            ({"type": "strict", "id_list": "a1"}, 400, 2, "id_list: expected `array | null`"),
            ({"type": "random", "count": "1"}, 400, 2, "count: expected `int | null`"),
            ({"type": 1}, 400, 2, "type: expected `str | null`"),
            (b"{", 400, 2, "body: input data was truncated"),
            (b"", 400, 2, "body: input data was truncated"),
        ]:
            answer, found = self.reset(body)
            self.assertEqual((answer, found["code"], found["msg"]), (status, code, "param invalid"))
            self.assertTrue(found["data"].startswith(data), found["data"])
        status, body = self.reset({"type": "random", "count": 1}, signed=False)
        self.assertEqual((status, body["code"], body["msg"]), (403, 1, "auth failed"))
        self.assertEqual(self.ended(), {})
        self.assertEqual(self.reset({"type": "strict"})[1]["data"], {"count": 0, "detail": {}})

    def test_other_routes(self) -> None:
        """No clusters; an unknown path and a wrong method are 404 in JSON."""
        answer = self.face.ask("GET", "/kube/cluster/list")
        self.assertEqual(answer, (200, {"code": 0, "msg": "success", "data": []}))
        for method, path in [("GET", "/conn/reset"), ("POST", "/conn"), ("PUT", "/conn/reset")]:
            status, body = self.face.ask(method, path)
            self.assertEqual((status, body["code"], body["data"]), (404, 3, "no such route"))
