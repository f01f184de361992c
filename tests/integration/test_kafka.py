"""The bridge against real brokers: sent, stored and in the topic are one number."""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from elkeid.config import KafkaSettings
from elkeid.eventlog.ledger import read_ledger
from elkeid.eventlog.reader import LogReader
from elkeid.kafka.bridge import Bridge
from elkeid.kafka.consumer import Consumer, Message
from elkeid.kafka.partition import partition_of
from elkeid.ledgers import Ledger, imbalances
from elkeid.wire import mqdata
from elkeid.wire.datatypes import RecordClass
from tests.integration.kafka_cluster import KafkaCluster, missing
from tests.integration.servers import BIN, free_ports, running, settings_text, twistd
from tests.integration.test_load import SEQ, generator, start_fleet, swarm
from tests.kafka.support import Log

pytestmark = pytest.mark.integration


def need_kafka() -> None:
    """Skip, with the install command, where brokers cannot be run."""
    if (reason := missing()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaCluster]:
    """One broker with its default limits, for all tests of this module."""
    need_kafka()
    folder = Path(tempfile.mkdtemp(prefix="elkeid-kafka-"))
    cluster = KafkaCluster(folder)
    try:
        yield cluster.start()
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


def topic_of(request: pytest.FixtureRequest) -> str:
    """A topic of the test's own."""
    return "".join(each if each.isalnum() else "-" for each in request.node.name)


def read_topic(settings: KafkaSettings) -> dict[int, list[Message]]:
    """All messages that a topic has now, by partition, in order."""
    found: dict[int, list[Message]] = defaultdict(list)

    def take(batch: Sequence[Message]) -> None:
        for message in batch:
            found[message.partition].append(message)

    consumer = Consumer(settings, None, take, 20_000)
    consumer.run(consumer.end_offsets())
    return found


def by_agent(messages: dict[int, list[Message]]) -> dict[bytes, list[bytes]]:
    """Values by key, in order; each key in one partition alone."""
    found: dict[bytes, list[bytes]] = {}
    for partition in messages.values():
        mine: dict[bytes, list[bytes]] = defaultdict(list)
        for message in partition:
            assert message.key is not None
            mine[message.key].append(message.value)
        assert not found.keys() & mine.keys()
        found |= mine
    return found


def wait_for_kafka(log: Path, seconds: float = 60) -> Ledger:
    """Wait until the reader ``kafka`` has dealt with everything; the ledger then."""
    end = time.monotonic() + seconds
    while True:
        ledger = read_ledger(log)
        waiting = sum(each["readers"]["kafka"]["waiting"] for each in ledger.values())
        if not waiting:
            return ledger
        assert time.monotonic() < end, ledger
        time.sleep(0.1)


def kafka_text(cluster: KafkaCluster, topic: str) -> str:
    """Section ``[kafka]``."""
    return f'[kafka]\nbrokers = {cluster.bootstrap!r}\ntopic = "{topic}"\n'


@pytest.mark.parametrize(
    ("per_batch", "total"),
    [
        pytest.param(50, 1_000_000, id="50 a batch"),
        pytest.param(1, 100_000, id="1 a batch"),
        pytest.param(1, 1_000_000, id="a million at 1 a batch", marks=pytest.mark.soak),
    ],
)
def test_every_record_is_in_the_topic(
    broker: KafkaCluster,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    per_batch: int,
    total: int,
) -> None:
    """Exactly what 200 agents sent, each in order, and byte for byte what the log holds."""
    generator()
    topic, ports = topic_of(request), free_ports(4)
    broker.create_topic(topic)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports) + kafka_text(broker, topic))
    log = tmp_path / "data" / "eventlog"
    with running(twistd(), tmp_path) as server:
        report = swarm(
            tmp_path, ports[0], "-agents", "200", "-records", str(per_batch), "-total", str(total)
        )
        ledger = wait_for_kafka(log)
        assert server.stop() == -signal.SIGTERM
        assert not any("Traceback" in line for line in server.lines)
    assert report["confirmed_records"] == total + 200
    assert sum(each["appended"] for each in ledger.values()) == total + 200
    found = by_agent(read_topic(KafkaSettings(brokers=tuple(broker.bootstrap), topic=topic)))
    assert sum(map(len, found.values())) == total + 200
    assert len(found) == 200
    for agent, values in found.items():
        seqs = [int(each) for value in values for each in SEQ.findall(value)]
        assert seqs == list(range(total // 200)), agent
    assert digest_of_log(log) == {agent: digest(values) for agent, values in found.items()}


def digest(values: Sequence[bytes]) -> str:
    """Of values in any order: control records overtake others."""
    return hashlib.sha256(b"".join(sorted(values))).hexdigest()


def digest_of_log(log: Path) -> dict[bytes, str]:
    """Of what each agent's records are to be in Kafka: the record, then its batch's suffix."""
    wanted: dict[bytes, list[bytes]] = defaultdict(list)
    with LogReader(log) as source:
        for entry in source.entries(source.extent()):
            agent = mqdata.decode(entry.suffix).agent_id.encode()
            wanted[agent] += [each + entry.suffix for each in mqdata.records(entry.region)]
    return {agent: digest(values) for agent, values in wanted.items()}


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_codecs(
    broker: KafkaCluster, tmp_path: Path, request: pytest.FixtureRequest, codec: str
) -> None:
    """A real broker takes each codec, and what comes back is what was sent."""
    topic = topic_of(request)
    broker.create_topic(topic)
    log = Log(tmp_path / "log")
    for number in range(200):
        log.append(b"agent-%d" % (number % 9), *(b"%d" % each * 60 for each in range(number)))
    settings = KafkaSettings(brokers=tuple(broker.bootstrap), topic=topic, compression=codec)
    bridge = Bridge(log.directory, settings, once=True)
    bridge.run()
    sent = {agent: values for (_, agent), values in log.sent.items()}
    assert by_agent(read_topic(settings)) == sent
    assert bridge.figures.repeats == {}


def test_limits_of_the_topic(
    broker: KafkaCluster, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Batches shrink to the topic's limit; what is beyond goes aside; refused times stay out."""
    topic = topic_of(request)
    limits = {"max.message.bytes": "20000", "message.timestamp.before.max.ms": "3600000"}
    broker.create_topic(topic, settings=limits)
    log = Log(tmp_path / "log")
    log.clock.rightNow -= 7200  # received two hours ago
    log.append(b"a", *(b"%d" % number * 200 for number in range(300)))
    log.append(b"a", bytes(30_000), b"after")
    settings = KafkaSettings(brokers=tuple(broker.bootstrap), topic=topic)
    bridge = Bridge(log.directory, settings, once=True)
    bridge.run()
    messages = read_topic(settings)
    sent = log.sent[RecordClass.TELEMETRY, b"a"]
    del sent[-2]
    assert by_agent(messages) == {b"a": sent}
    assert {each.timestamp for found in messages.values() for each in found} == {-1}
    assert bridge.figures.dead_letters == {"too_large": 1}
    assert log.ledger() == {"acknowledged": 301, "set_aside": 1, "waiting": 0, "expired": {}}


def test_brokers_that_come_late(tmp_path: Path) -> None:
    """A gateway starts without its brokers, keeps all, and feeds them when they come."""
    need_kafka()
    (port,) = free_ports(1)
    log = Log(tmp_path / "log")
    log.append(b"a", b"1", b"2")
    settings = KafkaSettings(brokers=(f"127.0.0.1:{port}",))
    bridge = Bridge(log.directory, settings, once=True)
    bridge.start()
    cluster = KafkaCluster(tmp_path / "kafka", ports=[port])
    try:
        cluster.start()
        cluster.create_topic("hids_svr")
        thread = bridge._thread
        assert thread is not None
        thread.join(60)
        assert not thread.is_alive()
        assert by_agent(read_topic(settings)) == {b"a": log.sent[RecordClass.TELEMETRY, b"a"]}
    finally:
        bridge.stop(5)
        cluster.close()


def test_kafka_cat(broker: KafkaCluster, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What is printed is what was sent; a group goes on where it ended."""
    topic = topic_of(request)
    broker.create_topic(topic)
    log = Log(tmp_path / "log")
    log.append(b"agent-1", b"\x0a\x06\x0a\x01k\x12\x01v", b"no item")
    settings = KafkaSettings(brokers=tuple(broker.bootstrap), topic=topic)
    Bridge(log.directory, settings, once=True).run()
    (tmp_path / "elkeid.toml").write_text(kafka_text(broker, topic))

    def cat(*argv: str) -> list[str]:
        done = subprocess.run(
            [str(BIN / "elkeid"), "kafka", "cat", *argv],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.splitlines()

    first, second = map(json.loads, cat())
    assert first["agent_id"] == "agent-1"
    assert first["class"] == "telemetry"
    assert first["data_type"] == 59
    assert (first["partition"], first["offset"]) == (partition_of(b"agent-1", 4), 0)
    assert first["timestamp"] == int(log.clock.seconds() * 1000)
    assert base64.b64decode(second["body"]) == b"no item"
    assert len(cat("--group", "readers", "--raw")) == 2
    assert cat("--group", "readers", "--raw") == []
    log.append(b"agent-1", b"later")
    Bridge(log.directory, settings, once=True).run()
    (raw,) = cat("--group", "readers", "--raw")
    assert base64.b64decode(raw) == log.sent[RecordClass.TELEMETRY, b"agent-1"][-1]


def test_adopt(broker: KafkaCluster, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A dead gateway's log goes to Kafka from where that gateway was; a running one's does not."""
    topic = topic_of(request)
    broker.create_topic(topic)
    log = Log(tmp_path / "dead")
    settings = KafkaSettings(brokers=tuple(broker.bootstrap), topic=topic)
    log.append(b"a", b"1")
    Bridge(log.directory, settings, once=True).run()
    log.append(b"a", b"2", b"3")
    (tmp_path / "elkeid.toml").write_text(kafka_text(broker, topic))

    def adopt() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(BIN / "elkeid"), "log", "adopt", str(log.directory)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    refused = adopt()
    assert refused.returncode == 1
    assert "a gateway writes this log" in refused.stderr
    log.close()
    done = adopt()
    assert done.returncode == 0, done.stderr
    assert by_agent(read_topic(settings)) == {b"a": log.sent[RecordClass.TELEMETRY, b"a"]}
    account = read_ledger(log.directory)["telemetry"]["readers"]["kafka"]
    assert account == {"acknowledged": 3, "set_aside": 0, "waiting": 0, "expired": {}}
    assert adopt().returncode == 0


def test_consumer_commits_after_its_batch(
    broker: KafkaCluster, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A batch whose processing fails comes again; one that is done with does not."""
    topic = topic_of(request)
    broker.create_topic(topic, partitions=1)
    log = Log(tmp_path / "log")
    log.append(b"a", b"1", b"2", b"3", b"4")
    settings = KafkaSettings(brokers=tuple(broker.bootstrap), topic=topic)
    Bridge(log.directory, settings, once=True).run()
    seen: list[int] = []

    def fails_at_second(batch: Sequence[Message]) -> None:
        if seen:
            raise ValueError("cannot do this one")
        seen.extend(message.offset for message in batch)

    consumer = Consumer(settings, "analysis", fails_at_second, batch_messages=2)
    consumer.start()
    assert consumer._thread is not None
    consumer._thread.join(60)
    assert isinstance(consumer.failed, ValueError)
    again: list[int] = []
    consumer = Consumer(
        settings, "analysis", lambda batch: again.extend(each.offset for each in batch), 2
    )
    consumer.run({0: 4})
    assert (seen, again) == ([0, 1], [2, 3])


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 MiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small volume needs root: run the tests as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(
    broker: KafkaCluster, small_volume: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A full volume costs telemetry, counted; with space again everything goes on by itself."""
    topic = topic_of(request)
    broker.create_topic(topic)
    text = settings_text(free_ports(4), f'data_dir = "{small_volume}/data"')
    text += "[eventlog]\nmin_free_bytes = 4000000\nsegment_bytes = 1048576\n"
    text += "telemetry_cap_bytes = 1073741824\n"
    (tmp_path / "elkeid.toml").write_text(text + kafka_text(broker, topic))
    log, ballast = small_volume / "data" / "eventlog", small_volume / "ballast"

    def until(what: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + 60
        while not reached(telemetry := read_ledger(log)["telemetry"]):
            assert time.monotonic() < end, (what, telemetry)
            time.sleep(0.2)
        return telemetry

    with running(twistd(), tmp_path) as server:
        fleet = start_fleet(tmp_path, tmp_path / "sent.jsonl", seconds=24)
        until("records", lambda found: found["appended"] > 1000)
        fill(ballast)

        def dropped_while_full(found: dict[str, Any]) -> bool:
            fill(ballast, leave=2_000_000)  # what Kafka takes makes room; control needs little
            return sum(found["dropped"].values()) > 500

        full = until("drops", dropped_while_full)
        assert set(full["dropped"]) <= {"min_free", "disk_full", "heavy"}
        ballast.unlink()
        until("records again", lambda found: found["appended"] > full["appended"] + 1000)
        fleet.communicate(timeout=120)
        ledger = wait_for_kafka(log)
        assert server.process.poll() is None
        assert server.stop() == -signal.SIGTERM
    assert imbalances(ledger) == []
    assert ledger["control"]["dropped"] == {}
    reader = ledger["telemetry"]["readers"]["kafka"]
    settings = KafkaSettings(brokers=tuple(broker.bootstrap), topic=topic)
    messages = sum(map(len, read_topic(settings).values()))
    acknowledged = sum(each["readers"]["kafka"]["acknowledged"] for each in ledger.values())
    assert messages == acknowledged
    assert reader["waiting"] == 0


def fill(path: Path, leave: int = 0) -> None:
    """Take all the room that a volume has left, but for so many bytes."""
    with path.open("ab", buffering=0) as out:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while shutil.disk_usage(path.parent).free - size >= leave:
                    out.write(bytes(size))
