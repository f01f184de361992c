"""Two Managers on one database: what one decides holds for the other, at once."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from attrs import evolve

from elkeid.manager.auditcheck import verify
from elkeid.manager.service import ManagerRole
from elkeid.manager.store.backends import database_of
from elkeid.manager.throttle import CAPTCHA_TRIES
from elkeid.manager.totp import STEP_SECONDS
from tests.integration.postgres import needs_postgres

from .deployment import HASHER, PASSWORD, MarkedThreads
from .login_proofs import code_at, solve
from .stores import migrated_url
from .test_logins import LOGIN, Case


class TwoManagersTests(Case):
    """On SQLite, as a test can have it; see below for PostgreSQL."""

    def setUp(self) -> None:
        super().setUp()
        deployment, network = self.deployment, self.deployment.network
        self.first = deployment.settings
        manager = evolve(deployment.settings.manager, port=6711)
        self.second = evolve(deployment.settings, manager=manager)
        other = ManagerRole(
            self.second,
            deployment.keys,
            network.clock,
            wall=network.wall,
            monotonic=network.clock.seconds,
            threads=MarkedThreads(),
            discovery_agent=network.agent(),
            ac_agent=network.agent(),
            hasher=HASHER,
        )
        network.run(other.start())
        network.flush()
        self.addCleanup(lambda: network.run(other.stop()))
        self.admin = deployment.login()

    def at_second(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """A call to the other one."""
        with patch.object(self.deployment, "settings", self.second):
            return self.call(method, path, body, token=token)

    def test_a_use_just_before_the_end(self) -> None:
        """A token that was idle for long and used at one Manager lives on at the other."""
        info, life = "/api/v1/user/info", self.first.manager.token_seconds
        clock = self.deployment.network.clock
        for left in (1, 29, 45):
            token = self.deployment.login()
            clock.advance(life - left)
            self.assertEqual(self.call("GET", info, token=token).status, 200)
            self.assertEqual(self.at_second("GET", info, token=token).status, 200)
        idle = self.deployment.login()
        clock.advance(life - 1)
        self.assertEqual(self.call("GET", info, token=idle).status, 200)
        self.deployment.network.advance(40, step=5)
        self.assertEqual(self.at_second("GET", info, token=idle).status, 200)
        clock.advance(life)
        for ask in (self.call, self.at_second):
            self.assertEqual(ask("GET", info, token=idle).status, 401)

    def test_tokens(self) -> None:
        """A token of one is good at the other, until somebody ends it at either."""
        alice = self.deployment.add_user("alice", 3)
        info = "/api/v1/user/info"
        self.assertEqual(self.at_second("GET", info, token=alice).status, 200)
        self.assertEqual(self.call("GET", info, token=alice).status, 200)
        body = {"username": "alice", "level": 5}
        self.assertEqual(self.call("POST", "/api/v1/user/update", body, self.admin).data, "ok")
        self.assertEqual(self.at_second("GET", info, token=alice).status, 401)
        alice = self.deployment.login("alice", PASSWORD)
        self.at_second("POST", "/api/v1/user/del", {"username": "alice"}, self.admin)
        self.assertEqual(self.call("GET", info, token=alice).status, 401)
        self.at_second("GET", "/api/v1/user/logout", token=self.admin)
        self.assertEqual(self.call("GET", info, token=self.admin).status, 401)

    def test_waits(self) -> None:
        """Guesses at either are counted together."""
        self.deployment.add_user("alice", 3)
        right, wrong = ({"username": "alice", "password": each} for each in (PASSWORD, "wrong"))
        codes = [
            ask("POST", LOGIN, wrong).json["code"]
            for ask in (self.call, self.at_second, self.call, self.at_second, self.call)
        ]
        self.assertEqual(codes, [1] * 5)
        self.assertEqual(self.at_second("POST", LOGIN, right).json["code"], 21)

    def test_challenges(self) -> None:
        """One takes an answer to the other's challenge."""
        self.deployment.add_user("alice", 3)
        self.counts("alice", "127.0.0.1", address=CAPTCHA_TRIES)
        body = {"username": "alice", "password": PASSWORD}
        challenge = self.call("POST", LOGIN, body).json["captcha"]["challenge"]
        got = self.at_second("POST", LOGIN, body | {"captcha": solve(challenge)})
        self.assertEqual(got.json["code"], 0)

    def test_codes(self) -> None:
        """A code that one has taken is used up at the other."""
        alice = self.deployment.add_user("alice", 3)
        step = int(self.deployment.network.wall()) // STEP_SECONDS
        ask = "/api/v6/user/otp/"
        secret = self.call("POST", ask + "enrol", {"password": PASSWORD}, alice).data["secret"]
        self.at_second("POST", ask + "confirm", {"otp": code_at(secret, step)}, alice)
        body = {"username": "alice", "password": PASSWORD, "otp": code_at(secret, step + 1)}
        self.assertEqual(self.at_second("POST", LOGIN, body).json["code"], 0)
        self.assertEqual(self.call("POST", LOGIN, body).json["code"], 17)

    def test_one_log(self) -> None:
        """Both write one chain."""
        for number in range(6):
            ask = self.at_second if number % 2 else self.call
            ask("POST", "/api/v1/user/del", {"username": f"nobody{number}"}, self.admin)
        rows = self.call("GET", "/api/v1/audit", token=self.admin).data
        names = [each["objects"] for each in rows if each["path"].endswith("/del")]
        self.assertEqual(names, [[f"nobody{number}"] for number in range(5, -1, -1)])
        database = database_of(self.first)
        database.open()
        self.addCleanup(database.close)
        self.assertEqual(verify(database).head.seq, max(each["seq"] for each in rows) + 1)


@pytest.mark.integration
@needs_postgres
class TwoManagersOnPostgresTests(TwoManagersTests):
    """The same on PostgreSQL."""

    def setUp(self) -> None:
        url = migrated_url("postgresql", Path())
        self.settings = {"database": url.__enter__()}
        self.addCleanup(url.__exit__, None, None, None)
        super().setUp()
