"""What goes back to a client: whole answers, and the envelopes of the HTTP faces."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from attrs import Factory, frozen
from twisted.internet.interfaces import IProtocol

if TYPE_CHECKING:
    from elkeid.web.refusals import Refusal

JSON_TYPE = "application/json; charset=utf-8"
_encoder = msgspec.json.Encoder()


def encode_json(value: object) -> bytes:
    """Encode compact JSON; `TypeError` for what cannot become JSON."""
    return _encoder.encode(value)


@frozen
class Answer:
    """A whole answer, sent without an envelope.

    Args:
        status: HTTP status.
        body: bytes go out as they are, anything else as JSON.
        headers: more headers; ``content-type`` here replaces the JSON one.
    """

    status: int
    body: object = b""
    headers: Mapping[str, str] = Factory(dict)

    def encoded(self) -> bytes:
        """The body's bytes."""
        return self.body if isinstance(self.body, bytes) else encode_json(self.body)


@frozen
class Enveloped:
    """A success with siblings of ``data``, such as ``page_info`` or ``cursor``."""

    data: object
    beside: Mapping[str, object] = Factory(dict)
    headers: Mapping[str, str] = Factory(dict)


class Source(Protocol):
    """As much of a file as is needed to send it."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""

    def close(self) -> None:
        """Nothing is read any more."""


class Pieces:
    """Bytes in many pieces that are read as one file, without joining them before."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = b""

    def read(self, size: int, /) -> bytes:
        """See `Source`."""
        held = [self._held]
        got = len(self._held)
        while got < size and (piece := next(self._pieces, None)) is not None:
            held.append(piece)
            got += len(piece)
        data = b"".join(held)
        self._held = data[size:]
        return data[:size]

    def close(self) -> None:
        """See `Source`."""
        self._pieces, self._held = iter(()), b""


@frozen
class FileAnswer:
    """A file as the whole answer, sent as fast as the client takes it.

    Args:
        file: at the position to begin from; closed when it is sent or the client is gone.
        size: bytes from there.
        headers: more headers; ``content-type`` among them.
    """

    file: Source
    size: int
    headers: Mapping[str, str] = Factory(dict)


class EventSink(Protocol):
    """Where server-sent events go."""

    @property
    def gone(self) -> bool:
        """Whether the client has left: what is sent now reaches nobody."""

    def send(self, name: str, data: object) -> None:
        """Send one event, its data as JSON."""


@frozen
class EventStream:
    """Server-sent events as the whole answer.

    Few and small ones: they are not held back when the client is slow.

    Args:
        run: sends them; the answer ends when it returns. It is told when the client leaves, and
            not cancelled.
    """

    run: Callable[[EventSink], Awaitable[None]]


@frozen
class Takeover:
    """The whole connection goes to a protocol, which first gets the request's head as it came.

    Args:
        protocol: takes it from there; unlike an HTTP peer's, its connection has no time limit.
    """

    protocol: IProtocol


class Envelope(Protocol):
    """How one HTTP face wraps results and refusals."""

    def success(self, data: Any, beside: Mapping[str, object]) -> object:
        """The body of a success, to become JSON."""

    def failure(self, refusal: "Refusal") -> tuple[int, object]:
        """HTTP status, and the body to become JSON."""


@frozen
class CodeEnvelope:
    """``{"code": int, "msg": str, "data": any}``, as AgentCenter and Manager answer.

    Args:
        messages: code -> ``msg``; 0 is success.
        codes: refusal class -> code; the first class of a refusal's own line that is listed
            counts, `CodedRefusal` brings its own.
        other: code of refusals that are not listed.
        statuses: refusal class -> HTTP status, where it differs from the class's own.
    """

    messages: Mapping[int, str]
    codes: Mapping[type["Refusal"], int]
    other: int
    statuses: Mapping[type["Refusal"], int] = Factory(dict)

    def success(self, data: Any, beside: Mapping[str, object]) -> object:
        """Code 0."""
        return {"code": 0, "msg": self.messages.get(0, "success"), "data": data, **beside}

    def failure(self, refusal: "Refusal") -> tuple[int, object]:
        """The refusal's code, its reason as ``data``."""
        line = type(refusal).__mro__
        code = getattr(refusal, "code", None)
        if code is None:
            code = next((self.codes[kind] for kind in line if kind in self.codes), self.other)
        status = next((self.statuses[k] for k in line if k in self.statuses), refusal.status)
        return status, {"code": code, "msg": self.messages.get(code, ""), "data": refusal.reason}
