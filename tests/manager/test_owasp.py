"""The OWASP API Security Top 10 of 2023, point by point, against the whole face.

What a point needs beyond this is tested with its subject: levels in ``test_matrix``, waits and
second factors in ``test_logins``, signatures in ``tests/web/test_signed`` and ``test_inner_api``,
uploads in ``test_shared_api``.
"""

import ast
import re
from hashlib import md5
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers

import elkeid
from elkeid.manager.access import TOKEN_CHARACTERS
from elkeid.manager.pages import PAGE_LIMIT, PAGE_SIZE_LIMIT
from elkeid.manager.passwords import WAITING_LIMIT, Passwords
from elkeid.manager.store import store
from elkeid.manager.store.store import SEARCHES_AT_ONCE
from elkeid.web.answers import Answer
from elkeid.web.client import Credentials
from elkeid.web.openapi import template_of
from elkeid.web.routes import AuthKind, Route
from elkeid.web.schemas import MAX_QUERY_FIELDS
from tests.web.memory import RawConnection

from .deployment import AK, HASHER, PASSWORD, SK, ScriptedAc
from .stores import HeldThreads
from .test_logins import LOGIN, NEW, Case
from .test_shared_api import FORM, form

FILTER = "/api/v1/agent/getStatus/filter"
UPDATE, MAKE = "/api/v1/user/update", "/api/v6/user/new"


class FaceCase(Case):
    def setUp(self) -> None:
        super().setUp()
        self.admin = self.deployment.login()
        self.api = self.deployment.manager.api

    def ask(self, path: str, body: Any = None, token: str | None = None) -> Any:
        """A POST, by the admin unless told otherwise."""
        return self.call("POST", path, body, token=token or self.admin)

    def level(self, username: str) -> int:
        """Of a user."""
        users = self.ask("/api/v6/user/List", {"username": f"^{username}$"}).data
        level: int = users[0]["level"]
        return level

    def raw(self, head: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of a request written by hand."""
        site: Any = self.deployment.network.ports[self.deployment.settings.manager.port]
        connection = RawConnection(site)
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        answer = connection.send(f"{head}Host: x\r\n{length}\r\n".encode() + body)
        self.deployment.network.flush()
        answer += connection.send(b"")
        connection.lose()
        return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]

    def tokened(self, method: str) -> list[Route]:
        """Routes for users, without parts in their paths."""
        return [
            route
            for route in self.api.routes
            if route.auth is AuthKind.TOKEN and route.method == method and "<" not in route.path
        ]


class ObjectLevelTests(FaceCase):
    """API1: broken object level authorization."""

    def test_the_account_of_somebody_else(self) -> None:
        """Password, sessions, second factor: each route acts on the caller, whoever is named."""
        alice, bob = self.deployment.add_user("alice", 3), self.deployment.add_user("bob", 0)
        for path in ("resetPassword", "checkUser"):
            body = {"username": "bob", "password": PASSWORD + "!"}
            self.assertEqual(self.ask(f"/api/v1/user/{path}", body, alice).json["code"], 10)
        for named in ({"username": "bob"}, {"user_id": 3}, {"id": None, "username": "bob"}):
            self.assertEqual(self.ask("/api/v1/user/revoke", named, alice).data["count"], 0)
            secret = self.ask("/api/v6/user/otp/enrol", {"password": PASSWORD, **named}, alice)
            self.assertIn("Elkeid:alice", secret.data["uri"])
        session = self.call("GET", "/api/v1/user/sessions", token=bob).data[0]["id"]
        self.assertEqual(self.ask("/api/v1/user/revoke", {"id": session}, alice).data["count"], 0)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=bob).status, 200)

    def test_files_have_names_that_nobody_guesses(self) -> None:
        """A file is found by its whole name only; near misses are 404."""
        content = b"of a host"
        digest = md5(content, usedforsecurity=False).hexdigest()
        client = self.deployment.network.client(Credentials(AK, SK))
        url = f"http://127.0.0.1:{self.deployment.settings.manager.port}/api/v6/shared/Upload"
        reply = self.deployment.network.run(
            client.call("POST", url, form(content, digest), headers=FORM)
        )
        name = msgspec.json.decode(reply.body)["data"]
        for wrong in (name[:-1], name + "x", name.upper(), f"{digest}.zip", "%", "*"):
            path = f"/api/v6/shared/Download/{wrong}"
            self.assertEqual(self.call("GET", path, token=self.admin).status, 404, wrong)

    def test_path_traversal(self) -> None:
        """Nothing but uploaded files comes out, however the path is written."""
        for name in (
            "..",
            "../manager.db",
            "..%2fmanager.db",
            "%2e%2e%2fmanager.db",
            "..%5cmanager.db",
            "....//manager.db",
            "%2fetc%2fpasswd",
            "..%252fmanager.db",
            "..%c0%afmanager.db",
            "%00",
            "x%00.zip",
            "%ff",
        ):
            got = self.call("GET", f"/api/v6/shared/Download/{name}", token=self.admin)
            self.assertEqual(got.status, 404, name)
            self.assertNotIn(b"SQLite", got.text)

    def test_names_of_uploads(self) -> None:
        """Where a file goes is ours to say: the sender's name for it is not looked at."""
        digest = md5(b"x", usedforsecurity=False).hexdigest()
        for evil in (b"../../evil", b"/etc/evil", b"..\\evil", b"a\0b", b"x" * 5000):
            body = form(b"x", digest).replace(b"file/token.zip", evil)
            client = self.deployment.network.client(Credentials(AK, SK))
            port = self.deployment.settings.manager.port
            url = f"http://127.0.0.1:{port}/api/v6/shared/Upload"
            self.deployment.network.run(client.call("POST", url, body, headers=FORM))
        found = {path.name for path in self.deployment.folder.rglob("*") if "evil" in path.name}
        self.assertEqual(found, set())


class AuthenticationTests(FaceCase):
    """API2: broken authentication."""

    def test_only_the_header_counts(self) -> None:
        """A token in the query would be in logs; cookies and schemes are not looked at."""
        for head in (
            f"GET /api/v1/user/info?token={self.admin} HTTP/1.1\r\n",
            f"GET /api/v1/user/info HTTP/1.1\r\nCookie: token={self.admin}\r\n",
            f"GET /api/v1/user/info HTTP/1.1\r\nAuthorization: Bearer {self.admin}\r\n",
            "GET /api/v1/user/info HTTP/1.1\r\nuser: admin\r\n",
            "GET /api/v1/user/info HTTP/1.1\r\nX-Forwarded-For: 127.0.0.1\r\n",
        ):
            self.assertEqual(self.raw(head)[0], 401, head)

    def test_tokens_that_are_none(self) -> None:
        """Stored hashes, other formats and injections open nothing."""
        stored = self.deployment.network.run(
            self.deployment.manager.store.read(
                lambda connection: connection.exec_driver_sql("SELECT hash FROM token").scalar_one()
            )
        )
        none = "eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QifQ."
        for token in (
            stored,
            none,
            "' OR 1=1 --",
            "seesion-dc2bi6j8di1asn0bqi40-dc2bi6j8di1asn0bqi4g",
            "x" * (TOKEN_CHARACTERS + 1),
            self.admin[:-1],
            self.admin + " x",
            self.admin.swapcase(),
        ):
            got = self.call("GET", "/api/v1/user/info", token=token)
            self.assertEqual(got.status, 401, token)

    def test_forwarded_addresses_do_not_count(self) -> None:
        """Waits cannot be dodged by headers that name another address."""
        body = msgspec.json.encode({"username": "alice", "password": "wrong"})
        codes = []
        for number in range(6):
            head = f"POST {LOGIN} HTTP/1.1\r\nX-Forwarded-For: 10.0.0.{number}\r\n"
            codes.append(msgspec.json.decode(self.raw(head, body)[1])["code"])
        self.assertEqual(codes, [1, 1, 1, 1, 1, 21])

    def test_secrets_are_compared_in_constant_time(self) -> None:
        """Where a secret of ours meets what somebody sent, no plain comparison is used."""
        root = Path(elkeid.__file__).parent
        for name, must in (
            ("wire/signature.py", "compare_digest"),
            ("manager/captcha.py", "compare_digest"),
            ("manager/totp.py", ".verify("),
            ("manager/passwords.py", ".verify("),
        ):
            text = (root / name).read_text()
            self.assertIn(must, text)
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.Compare):
                    continue
                names = {getattr(each, "id", "") for each in (node.left, *node.comparators)}
                equal = any(isinstance(each, ast.Eq | ast.NotEq) for each in node.ops)
                secret = names & {"expected", "given", "signature", "digits", "stored", "secret"}
                self.assertFalse(equal and secret, f"{name}: {ast.unparse(node)}")

    def test_unknown_users_cost_as_much(self) -> None:
        """A login hashes once, whether the user exists or not."""
        threads = HeldThreads()
        passwords = Passwords(threads, HASHER)
        preparing = Deferred.fromCoroutine(passwords.prepare())
        threads.go()
        self.successResultOf(preparing)
        hashed = HASHER.hash(PASSWORD)
        for stored, password in ((hashed, "wrong"), (None, PASSWORD), (None, ""), (hashed, "")):
            checking = Deferred.fromCoroutine(passwords.verify(stored, password))
            self.assertEqual(len(threads.waiting), 1)
            threads.go()
            self.assertFalse(self.successResultOf(checking))

    def test_replay(self) -> None:
        """A signed call that was overheard is good once, and good for its own route alone."""
        client = self.deployment.network.client(Credentials(AK, SK))
        port = self.deployment.settings.manager.port
        url = f"http://127.0.0.1:{port}/api/v1/agent/queryInfo?nonce=once"
        for status in (200, 401, 401):
            reply = self.deployment.network.run(client.post(url, {"id_list": []}))
            self.assertEqual(reply.status, status)


class PropertyLevelTests(FaceCase):
    """API3: broken object property level authorization."""

    def test_mass_assignment(self) -> None:
        """Fields that a route does not name change nothing; a missing level is no level 0."""
        alice = self.deployment.add_user("alice", 3)
        more = {
            "id": 1,
            "is_admin": True,
            "role": "admin",
            "otp_confirmed": True,
            "networks": [],
            "password_update_time": 0,
            "created_at": 0,
        }
        body = {"username": "alice", "password": NEW, "level": 0, **more}
        self.assertEqual(self.ask("/api/v1/user/resetPassword", body, alice).data, "ok")
        self.assertEqual(self.level("alice"), 3)
        self.assertEqual(self.login("alice", NEW, level=0, **more)["code"], 0)
        self.assertEqual(self.level("alice"), 3)
        body = {"username": "alice", "password": "x" * 20, "salt": "x", **more}
        self.assertEqual(self.ask(UPDATE, body).data, "ok")
        self.assertEqual(self.login("alice", NEW)["code"], 0)
        self.assertEqual(self.level("alice"), 3)
        self.assertEqual(self.ask(MAKE, {"username": "bob", "password": NEW, **more}).status, 400)

    def test_nothing_secret_is_shown(self) -> None:
        """No answer about users has a hash, a secret or a token in it."""
        self.ask("/api/v6/user/otp/enrol", {"password": self.deployment.first_password()})
        shown = b"".join(
            got.text
            for got in (
                self.call("GET", "/api/v1/user/info", token=self.admin),
                self.ask("/api/v6/user/List", {}),
                self.call("GET", "/api/v1/user/sessions", token=self.admin),
                self.call("GET", "/api/v1/audit", token=self.admin),
            )
        )
        for secret in (b"$argon2", self.admin.encode(), self.deployment.first_password().encode()):
            self.assertNotIn(secret, shown)


class ResourceTests(FaceCase):
    """API4: unrestricted resource consumption."""

    def test_bodies(self) -> None:
        """Each route says how large a body may be, and reads no more, from whomever."""
        for route in self.api.routes:
            if route.method == "POST":
                path = re.sub("<[^>]*>", "x", route.path)
                head = f"POST {path} HTTP/1.1\r\nContent-Length: {route.limit + 1}\r\n"
                self.assertEqual(self.raw(head)[0], 413, route.path)
                self.assertLessEqual(route.limit, 640 << 20, route.path)

    def test_bodies_that_never_come(self) -> None:
        """Announcing the largest bodies of all routes keeps nobody out, from however many places.

        Also who sends all of a body but its end leaves room for logins.
        """
        site: Any = self.deployment.network.ports[self.deployment.settings.manager.port]
        largest = {route.path: route.limit for route in self.api.routes if route.method == "POST"}
        stalled: list[RawConnection] = []

        def stall(path: str, host: str, begin: bytes = b"") -> None:
            connection = RawConnection(site, IPv4Address("TCP", host, 1))
            length = largest[path]
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            connection.send(head.encode() + begin)
            stalled.append(connection)

        for path in ("/api/v1/agent/updateSubTask", "/api/v6/shared/Upload"):
            for number in range(8):
                stall(path, "127.0.0.1")
                stall(path, f"10.0.0.{number}")
                stall(path, f"192.0.2.{number}")
        self.assertEqual((site.memory.held, site.disk.held), (0, 0))
        self.deployment.login()
        self.assertTrue(self.upload_works())
        path = "/api/v1/agent/updateSubTask"
        for number in range(20):
            stall(path, f"10.0.0.{number}", bytes(largest[path] - 1))
        self.assertLessEqual(site.memory.held, site.limits.bodies_bytes)
        shown = self.deployment.manager.metrics.registry.get_sample_value(
            "elkeid_manager_bodies_bytes", {"where": "memory"}
        )
        self.assertEqual(shown, site.memory.held)
        self.deployment.login()
        for connection in stalled:
            connection.lose()
        self.assertEqual(site.memory.held, 0)

    def upload_works(self) -> bool:
        """Whether a gateway's file is taken."""
        client = self.deployment.network.client(Credentials(AK, SK))
        port = self.deployment.settings.manager.port
        url = f"http://127.0.0.1:{port}/api/v6/shared/Upload"
        body = form(b"content", md5(b"content").hexdigest())
        reply = self.deployment.network.run(client.call("POST", url, body, headers=FORM))
        return bool(reply.status == 200)

    def test_pages(self) -> None:
        """No list gives more than a page of bounded size; absurd numbers are code 5."""
        checked = 0
        for method in ("GET", "POST"):
            for route in self.tokened(method):
                fields = () if route.query is None else route.query.struct.__struct_fields__
                for name, bounds in (
                    ("page_size", (0, -1, PAGE_SIZE_LIMIT + 1, "1e9", "", "x")),
                    ("page", (0, -1, PAGE_LIMIT + 1, "9" * 400, "1.5")),
                ):
                    for value in bounds if name in fields else ():
                        body = {} if method == "POST" else None
                        path = f"{route.path}?{name}={value}"
                        got = self.call(method, path, body, token=self.admin)
                        self.assertEqual((got.status, got.json["code"]), (400, 5), path)
                        checked += 1
        self.assertGreater(checked, 50)

    def test_last_page(self) -> None:
        """A page as far away as pages go is no error of ours."""
        checked = 0
        for method in ("GET", "POST"):
            for route in self.tokened(method):
                fields = () if route.query is None else route.query.struct.__struct_fields__
                if "page_size" in fields:
                    body = {} if method == "POST" else None
                    path = f"{route.path}?page={PAGE_LIMIT}&page_size={PAGE_SIZE_LIMIT}"
                    got = self.call(method, path, body, token=self.admin)
                    self.assertIn(got.status, (200, 400), path)
                    checked += 1
        self.assertGreater(checked, 5)

    def test_work_before_anybody_is_known(self) -> None:
        """Deep, wide and endless requests are refused cheaply, as JSON."""
        many = "&".join(f"a{number}=1" for number in range(MAX_QUERY_FIELDS + 1))
        for path, body in (
            (LOGIN, b"[" * 60_000),
            (LOGIN, b'{"username":' * 5_000),
            (LOGIN, b'{"username":"' + b"a" * 60_000 + b'","password":"b"}'),
            (f"{FILTER}?{many}", b"{}"),
            (FILTER, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        ):
            got = self.call("POST", path, body, token=self.admin)
            self.assertIn((got.status, got.json["code"]), ((400, 5), (200, 1)), path)

    def test_a_flood_of_logins(self) -> None:
        """Beyond what waits already, a login is told to come again, at once."""
        threads = HeldThreads()
        passwords = Passwords(threads, HASHER)
        for _ in range(WAITING_LIMIT):
            Deferred.fromCoroutine(passwords.hash("x"))
        self.failureResultOf(Deferred.fromCoroutine(passwords.hash("x")))

    def test_searches_of_one_user(self) -> None:
        """Who asks for more at once than a user may is told to wait; others are served."""
        self.patch(store, "SEARCHES_PER_USER", 2)
        network, searching = self.deployment.network, self.deployment.manager.store._searching
        for _ in range(SEARCHES_AT_ONCE):
            self.successResultOf(searching.acquire())  # by what takes long
        asked: list[Deferred[Any]] = []
        rules = [{"operator": "$regex", "value": "^web-"}]
        body = msgspec.json.encode(
            {"filter": [{"key": "hostname", "condition": "$and", "rules": rules}]}
        )

        def ask(token: str) -> None:
            port = self.deployment.settings.manager.port
            headers = Headers({"token": [token], "content-type": ["application/json"]})
            url = f"http://127.0.0.1:{port}{FILTER}"
            made = self.deployment._exchange("POST", url, headers, body)
            asked.append(Deferred.fromCoroutine(made))
            network.flush()

        for _ in range(3):
            ask(self.admin)
        ask(self.deployment.add_user("reader", 5))
        refused = self.successResultOf(asked.pop(2))
        self.assertEqual(refused.status, 503)
        self.assertIn("too many searches of one user", refused.text.decode())
        for each in asked:
            self.assertNoResult(each)
        for _ in range(SEARCHES_AT_ONCE):
            searching.release()
        network.flush()
        for each in asked:
            self.assertEqual(self.successResultOf(each).json["code"], 0)
        for _ in range(3):  # their places are free again
            self.assertEqual(self.ask(FILTER, msgspec.json.decode(body)).json["code"], 0)

    def test_expressions(self) -> None:
        """What is dear for other engines is linear here, and long ones are refused."""
        evil = "(a+)+$"
        block = {
            "key": "hostname",
            "condition": "$and",
            "rules": [{"operator": "$regex", "value": evil}],
        }
        self.assertEqual(self.ask(FILTER, {"filter": [block]}).json["code"], 0)
        for pattern in ("x" * 1000, "(", "(?<=a)b", "(a)\\1", "((a{100}){100}){100}"):
            block["rules"] = [{"operator": "$regex", "value": pattern}]
            got = self.ask(FILTER, {"filter": [block]})
            self.assertEqual((got.status, got.json["code"]), (400, 5), pattern)
            got = self.ask("/api/v6/user/List", {"username": pattern})
            self.assertEqual((got.status, got.json["code"]), (400, 5), pattern)


class FunctionLevelTests(FaceCase):
    """API5: broken function level authorization. Levels of each route are in test_matrix."""

    def test_other_spellings_are_no_way_around(self) -> None:
        """A path is what is declared, in one spelling; the check is of the route that serves it."""
        reader = self.deployment.add_user("reader", 5)
        for path in (
            "/api/v1/audit/",
            "/api/v1/audit?x=/api/v1/user/info",
            "/api/v1/audit;x",
            "/api/v1//audit",
            "/api/v1/./audit",
            "/api/v1/user/../audit",
            "/api/v1/user/%2e%2e/audit",
            "/API/V1/AUDIT",
            "/api/v1/audit%20",
            "/api/v1/%61udit",
            "//api/v1/audit",
        ):
            got = self.call("GET", path, token=reader)
            self.assertIn(got.status, (403, 404), path)

    def test_methods_cannot_be_overridden(self) -> None:
        """A header or field that names another method is not looked at."""
        for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
            head = f"GET {UPDATE} HTTP/1.1\r\n{header}: POST\r\ntoken: {self.admin}\r\n"
            self.assertEqual(self.raw(head)[0], 404)
        for method in ("HEAD", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "CONNECT"):
            self.assertIn(self.raw(f"{method} {UPDATE} HTTP/1.1\r\n")[0], (404, 405, 501), method)

    def test_rights_that_are_taken_end_at_once(self) -> None:
        """A token of a user who was changed or deleted is worth nothing, there and then."""
        for number, (path, body) in enumerate(
            (
                (UPDATE, {"level": 5}),
                ("/api/v1/user/del", {}),
                (UPDATE, {"source_ip_list": ["10.0.0.0/8"]}),
            )
        ):
            name = f"user{number}"
            token = self.deployment.add_user(name, 0)
            self.assertEqual(self.ask(path, {"username": name, **body}).data, "ok")
            self.assertEqual(self.call("GET", "/api/v1/audit", token=token).status, 401)


class BusinessFlowTests(FaceCase):
    """API6: unrestricted access to sensitive business flows."""

    def test_nothing_disarms_the_fleet_by_accident(self) -> None:
        """An empty list of plugins needs a word; so does a selection that is empty."""
        body: dict[str, Any] = {"type": "agent_config", "config": []}
        got = self.ask("/api/v1/agent/updateDefaultConfig", body)
        self.assertEqual((got.status, got.json["code"]), (400, 5))
        got = self.ask("/api/v1/agent/createTask/task", {"data": {"task": {"data_type": 1060}}})
        self.assertNotEqual(got.json.get("data", {}), "ok")
        if got.json["code"] == 0:
            self.assertEqual(got.data["count"], 0)

    def test_who_did_it_is_known(self) -> None:
        """The name in the log is the caller's, whatever the request says."""
        body = {"username": "nobody", "task_user": "innocent", "user": "innocent"}
        self.ask("/api/v1/user/del", body)
        row = self.call("GET", "/api/v1/audit?page_size=1", token=self.admin).data[0]
        self.assertEqual(row["user"], "admin")


class ForgeryTests(FaceCase):
    """API7: server side request forgery."""

    def test_redirects_are_not_followed(self) -> None:
        """A gateway cannot send the Manager elsewhere."""
        ac = ScriptedAc(self.deployment.network)
        ac.answer = Answer(302, b"", {"location": "http://127.0.0.1:9999/secret"})
        self.deployment.register(ac)
        self.deployment.network.advance(5)
        self.assertTrue(ac.asked)
        self.assertNotIn(9999, self.deployment.network.dialled)

    def test_addresses_in_content_are_not_called(self) -> None:
        """Where hosts shall fetch plugins from is theirs to call; agents steer no call of ours."""
        item = {"name": "driver", "version": "1", "download_url": ["http://127.0.0.1:9998/x"]}
        body = {"type": "agent_config", "config": [item]}
        self.assertEqual(self.ask("/api/v1/agent/updateDefaultConfig", body).json["code"], 0)
        ac = self.deployment.ac()
        ac.beat("evil", source_ip="127.0.0.1", source_port=9997, agent_addr="127.0.0.1:9996")
        self.deployment.network.advance(5)
        agent = self.deployment.agent(self.admin, "evil")
        self.assertEqual((agent["source_ip"], agent["source_port"]), ("127.0.0.1", 6752))
        self.assertEqual({9996, 9997, 9998} & set(self.deployment.network.dialled), set())


class ConfigurationTests(FaceCase):
    """API8: security misconfiguration."""

    def test_no_other_site_may_ask(self) -> None:
        """A page of another origin gets no leave to read answers."""
        site: Any = self.deployment.network.ports[self.deployment.settings.manager.port]
        connection = RawConnection(site)
        head = "GET /api/v1/user/info HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\n"
        connection.send(f"{head}token: {self.admin}\r\n\r\n".encode())
        self.deployment.network.flush()
        answer = connection.send(b"").lower()
        self.assertNotIn(b"access-control-allow", answer)
        connection.lose()

    def test_faults_tell_nothing(self) -> None:
        """A fault of ours is one word to a client; the log has the rest."""
        store = self.deployment.manager.store
        self.deployment.network.run(
            store.write(lambda connection: connection.exec_driver_sql("DROP TABLE audit").close())
        )
        got = self.call("GET", "/api/v1/audit", token=self.admin)
        self.assertEqual(got.json["code"], 3)
        for word in (b"SELECT", b"sqlite", b"Traceback", b".py"):
            self.assertNotIn(word, got.text)
        self.flushLoggedErrors()

    def test_metrics_are_not_for_everybody(self) -> None:
        """They tell about users and hosts: private networks only."""
        self.come_from("203.0.113.9")
        self.assertEqual(self.call("GET", "/metrics").status, 403)


class InventoryTests(FaceCase):
    """API9: improper inventory management."""

    def test_no_route_is_hidden(self) -> None:
        """What is served is documented with who may call it, and nothing else is served."""
        paths = self.call("GET", "/api/openapi.json").json["paths"]
        for route in self.api.routes:
            operation = paths[template_of(route)][route.method.lower()]
            if route.auth is AuthKind.TOKEN:
                self.assertEqual(operation["x-levels"], sorted(route.levels))
        for path in (
            "/admin",
            "/debug",
            "/api",
            "/api/v0/inner/sync",
            "/api/v2/user/info",
            "/.git",
        ):
            self.assertEqual(self.call("GET", path, token=self.admin).status, 404, path)


class ConsumptionTests(FaceCase):
    """API10: unsafe consumption of APIs."""

    def test_what_agents_say_is_data(self) -> None:
        """Markup, operators and control characters come out as they went in, inside JSON."""
        ac = self.deployment.ac()
        evil = "<script>alert(1)</script>'; DROP TABLE agent; --$where\u2028"
        ac.beat("evil", hostname=evil, **{"$set": evil, "__proto__": evil})
        self.deployment.network.advance(5)
        agent = self.deployment.agent(self.admin, "evil")
        self.assertEqual(agent["hostname"], evil)
        self.assertEqual(self.deployment.status(self.admin)["total"], 1)

    def test_a_gateway_that_is_no_gateway(self) -> None:
        """An answer that makes no sense changes nothing, and is no fault of ours."""
        ac = self.deployment.ac()
        ac.beat("a")
        self.deployment.network.advance(5)
        for answer in (b"", b"[]", b'{"code":0,"data":5}', b'{"code":0,"data":[{}]}', b"\xff"):
            ac.answer = Answer(200, answer)
            self.deployment.network.advance(5)
        self.assertEqual(self.deployment.status(self.admin)["total"], 1)
        self.flushLoggedErrors()


class InjectionTests(FaceCase):
    """Injection through the keys of filters and of orders; was a point of its own."""

    def block(self, key: str, operator: str = "$eq", value: Any = "x") -> dict[str, Any]:
        """A filter of one rule."""
        rule = {"operator": operator, "value": value}
        return {"filter": [{"key": key, "condition": "$and", "rules": [rule]}]}

    def test_keys(self) -> None:
        """A key is a name: no operator, no expression, no piece of SQL or JSON path."""
        for key in (
            "$expr",
            "$where",
            "$function",
            "a.$expr",
            "hostname' OR '1'='1",
            'hostname"',
            "hostname;--",
            "$.hostname",
            "$[0]",
            "a[0]",
            "a b",
            "a\0",
            "é",
            "",
            ".",
            "a..b",
            "a.b.c.d.e",
            "x" * 200,
        ):
            for path in (FILTER, "/api/v1/agent/getTask/filter", "/api/v1/agent/getSubTask/filter"):
                got = self.ask(path, self.block(key))
                self.assertEqual((got.status, got.json["code"]), (400, 5), (path, key))

    def test_operators(self) -> None:
        """Only those of the language."""
        for operator in ("$exists", "$where", "$function", "$expr", "eq", "", "$EQ", "= 1 --"):
            got = self.ask(FILTER, self.block("hostname", operator))
            self.assertEqual((got.status, got.json["code"]), (400, 5), operator)

    def test_orders(self) -> None:
        """A sort key that is none of the list's own changes no query."""
        for key in ("hostname;--", "(SELECT 1)", "1,(SELECT password FROM user)", "$natural", "'"):
            for path in (FILTER, "/api/v1/agent/getTask/filter", "/api/v6/user/List"):
                query = f"{path}?order_key={key.replace(' ', '%20')}&order_value=1"
                got = self.ask(query, {})
                self.assertIn((got.status, got.json["code"]), ((200, 0), (400, 5)), (path, key))
                self.assertNotIn(b"argon2", got.text)

    def test_values(self) -> None:
        """They are compared, never executed, whatever their type."""
        ac = self.deployment.ac()
        ac.beat("a")
        self.deployment.network.advance(5)
        for value in ("' OR 1=1 --", {"$ne": 1}, ["x"], {"$gt": ""}, "%", "_", 1 << 200, None):
            got = self.ask(FILTER, self.block("hostname", "$eq", value))
            self.assertIn((got.status, got.json["code"]), ((200, 0), (400, 5)), value)
            if got.json["code"] == 0:
                self.assertEqual(got.data["total"], 0, value)

    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=20), st.text(max_size=20))
    def test_anything(self, key: str, value: str) -> None:
        """No text makes an error of ours, or finds what it should not."""
        got = self.ask(FILTER, self.block(key, "$eq", value))
        self.assertIn((got.status, got.json["code"]), ((200, 0), (400, 5)))
