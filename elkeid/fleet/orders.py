"""What one simulated agent makes of Commands: tasks, configs, updates.

    Command with a task -> that task alone, whatever config stands beside it
    Command without one -> the whole list of plugins to have; the others are unloaded

A sync of plugins takes time. One more waits for it, any other is dropped with a log record, so
that a config that was sent is not yet one that was applied. Real plugins do real work; here a
task takes a moment, and its ``data`` may say how it ends.

Source: docs/protocol.md, "What agents do".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from elkeid.wire.command import Command, ConfigItem, Task

AGENT_NAME = "elkeid-agent"  # in configs and tasks it stands for the agent itself
SYNC_SECONDS = 2.0  # of a sync that downloads something; a real one may take ten minutes
TASK_SECONDS = 0.2  # of a task of a plugin, which takes no other meanwhile

UPLOAD_TASK = 1050
REGION_TASK = 1051
EXIT_TASK = 1060
TASK_RESULT = 5100
LOG_RECORD = 1010

RESULT_TYPES = {"baseline": 8010, "scanner": 6000}
"""Plugin -> data type of its results; others answer with `TASK_RESULT`."""

PIECE_BYTES = 512_000  # most of a file in one UploadRequest
PIECES = 600  # of one file
FILE_BYTES = 4096  # of a simulated file whose path names no size


class OrderTaker(Protocol):
    """What orders need of the agent."""

    def emit(self, data_type: int, fields: Mapping[str, str], own: bool) -> None:
        """Put a record into the agent's buffer; a plugin's unless it is the agent's own."""

    def upload(self, token: str, size: int, piece: int, elsewhere: bool) -> None:
        """Send a file of ``size`` bytes, ``piece`` at a time, perhaps to another gateway."""

    def leave(self, version: str | None) -> None:
        """End this process; the next one is of ``version``, if that is given."""


class _UploadOrder(msgspec.Struct):
    path: str
    buf_size: int
    simulate: str = ""


class _RegionOrder(msgspec.Struct):
    idc: str
    region: str


class _PluginOrder(msgspec.Struct):
    simulate: str = ""


@define
class Plugin:
    """A loaded plugin."""

    version: str
    since: float  # when it was loaded, unix seconds
    busy: bool = False


@define
class Tally:
    """What came of Commands.

    Attributes:
        tasks: Commands that carried a task.
        syncs: Commands that carried none, each a full statement of what shall be loaded.
        wiped: syncs that unloaded every plugin there was.
        dropped_syncs: configs that came while another waited already.
        refused_tasks: tasks for plugins that are not there or are busy.
        results: results that plugins or the agent gave.
        uploads: files that were sent whole and taken.
        failed_uploads: files that were not.
        updates: times that the agent replaced itself.
    """

    tasks: int = 0
    syncs: int = 0
    wiped: int = 0
    dropped_syncs: int = 0
    refused_tasks: int = 0
    results: int = 0
    uploads: int = 0
    failed_uploads: int = 0
    updates: int = 0


@define
class Orders:
    """The plugins of one agent, and what it does when told.

    Args:
        taker: the agent.
        clock: for the time that work takes.
        wall: unix time.
        version: the agent's own, which an update replaces.

    Attributes:
        loaded: plugins by name.
        uploading: whether a file is under way; an agent sends one at a time.
    """

    taker: OrderTaker
    clock: IReactorTime
    wall: Callable[[], float]
    version: str
    loaded: dict[str, Plugin] = field(factory=dict)
    tally: Tally = field(factory=Tally)
    uploading: bool = False
    idc: str = ""
    region: str = ""
    _syncing: bool = False
    _next: Sequence[ConfigItem] | None = None
    _timers: set[IDelayedCall] = field(factory=set)

    def load(self, versions: Mapping[str, str]) -> None:
        """Have exactly these loaded: name -> version; one that is already there stays."""
        now, old = self.wall(), self.loaded
        self.loaded = {}
        for name, version in versions.items():
            known = old.get(name)
            same = known is not None and known.version == version
            self.loaded[name] = known if known is not None and same else Plugin(version, now)

    def end(self) -> None:
        """The process ends: nothing is under way any more, and no plugin runs."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.loaded = {}
        self._syncing, self._next, self.uploading = False, None, False

    def obey(self, command: Command) -> None:
        """Begin what a Command asks for."""
        if command.task is not None:
            self.tally.tasks += 1
            self._task(command.task)
            return
        self.tally.syncs += 1
        if not self._syncing:
            self._sync(command.config)
        elif self._next is None:
            self._next = command.config
        else:
            self.tally.dropped_syncs += 1
            self._log("a config waits already: this one is dropped")

    # --- configs

    def _sync(self, config: Sequence[ConfigItem]) -> None:
        own = next((item for item in config if item.name == AGENT_NAME), None)
        if own is not None and own.version != self.version:
            self._syncing = True
            self._later(SYNC_SECONDS, lambda: self._updated(own.version))
            return
        wanted = {item.name: item.version for item in config if item.name != AGENT_NAME}
        fresh = any(
            name not in self.loaded or self.loaded[name].version != version
            for name, version in wanted.items()
        )
        if not fresh:
            self._synced(wanted)
            return
        self._syncing = True
        self._later(SYNC_SECONDS, lambda: self._synced(wanted))

    def _synced(self, wanted: Mapping[str, str]) -> None:
        had_any = bool(self.loaded)
        self.load(wanted)
        self.tally.wiped += had_any and not self.loaded
        self._syncing = False
        waiting, self._next = self._next, None
        if waiting is not None:
            self._sync(waiting)

    def _updated(self, version: str) -> None:
        self.tally.updates += 1
        self.taker.leave(version)

    # --- tasks

    def _task(self, task: Task) -> None:
        if task.name == AGENT_NAME:
            self._own_task(task)
            return
        plugin = self.loaded.get(task.name)
        if plugin is None or plugin.busy:
            self.tally.refused_tasks += 1
            why = "is not loaded" if plugin is None else "is busy"
            self._log(f"task {task.data_type}: {task.name} {why}", task.name, plugin)
            return
        plugin.busy = True
        self._later(TASK_SECONDS, lambda: self._plugin_done(task, plugin))

    def _plugin_done(self, task: Task, plugin: Plugin) -> None:
        plugin.busy = False
        if self.loaded.get(task.name) is not plugin:  # it was unloaded meanwhile
            return
        try:
            ending = msgspec.json.decode(task.data, type=_PluginOrder).simulate
        except msgspec.MsgspecError:
            ending = ""
        if ending == "silence":
            return
        self.tally.results += 1
        failed = ending == "fail"
        self.taker.emit(
            RESULT_TYPES.get(task.name, TASK_RESULT),
            {
                "token": task.token,
                "status": "failed" if failed else "succeed",
                "msg": "told to fail" if failed else "",
            },
            own=False,
        )

    def _own_task(self, task: Task) -> None:
        if task.data_type == EXIT_TASK:
            self.taker.leave(None)
        elif task.data_type == REGION_TASK:
            try:
                order = msgspec.json.decode(task.data, type=_RegionOrder)
            except msgspec.MsgspecError as error:
                self.failed(task.token, str(error))
            else:
                self.idc, self.region = order.idc, order.region
        elif task.data_type == UPLOAD_TASK:
            self._upload(task)

    def _upload(self, task: Task) -> None:
        try:
            order = msgspec.json.decode(task.data, type=_UploadOrder)
        except msgspec.MsgspecError as error:
            self.failed(task.token, str(error))
            return
        size = _size_of(order.path)
        if self.uploading:
            self.failed(task.token, "another file is under way")
        elif size is None:
            self.failed(task.token, f"open {order.path}: no such file or directory")
        elif size > order.buf_size * PIECES:
            self.failed(task.token, f"{order.path}: {size} bytes are too many")
        else:
            self.uploading = True
            piece = min(order.buf_size, PIECE_BYTES)
            self.taker.upload(task.token, size, piece, order.simulate == "elsewhere")

    def uploaded(self, token: str, error: str) -> None:
        """A file has been sent; ``error`` says why not, or nothing."""
        self.uploading = False
        if error:
            self.tally.failed_uploads += 1
            self.failed(token, error)
        else:
            self.tally.uploads += 1

    def failed(self, token: str, reason: str) -> None:
        """The agent itself answers only for what failed."""
        self.tally.results += 1
        fields = {"token": token, "msg": reason, "status": "failed"}
        self.taker.emit(TASK_RESULT, fields, own=True)

    def _log(self, text: str, name: str = "", plugin: Plugin | None = None) -> None:
        fields = {"level": "error", "source": "simulator", "msg": text, "stacktrace": ""}
        if plugin is not None:
            fields |= {"plugin": name, "pver": plugin.version, "psign": ""}
        self.taker.emit(LOG_RECORD, fields, own=True)

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            work()

        timer = self.clock.callLater(seconds, run)
        self._timers.add(timer)


def _size_of(path: str) -> int | None:
    """How large a simulated file is: as its path ends in ``.<bytes>.bin``; None: there is none."""
    if not path.startswith("/") or path.startswith("/missing"):
        return None
    name, _, number = path.removesuffix(".bin").rpartition(".")
    return int(number) if name and path.endswith(".bin") and number.isdecimal() else FILE_BYTES
