"""Servers as processes of their own, for tests."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DEADLINE = 60.0  # seconds until a start or a stop is given up as failed
BIN = Path(sys.executable).parent


def eventually(
    check: Callable[[], object], seconds: float = 30, what: str = "it did not happen"
) -> None:
    """Wait until something is so; fail with ``what`` if it is not in time."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def settings_text(ports: Sequence[int], server: str = "") -> str:
    """Settings with these four ports: agents, gateway API, discovery, Manager."""
    return (
        f"[server]\n{server}\n"
        f"[agentcenter]\ngrpc_port = {ports[0]}\nhttp_port = {ports[1]}\n"
        f"[discovery]\nport = {ports[2]}\n"
        f"[manager]\nport = {ports[3]}\n"
    )


class Server:
    """A started server; `lines` grows as it writes."""

    def __init__(self, argv: Sequence[str], folder: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, text: str) -> str:
        """The first line that holds ``text``."""

        def found() -> bool:
            return self._ended or any(text in line for line in self.lines)

        with self._changed:
            self._changed.wait_for(found, DEADLINE)
            for line in self.lines:
                if text in line:
                    return line
        raise AssertionError(f"no {text!r} in:\n" + "\n".join(self.lines))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit status, when all output was read."""
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return status

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(DEADLINE)


@contextmanager
def running(
    argv: Sequence[str], folder: Path, ready: str = "ready: ", **env: str
) -> Iterator[Server]:
    """A server that has said ``ready``; killed at the end if it still runs."""
    server = Server(argv, folder, {**os.environ, **env})
    try:
        server.wait_for(ready)
        yield server
    finally:
        server.end()


def twistd(*argv: str) -> list[str]:
    """``twistd -n elkeid`` of this environment, without a pid file."""
    return [str(BIN / "twistd"), "-n", "--pidfile=", "elkeid", *argv]
