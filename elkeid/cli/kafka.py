"""``elkeid kafka``: read back what went to Kafka."""

import contextlib
import sys
from base64 import b64encode
from collections.abc import Sequence
from typing import IO

import click

from elkeid.cli import Invocation
from elkeid.cli.log import printed, record_line, while_read
from elkeid.errors import OperatorError, WireError
from elkeid.kafka.consumer import Consumer, Message
from elkeid.wire.datatypes import CLASS_OF, RecordClass


@click.group()
def kafka() -> None:
    """Read back what went to Kafka.

    \b
    Example:
      elkeid kafka cat --follow
    """


@kafka.command()
@click.option("--follow", "-f", is_flag=True, help="Go on as records arrive, until interrupted.")
@click.option(
    "--group",
    metavar="NAME",
    help="Begin where this consumer group ended, share partitions with its other members, and "
    "commit what was printed.",
)
@click.option("--raw", is_flag=True, help="One base64 MQData message a line instead of JSON.")
@click.pass_obj
def cat(obj: Invocation, follow: bool, group: str | None, raw: bool) -> None:
    """Print the records of the topic, one a line; partitions are mixed, each in order.

    A line is what ``elkeid log cat`` prints, with partition, offset and timestamp
    (milliseconds since the epoch) of the message.

    \b
    Examples:
      elkeid kafka cat | jq 'select(.data_type == 59) | .fields.exe'
      elkeid kafka cat --follow --group my-script
    """
    settings = obj.settings.kafka
    if not settings.brokers:
        raise OperatorError("kafka.brokers: not set; name the brokers in the settings")
    printer = Printer(sys.stdout.buffer, raw)
    consumer = Consumer(settings, group, printer.take)
    with while_read(sys.stdout.buffer), contextlib.suppress(KeyboardInterrupt):
        consumer.run(None if follow else consumer.end_offsets())
    if printer.unreadable:
        click.echo(f"{printer.unreadable} messages are no MQData and were left out", err=True)


class Printer:
    """Prints messages.

    Args:
        out: where lines go, bytes.
        raw: base64 of each value instead of JSON.
    """

    def __init__(self, out: IO[bytes], raw: bool) -> None:
        self._out, self._raw = out, raw
        self.unreadable = 0  # messages that are no MQData

    def take(self, batch: Sequence[Message]) -> None:
        """Print a batch; it is out when this returns."""
        lines = []
        for message in batch:
            if self._raw:
                lines.append(b64encode(message.value) + b"\n")
                continue
            try:
                lines.append(_json_line(message))
            except WireError:
                self.unreadable += 1
        self._out.write(b"".join(lines))
        self._out.flush()


def _json_line(message: Message) -> bytes:
    line = record_line(RecordClass.TELEMETRY, message.offset, message.value)
    line["class"] = CLASS_OF.get(line["data_type"], RecordClass.TELEMETRY).label
    front = {"partition": message.partition, "timestamp": message.timestamp}
    return printed(front | line)
