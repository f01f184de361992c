"""Events to replay, from a file of JSON lines or the sample events of this package."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import msgspec
from attrs import frozen

from elkeid.errors import OperatorError
from elkeid.fleet.records import Template, event_template
from elkeid.wire.datatypes import AGENT_HEARTBEAT, PLUGIN_HEARTBEAT, TASK_RESULTS

SAMPLE = "sample_events.jsonl"
OWN_TYPES = frozenset({AGENT_HEARTBEAT, PLUGIN_HEARTBEAT, *TASK_RESULTS})
"""Agents make these themselves: heartbeats by the clock, results once they were given the task."""


class EventsError(OperatorError):
    """The file of events cannot be read or replayed."""


class _Line(msgspec.Struct):
    """What a line must hold; other keys are notes."""

    data_type: int
    fields: dict[str, str]


@frozen
class Events:
    """What an agent replays, in order and then again."""

    templates: tuple[Template, ...]
    left_out: int  # lines of `OWN_TYPES`


def parse_events(lines: Iterable[str], source: str) -> Events:
    """Make templates of JSON lines ``{"data_type": int, "fields": {name: text}, ...}``.

    Args:
        lines: empty ones are skipped.
        source: the name to show in errors.

    Raises:
        EventsError: a line is malformed, or nothing is left to replay.
    """
    decode = msgspec.json.Decoder(_Line).decode
    templates, left_out = [], 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = decode(line)
        except msgspec.MsgspecError as error:
            raise EventsError(f"{source}, line {number}: {error}") from error
        if not 0 < event.data_type < 1 << 31:
            raise EventsError(f"{source}, line {number}: data_type must be 1 to {(1 << 31) - 1}")
        if event.data_type in OWN_TYPES:
            left_out += 1
        else:
            templates.append(event_template(event.data_type, event.fields))
    if not templates:
        raise EventsError(f"{source}: no event to replay; write one JSON object a line")
    return Events(tuple(templates), left_out)


def load_events(path: Path | None) -> Events:
    """Read events from ``path``; without one, the sample events.

    Raises:
        EventsError: the file cannot be read or replayed.
    """
    if path is None:
        text = (resources.files("elkeid.fleet") / SAMPLE).read_text(encoding="utf-8")
        return parse_events(text.split("\n"), SAMPLE)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise EventsError(f"{path}: {reason}") from error
    return parse_events(text.split("\n"), str(path))
