"""A vanished agent is noticed within 90 s, a quiet one that lives is left alone."""

from twisted.internet.task import Clock

from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.silence import SilenceWatch
from tests.agentcenter.host import Host, batch, make_gateway


def watched() -> tuple[Gateway, SilenceWatch, Clock]:
    gateway, _, clock = make_gateway()
    watch = SilenceWatch(clock, lambda: gateway.links)
    watch.start()
    return gateway, watch, clock


def agent(gateway: Gateway, host: str) -> Host:
    made = Host(gateway, host)
    made.send(made.open(), batch(host, 1000))
    return made


def pass_time(clock: Clock, seconds: int, *hosts: Host) -> None:
    for _ in range(seconds):
        clock.advance(1)
        for host in hosts:
            host.pump()


def test_vanished_agent_is_gone_within_90_seconds() -> None:
    """It answers no PING: its connection is reset and its id free. One that answers stays."""
    gateway, watch, clock = watched()
    lost, quiet = agent(gateway, "10.0.0.1"), agent(gateway, "10.0.0.2")
    lost.frozen = True
    pass_time(clock, 84, quiet)
    assert len(gateway.table) == 2
    pass_time(clock, 5, quiet)
    assert lost.transport.disconnected
    lost.drop()
    assert [each.agent_id for each in gateway.table] == ["10.0.0.2"]
    assert watch.vanished == 1
    pass_time(clock, 300, quiet)
    assert not quiet.lost
    watch.stop()


def test_agent_that_speaks_is_not_asked() -> None:
    """Records are signs of life."""
    gateway, watch, clock = watched()
    host = agent(gateway, "10.0.0.1")
    for _ in range(10):
        pass_time(clock, 30)
        host.transport.clear()
        host.send(1, batch("10.0.0.1", 59))
        assert not host.transport.value()
    watch.stop()
    host.drop()
    assert clock.getDelayedCalls() == []


def test_records_in_place_of_an_answer_keep_an_id() -> None:
    """A holder whose PING answer is stuck behind its records is alive."""
    gateway, watch, clock = watched()
    host = agent(gateway, "10.0.0.1")
    host.frozen = True  # never answers, but goes on sending
    thief = Host(gateway, "10.6.6.6")
    thief.send(thief.open(), batch("10.0.0.1", 1000))
    clock.advance(2)
    host.client.send_message(1, batch("10.0.0.1", 59), False)
    host.link.dataReceived(host.client.data_to_send())
    clock.advance(3.1)
    holder = gateway.table.get("10.0.0.1")
    assert holder is not None
    assert holder.stream.peer_host == "10.0.0.1"
    watch.stop()
