"""The gateway's HTTP API: what Managers of either make ask of it."""

import json
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from treq.testing import StubTreq
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter import api as api_module
from elkeid.agentcenter.api import ENVELOPE, ConnectionRoutes
from elkeid.web.answers import encode_json
from elkeid.web.api import Api
from elkeid.web.plain import Liveness, MetricsPage
from elkeid.web.routes import AuthKind
from elkeid.web.signed import SignatureCheck
from elkeid.wire.signature import sign
from tests.agentcenter.host import WALL, Host, batch, make_gateway

AK, SK = "demoaccesskey01", "demo-secret-key-0123456789abcdef"


class ApiTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.gateway, self.log, self.clock = make_gateway()
        self.problems: list[str] = []
        routes = ConnectionRoutes(self.gateway, self.clock, lambda: {"control": {"read": 1}})
        api = Api(
            ENVELOPE,
            (routes, Liveness(lambda: self.problems)),
            {AuthKind.SIGNED: SignatureCheck({AK: SK}, lambda: float(WALL))},
        )
        api.mount("/metrics", MetricsPage(CollectorRegistry(), ["10.0.0.0/8"], api.refusal))
        self.treq = StubTreq(api)

    def get(self, path: str, query: str = "", **headers: str | bytes) -> tuple[int, Any]:
        """GET, signed unless headers are given; status and JSON."""
        stamp = str(WALL)
        signed: dict[str, str | bytes] = headers or {
            "AccessKey": AK,
            "TimeStamp": stamp,
            "Signature": sign("GET", path, query, AK, SK, stamp, b""),
        }
        url = f"https://gateway{path}" + (f"?{query}" if query else "")
        answer = self.treq.get(url, headers=signed)
        for _ in range(10):
            self.clock.advance(0)
            self.treq.flush()
        response = self.successResultOf(answer)
        self.assertTrue(response.headers.getRawHeaders("date"))
        return response.code, json.loads(self.successResultOf(response.content()))

    def join(self, agent_id: str, address: str = "10.0.0.1") -> Host:
        """Connect an agent that has sent a heartbeat."""
        host = Host(self.gateway, address)
        host.send(host.open(), batch(agent_id, 1000, cpu="0.5"))
        return host

    def test_disputes_and_hosts_without_an_id(self) -> None:
        """Who lost a claim, who is replaced, who has no id: for operators, signed."""
        self.join("a1")
        self.join("a1")
        thief = self.join("a1", "10.6.6.6")
        thief.drop()
        nameless = self.join("")
        code, answer = self.get("/conn/conflicts")
        self.assertEqual((code, answer["code"]), (200, 0))
        (conflict,) = answer["data"]["conflicts"]
        self.assertEqual(
            (conflict["agent_id"], conflict["address"], conflict["outcome"], conflict["count"]),
            ("a1", "10.6.6.6", "left", 1),
        )
        (replaced,) = answer["data"]["replaced"]
        self.assertEqual((replaced["address"], replaced["count"]), ("10.0.0.1", 1))
        _, answer = self.get("/conn/unidentified")
        (entry,) = answer["data"]
        self.assertEqual((entry["connected"], entry["host"]["hostname"]), (True, "h"))
        nameless.drop()
        _, answer = self.get("/conn/unidentified")
        self.assertFalse(answer["data"][0]["connected"])
        self.assertEqual(self.get("/conn/conflicts", AccessKey="nobody")[0], 403)

    def test_empty(self) -> None:
        """Without agents the answers are empty, not null."""
        for path, data in [("/conn/stat", []), ("/conn/list", []), ("/conn/count", 0)]:
            status, body = self.get(path)
            self.assertEqual((status, body["code"], body["msg"]), (200, 0, "success"))
            self.assertEqual(body["data"], data)

    def test_agents(self) -> None:
        """Ids, number and status of the connected agents."""
        self.join("a1")
        self.join("a2", "10.0.0.2")
        self.assertEqual(sorted(self.get("/conn/list/")[1]["data"]), ["a1", "a2"])
        self.assertEqual(self.get("/conn/count")[1]["data"], 2)
        data = self.get("/conn/stat")[1]["data"]
        self.assertEqual([each["agent_info"]["agent_id"] for each in data], ["a1", "a2"])
        self.assertEqual(data[0]["agent_info"]["cpu"], 0.5)
        self.assertEqual(data[0]["plugins_info"], [])

    def test_since(self) -> None:
        """With the cursor of an earlier answer only what changed comes, and who left."""
        first = self.join("a1")
        self.join("a2", "10.0.0.2")
        whole = self.get("/conn/stat")[1]
        self.assertTrue(whole["complete"])
        again = self.get("/conn/stat", f"since={whole['cursor']}")[1]
        self.assertEqual((again["data"], again["gone"], again["complete"]), ([], [], False))
        first.drop()
        self.join("a3", "10.0.0.3")
        changed = self.get("/conn/stat", f"since={again['cursor']}")[1]
        self.assertEqual([e["agent_info"]["agent_id"] for e in changed["data"]], ["a3"])
        self.assertEqual(changed["gone"], ["a1"])
        self.assertTrue(self.get("/conn/stat", "since=of-another-process")[1]["complete"])

    def test_parts(self) -> None:
        """With ``since`` an answer is bounded, and its cursor goes on where it ends."""
        for name in "abcde":
            self.join(name)
        size = len(encode_json(self.get("/conn/stat")[1]["data"][0]))
        self.patch(api_module, "STATUS_BYTES", size * 5 // 2)
        told, cursor, completes, mores = [], "", [], []
        for _ in range(3):
            answer = self.get("/conn/stat", f"since={cursor}")[1]
            told.append([each["agent_info"]["agent_id"] for each in answer["data"]])
            cursor = answer["cursor"]
            completes.append(answer["complete"])
            mores.append(answer["more"])
        self.assertEqual(told, [["a", "b"], ["c", "d"], ["e"]])
        self.assertEqual((completes, mores), ([True, False, False], [True, True, False]))
        whole = self.get("/conn/stat")[1]
        self.assertEqual((len(whole["data"]), whole["more"], whole["complete"]), (5, False, True))
        self.patch(api_module, "STATUS_BYTES", 1)  # one at least, however large
        self.assertEqual(len(self.get("/conn/stat", "since=")[1]["data"]), 1)

    def test_large_answers_yield(self) -> None:
        """A fleet's status is put together over several reactor turns, and is whole."""
        count = 101
        for number in range(count):
            self.join(f"a{number:03}", f"10.0.1.{number}")
        data = self.get("/conn/stat")[1]["data"]
        self.assertEqual(len(data), count)

    def test_ids_of_any_bytes(self) -> None:
        """An id that is no UTF-8 shows escaped, and is JSON."""
        host = Host(self.gateway)
        host.send(host.open(), b"\x12\x02\xff\xfe")
        self.assertEqual(self.get("/conn/list")[1]["data"], ["\\xff\\xfe"])

    def test_signatures(self) -> None:
        """A failed signature is 403 with code 1 and upstream's reason."""
        signature = sign("GET", "/conn/list", "", AK, SK, str(WALL), b"")
        good = {"AccessKey": AK, "TimeStamp": str(WALL), "Signature": signature}
        for headers, reason in [
            ({"x": "y"}, "header missed: AccessKey|Signature|TimeStamp"),
            (good | {"TimeStamp": "soon"}, "TimeStamp Error"),
            (good | {"TimeStamp": str(WALL - 60)}, "timestamp error"),
            (good | {"AccessKey": "nobody-knows-it"}, "User not exist"),
            (good | {"Signature": "0" * 64}, "signature error"),
        ]:
            status, body = self.get("/conn/list", **headers)
            self.assertEqual((status, body["code"], body["msg"]), (403, 1, "auth failed"), headers)
            self.assertTrue(body["data"].startswith(reason), body["data"])
        self.assertEqual(self.get("/conn/list", **good)[0], 200)

    def test_headers_of_any_bytes(self) -> None:
        """Bytes that are no UTF-8 are a failed signature like any other, not a fault of ours."""
        signature = sign("GET", "/conn/list", "", AK, SK, str(WALL), b"")
        good = {"AccessKey": AK, "TimeStamp": str(WALL), "Signature": signature}
        for name in good:
            status, body = self.get("/conn/list", **(good | {name: b"\xff\xfe"}))
            self.assertEqual((status, body["code"]), (403, 1), name)

    def test_ledger(self) -> None:
        """The ledger is the envelope's data."""
        self.assertEqual(self.get("/ledger")[1]["data"], {"control": {"read": 1}})

    def test_open_routes(self) -> None:
        """Ping and ready need no signature; metrics are for some networks; the rest is 404."""
        self.assertEqual(self.get("/ping", x="y"), (200, {"message": "pong"}))
        self.assertEqual(self.get("/ready", x="y")[0], 200)
        self.problems = ["the disk is full"]
        status, body = self.get("/ready", x="y")
        self.assertEqual((status, body["reasons"]), (503, ["the disk is full"]))
        self.assertEqual(self.get("/metrics", x="y")[0], 403)  # StubTreq's peer is loopback
        for path in ("/nowhere", "/conn", "/conn/stat/more"):
            self.assertEqual(self.get(path)[0], 404)

    def test_answers_fit_their_declaration(self) -> None:
        """What is declared for documentation is what comes."""
        self.join("a1")
        declared = {route.path: route.answer for route in ConnectionRoutes.routes.declared}
        for path, kind in declared.items():
            msgspec.convert(self.get(path)[1]["data"], kind)
