"""Append-only segments on local disk, named cursors and the ledger."""

from elkeid.eventlog.format import Entry
from elkeid.eventlog.log import EventLog
from elkeid.eventlog.reader import LogReader

__all__ = ["Entry", "EventLog", "LogReader"]
