"""Configs from the Manager to hosts: asked for, sent, repeated, shown, never empty by accident."""

from collections.abc import Mapping
from random import Random
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.api import status_of
from elkeid.agentcenter.commands import Commands, Outcome
from elkeid.agentcenter.config_push import (
    FALLBACK_SECONDS,
    FETCHES,
    OUTAGE_SECONDS,
    REFUSED_SECONDS,
    REPEAT_SECONDS,
    SEND_SECONDS,
    ConfigPush,
)
from elkeid.agentcenter.configs import Config, Entry, config_of
from elkeid.agentcenter.manager_client import ManagerAnswer, ManagerRefused
from elkeid.fleet.grpc_client import MessageReceived
from elkeid.fleet.orders import Orders
from elkeid.metrics import CommandMetrics, ConfigMetrics
from elkeid.web.client import AnswerInvalid, Unreachable
from elkeid.wire.command import decode_command
from elkeid.wire.compression import decompressor
from tests.agentcenter.host import Host, batch, make_gateway

Answer = ManagerAnswer | Exception | None  # None: it does not answer yet


def entries(**versions: str) -> list[dict[str, Any]]:
    """Entries as a Manager answers them; ``_`` in a name stands for ``-``."""
    return [
        {"name": name.replace("_", "-"), "type": "tar.gz", "version": version, "download_url": []}
        for name, version in versions.items()
    ]


def plugins(**versions: str) -> Config:
    return config_of([Entry(name=name, version=version) for name, version in versions.items()])


class FakeManager:
    """Stands where `ManagerClient` is."""

    def __init__(self) -> None:
        self.answer: Answer = ManagerAnswer(0, data=entries(driver="1"))
        self.asked: list[dict[str, Any]] = []
        self.waiting: list[Deferred[ManagerAnswer]] = []
        self.seconds: list[float] = []

    async def post(self, path: str, body: object, *, seconds: float, limit: int) -> ManagerAnswer:
        assert path == "/api/v6/component/GetComponentInstances"
        assert isinstance(body, dict)
        self.asked.append(body)
        self.seconds.append(seconds)
        if self.answer is None:
            waiting: Deferred[ManagerAnswer] = Deferred()
            self.waiting.append(waiting)
            return await waiting
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FakeLast:
    """Stands where `LastConfigs` is."""

    def __init__(self) -> None:
        self.known: dict[str, Config] = {}
        self.deliveries: list[tuple[str, dict[str, str]]] = []
        self.searched: list[str] = []

    def delivered(self, agent_id: str, config: Config) -> None:
        self.deliveries.append((agent_id, config.versions))
        self.known[agent_id] = config

    def newest(self, agent_id: str) -> Deferred[Config | None]:
        self.searched.append(agent_id)
        answer: Deferred[Config | None] = Deferred()
        answer.callback(self.known.get(agent_id))
        return answer


class Silent:
    """An agent's process of which nothing but its plugins matters."""

    def emit(self, data_type: int, fields: Mapping[str, str], own: bool) -> None:
        """Its records are not of interest."""

    def upload(self, token: str, size: int, piece: int, elsewhere: bool) -> None:
        """It is asked for no file."""

    def leave(self, version: str | None) -> None:
        """It stays."""


class PushTests(SynchronousTestCase):
    """`ConfigPush` over real connections."""

    def setUp(self) -> None:
        self.build()

    def build(self, **changes: Any) -> None:
        self.gateway, _, self.clock = make_gateway(**changes)
        self.commands = Commands(self.gateway.table.get, self.clock)
        self.manager, self.last = FakeManager(), FakeLast()
        self.push = ConfigPush(
            self.gateway.table,
            self.commands,
            self.manager,
            self.last,
            clock=self.clock,
            wall=self.gateway.wall,
            random=Random(1),
            trust_empty=self.gateway.settings.trust_empty_config,
        )
        self.gateway.follow(self.commands)
        self.gateway.follow(self.push)

    def tearDown(self) -> None:
        """Stopped, nothing is left behind."""
        self.push.stop()
        for link in list(self.gateway.links):
            link.abort()
            link.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def join(self, agent_id: str = "a1", address: str = "10.0.0.1", port: int = 1) -> Host:
        """An agent that has sent its first heartbeat."""
        host = Host(self.gateway, address, port)
        host.open()
        self.beat(host, agent_id)
        return host

    def beat(self, host: Host, agent_id: str = "a1", **fields: str) -> None:
        host.send(1, batch(agent_id, 1000, kernel_version="5.10", arch="x86_64", **fields))

    def plugin(self, host: Host, name: str, version: str, agent_id: str = "a1") -> None:
        host.send(1, batch(agent_id, 1001, name=name, pversion=version))

    def got(self, host: Host) -> list[dict[str, str]]:
        """Configs that a host got since the last look: name -> version of each."""
        host.pump()
        taken = [event for event in host.events if isinstance(event, MessageReceived)]
        host.events.clear()
        found = []
        for event in taken:
            body = decompressor("snappy")(event.body, 8 << 20) if event.compressed else event.body
            command = decode_command(body)
            assert command.task is None
            found.append({item.name: item.version for item in command.config})
        return found

    def state(self, agent_id: str = "a1") -> dict[str, Any]:
        agent = self.gateway.table.get(agent_id)
        assert agent is not None
        shown: dict[str, Any] = status_of(agent)["agent_info"]["config"]
        return shown

    def advance(self, seconds: float) -> None:
        """Let time pass in small steps."""
        for _ in range(int(seconds * 2)):
            self.clock.advance(0.5)

    # --- asking

    def test_first_heartbeat(self) -> None:
        """Records alone ask for nothing; the first heartbeat does, once a connection."""
        host = Host(self.gateway)
        host.open()
        host.send(1, batch("a1", 59, 1001, name="x", pversion="1"))
        self.assertEqual(self.manager.asked, [])
        self.beat(host)
        self.beat(host)
        self.assertEqual(len(self.manager.asked), 1)
        self.assertEqual(self.got(host), [{"driver": "1"}])
        again = self.join(port=2)
        self.assertEqual(self.got(again), [{"driver": "1"}])

    def test_detail(self) -> None:
        """The Manager gets the whole detail, with texts where it wants texts, and no more."""
        self.join()
        (detail,) = self.manager.asked
        for key in ("agent_id", "kernel_version", "arch"):
            self.assertIsInstance(detail[key], str)
        self.assertEqual(detail["kernel_version"], "5.10")
        self.assertEqual(detail["hostname"], "h")
        self.assertNotIn("config", detail)
        self.assertEqual(self.manager.seconds, [4.0])

    def test_unidentified(self) -> None:
        """A host that sent no id of its own is not asked for, and gets nothing."""
        host = Host(self.gateway)
        host.open()
        self.beat(host, "")
        self.assertEqual(self.manager.asked, [])
        self.assertEqual(self.got(host), [])

    def test_no_config_in_answers(self) -> None:
        """null, an empty list, refusals and nonsense change nothing, are counted, asked again."""
        bad: list[tuple[Answer, str]] = [
            (ManagerAnswer(0), "null"),
            (ManagerAnswer(0, allow_empty=True), "null"),
            (ManagerAnswer(0, data=[]), "empty"),
            (ManagerRefused(10, "none"), "refused"),
            (AnswerInvalid("HTTP 500"), "invalid"),
            (ManagerAnswer(0, data={}), "invalid"),
            (ManagerAnswer(0, data="x"), "invalid"),
            (ManagerAnswer(0, data=[1]), "invalid"),
            (ManagerAnswer(0, data=[{"name": ""}]), "invalid"),
            (ManagerAnswer(0, data=[{"name": " "}, {"name": "../a"}]), "invalid"),
            (ManagerAnswer(0, data=[{"name": "a", "version": 1}]), "invalid"),
            (ManagerAnswer(0, data=[{"name": "a", "detail": "x" * (4 << 20)}]), "invalid"),
        ]
        for number, (answer, reason) in enumerate(bad):
            before = self.push.fetches[reason]
            self.manager.answer = answer
            host = self.join(f"a{number}", f"10.0.1.{number}")
            self.assertEqual(self.push.fetches[reason], before + 1, answer)
            self.assertEqual(self.got(host), [])
            self.assertEqual(self.state(f"a{number}")["state"], "none")
            self.manager.answer = ManagerAnswer(0, data=entries(driver="2"))
            self.advance(REFUSED_SECONDS[0] * 1.25 + 1)
            self.assertEqual(self.got(host), [{"driver": "2"}])
            host.drop()

    def test_refusals_back_off(self) -> None:
        """A host without a config is asked for less and less, and no more once it left."""
        self.manager.answer = ManagerRefused(10, "none")
        host = self.join()
        self.advance(3_600)
        self.assertLess(len(self.manager.asked), 13)
        self.assertGreater(len(self.manager.asked), 6)
        count = len(self.manager.asked)
        host.drop()
        self.advance(1_000)
        self.assertEqual(len(self.manager.asked), count)

    def test_empty_on_purpose(self) -> None:
        """An empty list with the word for it unloads everything."""
        self.manager.answer = ManagerAnswer(0, data=[], allow_empty=True)
        host = self.join()
        self.assertEqual(self.got(host), [{}])
        self.assertEqual(self.last.deliveries, [("a1", {})])

    def test_empty_is_trusted_by_setting(self) -> None:
        """With the setting an empty answer of a stock Manager counts, but no nonsense does."""
        self.build(trust_empty_config=True)
        for number, data in enumerate((None, [])):
            self.manager.answer = ManagerAnswer(0, data=data)
            self.assertEqual(self.got(self.join(f"a{number}", f"10.0.1.{number}")), [{}])
        for number, data in enumerate(({}, 0, "", False), 5):
            self.manager.answer = ManagerAnswer(0, data=data)
            self.assertEqual(self.got(self.join(f"a{number}", f"10.0.1.{number}")), [])

    def test_many_at_once(self) -> None:
        """Only so many questions are under way; the others wait for their turn."""
        self.manager.answer = None
        hosts = [self.join(f"a{n}", f"10.0.{n // 200}.{n % 200}") for n in range(3 * FETCHES)]
        self.assertEqual(len(self.manager.waiting), FETCHES)
        self.assertEqual(self.push.figures().waiting, 3 * FETCHES)
        hosts[-1].drop()  # it left while it waited: nobody asks for it
        served = 0
        while self.manager.waiting:
            self.manager.waiting.pop(0).callback(ManagerAnswer(0, data=entries(driver="1")))
            served += 1
        self.assertEqual(served, 3 * FETCHES - 1)
        self.assertTrue(all(self.got(host) == [{"driver": "1"}] for host in hosts[:-1]))

    def test_left_while_asked(self) -> None:
        """An answer for a host that left, or came anew, is not sent on its old account."""
        self.manager.answer = None
        host = self.join()
        new = self.join(port=2)
        host.drop()
        first, second = self.manager.waiting
        first.callback(ManagerAnswer(0, data=entries(driver="old")))
        self.assertEqual(self.got(new), [])
        second.callback(ManagerAnswer(0, data=entries(driver="new")))
        self.assertEqual(self.got(new), [{"driver": "new"}])

    def test_bug_while_asking(self) -> None:
        """A fault of ours is logged, counted and tried again."""
        self.manager.answer = RuntimeError("bug")
        host = self.join()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.manager.answer = ManagerAnswer(0, data=entries(driver="1"))
        self.advance(4)
        self.assertEqual(self.got(host), [{"driver": "1"}])

    # --- the Manager is away

    def test_outage(self) -> None:
        """One question is tried at a time, less and less often; then all hosts get theirs."""
        self.manager.answer = Unreachable("refused")
        hosts = [self.join(f"a{n}", f"10.0.1.{n}") for n in range(20)]
        self.assertEqual(len(self.manager.asked), 1)
        self.advance(600)
        self.assertLess(len(self.manager.asked), 70)
        self.assertGreater(len(self.manager.asked), 35)
        self.manager.answer = ManagerAnswer(0, data=entries(driver="1"))
        self.advance(OUTAGE_SECONDS[1] * 1.25 + 1)
        self.assertTrue(all(self.got(host) == [{"driver": "1"}] for host in hosts))
        self.assertEqual(self.push.figures().waiting, 0)

    def test_last_known(self) -> None:
        """A host that comes meanwhile gets what it ran last, and the Manager's word later."""
        self.last.known = {"a1": plugins(driver="1"), "a2": plugins(driver="2")}
        self.manager.answer = Unreachable("refused")
        first, second = self.join(), self.join("a2", "10.0.0.2")
        self.assertEqual(self.got(first), [{"driver": "1"}])
        self.assertEqual(self.got(second), [{"driver": "2"}])
        self.assertEqual(self.state()["source"], "last-known")
        self.assertEqual(self.last.deliveries, [])  # no news: an old config must not become newest
        self.manager.answer = ManagerAnswer(0, data=entries(driver="3"))
        self.advance(20)
        self.assertEqual(self.got(first), [{"driver": "3"}])
        self.assertEqual(self.got(second), [{"driver": "3"}])
        self.assertEqual(len(self.last.deliveries), 2)

    def test_silent_manager(self) -> None:
        """One that takes questions and does not answer holds no host up for more than 10 s."""
        self.manager.answer = None
        ids = [f"a{n}" for n in range(3 * FETCHES)]
        self.last.known = {agent_id: plugins(driver=agent_id) for agent_id in ids}
        hosts = {agent_id: self.join(agent_id, f"10.0.1.{n}") for n, agent_id in enumerate(ids)}
        self.advance(FALLBACK_SECONDS + 1)
        for agent_id, host in hosts.items():
            self.assertEqual(self.got(host), [{"driver": agent_id}])

    def test_last_known_for_refused(self) -> None:
        """A Manager without its database refuses: what a host ran last still holds."""
        self.last.known = {"a1": plugins(driver="1")}
        self.manager.answer = ManagerRefused(10, "database")
        self.assertEqual(self.got(self.join()), [{"driver": "1"}])

    def test_last_known_is_not_for_an_answer_without(self) -> None:
        """null and an empty list are the Manager's word that there is nothing to send."""
        self.last.known = {"a1": plugins(driver="1")}
        self.manager.answer = ManagerAnswer(0)
        self.assertEqual(self.got(self.join()), [])

    def test_last_known_empty(self) -> None:
        """A host that was to run nothing is sent nothing: no wipe on hearsay."""
        self.last.known = {"a1": config_of([])}
        self.manager.answer = Unreachable("refused")
        host = self.join()
        self.advance(60)
        self.assertEqual(self.got(host), [])
        self.assertEqual(self.push.searches["empty"], 2)

    def test_search_is_repeated(self) -> None:
        """What nobody knew is looked for again: a peer may come back before the Manager."""
        self.manager.answer = Unreachable("refused")
        host = self.join()
        self.assertEqual(self.push.searches["unknown"], 1)
        self.last.known = {"a1": plugins(driver="1")}
        self.advance(40)
        self.assertEqual(self.got(host), [{"driver": "1"}])

    # --- what changes

    def test_refresh(self) -> None:
        """The Manager says what changed: those hosts are asked for again, or all."""
        one, two = self.join(), self.join("a2", "10.0.0.2")
        self.got(one), self.got(two)
        self.manager.answer = ManagerAnswer(0, data=entries(driver="2"))
        self.assertEqual(self.push.refresh(["a2", "nobody"]), 1)
        self.assertEqual((self.got(one), self.got(two)), ([], [{"driver": "2"}]))
        self.assertEqual(self.push.refresh(None), 2)
        self.assertEqual((self.got(one), self.got(two)), ([{"driver": "2"}], [{"driver": "2"}]))

    def test_refresh_while_asking(self) -> None:
        """What changes while a question is under way is asked for once more after it."""
        self.manager.answer = None
        host = self.join()
        self.push.refresh(None)
        self.push.refresh(None)
        self.assertEqual(len(self.manager.waiting), 1)
        self.manager.waiting.pop().callback(ManagerAnswer(0, data=entries(driver="1")))
        self.manager.waiting.pop().callback(ManagerAnswer(0, data=entries(driver="2")))
        self.assertEqual(self.got(host), [{"driver": "1"}, {"driver": "2"}])
        self.assertEqual(self.manager.waiting, [])

    def test_command_counts(self) -> None:
        """A config that an operator sent is what the host shall have; an older answer is void."""
        self.manager.answer = None
        host = self.join()
        config = plugins(driver="9")
        self.commands.send("a1", [config.command]).addCallback(
            lambda outcome: self.push.commanded("a1", config, outcome)
        )
        self.manager.waiting.pop().callback(ManagerAnswer(0, data=entries(driver="1")))
        self.assertEqual(self.got(host), [{"driver": "9"}])
        self.assertEqual((self.state()["source"], self.state()["state"]), ("command", "sent"))
        self.assertEqual(self.last.deliveries, [("a1", {"driver": "9"})])
        self.advance(REPEAT_SECONDS[0] * 1.25 + 1)
        self.assertEqual(self.got(host), [{"driver": "9"}])

    def test_command_before_the_first_heartbeat(self) -> None:
        """It is sent, and the first heartbeat still asks the Manager."""
        host = Host(self.gateway)
        host.open()
        host.send(1, batch("a1", 59))
        self.push.commanded("a1", plugins(driver="9"), Outcome.WRITTEN)
        self.beat(host)
        self.assertEqual(self.got(host), [{"driver": "1"}])

    def test_command_that_was_not_sent(self) -> None:
        """One that did not reach the host changes nothing."""
        host = self.join()
        self.got(host)
        for outcome in (Outcome.LOST, Outcome.WITHDRAWN, Outcome.QUEUE_FULL):
            self.push.commanded("a1", plugins(driver="9"), outcome)
        self.push.commanded("nobody", plugins(driver="9"), Outcome.WRITTEN)
        self.assertEqual(self.state()["versions"], {"driver": "1"})

    # --- sent and applied

    def test_applied(self) -> None:
        """A config is applied once heartbeats since it was sent show what it says."""
        self.manager.answer = ManagerAnswer(0, data=entries(driver="1", collector="2"))
        host = self.join()
        state = self.state()
        self.assertEqual((state["state"], state["applied_at"]), ("sent", None))
        self.assertEqual(state["versions"], {"driver": "1", "collector": "2"})
        self.plugin(host, "driver", "1")
        self.plugin(host, "collector", "1")  # still the old one
        self.advance(5)
        self.assertEqual(self.state()["state"], "sent")
        self.plugin(host, "collector", "2")
        self.advance(5)
        state = self.state()
        self.assertEqual(state["state"], "applied")
        self.assertGreaterEqual(state["applied_at"], state["sent_at"])
        self.got(host)
        self.advance(4_000)
        self.assertEqual(self.got(host), [])
        self.assertEqual(self.push.figures().agents, {"none": 0, "sent": 0, "applied": 1})

    def test_shown_to_stock_managers(self) -> None:
        """What is shown fits the documents that Managers keep, whatever a config has in it."""
        odd = [{"name": name, "version": "1"} for name in ("a.b", "$set", "é", "driver")]
        many = [{"name": f"p{number}", "version": "1"} for number in range(200)]
        self.manager.answer = ManagerAnswer(0, data=odd + many)
        self.join()
        versions = self.state()["versions"]
        self.assertEqual(len(versions), 64)
        self.assertEqual(list(versions)[:2], ["driver", "p0"])

    def test_not_applied_while_another_runs(self) -> None:
        """A plugin that shall not run, but does, shows that the config was not applied."""
        host = self.join()
        self.plugin(host, "driver", "1")
        self.plugin(host, "rasp", "1")  # of the same batch of heartbeats
        self.advance(5)
        self.assertEqual(self.state()["state"], "sent")
        self.advance(95)
        self.plugin(host, "driver", "1")  # and rasp was not heard again
        self.advance(5)
        self.assertEqual(self.state()["state"], "applied")

    def test_agent_version(self) -> None:
        """The entry of the agent itself is applied when the agent says that version."""
        self.manager.answer = ManagerAnswer(0, data=entries(elkeid_agent="2"))
        host = self.join()
        self.beat(host)
        self.advance(5)
        self.assertEqual(self.state()["state"], "sent")
        host.send(1, batch("a1", 1000) + b"\x42\x012")
        self.advance(5)
        self.assertEqual(self.state()["state"], "applied")

    def test_repeated(self) -> None:
        """What is not applied is repeated, but no flood: a sync may take ten minutes."""
        host = self.join()
        self.got(host)
        self.advance(100)
        self.assertEqual(self.got(host), [])
        self.advance(500)
        self.assertLessEqual(len(self.got(host)), 3)
        self.advance(2 * 3_600)
        more = len(self.got(host))
        self.assertTrue(2 <= more <= 8, more)
        self.assertEqual(self.last.deliveries, [("a1", {"driver": "1"})])
        self.assertGreater(self.push.figures().repeated, 3)

    def test_superseded(self) -> None:
        """Only the newest config is repeated."""
        host = self.join()
        self.manager.answer = ManagerAnswer(0, data=entries(driver="2"))
        self.push.refresh(None)
        self.assertEqual(self.got(host), [{"driver": "1"}, {"driver": "2"}])
        self.advance(1_000)
        self.assertEqual({each["driver"] for each in self.got(host)}, {"2"})

    def test_slow_host_ends_at_the_newest(self) -> None:
        """An agent that syncs for minutes drops configs; it still ends with the newest one."""
        with patch("elkeid.fleet.orders.SYNC_SECONDS", 400.0):
            host = self.join()
            agent = Orders(Silent(), self.clock, self.gateway.wall, "1.0")
            for number in range(2, 6):
                self.manager.answer = ManagerAnswer(0, data=entries(driver=str(number), rasp="1"))
                self.push.refresh(None)
            seen = set()
            for _ in range(120):  # two hours
                host.pump()
                for event in host.events:
                    if isinstance(event, MessageReceived):
                        agent.obey(decode_command(decompressor("snappy")(event.body, 8 << 20)))
                host.events.clear()
                self.beat(host)
                for name, plugin in agent.loaded.items():
                    self.plugin(host, name, plugin.version)
                self.advance(60)
                seen.add(self.state()["state"])
                running = {name: each.version for name, each in agent.loaded.items()}
                if self.state()["state"] == "applied":
                    self.assertEqual(running, {"driver": "5", "rasp": "1"})
        self.assertEqual(seen, {"sent", "applied"})
        self.assertEqual(running, {"driver": "5", "rasp": "1"})
        self.assertEqual(agent.tally.wiped, 0)
        self.assertTrue(3 <= agent.tally.dropped_syncs <= 6, agent.tally)
        self.assertLess(agent.tally.syncs, 14)
        agent.end()

    def test_host_does_not_read(self) -> None:
        """A config that could not be begun is tried again, and is not called sent."""
        host = Host(self.gateway)
        host.open()
        host.link.pauseProducing()
        host.send(1, batch("a1", 1000))
        self.advance(SEND_SECONDS + 1)
        self.assertEqual(self.state()["state"], "none")
        self.assertEqual(self.last.deliveries, [])
        host.link.resumeProducing()
        self.advance(10)
        self.assertEqual(self.got(host), [{"driver": "1"}])
        self.assertEqual(self.state()["state"], "sent")

    def test_partly_written_is_remembered_later(self) -> None:
        """A config that was not wholly written in time is remembered once it was."""
        self.join()
        self.assertEqual(len(self.last.deliveries), 1)
        self.push.commanded("a1", plugins(driver="2"), Outcome.PARTLY)
        self.assertEqual((self.state()["state"], len(self.last.deliveries)), ("sent", 1))
        self.advance(2 * REPEAT_SECONDS[0])  # it is repeated
        self.assertEqual(self.last.deliveries[1:], [("a1", {"driver": "2"})])

    def test_seen_by_readers_with_a_cursor(self) -> None:
        """Every change of the state shows to Managers that ask for changes."""
        host = self.join()
        cursor = self.gateway.table.changes(None).cursor
        self.push.refresh(None)
        changes = self.gateway.table.changes(cursor)
        self.assertEqual([agent.agent_id for agent in changes.agents], ["a1"])
        self.plugin(host, "driver", "1")
        cursor = self.gateway.table.changes(None).cursor
        self.advance(5)
        self.assertEqual(len(self.gateway.table.changes(cursor).agents), 1)

    def test_metrics(self) -> None:
        """What operators watch: how many hosts have which state, and why some have none."""
        registry = CollectorRegistry()
        ConfigMetrics(registry, self.push.figures)
        CommandMetrics(registry, self.commands.figures)
        self.join()
        self.manager.answer = ManagerAnswer(0)
        self.join("a2", "10.0.0.2")
        shown = generate_latest(registry).decode().splitlines()
        for line in (
            'elkeid_ac_config_agents{state="none"} 1.0',
            'elkeid_ac_config_agents{state="sent"} 1.0',
            'elkeid_ac_config_agents{state="applied"} 0.0',
            "elkeid_ac_config_waiting 0.0",
            'elkeid_ac_config_fetches_total{outcome="ok"} 1.0',
            'elkeid_ac_config_fetches_total{outcome="null"} 1.0',
            'elkeid_ac_config_sent_total{source="manager"} 1.0',
            "elkeid_ac_config_repeated_total 0.0",
            "elkeid_ac_commands_waiting 0.0",
            "elkeid_ac_commands_waiting_bytes 0.0",
            'elkeid_ac_commands_total{outcome="written"} 1.0',
        ):
            self.assertIn(line, shown)

    def test_nothing_kept_of_those_that_left(self) -> None:
        """Hosts that come and go leave no plans behind."""
        for number in range(1_500):
            self.join("a1", port=number + 1).drop()
        self.assertLess(len(self.push._schedule), 1_100)
        self.assertEqual(len(self.push._queue), 0)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 1), st.sampled_from(["", "x"]), st.just([])
)
ANSWERS = st.builds(
    ManagerAnswer,
    st.just(0),
    data=st.one_of(
        VALUES,
        st.dictionaries(st.sampled_from(["name", "x"]), VALUES),
        st.lists(
            st.one_of(
                VALUES, st.dictionaries(st.sampled_from(["name", "version", "detail"]), VALUES)
            ),
            max_size=3,
        ),
    ),
    allow_empty=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(ANSWERS, st.booleans())
def test_never_an_empty_sync_by_accident(answer: ManagerAnswer, trust: bool) -> None:
    """Whatever a Manager answers, a host is emptied only by an empty list that is meant."""
    test = PushTests()
    test.build(trust_empty_config=trust)
    test.manager.answer = answer
    configs = test.got(test.join())
    for config in configs:
        if not config:
            assert answer.data == [] or (answer.data is None and trust)
            assert answer.allow_empty or trust
        assert "" not in config
    test.push.stop()
