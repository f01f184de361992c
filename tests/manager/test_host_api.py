"""Hosts as consoles list and show them."""

import csv
import io
import re
import secrets
import zipfile
from typing import Any
from unittest.mock import patch

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager import exports, hosts
from elkeid.manager.store.store import StoreBusy
from tests.web.memory import NOW, RawConnection

from .deployment import Deployment

V6 = "/api/v6/asset-center"

NONE_FOUND = {"critical": 0, "high": 0, "medium": 0, "low": 0}


class HostCase(SynchronousTestCase):
    """A Manager with one AC and a user who is logged in."""

    def setUp(self) -> None:
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)
        self.token = self.deployment.login()
        self.ac = self.deployment.ac()

    def post(self, path: str, body: Any) -> Any:
        """A whole answer."""
        return self.deployment.call("POST", V6 + path, body, token=self.token)

    def get(self, path: str) -> Any:
        """A whole answer."""
        return self.deployment.call("GET", V6 + path, token=self.token)


class ListTests(HostCase):
    """``DescribeHosts``."""

    def test_item(self) -> None:
        """The fields that consoles know, and a page beside them."""
        self.ac.beat(
            "a1",
            idc="b",
            platform="debian",
            cpu=0.25,
            rss=41_000_000.0,
            intranet_ipv4=["10.0.0.1"],
            state_detail="[]",
        )
        self.deployment.network.advance(3)
        got = self.post("/DescribeHosts?page_size=10", {})
        self.assertEqual(
            got.json,
            {
                "code": 0,
                "msg": "success",
                "data": [
                    {
                        "agent_id": "a1",
                        "hostname": "host-a1",
                        "extranet_ipv4": [],
                        "extranet_ipv6": [],
                        "intranet_ipv4": ["10.0.0.1"],
                        "intranet_ipv6": [],
                        "idc": "b",
                        "platform": "debian",
                        "tags": [],
                        "status": "running",
                        "state_detail": "[]",
                        "cpu": 0.25,
                        "memory": 41_000_000,
                        "first_heartbeat_time": NOW + 3,
                        "last_heartbeat_time": NOW + 3,
                        "risk": {
                            "vuln": 0,
                            "alarm": 0,
                            "baseline": 0,
                            "event": 0,
                            "rasp_alarm": 0,
                            "virus": 0,
                        },
                    }
                ],
                "page_info": {"total": 1, "page": 1, "page_size": 10},
            },
        )

    def test_conditions(self) -> None:
        """Those that meet all conditions, in pages by id; nobody gives an empty list."""
        for number in range(7):
            self.ac.beat(f"a{number}", hostname=f"{'web' if number % 2 else 'db'}-{number}")
        self.ac.beat("b", NOW - 700, hostname="web-old")
        self.deployment.network.advance(3)
        got = self.post("/DescribeHosts?page=2&page_size=2", {"hostname": "web-"}).json
        self.assertEqual([each["agent_id"] for each in got["data"]], ["a5", "b"])
        self.assertEqual(got["page_info"], {"total": 4, "page": 2, "page_size": 2})
        got = self.post("/DescribeHosts", {"hostname": "web-", "status": ["offline"]}).json
        self.assertEqual([each["status"] for each in got["data"]], ["offline"])
        got = self.post("/DescribeHosts", {"status": ["uninstall"]}).json
        self.assertEqual((got["data"], got["page_info"]["total"]), ([], 0))

    def test_what_agents_choose(self) -> None:
        """A field of a type that nobody expects does not spoil the page."""
        self.ac.beat(
            "a1", idc=5, platform=7, cpu="much", rss=[1], intranet_ipv4="x", state_detail={}
        )
        self.ac.beat("a2", platform="debian")
        self.deployment.network.advance(3)
        first, second = self.post("/DescribeHosts", {}).json["data"]
        self.assertEqual((first["idc"], first["platform"]), ("5", "7"))
        self.assertEqual((first["cpu"], first["memory"], first["intranet_ipv4"]), (0, 0, []))
        self.assertEqual(second["platform"], "debian")

    def test_refused(self) -> None:
        """Bodies and pages that break their schema are code 5."""
        for path, body in [
            ("/DescribeHosts", b""),
            ("/DescribeHosts", []),
            ("/DescribeHosts", {"hostname": 5}),
            ("/DescribeHosts", {"status": ["dead"]}),
            ("/DescribeHosts", {"tags": "x"}),
            ("/DescribeHosts?page=0", {}),
            ("/DescribeHosts?page_size=5001", {}),
        ]:
            got = self.post(path, body)
            self.assertEqual((got.status, got.json["code"]), (400, 5), (path, body))


class DetailTests(HostCase):
    """``DescribeHostDetail``."""

    def test_detail(self) -> None:
        """All that is known of a host; a silent plugin has exited."""
        self.ac.beat(
            "a1",
            kernel_version="5.10",
            boot_time=NOW - 100,
            load_1=0.5,
            nproc=8,
            total_mem=1 << 34,
            plugins=[
                {
                    "name": "driver",
                    "pversion": "1.0",
                    "cpu": 0.5,
                    "rss": 9,
                    "last_heartbeat_time": NOW,
                },
                {"name": "scanner", "last_heartbeat_time": NOW - 1000},
                {"name": "rasp", "last_heartbeat_time": NOW, "status": "exited"},
            ],
        )
        self.deployment.network.advance(3)
        found = self.get("/DescribeHostDetail?agent_id=a1").data
        self.assertEqual(
            (found["kernel_version"], found["boot_at"], found["boot_time"], found["nproc"]),
            ("5.10", NOW - 100, NOW - 100, 8),
        )
        self.assertEqual(
            [(each["name"], each["status"]) for each in found["plugins"]],
            [("driver", "running"), ("scanner", "exited"), ("rasp", "exited")],
        )
        self.assertEqual(found["plugins"][0]["memory"], 9)
        for key in ("alarm", "rasp_alarm", "virus", "vuln", "event", "rasp_event"):
            self.assertEqual(found[key], NONE_FOUND)
        self.assertEqual(found["baseline"], {"high": 0, "medium": 0, "low": 0, "pass": 0})

    def test_refused(self) -> None:
        """No id is code 5, one that nobody has reported code 3."""
        for query in ("", "?agent_id="):
            got = self.get("/DescribeHostDetail" + query)
            self.assertEqual((got.status, got.json["code"]), (400, 5))
        got = self.get("/DescribeHostDetail?agent_id=nobody")
        self.assertEqual((got.status, got.json["code"]), (200, 3))


class AccessTests(HostCase):
    """Who may look."""

    def test_levels(self) -> None:
        """Those who look after hosts, alarms or risks."""
        self.ac.beat("a1")
        self.deployment.network.advance(3)
        routes = [("POST", "/DescribeHosts", {}), ("GET", "/DescribeHostDetail?agent_id=a1", None)]
        for method, path, body in routes:
            self.assertEqual(self.deployment.call(method, V6 + path, body).status, 401)
        for level in range(9):
            token = self.deployment.add_user(f"user{level}", level)
            for method, path, body in routes:
                got = self.deployment.call(method, V6 + path, body, token=token)
                self.assertEqual(got.status, 403 if level in (4, 5) else 200, (level, path))


class ExportCase(HostCase):
    """Exports read as clients do."""

    def export(self, body: Any, token: str | None = None) -> list[dict[str, Any]]:
        """The events of an export."""
        got = self.deployment.call("POST", f"{V6}/ExportHosts", body, token=token or self.token)
        self.assertEqual(got.status, 200, got.text)
        self.assertEqual(got.headers["content-type"], "text/event-stream; charset=utf-8")
        return self.events(got.text)

    def events(self, text: bytes) -> list[dict[str, Any]]:
        """What an event stream tells."""
        found = []
        for event in text.decode().split("\n\n")[:-1]:
            name, data = event.split("\n")
            self.assertEqual(name, "event: progress")
            decoded = msgspec.json.decode(data.removeprefix("data: "))
            self.assertEqual(set(decoded), {"code", "msg", "data"})
            found.append(decoded["data"])
        return found

    def download(self, name: str, token: str | None = None) -> Any:
        """The answer to a download."""
        path = f"/api/v6/shared/Download/{name}"
        return self.deployment.call("GET", path, token=token or self.token)

    def rows(self, archive: bytes) -> list[list[str]]:
        """The rows of an exported file."""
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            (name,) = opened.namelist()
            text = opened.read(name)
        self.assertTrue(text.startswith(b"\xef\xbb\xbf"))
        return list(csv.reader(io.StringIO(text.decode("utf-8-sig"))))

    def folder(self) -> list[str]:
        """What lies on the disk."""
        return [each.name for each in (self.deployment.folder / "data" / "exports").iterdir()]


class ExportTests(ExportCase):
    """``ExportHosts``."""

    def test_export(self) -> None:
        """Events tell how it goes, the last one names a file that can be fetched."""
        self.ac.beat(
            "a1",
            hostname="web-1",
            intranet_ipv4=["10.0.0.1", "10.0.0.2"],
            idc="b",
            platform="debian",
            cpu=0.5,
            rss=9,
        )
        self.ac.beat("a2", hostname="db-1")
        self.deployment.network.advance(3)
        events = self.export({"conditions": {"hostname": "web"}})
        self.assertEqual([each["status"] for each in events], ["init", "saving", "success"])
        self.assertEqual({each["export_total"] for each in events}, {1})
        self.assertEqual([each["export_count"] for each in events], [0, 1, 1])
        name = events[-1]["file_name"]
        self.assertRegex(name, r"\Ahosts-[0-9]{19}-[A-Za-z]{8}\.zip\Z")
        got = self.download(name)
        self.assertEqual(got.status, 200)
        self.assertEqual(got.headers["content-disposition"], f'attachment; filename="{name}"')
        header, row = self.rows(got.text)
        self.assertEqual(header[:3], ["AgentID", "Hostname", "IntranetIPv4"])
        seen = str(NOW + 3)
        self.assertEqual(
            row, ["a1", "web-1", "10.0.0.1,10.0.0.2", "", "", "", "b", "debian", "0.5", "9", seen]
        )

    def test_selections(self) -> None:
        """Empty conditions are all hosts; an empty list is nobody; neither is refused."""
        for number in range(5):
            self.ac.beat(f"a{number}")
        self.deployment.network.advance(3)
        with patch.object(hosts, "HOSTS_PER_SLICE", 2):
            for body, count in [
                ({"conditions": {}}, 5),
                ({"id_list": ["a1", "a3", "nobody"]}, 2),
                ({"id_list": []}, 0),
            ]:
                last = self.export(body)[-1]
                self.assertEqual((last["export_count"], last["status"]), (count, "success"))
                self.assertEqual(len(self.rows(self.download(last["file_name"]).text)), count + 1)
        got = self.post("/ExportHosts", {})
        self.assertEqual((got.status, got.json["code"]), (400, 5))

    def test_formulas(self) -> None:
        """What hosts call themselves is never run by a spreadsheet."""
        names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", 'a"b,\nc']
        for number, name in enumerate(names):
            self.ac.beat(f"a{number}", hostname=name)
        self.deployment.network.advance(3)
        name = self.export({"conditions": {}})[-1]["file_name"]
        shown = [row[1] for row in self.rows(self.download(name).text)[1:]]
        self.assertEqual(shown[:-1], ["'" + each for each in names[:-1]])
        self.assertEqual(shown[-1], names[-1])

    def test_whose(self) -> None:
        """A file is for who made it and for administrators; to others there is none."""
        self.ac.beat("a1")
        self.deployment.network.advance(3)
        mine, other = (self.deployment.add_user(name, 3) for name in ("alice", "bob"))
        name = self.export({"conditions": {}}, mine)[-1]["file_name"]
        statuses = [self.download(name, token).status for token in (mine, other, self.token)]
        self.assertEqual(statuses, [200, 404, 200])

    def test_names(self) -> None:
        """Names lead nowhere else."""
        for name in ("..%2Fmanager.db", "hosts-1-abcdefgh.zip", "%2e%2e", "x" * 200, "a.zip.part"):
            self.assertEqual(self.download(name).status, 404, name)

    def test_time(self) -> None:
        """A file goes when its time is over, also over a restart."""
        name = self.export({"conditions": {}})[-1]["file_name"]
        self.deployment.stop()
        self.deployment.start()
        self.token = self.deployment.login()
        self.assertEqual(self.download(name).status, 200)
        self.assertEqual(self.folder(), [name])
        self.deployment.network.clock.advance(86_400)
        self.deployment.network.flush()
        self.token = self.deployment.login()
        self.assertEqual(self.download(name).status, 404)
        self.deployment.network.clock.advance(exports.TIDY_SECONDS)
        self.deployment.network.flush()
        self.assertEqual(self.folder(), [])

    def test_unfinished(self) -> None:
        """What a crash has left is removed at the next start."""
        self.deployment.stop()
        (self.deployment.folder / "data" / "exports" / "hosts-1-abcdefgh.zip.part").touch()
        self.deployment.start()
        self.assertEqual(self.folder(), [])

    def test_levels(self) -> None:
        """Who may see hosts may export them."""
        for level in range(9):
            token = self.deployment.add_user(f"user{level}", level)
            got = self.deployment.call("POST", f"{V6}/ExportHosts", {"id_list": []}, token=token)
            self.assertEqual(got.status, 403 if level in (4, 5) else 200, level)

    def test_an_export_beside_tidying(self) -> None:
        """A file that becomes whole while others are tidied up stays."""
        manager = self.deployment.manager
        inner = manager.hosts.exports._store
        held: Deferred[None] = Deferred()

        class Held:
            """The store, whose answer to the look at all files is late."""

            async def read(self, query: Any, *args: Any) -> Any:
                found = await inner.read(query, *args)
                if query is exports.all_exports:
                    manager.hosts.exports._store = inner
                    await held
                return found

        manager.hosts.exports._store = Held()  # type: ignore[assignment]
        self.deployment.network.clock.advance(exports.TIDY_SECONDS)
        name = self.export({"conditions": {}})[-1]["file_name"]
        held.callback(None)
        self.assertEqual(self.download(name).status, 200)


class ExportLimitTests(ExportCase):
    """What exports may take."""

    def setUp(self) -> None:
        super().setUp()
        for number in range(6):
            fields = ("intranet_ipv4", "extranet_ipv4", "intranet_ipv6")
            wide = {each: [secrets.token_hex(32) for _ in range(210)] for each in fields}
            self.ac.beat(f"a{number}", **wide)
        self.deployment.network.advance(3)

    def test_size(self) -> None:
        """A file larger than its share fails, and leaves nothing."""
        with patch.object(exports, "SHARES", 4 << 20), patch.object(hosts, "HOSTS_PER_SLICE", 1):
            events = self.export({"conditions": {}})
        self.assertEqual(events[-1]["status"], "failed")
        self.assertEqual(self.folder(), [])
        self.assertEqual(self.download(events[-1]["file_name"]).status, 404)

    def test_oldest_make_room(self) -> None:
        """Files together stay within the quota: the oldest go."""
        quota = 600_000
        self.deployment.manager.hosts.exports._quota = quota
        names = []
        for _ in range(8):
            self.deployment.network.clock.advance(1)
            names.append(self.export({"conditions": {}})[-1]["file_name"])
            lying = self.deployment.folder / "data" / "exports"
            self.assertLessEqual(sum(each.stat().st_size for each in lying.iterdir()), quota)
        self.assertEqual(self.download(names[0]).status, 404)
        self.assertEqual(self.download(names[-1]).status, 200)

    def test_the_disk_fails(self) -> None:
        """A disk that fails fails the export, not the process."""
        with patch.object(exports.CsvArchive, "add", side_effect=OSError(28, "No space left")):
            events = self.export({"conditions": {}})
        self.assertEqual([each["status"] for each in events], ["init", "failed"])
        self.assertEqual(self.folder(), [])


class SlowExportTests(ExportCase):
    """Exports that take a while."""

    def setUp(self) -> None:
        super().setUp()
        for number in range(5):
            self.ac.beat(f"a{number}")
        self.deployment.network.advance(3)
        self.pauses: list[Deferred[None]] = []
        following = self.deployment.manager.agents.following

        async def slowly(*args: Any) -> Any:
            self.pauses.append(Deferred())
            await self.pauses[-1]
            return await following(*args)

        for each in (
            patch.object(hosts, "HOSTS_PER_SLICE", 1),
            patch.object(self.deployment.manager.agents, "following", slowly),
        ):
            each.start()
            self.addCleanup(each.stop)

    def begin(self) -> RawConnection:
        """A client that has begun an export."""
        port = self.deployment.settings.manager.port
        client = RawConnection(self.deployment.network.ports[port])  # type: ignore[arg-type]
        body = b'{"conditions":{}}'
        client.send(
            b"POST /api/v6/asset-center/ExportHosts HTTP/1.1\r\nHost: x\r\ntoken: "
            + self.token.encode()
            + b"\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        return client

    def go(self, seconds: float = 0.4) -> None:
        """Let a slice be read, after a while."""
        self.deployment.network.clock.advance(seconds)
        self.pauses[-1].callback(None)

    def statuses(self, text: bytes) -> list[tuple[str, int]]:
        """Of a chunked answer."""
        found = re.findall(rb"data: (.*)\n", text)
        events = [msgspec.json.decode(each)["data"] for each in found]
        return [(each["status"], each["export_count"]) for each in events]

    def test_pace(self) -> None:
        """While it goes on there is an event a second."""
        client = self.begin()
        for _ in range(6):
            self.go()
        self.assertEqual(
            self.statuses(client.wire.value()),
            [("exporting", 3), ("saving", 5), ("success", 5)],
        )

    def test_the_client_leaves(self) -> None:
        """Nobody waits for the file: it is not finished, and its place is free again."""
        client = self.begin()
        self.go()
        client.lose()
        self.go()
        self.assertEqual(self.folder(), [])
        self.assertEqual(self.deployment.manager.hosts.exports._running, 0)

    def test_so_many_at_once(self) -> None:
        """One more than may be written is told to come later."""
        for _ in range(exports.EXPORTS_AT_ONCE):
            self.begin()
        got = self.post("/ExportHosts", {"conditions": {}})
        self.assertEqual((got.status, got.json["code"]), (503, 7))
        for pause in self.pauses[:]:
            pause.errback(StoreBusy("busy"))
        self.begin()
        self.assertEqual(len(self.pauses), exports.EXPORTS_AT_ONCE + 1)
        self.pauses[-1].errback(StoreBusy("busy"))

    def test_stop(self) -> None:
        """At a stop clients are told that it failed."""
        client = self.begin()
        stopped = Deferred.fromCoroutine(self.deployment.manager.hosts.exports.stop())
        self.assertNoResult(stopped)
        self.go()
        self.successResultOf(stopped)
        self.assertEqual(self.statuses(client.wire.value())[-1][0], "failed")
