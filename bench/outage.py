"""An outage of Kafka rehearsed: a broker stopped under load and started again, and the catch-up.

    python -m bench.outage [--rate 20000] [--seconds 600] [--partitions 4]

leanswarm (`make tools`) sends batches of 10 records at fixed times, all the while; 50 simulated
agents beside it send heartbeats, which are control records. The broker on loopback (`make
kafka-jars`) is stopped for so many seconds. Nothing is printed but what is wrong unless every
record is in the topic in the end and no agent noticed anything.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from attrs import define, field

from bench.gateway import Gateway, InvalidRun, fleet_command, report_of, swarm_command
from bench.kafka import Topics, gateway, messages, settled
from elkeid.eventlog.ledger import read_ledger
from elkeid.kafka.connection import quiet_library
from tests.integration.kafka_cluster import KafkaCluster, missing

PER_BATCH, EVERY = 10, 0.1
BEFORE, AFTER = 10.0, 15.0  # seconds of load before the outage, and after the catch-up
LOOK_SECONDS = 0.5
SETTLE_SECONDS = 2.5  # until the control records of the outage are out and the place is saved
SHARE = 0.8  # of the outage, that the load lasts beyond it: the catch-up should take a third
CAUGHT_UP_SECONDS = 1.0  # of load that may wait when all is well


@define
class Watch:
    """Where the records of a gateway are, as its log's files say."""

    server: Gateway
    control: deque[tuple[float, int]] = field(factory=deque)  # time, appended; not taken yet
    control_seconds: float = 0.0  # that control records waited at most
    since: float = 0.0
    samples: list[tuple[float, int, int]] = field(factory=list)  # time, appended, acknowledged

    def look(self) -> int:
        """How many records of telemetry wait for Kafka."""
        ledger = read_ledger(self.server.data / "eventlog")
        account = ledger["telemetry"]
        reader = account["readers"]["kafka"]
        self.samples.append((time.monotonic(), account["appended"], reader["acknowledged"]))
        now, control = time.monotonic(), ledger["control"]
        taken = control["appended"] - control["readers"]["kafka"]["waiting"]
        self.control.append((now, control["appended"]))
        while self.control[0][1] <= taken and len(self.control) > 1:
            self.control.popleft()
        if now - self.since > SETTLE_SECONDS:
            self.control_seconds = max(self.control_seconds, now - self.control[0][0])
        return int(reader["waiting"])

    def during(self, seconds: float, done: Callable[[int], bool] = lambda _: False) -> int:
        """Look again and again, for so long or until it is done; return what waits then."""
        self.since, self.control_seconds = time.monotonic(), 0.0
        end = self.since + seconds
        del self.samples[:-2]
        while True:
            waiting = self.look()
            if done(waiting) or time.monotonic() >= end:
                return waiting
            time.sleep(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))

    def rates(self) -> tuple[float, float]:
        """Records a second that were appended and acknowledged in the time last looked at."""
        (start, *first), (end, *last) = self.samples[0], self.samples[-1]
        appended, acknowledged = (
            (after - before) / (end - start) for before, after in zip(first, last, strict=True)
        )
        return appended, acknowledged


def rehearse(topics: Topics, rate: int, seconds: float) -> None:
    """Run it, and print what came of it."""
    settings = topics.new()
    (broker,) = topics.cluster.brokers
    agents = round(rate * EVERY / PER_BATCH)
    with gateway(settings) as server:
        longest = BEFORE + seconds * (1 + SHARE) + AFTER
        sent = ["-agents", str(agents), "-records", str(PER_BATCH)]
        sent += ["-total", str(round(rate * longest)), "-every", f"{round(EVERY * 1000)}ms"]
        swarm = swarm_command(server, *sent, program="leanswarm")
        command = fleet_command(server, "--agents", "50", "--duration", str(round(longest)))
        load = subprocess.Popen(swarm, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        beats = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            watch = Watch(server)
            watch.during(BEFORE)
            broker.stop()
            waiting = watch.during(seconds)
            came, _ = watch.rates()
            left = server.metrics()
            size = left['elkeid_log_backlog_bytes{class="telemetry",reader="kafka"}']
            room = left['elkeid_log_backlog_room_seconds{class="telemetry",reader="kafka"}']
            print(
                f"outage      {seconds:.0f} s at {came:,.0f} records/s: {waiting:,} wait, "
                f"{size / 2**20:,.0f} MiB on disk, room for {room / 60:,.0f} minutes more",
                flush=True,
            )
            broker.start()
            topics.cluster.wait()
            at, used = time.monotonic(), server.cpu()
            while (now := watch.look()) >= waiting and time.monotonic() < at + 60:
                waiting = now
                time.sleep(0.1)  # until the client has found the broker again
            found = time.monotonic() - at
            left_over = watch.during(seconds * SHARE, lambda now: now < rate * CAUGHT_UP_SECONDS)
            live, caught = watch.rates()
            took = watch.samples[-1][0] - watch.samples[0][0]
            if left_over >= rate * CAUGHT_UP_SECONDS:
                print(f"catch-up    NOT done after {took:.0f} s: {left_over:,} wait", flush=True)
            share = (server.cpu() - used) / (time.monotonic() - at)
            print(
                f"catch-up    {caught:,.0f} records/s beside {live:,.0f} live, {took:.0f} s, begun "
                f"{found:.1f} s after the broker; {share:.0%} of a core; control "
                f"records waited {watch.control_seconds:.1f} s at most",
                flush=True,
            )
            out, err = load.communicate(timeout=seconds * SHARE + 120)
            beats.terminate()
            beats.wait(30)
            total = settled(server, settings)
            report_of(out, err)
            print(f"afterwards  {total:,} records appended, {messages(settings):,} in the topic")
        finally:
            load.kill()
            beats.kill()


def main() -> None:
    """Rehearse once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=20_000, help="records a second")
    parser.add_argument("--seconds", type=float, default=600, help="of the outage")
    parser.add_argument("--partitions", type=int, default=4)
    options = parser.parse_args()
    if (reason := missing()) is not None:
        sys.exit(reason)
    quiet_library()
    folder = Path(tempfile.mkdtemp(prefix="elkeid-bench-"))
    cluster = KafkaCluster(folder / "kafka", extra={"num.io.threads": "4"})
    try:
        cluster.start()
        rehearse(Topics(cluster, options.partitions), options.rate, options.seconds)
    except InvalidRun as error:
        sys.exit(f"invalid run: {error}")
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
