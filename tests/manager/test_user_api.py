"""Users at the Manager's door: logins, tokens, levels, passwords."""

import stat
from typing import Any
from unittest.mock import patch

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager import access
from elkeid.manager.access import FLUSH_SECONDS
from elkeid.manager.api import ENVELOPE, TokenCheck
from elkeid.manager.roles import LEVELS
from elkeid.web.api import Api
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.web.site import FaceSite

from .deployment import PASSWORD, Deployment

LOGIN = "/api/v1/user/login"
TOKEN_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/api/v1/user/info", None),
    ("GET", "/api/v1/agent/getStatus", None),
    ("GET", "/api/v1/agent/getStatus/some-id", None),
    ("POST", "/api/v1/agent/getStatus/filter", {}),
    ("POST", "/api/v1/user/resetPassword", {"username": "x", "password": "y"}),
    ("GET", "/api/v1/user/logout", None),
]
"""Open to every level."""

OTHER_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/api/v1/agent/getDefaultConfig", None),
    ("POST", "/api/v1/agent/updateDefaultConfig", {}),
    ("GET", "/api/v6/shared/Download/some-name", None),
]
"""Tested with their subjects."""


class _Case(SynchronousTestCase):
    settings: dict[str, Any] = {}  # noqa: RUF012

    def setUp(self) -> None:
        self.deployment = Deployment(**self.settings).start()
        self.addCleanup(self.deployment.end)
        self.call = self.deployment.call


class LoginTests(_Case):
    def test_first_start_makes_an_admin(self) -> None:
        """The first start leaves a random password in a file that only its owner reads."""
        path = self.deployment.folder / "keys" / "admin-password"
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertGreaterEqual(len(self.deployment.first_password()), 24)
        info = self.call("GET", "/api/v1/user/info", token=self.deployment.login()).data
        self.assertEqual((info["username"], info["level"]), ("admin", 0))

    def test_passwords_and_tokens_never_reach_the_log(self) -> None:
        """What is logged of a first start and a login gives nobody a way in."""
        events: list[str] = []
        observer = lambda event: events.append(repr(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        other = Deployment().start()
        self.addCleanup(other.end)
        token = other.login()
        log = "".join(events)
        self.assertIn("admin-password", log)
        self.assertNotIn(other.first_password(), log)
        self.assertNotIn(token, log)

    def test_second_start_changes_nothing(self) -> None:
        """The admin of the first start is the one of the second."""
        password = self.deployment.first_password()
        self.deployment.stop()
        self.deployment.start()
        self.assertEqual(self.deployment.first_password(), password)
        self.deployment.login("admin", password)

    def test_start_that_was_cut_off(self) -> None:
        """A password file left by a start that made no user yet is replaced."""
        other = Deployment()
        self.addCleanup(other.end)
        (other.folder / "keys" / "admin-password").write_text("stale\n")
        other.start()
        self.assertNotEqual(other.first_password(), "stale")
        other.login()

    def test_content_type_does_not_matter(self) -> None:
        """curl's --data-raw says it sends a form; the body is JSON all the same."""
        body = {"username": "admin", "password": self.deployment.first_password()}
        for content_type in ("application/json", "application/x-www-form-urlencoded", "x/y", None):
            got = self.call("POST", LOGIN, body, content_type=content_type)
            self.assertEqual(list(got.data), ["token"], content_type)
            self.assertEqual(got.headers["content-type"], "application/json; charset=utf-8")

    def test_tokens_differ(self) -> None:
        """Each login has a token of its own, which nobody can guess."""
        tokens = {self.deployment.login() for _ in range(5)}
        self.assertEqual(len(tokens), 5)
        self.assertTrue(all(len(each) >= 43 for each in tokens))

    def test_tokens_and_passwords_are_not_stored_in_clear(self) -> None:
        """Whoever reads the database gets no way in."""
        token, password = self.deployment.login(), self.deployment.first_password()
        for path in (self.deployment.folder / "data").glob("manager.db*"):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path)
            content = path.read_bytes()
            self.assertNotIn(token.encode(), content)
            self.assertNotIn(password.encode(), content)

    def test_wrong_name_and_wrong_password_look_alike(self) -> None:
        """A refused login does not tell whether the user exists."""
        bodies = [
            {"username": "admin", "password": "wrong"},
            {"username": "nobody", "password": "wrong"},
            {"username": "Admin", "password": self.deployment.first_password()},
            {"username": "", "password": ""},
            {"username": "admin", "password": "x" * 60_000},
        ]
        for body in bodies:
            got = self.call("POST", LOGIN, body)
            self.assertEqual(got.status, 200)
            self.assertEqual(
                got.json, {"code": 1, "msg": "auth failed", "data": "verify password failed"}
            )

    def test_bodies_that_are_no_login(self) -> None:
        """Anything but the two texts is refused with code 5, as JSON."""
        for body in (b"", b"{", b"[]", b"null", b"{}", b'{"username":"admin"}', b"\xff"):
            got = self.call("POST", LOGIN, body)
            self.assertEqual((got.status, got.json["code"]), (400, 5), body)
            self.assertEqual(got.headers["content-type"], "application/json; charset=utf-8")
        got = self.call("POST", LOGIN, {"username": "a", "password": "x" * 100_000})
        self.assertEqual((got.status, got.json["code"]), (413, 5))


class TokenTests(_Case):
    settings = {"token_seconds": 600}  # noqa: RUF012

    def test_without_a_living_token(self) -> None:
        """Every route but login answers 401 in JSON to a missing, unknown or absurd token."""
        for method, path, body in [*TOKEN_ROUTES, *OTHER_ROUTES]:
            for token in (None, "", "seesion-x-y", "x" * 300, "é"):
                got = self.call(method, path, body, token=token)
                self.assertEqual((got.status, got.json["code"]), (401, 1), (path, token))
                self.assertNotIn("user", got.headers)

    def test_info(self) -> None:
        """The caller sees the account, never the hash."""
        got = self.call("GET", "/api/v1/user/info", token=self.deployment.add_user("al.ice@x", 8))
        self.assertEqual(got.headers["user"], "al.ice@x")
        self.assertEqual(
            got.data,
            {
                "username": "al.ice@x",
                "password": "***",
                "salt": "***",
                "avatar": "",
                "level": 8,
                "config": None,
                "xml": False,
                "password_update_time": 1_700_000_000,
            },
        )

    def test_logout(self) -> None:
        """A token ends at logout; others of the same user live on."""
        one, other = self.deployment.login(), self.deployment.login()
        self.assertIsNone(self.call("GET", "/api/v1/user/logout", token=one).data)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=one).status, 401)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=other).status, 200)

    def test_token_lives_while_it_is_used(self) -> None:
        """Each use gives the token its whole life again; without one it ends."""
        token = self.deployment.login()
        for _ in range(5):
            self.deployment.network.clock.advance(599)
            self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 200)
        self.deployment.network.clock.advance(600)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 401)

    def test_use_survives_a_restart(self) -> None:
        """A stop keeps when tokens were used last; so does a crash, but for half a minute."""
        token = self.deployment.login()
        self.deployment.network.clock.advance(500)
        self.call("GET", "/api/v1/user/info", token=token)
        self.deployment.stop()
        self.deployment.network.clock.advance(500)
        self.deployment.start()
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 200)
        self.deployment.network.clock.advance(FLUSH_SECONDS)
        self.deployment.network.clock.advance(570)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 401)

    def test_use_survives_a_bug(self) -> None:
        """What could not be written back is written the next time, whatever went wrong."""
        token = self.deployment.login()
        self.deployment.network.clock.advance(500)
        self.call("GET", "/api/v1/user/info", token=token)

        def broken(*_: object) -> None:
            raise ValueError("bug")

        with patch.object(access, "slide_tokens", broken):
            self.deployment.network.clock.advance(FLUSH_SECONDS)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.deployment.network.clock.advance(569)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 200)

    def test_expired_tokens_are_forgotten(self) -> None:
        """The database does not fill with tokens nobody uses."""
        self.deployment.login()
        self.deployment.network.advance(760, step=30)
        count = self.deployment.network.run(
            self.deployment.manager.store.read(
                lambda connection: connection.exec_driver_sql(
                    "SELECT count(*) FROM token"
                ).scalar_one()
            )
        )
        self.assertEqual(count, 0)


class LevelTests(_Case):
    def test_every_level_sees_agents_and_itself(self) -> None:
        """The routes of this release are open to users of all levels, and name the caller."""
        for level in sorted(LEVELS):
            token = self.deployment.add_user(f"user{level}", level)
            for method, path, body in TOKEN_ROUTES:
                got = self.call(method, path, body, token=token)
                self.assertNotIn(got.status, (401, 403), (level, path))
                self.assertEqual(got.headers["user"], f"user{level}")

    def test_a_route_names_its_levels_or_serves_nobody(self) -> None:
        """A route that forgets to say who may call it is closed, to the admin too."""

        class Group:
            routes = Routes(auth=AuthKind.TOKEN)

            @routes.get("/forgotten", summary="")
            async def forgotten(self, call: Call) -> object:
                return None

            @routes.get("/some", summary="", levels=frozenset({2}))
            async def some(self, call: Call) -> object:
                return None

        check = TokenCheck(self.deployment.manager.access, self.deployment.manager.audit)
        api = Api(ENVELOPE, [Group()], {AuthKind.TOKEN: check})
        admin, other = self.deployment.login(), self.deployment.add_user("two", 2)
        port = self.deployment.settings.manager.port
        self.deployment.network.ports[port] = FaceSite(api, self.deployment.network.clock)
        for path, token, status in [
            ("/forgotten", admin, 403),
            ("/forgotten", other, 403),
            ("/some", admin, 403),
            ("/some", other, 200),
        ]:
            got = self.call("GET", path, token=token)
            self.assertEqual(got.status, status, path)
            self.assertEqual(got.json["code"], 0 if status == 200 else 1)
            self.assertIn("user", got.headers)


class PasswordTests(_Case):
    def change(self, token: str, username: str, password: str) -> dict[str, Any]:
        """Ask for another password."""
        body = {"username": username, "password": password}
        got: dict[str, Any] = self.call(
            "POST", "/api/v1/user/resetPassword", body, token=token
        ).json
        return got

    def test_change(self) -> None:
        """The old password and other sessions end, this one goes on, the file is gone."""
        first = self.deployment.first_password()
        token, other = self.deployment.login(), self.deployment.login()
        self.assertEqual(self.change(token, "admin", PASSWORD)["data"], "ok")
        self.assertFalse((self.deployment.folder / "keys" / "admin-password").exists())
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 200)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=other).status, 401)
        self.assertEqual(
            self.call("POST", LOGIN, {"username": "admin", "password": first}).json["code"], 1
        )
        self.deployment.login("admin", PASSWORD)
        self.assertEqual(self.change(token, "admin", PASSWORD + "!")["data"], "ok")

    def test_other_users_change_leaves_the_file(self) -> None:
        """Only the admin's own change removes the first password."""
        token = self.deployment.add_user("alice", 3)
        self.assertEqual(self.change(token, "alice", PASSWORD + "!")["code"], 0)
        self.deployment.login()

    def test_only_the_own_password(self) -> None:
        """Nobody sets another user's password here, not even the admin."""
        self.deployment.add_user("alice", 3)
        refused = self.change(self.deployment.login(), "alice", PASSWORD)
        self.assertEqual((refused["code"], refused["data"]), (10, "permission denied"))

    def test_weak_passwords(self) -> None:
        """Short, endless and obvious passwords are refused with the reason."""
        token = self.deployment.add_user("alice.in.wonderland", 3)
        for password in ("", "short", "x" * 11, "x" * 1025, "Alice.in.Wonderland"):
            refused = self.change(token, "alice.in.wonderland", password)
            self.assertEqual(refused["code"], 5)
            self.assertIn("password:", refused["data"])


class NetworkTests(_Case):
    settings = {"listen": "0.0.0.0", "plain_http": True}  # noqa: RUF012

    def test_plain_where_allowed(self) -> None:
        """A site that chose plain HTTP gets it."""
        self.assertEqual(self.call("GET", "/api/v1/user/info").status, 401)


class PlainPortTests(SynchronousTestCase):
    def test_plain_beyond_loopback_serves_no_user(self) -> None:
        """Beyond loopback no password may travel in clear: the answer says where to go."""
        deployment = Deployment(certificates=True, listen="0.0.0.0", tls_port=6702).start()
        self.addCleanup(deployment.end)
        self.assertIn(6702, deployment.network.ports)
        self.assertEqual(deployment.call("GET", "/ping").status, 200)
        self.assertEqual(deployment.call("GET", "/metrics").status, 200)
        for method, path, body in [("POST", LOGIN, {}), *TOKEN_ROUTES, *OTHER_ROUTES]:
            got = deployment.call(method, path, body, token="x")
            self.assertEqual((got.status, got.json["code"]), (403, 1))
            self.assertIn("port 6702", got.json["data"])
