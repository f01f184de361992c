"""``elkeid ledger``: where every record went, told from the files of the event log."""

import time
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import click
import msgspec

from elkeid.cli import Invocation
from elkeid.config import EventLogSettings
from elkeid.errors import OperatorError
from elkeid.eventlog.backlog import NOTHING, Backlog, backlog
from elkeid.eventlog.cursors import ClassCursor, read_cursors
from elkeid.eventlog.files import FileOperations
from elkeid.eventlog.ledger import read_ledger
from elkeid.eventlog.log import class_cap
from elkeid.eventlog.packed import file_size
from elkeid.eventlog.segment import list_segments
from elkeid.ledgers import Ledger, imbalances, sum_ledgers
from elkeid.wire.datatypes import RecordClass


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as GET /ledger has it.")
@click.pass_obj
def ledger(obj: Invocation, as_json: bool) -> None:
    """Show where every record went, and whether it balances.

    Hop by hop, beside a running server or without one; the logs of several processes in one
    data folder are added up. The status is 1 when something does not balance.

    \b
    Examples:
      elkeid ledger
      elkeid ledger --json | jq .telemetry.readers.kafka.waiting
    """
    data = obj.settings.server.data_dir
    directories = [each for each in log_directories(data) if each.is_dir()]
    if not directories:
        directories = [data / "eventlog"]  # which read_ledger misses in a sentence
    try:
        found = sum_ledgers(read_ledger(each) for each in directories)
        left = measure(directories, obj.settings.eventlog)
    except OSError as error:
        raise OperatorError(f"{error.filename or data}: {error.strerror or error}") from error
    faults = imbalances(found)
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        for line in table(found, left):
            click.echo(line)
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        raise click.exceptions.Exit(1)


def log_directories(data: Path) -> list[Path]:
    """Where processes with this data folder keep their logs."""
    return [data / "eventlog", *sorted(data.glob("worker-*/eventlog"))]


def measure(
    directories: Sequence[Path], settings: EventLogSettings
) -> dict[tuple[str, str], Backlog]:
    """What each reader has before it, by reader and class, all logs together."""
    total: dict[tuple[str, str], Backlog] = {}
    now_ms = int(time.time() * 1000)
    for directory in directories:
        cursors, _ = read_cursors(directory)
        own = read_ledger(directory)
        free = FileOperations().space(directory).free
        for each in RecordClass:
            folder = directory / each.label
            names, end = list_segments(folder), own[each.label]["appended"]
            sizes = sum(_size(folder / str(name)) for name in names)
            cap = class_cap(settings, each, free, sizes, len(directories))
            for name, cursor in cursors.items():
                place = cursor.classes.get(each.label, ClassCursor())
                more = backlog(folder, names, end, place, now_ms=now_ms, cap_bytes=cap)
                had = total.get((name, each.label), NOTHING)
                total[name, each.label] = Backlog(
                    had.records + more.records,
                    had.bytes + more.bytes,
                    max(had.seconds, more.seconds),
                    min(had.room_seconds, more.room_seconds),
                )
    return total


def _size(path: Path) -> int:
    try:
        return file_size(path)
    except FileNotFoundError:  # deleted meanwhile
        return 0


def table(found: Ledger, left: dict[tuple[str, str], Backlog]) -> list[str]:
    """The ledger for people: one line a hop and fate."""
    lines = []
    for label, account in found.items():
        lines.append(f"{label}")
        lines.append(_line("agents -> gateway", "read", account["read"]))
        for reason, count in sorted(account["dropped"].items()):
            lines.append(_line("", f"dropped ({reason})", count))
        lines.append(_line("gateway -> log", "appended", account["appended"]))
        for name, reader in account["readers"].items():
            lines.append(_line(f"log -> {name}", "acknowledged", reader["acknowledged"]))
            if reader["set_aside"]:
                lines.append(_line("", "set aside", reader["set_aside"]))
            for reason, count in sorted(reader["expired"].items()):
                lines.append(_line("", f"expired ({reason})", count))
            waiting = left.get((name, label), NOTHING)
            note = ""
            if reader["waiting"]:
                note = f"   {waiting.bytes / 2**20:,.1f} MiB, {waiting.seconds / 60:.1f} min late"
                if isfinite(waiting.room_seconds):
                    note += f", room for {waiting.room_seconds / 60:,.0f} min more"
            lines.append(_line("", "waiting", reader["waiting"]) + note)
    return lines


def _line(hop: str, fate: str, count: int) -> str:
    return f"  {hop:<20}{fate:<24}{count:>16,}"
