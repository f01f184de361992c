"""A file on its way from one simulated agent, on a stream of its own.

Source: docs/protocol.md, "What agents do", and "Messages" for UploadRequest.
"""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from elkeid.fleet.grpc_client import CallEnded
from elkeid.fleet.link import AgentLink
from elkeid.wire.compression import snappy_frame
from elkeid.wire.grpc import Status
from elkeid.wire.protobuf import length_delimited

UPLOAD_PATH = "/grpc.FileExt/Upload"
UPLOAD_TIMEOUT = "600S"  # what the agent gives the whole call, as a header
PIECE_SECONDS = 1.0  # from one piece to the next

_LINE = b"elkeid simulated file\n"


class FileUpload:
    """Sends pieces, half-closes after the last, and waits for the gateway's word.

    Args:
        link: carries the call.
        clock: for the pieces' pace.
        token: of the task.
        size: of the file, bytes; its content is made up.
        piece: bytes of a piece.
        done: called once, with nothing or with why the file did not arrive.
    """

    def __init__(
        self,
        link: AgentLink,
        clock: IReactorTime,
        *,
        token: str,
        size: int,
        piece: int,
        done: Callable[[str], None],
    ) -> None:
        self._link, self._clock, self._done = link, clock, done
        self._token = length_delimited(1, token.encode())
        self._left, self._piece = size, max(1, piece)
        self._timer: IDelayedCall | None = None
        self._refused = False
        self._stream_id = link.open_call(self, UPLOAD_PATH, UPLOAD_TIMEOUT)
        self._send()

    def _send(self) -> None:
        self._timer = None
        size = min(self._left, self._piece)
        self._left -= size
        data = length_delimited(2, (_LINE * (size // len(_LINE) + 1))[:size])
        self._link.send_on(self._stream_id, snappy_frame(self._token + data))
        if size < self._piece:  # a short read is the end
            self._link.half_close_call(self._stream_id)
        else:
            self._timer = self._clock.callLater(PIECE_SECONDS, self._send)

    def message_received(self, compressed: bool, body: bytes) -> None:
        """See `StreamOwner`: an UploadResponse, which is no bytes for a success."""
        self._refused = self._refused or bool(body)

    def stream_ended(self, ended: CallEnded) -> None:
        """See `StreamOwner`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if ended.status != Status.OK:
            self._done(f"upload: status {ended.status}: {ended.message}")
        else:
            self._done("upload: the gateway says FAILED" if self._refused else "")
