"""Results on disk between the agents that brought them and the Manager: what is there, and taking.

An event log of its own, of which only the class control is used. Its one reader is the Manager;
a record's suffix holds the agent id and nothing else.

Source: docs/eventlog.md; docs/protocol.md, "Task results".
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from attrs import frozen
from twisted.logger import Logger

from elkeid.config import EventLogSettings, MiB
from elkeid.errors import WireError
from elkeid.eventlog.format import Entry
from elkeid.eventlog.reader import LogReader
from elkeid.wire import item, mqdata
from elkeid.wire.datatypes import RecordClass

READER: Final = "manager"

BATCH_ITEMS: Final = 100
"""Results of one call, as many as upstream sends."""

BATCH_BYTES: Final = 1 * MiB
"""Of the results of one call, beyond the first: Managers bound what they read."""

ITEM_BYTES: Final = 1 * MiB
"""Of one result; of a larger one only `KEPT_FIELDS` are sent, cut at `FIELD_BYTES`."""

KEPT_FIELDS: Final = ("token", "status", "msg")
FIELD_BYTES: Final = 64 << 10

ASIDE_BYTES: Final = 16 * MiB
"""Of the file of results that the Manager will not take; beyond, they are only counted."""

ASIDE_FILE: Final = "set-aside.jsonl"


def log_settings(fsync: float, cap_bytes: int) -> EventLogSettings:
    """The settings of the log: what was taken is deleted within minutes."""
    return EventLogSettings(
        segment_bytes=8 * MiB,
        fsync=fsync,
        control_cap_bytes=cap_bytes,
        telemetry_cap_bytes=16 * MiB,
        min_free_bytes=0,  # results are few; only a full disk stops them
        retention=60,
        readers=(READER,),
    )


@frozen
class Result:
    """One result as the Manager gets it, or why it does not."""

    end_offset: int
    agent_id: str
    stored: int  # bytes of its record
    fields: dict[str, str]
    size: int = 0  # bytes of the fields
    unreadable: str = ""


def flatten(data_type: int, body: bytes) -> dict[str, str]:
    """The fields of a result's body, and its data type as one more.

    Raises:
        WireError: the body is empty or no Item.
    """
    fields = item.decode_text(body)
    if not fields:
        raise WireError("no fields")
    fields["data_type"] = str(data_type)
    return fields


def _shortened(fields: dict[str, str]) -> dict[str, str]:
    kept = {name: fields[name][:FIELD_BYTES] for name in KEPT_FIELDS if name in fields}
    return kept | {"data_type": fields["data_type"]}


class OutboxReader:
    """Takes results out in order. Blocking: for threads, one call at a time.

    Args:
        directory: of the log, which is open.
        wall: seconds since the epoch.
    """

    log = Logger()

    def __init__(self, directory: Path, wall: Callable[[], float]) -> None:
        self._aside = directory / ASIDE_FILE
        self._wall = wall
        self._lock = threading.Lock()  # a call whose waiter has gone may still run
        self._reader = LogReader(directory, READER, kept=True, wall=wall)
        self._ready: deque[Result] = deque()
        self._ready_bytes = 0
        self._closed = False
        self.shortened = 0
        self.unreadable = 0
        self.unkept = 0  # set aside without room to keep them

    def next(self) -> list[Result]:
        """The results after the last ones returned, as many as one call may bring; none: no more.

        Raises:
            OSError: the disk cannot be read.
        """
        with self._lock:
            if self._closed:
                return []
            if not self._full():
                for entry in self._reader.entries():
                    self._take(entry)
                    if self._full():
                        break
            batch: list[Result] = []
            size = 0
            while self._ready and len(batch) < BATCH_ITEMS:
                size += self._ready[0].size
                if batch and size > BATCH_BYTES:
                    break
                batch.append(self._ready.popleft())
            self._ready_bytes -= sum(each.size for each in batch)
            return batch

    def _full(self) -> bool:
        """Whether enough for one call is in memory."""
        return len(self._ready) >= BATCH_ITEMS or self._ready_bytes >= BATCH_BYTES

    def _take(self, entry: Entry) -> None:
        """Make results of the records of one entry."""
        for offset, record in enumerate(mqdata.records(entry.region), entry.first_offset + 1):
            data = mqdata.decode(record + entry.suffix)
            try:
                fields = flatten(data.data_type, data.body)
            except WireError as error:
                self.unreadable += 1
                self._ready.append(
                    Result(offset, data.agent_id, len(record), {}, unreadable=str(error))
                )
                continue
            size = sum(len(name) + len(value) for name, value in fields.items())
            if size > ITEM_BYTES:
                self.shortened += 1
                fields = _shortened(fields)
                size = len(KEPT_FIELDS) * FIELD_BYTES
            self._ready.append(Result(offset, data.agent_id, len(record), fields, size))
            self._ready_bytes += size

    def settle(
        self, results: Sequence[Result], refusal: str = "", *, elsewhere: bool = False
    ) -> None:
        """Note that these are dealt with, in order: taken, or set aside because of ``refusal``.

        Args:
            results: the next ones.
            refusal: why they were not taken.
            elsewhere: those refused are kept by somebody else.

        Raises:
            OSError: the disk does not let us; they would be sent again after a restart.
        """
        with self._lock:
            if self._closed:
                return
            for result in results:
                reason = refusal or result.unreadable
                if not reason:
                    self._reader.acknowledge(RecordClass.CONTROL, result.end_offset)
                    continue
                if result.fields and not elsewhere:
                    self.keep(result.fields, reason)
                self._reader.set_aside(RecordClass.CONTROL, result.end_offset)
            self._reader.save()

    def keep(self, fields: Mapping[str, str], reason: str) -> None:
        """Note down a result that is never taken, and why."""
        line = msgspec.json.encode(
            {"time": int(self._wall()), "reason": reason, "result": dict(fields)}
        )
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            with os.fdopen(os.open(self._aside, flags, 0o600), "ab") as target:
                if target.tell() + len(line) >= ASIDE_BYTES:
                    self.unkept += 1
                else:
                    target.write(line + b"\n")
        except OSError as error:
            self.unkept += 1
            self.log.error("{path}: {error}", path=self._aside, error=error)

    def close(self) -> None:
        """Let go of the log; what was not settled is read again at the next start."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._reader.close()
