"""What AgentCenters ask for and bring: shapes, signatures, refusals, and what is stored."""

from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager.drops import DropGuard
from elkeid.manager.hosts import adding, removing
from elkeid.manager.store import results, tags
from elkeid.web.client import Credentials, Reply
from elkeid.wire.signature import sign
from tests.web.memory import NOW

from .deployment import AK, SK, Deployment
from .stored_results import count_results, results_of

INFO = "/api/v1/agent/queryInfo"
RESULTS = "/api/v1/agent/updateSubTask"
CONFIG = "/api/v6/component/GetComponentInstances"
TOKEN = "/api/v1/inner/token"
CLUSTERS = "/api/v6/kube/inner/cluster/list"
DEFAULT = "/api/v1/agent/updateDefaultConfig"
DRIVER = {
    "name": "driver",
    "version": "1.0.0.16",
    "sha256": "ab" * 32,
    "download_url": ["http://host/driver.tar.gz"],
    "signature": "cd" * 32,
    "type": "tar.gz",
}


class _Case(SynchronousTestCase):
    settings: dict[str, Any] = {}  # noqa: RUF012

    def setUp(self) -> None:
        self.deployment = Deployment(**self.settings).start()
        self.addCleanup(self.deployment.end)
        self.store = self.deployment.manager.store
        self.run_ = self.deployment.network.run
        self.ac = self.deployment.network.client(Credentials(AK, SK))

    def raw(self, path: str, body: Any = None, client: Any = None) -> Reply:
        """One call as an AgentCenter makes it."""
        url = f"http://127.0.0.1:{self.deployment.settings.manager.port}{path}"
        client = client or self.ac
        reply: Reply = self.run_(client.get(url) if body is None else client.post(url, body))
        return reply

    def ask(self, path: str, body: Any = None, client: Any = None) -> dict[str, Any]:
        """The whole answer to one call."""
        reply = self.raw(path, body, client)
        assert reply.status == 200, reply
        answer: dict[str, Any] = msgspec.json.decode(reply.body)
        return answer

    def issue(self, *agent_ids: str) -> list[str]:
        """Tokens, as whoever creates a task gets them."""
        tokens: list[str] = self.run_(self.store.write(results.issue_tokens, agent_ids, NOW))
        return tokens

    def stored(self, token: str) -> list[Any]:
        """The stored results of a token."""
        found = self.run_(self.store.read(results_of, token))
        return [msgspec.json.decode(each) for each in found]

    def store_default(self, config: list[Any], **more: Any) -> dict[str, Any]:
        """Store the default config as an operator."""
        body = {"type": "agent_config", "config": config, **more}
        token = self.deployment.login()
        data: dict[str, Any] = self.deployment.call("POST", DEFAULT, body, token=token).data
        return data


class SignatureTests(_Case):
    def test_every_route_asks_for_a_signature(self) -> None:
        """Without one, with a foreign key and with a wrong secret: 401, code 1 and the reason."""
        routes = [(INFO, {"id_list": []}), (RESULTS, []), (CONFIG, {}), (TOKEN, {})]
        for path, body in [*routes, (CLUSTERS, None)]:
            for credentials, reason in (
                (None, "header missed"),
                (Credentials("nobody_at_all", SK), "User not exist"),
                (Credentials(AK, SK + "x"), "signature error"),
            ):
                client = self.deployment.network.client(credentials)
                reply = self.raw(path, body, client)
                answer = msgspec.json.decode(reply.body)
                self.assertEqual((reply.status, answer["code"]), (401, 1), path)
                self.assertIn(reason, answer["data"], path)

    def test_a_call_counts_once(self) -> None:
        """What was overheard cannot be played again, and a call without a nonce is none of ours."""
        network, port = self.deployment.network, self.deployment.settings.manager.port
        for query, statuses in (("?nonce=n1", (200, 401)), ("", (401,))):
            stamp = str(NOW)
            signature = sign("GET", CLUSTERS, query[1:], AK, SK, stamp)
            headers = {"AccessKey": AK, "TimeStamp": stamp, "Signature": signature}
            url = f"http://127.0.0.1:{port}{CLUSTERS}{query}"
            for status in statuses:
                reply = network.run(network.client().get(url, headers=headers))
                self.assertEqual(reply.status, status, reply.body)

    def test_user_tokens_do_not_open_them(self) -> None:
        """An operator's login is no AgentCenter."""
        got = self.deployment.call("POST", INFO, {"id_list": []}, token=self.deployment.login())
        self.assertEqual(got.status, 401)


class UnsignedTests(_Case):
    settings = {"accept_unsigned_inner": True, "inner_networks": ["127.0.0.1/32"]}  # noqa: RUF012

    def test_unsigned_from_the_networks(self) -> None:
        """Where the settings say so, a gateway that cannot sign is served; a bad signature never.

        The route that only our own gateways know stays closed.
        """
        nobody = self.deployment.network.client()
        self.assertEqual(self.ask(INFO, {"id_list": []}, nobody)["data"], {})
        self.assertEqual(self.ask(CLUSTERS, None, nobody)["data"], [])
        self.assertEqual(self.raw(TOKEN, {"token": "x"}, nobody).status, 401)
        wrong = self.deployment.network.client(Credentials(AK, SK + "x"))
        self.assertEqual(self.raw(INFO, {"id_list": []}, wrong).status, 401)


class NetworkTests(_Case):
    settings = {"inner_networks": ["10.1.0.0/16"]}  # noqa: RUF012

    def test_other_networks_are_refused(self) -> None:
        """A right signature from an address where no AgentCenter is: 403."""
        reply = self.raw(INFO, {"id_list": []})
        self.assertEqual(reply.status, 403)
        self.assertIn(b"inner_networks", reply.body)


class PlainPortTests(_Case):
    settings = {"listen": "0.0.0.0", "tls_port": 6702}  # noqa: RUF012

    def setUp(self) -> None:
        """With certificates: the API is on the TLS port."""
        self.deployment = Deployment(certificates=True, **self.settings).start()
        self.addCleanup(self.deployment.end)
        self.run_ = self.deployment.network.run
        self.ac = self.deployment.network.client(Credentials(AK, SK))

    def test_only_inner_routes_in_clear(self) -> None:
        """Beyond loopback the plain port serves AgentCenters, and users nothing."""
        self.assertEqual(self.ask(CLUSTERS)["data"], [])
        self.assertEqual(self.deployment.call("POST", DEFAULT, {}).status, 403)


class TagTests(_Case):
    def test_tags_of_known_agents(self) -> None:
        """Joined by commas, empty for an agent without; an agent never reported is left out."""
        ac = self.deployment.ac()
        for agent_id in ("a1", "a2"):
            ac.beat(agent_id)
        self.deployment.network.advance(3)
        for tag in ("web", "eu"):
            self.run_(self.store.write(tags.retag, ["a1", "nobody"], adding([tag])))
        rest = {"psm_name": "", "psm_path": "", "enhanced": "false"}
        data = self.ask(INFO, {"id_list": ["a1", "a2", "nobody", "a1"]})["data"]
        self.assertEqual(data, {"a1": {"tags": "eu,web", **rest}, "a2": {"tags": "", **rest}})
        token = self.deployment.login()
        self.assertEqual(self.deployment.agent(token, "a1")["tags"], ["eu", "web"])
        again = self.run_(self.store.write(tags.retag, ["a1"], adding(["web"])))
        gone = self.run_(self.store.write(tags.retag, ["a1", "a2"], removing(["web"])))
        self.assertEqual((again.changed, gone.changed), (0, 1))
        self.assertEqual(self.deployment.agent(token, "a1")["tags"], ["eu"])
        ac.beat("a1")
        self.deployment.network.advance(3)
        self.assertEqual(self.ask(INFO, {"id_list": ["a1"]})["data"]["a1"]["tags"], "eu")

    def test_malformed_queries(self) -> None:
        """A body of another shape is 400 with code 5 and the field's name."""
        for body in ({}, {"id_list": None}, {"id_list": [1]}, []):
            reply = self.raw(INFO, body)
            self.assertEqual((reply.status, msgspec.json.decode(reply.body)["code"]), (400, 5))


class ResultTests(_Case):
    def test_stored_once_by_token_and_content(self) -> None:
        """A batch that is sent again changes nothing; another content of the token is added."""
        (token,) = self.issue("a1")
        item = {"data_type": "5100", "token": token, "status": "succeed", "msg": ""}
        turned = dict(reversed(item.items()))
        for batch in ([item], [item], [turned, item], [item | {"msg": "more"}]):
            answer = self.ask(RESULTS, batch)
            self.assertEqual(answer, {"code": 0, "msg": "success", "data": None})
        self.assertEqual(self.stored(token), [item, item | {"msg": "more"}])
        counted = self.deployment.manager.metrics.results
        self.assertEqual(counted.labels("stored")._value.get(), 2)
        self.assertEqual(counted.labels("repeated")._value.get(), 3)

    def test_what_is_refused_is_told_and_spoils_nothing(self) -> None:
        """Unknown tokens, none at all, no objects: counted; the others of the batch are stored."""
        (token,) = self.issue("a1")
        good = {"token": token, "status": "failed"}
        bad = [{"token": "0" * 20}, {"token": "x" * 4000}, {"token": ""}, {}, {"token": 5}, 7, None]
        answer = self.ask(RESULTS, [*bad, good])
        expected = {"unknown_token": 2, "without_token": 3, "malformed": 2}
        self.assertEqual((answer["code"], answer["refused"]), (0, expected))
        self.assertEqual(self.stored(token), [good])
        self.assertEqual(self.run_(self.store.read(count_results)), 1)

    def test_one_token_is_bounded(self) -> None:
        """A host that answers without end fills no disk."""
        (token,) = self.issue("a1")
        self.patch(results, "RESULTS_PER_TOKEN", 3)
        first = [{"token": token, "n": n} for n in range(2)]
        self.assertNotIn("refused", self.ask(RESULTS, first))
        more = [{"token": token, "n": n} for n in range(5)]
        self.assertEqual(self.ask(RESULTS, more)["refused"], {"surplus": 2})
        self.assertEqual(len(self.stored(token)), 3)

    def test_no_array(self) -> None:
        """Anything but an array is 400."""
        for body in ({}, "x", 5):
            self.assertEqual(self.raw(RESULTS, body).status, 400)

    def test_survives_a_restart(self) -> None:
        """What was answered with code 0 is on the disk."""
        (token,) = self.issue("a1")
        self.ask(RESULTS, [{"token": token}])
        self.deployment.stop()
        self.deployment.start()
        self.store = self.deployment.manager.store
        self.assertEqual(self.stored(token), [{"token": token}])

    def test_database_trouble_is_no_success(self) -> None:
        """A database that refuses a write is code 3, so that the batch is sent again."""
        (token,) = self.issue("a1")
        self.run_(self.store.write(lambda c: c.exec_driver_sql("DROP TABLE task_result")))
        self.assertEqual(self.ask(RESULTS, [{"token": token}])["code"], 3)
        self.flushLoggedErrors()


class TokenTests(_Case):
    def test_known_or_not(self) -> None:
        """A token is known if this Manager made it; all look alike and none twice."""
        made = self.issue(*["a1"] * 200)
        self.assertEqual(len(set(made)), 200)
        for token in made[:3]:
            self.assertRegex(token, r"^[0-9a-v]{20}$")
            self.assertEqual(self.ask(TOKEN, {"token": token})["data"], {"known": True})
        for token in ("", "../x", made[0].upper(), "0" * 20, "y" * 100_000):
            self.assertEqual(self.ask(TOKEN, {"token": token})["data"], {"known": False})


class ConfigTests(_Case):
    def host(self, agent_id: str = "a1", **more: Any) -> dict[str, Any]:
        """A host's detail."""
        return {"agent_id": agent_id, "kernel_version": "5.10", "cpu": 0.5, "tags": [], **more}

    def test_none_stored_is_no_empty_list(self) -> None:
        """Without a stored config the answer is code 10: whoever asks must change nothing."""
        answer = self.ask(CONFIG, self.host())
        self.assertEqual((answer["code"], answer["msg"]), (10, "unknown error"))
        self.assertIsInstance(answer["data"], str)

    def test_the_stored_list(self) -> None:
        """What an operator stored comes back as gateways know it."""
        echo = self.store_default([DRIVER, {"name": "elkeid-agent", "version": "1.9.1.25"}])
        self.assertEqual((echo["type"], echo["version"]), ("agent_config", 0))
        data = self.ask(CONFIG, self.host())["data"]
        self.assertEqual(data[0], DRIVER)
        self.assertEqual(
            data[1],
            {
                "name": "elkeid-agent",
                "version": "1.9.1.25",
                "sha256": "",
                "download_url": [],
                "signature": "",
                "type": "",
            },
        )

    def test_empty_only_if_stored_so(self) -> None:
        """An empty list needs the operator's word, and then says so."""
        token = self.deployment.login()
        body = {"type": "agent_config", "config": []}
        refused = self.deployment.call("POST", DEFAULT, body, token=token)
        self.assertEqual((refused.status, refused.json["code"]), (400, 5))
        self.assertEqual(self.ask(CONFIG, self.host())["code"], 10)
        self.store_default([], allow_empty=True)
        answer = self.ask(CONFIG, self.host())
        self.assertEqual((answer["data"], answer["allow_empty"]), ([], True))

    def test_database_trouble_is_no_empty_list(self) -> None:
        """A database that cannot be read is code 3, never code 0."""
        self.run_(self.store.write(lambda c: c.exec_driver_sql("DROP TABLE stored_config")))
        self.assertEqual(self.ask(CONFIG, self.host())["code"], 3)
        self.flushLoggedErrors()

    def test_texts_must_be_texts(self) -> None:
        """A kernel that became a number, or a host without an id, is 400 with code 5."""
        self.store_default([DRIVER])
        for change in (
            {"kernel_version": 5.1},
            {"arch": None},
            {"platform_family": []},
            {"agent_id": ""},
            {"agent_id": 7},
        ):
            reply = self.raw(CONFIG, self.host() | change)
            self.assertEqual((reply.status, msgspec.json.decode(reply.body)["code"]), (400, 5))

    def test_bad_configs_are_not_stored(self) -> None:
        """Names that no agent takes, doubles, upper-case hashes: 400 with the field's name."""
        token = self.deployment.login()
        bad: list[list[Any]] = [
            [{"name": "../x"}],
            [{"name": ""}],
            [DRIVER, DRIVER],
            [DRIVER | {"sha256": "AB" * 32}],
            [{"version": "1"}],
        ]
        for config in bad:
            body = {"type": "agent_config", "config": config}
            self.assertEqual(self.deployment.call("POST", DEFAULT, body, token=token).status, 400)
        self.assertEqual(self.ask(CONFIG, self.host())["code"], 10)

    def test_levels(self) -> None:
        """Levels 0 to 2 store; 3, 6, 7 and 8 look as well; 4 and 5 do neither."""
        for level in range(1, 9):
            token = self.deployment.add_user(f"user{level}", level)
            shown = self.deployment.call("GET", "/api/v1/agent/getDefaultConfig", token=token)
            self.assertEqual(shown.status, 403 if level in {4, 5} else 200, level)
            body = {"type": "agent_config", "config": [DRIVER]}
            stored = self.deployment.call("POST", DEFAULT, body, token=token)
            self.assertEqual(stored.status, 200 if level <= 2 else 403, level)

    def test_a_list_that_disarms_the_fleet_is_held(self) -> None:
        """Five hosts may lose most plugins; the sixth keeps what it has until it is confirmed."""
        ac = self.deployment.ac()
        plugins = [{"name": name} for name in ("driver", "collector", "scanner")]
        for number in range(8):
            ac.beat(f"a{number}", plugins=plugins)
        self.deployment.network.advance(3)
        self.store_default([DRIVER])
        codes = [self.ask(CONFIG, self.host(f"a{n}"))["code"] for n in range(8)]
        self.assertEqual(codes, [0] * 5 + [10] * 3)
        self.assertEqual(self.ask(CONFIG, self.host("a0"))["code"], 0)
        shown = self.deployment.call(
            "GET", "/api/v1/agent/getDefaultConfig", token=self.deployment.login()
        ).json
        self.assertEqual((shown["stored"], shown["held_hosts"]), (True, 3))
        self.store_default([DRIVER], confirm_drops=True)
        self.assertEqual(self.ask(CONFIG, self.host("a7"))["code"], 0)


class DropGuardTests(SynchronousTestCase):
    def test_half_is_no_drop(self) -> None:
        """Only more than half of what is reported counts; unknown hosts have nothing to lose."""
        guard = DropGuard(lambda: 0.0, 0, 600)
        self.assertTrue(guard.allows("a", {"x", "y"}, {"x"}))
        self.assertTrue(guard.allows("a", set(), set()))
        self.assertFalse(guard.allows("a", {"x", "y", "z"}, {"x", "new"}))

    def test_the_window_moves_on(self) -> None:
        """After the time others may lose theirs."""
        now = 0.0
        guard = DropGuard(lambda: now, 1, 600)
        self.assertTrue(guard.allows("a", {"x"}, set()))
        self.assertFalse(guard.allows("b", {"x"}, set()))
        now = 600.0
        self.assertTrue(guard.allows("b", {"x"}, set()))
        self.assertEqual(guard.held, 0)
