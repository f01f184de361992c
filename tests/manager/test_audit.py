"""The audit log: what is in it, that nothing happens without it, and that changes of it show."""

import socket
import tempfile
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from elkeid.manager.audit import (
    BODY_CHARACTERS,
    OBJECTS,
    PARSED_BYTES,
    REFUSED_BURST,
    SPARE_BURST,
    clean,
    described,
    without_secrets,
)
from elkeid.manager.auditcheck import AuditBroken, verify
from elkeid.manager.retention import PAUSE_SECONDS
from elkeid.manager.store.audit import (
    CALL,
    NO_HASH,
    Entry,
    append,
    entries,
    head_of,
    remove_before,
)
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.engine import Database
from elkeid.manager.store.schema import audit, audit_head
from elkeid.manager.store.store import StoreFailed
from elkeid.manager.syslog import SEND_SECONDS
from elkeid.web.routes import Call, Routes
from tests.web.memory import NOW

from .deployment import PASSWORD, Deployment
from .stores import database_at
from .test_logins import Case

AUDIT = "/api/v1/audit"
DAY = 86_400


def entry(number: int = 0, at_ms: int = NOW * 1000) -> Entry:
    """Something that happened."""
    return Entry(at_ms, CALL, f"user{number}", "10.0.0.1", "POST", "/x", objects=("é", "b"))


def chain(database: Database, count: int, begin: int = 0) -> None:
    """Let things happen, one a second."""
    for number in range(begin, begin + count):
        with database.writing() as connection:
            append(connection, entry(number, (NOW + number) * 1000))


class ApiCase(Case):
    settings = {"audit_seconds": DAY, "change_burst": 20}  # noqa: RUF012

    def setUp(self) -> None:
        super().setUp()
        self.admin = self.deployment.login()

    def shown(self, query: str = "") -> list[dict[str, Any]]:
        """The log, the newest first."""
        rows: list[dict[str, Any]] = self.call("GET", AUDIT + query, token=self.admin).data
        return rows

    def newest(self) -> dict[str, Any]:
        """The newest entry."""
        return self.shown("?page_size=1")[0]


class ContentTests(ApiCase):
    def test_a_call(self) -> None:
        """Who, when, from where, what, and what became of it; no secret."""
        body = {"username": "alice", "password": PASSWORD, "level": 3}
        self.call("POST", "/api/v6/user/new", body, token=self.admin)
        row = self.newest()
        self.assertEqual(len(row.pop("hash")), 64)
        self.assertNotIn(PASSWORD, row["body"])
        self.assertEqual(
            row,
            {
                "seq": row["seq"],
                "time_ms": NOW * 1000,
                "kind": "call",
                "user": "admin",
                "level": 0,
                "address": "127.0.0.1",
                "method": "POST",
                "path": "/api/v6/user/new",
                "status": 200,
                "code": 0,
                "objects": ["alice"],
                "body": '{"body":{"level":3,"password":"***","username":"alice"}}',
                "note": "",
            },
        )

    def test_refused_by_the_handler(self) -> None:
        """A call that comes to nothing is in the log with its reason."""
        self.call("POST", "/api/v1/user/update", {"username": "admin", "level": 3}, self.admin)
        row = self.newest()
        self.assertEqual((row["status"], row["code"]), (200, 10))
        self.assertIn("last administrator", row["note"])
        self.call("POST", "/api/v1/user/update", b"{", token=self.admin)
        row = self.newest()
        self.assertEqual((row["status"], row["code"], row["body"]), (400, 5, '{"bytes":1}'))

    def test_reads_are_not_in_it(self) -> None:
        """Only what changes something is, whatever the method says; a logout is a GET."""
        before = self.newest()["seq"]
        self.call("POST", "/api/v1/agent/getStatus/filter", {}, token=self.admin)
        self.call("GET", "/api/v1/user/info", token=self.admin)
        self.assertEqual(self.newest()["seq"], before)
        self.call("GET", "/api/v1/user/logout", token=self.deployment.login())
        self.assertEqual(self.newest()["path"], "/api/v1/user/logout")

    def test_logins(self) -> None:
        """Successes and failures, of users that there are not too."""
        self.deployment.add_user("alice", 3)
        self.assertEqual(
            {key: self.newest()[key] for key in ("kind", "user", "level", "code", "note")},
            {"kind": "call", "user": "alice", "level": 3, "code": 0, "note": "logged in"},
        )
        self.fail("alice")
        row = self.newest()
        self.assertEqual((row["kind"], row["user"], row["code"]), ("refused", "alice", 1))
        self.fail("nobody\0\u202e")
        self.assertEqual(self.newest()["level"], None)
        self.fail("alice", 4)
        self.login("alice", "a secret phrase")
        row = self.newest()
        self.assertEqual((row["kind"], row["code"], row["body"]), ("refused", 21, ""))

    def test_refused_users(self) -> None:
        """A known user who may not, or whose token is over, is in it; a stranger is not."""
        token = self.deployment.add_user("alice", 3)
        self.call("POST", "/api/v1/user/del", {"username": "bob"}, token=token)
        row = self.newest()
        self.assertEqual((row["kind"], row["user"], row["status"]), ("refused", "alice", 403))
        self.advance(7200)
        self.call("POST", "/api/v1/user/del", {"username": "bob"}, token=token)
        self.admin = self.deployment.login()
        row = self.shown("?page_size=2")[1]
        self.assertEqual((row["kind"], row["user"], row["status"]), ("refused", "alice", 401))
        before = self.newest()["seq"]
        self.call("POST", "/api/v1/user/del", {"username": "bob"}, token="garbage")
        self.assertEqual(self.newest()["seq"], before)

    def test_a_flood_of_refusals(self) -> None:
        """It does not fill the log: what is left out is counted, and said in the next one."""
        token = self.deployment.add_user("alice", 3)
        before = self.newest()["seq"]
        for _ in range(int(REFUSED_BURST) + 10):
            self.call("GET", AUDIT, token=token)
        self.assertEqual(self.newest()["seq"], before + REFUSED_BURST)
        self.advance(1)
        self.call("GET", AUDIT, token=token)
        self.assertIn("10 refused calls were left out", self.newest()["note"])
        metrics = self.call("GET", "/metrics").text.decode()
        self.assertIn('elkeid_manager_audit_total{outcome="left_out"} 10.0', metrics)

    def test_a_flood_of_changes(self) -> None:
        """It does not fill the log: beyond a rate nothing is done for a user, so nothing written.

        Another token of the user has a few calls left, to end the one that floods.
        """
        revoke = "/api/v1/user/revoke"
        spare = self.deployment.add_user("alice", 5)
        token = self.deployment.login("alice", PASSWORD)
        before = self.newest()["seq"]
        body = {"id": "0", "pad": "x" * 4000}
        answers = [self.call("POST", revoke, body, token=token).json["code"] for _ in range(30)]
        done = 20 + int(SPARE_BURST)
        self.assertEqual(answers, [0] * done + [7] * (30 - done))
        rows = self.shown("?page_size=100")
        self.assertEqual(self.newest()["seq"], before + 2 * done - 1)  # outcomes have theirs
        self.assertEqual(rows[0]["body"], '{"body":{"id":"0"}}')
        metrics = self.call("GET", "/metrics").text.decode()
        self.assertIn(f'elkeid_manager_audit_total{{outcome="held_back"}} {30.0 - done}', metrics)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 200)  # a read
        self.assertEqual(self.call("POST", revoke, {}, token=spare).data["count"], 1)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 401)
        self.assertEqual(self.call("POST", revoke, body, token=self.admin).data["count"], 0)

    def test_the_first_start(self) -> None:
        """The first entry tells of the first administrator."""
        first = self.shown()[-1]
        self.assertEqual((first["seq"], first["user"], first["objects"]), (1, "system", ["admin"]))

    def test_a_client_that_leaves(self) -> None:
        """The call is in the log; that nobody waited for the answer, too."""
        api = self.deployment.manager.audit
        call = Call("POST", b"/x", b"", Headers(), "10.0.0.1")
        call.route = next(
            each
            for each in self.deployment.manager.api.routes
            if each.path == "/api/v1/user/del" and each.changes
        )
        call.identity = self.deployment.network.run(
            self.deployment.manager.access.identify(self.admin)
        )
        begun = self.deployment.network.run(api.before(call))
        self.deployment.network.run(api.after(begun, None))
        row = self.newest()
        self.assertEqual((row["status"], row["note"]), (None, "the client left before the answer"))


class RefusalTests(ApiCase):
    def test_nothing_happens_unnoticed(self) -> None:
        """When the log cannot be written, nothing is done: code 3. Reads go on."""
        self.deployment.add_user("alice", 3)
        store = self.deployment.manager.store
        self.deployment.network.run(
            store.write(lambda connection: connection.exec_driver_sql("DROP TABLE audit").close())
        )
        got = self.call("POST", "/api/v1/user/del", {"username": "alice"}, token=self.admin)
        self.assertEqual((got.status, got.json["code"]), (200, 3))
        self.assertEqual(self.login("alice")["code"], 3)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=self.admin).status, 200)
        users = self.call("POST", "/api/v6/user/List", {}, token=self.admin).data
        self.assertEqual([each["username"] for each in users], ["admin", "alice"])
        self.flushLoggedErrors()

    def test_effect_and_entry_together(self) -> None:
        """What fails in the database leaves no entry that says it was done."""
        log = self.deployment.manager.audit
        before = self.newest()["seq"]

        def broken(connection: Any) -> None:
            connection.exec_driver_sql("SELECT * FROM nowhere")

        work = log.with_effect(log.entry(CALL, username="x"), broken)
        with self.assertRaises(StoreFailed.__mro__[1]):
            self.deployment.network.run(work)
        self.assertEqual(self.newest()["seq"], before)
        self.flushLoggedErrors()


class QueryTests(ApiCase):
    def test_filters_and_pages(self) -> None:
        """By user, path and time; pages go on where the last one ended."""
        token = self.deployment.add_user("alice", 3)
        self.advance(10)
        self.call("POST", "/api/v1/user/revoke", {}, token=token)
        self.call("POST", "/api/v1/user/revoke", {}, token=self.admin)
        self.assertEqual(len(self.shown("?user=alice")), 2)
        self.assertEqual(len(self.shown("?user=alice&path=/api/v1/user/revoke")), 1)
        self.assertEqual(len(self.shown(f"?since={NOW + 10}")), 2)
        self.assertEqual(len(self.shown(f"?since={NOW + 10}&user=alice")), 1)
        self.assertEqual(len(self.shown(f"?until={NOW + 10}")), 3)
        whole = [each["seq"] for each in self.shown()]
        paged: list[int] = []
        following: int | None = 1 << 40
        while following is not None:
            query = f"{AUDIT}?page_size=2&before={following}"
            page = self.call("GET", query, token=self.admin).json
            paged += [each["seq"] for each in page["data"]]
            following = page["next"]
        self.assertEqual(paged, whole)
        self.assertEqual(page["head"]["seq"], max(whole) + 1)  # the outcome of the last call

    def test_one_spelling(self) -> None:
        """However a path is sent, its call is found under the name of the route."""
        for path in ("//api/v1/user/update", "/api/v1/user/upd%61te/", "/api/v1/user/update"):
            got = self.call("POST", path, {"username": "admin"}, token=self.admin)
            self.assertEqual(got.json["code"], 0, path)
        self.assertEqual(len(self.shown("?path=/api/v1/user/update")), 3)
        reader = self.deployment.add_user("reader", 5)
        for path in ("//api/v1/agent/getTask/a", "/api/v1/agent/getTask/%61"):
            self.assertEqual(self.call("GET", path, token=reader).status, 403)
        self.assertEqual(len(self.shown("?path=/api/v1/agent/getTask/a")), 2)

    def test_bounds(self) -> None:
        """What is out of bounds is code 5."""
        for query in ("before=0", "page_size=0", "page_size=5001", "since=-1", "since=x"):
            got = self.call("GET", f"{AUDIT}?{query}", token=self.admin)
            self.assertEqual((got.status, got.json["code"]), (400, 5), query)

    def test_old_entries_go(self) -> None:
        """After the retention they are removed, and the chain is whole still."""
        self.deployment.add_user("alice", 3)
        self.advance(DAY)
        for _ in range(7):
            self.advance(PAUSE_SECONDS)
        self.deployment.network.flush()
        self.admin = self.deployment.login()
        rows = self.shown()
        self.assertEqual([each["kind"] for each in rows], ["call", "checkpoint"])
        database = make_database(f"sqlite:///{self.deployment.folder / 'data' / 'manager.db'}")
        database.open()
        self.addCleanup(database.close)
        self.assertEqual(verify(database).count, 2)


class SyslogTests(SynchronousTestCase):
    def test_heads_go_out(self) -> None:
        """With the setting, what is appended shows in a syslog server within a second."""
        with (
            tempfile.TemporaryDirectory() as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
        ):
            server.bind(f"{folder}/log")
            deployment = Deployment(audit_syslog=f"unix://{folder}/log").start()
            self.addCleanup(deployment.end)
            deployment.network.clock.advance(SEND_SECONDS)
            self.assertIn(b"audit head 1:", server.recv(1000))
            token = deployment.login()
            deployment.stop()
            said = server.recv(1000).split()[-1].decode()
            deployment.start()
            head = deployment.call("GET", "/api/v1/audit", token=token).json["head"]
            self.assertEqual(said, f"{head['seq']}:{head['hash']}")


class Inner(msgspec.Struct):
    """Part of a body."""

    a: int = 0
    b: dict[str, Any] = {}


class Outer(msgspec.Struct):
    """A body of fields that are known."""

    name: str = ""
    one: Inner | None = None
    many: Annotated[list[Inner], msgspec.Meta(max_length=3)] | None = None
    free: Any = None


class Asked(msgspec.Struct):
    """A query."""

    page: int = 1
    token: str = ""


class Described:
    """Routes that calls to describe are for."""

    routes = Routes("/x")

    @routes.post("/any", query=Asked, body=Any, summary="anything")
    async def anything(self, call: Call) -> object:
        """Nothing."""

    @routes.post("/known", body=Outer, summary="what is known")
    async def known(self, call: Call) -> object:
        """Nothing."""

    @routes.post("/none", summary="no body")
    async def none(self, call: Call) -> object:
        """Nothing."""


class DescriptionTests(SynchronousTestCase):
    def call(self, body: bytes, query: bytes = b"", route: int = 0, **parts: str) -> Call:
        """A request."""
        call = Call("POST", b"/x", query, Headers(), "10.0.0.1", raw_body=body)
        call.parts, call.route = parts, Described.routes.declared[route]
        return call

    def test_what_is_ignored_is_left_out(self) -> None:
        """Fields that a route does not know are not in its entries, at any depth."""
        inner = {"a": 1, "b": {"kept": [1]}, "pad": "x"}
        body = {
            "name": "n",
            "one": inner,
            "many": [inner],
            "free": {"kept": 1},
            "pad": "x",
            "id": 7,
        }
        objects, text = described(self.call(msgspec.json.encode(body), b"page=2&pad=x", 1))
        kept = {"a": 1, "b": {"kept": [1]}}
        self.assertEqual(
            msgspec.json.decode(text),
            {"body": {"name": "n", "one": kept, "many": [kept], "free": {"kept": 1}}},
        )
        self.assertEqual(objects, ("n",))
        _, text = described(self.call(b"", b"page=2&pad=x"))
        self.assertEqual(msgspec.json.decode(text), {"query": {"page": "2"}})

    def test_what_cannot_be_used_is_left_out(self) -> None:
        """Of a body that its route refuses, or does not read, the size is kept."""
        for route, body in (
            (1, b'{"name":7}'),
            (1, b'{"many":[{},{},{},{}]}'),
            (2, b'{"name":"n"}'),
        ):
            _, text = described(self.call(body, route=route))
            self.assertEqual(msgspec.json.decode(text), {"bytes": len(body)})

    def test_secrets(self) -> None:
        """They are hidden at any depth, in the query too."""
        body = {
            "password": "s1",
            "old_password": ["s2"],
            "data": {"task": {"token": "s3", "data": "shown"}},
            "list": [{"OTP": "s4"}, {"clientSecret": {"a": "s5"}}],
        }
        _, text = described(self.call(msgspec.json.encode(body), b"token=s6&page=1"))
        for secret in ("s1", "s2", "s3", "s4", "s5", "s6"):
            self.assertNotIn(secret, text)
        self.assertIn("shown", text)

    def test_sizes(self) -> None:
        """Nothing makes an entry large; what is cut off is covered by a hash."""
        ids = [f"id-{number}" for number in range(10_000)]
        objects, text = described(self.call(msgspec.json.encode({"id_list": ids})))
        self.assertEqual(objects, tuple(ids[:OBJECTS]))
        self.assertLess(len(text), BODY_CHARACTERS + 200)
        self.assertIn("sha256", text)
        _, text = described(self.call(b"[" + b"1," * PARSED_BYTES + b"1]"))
        self.assertIn('"bytes":', text)
        deep = b'{"a":' * 300 + b"1" + b"}" * 300
        _, text = described(self.call(deep))
        self.assertIn("...", text)
        for garbage in (b"{", b"\xff", b"[" * 100_000):
            self.assertIn('"bytes"', described(self.call(garbage))[1])

    def test_parts(self) -> None:
        """What a path names is among the ids."""
        self.assertEqual(described(self.call(b"", name="file")), (("file",), ""))

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=200), st.binary(max_size=50))
    def test_any_bytes(self, body: bytes, query: bytes) -> None:
        """Whatever is sent, an entry can be made of it."""
        objects, text = described(self.call(body, query))
        for each in (*objects, text):
            self.assertEqual(clean(each, 10_000), each)

    @settings(max_examples=60, deadline=None)
    @given(
        st.recursive(
            st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["password", "a", "x_token"]), inner, max_size=3)
            ),
            max_leaves=20,
        )
    )
    def test_no_secret_remains(self, value: Any) -> None:
        """No value of a secret key is left, whatever is around it."""

        def check(shown: Any) -> None:
            if isinstance(shown, dict):
                for key, each in shown.items():
                    if key != "a":
                        assert each == "***"
                    check(each)
            elif isinstance(shown, list):
                for each in shown:
                    check(each)

        check(without_secrets(value))


def changed(**values: Any) -> Callable[[Any], Any]:
    """Somebody writes other values into the third entry."""
    return lambda connection: connection.execute(
        update(audit).where(audit.c.seq == 3).values(**values)
    )


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (changed(username="somebody"), "entry 3 was changed"),
        (changed(level=0), "entry 3 was changed"),
        (changed(status=200), "entry 3 was changed"),
        (changed(at_ms=1), "entry 3 was changed"),
        (changed(objects="[]"), "entry 3 was changed"),
        (changed(objects="x"), "entry 3 was changed"),
        (changed(body="x"), "entry 3 was changed"),
        (changed(hash="0" * 64), "entry 3 was changed"),
        (changed(prev="0" * 64), "entry 3 does not go on"),
        (lambda c: c.execute(delete(audit).where(audit.c.seq == 3)), "entry 3 is gone"),
        (lambda c: c.execute(delete(audit).where(audit.c.seq == 1)), "entry 1 is gone"),
        (lambda c: c.execute(delete(audit).where(audit.c.seq >= 4)), "entry 4 and all after"),
        (lambda c: c.execute(delete(audit)), "entry 5 and all before it are gone"),
        (lambda c: c.execute(update(audit_head).values(seq=4)), "entry 5 is another one"),
        (lambda c: c.execute(delete(audit_head)), "the note of the newest entry is gone"),
    ],
)
def test_changes_show(tmp_path: Path, tamper: Callable[[Any], Any], said: str) -> None:
    """Whatever is done to the table, the first entry at fault is named."""
    with database_at(tmp_path / "x") as database:
        chain(database, 5)
        assert verify(database).count == 5
        with database.writing() as connection:
            tamper(connection)
        with pytest.raises(AuditBroken, match=said):
            verify(database)


def test_a_head_noted_elsewhere(tmp_path: Path) -> None:
    """It shows a cut tail with a mended head, and a whole new chain."""
    with database_at(tmp_path / "x") as database:
        chain(database, 5)
        head = verify(database).head
        chain(database, 2, begin=5)
        noted = head.seq, head.hash
        assert verify(database, noted).count == 7
        with pytest.raises(AuditBroken, match="entry 9 is not there"):
            verify(database, (9, head.hash))
        with pytest.raises(AuditBroken, match="entry 5 is another one"):
            verify(database, (5, "0" * 64))
        with database.writing() as connection:
            connection.execute(delete(audit))
            connection.execute(update(audit_head).values(seq=0, hash="0" * 64))
        with pytest.raises(AuditBroken):
            verify(database, noted)
        chain(database, 6, begin=1)
        assert verify(database).count == 6
        with pytest.raises(AuditBroken, match="entry 5 is another one"):
            verify(database, noted)


def test_removal_keeps_the_chain(any_database: Database) -> None:
    """What is old goes in slices, each with a checkpoint; then all is verified from there."""
    chain(any_database, 10)
    checkpoint = evolve(entry(), username="system", at_ms=(NOW + 100) * 1000)
    counts = []
    for _ in range(4):
        with any_database.writing() as connection:
            counts.append(remove_before(connection, (NOW + 7) * 1000, 4, checkpoint))
    assert counts == [4, 3, 0, 0]
    verdict = verify(any_database)
    assert (verdict.first, verdict.count) == (8, 5)
    with pytest.raises(AuditBroken, match="older than what is kept"):
        verify(any_database, (3, "0" * 64))
    with any_database.writing() as connection:
        connection.execute(delete(audit).where(audit.c.seq == 8))
    with pytest.raises(AuditBroken, match="entry 8 is gone"):
        verify(any_database)


WRONG_CLOCKS = [  # on which days entries were made, and how many of them are old
    ([1, 2, 99, 3, 12, 13], 4),  # the one that was ahead is as old as what follows it
    ([99, 99, 99, 99, 99, 1, 12], 6),  # more than a slice of them
    ([1, 99, 98, 12], 1),  # what follows these is young
    ([99, 99, 99, 99, 99, 12], 0),
    ([99, 99, 99], 0),  # nobody knows yet
    ([12, 1, 2], 0),  # of a clock that was behind: nothing before it is old
    ([1, 99, 12, 1, 99, 2], 1),
    ([1, 2, 3], 3),
]


def test_removal_after_wrong_clocks(any_database: Database) -> None:
    """On day 20, with ten days kept: what is old goes, and what is young never does."""
    checkpoint = entry(at_ms=20 * DAY * 1000)
    for (days, gone), limit in product(WRONG_CLOCKS, (2, 100)):
        with any_database.writing() as connection:
            connection.execute(delete(audit))
            connection.execute(update(audit_head).values(seq=0, hash=NO_HASH))
            for number, day in enumerate(days):
                append(connection, entry(number, day * DAY * 1000))
        counts = [1]
        while counts[-1]:
            with any_database.writing() as connection:
                counts.append(remove_before(connection, 10 * DAY * 1000, limit, checkpoint))
            verdict = verify(any_database)
        assert sum(counts) == 1 + gone, (days, limit)
        assert max(counts) <= limit
        assert verdict.first == gone + 1


def test_nothing_yet(any_database: Database) -> None:
    """An empty log is whole, unless a head says that there was something."""
    assert verify(any_database).count == 0
    with any_database.writing() as connection:
        assert remove_before(connection, NOW * 1000, 10, entry()) == 0
    with pytest.raises(AuditBroken):
        verify(any_database, (1, "0" * 64))


def test_several_managers_make_one_chain(any_url: str) -> None:
    """Those who append at the same time append one after the other; rolled back is no gap."""
    databases = [make_database(any_url) for _ in range(3)]
    for database in databases:
        database.open()

    def write(database: Database, number: int) -> None:
        for each in range(10):
            try:
                with database.writing() as connection:
                    append(connection, entry(number * 100 + each))
                    if each % 3 == 0:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                continue

    threads = [
        threading.Thread(target=write, args=(database, number))
        for number, database in enumerate(databases)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        verdict = verify(databases[0])
        assert (verdict.first, verdict.count) == (1, 18)
        with databases[0].reading() as connection:
            assert head_of(connection) == verdict.head
            assert len(entries(connection, before=None, limit=50)) == 18
    finally:
        for database in databases:
            database.close()
