"""``/api/v6/shared``: files that agents upload, and their way to operators."""

import re
from typing import IO

from twisted.logger import Logger

from elkeid.manager.codes import PARAM_INVALID, UNKNOWN_ERROR
from elkeid.manager.exports import Exports
from elkeid.manager.roles import AGENT_READERS, EVERY_USER
from elkeid.manager.uploads import HashMissing, UploadRefused, Uploads
from elkeid.metrics import ManagerMetrics
from elkeid.web.answers import FileAnswer
from elkeid.web.multipart import boundary_of
from elkeid.web.refusals import Busy, CodedRefusal, NoSuchRoute, ParameterInvalid
from elkeid.web.routes import AuthKind, Call, MiB, Routes

UPLOAD_BYTES = 320 * MiB
"""Body of an upload: 600 pieces of at most 512,000 bytes are the most that an agent sends."""

_NOT_HERE = (
    "there is no file of this name for this user; of several Managers only the one that took or "
    "wrote a file has it"
)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


class UploadRoutes:
    """Takes files from AgentCenters.

    Args:
        uploads: where they go.
        metrics: counts.
    """

    log = Logger()
    routes = Routes("/api/v6/shared", auth=AuthKind.SIGNED)

    def __init__(self, uploads: Uploads, metrics: ManagerMetrics) -> None:
        self._uploads, self._metrics = uploads, metrics

    @routes.post(
        "/Upload",
        limit=UPLOAD_BYTES,
        spooled=True,
        answer=str,
        summary="Take a file that an agent uploaded",
    )
    async def upload(self, call: Call) -> object:
        """The name under which it is stored; a content that is there already keeps its name."""
        outcome = "refused"
        try:
            if call.spool is None or not call.spool.tell():
                raise ParameterInvalid("body: empty")
            name = await self._uploads.take(
                call.spool.reader(), call.spool.tell(), boundary_of(call.header("content-type"))
            )
            outcome = "stored"
            return name
        except OSError as error:
            self.log.error("files of agents cannot be stored: {error}", error=error)
            raise Busy(f"the file cannot be stored: {error.strerror}") from error
        finally:
            self._metrics.uploads.labels(outcome).inc()


class DownloadRoutes:
    """Gives them to operators.

    Args:
        uploads: where those of hosts are.
        exports: where exported lists are.
    """

    routes = Routes("/api/v6/shared", auth=AuthKind.TOKEN)

    def __init__(self, uploads: Uploads, exports: Exports) -> None:
        self._uploads, self._exports = uploads, exports

    @routes.get(
        "/Download/<string:name>",
        levels=EVERY_USER,
        answer=bytes,
        media="application/octet-stream",
        summary="Download a file",
    )
    async def download(self, call: Call) -> object:
        """404 for a name that there is not, or not here.

        So are an export of another user, and a file of an agent for who may not see hosts in
        detail: whether it is there is not told either.
        """
        name, user = call.parts["name"], call.identity.user
        file: IO[bytes]
        if not _NAME.match(name):
            raise NoSuchRoute(_NOT_HERE)
        may_see = user.level in AGENT_READERS
        if may_see and (uploaded := await self._uploads.open(name)) is not None:
            file, size = uploaded[0], uploaded[1].size
        elif (exported := await self._exports.open(name, user.id, user.level)) is not None:
            file, size = exported[0], exported[1].size
        else:
            raise NoSuchRoute(_NOT_HERE)
        return FileAnswer(
            file,
            size,
            {
                "content-type": "application/octet-stream",
                "content-disposition": f'attachment; filename="{name}"',
                "x-content-type-options": "nosniff",
            },
        )


def refusal_of(error: UploadRefused) -> CodedRefusal:
    """The answer to a file that cannot be taken."""
    code = PARAM_INVALID if isinstance(error, HashMissing) else UNKNOWN_ERROR
    return CodedRefusal(code, str(error))
