"""Series of single agents: only when asked for, only for so many, gone when they leave."""

from prometheus_client import CollectorRegistry, generate_latest

from elkeid.agentcenter.per_agent import PerAgentMetrics
from elkeid.metrics import AgentMetrics
from tests.agentcenter.host import Host, batch, make_gateway


def test_series_come_and_go() -> None:
    """Numbers of the agent and of its plugins, by name; no more agents than the limit."""
    gateway, _, _ = make_gateway()
    followed = PerAgentMetrics(1)
    gateway.per_agent = followed
    gateway.follow(followed)
    registry = CollectorRegistry()
    AgentMetrics(registry, followed.gauges)
    first, second = Host(gateway), Host(gateway, "10.0.0.2")
    stream = first.open()
    first.send(stream, batch("a1", 59, 59, 59))
    first.send(stream, batch("a1", 1000, cpu="0.5", rss="12", state="running", du="nan"))
    first.send(stream, batch("a1", 1001, name="driver", cpu="0.25", tx_speed="fast"))
    second.send(second.open(), batch("a2", 1000, cpu="0.7"))
    page = generate_latest(registry).decode()
    lines = {line for line in page.splitlines() if line[:1] != "#"}
    assert lines == {
        'elkeid_ac_agent_cpu{agent_id="a1",name="agent"} 0.5',
        'elkeid_ac_agent_rss{agent_id="a1",name="agent"} 12.0',
        'elkeid_ac_agent_cpu{agent_id="a1",name="driver"} 0.25',
    }
    assert followed.records(gateway.counters.records) == {"": 1, "a1": 5}
    first.drop()
    assert followed.gauges()["cpu"] == {}
    assert followed.records(gateway.counters.records) == {"": 1}


def test_agent_that_is_replaced_keeps_its_series() -> None:
    """A reconnect from the same address is the same agent."""
    gateway, _, _ = make_gateway()
    followed = PerAgentMetrics(1)
    gateway.per_agent = followed
    gateway.follow(followed)
    old, new = Host(gateway), Host(gateway, port=40_001)
    old.send(old.open(), batch("a1", 1000, cpu="0.5"))
    new.send(new.open(), batch("a1", 1000, cpu="0.6"))
    old.drop()
    assert followed.gauges()["cpu"] == {("a1", "agent"): 0.6}
    assert followed.records(2) == {"": 0, "a1": 2}
