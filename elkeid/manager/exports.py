"""Lists that users take with them: written to a file slice by slice, the client told how far.

A list of any length costs the memory of one slice. What files take on the disk is bounded: each
may take its share, old ones go when their time is over or room is needed.

Source: docs/protocol.md, "Manager API", "Exports".
"""

import secrets
import string
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import msgspec
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elkeid.errors import RequestRefused, StoreError
from elkeid.manager.codes import MESSAGES, SUCCESS, UNKNOWN_ERROR
from elkeid.manager.csvfile import CsvArchive
from elkeid.manager.roles import ADMIN_LEVEL
from elkeid.manager.store.exports import (
    Export,
    add_export,
    all_exports,
    find_export,
    remove_exports,
)
from elkeid.manager.store.store import Store, Threads
from elkeid.private_files import sync_folder
from elkeid.web.answers import EventSink, EventStream

T = TypeVar("T")

EXPORTS_AT_ONCE = 2
"""Each keeps a thread busy most of the time."""

SHARES = 4
"""One file may take this part of what all may; two that are written and two that lie there fit."""

EVENT_SECONDS = 1.0
"""Between two events, as clients know it."""

TIDY_SECONDS = 600.0
"""Between two looks for files whose time is over."""

PART = ".part"

_LETTERS = string.ascii_letters


class ExportsBusy(RequestRefused):
    """`EXPORTS_AT_ONCE` are being written."""


class _Abandoned(Exception):
    """Nobody waits for this export any more, or it may not go on; the text is the reason."""


@frozen
class Listing(Generic[T]):
    """What is exported.

    Args:
        prefix: of the file's name.
        header: names of the columns.
        total: rows, as far as is known.
        slices: items, some at a time.
        rows: makes rows of items, in a thread.
    """

    prefix: str
    header: Sequence[str]
    total: int
    slices: AsyncIterator[Sequence[T]]
    rows: Callable[[Sequence[T]], list[Sequence[object]]]


class Progress(msgspec.Struct):
    """``data`` of an event."""

    export_total: int
    export_count: int
    status: str  # init, exporting, saving, success or failed
    file_name: str


class Exports:
    """Writes and keeps files.

    Args:
        folder: where they lie; made at the start, 0700.
        store: open.
        threads: where files are written.
        clock: for the pace of events, and for tidying up.
        wall: seconds since the epoch.
        quota: bytes that all files may take.
        seconds: life of a file.
    """

    log = Logger()

    def __init__(
        self,
        folder: Path,
        store: Store,
        threads: Threads,
        clock: IReactorTime,
        *,
        wall: Callable[[], float],
        quota: int,
        seconds: float,
    ) -> None:
        self._folder, self._store, self._threads, self._clock = folder, store, threads, clock
        self._wall, self._quota, self._seconds = wall, quota, seconds
        self._running = 0
        self._begun = 0  # so far
        self._stopping = False
        self._idle: Deferred[None] | None = None
        self._tidying = LoopingCall(self._tidy_again)
        self._tidying.clock = clock

    async def start(self) -> None:
        """Make the folder, and remove what was never finished or is over."""
        await self._tidy(0)
        self._tidying.start(TIDY_SECONDS, now=False)

    async def stop(self) -> None:
        """End what is being written; its clients are told that it failed."""
        self._stopping = True
        if self._tidying.running:
            self._tidying.stop()
        if self._running:
            self._idle = Deferred()
            await self._idle

    def begin(self, user_id: int, listing: Listing[Any]) -> EventStream:
        """Export a list for a user.

        Raises:
            ExportsBusy: too many are being written.
        """
        if self._running >= EXPORTS_AT_ONCE or self._stopping:
            raise ExportsBusy(f"{EXPORTS_AT_ONCE} exports are being written; try again later")

        async def run(sink: EventSink) -> None:
            self._running += 1
            self._begun += 1
            try:
                await self._export(user_id, listing, sink)
            finally:
                self._running -= 1
                if not self._running and self._idle is not None:
                    self._idle.callback(None)

        return EventStream(run)

    async def open(self, name: str, user_id: int, level: int) -> tuple[IO[bytes], Export] | None:
        """A file that this user made, or any for an administrator; None where there is none."""
        found = await self._store.read(find_export, name, self._wall())
        if found is None or (found.user_id != user_id and level != ADMIN_LEVEL):
            return None
        path = self._folder / found.name
        try:
            file: IO[bytes] = await self._threads.run(path.open, "rb")
        except FileNotFoundError:  # it lies at another Manager, or its time is just over
            return None
        return file, found

    async def _export(self, user_id: int, listing: Listing[Any], sink: EventSink) -> None:
        now = self._wall()
        letters = "".join(secrets.choice(_LETTERS) for _ in range(8))
        stem = f"{listing.prefix}-{int(now * 1e9)}-{letters}"
        progress = Progress(listing.total, 0, "init", f"{stem}.zip")

        def tell(status: str, code: int = SUCCESS) -> None:
            progress.status = status
            sink.send("progress", {"code": code, "msg": MESSAGES[code], "data": progress})

        tell("init")
        archive: CsvArchive | None = None
        try:
            await self._tidy(self._quota // SHARES * EXPORTS_AT_ONCE)
            part = self._folder / (progress.file_name + PART)
            archive = await self._threads.run(CsvArchive, part, f"{stem}.csv", listing.header)
            await self._fill(archive, listing, progress, sink, tell)
            tell("saving")
            size = await self._threads.run(self._save, archive, progress.file_name)
            expires_at = int(now + self._seconds)
            made = Export(progress.file_name, user_id, size, int(now), expires_at)
            await self._store.write(add_export, made)
            archive = None
        except (_Abandoned, StoreError, OSError) as error:
            self.log.warn("export {name} failed: {error}", name=stem, error=error)
            tell("failed", UNKNOWN_ERROR)
        except Exception:
            self.log.failure("export {name} failed", name=stem)
            tell("failed", UNKNOWN_ERROR)
        else:
            tell("success")
        finally:
            if archive is not None:
                with suppress(OSError):
                    await self._threads.run(archive.discard)

    async def _fill(
        self,
        archive: CsvArchive,
        listing: Listing[Any],
        progress: Progress,
        sink: EventSink,
        tell: Callable[[str], None],
    ) -> None:
        share, told_at = self._quota // SHARES, self._clock.seconds()

        def add(items: Sequence[Any]) -> int:
            return archive.add(listing.rows(items))

        async for items in listing.slices:
            if sink.gone or self._stopping:
                raise _Abandoned("the client has left" if sink.gone else "this process stops")
            if await self._threads.run(add, items) > share:
                raise _Abandoned(f"larger than {share} bytes, see manager.export_quota_bytes")
            progress.export_count += len(items)
            # What came meanwhile counts as well.
            progress.export_total = max(progress.export_total, progress.export_count)
            if self._clock.seconds() - told_at >= EVENT_SECONDS:
                told_at = self._clock.seconds()
                tell("exporting")
        progress.export_total = progress.export_count

    def _save(self, archive: CsvArchive, name: str) -> int:
        size = archive.finish()
        archive.path = archive.path.rename(self._folder / name)
        sync_folder(self._folder)
        return size

    async def _tidy_again(self) -> None:
        try:
            await self._tidy(0)
        except (StoreError, OSError) as error:
            self.log.warn("exports are not tidied up: {error}", error=error)
        except Exception:  # a LoopingCall ends for good at the first error
            self.log.failure("exports are not tidied up; trying on")

    async def _tidy(self, room: int) -> None:
        """Remove what is over, and the oldest files until ``room`` is free of the quota."""
        idle = None if self._running else self._begun
        noted = await self._store.read(all_exports)
        removed = await self._threads.run(self._remove, noted, self._quota - room, idle)
        if removed:
            await self._store.write(remove_exports, removed)

    def _remove(self, noted: Sequence[Export], most: int, idle: int | None) -> list[str]:
        """Files to forget; they are gone.

        Args:
            noted: as the database has them.
            most: bytes that may lie here.
            idle: exports begun before ``noted`` was read, all of them ended; None if some went on.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        here = {path.name: path for path in self._folder.iterdir()}
        now = self._wall()
        held = sum(each.size for each in noted if each.name in here)
        removed = []
        for export in noted:
            path = here.pop(export.name, None)
            over = export.expires_at <= now
            if path is not None and (over or held > most):
                path.unlink(missing_ok=True)
                held -= export.size
                over = True
            if over:
                removed.append(export.name)
        if idle == self._begun:  # what is here and not noted belongs to nobody
            for path in here.values():
                path.unlink(missing_ok=True)  # never finished, or forgotten
        return removed
