"""Polling AgentCenters: freshness, failures, and what survives them."""

from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager import acpoll
from elkeid.manager.agents import REPORTS_PER_WRITE
from elkeid.web.answers import Answer
from tests.web.memory import NOW

from .deployment import Deployment, ScriptedAc
from .stores import HeldThreads


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)
        self.network = self.deployment.network
        self.token = self.deployment.login()

    def known(self) -> dict[str, dict[str, Any]]:
        """Agent id -> document."""
        items = self.deployment.status(self.token)["items"]
        return {item["agent_id"]: item for item in items}

    def reasons(self) -> list[str]:
        """What ``/ready`` complains of."""
        found: list[str] = self.deployment.call("GET", "/ready").json.get("reasons", [])
        return found

    def problems(self) -> list[str]:
        """Why AgentCenters cannot be polled; ``/ready`` says how many they are, but not where."""
        states = self.deployment.manager.polls.states()
        found = [f"{at}: {each.problem}" for at, each in states.items() if each.problem is not None]
        told = [f"{len(found)} of {len(states)} AgentCenters cannot be polled"] if found else []
        self.assertEqual([each.split(",")[0] for each in self.reasons()], told)
        return found


class FreshnessTests(_Case):
    def test_new_agent_within_5_seconds(self) -> None:
        """An agent that beats is in the list within 5 s, and so is what it says next."""
        ac = self.deployment.ac()
        ac.beat("a", cpu=1)
        self.network.advance(5)
        self.assertEqual(self.known()["a"]["cpu"], 1)
        ac.beat("a", cpu=2)
        self.network.advance(5)
        self.assertEqual(self.known()["a"]["cpu"], 2)

    def test_only_changes_are_fetched(self) -> None:
        """An AC that gives cursors is asked only for what is new since the last."""
        ac = self.deployment.ac()
        self.network.advance(10)
        self.assertEqual(ac.asked[0], "")
        self.assertEqual(set(ac.asked[1:]), {"1-0-0"})

    def test_ac_without_cursors(self) -> None:
        """An upstream AC is asked for everything, at upstream's pace."""
        ac = self.deployment.ac(cursors=False)
        ac.beat("a")
        self.network.advance(170)
        self.assertEqual(ac.asked, [""])
        self.network.advance(15)
        self.assertEqual(ac.asked, ["", ""])
        self.assertTrue(self.known()["a"]["connected"])
        ac.lose("a")
        self.network.advance(185)
        self.assertFalse(self.known()["a"]["connected"])

    def test_connected_and_gone(self) -> None:
        """An agent whose stream ended stays with its last values, not connected."""
        ac = self.deployment.ac()
        ac.beat("a", cpu=1)
        self.network.advance(5)
        ac.lose("a")
        self.network.advance(5)
        found = self.known()["a"]
        self.assertEqual((found["connected"], found["cpu"]), (False, 1))
        ac.beat("a")
        self.network.advance(5)
        self.assertTrue(self.known()["a"]["connected"])

    def test_agents_without_heartbeat_are_skipped(self) -> None:
        """A stream that has not said anything is no agent yet."""
        ac = self.deployment.ac()
        ac.hold("quiet", {"agent_info": {}, "plugins_info": []})
        ac.beat("a")
        self.network.advance(5)
        self.assertEqual(list(self.known()), ["a"])

    def test_fields_keep_their_last_value(self) -> None:
        """What a heartbeat leaves out keeps its value; plugins are replaced as a whole."""
        ac = self.deployment.ac()
        ac.beat("a", cpu=1, rss=5, plugins=[{"name": "x"}, {"name": "y"}])
        self.network.advance(5)
        ac.beat("a", cpu=2, plugins=[{"name": "y"}])
        self.network.advance(5)
        found = self.known()["a"]
        self.assertEqual((found["cpu"], found["rss"], found["plugins"]), (2, 5, [{"name": "y"}]))
        self.assertEqual(found["first_heartbeat_time"] + 5, found["last_heartbeat_time"])

    def test_large_fleet(self) -> None:
        """A report larger than a transaction arrives whole."""
        ac = self.deployment.ac()
        count = REPORTS_PER_WRITE * 2 + 1
        for number in range(count):
            ac.beat(f"a-{number}")
        self.network.advance(5)
        self.assertEqual(self.deployment.status(self.token)["total"], count)

    def test_everybody_in_parts(self) -> None:
        """Parts follow each other at once; who is in none of them is not connected any more."""
        ac = self.deployment.ac()
        for name in "abcdefg":
            ac.beat(name)
        self.network.advance(5)
        ac.restart()
        for name in "abcdf":
            ac.beat(name)
        ac.part = 2
        ac.asked.clear()
        self.network.advance(2.5)
        self.assertEqual(len(ac.asked), 3)
        found = {name: each["connected"] for name, each in self.known().items()}
        self.assertEqual([name for name, there in found.items() if there], list("abcdf"))
        ac.lose("a")
        for name in "bcd":
            ac.beat(name, cpu=2)
        ac.asked.clear()
        self.network.advance(2.5)
        self.assertEqual(len(ac.asked), 2)
        known = self.known()
        self.assertEqual([known[name].get("cpu") for name in "bcdf"], [2, 2, 2, None])
        self.assertFalse(known["a"]["connected"])

    def test_who_leaves_while_everybody_is_told(self) -> None:
        """One that was told in an early part, and left since, is not connected."""
        ac = self.deployment.ac()
        self.network.advance(5)
        ac.restart()
        for name in "abcd":
            ac.beat(name)
        ac.part = 2
        stat = ac.asked
        stat.clear()
        ac.told = lambda: ac.lose("a") if len(stat) == 2 else None
        self.network.advance(2.5)
        found = {name: each["connected"] for name, each in self.known().items()}
        self.assertEqual(found, {"a": False, "b": True, "c": True, "d": True})


class RestartTests(_Case):
    def test_restart_of_the_manager_keeps_agents(self) -> None:
        """After a restart every agent is there with its last values; connected is unknown."""
        ac = self.deployment.ac()
        ac.beat("a", cpu=1)
        self.network.advance(5)
        self.deployment.stop()
        ac.down()
        self.deployment.start()
        found = self.known()["a"]
        self.assertEqual((found["cpu"], "connected" in found), (1, False))
        ac.up()
        self.network.advance(5)
        self.assertTrue(self.known()["a"]["connected"])
        self.assertEqual(self.deployment.status(self.token)["total"], 1)

    def test_restart_of_the_ac_keeps_agents(self) -> None:
        """Agents of an AC that lost its memory stay listed until they beat again."""
        ac = self.deployment.ac()
        ac.beat("a", cpu=1)
        ac.beat("b", cpu=1)
        self.network.advance(5)
        ac.restart()
        ac.beat("b", cpu=2)
        self.network.advance(5)
        found = self.known()
        self.assertEqual([found[each]["cpu"] for each in "ab"], [1, 2])
        self.assertEqual([found[each]["connected"] for each in "ab"], [False, True])

    def test_ac_leaves(self) -> None:
        """An AC that ServiceDiscovery no longer lists is not polled; its agents stay."""
        ac = ScriptedAc(self.network)
        registrar = self.deployment.register(ac)
        ac.beat("a")
        self.network.advance(5)
        self.network.run(registrar.stop())
        self.network.advance(70)
        asked = len(ac.asked)
        self.network.advance(10)
        self.assertEqual(len(ac.asked), asked)
        self.assertNotIn("connected", self.known()["a"])
        self.assertIn("lists no AgentCenter", self.reasons()[0])

    def test_agent_moves_to_another_ac(self) -> None:
        """The AC that heard an agent last is its source; the old one's farewell changes nothing."""
        one, two = self.deployment.ac(), self.deployment.ac(port=7752)
        one.beat("a")
        self.network.advance(5)
        two.beat("a")
        self.network.advance(5)
        one.lose("a")
        self.network.advance(5)
        found = self.known()["a"]
        self.assertEqual((found["source_port"], found["connected"]), (7752, True))

    def test_older_word_of_another_ac(self) -> None:
        """What another AC heard earlier does not replace what is known."""
        one, two = self.deployment.ac(), self.deployment.ac(port=7752)
        one.beat("a", cpu=1)
        self.network.advance(5)
        two.beat("a", NOW, cpu=9)
        self.network.advance(5)
        self.assertEqual((self.known()["a"]["cpu"], self.known()["a"]["source_port"]), (1, 6752))


class FailureTests(_Case):
    def test_answers_that_cannot_be_used(self) -> None:
        """A broken AC is counted in /ready, costs nothing known, and recovers by itself."""
        ac = self.deployment.ac()
        ac.beat("a", cpu=1)
        self.network.advance(5)
        bad: list[Answer] = [
            Answer(500, b"oops"),
            Answer(200, b"garbage"),
            Answer(200, b""),
            Answer(200, {"code": 3, "msg": "no", "data": None}),
            Answer(200, {"code": 0, "data": {"a": 1}}),
            Answer(200, {"code": 0, "data": [], "gone": [1]}),
            Answer(200, {"data": []}),
            Answer(403, {"code": 1, "msg": "auth failed", "data": "signature error"}),
            Answer(200, b"[" * 100_000),
        ]
        for answer in bad:
            ac.answer = answer
            self.network.advance(4)
            (problem,) = self.problems()
            self.assertTrue(problem.startswith("127.0.0.1:6752: "), problem)
            ac.answer = None
            self.network.advance(4)
            self.assertEqual(self.problems(), [], answer)
        self.assertEqual(self.known()["a"]["cpu"], 1)

    def test_malformed_entries_cost_only_themselves(self) -> None:
        """One agent's nonsense hides no other agent; it is counted."""
        ac = self.deployment.ac()
        good = {"agent_info": {"agent_id": "a", "last_heartbeat_time": NOW}, "plugins_info": []}
        deep: Any = 1
        for _ in range(20):
            deep = [deep]

        def entry(**info: Any) -> dict[str, Any]:
            return {
                "agent_info": {"agent_id": "b", "last_heartbeat_time": NOW, **info},
                "plugins_info": [],
            }

        bad: list[Any] = [
            None,
            5,
            [],
            {"agent_info": 5, "plugins_info": []},
            {"agent_info": {"agent_id": "b", "last_heartbeat_time": NOW}, "plugins_info": {}},
            {"agent_info": {"agent_id": "b", "last_heartbeat_time": NOW}, "plugins_info": [1]},
            {"agent_info": {"last_heartbeat_time": NOW}, "plugins_info": []},
            entry(agent_id=""),
            entry(agent_id=7),
            entry(agent_id="x" * 129),
            entry(last_heartbeat_time="soon"),
            entry(last_heartbeat_time=None),
            entry(last_heartbeat_time=True),
            entry(last_heartbeat_time=-5),
            entry(last_heartbeat_time=1e300),
            entry(blob="x" * 70_000),
            entry(deep=deep),
            entry(**{f"k{number}": 1 for number in range(600)}),
            {"agent_info": entry()["agent_info"], "plugins_info": [{}] * 257},
            msgspec.Raw(b'{"agent_info":{"agent_id":"\xff"}}'),
        ]
        ac.answer = Answer(200, {"code": 0, "data": [*bad, good], "cursor": "x"})
        self.network.advance(5)
        self.assertEqual(list(self.known()), ["a"])
        text = self.deployment.call("GET", "/metrics").text.decode()
        malformed = next(
            float(line.split()[1])
            for line in text.splitlines()
            if line.startswith('elkeid_manager_reports_total{outcome="malformed"}')
        )
        self.assertEqual(malformed % len(bad), 0)
        self.assertGreater(malformed, 0)

    def test_plugins_info_may_be_null(self) -> None:
        """Lists may come as null, as upstream writes empty ones."""
        ac = self.deployment.ac(cursors=False)
        info = {"agent_id": "a", "last_heartbeat_time": NOW}
        for data in (None, [{"agent_info": info, "plugins_info": None}]):
            ac.answer = Answer(200, {"code": 0, "msg": "success", "data": data})
            self.network.advance(200)
        self.assertEqual(self.known()["a"]["plugins"], [])

    def test_huge_answer(self) -> None:
        """An answer beyond the limit is broken off, not kept in memory."""
        self.patch(acpoll, "ANSWER_BYTES", 10_000)
        ac = self.deployment.ac()
        ac.answer = Answer(200, b'{"code":0,"data":[' + b" " * 20_000 + b"]}")
        self.network.advance(5)
        self.assertIn("more than 10000 bytes", self.problems()[0])
        ac.answer = None
        self.network.advance(5)
        self.assertEqual(self.problems(), [])

    def test_slow_ac_delays_no_other(self) -> None:
        """While one AC thinks, the other's agents stay fresh; the slow one is given up in 15 s."""
        slow, quick = self.deployment.ac(), self.deployment.ac(port=7752)
        slow.slow = True
        self.network.advance(3)
        quick.beat("a", cpu=1)
        self.network.advance(3)
        self.assertEqual(self.known()["a"]["cpu"], 1)
        self.network.advance(15)
        self.assertIn("no answer within 15 s", self.problems()[0])
        slow.slow = False
        self.network.advance(20)
        self.assertEqual(self.problems(), [])

    def test_silent_ac(self) -> None:
        """Of an AC that cannot be asked nobody knows which agents it holds."""
        ac = self.deployment.ac()
        ac.beat("a", cpu=1)
        self.network.advance(5)
        ac.down()
        self.network.advance(30)
        found = self.known()["a"]
        self.assertEqual((found["cpu"], "connected" in found), (1, False))
        ac.up()
        self.network.advance(5)
        self.assertTrue(self.known()["a"]["connected"])

    def test_clock_of_the_ac_is_off(self) -> None:
        """Heartbeat times of an AC whose clock is wrong are corrected by its Date header."""
        ac = ScriptedAc(self.network, cursors=False)
        ac.ahead = 3600
        there = int(self.network.wall()) + 3600
        ac.beat("a", plugins=[{"name": "driver", "last_heartbeat_time": there}])
        began = self.network.wall()
        self.deployment.register(ac)
        found = self.known()["a"]
        for seen in (found["last_heartbeat_time"], found["plugins"][0]["last_heartbeat_time"]):
            self.assertLess(abs(seen - began), 2)
        self.assertEqual(found["agent_state"], "running")
        skew = next(iter(self.deployment.manager.polls.skews().values()))
        self.assertLess(abs(skew - 3600), 2)

    def test_store_trouble_loses_nothing(self) -> None:
        """What could not be stored is asked for again."""
        ac = self.deployment.ac()
        self.network.advance(3)
        self.deployment.manager.store._pending = 10_000
        ac.beat("a", cpu=1)
        self.network.advance(5)
        self.assertIn("too much to do", self.problems()[0])
        self.deployment.manager.store._pending = 0
        self.network.advance(5)
        self.assertEqual(self.known()["a"]["cpu"], 1)
        self.assertEqual(self.problems(), [])


class HeldTests(SynchronousTestCase):
    def test_ac_leaves_while_its_report_is_stored(self) -> None:
        """A report on its way to the disk is stored and counted, though its AC is gone."""
        deployment = Deployment().start()
        self.addCleanup(deployment.end)
        network, polls = deployment.network, deployment.manager.polls
        network.run(deployment.manager.task_engine.stop())  # it would ask the store, too
        ac = deployment.ac()
        network.advance(3)
        held = HeldThreads()
        store = deployment.manager.store
        usual, store._threads = store._threads, held
        ac.beat("a")
        network.advance(3)
        polls.changed([])
        self.assertGreater(len(held.waiting), 0)
        while held.waiting:
            usual.run(held.waiting.pop(0))
        store._threads = usual
        network.flush()
        self.assertEqual(deployment.status(deployment.login())["total"], 1)
        self.assertEqual(len(polls._ending), 0)


class StopTests(SynchronousTestCase):
    def test_stop_leaves_nothing(self) -> None:
        """A stop in the middle of polls and lookups leaves no timer and no registration."""
        deployment = Deployment().start()
        ac = deployment.ac()
        ac.beat("a")
        deployment.network.advance(3)
        ac.slow = True
        deployment.network.advance(3)
        listed = deployment.discovery.registry.counts()
        self.assertEqual(listed["hids_manage"], 1)
        deployment.stop()
        self.assertEqual(deployment.discovery.registry.counts().get("hids_manage", 0), 0)
        deployment.end()
        calls = [each for each in deployment.network.clock.getDelayedCalls() if each.active()]
        self.assertEqual([str(each) for each in calls if "manager" in str(each)], [])
