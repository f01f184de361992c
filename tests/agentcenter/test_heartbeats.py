"""From a heartbeat's strings to what operators see."""

from elkeid.agentcenter.heartbeats import agent_info, fields_of, plugin_info
from elkeid.wire import item
from elkeid.wire.rawdata import Header


def test_numbers_become_numbers_and_known_texts_stay() -> None:
    """A kernel "5.10" stays text, a load "0.50" becomes a number."""
    body = item.encode(
        {"kernel_version": "5.10", "idc": "1", "load_1": "0.50", "pid": "007", "x": "NaN"}
    )
    assert fields_of(body) == {
        "kernel_version": "5.10",
        "idc": "1",
        "load_1": 0.5,
        "pid": 7,
        "x": "NaN",
    }


def test_batch_overrides_what_the_heartbeat_says_of_the_host() -> None:
    """Address lists are arrays even when absent; the envelope's version wins."""
    header = Header(agent_id=b"a1", intranet_ipv4=[b"10.0.0.9"], hostname=b"h1", version=b"1.7")
    info = agent_info(
        item.encode({"version": "9", "hostname": "liar", "cpu": "0.11"}),
        header,
        agent_id="a1",
        agent_addr="10.0.0.9:34880",
        create_at=5,
        last_heartbeat_time=6,
    )
    assert info == {
        "cpu": 0.11,
        "agent_id": "a1",
        "agent_addr": "10.0.0.9:34880",
        "create_at": 5,
        "intranet_ipv4": ["10.0.0.9"],
        "extranet_ipv4": [],
        "intranet_ipv6": [],
        "extranet_ipv6": [],
        "version": "1.7",
        "hostname": "h1",
        "product": "",
        "last_heartbeat_time": 6,
    }


def test_plugin_named_like_a_number_stays_text() -> None:
    """Plugin "77" is called "77"."""
    assert plugin_info(item.encode({"name": "77", "pversion": "1.0", "du": "10"}), 9) == {
        "name": "77",
        "pversion": "1.0",
        "du": 10,
        "last_heartbeat_time": 9,
    }
