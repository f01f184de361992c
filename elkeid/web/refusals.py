"""Why a request is not served: one class per reason, each with the HTTP status it deserves.

A face's `elkeid.web.answers.Envelope` turns these into the body its clients know.
"""

from elkeid.errors import RequestRefused
from elkeid.web.answers import Answer


class Refusal(RequestRefused):
    """A request that is not served.

    Args:
        reason: one sentence for the peer; it must hold no secret.
    """

    status = 400

    def __init__(self, reason: str) -> None:
        # It may quote a peer's bytes; what is no text cannot become JSON.
        self.reason = reason.encode("utf-8", "replace").decode("utf-8")
        super().__init__(self.reason)


class ParameterInvalid(Refusal):
    """The query or body breaks its schema; the reason begins with the field."""


class AuthenticationFailed(Refusal):
    """Who asks could not be established."""

    status = 403


class AccessDenied(Refusal):
    """The peer or user may not do this."""

    status = 403


class NoSuchRoute(Refusal):
    """Nothing is served under this method and path."""

    status = 404


class BodyTooLarge(Refusal):
    """The body exceeds the route's limit; ``limit`` is in bytes."""

    status = 413

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"body: more than {limit} bytes")


class Busy(Refusal):
    """Not now: a limit of this process is reached, or it is not ready."""

    status = 503


class InternalFault(Refusal):
    """A bug or a broken part of ours; the log has the details, the peer gets none."""

    status = 500

    def __init__(self) -> None:
        super().__init__("internal error")


class CodedRefusal(Refusal):
    """A refusal with a code of the face's own enumeration, HTTP 200 unless told otherwise."""

    def __init__(self, code: int, reason: str, status: int = 200) -> None:
        super().__init__(reason)
        self.code, self.status = code, status


class AnswerInstead(RequestRefused):
    """Stop here and send exactly this answer, without an envelope."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        super().__init__(f"answered {answer.status}")
