"""The manners of a server process: its limits, its exit status, its last deadline."""

import atexit
import ctypes
import faulthandler
import os
import resource
import signal
import sys
import time
from collections.abc import Callable

from twisted.logger import Logger

EXIT_SECONDS = 9.8  # from the signal; then a stuck thread no longer keeps the process
CPU_SECONDS = 2.0  # shortest time over which a share of CPU is measured

_PR_SET_PDEATHSIG = 1  # prctl(2)

log = Logger()


def raise_open_files() -> int | None:
    """Raise the soft limit on open files to the hard one; the new limit, None if there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return None if soft == resource.RLIM_INFINITY else soft
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class CpuShare:
    """The share of one core that this process used lately.

    Args:
        clock: seconds that only go forward.
        used: CPU seconds of this process.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._used = clock, used
        self._at, self._before = clock(), used()
        self._share = 0.0

    def __call__(self) -> float:
        """Since the last measurement, which is at least `CPU_SECONDS` old; above 1 with threads."""
        now = self._clock()
        if now - self._at >= CPU_SECONDS:
            used = self._used()
            self._share = (used - self._before) / (now - self._at)
            self._at, self._before = now, used
        return self._share


def tell_operator(text: str) -> None:
    """Write to the terminal or whatever stderr was at the start; the log has stderr now."""
    if sys.__stderr__ is not None:
        sys.__stderr__.write(f"elkeid: {text}\n")
        sys.__stderr__.flush()


def end_by(seconds: float = EXIT_SECONDS) -> None:
    """End this process after so long whatever happens, showing where each thread stood."""
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)


def stop_once() -> None:
    """Let SIGTERM and SIGINT change nothing from now on: this process stops already."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: log.info("stopping already"))


def fail_at_exit() -> None:
    """Let this process end with status 1.

    twistd itself has no way to say so once the reactor runs: it removes its pid file and
    returns. So this acts at the very end of the interpreter.
    """
    atexit.register(_leave_with_1)


def _leave_with_1() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(1)


def worker_command(config: str | None) -> list[str]:
    """The command line of a gateway worker, up to ``--worker NUMBER/OF``.

    Args:
        config: absolute path of the settings file, if one was named.
    """
    run = "from twisted.scripts.twistd import run; run()"
    argv = [sys.executable, "-c", run, "-n", "--pidfile=", "elkeid", "--role", "ac"]
    return [*argv, "--config", config] if config else argv


def end_with_parent() -> None:
    """Let the kernel end this process as SIGTERM does when its parent is gone, and only then.

    A process group of its own keeps a terminal's Ctrl-C away: the parent passes it on in order.
    """
    os.setpgid(0, 0)
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent or parent == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # it was gone before
