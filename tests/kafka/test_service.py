"""The bridge as a part of a gateway: woken by commits, shown in metrics, gone when stopped."""

import threading
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from twisted.internet.defer import Deferred, maybeDeferred

from elkeid.config import KafkaSettings, parse
from elkeid.eventlog.wakeup import Wakeup
from elkeid.kafka.service import KafkaFeed
from elkeid.wire.datatypes import RecordClass
from tests.integration.servers import free_ports
from tests.kafka.support import Log


def bridges() -> list[threading.Thread]:
    """Threads of bridges that run now."""
    return [each for each in threading.enumerate() if each.name == "kafka-bridge"]


def test_commits_wake(tmp_path: Path) -> None:
    """A commit wakes a reader that is armed, once; drops and empty turns wake nobody."""
    log, wakeup = Log(tmp_path / "log"), Wakeup()
    log.log.wakeups.append(wakeup)
    log.append(b"a", b"1")
    assert not wakeup.fresh
    wakeup.arm()
    log.append(b"a", b"2")
    assert wakeup.fresh
    assert not wakeup.armed
    wakeup.wait(60)  # returns at once
    wakeup.arm()
    assert not wakeup.fresh
    wakeup.disarm()
    log.append(b"a", b"3")
    assert not wakeup.fresh


def test_start_and_stop_without_brokers(tmp_path: Path) -> None:
    """Brokers that are not there keep nobody waiting, and their records stay in the log."""
    (port,) = free_ports(1)
    log, registry = Log(tmp_path / "log"), CollectorRegistry()
    settings = KafkaSettings(brokers=(f"127.0.0.1:{port}",))
    feed = KafkaFeed(settings, log.directory, log.log, registry, maybeDeferred)
    feed.start()
    log.append(b"a", b"1")
    (thread,) = bridges()
    stopped: list[object] = []
    Deferred.fromCoroutine(feed.stop()).addBoth(stopped.append)
    assert stopped == [None]
    thread.join(10)
    assert not thread.is_alive()
    assert log.log.wakeups == []
    shown = generate_latest(registry).decode()
    for name in ("connected 0.0", "partitions 0.0", "retries_total 0.0", "lag_seconds 0.0"):
        assert f"elkeid_kafka_{name}" in shown
    assert 'elkeid_kafka_ack_seconds_bucket{le="0.25"} 0.0' in shown
    assert log.ledger(RecordClass.TELEMETRY)["waiting"] == 1


def test_reader_is_implied_by_brokers(tmp_path: Path) -> None:
    """With brokers the log keeps what Kafka has not got; without, it waits for nobody."""
    with_brokers = parse({"kafka": {"brokers": ["127.0.0.1:9092"]}}, tmp_path)
    assert with_brokers.eventlog.readers == ("kafka",)
    assert parse({}, tmp_path).eventlog.readers == ()


def test_remarks_while_kafka_is_away(tmp_path: Path) -> None:
    """While Kafka is away the gateway's readiness names it, with what waits and room for more."""
    now = [100.0]
    log = Log(tmp_path / "log")
    settings = KafkaSettings(brokers=("127.0.0.1:1",))
    feed = KafkaFeed(
        settings,
        log.directory,
        log.log,
        CollectorRegistry(),
        maybeDeferred,
        monotonic=lambda: now[0],
    )
    assert feed.remarks() == []
    log.append(b"a", *(bytes(500),) * 200)
    log.clock.advance(11)
    feed.bridge.figures.note_outage("no answer", 100.0)
    now[0] += 90
    (remark,) = feed.remarks()
    assert remark.startswith(
        "Kafka has not taken all records for 1.5 minutes: no answer; 200 records wait (0 MiB), "
        "the event log has room for "
    )
    feed.bridge.failed = OSError("disk")
    (remark,) = feed.remarks()
    assert "bridge ended" in remark
