"""Disputes about ids: nobody is displaced who lives, and operators see who claims what."""

from attrs import define

from elkeid.agentcenter.claims import Claims, Recent
from elkeid.wire.grpc import Status
from tests.agentcenter.host import WALL, Host, batch, make_gateway


@define(eq=False)
class Stream:
    peer_host: str

    @property
    def peer_addr(self) -> str:
        return f"{self.peer_host}:1"


def test_lists_are_bounded_and_the_latest_stay() -> None:
    """What changed longest ago is forgotten first."""
    recent: Recent[list[str]] = Recent(2)
    recent.add("a", ["a"])
    recent.add("b", ["b"])
    assert recent.get("a") == ["a"]
    recent.add("c", ["c"])
    assert recent.latest() == [["c"], ["a"]]
    assert recent.get("b") is None


def test_one_hostile_host_floods_its_own_lines_only() -> None:
    """The same loser of the same id is one line with a count."""
    claims, holder, loser = Claims(), Stream("10.0.0.1"), Stream("10.6.6.6")
    for second in range(5):
        claims.lost("a", loser, holder, "refused", WALL + second)
    (entry,) = claims.conflicts.latest()
    assert (entry.count, entry.first_at, entry.last_at) == (5, WALL, WALL + 4)
    assert (entry.peer, entry.holder) == ("10.6.6.6:1", "10.0.0.1:1")


def test_host_that_claims_every_id_displaces_nobody() -> None:
    """It holds the shared client key and tries all of them, twice; every live agent stays."""
    gateway, _, clock = make_gateway()
    agents = [Host(gateway, f"10.0.0.{n}") for n in range(50)]
    for number, agent in enumerate(agents):
        agent.send(agent.open(), batch(f"id-{number}", 1000))
    for _ in range(2):
        thieves = []
        for number in range(50):
            thief = Host(gateway, "10.6.6.6", 50_000 + number)
            stream = thief.open()
            thief.send(stream, batch(f"id-{number}", 1000))
            thieves.append((thief, stream))
        for agent in agents:
            agent.pump()
        for thief, stream in thieves:
            thief.pump()
            end = thief.ended(stream)
            assert end is not None
            assert (end.status, end.message) == (Status.UNKNOWN, "agentID conflict")
        clock.advance(30)
    holders = {agent.agent_id: agent.stream.peer_host for agent in gateway.table}
    assert holders == {f"id-{number}": f"10.0.0.{number}" for number in range(50)}
    assert (gateway.table.conflicts, gateway.table.hands_changed) == (100, 0)
    losers = gateway.table.claims.conflicts.latest()
    assert {(each.address, each.outcome, each.count) for each in losers} == {
        ("10.6.6.6", "refused", 2)
    }
    assert gateway.counters.refused["conflict"] == 100


def test_two_cloned_hosts_do_not_evict_each_other() -> None:
    """The first keeps the id for as long as it lives, however often the other comes back."""
    gateway, _, clock = make_gateway()
    first = Host(gateway, "10.0.0.1")
    first.send(first.open(), batch("a", 1000))
    for turn in range(20):
        clone = Host(gateway, "10.0.0.2", 50_000 + turn)
        stream = clone.open()
        clone.send(stream, batch("a", 1000))
        first.pump()
        clone.pump()
        assert clone.ended(stream) is not None
        clock.advance(5)
    agent = gateway.table.get("a")
    assert agent is not None
    assert agent.stream.peer_host == "10.0.0.1"
    (entry,) = gateway.table.claims.conflicts.latest()
    assert (entry.address, entry.count) == ("10.0.0.2", 20)


def test_clones_behind_one_address_are_counted() -> None:
    """They replace each other, as an agent does that comes back: the count tells them apart."""
    gateway, _, clock = make_gateway()
    for turn in range(10):
        host = Host(gateway, "192.0.2.1", 50_000 + turn)
        host.send(host.open(), batch("a", 1000))
        clock.advance(5)
    (entry,) = gateway.table.claims.replaced.latest()
    assert (entry.agent_id, entry.address, entry.count) == ("a", "192.0.2.1", 9)
    assert entry.last_at - entry.first_at == 40
    assert gateway.table.replaced == 9


def test_displaced_holder_is_listed() -> None:
    """A host that answered no more and lost its id to another address."""
    gateway, _, clock = make_gateway()
    silent, heir = Host(gateway, "10.0.0.1"), Host(gateway, "10.0.0.2")
    silent.send(silent.open(), batch("a", 1000))
    silent.frozen = True
    heir.send(heir.open(), batch("a", 1000))
    clock.advance(5)
    (entry,) = gateway.table.claims.conflicts.latest()
    assert (entry.address, entry.outcome) == ("10.0.0.1", "displaced")
    assert entry.holder.startswith("10.0.0.2:")


def test_claimant_that_leaves_is_listed() -> None:
    """Claims that are given up before they are settled do not go unseen."""
    gateway, _, _ = make_gateway()
    holder, thief = Host(gateway, "10.0.0.1"), Host(gateway, "10.6.6.6")
    holder.send(holder.open(), batch("a", 1000))
    thief.send(thief.open(), batch("a", 1000))
    thief.drop()
    (entry,) = gateway.table.claims.conflicts.latest()
    assert (entry.address, entry.outcome) == ("10.6.6.6", "left")
    assert gateway.table.conflicts == 1


def test_hosts_without_an_id_are_listed() -> None:
    """With what tells them apart."""
    gateway, _, _ = make_gateway()
    for port in (40_000, 40_001):
        host = Host(gateway, "10.0.0.1", port)
        host.send(host.open(), batch("", 1000, hostname="vm-7"))
    (entry,) = gateway.table.claims.unidentified.latest()
    assert entry.agent_id.startswith("noid-")
    assert (entry.hostname, entry.intranet_ipv4, entry.count) == ("vm-7", ["10.0.0.1"], 2)
    assert entry.peer == "10.0.0.1:40001"
