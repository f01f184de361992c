"""Log level and format by settings, for whichever program runs the service.

``twistd`` and ``python -m twisted`` choose where the log goes and open it after the service was
made. `LogSetup` waits for that and then changes what is written there, not where.
"""

import json
from datetime import UTC, datetime
from typing import Final

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogPublisher,
    eventAsText,
    formatEvent,
    formatEventAsClassicLogText,
    globalLogPublisher,
)
from zope.interface import implementer

from elkeid.shown import shown

FLOODING: Final = "twisted.internet.tcp.Port"
"""Without free file descriptors, Twisted's ports write three lines for each connection closed."""

FLOOD_LINES: Final = 3
FLOOD_SECONDS: Final = 60.0
"""So many of these lines are written in so many seconds."""


def as_json(event: LogEvent) -> str:
    """One event as a line of JSON: ``time`` (UTC), ``level``, ``logger``, ``message``.

    A failure adds ``traceback``. Other fields of an event are left out: what may be shown is in
    its message.
    """
    level = event.get("log_level")
    fields = {
        "time": datetime.fromtimestamp(event.get("log_time", 0), UTC).isoformat(
            timespec="milliseconds"
        ),
        "level": level.name if level is not None else "info",
        "logger": event.get("log_namespace") or "-",
        "message": formatEvent(event),
    }
    if "log_failure" in event:
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        fields["traceback"] = text.removeprefix(fields["message"]).strip()
    return shown(json.dumps(fields, ensure_ascii=False)) + "\n"


def as_text(event: LogEvent) -> str | None:
    """One event as Twisted writes it: time, namespace and level, message."""
    text = formatEventAsClassicLogText(event)
    return text and shown(text)


@implementer(ILogObserver)
class LogSetup:
    """Makes the file observers that appear on a publisher write by our level and format.

    It watches the log itself: observers are added just before the first events are told to all,
    this one first, so that no line is written in another form.

    Args:
        level: ``debug``, ``info``, ``warn`` or ``error``; lower events are not written.
        form: ``text`` or ``json``.
        publisher: where the observers are.
    """

    def __init__(self, level: str, form: str, publisher: LogPublisher = globalLogPublisher) -> None:
        self._level = LogLevel.levelWithName(level)
        self._form = as_json if form == "json" else as_text
        self._publisher = publisher
        self._seen: list[object] = []
        self._flood = (0.0, 0)  # since when, and lines

    def __call__(self, event: LogEvent) -> None:
        """See `ILogObserver`; changes observers not met before."""
        # A private name, but the only way to what twistd has chosen (tests watch over it).
        for observer in self._publisher._observers:
            while isinstance(observer, FilteringLogObserver):
                observer = observer._observer  # noqa: PLW2901 -- the one it filters for
            if isinstance(observer, FileLogObserver) and observer not in self._seen:
                self._seen.append(observer)
                observer.formatEvent = self._write

    def _write(self, event: LogEvent) -> str | None:
        level = event.get("log_level")
        if level is not None and level < self._level:
            return None
        if event.get("log_namespace") == FLOODING and not self._has_room(event.get("log_time", 0)):
            return None
        return self._form(event)

    def _has_room(self, now: float) -> bool:
        """Count a line of `FLOODING`; whether it may be written."""
        since, lines = self._flood
        if not 0 <= now - since < FLOOD_SECONDS:
            since, lines = now, 0
        self._flood = since, lines + 1
        return lines < FLOOD_LINES
