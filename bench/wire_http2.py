"""What HTTP/2 and gRPC framing cost a received message, in microseconds of CPU.

Run: ``.venv/bin/python -m bench.wire_http2``. One DATA frame a read is what paced agents cause;
many a read is a saturated connection; pieces are what TLS makes of large messages, since Go
begins with records of about 1,400 bytes. The yardstick line says how fast this machine was.
"""

import tracemalloc

from bench.wire_messages import cost, yardstick
from elkeid.wire import http2_frames as h2
from elkeid.wire.grpc import ConnectionLimits, GrpcServerConnection, MessageReceived
from elkeid.wire.http2_fields import encode

PATH = "/grpc.Transfer/Transfer"
READ_BYTES = 60_000  # of a saturated connection
RECORD_BYTES = 1_400
AGENTS = 1_000
CALL = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":path", PATH.encode()),
    (b":authority", b"127.0.0.1:6751"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"grpc-go/1.69.4"),
    (b"te", b"trailers"),
    (b"grpc-encoding", b"snappy"),
    (b"grpc-accept-encoding", b"snappy"),
]
OPENING = h2.PREFACE + h2.settings_frame([]) + h2.SETTINGS_ACK
OPENING += h2.frame(h2.HEADERS, h2.END_HEADERS, 1, encode(CALL))
LIMITS = ConnectionLimits()


def connection() -> GrpcServerConnection:
    """Make one on which a call was opened."""
    made = GrpcServerConnection(LIMITS, (PATH,))
    made.receive_data(OPENING)
    made.data_to_send()
    return made


def data(size: int) -> bytes:
    """Make the DATA frames of one message of ``size`` bytes."""
    message = b"\1" + size.to_bytes(4, "big") + bytes(size)
    parts = [message[at : at + 16_384] for at in range(0, len(message), 16_384)]
    return b"".join(h2.frame(h2.DATA, 0, 1, part) for part in parts)


def spent(reads: list[bytes]) -> float:
    """Give the CPU of these reads, sending the answers included."""
    agent = connection()
    receive, send = agent.receive_data, agent.data_to_send

    def read() -> int:
        got = 0
        for each in reads:
            got += sum(type(event) is MessageReceived for event in receive(each))
            send()
        return got

    if not read():
        raise SystemExit("no message came")
    return cost(read) if len(reads) > 1 else cost(lambda: (receive(reads[0]), send()))


def idle_bytes() -> float:
    """Give the Python memory of one agent that has sent a message and waits."""
    first = data(300)
    tracemalloc.start()
    agents = [connection() for _ in range(AGENTS)]
    for agent in agents:
        agent.receive_data(first)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / AGENTS


def main() -> None:
    """Measure and print."""
    print(f"yardstick {yardstick():.2f} s")
    for size in (300, 10_000, 100_000):
        frames = data(size)
        many = max(1, READ_BYTES // len(frames))
        pieces = [frames[at : at + RECORD_BYTES] for at in range(0, len(frames), RECORD_BYTES)]
        print(f"{size:7} bytes, one a read     {spent([frames]):8.2f} µs a message")
        if many > 1:
            print(f"{'':14} {many} a read   {spent([frames * many]) / many:11.2f}")
        if len(pieces) > 1:
            print(f"{'':14} in {len(pieces)} reads {spent(pieces):12.2f}")
    print(f"an idle agent holds {idle_bytes():.0f} bytes")


if __name__ == "__main__":
    main()
