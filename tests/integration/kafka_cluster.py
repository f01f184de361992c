"""Real Kafka brokers on loopback (KRaft, no ZooKeeper), as many as a test wants.

``python -m tests.integration.kafka_cluster`` runs one in the foreground; ``make kafka`` does so.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kafka.admin import KafkaAdminClient, NewTopic

from tests.integration.servers import free_ports

ROOT = Path(__file__).parents[2]
JARS = ROOT / ".tools" / "kafka" / "libs"
CLUSTER_ID = "ZWxrZWlkLXRlc3RzLTAwMA"  # any 16 bytes in base64
DEADLINE = 90.0  # seconds until a broker's start is given up; it takes three on an idle machine

JVM = ("-Xms96m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
"""Small and quick to start, which is what tests want."""

LOG4J = """<Configuration status="ERROR"><Appenders><Console name="out" target="SYSTEM_OUT">
<PatternLayout pattern="%d %p %c{1} %m%n"/></Console></Appenders>
<Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers></Configuration>"""

CLIENT, INTERNAL, CONTROLLER = "CLIENT", "INTERNAL", "CONTROLLER"


def missing() -> str | None:
    """Say what to install when brokers cannot be run here; None when they can."""
    if not any(JARS.glob("kafka_2.13-*.jar")):
        return "no Kafka here: make kafka-jars"
    java = shutil.which("java")
    if java is None:
        return "Java 17 or later is missing: apt-get install openjdk-17-jre-headless"
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    digits = said.partition('version "')[2].partition(".")[0].partition('"')[0]
    if not digits.isdigit() or int(digits) < 17:
        return f"Java 17 or later is needed, here is {said.splitlines()[:1]}: apt-get install " + (
            "openjdk-17-jre-headless"
        )
    return None


class Broker:
    """One broker that is its own controller as well; stopped and started at will."""

    def __init__(
        self, cluster: "KafkaCluster", number: int, port: int, own_ports: Sequence[int]
    ) -> None:
        self._cluster, self.number, self.port = cluster, number, port
        self.internal_port, self.quorum_port = own_ports
        self.folder = cluster.folder / f"broker-{number}"
        self.process: subprocess.Popen[bytes] | None = None

    def write_settings(self, voters: str, extra: Mapping[str, str]) -> None:
        """Write server.properties."""
        self.folder.mkdir(parents=True)
        count = len(self._cluster.brokers) or 1
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(self.number),
            "controller.quorum.voters": voters,
            "listeners": f"{CLIENT}://127.0.0.1:{self.port},"
            f"{INTERNAL}://127.0.0.1:{self.internal_port},"
            f"{CONTROLLER}://127.0.0.1:{self.quorum_port}",
            "advertised.listeners": f"{CLIENT}://127.0.0.1:{self._cluster.advertised(self.port)},"
            f"{INTERNAL}://127.0.0.1:{self.internal_port}",
            "listener.security.protocol.map": (
                f"{CLIENT}:{self._cluster.protocol},{INTERNAL}:PLAINTEXT,{CONTROLLER}:PLAINTEXT"
            ),
            "inter.broker.listener.name": INTERNAL,
            "controller.listener.names": CONTROLLER,
            "log.dirs": str(self.folder / "data"),
            "num.network.threads": "1",
            "num.io.threads": "2",
            "background.threads": "2",
            "num.partitions": "4",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": str(min(3, count)),
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "log.cleaner.enable": "false",
            "controlled.shutdown.enable": "true",
            # A dead broker is noticed soon, so that a fault of a minute holds many of them.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "controller.quorum.election.timeout.ms": "500",
            "controller.quorum.fetch.timeout.ms": "1500",
            **extra,
        }
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        (self.folder / "server.properties").write_text(text)

    def _java(self, main: str, *argv: str) -> list[str]:
        return [
            "java",
            *JVM,
            f"-Dlog4j2.configurationFile={self._cluster.folder / 'log4j2.xml'}",
            *self._cluster.jvm_options,
            "-cp",
            f"{JARS}/*",
            main,
            *argv,
        ]

    def format(self, *options: str) -> subprocess.Popen[bytes]:
        """Begin to prepare the data folder."""
        settings = str(self.folder / "server.properties")
        return subprocess.Popen(
            self._java(
                "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", settings, *options
            ),
            stdout=subprocess.DEVNULL,
        )

    def start(self) -> None:
        """Begin to start; see `KafkaCluster.wait`."""
        assert self.process is None
        with (self.folder / "out.log").open("ab") as out:
            self.process = subprocess.Popen(
                self._java("kafka.Kafka", str(self.folder / "server.properties")),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the process and wait for its end."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        if number == signal.SIGSTOP:
            self.process = process
            return
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def output(self) -> str:
        """What it has said."""
        return (self.folder / "out.log").read_text(errors="replace")


class KafkaCluster:
    """Brokers that know each other; `close` ends them all.

    Args:
        folder: for settings and data; tests pass a temporary one.
        count: of brokers.
        ports: of the brokers, one each; None: free ones.
        proxied: broker port -> the port that clients are told, for a proxy in front.
        protocol: of the listener for clients.
        extra: more lines for every server.properties.
        admin_options: what a client needs besides the brokers.
        format_options: for the tool that prepares the data folders, such as SCRAM users.
        jvm_options: for every broker.
    """

    def __init__(
        self,
        folder: Path,
        count: int = 1,
        *,
        ports: Sequence[int] | None = None,
        proxied: Mapping[int, int] | None = None,
        protocol: str = "PLAINTEXT",
        extra: Mapping[str, str] | None = None,
        admin_options: Mapping[str, object] | None = None,
        format_options: Sequence[str] = (),
        jvm_options: Sequence[str] = (),
    ) -> None:
        self.folder, self.jvm_options, self.protocol = folder, jvm_options, protocol
        self._admin_options = admin_options or {}
        self._proxied = proxied or {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log4j2.xml").write_text(LOG4J)
        chosen = list(ports) if ports else free_ports(count)
        own = free_ports(2 * count)
        self.brokers: list[Broker] = []
        made = [
            Broker(self, number, chosen[number], own[2 * number : 2 * number + 2])
            for number in range(count)
        ]
        self.brokers = made
        voters = ",".join(f"{b.number}@127.0.0.1:{b.quorum_port}" for b in made)
        for broker in made:
            broker.write_settings(voters, extra or {})
        for process in [broker.format(*format_options) for broker in made]:
            if process.wait(DEADLINE):
                raise AssertionError("the data folder of a broker cannot be prepared")

    def advertised(self, port: int) -> int:
        """The port that clients are told for a broker's own."""
        return self._proxied.get(port, port)

    @property
    def bootstrap(self) -> list[str]:
        """``host:port`` of every broker, as clients are to dial them."""
        return [f"127.0.0.1:{self.advertised(broker.port)}" for broker in self.brokers]

    def start(self) -> "KafkaCluster":
        """Start every broker and wait until they serve."""
        for broker in self.brokers:
            broker.start()
        self.wait()
        return self

    def wait(self) -> None:
        """Wait until every broker that runs accepts connections."""
        deadline = time.monotonic() + DEADLINE
        for broker in self.brokers:
            while broker.process is not None:
                if broker.process.poll() is not None:
                    raise AssertionError(f"broker {broker.number} ended:\n{broker.output()}")
                try:
                    socket.create_connection(("127.0.0.1", broker.port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise AssertionError(f"no broker:\n{broker.output()}") from None
                    time.sleep(0.05)

    def admin(self) -> KafkaAdminClient:
        """A client for topics; to be closed by the caller."""
        return KafkaAdminClient(bootstrap_servers=self.bootstrap, **self._admin_options)

    def create_topic(
        self,
        name: str,
        partitions: int = 4,
        replication: int = 1,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Make a topic and wait until it is there."""
        admin = self.admin()
        try:
            admin.create_topics(
                [
                    NewTopic(
                        name=name,
                        num_partitions=partitions,
                        replication_factor=replication,
                        topic_configs=dict(settings or {}),
                    )
                ]
            )
        finally:
            admin.close()

    def close(self) -> None:
        """End every broker, at once."""
        for broker in self.brokers:
            if broker.process is not None:
                broker.process.send_signal(signal.SIGCONT)
            broker.stop(signal.SIGKILL)


def main() -> None:
    """Run one broker in the foreground until interrupted."""
    parser = argparse.ArgumentParser(description="A Kafka broker on loopback, for trying things")
    parser.add_argument("--port", type=int, default=9092)
    parser.add_argument("--folder", type=Path, help="keep its data here (default: thrown away)")
    chosen = parser.parse_args()
    if (reason := missing()) is not None:
        sys.exit(reason)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="elkeid-kafka-"))
    if (folder / "broker-0").exists():
        sys.exit(f"{folder} holds a broker's data already: remove it, or name another folder")
    cluster = KafkaCluster(folder, ports=[chosen.port])
    try:
        cluster.start()
        print(f'Kafka is ready: brokers = ["127.0.0.1:{chosen.port}"] (Ctrl-C ends it)', flush=True)
        process = cluster.brokers[0].process
        assert process is not None
        process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        cluster.close()
        if chosen.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.umask(0o077)
    main()
