"""``elkeid kafka cat``: what it prints of a message."""

import io
import json

from elkeid.cli.kafka import Printer
from elkeid.kafka.consumer import Message
from elkeid.wire import item
from elkeid.wire.protobuf import length_delimited
from elkeid.wire.rawdata import encode_record

NAME = "web\x1b[2J\x9b\u202e1"
SUFFIX = length_delimited(4, b"agent-1") + length_delimited(9, NAME.encode())


def message(fields: dict[str, str], offset: int) -> Message:
    """A message with these fields."""
    record = encode_record(59, 1_700_000_000, item.encode(fields))
    return Message(3, offset, 1_700_000_001_000, b"agent-1", record + SUFFIX)


def test_lines() -> None:
    """One a message, of the same value as its JSON; text of agents moves no terminal."""
    out = io.BytesIO()
    printer = Printer(out, raw=False)
    printer.take([message({"exe": NAME}, 7), Message(3, 8, -1, None, b"\xff")])
    (line,) = out.getvalue().splitlines()
    read = json.loads(line)
    assert (read["partition"], read["offset"], read["class"]) == (3, 7, "telemetry")
    assert (read["hostname"], read["fields"]) == (NAME, {"exe": NAME})
    assert not set("\x1b\x9b\u202e") & set(line.decode())
    assert printer.unreadable == 1
