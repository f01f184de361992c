"""What a host shall run: the list of plugins with their versions, as one encoded Command."""

import re
from collections.abc import Sequence
from enum import Enum
from hashlib import sha256
from itertools import islice
from typing import Annotated, Any, Final
from weakref import WeakValueDictionary

import msgspec
from attrs import field, frozen

from elkeid.errors import PeerError
from elkeid.wire.command import COMMAND_BYTES, ConfigItem, decode_command, encode_command

AGENT_NAME: Final = "elkeid-agent"
"""The entry that stands for the agent itself."""

ITEM_LIMIT: Final = 1_000
"""Entries of one config; real ones have under ten."""

SHOWN_LIMIT: Final = 64
"""Entries shown of one config, as many as plugins of a host."""

_LOADABLE = re.compile(r"[A-Za-z0-9_-]+").fullmatch

Text = str | None  # null stands for nothing, as clients written in Go send it
Int32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]


class State(Enum):
    """Where a host stands with its config on the present connection."""

    NONE = "none"  # nothing was sent yet
    SENT = "sent"  # written to its connection; its heartbeats do not show it yet
    APPLIED = "applied"  # they do


class ConfigInvalid(PeerError):
    """A config that no host may be sent; the text says why."""


class Entry(msgspec.Struct):
    """One entry of a config, as JSON has it: `ConfigItem`, all optional."""

    name: Text = None
    type: Text = None
    version: Text = None
    sha256: Text = None
    signature: Text = None
    download_url: list[str] | None = None
    detail: Text = None


@frozen
class Config:
    """A whole config; equal ones are one object.

    Attributes:
        command: the encoded Command; no bytes at all for "run nothing".
        digest: SHA-256 of it.
        versions: entry name -> version.
    """

    command: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    versions: dict[str, str]

    def shown(self) -> dict[str, str]:
        """The versions of the first entries that an agent can load.

        Managers keep status as documents: those of stock ones take no other characters in keys,
        ours no document of more than 512 fields.
        """
        fit = ((name, text) for name, text in self.versions.items() if _LOADABLE(name))
        return dict(islice(fit, SHOWN_LIMIT))

    @property
    def empty(self) -> bool:
        """Whether it unloads everything."""
        return not self.command


class ConfigState:
    """The config of one connection, and how far it has got."""

    __slots__ = (
        "again",
        "applied_at",
        "asked",
        "asking",
        "attempt",
        "delivered",
        "desired",
        "due",
        "failures",
        "falling",
        "heard",
        "searches",
        "sent_at",
        "source",
        "state",
        "version",
    )

    def __init__(self) -> None:
        self.state = State.NONE
        self.desired: Config | None = None
        self.source = ""  # of it: manager, command or last-known
        self.version = 0  # of it: grows with every new one
        self.sent_at = 0  # unix seconds, as the next
        self.applied_at = 0
        self.attempt = 0  # times that it was sent
        self.delivered = False  # wholly written, or applied: remembered as the host's last one
        self.asked = False  # the Manager was, or will be, on this connection
        self.asking = False  # the Manager will be, or is being asked
        self.again = False  # and once more after that
        self.failures = 0  # of asking, in a row
        self.falling = False  # what it ran last is being looked for
        self.searches = 0  # that found nothing
        self.heard: dict[bytes, bytes] = {}  # plugins' versions in heartbeats since it was sent
        self.due = [0.0, 0.0, 0.0, 0.0]  # when what comes next of each kind; 0 for nothing

    def shown(self) -> dict[str, Any]:
        """The state as ``/conn/stat`` shows it."""
        return {
            "state": self.state.value,
            "source": self.source,
            "sent_at": self.sent_at or None,
            "applied_at": self.applied_at or None,
            "versions": {} if self.desired is None else self.desired.shown(),
        }


_known: WeakValueDictionary[bytes, Config] = WeakValueDictionary()


def config_of(entries: Sequence[Entry]) -> Config:
    """Make the config of these entries.

    Raises:
        ConfigInvalid: an entry without a name, or none with a name that an agent can load, which
            an agent would take for "unload the rest", or too many or too large for an agent.
    """
    if len(entries) > ITEM_LIMIT:
        raise ConfigInvalid(f"config: {len(entries)} entries; limit {ITEM_LIMIT}")
    for number, entry in enumerate(entries):
        if not entry.name:
            raise ConfigInvalid(f"config[{number}].name: empty")
    if entries and not any(_LOADABLE(entry.name or "") for entry in entries):
        raise ConfigInvalid("config: no entry has a name that an agent can load")
    command = encode_command(config=[_item(entry) for entry in entries])
    if len(command) > COMMAND_BYTES:
        raise ConfigInvalid(
            f"config: {len(command)} bytes encoded; agents take {COMMAND_BYTES} at most"
        )
    return stored_config(command)


def stored_config(command: bytes) -> Config:
    """Make the config of an encoded Command.

    Raises:
        WireError: it is malformed.
    """
    digest = sha256(command).digest()
    config = _known.get(digest)
    if config is None:
        versions = {item.name: item.version for item in decode_command(command).config}
        config = _known[digest] = Config(command, digest, versions)
    return config


def entries_of(config: Config) -> list[dict[str, Any]]:
    """The entries as JSON has them."""
    return [
        {
            "name": item.name,
            "type": item.type,
            "version": item.version,
            "sha256": item.sha256,
            "signature": item.signature,
            "download_url": list(item.download_url),
            "detail": item.detail,
        }
        for item in decode_command(config.command).config
    ]


def _item(entry: Entry) -> ConfigItem:
    return ConfigItem(
        name=entry.name or "",
        type=entry.type or "",
        version=entry.version or "",
        sha256=entry.sha256 or "",
        signature=entry.signature or "",
        download_url=tuple(entry.download_url or ()),
        detail=entry.detail or "",
    )
