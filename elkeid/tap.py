"""``twistd elkeid``: choose roles, check settings, compose the service.

Nothing opens and nothing is written before the service starts.
"""

import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from attrs import evolve
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import Factory
from twisted.logger import Logger, globalLogPublisher
from twisted.python import usage
from twisted.python.reflect import namedAny

from elkeid import process, welcome
from elkeid.allocator import keep_freed_memory
from elkeid.config import Settings, load
from elkeid.descriptors import UNBOUNDED, Shares, share, tell
from elkeid.errors import ConfigError, KeysError
from elkeid.forward_clock import ForwardClock
from elkeid.garbage import Keeper
from elkeid.keys import Keys, load_keys, obtain_keys
from elkeid.lifecycle import OrderedRoles, Role, sentence
from elkeid.logging import LogSetup
from elkeid.workers import MOST as MOST_WORKERS
from elkeid.workers import Worker, port_faults, settings_of

ROLES = {  # in start order: a role finds those that it needs already serving
    "sd": "elkeid.discovery.service.DiscoveryRole",
    "ac": "elkeid.agentcenter.service.AgentCenterRole",
    "manager": "elkeid.manager.service.ManagerRole",
}
SUPERVISOR = "elkeid.agentcenter.supervisor.WorkersRole"  # in the place of ac, with --workers
NOT_YET = ("analysis", "offline")

log = Logger()


class Options(usage.Options):
    """Which settings and which roles."""

    synopsis = "[--config elkeid.toml] [--role ac] [--role sd] [--role manager]"
    longdesc = (
        "Runs the back end of host security agents, all roles in one process unless --role "
        "names some. Example: twistd -n elkeid --config /etc/elkeid/elkeid.toml --role ac"
    )
    optParameters: ClassVar = [
        ["config", "c", None, "settings file; elkeid.toml if there is one, else built-in defaults"]
    ]
    worker: Worker | None = None  # this process is one of several
    workers = 1
    optFlags: ClassVar = [["welcome", None, "when ready, show on the terminal how to log in"]]

    def __init__(self) -> None:
        super().__init__()
        self["roles"] = []

    def opt_role(self, name: str) -> None:
        """run this role (ac, sd or manager); repeat for more, leave out for all"""
        if name in NOT_YET:
            raise usage.UsageError(
                f"--role {name}: not in this version yet; there are {', '.join(ROLES)}"
            )
        if name not in ROLES:
            raise usage.UsageError(f"--role {name}: not one of {', '.join(ROLES)}")
        self["roles"].append(name)

    def opt_workers(self, text: str) -> None:
        """run the role ac as so many processes that share the agents' port; 1 is one in this"""
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_WORKERS:
            raise usage.UsageError(f"--workers {text}: not a number, 1 to {MOST_WORKERS}")
        self.workers = int(text)

    def opt_worker(self, text: str) -> None:
        """used by --workers for the processes that it starts"""
        try:
            self.worker = Worker.parse(text)
        except ValueError as error:
            raise usage.UsageError(f"--worker {error}") from error

    def postOptions(self) -> None:
        """Check every setting; faults end the program, one a line."""
        if self.worker is not None and (self["roles"] != ["ac"] or self.workers > 1):
            raise usage.UsageError("--worker: needs --role ac, and no --workers")
        if self.workers > 1 and "ac" not in (self["roles"] or ROLES):
            raise usage.UsageError("--workers: needs the role ac")
        try:
            settings = load(Path(self["config"]) if self["config"] else None)
            faults = port_faults(settings, self.workers)
            if faults:
                raise ConfigError(faults)
            self["settings"] = (
                settings if self.worker is None else settings_of(self.worker, settings)
            )
        except ConfigError as error:
            # Not a UsageError: twistd would print its whole help before the faults, and each
            # program that runs us would choose another exit status.
            raise SystemExit("\n".join(error.faults)) from error


class ProcessRole:
    """Prepares the process before anything is opened."""

    name = "process"
    stop_seconds = 0.0

    def __init__(
        self, settings: Settings, roles: Collection[str], reactor: Any, is_worker: bool = False
    ) -> None:
        self._settings, self._roles, self._reactor = settings, roles, reactor
        self._is_worker = is_worker
        self._garbage = Keeper(reactor)
        self.shares = UNBOUNDED  # of open files; known once this has started

    async def start(self) -> None:
        """Wait until signals are caught, then raise limits and set the deadline for a stop."""
        if self._is_worker:
            process.end_with_parent()
        running: Deferred[None] = Deferred()
        self._reactor.callWhenRunning(running.callback, None)
        await running
        self._reactor.addSystemEventTrigger("before", "shutdown", process.end_by)
        self._reactor.addSystemEventTrigger("before", "shutdown", process.stop_once)
        self.shares = share(process.raise_open_files(), self._settings, self._roles)
        self._garbage.start()
        tell(self.shares, self._settings, self._roles)
        if "ac" in self._roles:
            keep_freed_memory()

    async def stop(self) -> None:
        """Give the garbage collector back."""
        self._garbage.stop()


class KeysRole:
    """Loads the keys, making them on the first start where that is allowed; again at SIGHUP.

    Args:
        settings: where they are.
        roles: what is needed of them.
        reactor: runs what a signal asks for.
    """

    name = "keys"
    stop_seconds = 0.0
    keys: Keys

    def __init__(self, settings: Settings, roles: Collection[str], reactor: Any) -> None:
        self._settings, self._roles, self._reactor = settings, roles, reactor
        self._before: Any = None  # what SIGHUP did
        self.users: list[Role] = []

    async def start(self) -> None:
        """Load or make; the other roles are made with the result."""
        self.keys = obtain_keys(self._settings, self._roles)
        self._before = signal.signal(signal.SIGHUP, self._asked)

    def _asked(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self.renew)

    def renew(self) -> None:
        """Load certificates again, for connections to come; access keys stay as they are.

        Files that cannot be used change nothing, and are told.
        """
        try:
            loaded = load_keys(self._settings, self._roles)
        except KeysError as error:
            log.error("{error}; what was loaded before stays in use", error=error)
            return
        self.keys = evolve(loaded, aksk=self.keys.aksk)
        for user in self.users:
            renew_keys = getattr(user, "renew_keys", None)
            if renew_keys is not None:
                renew_keys(self.keys)
        log.info(
            "certificates are loaded again: {shown}",
            shown=", ".join(f"{name} until {at:%Y-%m-%d}" for name, at in loaded.expiry.items())
            or "none is needed here",
        )

    async def stop(self) -> None:
        """Leave the signal as it was."""
        if self._before is not None:
            signal.signal(signal.SIGHUP, self._before)


def makeService(options: Options, reactor: Any = None) -> IService:
    """Compose the chosen roles, in `ROLES` order.

    Args:
        options: parsed.
        reactor: the global one by default; this is the only place that imports it.
    """
    if reactor is None:
        from twisted.internet import reactor  # noqa: PLC0415 -- importing it installs it

        reactor.seconds = ForwardClock()  # type: ignore[attr-defined]
    settings: Settings = options["settings"]
    chosen = [name for name in ROLES if name in (options["roles"] or ROLES)]
    Factory.noisy = False  # else each connection that we dial is two lines of log
    globalLogPublisher.addObserver(LogSetup(settings.server.log_level, settings.server.log_format))
    # Imported now, so that a broken installation shows before the process goes to the background.
    kinds: list[Callable[..., Role]] = [_kind(name, options) for name in chosen]
    here = [name for name in chosen if name != "ac" or options.workers == 1]
    first = ProcessRole(settings, here, reactor, options.worker is not None)
    keys = KeysRole(settings, chosen, reactor)
    makers: list[Callable[[], Role]] = [
        lambda: first,
        lambda: keys,
        *(partial(_make, kind, settings, keys, reactor, first) for kind in kinds),
    ]
    return OrderedRoles(
        reactor,
        makers,
        ready=partial(_ready, settings, chosen, options["welcome"], options.worker),
        fatal=partial(_fatal, reactor),
    )


def _kind(name: str, options: Options) -> Callable[..., Role]:
    """What makes a role: its class, for workers with more to know."""
    if name != "ac" or (options.workers == 1 and options.worker is None):
        kind: Callable[..., Role] = namedAny(ROLES[name])
        return kind
    if options.worker is not None:
        return partial(namedAny(ROLES[name]), worker=options.worker)
    supervisor = namedAny(SUPERVISOR)
    config = options["config"]
    command = process.worker_command(str(Path(config).absolute()) if config else None)
    return partial(_supervisor, supervisor, count=options.workers, command=command)


def _supervisor(
    kind: Callable[..., Role],
    settings: Settings,
    keys: Keys,
    reactor: Any,
    shares: Shares,
    **more: Any,
) -> Role:
    """Make the role that stands for the workers; it takes no connections, so it needs no share."""
    return kind(settings, keys, reactor, **more)


def _make(
    kind: Callable[..., Role], settings: Settings, keys: KeysRole, reactor: Any, first: ProcessRole
) -> Role:
    role = kind(settings, keys.keys, reactor, shares=first.shares)
    keys.users.append(role)
    return role


def _ready(
    settings: Settings, roles: Collection[str], show_welcome: bool, worker: Worker | None
) -> None:
    places = welcome.addresses(settings, roles)
    shown = "; ".join(f"{what} {where}" for what, where in places)
    if worker is not None:
        log.info("serving: {places}", places=shown)
        return
    log.info("ready: {places}", places=shown)
    if show_welcome:
        welcome.show(settings, roles)


def _fatal(reactor: Any, error: BaseException) -> None:
    known = sentence(error)
    process.tell_operator(
        known or f"start failed: {type(error).__name__}: {error}; the log has the traceback"
    )
    process.fail_at_exit()

    def stop() -> None:
        with suppress(ReactorNotRunning):  # stopping already, by a signal
            reactor.stop()

    reactor.callWhenRunning(stop)
