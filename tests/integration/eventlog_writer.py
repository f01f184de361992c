"""A process that appends numbered records as fast as it can, until it is killed.

    python -m tests.integration.eventlog_writer FOLDER RUN

Each record's number is ``RUN * 10**9 + n``, n counting from 0 in each class. After each commit
that said yes, a line of the three counts goes to stdout.
"""

import os
import random
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from elkeid.config import EventLogSettings, MiB
from elkeid.eventlog import EventLog
from elkeid.wire.datatypes import RecordClass
from tests.eventlog.support import SUFFIX, region

clock: Any = reactor
RUN_LENGTH = 10**9


async def write(folder: Path, run: int) -> None:
    """Append in every turn; some are committed at once, as before an answer."""
    settings = EventLogSettings(segment_bytes=MiB, fsync=0.05, min_free_bytes=0, readers=("kafka",))
    log = EventLog(folder, settings, clock, deferToThread)
    await log.open()
    counts = dict.fromkeys(RecordClass, 0)
    chance = random.Random(run)

    def turn() -> None:
        clock.callLater(0, turn)
        for _ in range(chance.randrange(1, 4)):
            cls = chance.choice(list(RecordClass))
            first = run * RUN_LENGTH + counts[cls]
            count = chance.choice((1, 5, 50, 2000))
            log.append(cls, count, SUFFIX, region(*range(first, first + count)))
            counts[cls] += count
        if chance.random() < 0.1:
            log.drop(RecordClass.LOGS, "rate", 3)
        if log.commit():
            os.write(1, b"%d %d %d\n" % tuple(counts.values()))

    turn()


def failed(failure: Failure) -> None:
    """Say why, and end."""
    print(failure.getErrorMessage(), file=sys.stderr)
    clock.stop()


clock.callWhenRunning(
    lambda: Deferred.fromCoroutine(write(Path(sys.argv[1]), int(sys.argv[2]))).addErrback(failed)
)
clock.run()
