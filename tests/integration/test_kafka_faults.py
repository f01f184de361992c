"""Faults at random: gateways killed, leaders changed, brokers stopped, networks stalled."""

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from elkeid.config import KAFKA_READER, KafkaSettings
from elkeid.eventlog.cursors import cursor_path, read_cursor
from elkeid.eventlog.reader import LogReader
from elkeid.kafka.partition import partition_of
from elkeid.ledgers import Ledger, imbalances
from elkeid.wire import mqdata
from elkeid.wire.datatypes import RecordClass
from tests.integration.freezing_proxy import FreezingProxies
from tests.integration.kafka_cluster import KafkaCluster
from tests.integration.servers import Server, free_ports, settings_text, twistd
from tests.integration.test_kafka import kafka_text, need_kafka, read_topic, wait_for_kafka
from tests.integration.test_load import start_fleet

pytestmark = pytest.mark.integration

TOPIC = "hids_svr"
PARTITIONS = 6


class Nemesis:
    """Does something bad every few seconds, and undoes it."""

    def __init__(
        self, seed: int, folder: Path, cluster: KafkaCluster, proxies: FreezingProxies
    ) -> None:
        self._chance, self._folder = random.Random(seed), folder
        self._cluster, self._proxies = cluster, proxies
        self.kills = 0
        self.done: Counter[str] = Counter()
        self.gateway = self._gateway()

    def _gateway(self) -> Server:
        server = Server(twistd(), self._folder, dict(os.environ))
        server.wait_for("ready: ")
        return server

    def strike(self) -> None:
        """One fault, and its end; some seconds."""
        chance = self._chance
        kinds = (self.kill_gateway, self.stop_broker, self.kill_broker, self.stall, self.stall_all)
        fault = chance.choice(kinds)
        self.done[fault.__name__] += 1
        fault(chance)

    def kill_gateway(self, chance: random.Random) -> None:
        self.gateway.stop(signal.SIGKILL)
        self.kills += 1
        time.sleep(chance.uniform(0, 1))
        self.gateway = self._gateway()

    def stop_broker(self, chance: random.Random, number: int = signal.SIGTERM) -> None:
        broker = chance.choice(self._cluster.brokers)
        broker.stop(number)  # its partitions get other leaders
        time.sleep(chance.uniform(0.5, 4))
        broker.start()
        self._cluster.wait()

    def kill_broker(self, chance: random.Random) -> None:
        self.stop_broker(chance, signal.SIGKILL)

    def stall(self, chance: random.Random) -> None:
        self._stall(chance, [chance.choice(self._cluster.brokers).port])

    def stall_all(self, chance: random.Random) -> None:
        self._stall(chance, [broker.port for broker in self._cluster.brokers])

    def _stall(self, chance: random.Random, ports: list[int]) -> None:
        proxies = [self._cluster.advertised(port) for port in ports]
        for each in proxies:
            self._proxies.freeze(each)
        time.sleep(chance.uniform(1, 5))
        for each in proxies:
            self._proxies.thaw(each)

    def rest(self) -> None:
        time.sleep(self._chance.uniform(0.5, 3))


def appended(log: Path) -> dict[tuple[RecordClass, bytes], list[bytes]]:
    """What each agent's records of each class are to be in Kafka, in order."""
    found: dict[tuple[RecordClass, bytes], list[bytes]] = defaultdict(list)
    with LogReader(log) as source:
        for entry in source.entries(source.extent()):
            agent = mqdata.decode(entry.suffix).agent_id.encode()
            found[entry.record_class, agent] += [
                each + entry.suffix for each in mqdata.records(entry.region)
            ]
    return found


@pytest.mark.parametrize(
    "seconds", [60, pytest.param(600, marks=pytest.mark.soak)], ids=["a minute", "ten minutes"]
)
def test_faults_lose_nothing(seconds: int) -> None:
    """Every appended record is in Kafka, in order, and what is twice there is explained."""
    need_kafka()
    seed = int(os.environ.get("ELKEID_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"ELKEID_SEED={seed}")
    folder = Path(tempfile.mkdtemp(prefix="elkeid-faults-"))
    own, told = free_ports(3), free_ports(3)
    proxies = FreezingProxies(dict(zip(told, own, strict=True)))
    cluster = KafkaCluster(
        folder / "kafka", 3, ports=own, proxied=dict(zip(own, told, strict=True))
    )
    nemesis = None
    try:
        cluster.start()
        settings = {"min.insync.replicas": "2"}
        cluster.create_topic(TOPIC, PARTITIONS, replication=3, settings=settings)
        work = folder / "gateway"
        work.mkdir()
        text = settings_text(free_ports(4)) + kafka_text(cluster, TOPIC)
        (work / "elkeid.toml").write_text(text)
        nemesis = Nemesis(seed, work, cluster, proxies)
        fleet = start_fleet(work, folder / "sent.jsonl", seconds)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            nemesis.rest()
            nemesis.strike()
        fleet.communicate(timeout=120)
        log = work / "data" / "eventlog"
        ledger = wait_for_kafka(log, 120)
        assert nemesis.gateway.stop() == -signal.SIGTERM
        check(log, cluster, ledger, nemesis)
    finally:
        if nemesis is not None:
            nemesis.gateway.end()
        cluster.close()
        proxies.close()
        shutil.rmtree(folder, ignore_errors=True)


def check(log: Path, cluster: KafkaCluster, ledger: Ledger, nemesis: Nemesis) -> None:
    """Compare log and topic, record by record."""
    assert imbalances(ledger) == []
    topic = read_topic(KafkaSettings(brokers=tuple(cluster.bootstrap), topic=TOPIC))
    got: dict[bytes, list[bytes]] = defaultdict(list)
    for partition, messages in topic.items():
        for message in messages:
            assert message.key is not None
            assert partition_of(message.key, PARTITIONS) == partition
            got[message.key].append(message.value)
    counts = {agent: Counter(values) for agent, values in got.items()}
    total, missing = 0, 0
    for (_, agent), values in appended(log).items():
        total += len(values)
        wanted = Counter(values)
        missing += sum((wanted - counts[agent]).values())
        ours = [value for value in got[agent] if value in wanted]
        assert list(dict.fromkeys(ours)) == list(dict.fromkeys(values)), agent
    extra = sum(map(len, got.values())) - total
    cursor = read_cursor(cursor_path(log, KAFKA_READER))
    assert cursor is not None
    print(f"{total} records, {extra} twice, {nemesis.done}, repeats {cursor.repeats}")
    assert missing == 0
    assert total > 0
    assert cursor.repeats.get("crash", 0) <= nemesis.kills
    if extra:
        assert sum(cursor.repeats.values()) > 0
    waiting = {label: each["readers"][KAFKA_READER] for label, each in ledger.items()}
    assert all(each["set_aside"] == 0 and not each["expired"] for each in waiting.values())
