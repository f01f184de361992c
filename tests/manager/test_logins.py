"""What guards logins: waits, work, second factors, networks, old passwords."""

from typing import Any
from unittest.mock import patch

import msgspec
from prometheus_client import CollectorRegistry
from sqlalchemy import Connection, update
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from elkeid.manager.captcha import LIFE_SECONDS, Captcha, has_zero_bits
from elkeid.manager.logins import CHECKS_PER_ADDRESS, Credentials, LoginRefused, Logins
from elkeid.manager.passwords import Passwords
from elkeid.manager.store.logins import Failures, note_failure
from elkeid.manager.store.schema import login_failure
from elkeid.manager.store.store import StoreBusy
from elkeid.manager.store.users import ADDRESSES_PER_USER, know_address
from elkeid.manager.throttle import (
    CAPTCHA_TRIES,
    FIRST_WAIT,
    KNOWN_SECONDS,
    USER_TRIES,
    Free,
    Locked,
    Throttle,
    Work,
    counted,
)
from elkeid.manager.totp import STEP_SECONDS
from elkeid.metrics import ManagerMetrics
from elkeid.web.peers import address_of
from elkeid.web.routes import Call
from tests.web.memory import NOW

from .deployment import HASHER, PASSWORD, Deployment
from .login_proofs import code_at, solve
from .stores import HeldThreads

LOGIN = "/api/v1/user/login"
TRIES = 5
NEW = "a quite different phrase"


class Case(SynchronousTestCase):
    settings: dict[str, Any] = {}  # noqa: RUF012

    def setUp(self) -> None:
        cheaper = patch("elkeid.manager.captcha.BITS", 8)
        cheaper.start()
        self.addCleanup(cheaper.stop)
        self.deployment = Deployment(**self.settings).start()
        self.addCleanup(self.deployment.end)
        self.call = self.deployment.call

    def come_from(self, address: str) -> None:
        """Ask from there from now on."""
        self.deployment.network.peer = IPv4Address("TCP", address, 31337)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.deployment.network.clock.advance(seconds)

    def login(self, username: str, password: str = PASSWORD, **more: Any) -> Any:
        """The whole answer to a login."""
        got = self.call("POST", LOGIN, {"username": username, "password": password, **more})
        self.assertEqual(got.status, 200)
        return got.json

    def fail(self, username: str, times: int = 1) -> None:
        """Guess wrongly."""
        for _ in range(times):
            self.assertEqual(self.login(username, "wrong")["code"], 1)

    def counts(self, username: str, source: str, **counts: int) -> None:
        """Let there have been failures."""
        keys, store = counted(username, source), self.deployment.manager.store
        now = int(self.deployment.network.wall())

        def remember(connection: Connection) -> None:
            for name, count in counts.items():
                key = {getattr(keys, name): "" if name == "address" else keys.subject}
                note_failure(connection, key, now, now)
                connection.execute(
                    update(login_failure).where(login_failure.c.key.in_(key)).values(count=count)
                )

        self.deployment.network.run(store.write(remember))


class WaitTests(Case):
    def test_guessing_is_slowed_down(self) -> None:
        """After five failures an address waits a minute for that user, and for no other."""
        self.deployment.add_user("bob", 3)
        self.deployment.add_user("alice", 3)
        self.fail("alice", TRIES)
        refused = self.login("alice")
        self.assertEqual((refused["code"], refused["msg"]), (21, "user locked"))
        self.assertIn("try again in 60 s", refused["data"])
        self.assertEqual(self.login("bob")["code"], 0)
        self.advance(FIRST_WAIT)
        self.assertEqual(self.login("alice")["code"], 0)

    def test_waits_grow(self) -> None:
        """Each failure more doubles the wait, up to the longest; then all is forgotten."""
        self.deployment.add_user("alice", 3)
        waits = []
        self.fail("alice", TRIES - 1)
        for _ in range(5):
            self.fail("alice")
            waits.append(int(self.login("alice")["data"].split()[-2]))
            self.advance(waits[-1])
        self.assertEqual(waits, [60, 120, 240, 480, 900])
        self.fail("alice", TRIES)
        self.assertIn("in 60 s", self.login("alice")["data"])

    def test_waiting_costs_no_check(self) -> None:
        """A locked login does not look at the password: the right one gets the same answer."""
        self.deployment.add_user("alice", 3)
        self.fail("alice", TRIES)
        self.assertEqual(self.login("alice"), self.login("alice", "wrong"))

    def test_a_flood_that_waits(self) -> None:
        """Logins that are turned away fill no audit log: most are only counted."""
        self.fail("alice", TRIES)
        for _ in range(30):
            self.assertEqual(self.login("alice")["code"], 21)
        admin = self.deployment.login()
        rows = self.call("GET", "/api/v1/audit?user=alice", token=admin).data
        self.assertEqual(len(rows), TRIES + 10)
        text = self.call("GET", "/metrics").text.decode()
        self.assertIn('elkeid_manager_audit_total{outcome="left_out"} 20.0', text)

    def test_unknown_users_wait_alike(self) -> None:
        """Waits do not tell whether a user exists, whatever was typed as a name."""
        for name in ("nobody", "\0", "x" * 50_000, "é\u202e"):
            self.fail(name, TRIES)
            self.assertEqual(self.login(name)["code"], 21)

    def test_success_forgives(self) -> None:
        """Who remembers the password at the last try starts anew."""
        self.deployment.add_user("alice", 3)
        for _ in range(3):
            self.fail("alice", TRIES - 1)
            self.assertEqual(self.login("alice")["code"], 0)

    def test_another_manager_counts_on(self) -> None:
        """Failures are in the database: a restart, or another Manager, knows them."""
        self.deployment.add_user("alice", 3)
        self.fail("alice", TRIES)
        self.deployment.stop()
        self.deployment.start()
        self.assertEqual(self.login("alice")["code"], 21)

    def test_no_lockout_from_elsewhere(self) -> None:
        """A flood from other addresses never locks out the usual one; strangers wait."""
        self.come_from("10.0.0.1")
        self.deployment.add_user("alice", 3)
        self.counts("alice", "10.6.6.6", user=USER_TRIES)
        self.assertEqual(self.login("alice")["code"], 0)
        self.come_from("10.0.0.2")
        self.assertEqual(self.login("alice")["code"], 21)
        self.come_from("10.0.0.1")
        self.advance(KNOWN_SECONDS + 1)
        self.counts("alice", "10.6.6.6", user=USER_TRIES)
        self.assertEqual(self.login("alice")["code"], 21)

    def test_work_instead_of_a_lock(self) -> None:
        """An address with many failures must solve a challenge, once for each login."""
        self.deployment.add_user("alice", 3)
        self.counts("alice", "127.0.0.1", address=CAPTCHA_TRIES)
        refused = self.login("alice")
        self.assertEqual((refused["code"], refused["captcha"]["bits"]), (19, 18))
        answer = solve(refused["captcha"]["challenge"])
        self.assertEqual(self.login("bob", captcha=answer)["code"], 19)
        self.assertEqual(self.login("alice", captcha=answer)["code"], 0)
        self.assertEqual(self.login("alice", captcha=answer)["code"], 19)
        self.assertEqual(self.login("alice", captcha="1.2.3:4")["code"], 19)

    def test_failures_are_forgotten(self) -> None:
        """The table does not fill with what happened long ago."""
        self.fail("nobody", 2)
        self.deployment.network.advance(930, step=30)
        count = self.deployment.network.run(
            self.deployment.manager.store.read(
                lambda connection: connection.exec_driver_sql(
                    "SELECT count(*) FROM login_failure"
                ).scalar_one()
            )
        )
        self.assertEqual(count, 0)

    def test_a_flood_from_one_address(self) -> None:
        """Logins from there, of whatever names, leave room for those from elsewhere."""
        threads, manager = HeldThreads(), self.deployment.manager
        logins = Logins(
            manager.store,
            Passwords(threads, HASHER),
            manager.access,
            manager.audit,
            metrics=ManagerMetrics(
                CollectorRegistry(), lambda: 0, lambda: 0, dict, lambda: 0, bodies=dict
            ),
            wall=self.deployment.network.wall,
            settings=self.deployment.settings.manager,
            captcha_key=b"key",
        )

        def begin(name: str, address: str) -> Deferred[str]:
            call = Call("POST", b"/x", b"", Headers(), address)
            return Deferred.fromCoroutine(logins.login(call, Credentials(name, PASSWORD)))

        begun = [begin(f"user{number}", "10.0.0.9") for number in range(CHECKS_PER_ADDRESS)]
        self.failureResultOf(begin("another", "10.0.0.9"), StoreBusy)
        begun.append(begin("another", "10.0.0.8"))
        for each in begun:
            self.assertNoResult(each)
            threads.go()  # one at a time
            self.failureResultOf(each, LoginRefused)
        self.assertNoResult(begin("another", "10.0.0.9"))

    def test_metric(self) -> None:
        """What became of logins is counted."""
        self.deployment.add_user("alice", 3)
        self.fail("alice", TRIES)
        self.login("alice")
        text = self.call("GET", "/metrics").text.decode()
        self.assertIn('elkeid_manager_logins_total{outcome="refused"} 5.0', text)
        self.assertIn('elkeid_manager_logins_total{outcome="locked"} 1.0', text)
        self.assertIn('elkeid_manager_logins_total{outcome="done"} 1.0', text)


class ThrottleTests(SynchronousTestCase):
    rules = Throttle(TRIES, 900)
    keys = counted("alice", "10.0.0.1")

    def verdict(self, *, known: bool = False, under_way: int = 0, **counts: int) -> object:
        """Of a login with these failures a second ago."""
        failures = {
            getattr(self.keys, name): Failures(count, NOW - 1) for name, count in counts.items()
        }
        return self.rules.verdict(self.keys, failures, NOW, known=known, under_way=under_way)

    def test_verdicts(self) -> None:
        """A pair waits; addresses and users cost work first; known addresses do not care."""
        self.assertEqual(self.verdict(), Free())
        self.assertEqual(self.verdict(pair=TRIES - 1), Free())
        self.assertEqual(self.verdict(pair=TRIES), Locked(FIRST_WAIT - 1))
        self.assertEqual(self.verdict(pair=TRIES, known=True), Locked(FIRST_WAIT - 1))
        self.assertEqual(self.verdict(address=CAPTCHA_TRIES), Work())
        self.assertEqual(self.verdict(user=CAPTCHA_TRIES), Work())
        self.assertEqual(self.verdict(user=CAPTCHA_TRIES, known=True), Free())
        self.assertEqual(self.verdict(user=USER_TRIES), Locked(899))
        self.assertEqual(self.verdict(user=USER_TRIES, known=True), Free())

    def test_logins_at_once_count(self) -> None:
        """Many guesses at the same moment are no way around the count."""
        self.assertEqual(self.verdict(pair=3, under_way=1), Free())
        self.assertEqual(self.verdict(pair=3, under_way=2), Locked(1.0))
        self.assertEqual(self.verdict(under_way=TRIES), Locked(1.0))

    def test_a_clock_that_was_wrong(self) -> None:
        """Failures noted far ahead lock nobody out until then."""
        ahead = {self.keys.pair: Failures(TRIES, NOW + 86_400)}
        self.assertEqual(self.rules.verdict(self.keys, ahead, NOW, known=False), Free())

    def test_addresses(self) -> None:
        """Who has a whole IPv6 network gains nothing by it; mapped IPv4 is IPv4."""
        self.assertEqual(address_of("10.0.0.1"), "10.0.0.1")
        self.assertEqual(address_of("::ffff:10.0.0.1"), "10.0.0.1")
        self.assertEqual(address_of("2001:db8::1"), "2001:db8::/64")
        self.assertEqual(address_of("2001:db8::ffff:1"), "2001:db8::/64")
        self.assertEqual(address_of("/run/socket"), "/run/socket")

    def test_keys_differ(self) -> None:
        """No choice of names makes two logins share a count."""
        keys = {each for name in ("a", "a\0b", "") for each in counted(name, "b").all()}
        self.assertEqual(len(keys), 3 + 3 + 1)


@patch("elkeid.manager.captcha.BITS", 8)
class CaptchaTests(SynchronousTestCase):
    def test_answers(self) -> None:
        """An answer is for that user and address, in time, once; another Manager takes it."""
        now = [1000.0]
        captcha, other = (Captcha(b"key", lambda: now[0]) for _ in range(2))
        answer = solve(captcha.challenge("alice", "10.0.0.1"))
        self.assertFalse(captcha.is_solved(answer, "bob", "10.0.0.1"))
        self.assertFalse(captcha.is_solved(answer, "alice", "10.0.0.2"))
        wrong = next(
            text
            for number in range(1000)
            if not has_zero_bits(text := f"{answer.partition(':')[0]}:{number}")
        )
        self.assertFalse(captcha.is_solved(wrong, "alice", "10.0.0.1"))
        self.assertFalse(Captcha(b"k", lambda: now[0]).is_solved(answer, "alice", "10.0.0.1"))
        self.assertTrue(other.is_solved(answer, "alice", "10.0.0.1"))
        self.assertTrue(captcha.is_solved(answer, "alice", "10.0.0.1"))
        self.assertFalse(captcha.is_solved(answer, "alice", "10.0.0.1"))
        late = solve(captcha.challenge("alice", "10.0.0.1"))
        now[0] += LIFE_SECONDS + 1
        self.assertFalse(captcha.is_solved(late, "alice", "10.0.0.1"))

    def test_garbage(self) -> None:
        """Nothing that is no answer gets far."""
        captcha = Captcha(b"key", lambda: 1000.0)
        for answer in ("", ":", "a:b", "1.2.3:4", "é" * 9 + ":", "x" * 1000, ".:.", "\0:"):
            self.assertFalse(captcha.is_solved(answer, "alice", "10.0.0.1"), answer)


class SecondFactorTests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.token = self.deployment.add_user("alice", 3)

    def otp(self, name: str, body: Any) -> Any:
        """One of the routes."""
        return self.call("POST", f"/api/v6/user/otp/{name}", body, token=self.token).json

    def code(self, secret: str, steps: int = 0) -> str:
        """What the app shows."""
        return code_at(secret, int(self.deployment.network.wall()) // STEP_SECONDS + steps)

    def enrolled(self) -> tuple[str, list[str]]:
        """A second factor in use: secret and recovery codes."""
        secret = self.otp("enrol", {"password": PASSWORD})["data"]["secret"]
        codes = self.otp("confirm", {"otp": self.code(secret)})["data"]["recovery_codes"]
        self.advance(STEP_SECONDS)
        return secret, codes

    def test_life_of_a_factor(self) -> None:
        """Begun it changes nothing; confirmed it is asked for; disabled it is gone."""
        self.assertEqual(self.otp("status", {})["data"], {"otp_enable": False})
        begun = self.otp("enrol", {"password": PASSWORD})["data"]
        self.assertIn(f"secret={begun['secret']}", begun["uri"])
        self.assertEqual(self.login("alice")["code"], 0)
        self.assertEqual(self.otp("confirm", {"otp": "000000"})["code"], 10)
        other = self.deployment.login("alice", PASSWORD)
        confirmed = self.otp("confirm", {"otp": self.code(begun["secret"])})
        self.assertEqual(len(set(confirmed["data"]["recovery_codes"])), 10)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=other).status, 401)
        self.assertEqual(self.otp("status", {})["data"], {"otp_enable": True})
        refused = self.login("alice")
        self.assertEqual((refused["code"], refused["msg"]), (17, "otp required"))
        self.assertEqual(self.otp("enrol", {"password": PASSWORD})["code"], 10)
        self.assertEqual(self.otp("disable", {"password": "wrong"})["code"], 1)
        self.assertEqual(self.otp("disable", {"password": PASSWORD})["data"], "ok")
        self.assertEqual(self.login("alice")["code"], 0)

    def test_each_code_once(self) -> None:
        """A code that was seen over a shoulder opens nothing; nor do older ones."""
        secret, _ = self.enrolled()
        code, older = self.code(secret), self.code(secret, -1)
        self.assertEqual(self.login("alice", otp=code)["code"], 0)
        self.assertEqual(self.login("alice", otp=code)["code"], 17)
        self.assertEqual(self.login("alice", otp=older)["code"], 17)
        self.advance(STEP_SECONDS)
        self.assertEqual(self.login("alice", otp=self.code(secret))["code"], 0)

    def test_clocks_differ(self) -> None:
        """A phone may be half a minute off, and no more."""
        secret, _ = self.enrolled()
        self.assertEqual(self.login("alice", otp=self.code(secret, -2))["code"], 17)
        self.assertEqual(self.login("alice", otp=self.code(secret, 2))["code"], 17)
        self.assertEqual(self.login("alice", otp=self.code(secret, 1))["code"], 0)

    def test_recovery(self) -> None:
        """A recovery code stands for the app, once, however it is typed."""
        _, codes = self.enrolled()
        typed = "-".join(codes[0][at : at + 4] for at in range(0, 16, 4)).upper()
        self.assertEqual(self.login("alice", otp=typed)["code"], 0)
        self.assertEqual(self.login("alice", otp=codes[0])["code"], 17)
        self.assertEqual(self.login("alice", otp=codes[1])["code"], 0)

    def test_guessing_codes_is_slowed_down(self) -> None:
        """A wrong code counts as a failed login; a missing one does not."""
        secret, _ = self.enrolled()
        for _ in range(TRIES):
            self.assertEqual(self.login("alice")["code"], 17)
        for _ in range(TRIES):
            self.assertEqual(self.login("alice", otp="123456")["code"], 17)
        self.assertEqual(self.login("alice", otp=self.code(secret))["code"], 21)

    def test_secrets_are_not_stored_in_clear(self) -> None:
        """The database has no recovery code that could be used."""
        _, codes = self.enrolled()
        for path in (self.deployment.folder / "data").glob("manager.db*"):
            for code in codes:
                self.assertNotIn(code.encode(), path.read_bytes())


class NetworkTests(Case):
    def test_networks_of_a_user(self) -> None:
        """A user with networks gets in from there alone, with a token too."""
        self.deployment.add_user("alice", 3)
        admin = self.deployment.login()
        change = {"username": "alice", "source_ip_list": ["10.1.0.0/16", "10.2.0.1"]}
        got = self.call("POST", "/api/v1/user/update", change, token=admin)
        self.assertEqual(got.data, "ok")
        refused = self.login("alice")
        self.assertEqual((refused["code"], refused["msg"]), (20, "login ip not in whitelist"))
        self.come_from("10.1.2.3")
        token = self.login("alice")["data"]["token"]
        self.come_from("10.2.0.1")
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 200)
        self.come_from("10.2.0.2")
        got = self.call("GET", "/api/v1/user/info", token=token)
        self.assertEqual((got.status, got.json["code"]), (403, 20))

    def test_networks_that_are_none(self) -> None:
        """What is no network is refused; an empty list means anywhere."""
        self.deployment.add_user("alice", 3)
        admin = self.deployment.login()
        for networks in (["x"], ["10.0.0.1/8"], [""], [1], "10.0.0.0/8"):
            change = {"username": "alice", "source_ip_list": networks}
            got = self.call("POST", "/api/v1/user/update", change, token=admin)
            self.assertEqual((got.status, got.json["code"]), (400, 5), networks)
        change = {"username": "alice", "source_ip_list": []}
        self.assertEqual(self.call("POST", "/api/v1/user/update", change, token=admin).data, "ok")
        self.assertEqual(self.login("alice")["code"], 0)

    def test_known_addresses_are_bounded(self) -> None:
        """Who travels a lot keeps the newest addresses."""
        self.deployment.add_user("alice", 3)
        store = self.deployment.manager.store
        for number in range(ADDRESSES_PER_USER + 5):
            self.deployment.network.run(
                store.write(know_address, 2, f"10.0.0.{number}", NOW + number)
            )
        kept = self.deployment.network.run(
            store.read(
                lambda connection: connection.exec_driver_sql(
                    "SELECT count(*), min(seen_at) FROM known_address WHERE user_id = 2"
                ).one()
            )
        )
        self.assertEqual(tuple(kept), (ADDRESSES_PER_USER, NOW + 5))


class ProxyTests(Case):
    settings = {  # noqa: RUF012
        "proxy_networks": ["127.0.0.0/8", "10.0.0.0/8"],
        "metrics_networks": ["192.0.2.0/24"],
    }

    def address(self, *forwarded: str) -> str:
        """What the Manager takes a login to come from."""
        headers = Headers()
        for each in forwarded:
            headers.addRawHeader("x-forwarded-for", each)
        body = msgspec.json.encode({"username": "alice", "password": PASSWORD})
        port = self.deployment.settings.manager.port
        url = f"http://127.0.0.1:{port}{LOGIN}"
        got = self.deployment.network.run(self.deployment._exchange("POST", url, headers, body))
        token = got.data["token"]
        shown = self.call("GET", "/api/v1/user/sessions", token=token).data
        address: str = next(each["peer"] for each in shown if each["current"])
        return address

    def test_clients_behind_proxies(self) -> None:
        """The last address that is no proxy of ours counts; what stands before it is invented."""
        self.deployment.add_user("alice", 3)
        for forwarded, address in (
            ((), "127.0.0.1"),
            (("192.0.2.1",), "192.0.2.1"),
            (("6.6.6.6, 192.0.2.1",), "192.0.2.1"),
            (("6.6.6.6", "192.0.2.1, 10.0.0.1"), "192.0.2.1"),
            (("2001:db8::1",), "2001:db8::1"),
            (("192.0.2.1, unknown",), "127.0.0.1"),
            (("10.0.0.2, 10.0.0.1",), "10.0.0.2"),
            ((",".join(["10.0.0.1"] * 1000),), "10.0.0.1"),
        ):
            self.assertEqual(self.address(*forwarded), address, forwarded)
        self.come_from("192.0.2.9")
        self.assertEqual(self.address("6.6.6.6"), "192.0.2.9")

    def test_waits_are_of_clients(self) -> None:
        """Who guesses behind a proxy makes nobody else behind it wait."""
        self.deployment.add_user("alice", 3)
        self.counts("alice", "192.0.2.1", pair=TRIES)
        self.assertEqual(self.address("192.0.2.2"), "192.0.2.2")
        self.assertEqual(self.call("GET", "/metrics").status, 403)


class OldPasswordTests(Case):
    settings = {"password_seconds": 1000, "token_seconds": 86400}  # noqa: RUF012

    def test_old_password(self) -> None:
        """It still gets in, but only to be changed: code 18 until then."""
        token = self.deployment.add_user("alice", 3)
        self.advance(1000)
        refused = self.login("alice")
        self.assertEqual(refused["code"], 18)
        self.assertEqual(refused["msg"], "password has not been updated for a long time")
        for each in (token, refused["token"]):
            got = self.call("GET", "/api/v1/agent/getStatus", token=each)
            self.assertEqual((got.status, got.json["code"]), (403, 18))
            self.assertEqual(self.call("GET", "/api/v1/user/info", token=each).status, 200)
        change = {"username": "alice", "password": NEW}
        got = self.call("POST", "/api/v1/user/resetPassword", change, token=refused["token"])
        self.assertEqual(got.data, "ok")
        got = self.call("GET", "/api/v1/agent/getStatus", token=refused["token"])
        self.assertEqual(got.status, 200)
        self.assertEqual(self.login("alice", NEW)["code"], 0)


class PasswordHistoryTests(Case):
    settings = {"password_history": 2, "require_old_password": True}  # noqa: RUF012

    def change(self, token: str, password: str, **more: Any) -> Any:
        """Ask for another password."""
        body = {"username": "alice", "password": password, **more}
        return self.call("POST", "/api/v1/user/resetPassword", body, token=token).json

    def test_history_and_old_password(self) -> None:
        """The last two cannot come back; the old one is required, and guessing it is slow."""
        token = self.deployment.add_user("alice", 3)
        self.assertEqual(self.change(token, NEW)["code"], 5)
        self.assertEqual(self.change(token, NEW, old_password="wrong")["code"], 1)
        self.assertEqual(self.change(token, PASSWORD, old_password=PASSWORD)["code"], 5)
        self.assertEqual(self.change(token, NEW, old_password=PASSWORD)["data"], "ok")
        refused = self.change(token, PASSWORD, old_password=NEW)
        self.assertIn("must differ from the last 2 passwords", refused["data"])
        self.assertEqual(self.change(token, NEW + "!", old_password=NEW)["data"], "ok")
        self.assertEqual(self.change(token, PASSWORD, old_password=NEW + "!")["data"], "ok")
        for _ in range(TRIES):
            self.assertEqual(self.change(token, NEW, old_password="wrong")["code"], 1)
        self.assertEqual(self.change(token, NEW, old_password=PASSWORD)["code"], 21)


class TokenLifeTests(Case):
    settings = {"token_seconds": 600, "token_max_seconds": 3000}  # noqa: RUF012

    def test_a_token_ends_some_day(self) -> None:
        """Use keeps a token alive, but not for ever."""
        token = self.deployment.login()
        for _ in range(5):
            self.advance(599)
            self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 200)
        self.advance(5)
        self.assertEqual(self.call("GET", "/api/v1/user/info", token=token).status, 401)

    def test_sessions(self) -> None:
        """A user sees the own tokens, ends one or all others, and nobody else's."""
        one, two, three = (self.deployment.login() for _ in range(3))
        alice = self.deployment.add_user("alice", 3)
        shown = self.call("GET", "/api/v1/user/sessions", token=one).data
        self.assertEqual(len(shown), 3)
        self.assertEqual([each["current"] for each in shown].count(True), 1)
        self.assertEqual({each["peer"] for each in shown}, {"127.0.0.1"})
        other = next(each["id"] for each in shown if not each["current"])
        body = {"id": other}
        revoke = "/api/v1/user/revoke"
        self.assertEqual(self.call("POST", revoke, body, token=alice).data, {"count": 0})
        self.assertEqual(self.call("POST", revoke, body, token=one).data, {"count": 1})
        self.assertEqual(self.call("POST", revoke, {}, token=one).data, {"count": 1})
        live = [
            self.call("GET", "/api/v1/user/info", token=each).status
            for each in (one, two, three, alice)
        ]
        self.assertEqual(live, [200, 401, 401, 200])
