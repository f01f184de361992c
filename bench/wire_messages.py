"""What the pure parts of one message cost: decompress, split, suffix. In microseconds of CPU.

Run: ``.venv/bin/python bench/wire_messages.py``. Batches are those of real agents: snappy, bodies
of 637 bytes, one header per host. The yardstick line says how fast this machine was meanwhile.
"""

import time
from collections.abc import Callable, Iterable
from itertools import count, cycle, islice

from elkeid.wire import item
from elkeid.wire.compression import decompressor, snappy_frame
from elkeid.wire.mqdata import encode_suffix
from elkeid.wire.protobuf import length_delimited
from elkeid.wire.rawdata import Header, encode_record, split

BODY_BYTES = 637
LIMIT = 64 << 20
NOW = 1_764_000_000
KINDS = {"one type": (59,), "mixed types": (59, 42, 601, 605, 2)}
HEARTBEAT = 1000


def body() -> bytes:
    """Make an Item of `BODY_BYTES`, of the fields of an execve event."""
    fields = {
        "pid": "12345",
        "ppid": "1",
        "exe": "/usr/bin/curl",
        "argv": "curl -s -o /dev/null https://example.com/",
        "run_path": "/root",
        "stdin": "/dev/null",
        "stdout": "/dev/pts/1",
        "pid_tree": "12345.curl<1201.bash<1200.sshd<1.systemd",
        "sip": "10.0.0.1",
        "dip": "93.184.216.34",
        "md5": "d41d8cd98f00b204e9800998ecf8427e",
        "exe_hash": "99aa06d3014798d86001c324468d497f",
        "username": "root",
        "seq": "000000000001",
    }
    room = BODY_BYTES - len(item.encode(fields)) - len(item.encode({"padding": "x" * 128})) + 128
    fields["padding"] = "".join(chr(97 + i * 7 % 26) for i in range(room))
    encoded = item.encode(fields)
    if len(encoded) != BODY_BYTES:
        raise SystemExit(f"the body has {len(encoded)} bytes, not {BODY_BYTES}")
    return encoded


def batch(kinds: Iterable[int], records: int) -> bytes:
    """Make a RawData message as an agent does."""
    data = body()
    header = {
        2: b"d8a7b8f2-3a5e-5c8e-9d55-0f4d0e6a2f10",
        3: b"10.0.0.1",
        7: b"host-0001",
        8: b"1.7.0.24",
        9: b"elkeid-agent",
    }
    return b"".join(
        length_delimited(1, encode_record(kind, NOW, data))
        for kind in islice(cycle(kinds), records)
    ) + b"".join(length_delimited(number, value) for number, value in header.items())


def cost(call: Callable[[], object]) -> float:
    """Give the CPU of one call in microseconds, the best of five rounds of 0.1 s or so."""
    calls, spent = 1, 0.0
    while spent < 0.02:
        calls *= 4
        started = time.process_time()
        for _ in range(calls):
            call()
        spent = time.process_time() - started
    calls, best = int(calls * 0.1 / spent) + 1, float("inf")
    for _ in range(5):
        started = time.process_time()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time() - started) / calls)
    return best * 1e6


def yardstick() -> float:
    """Give the seconds of CPU of a fixed loop, to scale by between machines."""
    started = time.process_time()
    total = 0
    for i in range(10_000_000):
        total += i * i & 7
    return time.process_time() - started


def main() -> None:
    """Measure and print."""
    print(f"yardstick {yardstick():.2f} s")
    print(f"{'':34}{'µs a message':>14}{'µs a record':>14}")

    def show(what: str, spent: float, records: int) -> None:
        print(f"{what:34}{spent:14.2f}{spent / records:14.3f}")

    decompress = decompressor("snappy")
    for records in (50, 5, 1):
        for name, kinds in KINDS.items():
            data = batch(kinds, records)
            known = split(data).header
            show(f"split {records}, {name}", cost(lambda d=data, k=known: split(d, k)), records)
        packed = snappy_frame(data)
        show(f"snappy {records}", cost(lambda p=packed: decompress(p, LIMIT)), records)
    small = snappy_frame(batch((59,), 1)[:300])
    show("snappy of 300 bytes", cost(lambda: decompress(small, LIMIT)), 1)
    data = batch((HEARTBEAT,), 1)
    known = split(data).header
    show("split 1 heartbeat", cost(lambda: split(data, known)), 1)
    show("split 1, unknown header", cost(lambda: split(data)), 1)
    header, clock = Header(agent_id=b"a" * 36, hostname=b"host-0001"), count(NOW)
    show("suffix, new second", cost(lambda: encode_suffix(header, next(clock), b"tag")), 1)
    show("suffix, same second", cost(lambda: encode_suffix(header, NOW, b"tag")), 1)
    one = body()
    show("Item of 15 fields", cost(lambda: item.decode(one)), 1)


if __name__ == "__main__":
    main()
