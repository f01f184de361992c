"""Several gateway processes on one host, which share the agents' port.

Each worker has a folder, an HTTP port and an entry in ServiceDiscovery (``hids_svr_http``) of its
own; everything else is as for a single process. Worker 0 has the HTTP port of the settings.
"""

import re
from pathlib import Path
from typing import Final

from attrs import evolve, frozen

from elkeid.config import EventLogSettings, Settings, dialled_from_here, join_endpoint

PORT_STEP: Final = 10
"""Between the HTTP ports of two workers: 6752, 6762 and so on; those beside are other parts'."""

MOST: Final = 32  # workers of one host; the last one's port is 310 above the first one's

_WORKER = re.compile(r"(\d{1,2})/(\d{1,2})\Z")
_FOLDER = re.compile(r"worker-(\d{1,2})\Z")
_STATE: Final = ("eventlog", "results", "configs", "tags.db")  # what a gateway keeps in its folder


@frozen
class Worker:
    """One of ``of`` gateway processes of a host; ``number`` counts from 0."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Worker":
        """Read ``NUMBER/OF``; `ValueError` if it is none."""
        match = _WORKER.match(text)
        if match is None or not int(match[1]) < int(match[2]) <= MOST:
            raise ValueError(f"{text!r} is not NUMBER/OF")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def http_port(settings: Settings, number: int) -> int:
    """The HTTP port of a worker, by the settings of the host."""
    return settings.agentcenter.http_port + number * PORT_STEP


def folder(settings: Settings, number: int) -> Path:
    """Where a worker keeps its event log and the rest, by the settings of the host."""
    return settings.server.data_dir / f"worker-{number}"


def settings_of(worker: Worker, settings: Settings) -> Settings:
    """The settings of one worker, by those of the host; limits of the disk are shared out."""
    log = settings.eventlog
    telemetry = log.telemetry_cap_bytes
    return evolve(
        settings,
        server=evolve(settings.server, data_dir=folder(settings, worker.number)),
        agentcenter=evolve(settings.agentcenter, http_port=http_port(settings, worker.number)),
        eventlog=evolve(
            log,
            telemetry_cap_bytes=None if telemetry is None else _share(telemetry, worker, log),
            control_cap_bytes=_share(log.control_cap_bytes, worker, log),
            logs_cap_bytes=_share(log.logs_cap_bytes, worker, log),
        ),
    )


def _share(cap: int, worker: Worker, log: EventLogSettings) -> int:
    return max(cap // worker.of, 2 * log.segment_bytes)


def siblings(worker: Worker, settings: Settings) -> list[str]:
    """``host:port`` of the other workers' APIs, by the settings of ``worker``."""
    host = dialled_from_here(settings.agentcenter.listen)
    own = settings.agentcenter.http_port
    return [
        join_endpoint(host, own + (number - worker.number) * PORT_STEP)
        for number in range(worker.of)
        if number != worker.number
    ]


def port_faults(settings: Settings, count: int) -> list[str]:
    """Why so many workers cannot have their HTTP ports; empty if they can."""
    center, manager, registry = settings.agentcenter, settings.manager, settings.discovery
    taken = {
        center.grpc_port: "agentcenter.grpc_port",
        registry.port: "discovery.port",
        manager.port: "manager.port",
    }
    for port, name in ((manager.tls_port, "manager"), (registry.tls_port, "discovery")):
        if port is not None:
            taken[port] = f"{name}.tls_port"
    faults = []
    for number in range(1, count):
        port = http_port(settings, number)
        if port in taken:
            faults.append(
                f"--workers {count}: worker {number} would have HTTP port {port}, which is "
                f"{taken[port]}: choose another agentcenter.http_port"
            )
        elif port > 65535:
            faults.append(f"--workers {count}: worker {number} would have HTTP port {port}")
    return faults


def left_behind(settings: Settings, count: int) -> list[Path]:
    """Folders of gateways that do not run with ``count`` workers; 1 means a single process."""
    data_dir = settings.server.data_dir
    found = []
    if count > 1 and any((data_dir / name).exists() for name in _STATE):
        found.append(data_dir)
    for path in sorted(data_dir.glob("worker-*")):
        match = _FOLDER.match(path.name)
        if match and (count == 1 or int(match[1]) >= count) and (path / _STATE[0]).exists():
            found.append(path)
    return found


def left_behind_text(path: Path) -> str:
    """What to tell the operator of one of `left_behind`."""
    return (
        f"{path} is the folder of a gateway that does not run with this number of workers; "
        "nobody reads the records and task results that still wait there: run it once more as "
        "it was, until they are taken, then move it away"
    )
