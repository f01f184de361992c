"""A real PostgreSQL on loopback, one for a test run, with as many databases as tests want."""

import atexit
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.integration.servers import DEADLINE, free_ports

USER = "elkeid"
SETTINGS = {
    "fsync": "off",  # nothing here survives the test anyway
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "60",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
}


@cache
def _binaries() -> Path | None:
    found = shutil.which("initdb")
    if found is not None and shutil.which("postgres") is not None:
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return installed[-1].parent if installed else None


def missing() -> str | None:
    """Say what to install when no server can be run here; None when one can."""
    return None if _binaries() else "PostgreSQL is missing: apt-get install postgresql"


needs_postgres = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def _die_with_parent() -> None:
    """However the test run ends, its server ends too."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


class Postgres:
    """A server with an empty cluster; ``kill`` and ``start`` at will.

    Args:
        settings: of the server, beside `SETTINGS`.
    """

    def __init__(self, **settings: str) -> None:
        binaries = _binaries()
        assert binaries is not None, missing()
        self._binaries, self._settings = binaries, SETTINGS | settings
        self.folder = Path(tempfile.mkdtemp(prefix="elkeid-postgres-"))
        self.port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._run("initdb", "--no-sync", "-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C")
        self.start()

    def _run(self, program: str, *argv: str) -> None:
        subprocess.run(
            [str(self._binaries / program), "-D", str(self.folder / "data"), *argv],
            check=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            **self._who,
        )

    def url(self, database: str) -> str:
        """Of a database here."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = [f"-c{key}={value}" for key, value in self._settings.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._binaries / "postgres"),
                    *("-D", str(self.folder / "data"), "-p", str(self.port), *options),
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call
                **self._who,
            )
        end = time.monotonic() + DEADLINE
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise AssertionError((self.folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it; SIGINT ends connections in order, SIGQUIT at once."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(DEADLINE)
            self._process = None

    def end(self) -> None:
        """Leave nothing behind."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self, template: str = "template0", name: str | None = None) -> str:
        """The name of a new database, a copy of another one."""
        self._databases += 1
        name = name or f"test_{self._databases}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run a statement, in no database in particular."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]


@cache
def shared_postgres() -> Postgres:
    """The server of this test run; tests that stop theirs start one of their own."""
    server = Postgres()
    atexit.register(server.end)
    return server


@contextmanager
def own_postgres(**settings: str) -> Iterator[Postgres]:
    """A server for one test."""
    server = Postgres(**settings)
    try:
        yield server
    finally:
        server.end()
