"""Brokers that want TLS and a password: each mechanism, and what is said when it is wrong."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from elkeid.config import KafkaSettings
from elkeid.kafka.bridge import Bridge
from elkeid.wire.datatypes import RecordClass
from tests.integration.kafka_cluster import KafkaCluster
from tests.integration.test_kafka import by_agent, need_kafka, read_topic
from tests.kafka.support import Log

pytestmark = pytest.mark.integration

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
LOGIN = "org.apache.kafka.common.security"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaCluster, Path]]:
    """A broker that takes clients over TLS with a password only, and the folder with its files."""
    need_kafka()
    folder = tmp_path_factory.mktemp("guarded")
    key, certificate = folder / "key.pem", folder / "ca.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    (folder / "broker.pem").write_text(key.read_text() + certificate.read_text())
    (folder / "password").write_text("secret\n")
    (folder / "wrong").write_text("guess\n")
    plain = f'{LOGIN}.plain.PlainLoginModule required user_elkeid="secret";'
    scram = f"{LOGIN}.scram.ScramLoginModule required;"
    listener = "listener.name.client"
    cluster = KafkaCluster(
        folder / "kafka",
        protocol="SASL_SSL",
        extra={
            f"{listener}.sasl.enabled.mechanisms": ",".join(MECHANISMS),
            f"{listener}.plain.sasl.jaas.config": plain,
            f"{listener}.scram-sha-256.sasl.jaas.config": scram,
            f"{listener}.scram-sha-512.sasl.jaas.config": scram,
            f"{listener}.ssl.keystore.type": "PEM",
            f"{listener}.ssl.keystore.location": str(folder / "broker.pem"),
        },
        admin_options={
            "security_protocol": "SASL_SSL",
            "ssl_cafile": str(certificate),
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "elkeid",
            "sasl_plain_password": "secret",
        },
        format_options=[
            option
            for mechanism in MECHANISMS[1:]
            for option in ("--add-scram", f"{mechanism}=[name=elkeid,password=secret]")
        ],
    )
    try:
        yield cluster.start(), folder
    finally:
        cluster.close()


def settings_for(
    guarded: tuple[KafkaCluster, Path], mechanism: str, topic: str, password: str = "password"
) -> KafkaSettings:
    cluster, folder = guarded
    return KafkaSettings(
        brokers=tuple(cluster.bootstrap),
        topic=topic,
        security_protocol="SASL_SSL",
        sasl_mechanism=mechanism,
        sasl_username="elkeid",
        sasl_password_file=folder / password,
        ca_file=folder / "ca.pem",
    )


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_mechanisms(guarded: tuple[KafkaCluster, Path], tmp_path: Path, mechanism: str) -> None:
    """Records go there and come back over TLS with each mechanism."""
    topic = f"topic-{mechanism}"
    guarded[0].create_topic(topic)
    log = Log(tmp_path / "log")
    log.append(b"a", b"1", b"2")
    settings = settings_for(guarded, mechanism, topic)
    Bridge(log.directory, settings, once=True).run()
    assert by_agent(read_topic(settings)) == {b"a": log.sent[RecordClass.TELEMETRY, b"a"]}


def test_wrong_password(guarded: tuple[KafkaCluster, Path], tmp_path: Path) -> None:
    """A wrong password is said, and records wait; with the right one they go."""
    guarded[0].create_topic("later")
    log = Log(tmp_path / "log")
    log.append(b"a", b"1")
    refused = Bridge(log.directory, settings_for(guarded, "PLAIN", "later", "wrong"))
    said: list[str] = []
    refused._say = lambda _kind, text, error=True: said.append(text)  # type: ignore[method-assign]
    refused.start()
    end = time.monotonic() + 30
    while not said and time.monotonic() < end:
        time.sleep(0.05)
    assert refused.stop(10)
    assert "records wait in the event log" in said[0]
    assert "guess" not in said[0]
    assert log.ledger()["waiting"] == 1
    settings = settings_for(guarded, "PLAIN", "later")
    Bridge(log.directory, settings, once=True).run()
    assert by_agent(read_topic(settings)) == {b"a": log.sent[RecordClass.TELEMETRY, b"a"]}
