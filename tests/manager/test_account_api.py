"""Users, as administrators make, change, list and delete them."""

import threading
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from elkeid.manager.logins import CHECKS_PER_ADDRESS
from elkeid.manager.passwords import WAITING_LIMIT, PasswordRefused, check_new_password
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.engine import Database
from elkeid.manager.store.users import (
    LastAdmin,
    add_user,
    change_user,
    delete_users,
    find_user,
    has_level,
)

from .deployment import PASSWORD
from .stores import HeldThreads
from .test_logins import NEW, Case

UPDATE, DELETE = "/api/v1/user/update", "/api/v1/user/del"
MAKE, DELETE_LIST, LIST = "/api/v6/user/new", "/api/v6/user/DelList", "/api/v6/user/List"


class AccountCase(Case):
    def setUp(self) -> None:
        super().setUp()
        self.admin = self.deployment.login()

    def ask(self, path: str, body: Any, token: str | None = None) -> Any:
        """A POST, by the admin unless told otherwise: the whole answer."""
        return self.call("POST", path, body, token=token or self.admin).json

    def status(self, token: str) -> int:
        """What a token is worth."""
        return self.call("GET", "/api/v1/user/info", token=token).status

    def names(self, body: Any, token: str | None = None, query: str = "") -> list[str]:
        """Of a list."""
        return [each["username"] for each in self.ask(LIST + query, body, token)["data"]]


class MakeTests(AccountCase):
    def test_make(self) -> None:
        """A new user gets in with the level that was given."""
        body = {"username": "alice", "password": PASSWORD, "level": 6, "avatar": "a"}
        self.assertEqual(self.ask(MAKE, body)["data"], "ok")
        info = self.call("GET", "/api/v1/user/info", token=self.deployment.login("alice", PASSWORD))
        self.assertEqual((info.data["level"], info.data["avatar"]), (6, "a"))

    def test_a_missing_level_is_no_admin(self) -> None:
        """Without a level, or with one that there is not, nobody is made."""
        for level in ({}, {"level": None}, {"level": -1}, {"level": 9}, {"level": "0"}):
            body: dict[str, Any] = {"username": "alice", "password": PASSWORD, **level}
            got = self.call("POST", MAKE, body, token=self.admin)
            self.assertEqual((got.status, got.json["code"]), (400, 5), level)
        self.assertEqual(self.names({}), ["admin"])

    def test_names(self) -> None:
        """A taken name is code 2, in whatever case; what can be no name is code 5."""
        for taken in ("admin", "Admin"):
            body = {"username": taken, "password": PASSWORD, "level": 3}
            self.assertEqual(self.ask(MAKE, body)["code"], 2)
        for name in ("", "a b", "a\nb", "x" * 65, "a\0", "é", "../x"):
            body = {"username": name, "password": PASSWORD, "level": 3}
            self.assertEqual(self.ask(MAKE, body)["code"], 5, name)

    def test_weak_passwords(self) -> None:
        """They are refused with the reason."""
        for password in ("short", "a" * 20, "alice.alice1", "Password1234", "123456789012"):
            refused = self.ask(MAKE, {"username": "alice", "password": password, "level": 3})
            self.assertEqual(refused["code"], 5)
            self.assertIn("password:", refused["data"])


class ChangeTests(AccountCase):
    def test_change(self) -> None:
        """What is given changes; a new level ends the user's tokens at once, an avatar does not."""
        token = self.deployment.add_user("alice", 3)
        self.assertEqual(self.ask(UPDATE, {"username": "alice", "avatar": "x"})["data"], "ok")
        self.assertEqual(self.status(token), 200)
        self.assertEqual(self.ask(UPDATE, {"username": "alice", "level": 3})["data"], "ok")
        self.assertEqual(self.status(token), 200)
        self.assertEqual(self.ask(UPDATE, {"username": "alice", "level": 1})["data"], "ok")
        self.assertEqual(self.status(token), 401)
        info = self.call("GET", "/api/v1/user/info", token=self.deployment.login("alice", PASSWORD))
        self.assertEqual((info.data["level"], info.data["avatar"]), (1, "x"))

    def test_a_missing_level_changes_none(self) -> None:
        """Upstream takes it for level 0, which made administrators by accident."""
        self.deployment.add_user("alice", 3)
        self.ask(UPDATE, {"username": "alice"})
        info = self.call("GET", "/api/v1/user/info", token=self.deployment.login("alice", PASSWORD))
        self.assertEqual(info.data["level"], 3)

    def test_nobody_raises_himself(self) -> None:
        """Who is no administrator changes no level, the own one least of all."""
        for level in range(1, 9):
            token = self.deployment.add_user(f"user{level}", level)
            body = {"username": f"user{level}", "level": 0}
            self.assertEqual(self.call("POST", UPDATE, body, token=token).status, 403)

    def test_the_last_administrator(self) -> None:
        """There is always one left: neither a change nor a deletion takes it away."""
        self.assertEqual(self.ask(UPDATE, {"username": "admin", "level": 3})["code"], 10)
        self.assertEqual(self.status(self.admin), 200)
        second = self.deployment.add_user("second", 0)
        self.assertEqual(self.ask(UPDATE, {"username": "admin", "level": 3})["data"], "ok")
        self.assertEqual(self.status(self.admin), 401)
        refused = self.ask(UPDATE, {"username": "second", "level": 1}, token=second)
        self.assertIn("last administrator", refused["data"])

    def test_what_stays_as_it_was(self) -> None:
        """A change to the same level and networks ends no token; one of the networks does."""
        token = self.deployment.add_user("alice", 3)
        networks = ["127.0.0.0/8", "10.0.0.0/8"]
        for asked in ([], networks):
            self.ask(UPDATE, {"username": "alice", "source_ip_list": asked})
            token = self.deployment.login("alice", PASSWORD)
            for same in (asked, asked[::-1]):
                body = {"username": "alice", "level": 3, "source_ip_list": same, "avatar": "b"}
                self.assertEqual(self.ask(UPDATE, body)["data"], "ok")
                self.assertEqual(self.status(token), 200)
        self.ask(UPDATE, {"username": "alice", "source_ip_list": networks[:1]})
        self.assertEqual(self.status(token), 401)

    def test_unknown(self) -> None:
        """Code 10, as consoles know it."""
        self.assertEqual(self.ask(UPDATE, {"username": "nobody", "level": 1})["code"], 10)


class PasswordFloodTests(AccountCase):
    def setUp(self) -> None:
        super().setUp()
        self.threads = HeldThreads()
        self.patch(self.deployment.manager.access._passwords, "_threads", self.threads)

    def begin(self, path: str, body: Any, token: str | None = None) -> Deferred[Any]:
        """A POST whose answer is not waited for."""
        url = f"http://127.0.0.1:{self.deployment.settings.manager.port}{path}"
        work = self.deployment._exchange(
            "POST", url, self.deployment.bearing(token), msgspec.json.encode(body)
        )
        asked = Deferred.fromCoroutine(work)
        self.deployment.network.flush()
        return asked

    def end(self) -> None:
        """Do all the work there is."""
        while self.threads.waiting:
            self.threads.go()
            self.deployment.network.flush()

    def test_many_changes_at_once(self) -> None:
        """A user has one change under way: more are code 7, and nobody's login is shut out."""
        body = {"username": "admin", "password": NEW}
        asked = [
            self.begin("/api/v1/user/resetPassword", body, self.admin) for _ in range(WAITING_LIMIT)
        ]
        refused = [self.successResultOf(each) for each in asked[1:]]
        self.assertEqual({(each.status, each.json["code"]) for each in refused}, {(503, 7)})
        self.assertEqual(len(self.threads.waiting), 1)
        first = self.deployment.first_password()
        login = self.begin("/api/v1/user/login", {"username": "admin", "password": first})
        self.end()
        self.assertEqual(self.successResultOf(login).json["code"], 0)
        self.assertEqual(self.successResultOf(asked[0]).json["code"], 0)
        again = self.begin("/api/v1/user/resetPassword", {**body, "password": NEW * 2}, self.admin)
        self.end()
        self.assertEqual(self.successResultOf(again).json["code"], 0)

    def test_many_new_users_at_once(self) -> None:
        """They are hashed among the logins from that address, of which only so many may wait."""
        asked = [
            self.begin(MAKE, {"username": f"u{n}", "password": PASSWORD, "level": 3}, self.admin)
            for n in range(CHECKS_PER_ADDRESS + 1)
        ]
        self.assertEqual(self.successResultOf(asked.pop()).json["code"], 7)
        self.come_from("10.0.0.8")
        login = self.begin("/api/v1/user/login", {"username": "nobody", "password": PASSWORD})
        self.end()
        self.assertEqual(self.successResultOf(login).json["code"], 1)
        for each in asked:
            self.assertEqual(self.successResultOf(each).json["code"], 0)


class DeleteTests(AccountCase):
    def test_delete(self) -> None:
        """The user's tokens end at once; who is not there is deleted already."""
        token = self.deployment.add_user("alice", 3)
        self.assertEqual(self.ask(DELETE, {"username": "alice"})["data"], "ok")
        self.assertEqual(self.status(token), 401)
        self.assertEqual(self.login("alice")["code"], 1)
        self.assertEqual(self.ask(DELETE, {"username": "alice"})["data"], "ok")

    def test_all_or_none(self) -> None:
        """A list with one who cannot be deleted deletes nobody."""
        for name in ("a", "b", "c"):
            self.deployment.add_user(name, 3)
        self.assertEqual(self.ask(DELETE_LIST, {"userNameList": ["a", "admin"]})["code"], 10)
        self.assertEqual(self.names({}), ["a", "admin", "b", "c"])
        self.assertEqual(self.ask(DELETE_LIST, {"userNameList": ["a", "b", "x"]})["data"], "ok")
        self.assertEqual(self.names({}), ["admin", "c"])
        got = self.call("POST", DELETE_LIST, {"userNameList": ["x"] * 1001}, token=self.admin)
        self.assertEqual(got.status, 400)

    def test_nobody_deletes_himself(self) -> None:
        """Not by accident, and not as the last administrator."""
        self.deployment.add_user("second", 0)
        self.assertEqual(self.ask(DELETE, {"username": "admin"})["code"], 10)


class ListTests(AccountCase):
    def setUp(self) -> None:
        super().setUp()
        self.tokens = [self.deployment.add_user(f"u{level}", level) for level in range(9)]

    def test_list(self) -> None:
        """Administrators see all, others themselves, with the console's fields."""
        shown = self.ask(LIST + "?page=2&page_size=2", {})
        self.assertEqual(shown["page_info"], {"total": 10, "page": 2, "page_size": 2})
        row = {"level": 1, "source_ip_list": [], "ip_limit": False, "otp_enable": False}
        self.assertEqual(shown["data"][0], {"username": "u1", **row})
        for level in range(1, 9):
            self.assertEqual(self.names({}, self.tokens[level]), [f"u{level}"])
        self.assertEqual(len(self.names(b"null")), 10)
        self.assertEqual(self.names({}, query="?page=9"), [])

    def test_search(self) -> None:
        """By a bounded expression on the name, and by the console's roles."""
        self.assertEqual(self.names({"username": "^u[12]$"}), ["u1", "u2"])
        self.assertEqual(self.names({"role": ["advancedUser", "alarmOM"]}), ["u1", "u2", "u6"])
        self.assertEqual(self.names({"role": ["admin"], "username": "u"}), ["u0"])
        self.assertEqual(len(self.names({"role": []})), 10)
        self.assertEqual(self.names({"username": "admin"}, self.tokens[3]), [])
        for body in ({"username": "("}, {"username": "x" * 600}, {"role": ["boss"]}, {"role": "x"}):
            got = self.call("POST", LIST, body, token=self.admin)
            self.assertEqual((got.status, got.json["code"]), (400, 5), body)

    def test_check_user(self) -> None:
        """The own password can be checked, as slowly as at the login; nobody else's."""
        check = "/api/v1/user/checkUser"
        token = self.tokens[3]
        body = {"username": "u3", "password": PASSWORD}
        self.assertEqual(self.ask(check, body, token)["data"], {"if_check": True})
        for _ in range(5):
            answer = self.ask(check, body | {"password": NEW}, token)
            self.assertEqual(answer["data"], {"if_check": False})
        self.assertEqual(self.ask(check, body, token)["code"], 21)
        self.assertEqual(self.ask(check, body, self.admin)["code"], 10)


@pytest.mark.parametrize(
    "password",
    [
        "Passw0rd1234",
        "qwertyuiop[]",
        "Welcome2024!",
        "elkeid-admin-1",
        "1212121212121",
        "Bob.bob.bob1",
    ],
)
def test_common_passwords(password: str) -> None:
    """What is tried first is refused, however it is dressed up."""
    with pytest.raises(PasswordRefused):
        check_new_password("bob.bob", password)


@pytest.mark.parametrize(
    "password",
    [
        "correct horse battery",
        "9f3a-77c1-02be-5d",
        "wir fahren nach Ulm",
        "日本語のパスワードです、ね",
    ],
)
def test_other_passwords(password: str) -> None:
    """Words of one's own, random ones and any script are fine."""
    check_new_password("bob", password)


@pytest.mark.parametrize("kind", ["change", "delete"])
def test_two_managers_keep_an_administrator(any_url: str, kind: str) -> None:
    """Two that take the last two administrators at once leave one."""
    databases = [make_database(any_url) for _ in range(2)]
    for database in databases:
        database.open()
    outcomes: list[str] = []
    try:
        with databases[0].writing() as connection:
            for name in ("a", "b"):
                add_user(connection, name, 0, "hash", 0)

        def take(database: Any, name: str) -> None:
            try:
                with database.writing() as connection:
                    if kind == "delete":
                        delete_users(connection, [name])
                    else:
                        change_user(connection, name, 1, level=3)
                outcomes.append("done")
            except LastAdmin:
                outcomes.append("refused")

        threads = [
            threading.Thread(target=take, args=pair)
            for pair in zip(databases, ("a", "b"), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["done", "refused"]
        with databases[0].reading() as connection:
            assert has_level(connection, 0)
    finally:
        for database in databases:
            database.close()


def test_names_that_no_database_takes(any_database: Database) -> None:
    """They are nobody's, and no error."""
    with any_database.writing() as connection:
        add_user(connection, "alice", 0, "hash", 0)
        assert find_user(connection, "a\0") is None
        assert delete_users(connection, ["a\0", "\0"]) == 0
        assert not change_user(connection, "\0", 1, level=3)
