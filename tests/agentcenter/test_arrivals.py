"""What came of each agent, by data type, as `/conn/stat` tells it."""

from elkeid.agentcenter.api import status_of
from elkeid.agentcenter.arrivals import LEFT_LIMIT, TYPE_LIMIT, Arrivals
from tests.agentcenter.host import WALL, Host, batch, make_gateway


def test_counts_and_times() -> None:
    """Each data type has its number of records and the time of the last one."""
    gateway, _, clock = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 59, 59, 101))
    clock.advance(30)
    host.send(stream, batch("a1", 59, 1000))
    agent = gateway.table.get("a1")
    assert agent is not None
    info = status_of(agent)["agent_info"]
    assert info["data_types"] == {
        "59": {"count": 3, "last_seen": WALL + 30},
        "101": {"count": 1, "last_seen": WALL},
        "1000": {"count": 1, "last_seen": WALL + 30},
    }
    assert info["loss"] == {
        "dropped_in_buffer": 0,
        "lost_in_flight": 0,
        "intervals": 0,
        "skipped": 0,
    }


def test_they_outlast_a_stream() -> None:
    """An agent that comes back goes on counting, from wherever it comes."""
    gateway, _, clock = make_gateway()
    for port in range(3):
        host = Host(gateway, port=port)
        stream = host.open()
        host.send(stream, batch("a1", 59, 59))
        clock.advance(1)
        if port != 1:  # the second one is replaced while it is here
            host.drop()
    agent = gateway.table.get("a1")
    assert agent is None
    again = Host(gateway)
    again.send(again.open(), batch("a1", 59))
    agent = gateway.table.get("a1")
    assert agent is not None
    assert agent.stream.arrivals.counts == {59: 7}
    assert agent.stream.arrivals.total == 7


def test_a_refused_claimant_counts_nothing_for_the_holder() -> None:
    """What a loser brings is stored, but does not hide what the agent itself lost."""
    gateway, _, _ = make_gateway()
    holder, other = Host(gateway, "10.0.0.1"), Host(gateway, "10.0.0.2")
    holder.send(holder.open(), batch("a1", 59))
    other.send(other.open(), batch("a1", 59, 59, 59))
    holder.pump()
    agent = gateway.table.get("a1")
    assert agent is not None
    assert agent.stream.arrivals.counts == {59: 1}


def test_types_are_bounded() -> None:
    """An agent that makes numbers up gets no more room than its share."""
    arrivals = Arrivals()
    for kind in range(TYPE_LIMIT + 100):
        arrivals.take({kind: 2}, 2, kind)
    assert len(arrivals.counts) == TYPE_LIMIT + 1
    assert arrivals.counts[-1] == 200
    assert arrivals.last_seen[-1] == TYPE_LIMIT + 99
    assert arrivals.total == 2 * (TYPE_LIMIT + 100)


def test_departures_are_bounded() -> None:
    """Only so many agents that left are remembered."""
    gateway, _, _ = make_gateway()
    book = gateway.arrivals
    book._left = {str(number): Arrivals() for number in range(LEFT_LIMIT)}
    host = Host(gateway)
    host.send(host.open(), batch("a1", 59))
    host.drop()
    assert len(book._left) == LEFT_LIMIT
    assert "0" not in book._left


def test_loss_from_heartbeats() -> None:
    """Heartbeats of a real gateway's stream make the estimate, per agent and in sum."""
    gateway, _, clock = make_gateway()
    host = Host(gateway)
    stream = host.open()
    for minute in range(7):
        records = 100 if minute == 3 else 300
        if minute:
            for _ in range(records):
                host.send(stream, batch("a1", 59))
            clock.advance(60)
        sent = f"{301 / 60:.8f}"  # it sent 300 and its heartbeat in every minute
        host.send(stream, batch("a1", 1000, tx_tps=sent, pid="1", start_time="5"))
    agent = gateway.table.get("a1")
    assert agent is not None
    assert agent.stream.arrivals.loss is not None
    assert agent.stream.arrivals.loss.in_flight == 200
    assert (gateway.arrivals.in_flight, gateway.arrivals.dropped) == (200, 0)


def test_the_first_kernel_event_is_news() -> None:
    """Whoever asks for changes learns of it at once; of later ones with the next heartbeat."""
    gateway, _, _ = make_gateway()
    host = Host(gateway)
    stream = host.open()
    host.send(stream, batch("a1", 59))
    host.send(stream, batch("a1", 1000))
    cursor = gateway.table.changes(None).cursor
    host.send(stream, batch("a1", 601, 59, 5050))
    assert gateway.table.changes(cursor).agents == []
    other = host.open()
    host.send(other, batch("a2", 1000))
    cursor = gateway.table.changes(None).cursor
    host.send(other, batch("a2", 5050))
    assert gateway.table.changes(cursor).agents == []
    host.send(other, batch("a2", 601))
    assert [agent.agent_id for agent in gateway.table.changes(cursor).agents] == ["a2"]
