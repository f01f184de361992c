"""Large messages are decompressed and split in a thread, one at a time.

The largest one takes over 0.1 s of CPU, and nobody but its sender should wait for that. How large
a message is shows only as it is decompressed: it is begun where it came, and those that turn out
to be large are begun anew in the thread.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, DeferredLock

INLINE_BYTES: Final = 4 << 20
"""Decompressed; what is larger goes to the thread. So much takes 6 ms; real agents send less."""

InThread = Callable[..., "Deferred[Any]"]
"""``in_thread(function, *args)`` runs it in a pool and fires with its result."""

T = TypeVar("T")


class Unpacker:
    """Does one such work at a time: the memory budget keeps room for a single result.

    Args:
        in_thread: ``deferToThreadPool`` with reactor and pool filled in, or a stand-in.
    """

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread
        self._lock = DeferredLock()
        self.messages = 0  # that were unpacked here

    def unpack(self, work: Callable[[], T], done: Callable[[Any], None]) -> None:
        """Do ``work`` when its turn comes, then give what came of it to ``done``.

        Args:
            work: in the thread.
            done: in the reactor's thread, gets the result or a `Failure`; the next work begins
                when it has returned.
        """
        self.messages += 1
        self._lock.run(lambda: self._in_thread(work).addBoth(done))
