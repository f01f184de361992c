"""CPU from agents to a real Kafka broker, and of the bridge alone beside other clients.

    python -m bench.kafka [--quick] [ROW ...]

Rows of the whole path: saturated-50, saturated-5, saturated-1, paced; agentswarm and, of small
batches, leanswarm (`make tools`) send to AgentCenter, whose process's CPU is read from /proc until
every record is acknowledged by a broker on loopback (`make kafka-jars`). The row latency gives the
share of records that were acknowledged within 250 ms of their arrival in the paced run. Rows of
the bridge alone, from a full log: bridge-none, -lz4, -zstd, -snappy, -gzip; with single-record
entries: bridge-1; the same records through other clients: kafka-python (`KafkaProducer.send`) and
confluent (confluent-kafka, if it is installed). A row is printed only when the topic holds every
record.
"""

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from attrs import define
from kafka import KafkaProducer

import bench.gateway as base
from bench.gateway import (
    REFERENCE_YARDSTICK,
    Gateway,
    InvalidRun,
    connected_swarm,
    report_of,
    swarm,
    yardstick,
)
from elkeid.allocator import keep_freed_memory
from elkeid.config import KafkaSettings
from elkeid.eventlog.ledger import read_ledger
from elkeid.eventlog.reader import LogReader
from elkeid.kafka.batches import agent_id
from elkeid.kafka.bridge import Bridge
from elkeid.kafka.connection import quiet_library
from elkeid.kafka.consumer import Consumer
from elkeid.kafka.partition import partition_of
from elkeid.wire import mqdata
from tests.integration.kafka_cluster import KafkaCluster, missing
from tests.kafka.support import Log

TARGETS = {"saturated-50": 3.0, "saturated-5": 5.2, "saturated-1": 15.0, "paced": 40.0}
UPSTREAM = {"saturated-50": 7.0, "saturated-5": 9.8, "saturated-1": 19.0, "paced": 52.0}
CODECS = ("none", "lz4", "zstd", "snappy", "gzip")
PARTITIONS = 4
ROWS = [*TARGETS, "latency", *(f"bridge-{each}" for each in CODECS), "bridge-1"]
ROWS += ["kafka-python", "confluent"]


@define
class Topics:
    """Makes a topic for each run."""

    cluster: KafkaCluster
    partitions: int = PARTITIONS
    made: int = 0

    def new(self) -> KafkaSettings:
        """Settings of a fresh topic."""
        self.made += 1
        name = f"run-{self.made}"
        self.cluster.create_topic(name, self.partitions)
        return KafkaSettings(brokers=tuple(self.cluster.bootstrap), topic=name)


def messages(settings: KafkaSettings) -> int:
    """How many the topic holds."""
    return sum(Consumer(settings, None, lambda _: None).end_offsets().values())


@contextmanager
def gateway(settings: KafkaSettings) -> Iterator[Gateway]:
    """AgentCenter that feeds the topic."""
    brokers, topic = list(settings.brokers), settings.topic
    text = f"\n[kafka]\nbrokers = {brokers!r}\ntopic = '{topic}'\n"
    with base.gateway(text) as server:
        yield server


def settled(server: Gateway, settings: KafkaSettings) -> int:
    """Wait until Kafka has everything; how many records that is."""
    deadline = time.monotonic() + 120
    log = server.data / "eventlog"
    while True:
        ledger = read_ledger(log)
        readers = [each["readers"].get("kafka", {"waiting": 1}) for each in ledger.values()]
        if not any(each["waiting"] for each in readers):
            break
        if time.monotonic() > deadline:
            raise InvalidRun(f"Kafka lags: {ledger}")
        time.sleep(0.05)
    appended = sum(each["appended"] for each in ledger.values())
    if messages(settings) != appended:
        raise InvalidRun(f"topic holds {messages(settings)}, log {appended}")
    return appended


def saturated(topics: Topics, per_batch: int, total: int) -> tuple[float, str]:
    """Microseconds of CPU a record, as fast as the gateway takes them, until Kafka has them."""
    settings = topics.new()
    with gateway(settings) as server:
        swarm(server, "-agents", "50", "-records", str(per_batch), "-total", str(per_batch * 2000))
        before, start = settled(server, settings), server.cpu()
        load = ["-agents", "200", "-records", str(per_batch), "-total", str(total), "-every", "0"]
        report = swarm(server, *load, program="agentswarm" if per_batch >= 50 else "leanswarm")
        records = settled(server, settings) - before
        used = server.cpu() - start
        if records != report["confirmed_records"]:
            raise InvalidRun(f"{records} arrived, {report['confirmed_records']} confirmed")
        wall = report["send_s"]
        return (used - 200 * 1.3e-3) / records * 1e6, f"{records / wall:,.0f} records/s"


def paced(topics: Topics, seconds: int) -> tuple[float, str, float]:
    """Microseconds of CPU a message at 10,000 a second, and the share acknowledged in 250 ms."""
    settings = topics.new()
    with gateway(settings) as server:
        load = ["-records", "1", "-total", str(10_000 * seconds), "-every", "100ms"]
        child = connected_swarm(server, 1000, *load, "-beat", "60s", program="leanswarm")
        time.sleep(2)
        first, start, at = server.metrics(), server.cpu(), time.monotonic()
        time.sleep(seconds - 6)
        used, passed, last = server.cpu() - start, time.monotonic() - at, server.metrics()
        report = report_of(*child.communicate(timeout=120))
        if settled(server, settings) != report["confirmed_records"]:
            raise InvalidRun("the topic does not hold what was confirmed")

    def grown(series: str) -> float:
        return sum(v - first.get(k, 0) for k, v in last.items() if k.startswith(series))

    count = grown("elkeid_log_appended_total")
    rate = count / passed
    if not 9_000 <= rate <= 10_500:
        raise InvalidRun(f"{rate:,.0f} messages/s instead of 10,000")
    acknowledged = grown("elkeid_kafka_ack_seconds_count")
    quick = grown('elkeid_kafka_ack_seconds_bucket{le="0.25"}')
    note = f"{rate:,.0f} messages/s, {used / passed:.0%} of a core"
    return used / count * 1e6, note, quick / acknowledged


def full_log(folder: Path, records: int, per_batch: int) -> Path:
    """A log of records like agentswarm's: 637-byte bodies of varied text, 100 agents."""
    log = Log(folder, telemetry_cap_bytes=1 << 34, readers=())
    chance = random.Random(1)
    words = [b"/usr/lib/x86_64-linux-gnu/lib%d.so " % (each * 7919) for each in range(997)]
    bodies = []
    for _ in range(5000):
        text = b"".join(chance.choices(words, k=12)) + chance.randbytes(120).hex().encode()
        bodies.append(text[-637:])
    for number in range(records // per_batch):
        agent = b"0b9e1a50-5b1f-4d10-8d7c-%012d" % (number % 100)
        start = number * per_batch
        log.append(agent, *(bodies[(start + each) % 5000] for each in range(per_batch)))
        log.sent.clear()
    log.close()
    return folder


def bridge_alone(topics: Topics, log: Path, codec: str, count: int) -> tuple[float, str]:
    """Microseconds of this process's CPU a record, from a full log to the last acknowledgement."""
    fresh = topics.new()
    settings = KafkaSettings(brokers=fresh.brokers, topic=fresh.topic, compression=codec)
    for each in (log / "readers").glob("kafka.*"):
        each.unlink()
    bridge = Bridge(log, settings, once=True)
    before, at = time.process_time(), time.monotonic()
    bridge.run()
    used, passed = time.process_time() - before, time.monotonic() - at
    if messages(settings) != count:
        raise InvalidRun(f"topic holds {messages(settings)}")
    size = bridge.figures.bytes / count
    return used / count * 1e6, f"{count / passed:,.0f} records/s, {size:.0f} bytes a record"


def values(log: Path) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of every record."""
    with LogReader(log) as source:
        for entry in source.entries(source.extent()):
            key = agent_id(entry.suffix)
            for record in mqdata.records(entry.region):
                yield key, record + entry.suffix


def kafka_python(topics: Topics, log: Path, count: int) -> tuple[float, str]:
    """The same through ``KafkaProducer.send``."""
    settings = topics.new()
    producer = KafkaProducer(
        bootstrap_servers=list(settings.brokers), linger_ms=50, batch_size=1_000_000
    )
    return _through(
        settings,
        log,
        count,
        lambda key, value: producer.send(
            settings.topic, value, key, partition=partition_of(key, PARTITIONS)
        ),
        producer.flush,
    )


def confluent(topics: Topics, log: Path, count: int) -> tuple[float, str]:
    """The same through confluent-kafka."""
    if find_spec("confluent_kafka") is None:
        raise InvalidRun("confluent-kafka is not installed: pip install confluent-kafka")
    from confluent_kafka import Producer  # noqa: PLC0415 - only this row needs it

    settings = topics.new()
    producer = Producer(
        {
            "bootstrap.servers": ",".join(settings.brokers),
            "enable.idempotence": True,
            "linger.ms": 50,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 10_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
        }
    )
    return _through(
        settings,
        log,
        count,
        lambda key, value: producer.produce(
            settings.topic, value, key, partition=partition_of(key, PARTITIONS)
        ),
        producer.flush,
    )


def _through(
    settings: KafkaSettings,
    log: Path,
    count: int,
    send: Callable[[bytes, bytes], object],
    flush: Callable[[], object],
) -> tuple[float, str]:
    before, at = time.process_time(), time.monotonic()
    for key, value in values(log):
        send(key, value)
    flush()
    used, passed = time.process_time() - before, time.monotonic() - at
    if messages(settings) != count:
        raise InvalidRun(f"topic holds {messages(settings)}")
    return used / count * 1e6, f"{count / passed:,.0f} records/s"


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--quick", action="store_true", help="a tenth of the load")
    options = parser.parse_args()
    if (reason := missing()) is not None:
        sys.exit(reason)
    quiet_library()
    keep_freed_memory()
    share = 10 if options.quick else 1
    scale = yardstick() / REFERENCE_YARDSTICK
    print(f"targets and upstream's figures x {scale:.2f} by the yardstick")
    print(f"{'row':14} {'measured':>12} {'target here':>12} {'ratio':>6} {'of upstream':>12}  note")
    folder = Path(tempfile.mkdtemp(prefix="elkeid-bench-"))
    cluster = KafkaCluster(folder / "kafka", extra={"num.io.threads": "4"})
    logs: dict[int, Path] = {}
    try:
        cluster.start()
        topics = Topics(cluster)
        for row in options.rows:
            try:
                show(row, topics, folder, logs, share=share, scale=scale)
            except InvalidRun as error:
                print(f"{row:14} invalid: {error}", flush=True)
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


def show(
    row: str, topics: Topics, folder: Path, logs: dict[int, Path], *, share: int, scale: float
) -> None:
    """Run one row and print it."""
    if row in TARGETS and row != "paced":
        per = int(row.partition("-")[2])
        total = {50: 2_000_000, 5: 1_000_000, 1: 400_000}[per] // share
        value, note = saturated(topics, per, total)
    elif row in ("paced", "latency"):
        value, note, quick = paced(topics, 30 if share == 1 else 12)
        if row == "latency":
            print(f"{row:14} {quick:12.4%} within 250 ms  {note}", flush=True)
            return
    else:
        per, count = (1, 200_000 // share) if row == "bridge-1" else (50, 500_000 // share)
        if per not in logs:
            logs[per] = full_log(folder / f"log-{per}", count, per)
        if match := re.fullmatch(r"bridge-(.+)", row):
            codec = "none" if match[1] == "1" else match[1]
            value, note = bridge_alone(topics, logs[per], codec, count)
        elif row == "kafka-python":
            value, note = kafka_python(topics, logs[per], count)
        elif row == "confluent":
            value, note = confluent(topics, logs[per], count)
        else:
            raise InvalidRun("no such row")
        print(f"{row:14} {value:9.2f} us {'':>31}  {note}", flush=True)
        return
    target = TARGETS[row] * scale
    figures = f"{value:9.2f} us {target:9.2f} us {value / target:6.2f}"
    print(f"{row:14} {figures} {value / (UPSTREAM[row] * scale):12.2f}  {note}", flush=True)


if __name__ == "__main__":
    main()
