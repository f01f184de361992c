"""The bridge over a real log and a scripted cluster: nothing lost, in order, accounted for."""

import random
from pathlib import Path

import kafka.errors
import pytest

from elkeid.config import KafkaSettings, MiB
from elkeid.errors import OperatorError
from elkeid.kafka.batches import Batch
from elkeid.kafka.bridge import Bridge
from elkeid.kafka.deadletters import read_letters
from elkeid.kafka.feed import STALL_SECONDS
from elkeid.kafka.partition import partition_of
from elkeid.wire.datatypes import RecordClass
from tests.kafka.support import HOLD, SETTINGS, Cluster, Log, Run

AGENTS = [b"agent-%d" % number for number in range(12)]


def agent_of(partition: int, count: int = 4) -> bytes:
    """An agent whose records go to this partition."""
    return next(each for each in AGENTS if partition_of(each, count) == partition)


def first_times(values: list[bytes]) -> list[bytes]:
    """Without repetitions."""
    return list(dict.fromkeys(values))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


def test_everything_arrives_in_order(log: Log) -> None:
    """Each record is one message of its agent's partition, in order, with its arrival's time."""
    for number in range(30):
        for agent in AGENTS:
            log.append(agent, b"%d-a" % number, b"%d-b" % number)
    cluster = Cluster()
    run = Run(log, cluster)
    run.turn(5)
    assert cluster.values() == {agent: log.sent[RecordClass.TELEMETRY, agent] for agent in AGENTS}
    for partition, messages in cluster.taken.items():
        assert {partition_of(key, 4) for key, _, _ in messages} == {partition}
        assert {at for _, _, at in messages} == {int(log.clock.seconds() * 1000)}
    run.stop()
    total = 60 * len(AGENTS)
    assert log.ledger() == {"acknowledged": total, "set_aside": 0, "waiting": 0, "expired": {}}
    assert sum(run.figures.ack_seconds) == total


def test_place_is_kept(log: Log) -> None:
    """After a clean stop nothing comes twice, and no repetition is counted."""
    cluster = Cluster()
    for number in range(3):
        log.append(b"a", b"%d" % number)
        run = Run(log, cluster)
        run.turn(2)
        run.stop()
    assert cluster.values()[b"a"] == log.sent[RecordClass.TELEMETRY, b"a"]
    assert run.place.cursor.repeats == {}


def test_kill_repeats_what_was_not_saved(log: Log) -> None:
    """After a kill what was sent since the last save comes again, which is counted."""
    cluster = Cluster()
    log.append(b"a", b"1")
    run = Run(log, cluster)
    run.turn(15)  # and saved
    log.append(b"a", b"2")
    run.now += 0.01
    run.turn(1)
    run.turn(1, 0)
    run.kill()
    run = Run(log, cluster)
    run.turn(2)
    values = cluster.values()[b"a"]
    first, second = log.sent[RecordClass.TELEMETRY, b"a"]
    assert values in ([first, second, second], [first, second])
    assert run.place.cursor.repeats == {"crash": 1}
    run.stop()
    assert log.ledger()["acknowledged"] == 2


def test_failed_batch_goes_before_anything_newer(log: Log) -> None:
    """After a reset a partition is rewound to its oldest record that is not acknowledged."""
    cluster = Cluster()
    failures = [kafka.errors.OutOfOrderSequenceNumberError("x"), HOLD]
    cluster.verdict = lambda _p, _b: failures.pop(0) if failures else None
    log.append(b"a", b"1")
    run = Run(log, cluster)
    run.turn(1)
    log.append(b"a", b"2")
    run.turn(10, 0.2)
    assert cluster.values() == {}
    cluster.release()
    run.turn(10, 0.2)
    assert cluster.values()[b"a"] == log.sent[RecordClass.TELEMETRY, b"a"]
    assert run.place.cursor.repeats == {"reset": 1}
    assert [kind for kind, _ in run.said] == ["OutOfOrderSequenceNumber", "back"]
    run.stop()


def test_partition_without_leader_holds_back_its_own_alone(log: Log) -> None:
    """One partition that takes nothing costs the others nothing, over restarts too."""
    stuck, free = agent_of(1), agent_of(2)
    cluster = Cluster()
    cluster.verdict = lambda partition, _: HOLD if partition == 1 else None
    body = bytes(200_000)
    run = Run(log, cluster)
    for _number in range(100):
        log.append(stuck, body)
        log.append(free, body)
        run.turn(4)
    run.turn(int(STALL_SECONDS * 10) + 10)
    assert len(cluster.values()[free]) == 100
    assert run.figures.parked == 1
    run.turn(15)
    assert log.ledger() == {"acknowledged": 100, "set_aside": 0, "waiting": 100, "expired": {}}
    run.kill()

    run = Run(log, cluster)
    for _number in range(20):
        log.append(stuck, body)
        log.append(free, body)
        run.turn(4)
    run.turn(30)
    assert len(cluster.values()[free]) == 120
    cluster.held.clear()  # what the killed process had under way never came
    run.kill()

    run = Run(log, cluster)
    cluster.verdict = lambda _p, _b: None
    run.turn(80)
    assert cluster.values()[stuck] == log.sent[RecordClass.TELEMETRY, stuck]
    assert len(cluster.values()[free]) == 120
    run.stop()
    assert log.ledger() == {"acknowledged": 240, "set_aside": 0, "waiting": 0, "expired": {}}


def test_parked_partition_catches_up_while_running(log: Log) -> None:
    """When a parked partition moves again, what was passed over comes in order, then the rest."""
    stuck, free = agent_of(1), agent_of(2)
    cluster = Cluster()
    cluster.verdict = lambda partition, _: HOLD if partition == 1 else None
    run = Run(log, cluster)
    for number in range(120):
        log.append(stuck, b"%d" % number + bytes(200_000))
        log.append(free, b"%d" % number)
        run.turn(2)
    run.turn(30)
    assert run.session.feeds[RecordClass.TELEMETRY].parked == 1
    cluster.verdict = lambda _p, _b: None
    cluster.release()
    for number in range(40):
        log.append(stuck, b"later %d" % number)
        run.turn(2)
    run.turn(60)
    assert cluster.values()[stuck] == log.sent[RecordClass.TELEMETRY, stuck]
    assert run.session.feeds[RecordClass.TELEMETRY].parked == 0
    run.stop()


def test_records_that_are_deleted_meanwhile_expire(tmp_path: Path) -> None:
    """What a cap deletes before Kafka took it is expired, and all else balances."""
    log = Log(tmp_path / "log", segment_bytes=MiB, telemetry_cap_bytes=16 * MiB)
    stuck, free = agent_of(1), agent_of(2)
    cluster = Cluster()
    cluster.verdict = lambda partition, _: HOLD if partition == 1 else None
    run = Run(log, cluster)
    for number in range(200):
        log.append(stuck, b"%d" % number + bytes(150_000))
        log.append(free, b"%d" % number)
        run.turn(1)
        if number % 10 == 0:
            log.clock.advance(2)
            run.turn(3)
    run.turn(40)
    log.clock.advance(30)
    run.turn(15)
    cluster.verdict = lambda _p, _b: None
    cluster.release()
    run.turn(80)
    run.stop()
    account = log.ledger()
    assert account["waiting"] == 0
    assert account["expired"]["cap"] > 0  # type: ignore[index]
    assert account["acknowledged"] == sum(map(len, cluster.values().values()))
    sent = log.sent[RecordClass.TELEMETRY, stuck]
    got = cluster.values()[stuck]
    assert got == [each for each in sent if each in set(got)]
    assert len(cluster.values()[free]) == 200


def test_too_large(log: Log) -> None:
    """Batches shrink to what the broker takes; a record beyond is set aside and holds up nobody."""
    cluster = Cluster()
    cluster.verdict = lambda _p, batch: (
        kafka.errors.MessageSizeTooLargeError("x") if batch.size > 5000 else None
    )
    log.append(b"a", *(b"%d" % number * 100 for number in range(1, 90)))
    log.append(b"a", bytes(6000), b"after")
    run = Run(log, cluster)
    run.turn(80)
    sent = log.sent[RecordClass.TELEMETRY, b"a"]
    big = sent.pop(-2)
    assert cluster.values()[b"a"] == sent
    assert run.figures.dead_letters == {"too_large": 1}
    (letter,) = read_letters(log.directory)
    assert (letter.class_label, letter.offset, letter.reason) == ("telemetry", 89, "too_large")
    assert letter.agent_id == "a"
    assert len(letter.value) > len(big)
    run.stop()
    assert log.ledger() == {"acknowledged": 90, "set_aside": 1, "waiting": 0, "expired": {}}


def test_invalid_records_are_found(log: Log) -> None:
    """Of a batch that a broker calls invalid only the invalid records are set aside."""
    cluster = Cluster()
    cluster.verdict = lambda _p, batch: (
        kafka.errors.InvalidRecordError("x") if b"bad" in batch.body else None
    )
    bodies = [b"bad %d" % n if n in (3, 40, 41) else b"good %d" % n for n in range(60)]
    log.append(b"a", *bodies)
    run = Run(log, cluster)
    run.turn(80)
    sent = [each for each in log.sent[RecordClass.TELEMETRY, b"a"] if b"bad" not in each]
    assert cluster.values()[b"a"] == sent
    assert [each.offset for each in read_letters(log.directory)] == [3, 40, 41]
    run.stop()
    assert log.ledger()["set_aside"] == 3


def test_times_that_brokers_refuse(log: Log) -> None:
    """A record whose time a broker refuses is sent without one, not set aside."""
    cluster = Cluster()
    cluster.verdict = lambda _p, batch: (
        kafka.errors.InvalidTimestampError("x") if batch.base_ms >= 0 else None
    )
    log.append(b"a", b"1", b"2")
    run = Run(log, cluster)
    run.turn(5)
    assert [at for _, _, at in cluster.taken[partition_of(b"a", 4)]] == [-1, -1]
    run.stop()


def test_refusals_that_may_pass_are_waited_for(log: Log) -> None:
    """Without permission nothing is lost and nothing counted as repeated; it is said once."""
    cluster = Cluster()
    cluster.verdict = lambda _p, _b: kafka.errors.TopicAuthorizationFailedError("hids_svr")
    log.append(b"a", b"1")
    run = Run(log, cluster)
    run.turn(100)
    assert run.figures.refusals["TopicAuthorizationFailed"] < 8  # with growing pauses
    cluster.verdict = lambda _p, _b: None
    run.turn(10, 10)
    assert cluster.values()[b"a"] == log.sent[RecordClass.TELEMETRY, b"a"]
    run.stop()
    assert run.place.cursor.repeats == {}


def test_an_outage_is_told_from_its_begin_to_its_end(log: Log) -> None:
    """Brokers that do not answer are an outage until what waited is taken."""
    cluster = Cluster(verdict=lambda _p, _b: HOLD)
    run = Run(log, cluster)
    log.append(b"a", b"1")
    run.turn(50)
    assert not run.figures.outage
    run.turn(100)
    assert "no answer from the brokers" in run.figures.outage
    run.turn(300)
    assert run.figures.outage_seconds(run.now) > 20
    assert "back" not in dict(run.said)
    cluster.verdict = lambda _p, _b: None
    cluster.release()
    run.turn(20)
    assert run.figures.outage_seconds(run.now) == 0
    assert [text for kind, text in run.said if kind == "back"] == [
        "records are taken again, after 34 s without"
    ]
    run.stop()


def test_refused_partition_is_an_outage(log: Log) -> None:
    """While one partition's records are refused it stays told, though others are taken."""
    error = kafka.errors.NotEnoughReplicasError("x")
    cluster = Cluster(verdict=lambda partition, _: error if partition == 1 else None)
    run = Run(log, cluster)
    for partition in range(4):
        log.append(agent_of(partition), b"x")
    run.turn(50)
    assert "partition 1" in run.figures.outage
    cluster.verdict = lambda _p, _b: None
    run.turn(400)
    assert not run.figures.outage
    run.stop()


def test_many_partitions_are_read_without_a_pause(tmp_path: Path) -> None:
    """While there is more to read and room for it, a turn follows at once."""
    log = Log(tmp_path / "log")
    for number in range(400):
        log.append(b"agent-%d" % (number % 64), bytes(10_000))
    cluster = Cluster(64)
    run = Run(log, cluster)
    run.turn(1, seconds=0.0)
    taken = sum(map(len, cluster.taken.values()))
    assert run.session.turn() == 0.0
    assert sum(map(len, cluster.taken.values())) == taken  # none has enough for a batch yet
    run.stop()


def test_control_does_not_wait_for_telemetry(log: Log) -> None:
    """With a backlog of telemetry a control record goes out in the next turn."""
    cluster = Cluster()
    for number in range(40):
        log.append(b"a", bytes([number]) * 900_000)
    run = Run(log, cluster)
    cluster.verdict = lambda _p, batch: None if batch.size < 1000 else HOLD
    run.turn(2)
    log.append(b"a", b"heartbeat", cls=RecordClass.CONTROL)
    run.turn(2)
    assert cluster.values()[b"a"] == log.sent[RecordClass.CONTROL, b"a"]
    run.kill()


def test_more_partitions(log: Log) -> None:
    """When the topic grows, what was owed under the old number goes out before the new holds."""
    cluster = Cluster(count=2)
    cluster.verdict = lambda partition, _: HOLD if partition == 1 else None
    for number in range(5):
        for agent in AGENTS:
            log.append(agent, b"%d" % number)
    run = Run(log, cluster)
    run.turn(15)
    cluster.count = 3
    assert run.session.over() == "topic"
    run.session.finish("topic")
    run.kill()
    cluster.verdict = lambda _p, _b: None
    run = Run(log, cluster)
    for agent in AGENTS:
        log.append(agent, b"new")
    run.turn(30)
    values = cluster.values()
    assert {agent: len(each) for agent, each in values.items()} == dict.fromkeys(AGENTS, 6)
    assert set(cluster.taken) == {0, 1, 2}
    run.stop()
    assert log.ledger()["waiting"] == 0
    assert run.place.cursor.classes["telemetry"].partitions == 3
    assert run.place.cursor.repeats == {"topic": 1}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens(tmp_path: Path, seed: int) -> None:
    """Under random refusals, lost answers, kills and new partitions nothing is missing."""
    chance = random.Random(seed)
    log, cluster = Log(tmp_path / "log", segment_bytes=MiB), Cluster()
    calm = False

    def verdict(_partition: int, batch: Batch) -> object:
        if calm:
            return None
        roll = chance.random()
        if roll < 0.15:
            return HOLD
        if roll < 0.25:
            return kafka.errors.OutOfOrderSequenceNumberError("x")
        if roll < 0.3:
            return kafka.errors.TopicAuthorizationFailedError("x")
        if batch.size > 60_000:
            return kafka.errors.MessageSizeTooLargeError("x")
        return None

    cluster.verdict = verdict
    run, written = Run(log, cluster), 0
    events = 0
    for _step in range(150):
        for _ in range(chance.randrange(4)):
            count = chance.randrange(1, 20)
            size = chance.choice((10, 1000, 20_000))
            cls = chance.choice(list(RecordClass))
            bodies = [b"%d " % (written + each) + bytes(size) for each in range(count)]
            log.append(chance.choice(AGENTS), *bodies, cls=cls)
            written += count
        run.turn(chance.randrange(1, 4), chance.choice((0.05, 0.5, 3.0)))
        roll = chance.random()
        if roll < 0.2:
            for each in cluster.held[:]:
                cluster.held.remove(each)
                cluster.take(each, answer=True)
        elif roll < 0.25:
            for each in cluster.held[:]:
                cluster.held.remove(each)
                cluster.take(each, answer=False)  # taken, but we never hear of it
                each.outcome(kafka.errors.UnknownProducerIdError("x"))
        elif roll < 0.3:
            run.kill()
            cluster.held.clear()
            events += 1
            if chance.random() < 0.2:
                cluster.count += 1
            run = Run(log, cluster)
    calm = True
    cluster.release()
    run.turn(400, 1.0)
    run.stop()
    assert run.place.cursor.repeats.get("crash", 0) == events
    grown = cluster.count > 4
    for cls in RecordClass:
        account = log.ledger(cls)
        assert account["waiting"] == 0
        assert account["expired"] == {}
        assert account["set_aside"] == 0
    values = cluster.values()
    for (_, agent), sent in log.sent.items():
        wanted = set(sent)
        got = [each for each in values[agent] if each in wanted]
        if grown:  # a key's partition has changed: order holds within each
            assert set(got) == wanted
        else:
            assert first_times(got) == sent


def test_once_ends_when_everything_is_there(log: Log) -> None:
    """A bridge that is to end when done sends the whole log, and leaves the place saved."""
    for number in range(50):
        log.append(AGENTS[number % 12], b"%d" % number)
    cluster = Cluster()
    Bridge(log.directory, SETTINGS, connect=lambda _retried: cluster, once=True).run()
    assert sum(len(each) for each in cluster.values().values()) == 50
    assert cluster.closed == 1
    assert log.ledger()["acknowledged"] == 50


def test_new_producer_after_a_fatal_error(log: Log) -> None:
    """A producer that can send nothing more is replaced; what it had under way is sent again."""
    log.append(b"a", b"1", b"2")
    broken, sound = Cluster(), Cluster()
    broken.verdict = lambda _p, _b: HOLD
    broken.broken = kafka.errors.ClusterAuthorizationFailedError("no")
    attempts: list[object] = [OSError("no brokers"), broken, sound]

    def connect(_retried: object) -> Cluster:
        made = attempts.pop(0)
        if isinstance(made, BaseException):
            raise made
        assert isinstance(made, Cluster)
        return made

    bridge = Bridge(log.directory, SETTINGS, connect=connect, once=True)
    bridge.run()
    assert sound.values()[b"a"] == log.sent[RecordClass.TELEMETRY, b"a"]
    assert bridge.figures.repeats == {"reset": 1}


def test_stop_while_brokers_are_silent(log: Log) -> None:
    """A stop waits its time and no longer; what was under way is counted and comes again."""
    log.append(b"a", b"1")
    silent = Cluster()
    silent.verdict = lambda _p, _b: HOLD
    bridge = Bridge(log.directory, SETTINGS, connect=lambda _retried: silent)
    bridge.start()
    while not silent.held:
        pass
    assert bridge.stop(5.0)
    cluster = Cluster()
    run = Run(log, cluster)
    run.turn(2)
    run.stop()
    assert cluster.values()[b"a"] == log.sent[RecordClass.TELEMETRY, b"a"]
    assert run.place.cursor.repeats == {"stop": 1}


def test_place_that_cannot_be_saved(log: Log) -> None:
    """On a full disk records go on to Kafka; the place is saved when there is room again."""
    cluster = Cluster()
    run = Run(log, cluster)
    run.turn(1)
    save, full = run.place.save, OSError(28, "No space left on device")

    def no_room() -> None:
        raise full

    run.place.save = no_room  # type: ignore[method-assign]
    log.append(b"a", b"1")
    run.turn(20)
    assert len(cluster.values()[b"a"]) == 1
    assert any("cannot be saved" in text for _, text in run.said)
    assert log.ledger()["acknowledged"] == 0
    run.place.save = save  # type: ignore[method-assign]
    run.turn(20)
    assert log.ledger()["acknowledged"] == 1
    run.stop()


def test_log_that_cannot_be_read_for_a_while(log: Log) -> None:
    """An error of the disk ends a session, not the bridge; nothing is lost, the sums agree."""
    failures = [OSError(5, "Input/output error")]

    class Failing(Cluster):
        def fatal(self) -> BaseException | None:
            if failures:
                raise failures.pop()
            return None

    log.append(b"a", b"1")
    cluster = Failing()
    cluster.verdict = lambda _p, _b: HOLD if failures else None
    bridge = Bridge(log.directory, SETTINGS, connect=lambda _retried: cluster, once=True)
    bridge.run()
    assert cluster.values()[b"a"] == log.sent[RecordClass.TELEMETRY, b"a"]
    assert bridge.figures.repeats == {"reset": 1}
    assert log.ledger()["acknowledged"] == 1


def test_one_feeder_a_log(log: Log) -> None:
    """Two processes cannot feed Kafka from one log."""
    run = Run(log, Cluster())
    with pytest.raises(OperatorError, match="another process"):
        Run(log, Cluster())
    run.stop()


def test_password_file_that_is_not_there(log: Log, tmp_path: Path) -> None:
    """A start without its password is refused in a sentence."""
    settings = KafkaSettings(
        brokers=("127.0.0.1:1",),
        security_protocol="SASL_PLAINTEXT",
        sasl_username="elkeid",
        sasl_password_file=tmp_path / "password",
    )
    with pytest.raises(OperatorError, match="sasl_password_file"):
        Bridge(log.directory, settings).start()
