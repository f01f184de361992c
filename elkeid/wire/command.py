"""Command, what goes to agents: a task for one plugin, or the whole list of plugins to run.

An agent reads a Command without a task as the full list of what it shall run, and unloads the
rest; one with a task as that task alone. So these two never travel in one Command.

Source: docs/protocol.md, "Messages".
"""

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from elkeid.errors import WireError
from elkeid.wire.protobuf import BYTES, VARINT, fields, length_delimited, signed, varint

FIELD_LIMIT: Final = 65_536
"""Fields of one Command, or of one part of it, that we decode."""

COMMAND_BYTES: Final = 4 << 20
"""Of one encoded Command: what agents take, on the wire and decompressed."""


@frozen
class Task:
    """An order to a plugin, or to the agent itself (``name = "elkeid-agent"``)."""

    data_type: int = 0
    name: str = ""
    data: str = ""
    """Opaque to the gateway; mostly JSON."""
    token: str = ""
    """Comes back in the result."""


@frozen
class ConfigItem:
    """One plugin that shall run, or the agent's own version."""

    name: str = ""
    type: str = ""
    """``tar.gz``, or anything else for a plain executable."""
    version: str = ""
    sha256: str = ""
    """Of the download, lower-case hex."""
    signature: str = ""
    """SHA-256 of the installed executable, hex; empty means the same as ``sha256``."""
    download_url: tuple[str, ...] = ()
    detail: str = ""


@frozen
class Command:
    """One message to an agent."""

    task: Task | None = None
    config: tuple[ConfigItem, ...] = ()


def _text(number: int, value: str) -> bytes:
    return length_delimited(number, value.encode("utf-8", "replace")) if value else b""


def _encode_task(task: Task) -> bytes:
    return b"".join(
        (
            b"\x08" + varint(signed(task.data_type, 32)) if task.data_type else b"",
            _text(2, task.name),
            _text(3, task.data),
            _text(4, task.token),
        )
    )


def _encode_item(item: ConfigItem) -> bytes:
    urls = (length_delimited(6, url.encode("utf-8", "replace")) for url in item.download_url)
    return b"".join(
        (
            _text(1, item.name),
            _text(2, item.type),
            _text(3, item.version),
            _text(4, item.sha256),
            _text(5, item.signature),
            *urls,
            _text(7, item.detail),
        )
    )


def encode_command(task: Task | None = None, config: Sequence[ConfigItem] = ()) -> bytes:
    """Encode a Command; an empty one is no bytes, and a task of zero values is there still."""
    parts = [] if task is None else [length_delimited(2, _encode_task(task))]
    parts += [length_delimited(3, _encode_item(item)) for item in config]
    return b"".join(parts)


def decode_command(data: bytes) -> Command:
    """Decode a Command as an agent does; bytes that are not UTF-8 become U+FFFD.

    Raises:
        WireError: it is malformed.
    """
    task: dict[int, int | bytes] | None = None
    config: list[ConfigItem] = []
    for number, wire_type, value in fields(data, 0, len(data), FIELD_LIMIT):
        if number not in (2, 3):
            continue
        if not isinstance(value, bytes) or wire_type != BYTES:
            raise WireError(f"Command field {number} has wire type {wire_type}")
        if number == 2:  # a message that comes twice is merged
            task = {} if task is None else task
            _read_task(value, task)
        else:
            config.append(_decode_item(value))
    if task is None:
        return Command(None, tuple(config))
    data_type = task.pop(1, 0)
    texts = {n: v.decode("utf-8", "replace") for n, v in task.items() if isinstance(v, bytes)}
    return Command(
        Task(
            data_type if isinstance(data_type, int) else 0,
            texts.get(2, ""),
            texts.get(3, ""),
            texts.get(4, ""),
        ),
        tuple(config),
    )


def _read_task(data: bytes, task: dict[int, int | bytes]) -> None:
    for number, wire_type, value in fields(data, 0, len(data), FIELD_LIMIT):
        if number > 4:
            continue
        if wire_type != (VARINT if number == 1 else BYTES):
            raise WireError(f"Task field {number} has wire type {wire_type}")
        task[number] = value if isinstance(value, bytes) else signed(value, 32)


def _decode_item(data: bytes) -> ConfigItem:
    texts: dict[int, str] = {}
    urls: list[str] = []
    for number, wire_type, value in fields(data, 0, len(data), FIELD_LIMIT):
        if number > 7:
            continue
        if not isinstance(value, bytes) or wire_type != BYTES:
            raise WireError(f"Config field {number} has wire type {wire_type}")
        text = value.decode("utf-8", "replace")
        if number == 6:
            urls.append(text)
        else:
            texts[number] = text
    return ConfigItem(
        name=texts.get(1, ""),
        type=texts.get(2, ""),
        version=texts.get(3, ""),
        sha256=texts.get(4, ""),
        signature=texts.get(5, ""),
        download_url=tuple(urls),
        detail=texts.get(7, ""),
    )
