"""Who holds an agent id, and what readers of the table are told."""

from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from elkeid.agentcenter.table import AgentTable, Claim


@define(eq=False)
class Stream:
    peer_host: str

    @property
    def peer_addr(self) -> str:
        return f"{self.peer_host}:1"


def table(takeover_seconds: float = 60) -> AgentTable:
    return AgentTable(takeover_seconds)


def test_first_comer_holds_its_id() -> None:
    """An id that nobody has goes to the stream that asks."""
    agents, stream = table(), Stream("10.0.0.1")
    assert agents.claim("a", stream, 7) == (Claim.HELD, None)
    agent = agents.holds("a", stream)
    assert agent is not None
    assert agent.created_at == 7
    assert len(agents) == 1


def test_newcomer_from_the_same_address_replaces_at_once() -> None:
    """An agent that reconnects before we notice its loss does not wait."""
    agents, old, new = table(), Stream("10.0.0.1"), Stream("10.0.0.1")
    agents.claim("a", old, 1)
    assert agents.claim("a", new, 2) == (Claim.HELD, old)
    assert agents.holds("a", old) is None
    assert agents.holds("a", new) is not None
    assert (agents.replaced, agents.hands_changed) == (1, 0)


def test_late_end_of_the_replaced_stream_does_not_remove_the_new_one() -> None:
    """The old stream's cleanup leaves the agent addressable."""
    agents, old, new = table(), Stream("10.0.0.1"), Stream("10.0.0.1")
    agents.claim("a", old, 1)
    agents.claim("a", new, 2)
    agents.release("a", old, 3)
    assert agents.holds("a", new) is not None


def test_live_holder_keeps_its_id() -> None:
    """Who claims an id from elsewhere loses when the holder answers."""
    agents, holder, thief = table(), Stream("10.0.0.1"), Stream("10.6.6.6")
    agents.claim("a", holder, 1)
    assert agents.claim("a", thief, 2) == (Claim.PROBE, holder)
    assert agents.settle("a", thief, True, 5.0, 5) == (False, None)
    assert agents.holds("a", holder) is not None
    assert agents.conflicts == 1


def test_silent_holder_loses() -> None:
    """A host that moved to another address gets its id when the old stream is dead."""
    agents, old, new = table(), Stream("10.0.0.1"), Stream("10.0.0.2")
    agents.claim("a", old, 1)
    agents.claim("a", new, 2)
    assert agents.settle("a", new, False, 7.0, 7) == (True, old)
    assert agents.holds("a", new) is not None
    assert agents.hands_changed == 1


def test_id_changes_hands_at_most_once_a_minute() -> None:
    """Two cloned hosts with slow links do not evict each other in turn."""
    agents = table(60)
    first, second, third = Stream("10.0.0.1"), Stream("10.0.0.2"), Stream("10.0.0.1")
    agents.claim("a", first, 1)
    agents.claim("a", second, 2)
    agents.settle("a", second, False, 7.0, 7)
    assert agents.claim("a", third, 8) == (Claim.PROBE, second)
    assert agents.settle("a", third, False, 13.0, 13) == (False, None)
    assert agents.claim("a", third, 70) == (Claim.PROBE, second)
    assert agents.settle("a", third, False, 75.0, 75) == (True, second)


def test_holder_that_leaves_while_probed_hands_over_at_once() -> None:
    """The waiting newcomer does not sit out the probe of a stream that is gone."""
    agents, old, new = table(), Stream("10.0.0.1"), Stream("10.0.0.2")
    agents.claim("a", old, 1)
    agents.claim("a", new, 2)
    assert agents.release("a", old, 3) is new
    assert agents.holds("a", new) is not None
    assert agents.settle("a", new, False, 7.0, 7) == (False, None)  # the probe's late end


def test_only_one_newcomer_waits() -> None:
    """A flood of claims costs one probe, the rest is refused."""
    agents = table()
    agents.claim("a", Stream("10.0.0.1"), 1)
    agents.claim("a", Stream("10.0.0.2"), 1)
    assert agents.claim("a", Stream("10.0.0.3"), 1) == (Claim.REFUSED, None)


def test_newcomer_that_leaves_frees_the_wait() -> None:
    """The next claim is probed for anew."""
    agents, holder, first, second = table(), Stream("h"), Stream("x"), Stream("y")
    agents.claim("a", holder, 1)
    agents.claim("a", first, 1)
    agents.release("a", first, 1)
    assert agents.claim("a", second, 1) == (Claim.PROBE, holder)


def test_cursor_costs_only_what_changed() -> None:
    """A reader with a cursor gets the agents that changed and the ids that left."""
    agents = table()
    streams = {name: Stream(name) for name in "abc"}
    for name, stream in streams.items():
        agents.claim(name, stream, 1)
    everything = agents.changes(None)
    assert everything.complete
    assert [a.agent_id for a in everything.agents] == ["a", "b", "c"]
    again = agents.changes(everything.cursor)
    assert (again.agents, again.gone, again.complete) == ([], [], False)
    agent = agents.get("a")
    assert agent is not None
    agents.touch(agent)
    agents.release("b", streams["b"], 2)
    changed = agents.changes(again.cursor)
    assert ([a.agent_id for a in changed.agents], changed.gone) == (["a"], ["b"])


def test_agent_that_left_and_came_back_is_not_gone() -> None:
    """Readers see it as changed, not as gone."""
    agents, stream = table(), Stream("a")
    cursor = agents.changes(None).cursor
    agents.claim("a", stream, 1)
    agents.release("a", stream, 1)
    agents.claim("a", Stream("a"), 2)
    changed = agents.changes(cursor)
    assert ([a.agent_id for a in changed.agents], changed.gone) == (["a"], [])


def test_everybody_in_parts() -> None:
    """A reader of parts gets everybody, and who changed or left meanwhile, by the last one."""
    agents = table()
    streams = {name: Stream(name) for name in "abcd"}
    for name, stream in streams.items():
        agents.claim(name, stream, 1)
    agents.release("b", streams["b"], 1)
    first = agents.changes("")
    assert (first.complete, [a.agent_id for a in first.agents]) == (True, ["a", "c", "d"])
    cursor = first.cursor_after(1)
    for name in "ac":
        agents.release(name, streams[name], 2)
    agents.claim("e", Stream("e"), 2)
    second = agents.changes(cursor)
    assert not second.complete
    assert ([a.agent_id for a in second.agents], second.gone) == (["d", "e"], ["a", "c"])
    third = agents.changes(second.cursor_after(1))
    assert ([a.agent_id for a in third.agents], third.gone) == (["e"], [])


def test_unknown_cursor_gets_everything() -> None:
    """A cursor of another process, of the future or of nonsense is no cursor."""
    agents = table()
    agents.claim("a", Stream("a"), 1)
    cursor = agents.changes(None).cursor
    run = cursor.partition("-")[0]
    tails = ("", "-", "-1", "-99-99", "-2-1", "--1-1", "-1e3-1", "-1-1-1", "-1-1 ")
    for odd in ("", "x", "0-1-1", *(run + tail for tail in tails)):
        assert agents.changes(odd).complete, odd


class TableMachine(RuleBasedStateMachine):
    """Claims, ends and probes in any order against the rules in words."""

    def __init__(self) -> None:
        super().__init__()
        self.table = table(60)
        self.live: list[tuple[str, Stream]] = []
        self.waiting: dict[str, Stream] = {}
        self.held: dict[str, Stream] = {}
        self.now = 0.0
        self.cursor = self.table.changes(None).cursor
        self.seen: set[str] = set()

    ids = st.sampled_from("ab")

    @rule(agent_id=ids, host=st.sampled_from("xyz"))
    def open(self, agent_id: str, host: str) -> None:
        stream = Stream(host)
        holder = self.held.get(agent_id)
        verdict, other = self.table.claim(agent_id, stream, int(self.now))
        if holder is None or holder.peer_host == host:
            assert (verdict, other) == (Claim.HELD, holder)
            self.held[agent_id] = stream
        elif agent_id in self.waiting:
            assert verdict is Claim.REFUSED
        else:
            assert (verdict, other) == (Claim.PROBE, holder)
            self.waiting[agent_id] = stream
        self.live.append((agent_id, stream))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        agent_id, stream = data.draw(st.sampled_from(self.live))
        self.live.remove((agent_id, stream))
        heir = self.table.release(agent_id, stream, int(self.now))
        if self.held.get(agent_id) is stream:
            expected = self.waiting.pop(agent_id, None)
            assert heir is expected
            if expected is None:
                del self.held[agent_id]
            else:
                self.held[agent_id] = expected
        else:
            assert heir is None
            if self.waiting.get(agent_id) is stream:
                del self.waiting[agent_id]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), answered=st.booleans(), later=st.sampled_from([1.0, 61.0]))
    def settle(self, data: st.DataObject, answered: bool, later: float) -> None:
        self.now += later
        agent_id = data.draw(st.sampled_from(sorted(self.waiting)))
        claimant = self.waiting.pop(agent_id)
        won, old = self.table.settle(agent_id, claimant, answered, self.now, int(self.now))
        if answered:
            assert not won
        if won:
            assert old is self.held[agent_id]
            self.held[agent_id] = claimant

    @rule()
    def read(self) -> None:
        changes = self.table.changes(self.cursor)
        assert not changes.complete
        ids = {agent.agent_id for agent in changes.agents}
        assert not ids & set(changes.gone)
        self.seen = (self.seen - set(changes.gone)) | ids
        self.cursor = changes.cursor
        assert self.seen == set(self.held)

    @rule(data=st.data())
    def read_some(self, data: st.DataObject) -> None:
        changes = self.table.changes(self.cursor)
        assert not changes.complete
        count = data.draw(st.integers(0, len(changes.agents)))
        ids = {agent.agent_id for agent in changes.agents[:count]}
        self.seen = (self.seen - set(changes.gone)) | ids
        if count:
            self.cursor = changes.cursor_after(count)

    @invariant()
    def holders_agree(self) -> None:
        assert {agent.agent_id: agent.stream for agent in self.table} == self.held


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
