"""``/grpc.FileExt/Upload``: a host brings a file, which goes on to the Manager.

The file is zipped as it comes, in a thread; its host is paused while the disk or the check of
its token takes time. Host and Manager are told what really became of it.

Source: docs/protocol.md, "Uploads".
"""

import random
from collections import Counter
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.link import AgentLink
from elkeid.agentcenter.manager_client import ManagerClient, ManagerRefused
from elkeid.agentcenter.upload_file import UploadFile, prepare_folder
from elkeid.agentcenter.upload_tokens import TokenCheck, well_formed
from elkeid.config import MiB
from elkeid.errors import OperatorError, WireError
from elkeid.eventlog.log import InThread
from elkeid.metrics import UploadFigures
from elkeid.web.client import CallFailed
from elkeid.web.rates import AddressRates
from elkeid.wire.compression import decompressor
from elkeid.wire.grpc import CallCancelled, CallStarted, Status
from elkeid.wire.protobuf import BYTES, fields

UPLOAD_PATH: Final = "/grpc.FileExt/Upload"
MANAGER_PATH: Final = "/api/v6/shared/Upload"

RESULT_TYPE: Final = 5100
"""Data type of the result that tells the Manager what became of a file."""

PIECE_BYTES: Final = 4 * MiB
"""Of one message, decompressed; agents send 512,000 bytes at most."""

PIECE_FIELDS: Final = 64
"""Of one message; it has two."""

UNKNOWN_RATE: Final = 1.0
UNKNOWN_BURST: Final = 64.0
"""Files a second, and at once, of one address whose tokens this gateway did not send: each of
these costs questions to the Manager and to all other gateways."""

CHECK_LIMIT: Final = 128
"""Such files at once until somebody confirms their tokens; `CHECK_SECONDS` at most. They take no
place under ``upload_limit``: guessed tokens must not keep out files that were asked for."""

QUEUE_BYTES: Final = 1 * MiB
"""That wait for the thread; beyond, the host is paused."""

PATIENCE_SECONDS: Final = 600.0
"""The agent's own deadline for the whole call, where it names none."""

MARGIN_SECONDS: Final = 10.0
"""Before that deadline it is told how it ended, rather than left to guess."""

CALL_SECONDS: Final = 120.0
"""For one try to bring a file to a Manager."""

FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 30.0

TEXT_LIMIT: Final = 500
"""Characters of a reason, in a result and to the host."""

SUCCESS: Final = b""
FAILED: Final = b"\x08\x01"


class Results(Protocol):
    """Where results for the Manager go."""

    def add(self, agent_id: str, data_type: int, fields: dict[str, str]) -> None:
        """Note one down."""

    def commit(self) -> bool:
        """Have what was noted down on disk."""


class State(Enum):
    """Where an upload stands."""

    FIRST = auto()  # nothing came yet
    CHECKING = auto()  # is its token good?
    RECEIVING = auto()
    DELIVERING = auto()  # all of it is here and on its way to the Manager
    OVER = auto()


class Uploads:
    """Serves uploads.

    Args:
        gateway: whose connections they come on.
        folder: for files under way.
        in_thread: runs a function in a pool that nothing else waits for.
        manager: takes the files.
        results: told what became of each.
        check: whether a token is good.
        room: bytes of disk that may still be used.
    """

    log = Logger()

    def __init__(
        self,
        gateway: Gateway,
        *,
        folder: Path,
        in_thread: InThread,
        manager: ManagerClient,
        results: Results,
        check: TokenCheck,
        room: Callable[[], int],
    ) -> None:
        self.gateway, self.folder, self.in_thread = gateway, folder, in_thread
        self.manager, self.results, self.check, self.room = manager, results, check, room
        self.settings = gateway.settings
        self.under_way: dict[str, UploadCall] = {}  # by token
        self.unknown = 0  # of these, whose tokens nobody has confirmed yet
        self.unknown_rates = AddressRates(UNKNOWN_RATE, UNKNOWN_BURST, gateway.monotonic)
        self.held_bytes = 0  # of files under way
        self.queued_bytes = 0  # of these, in memory
        self.received_bytes = 0
        self.outcomes: Counter[str] = Counter()
        self._running: set[Deferred[None]] = set()

    async def open(self) -> None:
        """Make the folder, and remove what the last process left in it.

        Raises:
            OperatorError: the disk does not let us.
        """
        try:
            await self.in_thread(prepare_folder, self.folder)
        except OSError as error:
            raise OperatorError(
                f"{self.folder}: {error.strerror or error}; "
                "server.data_dir must name a folder on a volume that this user can write"
            ) from error
        self.gateway.serve(UPLOAD_PATH, self._make)

    def _make(self, link: AgentLink, event: CallStarted) -> "UploadCall":
        return UploadCall(self, link, event)

    def run(self, work: "Deferred[None]") -> None:
        """Let ``work`` go on until `stop`."""
        if not work.called:
            self._running.add(work)
            work.addBoth(self._ran, work)
        work.addErrback(lambda failure: self.log.failure("an upload failed", failure))

    def _ran(self, result: object, work: "Deferred[None]") -> object:
        self._running.discard(work)
        return result

    async def stop(self) -> None:
        """Fail what is under way; the connections are gone already."""
        for call in list(self.under_way.values()):
            call.fail(Status.UNAVAILABLE, "this AgentCenter stopped", "stopping")
        for work in list(self._running):
            await work

    def figures(self) -> UploadFigures:
        """For metrics."""
        return UploadFigures(
            active=len(self.under_way),
            held_bytes=self.held_bytes,
            received_bytes=self.received_bytes,
            outcomes=dict(self.outcomes),
        )


class UploadCall:
    """One file."""

    log = Logger()

    def __init__(self, uploads: Uploads, link: AgentLink, event: CallStarted) -> None:
        self._uploads, self._link, self._stream_id = uploads, link, event.stream_id
        self._gateway = gateway = uploads.gateway
        self._decompress = decompressor(event.encoding)
        self._state = State.FIRST
        self._token = ""
        self._agent_id: str | None = None  # None: the token is not known to be good
        self._unknown = False  # counted as such
        self._open = True  # the host still listens
        self._half_closed = False
        self._queue: list[bytes] = []
        self._queued = 0
        self._paused = False
        self._writing = False
        self._file: UploadFile | None = None
        self._size = 0
        self._work: Deferred[None] | None = None  # of the check, or of the delivery
        host, port = link.peer
        self._peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        patience = min(event.timeout or PATIENCE_SECONDS, PATIENCE_SECONDS)
        patience = max(patience - MARGIN_SECONDS, patience / 2)
        clock = gateway.clock
        self._give_up_at = clock.seconds() + patience
        self._deadline: IDelayedCall = clock.callLater(patience, self._late)
        self._idle: IDelayedCall = clock.callLater(
            gateway.settings.first_message_seconds, self._silent
        )

    # --- what the host does

    def message(self, compressed: bool, body: bytes) -> None:
        """Take one piece."""
        if self._state in (State.DELIVERING, State.OVER):
            return
        try:
            data = self._decompress(body, PIECE_BYTES) if compressed else body
            if len(data) > PIECE_BYTES:
                raise WireError(f"a piece of {len(data)} bytes; limit {PIECE_BYTES}")
            token, piece = _read(data)
        except WireError as error:
            self.fail(Status.INVALID_ARGUMENT, str(error), "malformed")
            return
        self._idle.reset(self._uploads.settings.first_message_seconds)
        if self._state is State.FIRST and not self._begin(token):
            return
        if not self._fits(len(piece)):
            return
        if piece:
            self._queue.append(piece)
            self._count_queued(len(piece))
        if self._state is State.RECEIVING:
            self._write()
        self._pause_or_resume()

    def _count_queued(self, size: int) -> None:
        self._queued += size
        self._uploads.queued_bytes += size

    def _begin(self, raw: bytes) -> bool:
        """Look at the first piece's token; False when the upload is refused."""
        uploads = self._uploads
        token = raw.decode("ascii", "replace")
        if not well_formed(token):
            self.fail(Status.INVALID_ARGUMENT, "not a token", "token")
            return False
        if token in uploads.under_way:
            self.fail(Status.ALREADY_EXISTS, "a file of this token is under way", "token")
            return False
        self._token = token
        self._agent_id = uploads.gateway.tokens.agent_of(token)
        if self._gateway.draining is not None:
            self.fail(self._gateway.draining, "this AgentCenter is stopping", "stopping")
            return False
        if self._agent_id is None:
            if uploads.unknown >= CHECK_LIMIT or not uploads.unknown_rates.take(self._link.peer[0]):
                self.fail(Status.RESOURCE_EXHAUSTED, "too many unknown tokens", "unknown")
                return False
            self._unknown = True
            uploads.unknown += 1
        elif not self._has_place():
            return False
        uploads.under_way[token] = self
        self._state = State.CHECKING
        self._start(self._check())
        return self._state is not State.OVER

    def _has_place(self) -> bool:
        uploads = self._uploads
        if len(uploads.under_way) - uploads.unknown < uploads.settings.upload_limit:
            return True
        self.fail(Status.RESOURCE_EXHAUSTED, "too many uploads at once", "busy")
        return False

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do work that `_end` may cancel."""
        running = Deferred.fromCoroutine(work)
        if not running.called:
            self._work = running
        self._uploads.run(running)

    def _fits(self, size: int) -> bool:
        uploads, settings = self._uploads, self._uploads.settings
        if self._size + size > settings.upload_bytes:
            reason = f"the file is larger than {settings.upload_bytes} bytes"
            self.fail(Status.RESOURCE_EXHAUSTED, reason, "too_large")
            return False
        if uploads.held_bytes + size > settings.upload_disk_bytes or uploads.room() < size:
            self.fail(Status.RESOURCE_EXHAUSTED, "no room on the gateway's disk", "no_room")
            return False
        self._size += size
        uploads.held_bytes += size
        uploads.received_bytes += size
        return True

    async def _check(self) -> None:
        uploads = self._uploads
        try:
            valid = await uploads.check.valid(self._token)
        except CancelledError:
            return
        self._work = None
        if not valid:
            self._agent_id = None
            reason = "nobody asked for this file"
            self.fail(Status.PERMISSION_DENIED, reason, "token")
            return
        self._agent_id = self._agent_id or ""
        if self._unknown:
            if not self._has_place():
                return
            self._unknown = False
            uploads.unknown -= 1
        if not self._open:
            self._broken()
            return
        self._state = State.RECEIVING
        self._write()
        self._pause_or_resume()

    def half_closed(self) -> None:
        """The host has sent all of the file."""
        if self._state is State.FIRST:
            self.fail(Status.INVALID_ARGUMENT, "no message", "malformed")
            return
        self._half_closed = True
        if self._idle.active():
            self._idle.cancel()
        if self._state is State.RECEIVING:
            self._write()

    def leave(self) -> None:
        """This process stops; what is here already may still be delivered."""
        if not self._half_closed:
            self.fail(Status.UNAVAILABLE, "this AgentCenter is stopping", "stopping")

    def over(self, cancelled: CallCancelled | None) -> None:
        """The host listens no more; what it has sent whole is delivered all the same."""
        self._open = False
        if self._state is State.FIRST:
            self._end("broken")
        elif not self._half_closed and self._state is State.RECEIVING:
            self._broken()

    def _broken(self) -> None:
        if self._half_closed:
            self._state = State.RECEIVING
            self._write()
        else:
            self.fail(Status.CANCELLED, "the upload broke off", "broken")

    def _silent(self) -> None:
        seconds = self._uploads.settings.first_message_seconds
        if self._paused:  # by us
            self._idle = self._gateway.clock.callLater(seconds, self._silent)
        else:
            self.fail(Status.DEADLINE_EXCEEDED, f"no message within {seconds:g} s", "silent")

    def _late(self) -> None:
        self.fail(Status.DEADLINE_EXCEEDED, "not done in time", "late")

    # --- the disk

    def _pause_or_resume(self) -> None:
        wanted = self._state is State.CHECKING or self._queued > QUEUE_BYTES
        if not self._open or wanted is self._paused or self._state is State.OVER:
            return
        self._paused = wanted
        if wanted:
            self._link.grpc.pause_call(self._stream_id)
        else:
            self._link.grpc.resume_call(self._stream_id)
            self._link.flush()

    def _write(self) -> None:
        """Have what waits written, or go on to the Manager when that was all."""
        if self._writing or not (self._queue or self._half_closed):
            return
        self._writing = True
        self._uploads.run(Deferred.fromCoroutine(self._write_all()))

    async def _write_all(self) -> None:
        uploads = self._uploads
        try:
            if self._file is None:
                self._file = await uploads.in_thread(UploadFile, uploads.folder, self._token)
            while self._queue and self._state is State.RECEIVING:
                pieces, self._queue = self._queue, []
                await uploads.in_thread(self._file.write, pieces)
                if self._state is State.RECEIVING:  # else `_end` has done so
                    self._count_queued(-sum(len(piece) for piece in pieces))
                    self._pause_or_resume()
        except OSError as error:
            self._disk_failed(error)
        self._writing = False
        if self._state is State.OVER:
            await self._discard()
        elif self._half_closed and not self._queue:
            self._state = State.DELIVERING
            self._start(self._deliver())

    def _disk_failed(self, error: OSError) -> None:
        self.log.error("{path}: {error}", path=self._uploads.folder, error=error)
        self.fail(Status.INTERNAL, "the gateway's disk refused the file", "disk")

    async def _discard(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            await self._uploads.in_thread(file.discard)

    # --- the Manager

    async def _deliver(self) -> None:
        try:
            name = await self._bring()
            self._work = None
            self._delivered(name)
        except (ManagerRefused, CallFailed) as error:
            self._work = None
            self.fail(Status.UNAVAILABLE, str(error), "manager")
        except OSError as error:
            self._work = None
            self._disk_failed(error)
        except CancelledError:
            pass  # by `_end`
        finally:
            await self._discard()

    async def _bring(self) -> str:
        """Try until the Manager has it; the name that it gave to the file."""
        uploads, clock = self._uploads, self._gateway.clock
        assert self._file is not None
        body, content_type = await uploads.in_thread(self._file.finish)
        pause = FIRST_RETRY_SECONDS
        while True:
            left = self._give_up_at - clock.seconds()
            try:
                answer = await uploads.manager.upload(
                    MANAGER_PATH, body, content_type, seconds=min(CALL_SECONDS, max(left, 0.1))
                )
            except (ManagerRefused, CallFailed) as error:
                final = isinstance(error, ManagerRefused) and error.final
                if final or clock.seconds() + pause > self._give_up_at:
                    raise
            else:
                return answer.data if isinstance(answer.data, str) else ""
            # Many files must not come back at the same moment.
            await deferLater(clock, pause * random.uniform(0.5, 1))  # noqa: S311
            pause = min(2 * pause, LAST_RETRY_SECONDS)

    # --- the end

    def _delivered(self, name: str) -> None:
        self._gateway.tokens.spend(self._token)
        self._gateway.complaints.info(
            "{peer}: the Manager has the file of task {token} as {name}",
            peer=self._peer,
            token=self._token,
            name=name,
        )
        self._report("succeed", name)
        self._answer(SUCCESS, Status.OK, "")
        self._end("delivered")

    def fail(self, status: int, reason: str, outcome: str) -> None:
        """Tell the host, and the Manager if it was a file that somebody asked for."""
        if self._state is State.OVER:
            return
        reason = reason[:TEXT_LIMIT]
        self._gateway.complaints.info(
            "{peer}: upload {token} failed: {reason}",
            peer=self._peer,
            token=self._token,
            reason=reason,
        )
        if self._agent_id is not None:
            self._report("failed", reason)
        self._answer(FAILED, status, reason)
        self._end(outcome)

    def _report(self, status: str, text: str) -> None:
        """On disk before the host hears of it."""
        results = self._uploads.results
        result = {"token": self._token, "status": status, "msg": text}
        results.add(self._agent_id or "", RESULT_TYPE, result)
        results.commit()

    def _answer(self, response: bytes, status: int, text: str) -> None:
        if not self._open:
            return
        grpc = self._link.grpc
        grpc.send_message(self._stream_id, response, False)
        grpc.end_call(self._stream_id, status, text)
        self._gateway.counters.ended(status)

    def _end(self, outcome: str) -> None:
        self._state = State.OVER
        uploads = self._uploads
        uploads.outcomes[outcome] += 1
        uploads.held_bytes -= self._size
        if uploads.under_way.get(self._token) is self:
            del uploads.under_way[self._token]
        if self._unknown:
            self._unknown = False
            uploads.unknown -= 1
        self._queue = []
        self._count_queued(-self._queued)
        for timer in (self._deadline, self._idle):
            if timer.active():
                timer.cancel()
        if self._work is not None:
            self._work.cancel()
        if not self._writing:
            uploads.run(Deferred.fromCoroutine(self._discard()))
        if self._open:
            self._link.flush()
            self._link.forget(self._stream_id)


def _read(data: bytes) -> tuple[bytes, bytes]:
    """Token and content of one piece.

    Raises:
        WireError: the message is malformed.
    """
    found = {1: b"", 2: b""}
    for number, wire_type, value in fields(data, 0, len(data), PIECE_FIELDS):
        if number not in found:
            continue
        if not isinstance(value, bytes) or wire_type != BYTES:
            raise WireError(f"UploadRequest field {number} has wire type {wire_type}")
        found[number] = value
    return found[1], found[2]
