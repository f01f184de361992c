"""CPU of the gateway without sockets and TLS: HTTP/2, gRPC, splitting, the event log.

    python -m bench.intake [RECORDS_PER_BATCH ...]

Bytes of many messages are handed to a real link, in turns of a few messages each, with the
event log on disk. Figures are microseconds of this process's CPU time a message and a record.
"""

import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from elkeid.agentcenter.gateway import Gateway
from elkeid.config import AgentCenterSettings, EventLogSettings
from elkeid.eventlog.log import EventLog
from elkeid.fleet.grpc_client import GrpcClientConnection
from elkeid.wire import item
from elkeid.wire.compression import snappy_frame
from elkeid.wire.protobuf import length_delimited
from elkeid.wire.rawdata import encode_record

UNLIMITED = AgentCenterSettings(
    agent_records_rate=1e9,
    agent_records_burst=1_000_000_000,
    agent_bytes_rate=1e12,
    agent_bytes_burst=1 << 40,
)
"""One agent does here what a whole fleet does elsewhere."""


class Transport(StringTransport):
    """A TLS transport in memory."""

    negotiatedProtocol: Any = b"h2"


def message(records: int) -> bytes:
    """One batch of execve records with bodies of about 640 bytes."""
    body = item.encode(
        {f"field_{n}": f"value {n * 7919 % 1013} of a field" for n in range(19)}
        | {"argv": "x y" * 30}
    )
    raw = b"".join(
        length_delimited(1, encode_record(59, 1_700_000_000, body)) for _ in range(records)
    )
    raw += length_delimited(2, b"d8a7b8f2-3a5e-5c8e-9d55-0f4d0e6a2f10")
    raw += length_delimited(3, b"10.1.2.3") + length_delimited(7, b"web-1")
    return raw + length_delimited(8, b"1.7.0.26") + length_delimited(9, b"elkeid-agent")


def run(records: int, messages: int, per_turn: int) -> float:
    """CPU seconds for so many messages."""
    clock = Clock()
    clock.rightNow = time.time()

    def inline(function: Any, *args: Any) -> "Deferred[Any]":
        return succeed(function(*args))

    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder) / "log", EventLogSettings(), clock, inline)
        opened = Deferred.fromCoroutine(log.open())
        assert opened.called
        gateway = Gateway(UNLIMITED, log, clock)
        link = gateway.link(("10.0.0.1", 40000))
        transport = Transport(peerAddress=IPv4Address("TCP", "10.0.0.1", 1))
        link.makeConnection(transport)
        link.handshakeCompleted()
        client = GrpcClientConnection("127.0.0.1:6751")
        stream = client.open_call()
        body = snappy_frame(message(records))
        used = 0.0
        for _ in range(messages // per_turn):
            client.send_message(stream, body, True)
            data = client.data_to_send()
            start = time.process_time()
            link.dataReceived(data)
            clock.advance(0)
            used += time.process_time() - start
            down = transport.value()
            transport.clear()
            if down:
                client.receive_data(down)
        return used


def main() -> None:
    """Print a line for each batch size."""
    for records in [int(a) for a in sys.argv[1:] if a.isdigit()] or [50, 5, 1]:
        messages = 20_000 if records < 50 else 4_000
        used = run(records, messages, 1)
        print(
            f"{records:3} records a batch: {used / messages * 1e6:7.2f} us a message, "
            f"{used / messages / records * 1e6:6.2f} us a record"
        )
        if "--profile" in sys.argv:
            profile = cProfile.Profile()
            profile.runcall(run, records, messages, 1)
            pstats.Stats(profile).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    main()
