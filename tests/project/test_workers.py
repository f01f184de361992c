"""What each of several gateway processes of a host has for itself."""

from pathlib import Path

import pytest

from elkeid.config import parse
from elkeid.workers import Worker, left_behind, left_behind_text, port_faults, settings_of

MiB = 1 << 20


def test_named() -> None:
    """A worker is NUMBER/OF, counted from 0."""
    assert Worker.parse("0/2") == Worker(0, 2)
    assert str(Worker.parse("31/32")) == "31/32"


@pytest.mark.parametrize("text", ["", "2", "2/2", "-1/2", "0/0", "0/33", "a/2", "1/2 ", "1/2/3"])
def test_misnamed(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="NUMBER/OF"):
        Worker.parse(text)


def test_settings(tmp_path: Path) -> None:
    """A folder and a port of its own, its share of the disk; the rest is as for the host."""
    raw = {"eventlog": {"telemetry_cap_bytes": 1000 * MiB, "logs_cap_bytes": 100 * MiB}}
    host = parse(raw, tmp_path)
    first, last = (settings_of(Worker(number, 4), host) for number in (0, 3))
    assert first.server.data_dir == host.server.data_dir / "worker-0"
    assert last.server.data_dir == host.server.data_dir / "worker-3"
    assert (first.agentcenter.http_port, last.agentcenter.http_port) == (6752, 6782)
    assert first.agentcenter.grpc_port == last.agentcenter.grpc_port == 6751
    assert last.eventlog.telemetry_cap_bytes == 250 * MiB
    assert last.eventlog.control_cap_bytes == 512 * MiB
    assert last.eventlog.logs_cap_bytes == 128 * MiB  # two segments are the least
    assert last.server.keys_dir == host.server.keys_dir
    assert last.discovery == host.discovery
    unset = settings_of(Worker(0, 2), parse({}, tmp_path))
    assert unset.eventlog.telemetry_cap_bytes is None  # shared out when the disk is looked at


def test_ports_that_are_taken(tmp_path: Path) -> None:
    """A worker's HTTP port may be no port of the settings, nor beyond the last."""
    assert port_faults(parse({}, tmp_path), 32) == []
    host = parse({"agentcenter": {"http_port": 6681}}, tmp_path)
    assert port_faults(host, 2) == []
    (fault,) = port_faults(host, 3)
    assert "worker 2 would have HTTP port 6701, which is manager.port" in fault
    high = parse({"agentcenter": {"http_port": 65530}}, tmp_path)
    assert "65540" in port_faults(high, 2)[0]


def test_folders_left_behind(tmp_path: Path) -> None:
    """With another number of workers, those of before are named as long as they are there."""
    host = parse({}, tmp_path)
    data = host.server.data_dir
    assert left_behind(host, 1) == left_behind(host, 2) == []
    (data / "eventlog").mkdir(parents=True)
    assert left_behind(host, 1) == []
    assert left_behind(host, 2) == [data]
    for number in range(3):
        (data / f"worker-{number}" / "eventlog").mkdir(parents=True)
    (data / "worker-7").mkdir()  # empty: nothing waits there
    assert left_behind(host, 2) == [data, data / "worker-2"]
    assert left_behind(host, 1) == [data / f"worker-{number}" for number in range(3)]
    assert str(data) in left_behind_text(data)
