"""ServiceDiscovery's API over its real site, as clients of every kind use it."""

import datetime
import json
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from elkeid.config import Settings, parse
from elkeid.discovery.api import DIFFERENCE_LIMIT, REGISTER_LIMIT, SYNC_LIMIT
from elkeid.discovery.service import DiscoveryRole
from elkeid.key_making import make_keys
from elkeid.web.client import Credentials, Reply
from elkeid.wire.signature import sign

from ..web.memory import NOW, MemoryNetwork, RawConnection
from ..web.sample import AK, SK

SD = "http://127.0.0.1:8088"
MINE = {"name": "hids_svr_grpc", "ip": "10.0.0.5", "port": 6751, "weight": 12, "extra": None}
OK = {"msg": "ok"}


class Keys:
    """What the role needs of the keys."""

    aksk = {AK: SK}  # noqa: RUF012
    signing_pair = AK, SK
    server_cert = server_key = b""


class Face:
    """A running role, and requests to it."""

    def __init__(self, settings: Settings | None = None, *, with_certificate: bool = False) -> None:
        self.network = MemoryNetwork()
        keys = Keys()
        if with_certificate:
            made = make_keys([], datetime.datetime.now(datetime.UTC))
            keys.server_cert, keys.server_key = made["server.crt"], made["server.key"]
        self.role = DiscoveryRole(
            settings or Settings(),
            keys,  # type: ignore[arg-type]
            self.network.clock,
            wall=self.network.wall,
            monotonic=self.network.wall,
            agent=self.network.agent(),
            node="n1",
        )
        self.http = self.network.client(Credentials(AK, SK))
        self.unsigned = self.network.client()

    def start(self) -> None:
        """Open the port."""
        self.network.run(self.role.start())
        self.network.listening()

    def get(self, path: str) -> tuple[int, Any]:
        """GET without a signature."""
        return self._read(self.network.run(self.unsigned.get(SD + path)))

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """POST, signed; ``body`` is what becomes JSON, or bytes."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._read(self.network.run(self.http.call("POST", SD + path, raw)))

    def metrics(self) -> str:
        """The text of ``/metrics``."""
        return self.network.run(self.unsigned.get(f"{SD}/metrics")).body.decode()

    def _read(self, reply: Reply) -> tuple[int, Any]:
        assert reply.skew is not None  # every answer is dated
        return reply.status, json.loads(reply.body)


class ApiTests(SynchronousTestCase):
    """Every route."""

    def setUp(self) -> None:
        """Run a node."""
        self.face = Face()
        self.face.start()
        self.get, self.post = self.face.get, self.face.post

    def test_register_and_detail(self) -> None:
        """What an AgentCenter registers, an agent finds, in exactly these bytes."""
        self.assertEqual(self.post("/registry/register", MINE), (200, OK))
        reply = self.face.network.run(
            self.face.unsigned.get(f"{SD}/registry/detail?name=hids_svr_grpc&count=10")
        )
        self.assertEqual(
            reply.body,
            b'{"data":[{"name":"hids_svr_grpc","ip":"10.0.0.5","port":6751,"status":0,'
            b'"create_at":1700000000,"update_at":1700000000,"weight":12,"extra":null}],'
            b'"msg":"ok"}',
        )

    def test_real_bodies(self) -> None:
        """Everything that AgentCenter and Manager of upstream send is taken."""
        for body in [
            MINE,
            {"name": "hids_manage", "ip": "fd00::1", "port": 6701, "weight": 0},
            {**MINE, "extra": {"zone": "a", "unknown": [1]}, "status": 3, "more": 1},
        ]:
            self.assertEqual(self.post("/registry/register", body), (200, OK), body)

    def test_bad_registrations(self) -> None:
        """Each fault is 400 with the name of its field, in JSON."""
        for changed, field in [
            ({"name": ""}, "name"),
            ({"name": 5}, "name"),
            ({"name": None}, "name"),
            ({"ip": "[::1]"}, "ip"),
            ({"ip": ["10.0.0.1"]}, "ip"),
            ({"port": 0}, "port"),
            ({"port": "6751"}, "port"),
            ({"port": 6751.5}, "port"),
            ({"port": 65536}, "port"),
            ({"weight": "1"}, "weight"),
            ({"weight": True}, "weight"),
            ({"weight": 1 << 63}, "weight"),
            ({"extra": []}, "extra"),
            ({"extra": {"a": "x" * 9000}}, "extra"),
        ]:
            for path in ["/registry/register", "/registry/register/"]:
                status, body = self.post(path, {**MINE, **changed})
                self.assertEqual((status, body["msg"]), (400, "post data error"), changed)
                self.assertTrue(body["data"].startswith(f"{field}: "), body)
        for raw in [b"", b"{", b"[]", b"null", b"\xff", b"{}"]:
            self.assertEqual(self.post("/registry/register", raw)[0], 400, raw)
        self.assertEqual(self.get("/registry/list"), (200, {"data": [], "msg": "ok"}))

    def test_large_bodies(self) -> None:
        """Too large a body is refused at its announcement, each route at its own limit."""
        status, body = self.post("/registry/register", b" " * 10_000_000)
        self.assertEqual(status, 413)
        self.assertIn("more than 65536 bytes", body["msg"])
        for path, limit in [
            ("/registry/evict", REGISTER_LIMIT),
            ("/registry/sync", SYNC_LIMIT),
            ("/registry/difference", DIFFERENCE_LIMIT),
        ]:
            head = f"POST {path} HTTP/1.1\r\nContent-Length: {limit + 1}\r\n\r\n"
            client = RawConnection(self.face.role.site)
            self.assertTrue(client.send(head.encode()).startswith(b"HTTP/1.1 413 "), path)
            client.lose()

    def test_authentication(self) -> None:
        """Changes need a signature; 403 tells what is wrong with it."""
        for path in ["/registry/register", "/registry/evict", "/registry/sync"]:
            reply = self.face.network.run(self.face.unsigned.post(SD + path, MINE))
            self.assertEqual(reply.status, 403)
            self.assertEqual(
                reply.body,
                b'{"code":-1,"data":"header missed: AccessKey|Signature|TimeStamp",'
                b'"msg":"auth failed"}',
            )
        wrong = self.face.network.client(Credentials(AK, SK + "x"))
        reply = self.face.network.run(wrong.post(f"{SD}/registry/register", MINE))
        self.assertEqual(json.loads(reply.body)["data"], "Signature Error")
        self.assertEqual(self.get("/registry/summary")[1]["data"], {})

    def signed(self, path: str, body: bytes, at: int = NOW, query: str = "") -> tuple[int, Any]:
        """POST with a signature made at ``at``."""
        headers = {
            "AccessKey": AK.upper(),
            "TimeStamp": str(at),
            "Signature": sign("POST", path, query, AK, SK, str(at), body),
        }
        url = f"{SD}{path}?{query}" if query else SD + path
        call = self.face.unsigned.call("POST", url, body, headers=headers)
        reply = self.face.network.run(call)
        return reply.status, json.loads(reply.body)

    def test_stale_and_repeated_signatures(self) -> None:
        """Stale ones are refused with both times; upstream's repeat themselves without a nonce."""
        body = json.dumps(MINE).encode()
        for path in ["/registry/register", "/registry/evict", "/registry/sync"]:
            raw = b"{}" if path.endswith("sync") else body
            for _ in range(3):
                self.assertEqual(self.signed(path, raw), (200, OK))
            for at in [NOW - 60, NOW + 60, NOW - 10**9]:
                status, answer = self.signed(path, raw, at)
                self.assertEqual((status, answer["msg"]), (403, "auth failed"))
                self.assertTrue(answer["data"].startswith("TimeStamp Error "), answer)
                self.assertIn(f"{at}, this server {NOW}", answer["data"])

    def test_nonces(self) -> None:
        """A nonce, where one is given, is good once."""
        body = json.dumps(MINE).encode()
        self.assertEqual(self.signed("/registry/register", body, query="nonce=one")[0], 200)
        self.assertEqual(self.signed("/registry/register", body, query="nonce=one")[0], 403)
        self.assertEqual(self.signed("/registry/register", body, query="nonce=two")[0], 200)

    def test_rates(self) -> None:
        """An address that asks too much is told so, and counted; a moment later it may again."""
        settings = parse({"discovery": {"read_rate": 1, "write_rate": 1}}, base=Path())
        self.setUp_with(settings)
        for path, read in [("/registry/detail?name=x", True), ("/registry/register", False)]:
            answers = [self.get(path) if read else self.post(path, MINE) for _ in range(12)]
            self.assertEqual([status for status, _ in answers], [200] * 10 + [429] * 2)
            self.assertEqual(answers[-1][1], {"msg": "too many requests from this address"})
        for kind in ["read", "write"]:
            line = f'elkeid_sd_rate_refused{{kind="{kind}"}} 2.0'
            self.assertIn(line, self.face.metrics())
        self.face.network.advance(2)
        self.assertEqual(self.get("/registry/detail?name=x")[0], 200)
        self.assertEqual(self.post("/registry/register", MINE)[0], 200)

    def setUp_with(self, settings: Settings) -> None:
        """Run a node with other settings."""
        self.face = Face(settings)
        self.face.start()
        self.get, self.post = self.face.get, self.face.post

    def test_looking_around(self) -> None:
        """``steer=no`` counts for no agent: it changes nothing for those that come."""
        for ip, weight in [("10.0.0.1", 0), ("10.0.0.2", 2)]:
            self.post("/registry/register", {**MINE, "ip": ip, "weight": weight})
        for _ in range(5):
            _, body = self.get("/registry/detail?name=hids_svr_grpc&steer=no")
            self.assertEqual(body["data"][0]["ip"], "10.0.0.1")
        for _ in range(4):
            self.get("/registry/detail?name=hids_svr_grpc&count=10")
        self.assertEqual(self.get("/endpoint/ping")[1]["data"]["steered"], 4)

    def test_zones(self) -> None:
        """With zones set, those of the asking address's zone are named first."""
        zones = ["here=127.0.0.0/8", "here=10.2.0.0/16", "there=10.3.0.0/16"]
        self.setUp_with(parse({"discovery": {"zones": zones}}, base=Path()))
        for ip, weight in [("10.3.0.1", 0), ("10.2.0.1", 50)]:
            self.post("/registry/register", {**MINE, "ip": ip, "weight": weight})
        _, body = self.get("/registry/detail?name=hids_svr_grpc&count=1")
        self.assertEqual(body["data"][0]["ip"], "10.2.0.1")

    def test_comparing(self) -> None:
        """A peer finds what differs, and is told it; only with a signature."""
        self.post("/registry/register", MINE)
        self.post("/registry/evict", {**MINE, "ip": "10.0.0.9"})
        self.assertEqual(self.get("/registry/digest")[0], 403)
        reply = self.face.network.run(self.face.http.get(f"{SD}/registry/digest"))
        digest = json.loads(reply.body)["data"]
        self.assertEqual((digest["node"], len(digest["buckets"])), ("n1", 64))
        changed = [n for n, value in enumerate(digest["buckets"]) if value]
        known = [["hids_svr_grpc", "10.0.0.5", 6751, 1 << 50, "n2"]]
        known += [["other", "10.0.0.5", 1, 5, "n2"], ["hids_svr_grpc", "10.0.0.9", 6751, 5, "n2"]]
        asked = {"buckets": list(range(64)), "known": known}
        status, body = self.post("/registry/difference", asked)
        self.assertEqual(status, 200)
        (event,) = body["data"]["newer"]
        self.assertEqual((event["action"], event["registry"]["ip"]), ("EVICT", "10.0.0.9"))
        self.assertEqual(event["registry"]["update_at"], 0)
        self.assertEqual(event["lease"]["node"], "n1")
        self.assertEqual(
            body["data"]["wanted"], [["hids_svr_grpc", "10.0.0.5", 6751], ["other", "10.0.0.5", 1]]
        )
        self.assertEqual(len(changed), len(set(changed)))
        _, body = self.post("/registry/difference", {"buckets": changed, "known": []})
        self.assertEqual(len(body["data"]["newer"]), 2)
        for bad in [{}, {"buckets": [-1], "known": []}, {"buckets": [], "known": [["x"]]}]:
            self.assertEqual(self.post("/registry/difference", bad)[0], 400)

    def test_bad_leases(self) -> None:
        """What no node of ours tells is refused whole, or passed over with the record."""
        record = {**MINE, "status": 0, "create_at": 0, "update_at": 0}
        for lease in [
            {"at": -1, "node": "x", "age": 0},
            {"at": 1 << 54, "node": "x", "age": 0},
            {"at": 1, "node": "x" * 65, "age": 0},
            {"at": 1, "node": "x", "age": -1},
            {"at": 1, "node": "x"},
        ]:
            event = {"action": "REGISTER", "registry": record, "lease": lease}
            self.assertEqual(self.post("/registry/sync", {"data": [event]})[0], 400, lease)
        good = {"at": 1, "node": "x", "age": 0}
        for action, changed in [("REGISTER", {"port": 0}), ("EVICT", {"name": ""}), ("X", {})]:
            event = {"action": action, "registry": {**record, **changed}, "lease": good}
            self.assertEqual(self.post("/registry/sync", {"data": [event]}), (200, OK))
        self.assertEqual(self.get("/registry/list")[1]["data"], [])

    def test_evict(self) -> None:
        """An evicted instance is gone at once; an unknown one is fine."""
        self.post("/registry/register", MINE)
        self.assertEqual(self.post("/registry/evict", MINE), (200, OK))
        self.assertEqual(self.post("/registry/evict", {"name": "x", "ip": "y"}), (200, OK))
        self.assertEqual(self.get("/registry/detail?name=hids_svr_grpc")[1]["data"], [])
        self.assertEqual(self.post("/registry/evict", {"port": "x"})[0], 400)

    def test_reads(self) -> None:
        """Names, counts, and who this node is."""
        for ip in ["10.0.0.1", "10.0.0.2"]:
            self.post("/registry/register", {**MINE, "ip": ip})
        self.post("/registry/register", {**MINE, "name": "hids_manage"})
        for path, data in [
            ("/registry/list", ["hids_manage", "hids_svr_grpc"]),
            ("/registry/summary", {"hids_manage": 1, "hids_svr_grpc": 2}),
            (
                "/endpoint/ping",
                {
                    "host": "127.0.0.1:8088",
                    "members": ["127.0.0.1:8088"],
                    "node": "n1",
                    "steered": 0,
                },
            ),
            ("/endpoint/stat", ["127.0.0.1:8088"]),
        ]:
            self.assertEqual(self.get(path), (200, {"data": data, "msg": "ok"}), path)
        self.assertEqual(self.get("/ping"), (200, {"message": "pong"}))
        self.assertEqual(self.get("/ready"), (200, {"ready": True}))

    def test_detail_queries(self) -> None:
        """A name is needed; a count limits; anything else about the query is no matter."""
        for number in range(3):
            body = {**MINE, "ip": f"10.0.0.{number}", "weight": 100 * number}
            self.post("/registry/register", body)
        for query in ["", "?name=", "?count=3", "?names=x"]:
            self.assertEqual(self.get(f"/registry/detail{query}"), (400, {"msg": "no server name"}))
        for query, ips in [
            ("", [0, 1, 2]),
            ("&count=2", [0, 1]),
            ("&count=0", [0, 1, 2]),
            ("&count=-1", [0, 1, 2]),
            ("&count=x", [0, 1, 2]),
            ("&count=99999999999999999999", [0, 1, 2]),
            ("&count=1&count=2&name=other", [0]),
        ]:
            for path in ["/registry/detail", "/registry/detail/"]:
                status, body = self.get(f"{path}?name=hids_svr_grpc{query}")
                self.assertEqual(
                    (status, [r["ip"] for r in body["data"]]),
                    (200, [f"10.0.0.{n}" for n in ips]),
                    query,
                )
        self.assertEqual(self.get("/registry/detail?name=%ff%20"), (200, {"data": [], **OK}))

    def test_fetch(self) -> None:
        """The lightest, the heaviest, or any."""
        for number in range(8):
            self.post("/registry/register", {**MINE, "ip": f"10.0.0.{number}", "weight": number})
        for query, weights in [
            ("", [0, 1, 2, 3, 4]),
            ("&count=2", [0, 1]),
            ("&count=x&mode=other", [0, 1, 2, 3, 4]),
            ("&count=3&mode=max", [7, 6, 5]),
            ("&count=100", list(range(8))),
        ]:
            _, body = self.get(f"/registry/fetch?name=hids_svr_grpc{query}")
            self.assertEqual([r["weight"] for r in body["data"]], weights, query)
        _, body = self.get("/registry/fetch?name=hids_svr_grpc&mode=rand&count=5")
        self.assertEqual(len({r["weight"] for r in body["data"]}), 5)
        for count in ["101", "-1"]:
            self.assertEqual(
                self.get(f"/registry/fetch?name=hids_svr_grpc&count={count}"),
                (400, {"msg": "fetch count out of limit"}),
            )
        self.assertEqual(self.get("/registry/fetch")[0], 400)
        self.assertEqual(
            self.get("/registry/fetch?name=x"),
            (503, {"msg": "fetch registry error: server x no instance"}),
        )

    def test_upstream_batches(self) -> None:
        """An upstream peer's batch is applied; what is old, unknown or invalid is passed over."""
        self.post("/registry/register", MINE)
        self.post("/registry/evict", {**MINE, "ip": "10.0.0.4"})

        def event(action: str, ip: str, at: int, weight: int = 1, **more: Any) -> dict[str, Any]:
            record = {**MINE, "ip": ip, "status": 2, "create_at": at, "update_at": at}
            return {"action": action, "registry": {**record, "weight": weight, **more}}

        batch = {
            "source": "10.0.0.1:8088",
            "data": [
                event("REGISTER", "10.0.0.5", NOW - 1, 99),
                event("REGISTER", "10.0.0.5", NOW - 1, 98),
                event("REGISTER", "10.0.0.5", NOW - 2, 98),
                event("REGISTER", "10.0.0.4", NOW + 500),
                event("REGISTER", "10.0.0.6", NOW + 500),
                event("REGISTER", "10.0.0.7", NOW),
                event("REGISTER", "10.0.0.8", NOW, port=0),
                event("EVICT", "10.0.0.5", NOW - 1),
                event("EVICT", "10.0.0.7", 0),
                event("EVICT", "10.0.0.9", 0),
                event("SHOUT", "10.0.0.6", NOW),
                {},
            ],
        }
        self.assertEqual(self.post("/registry/sync", batch), (200, OK))
        _, body = self.get("/registry/detail?name=hids_svr_grpc")
        self.assertEqual(
            [(r["ip"], r["weight"], r["status"]) for r in body["data"]],
            [("10.0.0.6", 1, 0), ("10.0.0.5", 99, 0)],
        )
        self.assertEqual(self.post("/registry/sync", {"data": None}), (200, OK))
        self.assertEqual(self.post("/registry/sync", {"data": [{"registry": []}]})[0], 400)
        for reason, number in [("older", 4), ("aged", 1), ("invalid", 1), ("unknown", 2)]:
            line = f'elkeid_sd_ignored_events_total{{reason="{reason}"}} {number}.0'
            self.assertIn(line, self.face.metrics())

    def test_ageing(self) -> None:
        """A silent instance is shown ever less well, then it is gone."""
        self.post("/registry/register", MINE)
        seen = []
        for _ in range(24):
            _, body = self.get("/registry/detail?name=hids_svr_grpc")
            seen.append(body["data"][0]["status"] if body["data"] else None)
            self.face.network.advance(5, step=1)
        self.assertEqual(seen, [0] * 14 + [1] * 2 + [2] * 2 + [3] * 2 + [4] * 2 + [None] * 2)
        self.assertIn('elkeid_sd_evicted_total{reason="silent"} 1.0', self.face.metrics())

    def test_full(self) -> None:
        """A full registry says so; nothing breaks."""
        for number in range(1000):
            self.face.role.registry.register(f"n{number}", "h", 1, 0, None, wall=0, now=NOW)
        status, body = self.post("/registry/register", MINE)
        self.assertEqual(status, 503)
        self.assertIn("limit", body["msg"])

    def test_metrics(self) -> None:
        """Answers are counted under upstream's names; what vanished is shown no more."""
        self.post("/registry/register", MINE)
        self.get("/registry/detail?name=hids_svr_grpc")
        self.get("/registry/detail")
        self.get("/nowhere")
        self.get("/ping")
        text = self.face.metrics()
        for line in [
            'elkeid_sd_registry_list{name="hids_svr_grpc"} 1.0',
            'elkeid_sd_http_api{code="200",path="/registry/register"} 1.0',
            'elkeid_sd_http_api{code="200",path="/registry/detail"} 1.0',
            'elkeid_sd_http_api{code="400",path="/registry/detail"} 1.0',
            'elkeid_sd_http_api{code="404",path=""} 1.0',
        ]:
            self.assertIn(line + "\n", text)
        self.assertNotIn('path="/ping"', text)
        self.post("/registry/evict", MINE)
        self.assertNotIn("hids_svr_grpc", self.face.metrics())

    def test_wrong_methods(self) -> None:
        """Wrong methods are 404 in JSON like unknown paths."""
        client = RawConnection(self.face.role.site)
        for line in [b"POST /registry/detail", b"GET /registry/register", b"PUT /ping"]:
            answer = client.send(line + b" HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            self.assertTrue(answer.startswith(b"HTTP/1.1 404 "), answer)
            self.assertIn(b"application/json", answer)


class RoleTests(SynchronousTestCase):
    """Start and stop."""

    def test_start_and_stop(self) -> None:
        """The port opens at the start; after the stop no timer and no connection is left."""
        face = Face()
        self.assertEqual(face.network.ports, {})
        face.start()
        self.assertEqual(list(face.network.ports), [8088])
        client = RawConnection(face.role.site)
        face.network.run(face.role.stop())
        self.assertTrue(client.wire.disconnecting)
        client.lose()
        self.assertEqual(face.network.clock.getDelayedCalls(), [])

    def test_second_port(self) -> None:
        """With ``tls_port`` the same registry is served over TLS too; a fault names the setting."""
        face = Face(parse({"discovery": {"tls_port": 8443}}, base=Path()), with_certificate=True)
        face.start()
        self.assertEqual(sorted(face.network.ports), [8088, 8443])
        face.network.run(face.role.stop())

    def test_stop_after_failed_start(self) -> None:
        """A role that could not start can be stopped."""
        face = Face()
        face.network.run(face.role.stop())
