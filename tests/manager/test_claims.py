"""One agent id, one stream, across AgentCenters: who keeps it, who is told, what is shown."""

from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager.claims import Claim, ClaimTable, Verdict
from elkeid.manager.documents import Source
from elkeid.manager.live import EVENT_NAMES, Listener
from elkeid.web.routes import AuthKind, Call, Routes

from .deployment import Deployment, ScriptedAc

ONE, TWO, THREE = (Source("10.0.0.1", port) for port in (1, 2, 3))

claims = st.builds(
    Claim,
    st.sampled_from([ONE, TWO, THREE]),
    st.sampled_from(["", "192.0.2.1", "192.0.2.2"]),
    st.integers(0, 5),
)


class TableTests(SynchronousTestCase):
    """The rule."""

    def judged(self, holder: Claim, claim: Claim) -> Verdict:
        """What a claim means while another stream holds the id."""
        table = ClaimTable()
        table.take("a", holder)
        return table.judge("a", claim)

    def test_rule(self) -> None:
        """By AgentCenter, address and beginning."""
        here = Claim(ONE, "192.0.2.1", 100)
        for claim, verdict in [
            (Claim(ONE, "192.0.2.9", 1), Verdict.SAME),
            (Claim(TWO, "192.0.2.1", 101), Verdict.MOVED),
            (Claim(TWO, "192.0.2.1", 99), Verdict.STALE),
            (Claim(TWO, "192.0.2.1", 100), Verdict.MOVED),
            (Claim(TWO, "192.0.2.2", 101), Verdict.CONTESTED),
            (Claim(TWO, "192.0.2.2", 99), Verdict.CONTESTED),
            (Claim(TWO, "", 101), Verdict.MOVED),
        ]:
            self.assertIs(self.judged(here, claim), verdict, claim)
        self.assertIs(ClaimTable().judge("a", here), Verdict.NEW)

    @given(claims, claims)
    @settings(max_examples=200, deadline=None)
    def test_two_managers_agree(self, one: Claim, other: Claim) -> None:
        """Whichever of two streams is heard of first, the same one is in the right."""
        first, second = self.judged(one, other), self.judged(other, one)
        if one.source == other.source:
            self.assertEqual({first, second}, {Verdict.SAME})
        elif Verdict.CONTESTED in (first, second):
            self.assertEqual(first, second)
        else:
            self.assertEqual({first, second}, {Verdict.MOVED, Verdict.STALE})

    @given(st.lists(st.tuples(st.sampled_from("abc"), claims, st.booleans()), max_size=30))
    @settings(max_examples=150, deadline=None)
    def test_remembers(self, steps: list[tuple[str, Claim, bool]]) -> None:
        """As a plain dictionary would: the AgentCenter and the beginning of each holder."""
        table, model = ClaimTable(), dict[str, Claim]()
        for agent_id, claim, leaves in steps:
            if leaves:
                held = model.get(agent_id)
                had = held is not None and held.source == claim.source
                self.assertEqual(table.release(agent_id, claim.source), had)
                if had:
                    del model[agent_id]
            else:
                table.take(agent_id, claim)
                model[agent_id] = claim
        self.assertEqual(set(table.names()), set(model))
        for agent_id, claim in model.items():
            held = table.holder(agent_id)
            assert held is not None
            self.assertEqual((held.source, held.since), (claim.source, claim.since))
            self.assertEqual(held.address == 0, claim.address == "")
        for source in (ONE, TWO, THREE):
            expected = {key for key, claim in model.items() if claim.source == source}
            self.assertEqual(set(table.of(source, table.names())), expected)


class Ids(msgspec.Struct):
    """Body of what is asked about agents."""

    id_list: list[str]


class Agents:
    """How an AgentCenter of ours answers for its agents; tests choose who lives."""

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.reset: list[str] = []
        self.probed: list[str] = []
        self.stuck = False

    @routes.post("/conn/probe", summary="", body=Ids, answer=None)
    async def probe(self, call: Call[None, Ids]) -> object:
        self.probed += call.body.id_list
        if self.stuck:
            await Deferred()
        gone = [each for each in call.body.id_list if each in self.dead]
        alive = {each: "192.0.2.1:5" for each in call.body.id_list if each not in self.dead}
        return {"alive": alive, "gone": gone}

    @routes.post("/conn/reset", summary="", body=Ids, answer=None)
    async def end(self, call: Call[None, Ids]) -> object:
        self.reset += call.body.id_list
        return {"count": len(call.body.id_list), "detail": {}}


class Upstream:
    """What an AgentCenter of upstream can tell of its agents."""

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self) -> None:
        self.there: list[str] = []

    @routes.get("/conn/list", summary="", answer=None)
    async def ids(self, call: Call) -> object:
        return self.there


class Kept:
    """A listener of the live feed."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def tell(self, event: bytes) -> None:
        """Keep."""
        self.events.append(msgspec.json.decode(event))

    def end(self, reason: str) -> None:
        """Nothing."""


async def fine() -> None:
    """It may listen."""


class AcrossTests(SynchronousTestCase):
    """Two AgentCenters, and an id at both."""

    def setUp(self) -> None:
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)
        self.ones, self.twos = Agents(), Agents()
        self.one, self.two = self.add(6752, self.ones), self.add(6762, self.twos)
        self.token = self.deployment.login()
        self.kept = Kept()
        self.deployment.manager.live.join(Listener("u", EVENT_NAMES, self.kept, fine))
        self.advance(3)

    def add(self, port: int, answers: Any) -> ScriptedAc:
        """An AgentCenter."""
        ac = ScriptedAc(self.deployment.network, port, more=[answers])
        self.deployment.register(ac)
        return ac

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.deployment.network.advance(seconds)

    def beat(self, ac: ScriptedAc, address: str, began: int = 0, **more: Any) -> None:
        """The agent is at an AgentCenter, and the Manager hears of it; ``began`` s ago."""
        since = int(self.deployment.network.wall()) - began
        ac.beat("a", agent_addr=f"{address}:1234", create_at=since, **more)
        self.advance(3)

    def shown(self) -> tuple[str, Any]:
        """Where the agent is said to be, and what it says of itself."""
        agent = self.deployment.agent(self.token, "a")
        return f"{agent['source_ip']}:{agent['source_port']}", agent.get("idc")

    def events(self) -> list[str]:
        """Names of those that were told."""
        return [each["event"] for each in self.kept.events]

    def across(self) -> list[dict[str, Any]]:
        """The conflicts that the Manager found."""
        found: list[dict[str, Any]] = self.deployment.call(
            "GET", "/api/v1/cluster/conflicts", token=self.token
        ).data["across"]
        return found

    def test_moved_behind_its_address(self) -> None:
        """It counts where it came last, at once; what the old stream says is not shown."""
        self.beat(self.one, "192.0.2.1", 100, idc="old")
        self.beat(self.two, "192.0.2.1", 1, idc="new")
        self.assertEqual(self.shown(), ("127.0.0.1:6762", "new"))
        self.beat(self.one, "192.0.2.1", 110, idc="stale")
        self.assertEqual(self.shown(), ("127.0.0.1:6762", "new"))
        self.assertEqual((self.ones.reset, self.twos.reset), (["a"], []))
        self.one.lose("a")
        self.advance(3)
        self.assertEqual(self.events(), ["online", "moved"])
        self.assertEqual(self.kept.events[1]["before"], "127.0.0.1:6752")
        self.two.lose("a")
        self.advance(3)
        self.assertEqual(self.events(), ["online", "moved", "offline"])

    def test_the_living_elder_keeps_it(self) -> None:
        """A stream from elsewhere is not shown, is listed, and its AgentCenter ends it."""
        self.beat(self.one, "192.0.2.1", 100, idc="true")
        self.beat(self.two, "192.0.2.66", 1, idc="forged")
        self.assertEqual(self.ones.probed, ["a"])
        self.assertEqual(self.shown(), ("127.0.0.1:6752", "true"))
        self.assertEqual((self.ones.reset, self.twos.reset), ([], ["a"]))
        (conflict,) = self.across()
        self.assertEqual(
            [conflict[key] for key in ("agent_id", "gateway", "address", "holder", "count")],
            ["a", "127.0.0.1:6762", "192.0.2.66", "192.0.2.1:5", 1],
        )
        self.beat(self.two, "192.0.2.66", 1, idc="again")
        self.assertEqual(self.across()[0]["count"], 2)
        self.assertEqual(self.shown(), ("127.0.0.1:6752", "true"))
        self.assertEqual(self.events(), ["online", "conflict", "conflict"])
        metrics = self.deployment.call("GET", "/metrics").text
        self.assertIn(b'elkeid_manager_claims_total{outcome="refused"} 2', metrics)
        self.assertIn(b"elkeid_manager_claims_waiting 0", metrics)

    def test_the_elder_is_gone(self) -> None:
        """A host that vanished and came back from elsewhere is shown there at once."""
        self.beat(self.one, "192.0.2.1", 100, idc="old")
        self.ones.dead.add("a")
        self.beat(self.two, "192.0.2.2", 1, idc="new")
        self.assertEqual(self.shown(), ("127.0.0.1:6762", "new"))
        self.assertEqual((self.ones.reset, self.twos.reset), ([], []))
        self.assertEqual(self.events(), ["online", "moved"])

    def test_the_elder_leaves_meanwhile(self) -> None:
        """Then nobody need be asked; and a claim whose own stream ends is forgotten."""
        self.ones.stuck = True
        self.beat(self.one, "192.0.2.1", 100)
        self.beat(self.two, "192.0.2.2", 1, idc="new")
        self.assertEqual(self.shown()[0], "127.0.0.1:6752")
        self.one.lose("a")
        self.advance(3)
        self.assertEqual(self.shown(), ("127.0.0.1:6762", "new"))
        self.twos.stuck = True
        self.beat(self.one, "192.0.2.3", 1)
        self.one.lose("a")
        self.advance(3)
        self.assertEqual(self.deployment.manager.claims.figures()[0], 0)
        self.advance(20)
        self.assertEqual(self.shown()[0], "127.0.0.1:6762")

    def test_heard_of_in_the_other_order(self) -> None:
        """The elder stream keeps the id though the Manager heard of the younger one first."""
        self.beat(self.two, "192.0.2.66", 50, idc="forged")
        self.beat(self.one, "192.0.2.1", 100, idc="true")
        self.assertEqual(self.shown(), ("127.0.0.1:6752", "true"))
        self.assertEqual((self.ones.reset, self.twos.reset), ([], ["a"]))
        self.assertEqual(self.across()[0]["gateway"], "127.0.0.1:6762")

    def test_nobody_can_tell(self) -> None:
        """Its AgentCenter silent for ten seconds, the elder gives way; not twice a minute."""
        self.beat(self.one, "192.0.2.1", 100)
        self.one.down()
        self.beat(self.two, "192.0.2.2", 1, idc="new")
        self.assertEqual(self.shown()[0], "127.0.0.1:6752")
        self.advance(12)
        self.assertEqual(self.shown(), ("127.0.0.1:6762", "new"))
        self.two.down()
        three = self.add(6772, Agents())
        self.advance(3)
        self.beat(three, "192.0.2.3", 0, idc="newer")
        self.advance(15)
        self.assertEqual(self.shown()[0], "127.0.0.1:6762")
        self.advance(60)
        self.beat(three, "192.0.2.3", 80, idc="newer")
        self.advance(15)
        self.assertEqual(self.shown(), ("127.0.0.1:6772", "newer"))

    def test_a_third(self) -> None:
        """A claim beside one that is being settled loses."""
        self.ones.stuck = True
        self.beat(self.one, "192.0.2.1", 100)
        self.beat(self.two, "192.0.2.2", 2)
        others = Agents()
        three = self.add(6772, others)
        self.advance(1)
        self.beat(three, "192.0.2.3", 1)
        self.assertEqual(others.reset, ["a"])

    def test_too_many_disputes(self) -> None:
        """Of more claims than may wait, or larger ones, the reports are left out."""
        self.beat(self.one, "192.0.2.1", 100)
        for name in ("DISPUTES", "DISPUTE_BYTES"):
            with patch(f"elkeid.manager.claim_watch.{name}", 0):
                self.beat(self.two, "192.0.2.2", 1)
            self.assertEqual(self.ones.probed, [])
        counts = self.deployment.manager.claims.figures()[1]
        self.assertEqual((counts["surplus"], counts["refused"]), (2, 0))
        self.beat(self.two, "192.0.2.2", 1)
        self.assertEqual(self.twos.reset, ["a"])

    def test_upstream(self) -> None:
        """An AgentCenter of upstream is believed about who is connected."""
        upstream = Upstream()
        upstream.there = ["a"]
        three = self.add(6772, upstream)
        self.advance(3)
        self.beat(three, "192.0.2.1", 100)
        self.beat(self.two, "192.0.2.2", 1)
        self.assertEqual((self.shown()[0], self.twos.reset), ("127.0.0.1:6772", ["a"]))
        upstream.there = []
        self.beat(self.two, "192.0.2.2", 1)
        self.assertEqual(self.shown()[0], "127.0.0.1:6762")

    def test_a_start_is_no_news(self) -> None:
        """What an AgentCenter tells at first, all at once, is not told as news."""
        self.one.beat("b")
        self.deployment.stop()
        self.deployment.start()
        kept = Kept()
        self.deployment.manager.live.join(Listener("u", EVENT_NAMES, kept, fine))
        self.advance(6)
        self.assertEqual(kept.events, [])
        self.one.beat("c")
        self.advance(3)
        self.assertEqual([each["agent_id"] for each in kept.events], ["c"])
