"""What operators see of the server's instances, and may tell them."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid import __version__
from elkeid.manager.costly import Shared
from elkeid.manager.documents import Source
from elkeid.manager.fanout import ALL_SECONDS, AT_ONCE, Gateways
from elkeid.manager.ledgers import (
    BeforeReading,
    ClassLedger,
    LedgerAnswer,
    ReaderLedger,
    imbalances,
    summed,
)
from elkeid.web.answers import Answer
from elkeid.web.client import CallFailed
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes

from .deployment import Deployment, ScriptedAc

CLUSTER = "/api/v1/cluster"
NOBODY = {"gateway": "", "silent": []}


class Body(msgspec.Struct):
    """Anything."""

    deadline: float = 0
    then: str = ""
    type: str = ""
    count: int | None = None
    id_list: list[str] | None = None


class Operations:
    """What an AgentCenter of ours answers beside ``/conn/stat``; tests choose it."""

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self, agents: int = 0) -> None:
        self.state, self.agents = "serving", agents
        self.told: list[tuple[str, Body]] = []
        self.conflicts: list[dict[str, Any]] = []
        self.unidentified: list[dict[str, Any]] = []
        self.ledger: dict[str, Any] = {}
        self.stuck = False

    def shown(self) -> dict[str, Any]:
        """How the drain is."""
        return {"state": self.state, "connections": 1, "agents": self.agents, "seconds": 0.0}

    @routes.get("/admin/drain", summary="", answer=None)
    async def show(self, call: Call) -> object:
        if self.stuck:
            await Deferred()
        return self.shown()

    @routes.post("/admin/drain", summary="", body=Body, answer=None)
    async def drain(self, call: Call[None, Body]) -> object:
        if self.state != "serving":
            raise CodedRefusal(3, f"{self.state} already", status=409)
        self.told.append(("drain", call.body))
        self.state = "draining"
        return self.shown()

    @routes.post("/admin/undrain", summary="", answer=None)
    async def undrain(self, call: Call) -> object:
        self.state = "serving"
        return self.shown()

    @routes.post("/conn/reset", summary="", body=Body, answer=None)
    async def reset(self, call: Call[None, Body]) -> object:
        self.told.append(("reset", call.body))
        ids = call.body.id_list or []
        return {"count": len(ids), "detail": dict.fromkeys(ids, "ok")}

    @routes.get("/conn/conflicts", summary="", answer=None)
    async def disputes(self, call: Call) -> object:
        return {"conflicts": self.conflicts, "replaced": []}

    @routes.get("/conn/unidentified", summary="", answer=None)
    async def nameless(self, call: Call) -> object:
        return self.unidentified

    @routes.get("/ledger", summary="", answer=None)
    async def accounts(self, call: Call) -> object:
        before = {"dropped_in_buffer": 1, "lost_in_flight": 2}
        return Answer(200, {"code": 0, "msg": "", "data": self.ledger, "before_reading": before})


class Upstream:
    """What an AgentCenter of upstream answers beside ``/conn/stat``."""

    routes = Routes(auth=AuthKind.SIGNED)

    @routes.get("/conn/count", summary="", answer=None)
    async def count(self, call: Call) -> object:
        return 7


def conflict(agent_id: str, at: int) -> dict[str, Any]:
    """An entry of a list of losers."""
    return {
        "agent_id": agent_id,
        "address": "10.0.0.9",
        "peer": "10.0.0.9:1",
        "holder": "10.0.0.8:1",
        "outcome": "refused",
        "count": 1,
        "first_at": at,
        "last_at": at,
    }


def account(read: int, dropped: int = 0, waiting: int = 0) -> dict[str, Any]:
    """A class of a ledger, with one reader."""
    kept = read - dropped
    kafka = {"acknowledged": kept - waiting, "set_aside": 0, "waiting": waiting, "expired": {}}
    return {
        "read": read,
        "appended": kept,
        "dropped": {"rate": dropped},
        "readers": {"kafka": kafka},
    }


class ClusterTests(SynchronousTestCase):
    """Two AgentCenters of ours, and perhaps others."""

    def setUp(self) -> None:
        """Start everything."""
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)
        self.one, self.two = Operations(agents=30), Operations(agents=10)
        self.add(6752, self.one, weight=30, limit=40, cpu=0.5, version="0.1")
        self.add(6762, self.two, weight=10, limit=100, zone="east")
        self.token = self.deployment.login()

    def add(self, port: int, operations: Any, weight: int = 0, **extra: Any) -> ScriptedAc:
        """Another AgentCenter."""
        ac = ScriptedAc(self.deployment.network, port, more=[operations])
        self.deployment.register(ac, weight, extra or None)
        return ac

    def get(self, path: str) -> Any:
        """An answer's data."""
        return self.deployment.call("GET", CLUSTER + path, token=self.token).data

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Code and data of an answer."""
        got = self.deployment.call("POST", CLUSTER + path, body, token=self.token)
        return got.json["code"], got.json["data"]

    def test_instances(self) -> None:
        """Each with what it told, what was asked, and how polling it goes."""
        self.two.state = "draining"
        shown = self.get("/instances")
        first, second = shown["gateways"]
        self.assertEqual(first["address"], "127.0.0.1:6752")
        for key, value in {
            "health": "green",
            "weight": 30,
            "limit": 40,
            "cpu": 0.5,
            "version": "0.1",
            "zone": None,
            "state": "serving",
            "agents": 30,
            "problems": [],
        }.items():
            self.assertEqual(first[key], value, key)
        self.assertLess(first["polled_ago"], 3)
        self.assertEqual(
            (second["state"], second["zone"], second["cpu"]), ("draining", "east", None)
        )
        (sd,) = shown["discovery"]
        self.assertEqual((sd["address"], sd["problems"]), ("127.0.0.1:8088", []))
        self.assertTrue(sd["node"])
        (manager,) = shown["managers"]
        self.assertEqual(manager["version"], __version__)

    def test_a_dead_one_costs_only_its_entry(self) -> None:
        """It is named with the reason, and so in every sum."""
        dead = ScriptedAc(self.deployment.network, 6772, more=[Operations()])
        self.deployment.register(dead)
        dead.down()
        shown = self.get("/instances")["gateways"]
        self.assertEqual([each["agents"] for each in shown], [30, 10, None])
        self.assertTrue(shown[2]["problems"])
        distribution = self.get("/distribution")
        self.assertEqual(distribution["agents"], 40)
        silent = [each["address"] for each in distribution["silent"]]
        self.assertEqual(silent, ["127.0.0.1:6772"])
        self.assertEqual(
            [each["address"] for each in self.get("/ledger")["silent"]], ["127.0.0.1:6772"]
        )

    def test_a_stuck_one_is_given_up(self) -> None:
        """After two seconds the others are shown without it."""
        self.one.stuck = True
        asked = Deferred.fromCoroutine(
            self.deployment._exchange(
                "GET",
                f"http://127.0.0.1:{self.deployment.settings.manager.port}{CLUSTER}/distribution",
                self.deployment.bearing(self.token),
                None,
            )
        )
        self.deployment.network.flush()
        self.assertNoResult(asked)
        self.deployment.network.advance(2.1)
        got = self.successResultOf(asked)
        self.assertEqual(got.data["agents"], 10)
        self.assertEqual(len(got.data["silent"]), 1)

    def test_distribution(self) -> None:
        """The fullest first; zones sum up; a limit that is not known leaves no share of it."""
        self.add(6772, Upstream())
        shown = self.get("/distribution")
        self.assertEqual(shown["agents"], 47)
        self.assertEqual(
            [(each["name"], each["agents"], each["filled"]) for each in shown["gateways"]],
            [
                ("127.0.0.1:6752", 30, 0.75),
                ("127.0.0.1:6762", 10, 0.1),
                ("127.0.0.1:6772", 7, None),
            ],
        )
        self.assertEqual(
            {each["name"]: each["agents"] for each in shown["zones"]}, {"": 37, "east": 10}
        )

    def test_upstream(self) -> None:
        """One of upstream is shown with what it gives, and cannot be drained."""
        self.add(6772, Upstream())
        shown = self.get("/instances")["gateways"][2]
        self.assertEqual((shown["agents"], shown["state"], shown["version"]), (7, None, None))
        code, reason = self.post("/drain", {"address": "127.0.0.1:6772"})
        self.assertEqual(code, 12)
        self.assertIn("cannot do that", reason)
        self.assertEqual(len(self.get("/conflicts")["silent"]), 1)

    def test_ledger(self) -> None:
        """Summed per class and reader; what does not add up is told with its AgentCenter."""
        self.one.ledger = {"telemetry": account(100, 5, 10), "logs": account(1)}
        self.two.ledger = {"telemetry": account(50)}
        shown = self.get("/ledger")
        telemetry = shown["classes"]["telemetry"]
        self.assertEqual((telemetry["read"], telemetry["appended"]), (150, 145))
        self.assertEqual(telemetry["dropped"], {"rate": 5})
        self.assertEqual(telemetry["readers"]["kafka"]["waiting"], 10)
        self.assertEqual(shown["before_reading"], {"dropped_in_buffer": 2, "lost_in_flight": 4})
        self.assertEqual((shown["imbalances"], len(shown["answered"])), ([], 2))
        self.one.ledger["logs"]["read"] = 3
        self.deployment.network.advance(1.5)
        (fault,) = self.get("/ledger")["imbalances"]
        self.assertIn("127.0.0.1:6752: logs: 3 read", fault)

    def test_conflicts(self) -> None:
        """Of all AgentCenters, the latest first, each with where it was."""
        self.one.conflicts = [conflict("a", 10), conflict("b", 5)]
        self.two.conflicts = [conflict("c", 7)]
        self.two.unidentified = [
            {
                "connected": True,
                "host": {
                    "agent_id": "noid-1",
                    "hostname": "h",
                    "intranet_ipv4": ["10.0.0.1"],
                    "intranet_ipv6": [],
                    "peer": "10.0.0.1:1",
                    "count": 1,
                    "first_at": 1,
                    "last_at": 1,
                },
            }
        ]
        shown = self.get("/conflicts")
        self.assertEqual([each["agent_id"] for each in shown["conflicts"]], ["a", "c", "b"])
        self.assertEqual(shown["conflicts"][1]["gateway"], "127.0.0.1:6762")
        self.assertEqual(shown["unidentified"][0]["host"]["agent_id"], "noid-1")

    def test_malformed(self) -> None:
        """An answer that is none costs only its AgentCenter."""
        self.one.conflicts = [{"agent_id": 5}]
        self.two.conflicts = [conflict("c", 7)]
        shown = self.get("/conflicts")
        self.assertEqual([each["agent_id"] for each in shown["conflicts"]], ["c"])
        self.assertIn("not the expected JSON", shown["silent"][0]["reason"])

    def test_drain_and_undrain(self) -> None:
        """It is told, its answer shown; a second drain is refused with its own words."""
        code, data = self.post("/drain", {"address": "127.0.0.1:6752", "deadline": 30})
        self.assertEqual((code, data["state"]), (0, "draining"))
        ((_, body),) = self.one.told
        self.assertEqual((body.deadline, body.then), (30, "stay"))
        self.assertEqual(
            self.post("/drain", {"address": "127.0.0.1:6752"}),
            (12, "127.0.0.1:6752: draining already (code 3)"),
        )
        code, data = self.post("/undrain", {"address": "127.0.0.1:6752"})
        self.assertEqual((code, data["state"]), (0, "serving"))

    def test_drain_refused(self) -> None:
        """Addresses that are not listed are never called; agents need somewhere to go."""
        for address in ("127.0.0.1:6701", "example.org:443", "127.0.0.1"):
            code, reason = self.post("/drain", {"address": address})
            self.assertEqual(code, 10)
            self.assertIn("lists no AgentCenter", reason)
        lonely = Deployment().start()
        self.addCleanup(lonely.end)
        only = Operations()
        lonely.register(ScriptedAc(lonely.network, more=[only]), 1, {"limit": 10})
        token = lonely.login()
        for force, code in ((False, 10), (True, 0)):
            body = {"address": "127.0.0.1:6752", "force": force}
            got = lonely.call("POST", f"{CLUSTER}/drain", body, token=token)
            self.assertEqual(got.json["code"], code, got.json)
        self.assertEqual(len(only.told), 1)

    def test_reset(self) -> None:
        """By number or by ids, not both."""
        at = {"address": "127.0.0.1:6762"}
        self.assertEqual(self.post("/reset", at | {"count": 3})[0], 0)
        self.assertEqual(
            self.post("/reset", at | {"id_list": ["a", "b"]}),
            (0, {"count": 2, "detail": {"a": "ok", "b": "ok"}}),
        )
        asked = [(body.type, body.count, body.id_list) for _, body in self.two.told]
        self.assertEqual(asked, [("random", 3, None), ("strict", None, ["a", "b"])])
        for body in ({}, {"count": 1, "id_list": ["a"]}, {"count": 0}, {"id_list": []}):
            self.assertEqual(self.post("/reset", at | body)[0], 5, body)

    def test_levels(self) -> None:
        """Many may look, few may act."""
        for level in range(9):
            token = self.deployment.add_user(f"user{level}", level)
            for path in ("/instances", "/distribution", "/ledger", "/conflicts"):
                got = self.deployment.call("GET", CLUSTER + path, token=token)
                self.assertEqual(got.status, 403 if level in {4, 5} else 200, (level, path))
            for path in ("/drain", "/undrain", "/reset"):
                body = {"address": "nowhere:1", "count": 1}
                got = self.deployment.call("POST", CLUSTER + path, body, token=token)
                self.assertEqual(got.status, 200 if level in {0, 1} else 403, (level, path))


ledgers = st.builds(
    LedgerAnswer,
    st.dictionaries(
        st.sampled_from(["control", "telemetry"]),
        st.builds(
            ClassLedger,
            st.integers(0, 9),
            st.integers(0, 9),
            st.dictionaries(st.sampled_from("ab"), st.integers(0, 9)),
            st.dictionaries(
                st.sampled_from(["kafka", "x"]),
                st.builds(
                    ReaderLedger,
                    st.integers(0, 9),
                    st.integers(0, 9),
                    st.integers(0, 9),
                    st.dictionaries(st.sampled_from("ab"), st.integers(0, 9)),
                ),
            ),
        ),
    ),
    st.builds(BeforeReading, st.integers(0, 9), st.integers(0, 9)),
)


def total(value: Any) -> int:
    """All numbers in it."""
    if isinstance(value, dict):
        return sum(map(total, value.values()))
    return int(value)


class LedgerTests(SynchronousTestCase):
    """Sums of ledgers."""

    @given(st.lists(ledgers, max_size=4))
    @settings(max_examples=60, deadline=None)
    def test_nothing_is_lost(self, several: list[LedgerAnswer]) -> None:
        """Every number is in the sum once, and the parts are not changed."""
        before = msgspec.json.encode(several)
        whole = summed(several)
        self.assertEqual(msgspec.json.encode(several), before)
        self.assertEqual(
            total(msgspec.to_builtins(whole)),
            sum(total(msgspec.to_builtins(each)) for each in several),
        )

    def test_imbalances(self) -> None:
        """A class and a reader that do not add up are named; sound ones are not."""
        sound = msgspec.convert({"data": {"logs": account(9, 2, 3)}}, LedgerAnswer)
        self.assertEqual(imbalances(sound), [])
        sound.data["logs"].appended += 1
        self.assertEqual(len(imbalances(sound)), 2)


class FanoutTests(SynchronousTestCase):
    """Asking many."""

    def test_bounded(self) -> None:
        """So many at once; when the time is over the rest is not asked, and named."""
        clock = Clock()
        asked: list[Source] = []
        nothing: Any = None

        async def ask(source: Source) -> int:
            asked.append(source)
            waiting: Deferred[None] = Deferred()
            clock.callLater(3, waiting.callback, None)
            await waiting
            raise CallFailed("dead")

        sources = [Source("10.0.0.1", port) for port in range(1, 200)]
        done = Deferred.fromCoroutine(Gateways(clock, nothing).ask_all(sources, ask))
        self.assertEqual(len(asked), AT_ONCE)
        clock.pump([1] * 12)
        answers = self.successResultOf(done)
        self.assertEqual(len(asked), 3 * AT_ONCE)
        self.assertEqual(len(answers.failed), 199)
        self.assertLessEqual(clock.seconds(), ALL_SECONDS + 4)

    def test_shared(self) -> None:
        """Who asks meanwhile, or just after, gets the same answer; one that leaves hurts nobody."""
        clock = Clock()
        made: list[Deferred[int]] = []

        async def make() -> int:
            made.append(Deferred())
            return await made[-1]

        shared = Shared(clock, make)
        first, second, third = (Deferred.fromCoroutine(shared.get()) for _ in range(3))
        second.addErrback(lambda failure: None)
        second.cancel()
        made[0].callback(5)
        self.assertEqual((self.successResultOf(first), self.successResultOf(third)), (5, 5))
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(shared.get())), 5)
        clock.advance(1.1)
        again = Deferred.fromCoroutine(shared.get())
        self.assertEqual(len(made), 2)
        made[1].errback(CallFailed("dead"))
        self.failureResultOf(again, CallFailed)
        self.assertEqual(len(made), 2)
