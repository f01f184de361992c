"""``elkeid log``: look at the event log, beside a running server or without one."""

import contextlib
import os
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import IO, Any

import click
import msgspec

from elkeid.cli import Invocation
from elkeid.config import KAFKA_READER
from elkeid.errors import OperatorError, WireError
from elkeid.eventlog import Entry, LogReader
from elkeid.eventlog.files import lock_file
from elkeid.eventlog.ledger import read_ledger
from elkeid.eventlog.log import LOCK_FILE
from elkeid.eventlog.reader import Extent
from elkeid.kafka.bridge import Bridge
from elkeid.kafka.connection import quiet_library
from elkeid.shown import shown_json
from elkeid.wire import mqdata
from elkeid.wire.datatypes import RecordClass

FOLLOW_SECONDS = 0.2  # between two looks for more
FLUSH_BYTES = 64 * 1024  # printed at once while there is more: what a pipe holds
PROGRESS_SECONDS = 2.0  # between two lines that say how much is left
STOP_SECONDS = 5.0  # for an interrupted bridge to leave its place saved
SAVE_SECONDS = 1.0  # between two saves of a reader's place, each of which waits for the disk


@click.group()
def log() -> None:
    """Look at the event log.

    \b
    Example:
      elkeid log cat --follow
    """


@log.command()
@click.option("--follow", "-f", is_flag=True, help="Go on as records arrive, until interrupted.")
@click.option(
    "--reader",
    metavar="NAME",
    help="Begin where the reader of this name ended, and remember where it ends now. "
    "Unless it is in eventlog.readers, it is forgotten after a day without use.",
)
@click.option("--raw", is_flag=True, help="One base64 MQData message a line instead of JSON.")
@click.pass_obj
def cat(obj: Invocation, follow: bool, reader: str | None, raw: bool) -> None:
    """Print the records that are there, one a line, oldest first; control records before others.

    A line is a JSON object with offset, class, agent_id, data_type, agent_time, svr_time (unix
    seconds), hostname, version, product, tags, the host's addresses, and fields. What is no set
    of fields has them null, and body in base64.

    \b
    Examples:
      elkeid log cat | jq 'select(.data_type == 59) | .fields.exe'
      elkeid log cat --follow --reader my-script
    """
    settings = obj.settings
    directory = settings.server.data_dir / "eventlog"
    out = sys.stdout.buffer
    try:
        with (
            while_read(out),
            LogReader(directory, reader, kept=reader in settings.eventlog.readers) as source,
            contextlib.suppress(KeyboardInterrupt),
        ):
            printer = Printer(source, out, raw)
            printer.run(follow)
            if printer.unreadable:
                click.echo(
                    f"{printer.unreadable} records are no MQData and were left out", err=True
                )
    except OSError as error:
        raise OperatorError(f"{error.filename or directory}: {error.strerror or error}") from error


@contextlib.contextmanager
def while_read(out: IO[bytes]) -> Iterator[None]:
    """Print to ``out`` until nobody reads it any more: whoever did has seen enough."""
    try:
        yield
    except BrokenPipeError:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), out.fileno())  # or Python complains when it flushes


@log.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.pass_obj
def adopt(obj: Invocation, directory: Path) -> None:
    """Send to Kafka what another gateway's event log still holds, and end.

    DIR is the eventlog folder of a gateway that does not run any more. It is read from where that
    gateway was, and its ledger is balanced afterwards. An interrupted run goes on where it was.

    \b
    Example:
      elkeid log adopt /mnt/dead-gateway/data/eventlog
    """
    settings = obj.settings.kafka
    if not settings.brokers:
        raise OperatorError("kafka.brokers: not set; name the brokers that records shall go to")
    read_ledger(directory)  # says so when it is no log
    held = lock_file(directory / LOCK_FILE)
    if held is None:
        raise OperatorError(
            f"{directory}: a gateway writes this log, and sends it by itself; stop it first"
        )
    try:
        bridge = Bridge(directory, settings, once=True)
        worker = Thread(target=_run, args=(bridge,), daemon=True)
        worker.start()
        with contextlib.suppress(KeyboardInterrupt):
            while worker.is_alive():
                worker.join(PROGRESS_SECONDS)
                click.echo(f"{_waiting(directory):,} records left", err=True)
        bridge.stop(STOP_SECONDS)
        worker.join(STOP_SECONDS)
    finally:
        os.close(held)
    if bridge.failed is not None:
        raise bridge.failed
    left = _waiting(directory)
    if left:
        raise OperatorError(f"{left} records are left; run it again")
    click.echo("everything is in Kafka")


def _run(bridge: Bridge) -> None:
    quiet_library()
    bridge.run_noting_failure()


def _waiting(directory: Path) -> int:
    """Records that Kafka has not got yet, all classes together."""
    return sum(
        account["readers"].get(KAFKA_READER, {"waiting": account["appended"]})["waiting"]
        for account in read_ledger(directory).values()
    )


Line = Callable[[RecordClass, int, bytes], bytes]
"""Makes a line of a record's class, offset and MQData; `WireError` if it is none."""


class Printer:
    """Prints what a reader yields; its place moves only past what was printed and flushed.

    Args:
        source: the reader.
        out: where lines go, bytes.
        raw: base64 of each MQData instead of JSON.
        sleep: waits between two looks.
        monotonic: seconds from any start.
    """

    def __init__(
        self,
        source: LogReader,
        out: IO[bytes],
        raw: bool,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._out, self._sleep, self._monotonic = source, out, sleep, monotonic
        self._line: Line = _raw_line if raw else _json_line
        self.unreadable = 0  # records that are no MQData
        self._lines: list[bytes] = []
        self._bytes = 0
        self._printed: dict[RecordClass, int] = {}  # class -> offset after its last record
        self._unsaved = False
        self._saved_at = monotonic()

    def run(self, follow: bool) -> None:
        """Print what is there; with ``follow`` go on until interrupted.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        try:
            until: Extent | None = None if follow else self._source.extent()
            while True:
                for entry in self._source.entries(until):
                    self._take(entry)
                self._flush()
                if not follow:
                    return
                if self._unsaved and self._monotonic() - self._saved_at >= SAVE_SECONDS:
                    self._save()
                self._sleep(FOLLOW_SECONDS)
        finally:
            self._save()

    def _take(self, entry: Entry) -> None:
        offset = entry.first_offset
        with contextlib.suppress(WireError):  # of the region; its rest is counted below
            for record in mqdata.records(entry.region):
                self._print(entry.record_class, offset, record + entry.suffix)
                offset += 1
        self.unreadable += max(0, entry.end_offset - offset)
        self._printed[entry.record_class] = entry.end_offset

    def _print(self, record_class: RecordClass, offset: int, value: bytes) -> None:
        try:
            line = self._line(record_class, offset, value)
        except WireError:
            self.unreadable += 1
            line = b""
        self._lines.append(line)
        self._bytes += len(line)
        self._printed[record_class] = offset + 1
        if self._bytes >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        lines, self._lines, self._bytes = self._lines, [], 0
        printed, self._printed = self._printed, {}
        if lines:
            self._out.write(b"".join(lines))
            self._out.flush()
        for record_class, end_offset in printed.items():
            self._source.acknowledge(record_class, end_offset)
            self._unsaved = True

    def _save(self) -> None:
        self._saved_at = self._monotonic()
        if self._unsaved:
            self._source.save()
            self._unsaved = False


def _raw_line(_class: RecordClass, _offset: int, value: bytes) -> bytes:
    return b64encode(value) + b"\n"


def record_line(record_class: RecordClass, offset: int, value: bytes) -> dict[str, Any]:
    """What is printed of a record; `WireError` if it is no MQData."""
    record = mqdata.decode(value)
    line: dict[str, Any] = {
        "offset": offset,
        "class": record_class.label,
        "agent_id": record.agent_id,
        "data_type": record.data_type,
        "agent_time": record.agent_time,
        "svr_time": record.svr_time,
        "hostname": record.hostname,
        "version": record.version,
        "product": record.product,
        "tags": record.tags,
        "intranet_ipv4": record.intranet_ipv4,
        "extranet_ipv4": record.extranet_ipv4,
        "intranet_ipv6": record.intranet_ipv6,
        "extranet_ipv6": record.extranet_ipv6,
        "fields": record.fields,
    }
    if record.fields is None:
        line["body"] = b64encode(record.body).decode()
    return line


def printed(line: dict[str, Any]) -> bytes:
    """What `record_line` made, as JSON that a terminal shows and does not obey."""
    return shown_json(msgspec.json.encode(line)) + b"\n"


def _json_line(record_class: RecordClass, offset: int, value: bytes) -> bytes:
    return printed(record_line(record_class, offset, value))
