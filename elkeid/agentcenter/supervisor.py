"""The role ``ac`` as several processes: starts workers, watches them, and speaks for them.

The workers' sockets share the agents' port; the kernel spreads connections. ServiceDiscovery
knows instances by address and port, so this process, not the workers, registers the agents'
port: with the sum of their agents and limits. Each worker registers its own HTTP API.
"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.agentcenter.drain import DrainState
from elkeid.agentcenter.service import GRPC_NAME
from elkeid.config import Settings, dialled_from_here, join_endpoint
from elkeid.discovery.client import DiscoveryClient
from elkeid.discovery.load import DRAINING, LIMIT
from elkeid.errors import OperatorError
from elkeid.keys import Keys
from elkeid.tls import https_policy
from elkeid.web.client import CallFailed, Credentials, JsonClient, http_agent
from elkeid.workers import Worker, folder, http_port, left_behind, left_behind_text

ASK_SECONDS: Final = 2.0  # between two questions to a worker for its load
FIRST_ASK_SECONDS: Final = 0.25  # the same until it has answered once
ANSWER_SECONDS: Final = 2.0
START_SECONDS: Final = 60.0  # for a worker to serve; opening a large log takes seconds
BACKOFF_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # before it is started again
STEADY_SECONDS: Final = 60.0  # after so long the next failure counts as the first
TOLD: Final = "elkeid: "  # begins what `elkeid.process.tell_operator` writes
LINE_BYTES: Final = 64 << 10  # of a worker's log; a longer line is cut


class _Load(msgspec.Struct):
    agents: int
    state: str


class _LoadAnswer(msgspec.Struct):
    code: int
    data: _Load


class WorkersRole:
    """Runs ``count`` gateways of this host as processes of their own.

    Args:
        settings: of the host.
        keys: for calls to the workers, and to ServiceDiscovery.
        reactor: for processes, timers and calls.
        count: how many.
        command: starts a worker when ``--worker NUMBER/OF`` is put behind it.
    """

    name = "ac"
    stop_seconds = 7.6  # what a worker needs, and a little more
    log = Logger()

    def __init__(
        self, settings: Settings, keys: Keys, reactor: Any, *, count: int, command: Sequence[str]
    ) -> None:
        self._settings, self._reactor = settings, reactor
        self._command = list(command)
        self._tls = https_policy(keys)
        credentials = Credentials(*keys.signing_pair)
        self.http = JsonClient(reactor, http_agent(reactor, self._tls), time.time, credentials)
        self._discovery = DiscoveryClient(
            reactor,
            JsonClient(reactor, http_agent(reactor), time.time, credentials),
            settings.discovery.members,
        )
        self.seats = [Seat(self, Worker(number, count)) for number in range(count)]
        self.stopping = False

    async def start(self) -> None:
        """Start the workers; return when all of them serve.

        Raises:
            OperatorError: one of them ended, or does not answer.
        """
        for path in left_behind(self._settings, len(self.seats)):
            self.log.warn("{text}", text=left_behind_text(path))
        for seat in self.seats:
            seat.start()
        try:
            await gatherResults([seat.serving for seat in self.seats], consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        center = self._settings.agentcenter
        address = self._settings.advertised("agentcenter")
        self._discovery.register(GRPC_NAME, address, center.grpc_port, self.load)

    def load(self) -> tuple[int, dict[str, Any] | None]:
        """Weight and extra of the agents' port: sums over the workers that serve."""
        serving = [seat for seat in self.seats if not seat.draining]
        loads = [seat.load for seat in serving if seat.load is not None]
        limit = self._settings.agentcenter.connection_limit * max(len(loads), 1)
        return sum(loads), {LIMIT: limit, DRAINING: self.stopping or not loads}

    def tell_load(self) -> None:
        """Let ServiceDiscovery know what has just changed, before the next renewal."""
        told = Deferred.fromCoroutine(self._discovery.renew())
        told.addErrback(lambda failure: self.log.failure("cannot tell the load", failure))

    def place(self, worker: Worker) -> str:
        """Where a worker's API is: ``host:port``."""
        listen = self._settings.agentcenter.listen
        return join_endpoint(dialled_from_here(listen), http_port(self._settings, worker.number))

    def spawn(self, child: "Child", worker: Worker) -> Any:
        """Start a worker's process."""
        folder(self._settings, worker.number).mkdir(parents=True, exist_ok=True)
        argv = [*self._command, "--worker", str(worker)]
        return self._reactor.spawnProcess(child, argv[0], argv, env=dict(os.environ))

    def renew_keys(self, keys: Keys) -> None:
        """Pass it on: the workers load their keys again."""
        self._tls.renew(keys)
        for seat in self.seats:
            seat.signal(signal.SIGHUP)

    def left(self) -> None:
        """A worker left for good, as it was asked to; with the last one the process stops."""
        if not self.stopping and all(seat.over for seat in self.seats):
            self.log.info("all workers have left")
            self._reactor.stop()

    async def stop(self) -> None:
        """Leave ServiceDiscovery, and let the workers end; who does not is killed."""
        self.stopping = True
        leaving = Deferred.fromCoroutine(self._discovery.stop())
        try:
            ends = [seat.stop() for seat in self.seats]
            await gatherResults(ends, consumeErrors=True)
            await leaving
            await self.http.close()
        finally:
            for seat in self.seats:
                seat.signal(signal.SIGKILL)

    def later(self, seconds: float, call: Any) -> IDelayedCall:
        """Call later."""
        later: IDelayedCall = self._reactor.callLater(seconds, call)
        return later

    def seconds(self) -> float:
        """Now."""
        now: float = self._reactor.seconds()
        return now

    def pause(self, seconds: float) -> Deferred[None]:
        """Fire later."""
        paused: Deferred[None] = deferLater(self._reactor, seconds)
        return paused


class Seat:
    """One worker's place: the process that is there now, and what is known of it."""

    log = Logger()

    def __init__(self, role: WorkersRole, worker: Worker) -> None:
        self._role, self.worker = role, worker
        self._process: Any = None
        self._timer: IDelayedCall | None = None
        self._asking: Deferred[None] | None = None
        self._ended: Deferred[None] | None = None
        self._failures = 0
        self._began = 0.0
        self.load: int | None = None  # agents, while it answers
        self.draining = False  # by a request of its own: it takes no agents
        self.over = False  # it left, and is not started again
        self.serving: Deferred[None] = Deferred()  # fires when it serves for the first time
        self._told = ""  # what the process said to its operator

    def start(self) -> None:
        """Start the process, and ask for its load from then on."""
        self._timer = None
        self._began = self._role.seconds()
        self._told = ""
        self._process = self._role.spawn(Child(self), self.worker)
        self._asking = Deferred.fromCoroutine(self._ask())

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return None if self._process is None else self._process.pid

    async def _ask(self) -> None:
        url = f"https://{self._role.place(self.worker)}/admin/drain"
        try:
            while True:
                try:
                    reply = await self._role.http.get(url, seconds=ANSWER_SECONDS)
                    answer = reply.decode(_LoadAnswer).data
                    self.load = answer.agents
                    draining = answer.state != DrainState.SERVING
                    if draining is not self.draining:
                        self.draining = draining
                        self._role.tell_load()  # agents must learn of it before they are sent
                except CallFailed:
                    self.load = None
                    if self._late():
                        return
                else:
                    self._serves()
                pause = FIRST_ASK_SECONDS if self.load is None else ASK_SECONDS
                await self._role.pause(pause)
        except CancelledError:
            return

    def _late(self) -> bool:
        if self.serving.called or self._role.seconds() - self._began < START_SECONDS:
            return False
        self.serving.errback(
            OperatorError(f"worker {self.worker}: does not answer; its log is above")
        )
        return True

    def _serves(self) -> None:
        if not self.serving.called:
            self.serving.callback(None)

    def wrote(self, line: str) -> None:
        """The worker logged something."""
        if line.startswith(TOLD):
            self._told = line.removeprefix(TOLD)
        self.log.info("worker {number}: {line}", number=self.worker.number, line=line)

    def ended(self, reason: Any) -> None:
        """The process is gone."""
        self._process, self.load, self.draining = None, None, False
        if self._asking is not None:
            self._asking.cancel()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended.callback(None)
        if self._role.stopping:
            return
        how = f"signal {reason.signal}" if reason.signal else f"status {reason.exitCode}"
        if not self.serving.called:
            reason_told = self._told or f"{how}; the log has its last words"
            self.serving.errback(OperatorError(f"worker {self.worker.number}: {reason_told}"))
            return
        if reason.exitCode == 0:
            self.over = True
            self.log.info("worker {number} has left", number=self.worker.number)
            self._role.left()
            return
        if self._role.seconds() - self._began > STEADY_SECONDS:
            self._failures = 0
        pause = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
        self._failures += 1
        self.log.error(
            "worker {number} ended with {how}; it is started again in {pause:g} s",
            number=self.worker.number,
            how=how,
            pause=pause,
        )
        self._timer = self._role.later(pause, self.start)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self._process is not None:
            with suppress(ProcessExitedAlready):  # and its last words are still to be read
                self._process.signalProcess(number)

    def stop(self) -> Deferred[None]:
        """End the process in peace; fires when it is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asking is not None:
            self._asking.cancel()
        if not self.serving.called:
            self.serving.cancel()
        ended: Deferred[None] = Deferred()
        if self._process is None:
            ended.callback(None)
            return ended
        self._ended = ended
        self.signal(signal.SIGTERM)
        return ended


class Child(ProcessProtocol):
    """Takes a worker's log, line by line."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._held: dict[int, bytes] = {}

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Hand on whole lines."""
        *lines, rest = (self._held.get(childFD, b"") + data).split(b"\n")
        self._held[childFD] = rest[-LINE_BYTES:]
        for line in lines:
            self._seat.wrote(line.decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        """The process is gone, and all it wrote was read."""
        for rest in self._held.values():
            if rest:
                self._seat.wrote(rest.decode("utf-8", "replace"))
        self._seat.ended(reason.value)
