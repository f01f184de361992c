"""An agent above its budget waits; it loses nothing, and others are served meanwhile."""

from elkeid.agentcenter.rates import FlowBudget
from elkeid.config import AgentCenterSettings
from elkeid.wire.grpc import ConnectionLimits
from tests.agentcenter.host import Host, batch, make_gateway

WINDOW = ConnectionLimits().stream_window


def test_burst_then_rate() -> None:
    """A whole burst passes at once; then time gives back what the rate says, up to the burst."""
    settings = AgentCenterSettings(agent_records_rate=100, agent_records_burst=1_000)
    flow = FlowBudget(settings, 0.0)
    flow.records -= 1_000
    assert flow.refill(0.0) == 0
    flow.records -= 50
    assert flow.refill(0.0) == 0.5
    assert flow.refill(0.5) == 0
    flow.refill(1_000.0)
    assert flow.records == 1_000


def test_bytes_count_as_well() -> None:
    """Few large records are a load, too."""
    settings = AgentCenterSettings(agent_bytes_rate=1024, agent_bytes_burst=2048)
    flow = FlowBudget(settings, 0.0)
    flow.octets -= 4096
    assert flow.refill(0.0) == 2


def test_window_of_an_agent_above_its_budget_is_not_refilled() -> None:
    """What it has sent is stored; its window is given back when it is within its budget again."""
    gateway, log, clock = make_gateway(agent_records_rate=1, agent_records_burst=16)
    host = Host(gateway)
    stream = host.open()
    payload = batch("a1", *[59] * 18, k="x" * 9_000)  # 160 KB: more than half a window
    host.send(stream, payload, compressed=False)
    assert log.of("a1") == [59] * 18
    assert gateway.counters.over_budget == 1
    assert WINDOW // 2 < len(payload) < WINDOW
    host.send(stream, payload, compressed=False)
    host.send(stream, payload, compressed=False)  # more than what is left of the window
    assert log.of("a1") == [59] * 36
    clock.advance(19)
    host.pump()
    assert log.of("a1") == [59] * 36
    clock.advance(2)
    host.pump()
    assert log.of("a1") == [59] * 54
    host.drop()
    assert clock.getDelayedCalls() == []
