"""The process that runs several gateways: starts, watches, sums up, and ends them."""

import datetime
import signal
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.supervisor import WorkersRole
from elkeid.config import parse
from elkeid.discovery.service import DiscoveryRole
from elkeid.errors import OperatorError
from elkeid.key_making import make_keys
from elkeid.keys import check_keys
from elkeid.web.answers import CodeEnvelope
from elkeid.web.api import Api
from elkeid.web.client import Credentials
from elkeid.web.refusals import AuthenticationFailed
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.web.signed import SignatureCheck
from elkeid.web.site import FaceSite
from tests.web.memory import MemoryNetwork

KEYS = check_keys(Path("keys"), make_keys([], datetime.datetime.now(datetime.UTC)))
SD = 8088


class Process:
    """A worker's process: notes its signals, ends when told to."""

    def __init__(self, child: Any, argv: list[str]) -> None:
        self.child, self.argv, self.pid = child, argv, 1
        self.signals: list[int] = []
        self.reaped = False

    def signalProcess(self, number: int) -> None:
        """See `IProcessTransport`."""
        if self.reaped:
            raise ProcessExitedAlready
        self.signals.append(number)

    def say(self, text: str) -> None:
        """Write to the log."""
        self.child.childDataReceived(2, text.encode())

    def end(self, status: int = 0, number: int | None = None) -> None:
        """Be gone."""
        self.reaped = True
        clean = status == 0 and number is None
        reason = ProcessDone(0) if clean else ProcessTerminated(status or None, number)
        self.child.processEnded(Failure(reason))


class WorkerApi:
    """As much of a worker's API as is asked for."""

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self) -> None:
        self.agents = 0
        self.state = "serving"

    @routes.get("/admin/drain", summary="Agents, and whether more are taken")
    async def show(self, call: Call) -> object:
        """As told."""
        return {"state": self.state, "connections": 0, "agents": self.agents, "seconds": 0}


class SupervisorTests(SynchronousTestCase):
    """Two workers, and ServiceDiscovery in memory."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.clock: Any = self.network.clock
        self.settings = parse({}, Path(self.mktemp()))
        self.sd = DiscoveryRole(
            self.settings, KEYS, self.clock, wall=self.network.wall, monotonic=self.network.wall
        )
        self.network.ports[SD] = self.sd.site
        self.processes: list[Process] = []
        self.stopped = 0
        self.clock.spawnProcess = self.spawn
        self.clock.stop = self.stop
        self.role = WorkersRole(self.settings, KEYS, self.clock, count=2, command=["twistd"])
        credentials = Credentials(*KEYS.signing_pair)
        self.role.http = self.network.client(credentials)
        self.role._discovery._http = self.network.client(credentials)
        self.apis = [WorkerApi(), WorkerApi()]
        self.started = Deferred.fromCoroutine(self.role.start())

    def spawn(self, child: Any, path: str, argv: list[str], env: Any) -> Process:
        """Start a process."""
        self.processes.append(Process(child, argv))
        return self.processes[-1]

    def stop(self) -> None:
        """The reactor would stop."""
        self.stopped += 1

    def serve(self, *numbers: int) -> None:
        """Open workers' APIs."""
        for number in numbers:
            check = SignatureCheck(KEYS.aksk, self.network.wall)
            api = Api(
                CodeEnvelope({0: "success"}, {AuthenticationFailed: 1}, 3),
                [self.apis[number]],
                {AuthKind.SIGNED: check},
            )
            self.network.ports[6752 + 10 * number] = FaceSite(api, self.clock)

    def up(self) -> None:
        """Let both serve."""
        self.serve(0, 1)
        self.network.advance(0.5)
        self.successResultOf(self.started)

    def kill(self, number: int) -> None:
        """A worker dies."""
        site: Any = self.network.ports.pop(6752 + 10 * number)
        site.close()
        self.processes[number].end(number=9)
        self.network.flush()

    def record(self) -> tuple[int, dict[str, Any]]:
        """Weight and extra of the agents' port."""
        (found,) = self.sd.registry.records("hids_svr_grpc", self.network.wall())
        return found.weight, dict(found.extra or {})

    def test_start(self) -> None:
        """It is over when all serve; only then is the port registered, once."""
        self.assertEqual(
            [process.argv for process in self.processes],
            [["twistd", "--worker", "0/2"], ["twistd", "--worker", "1/2"]],
        )
        self.serve(0)
        self.network.advance(5)
        self.assertNoResult(self.started)
        self.assertEqual(self.sd.registry.counts(), {})
        self.serve(1)
        self.network.advance(0.5)
        self.successResultOf(self.started)
        self.assertEqual(self.sd.registry.counts(), {"hids_svr_grpc": 1})
        weight, extra = self.record()
        self.assertEqual((weight, extra["limit"], extra["draining"]), (0, 20_000, False))

    def test_start_fails(self) -> None:
        """A worker that ends gives the reason that it told."""
        self.serve(0)
        self.processes[1].say("log line\nelkeid: the log is locked; stop the other\nlast ")
        self.processes[1].say("line\n")
        self.processes[1].end(status=1)
        failure = self.failureResultOf(self.started, OperatorError)
        self.assertEqual(str(failure.value), "worker 1: the log is locked; stop the other")
        self.end_all()

    def test_start_takes_too_long(self) -> None:
        """A worker that does not answer within a minute has failed."""
        self.serve(0)
        self.network.advance(62)
        failure = self.failureResultOf(self.started, OperatorError)
        self.assertIn("worker 1/2: does not answer", str(failure.value))
        self.end_all()

    def end_all(self) -> None:
        """Stop; every process ends as it is asked to; nothing is left."""
        done = Deferred.fromCoroutine(self.role.stop())
        self.network.flush()
        for process in self.processes:
            if not process.reaped:
                self.assertIn(signal.SIGTERM, process.signals)
                process.end(number=15)
        self.network.advance(1)
        self.successResultOf(done)

    def test_sums(self) -> None:
        """Weight and limit are those of the workers that serve."""
        self.up()
        self.apis[0].agents, self.apis[1].agents = 3, 4
        self.network.advance(8)
        self.assertEqual(self.record()[0], 7)
        self.kill(1)
        self.network.ports.pop(6762, None)
        self.network.advance(6)
        weight, extra = self.record()
        self.assertEqual((weight, extra["limit"]), (3, 10_000))
        self.apis[0].state = "drained"  # and takes nobody until that is undone
        self.network.advance(8)
        weight, extra = self.record()
        self.assertEqual((weight, extra["draining"]), (0, True))
        self.apis[0].state = "serving"
        self.network.advance(8)
        self.assertEqual((self.record()[0], self.record()[1]["draining"]), (3, False))
        self.kill(0)
        self.network.advance(6)
        self.assertEqual((self.record()[0], self.record()[1]["draining"]), (0, True))

    def test_restarts(self) -> None:
        """After half a second, later less often; a steady worker begins anew."""
        self.up()
        self.processes[0].end(status=1)
        for pause in (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0):
            count = len(self.processes)
            self.network.advance(pause - 0.1, 0.1)
            self.assertEqual(len(self.processes), count)
            self.network.advance(0.2, 0.1)
            self.assertEqual(len(self.processes), count + 1)
            self.assertEqual(self.processes[-1].argv[-1], "0/2")
            if count < 8:
                self.processes[-1].end(status=1)
        self.network.advance(61)
        self.processes[-1].end(number=9)
        count = len(self.processes)
        self.network.advance(0.6, 0.1)
        self.assertEqual(len(self.processes), count + 1)
        self.end_all()

    def test_leaves(self) -> None:
        """One that ended with status 0 was asked to; with the last one the process stops."""
        self.up()
        self.processes[0].end()
        self.network.advance(100)
        self.assertEqual((len(self.processes), self.stopped), (2, 0))
        self.processes[1].end()
        self.assertEqual(self.stopped, 1)

    def test_keys(self) -> None:
        """Workers load their keys again as this process does."""
        self.up()
        self.processes[1].reaped = True  # dead, and not yet known to be
        self.role.renew_keys(KEYS)
        self.assertEqual(self.processes[0].signals, [signal.SIGHUP])
        self.processes[1].reaped = False
        self.end_all()

    def test_stop(self) -> None:
        """Off the registry at once; it is over when the last worker is."""
        self.up()
        done = Deferred.fromCoroutine(self.role.stop())
        self.network.flush()
        self.assertEqual(self.sd.registry.counts(), {})
        for process in self.processes:
            self.assertEqual(process.signals, [signal.SIGTERM])
        self.processes[0].end(number=15)
        self.network.advance(3)
        self.assertNoResult(done)
        self.processes[1].end(number=15)
        self.network.advance(0.1)
        self.successResultOf(done)

    def test_stop_out_of_time(self) -> None:
        """A worker that does not end is killed."""
        self.up()
        done = Deferred.fromCoroutine(self.role.stop())
        self.network.flush()
        self.processes[0].end(number=15)
        done.addErrback(lambda _: None)
        done.cancel()
        self.assertEqual(self.processes[1].signals, [signal.SIGTERM, signal.SIGKILL])
