"""The error tree.

    ElkeidError                  everything this package raises on purpose
    +-- OperatorError            a local mistake; its text is one sentence with the fix
    |   +-- ConfigError          unusable settings, every fault as ``section.key: reason``
    |   +-- KeysError            missing, unreadable, expired or refused keys
    |   +-- LogFormatError       a segment or cursor of an unknown format version
    |   +-- StoreError           the Manager's database cannot be used
    +-- PeerError                a peer's misbehaviour; costs that peer its stream or request
        +-- WireError            bytes that break a protocol rule (subclasses in ``elkeid.wire``)
        +-- RequestRefused       an HTTP request not served (subclasses in ``elkeid.web``)

Local mistakes and remote misbehaviour never share a class: the first ends a start with one
sentence, the second never costs more than the peer's own connection.
"""

from collections.abc import Iterable


class ElkeidError(Exception):
    """Base of every error this package raises on purpose."""


class OperatorError(ElkeidError):
    """A mistake of whoever runs this process; the text is one sentence with the fix."""


class ConfigError(OperatorError):
    """Unusable settings: one ``section.key: reason`` per fault, all of them at once."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(self.faults))


class KeysError(OperatorError):
    """Keys, certificates or secrets are missing, unreadable, expired or refused."""


class LogFormatError(OperatorError):
    """The event log on disk has a format this version does not know; it was left untouched."""


class StoreError(OperatorError):
    """The Manager's database cannot be opened or used."""


class PeerError(ElkeidError):
    """A peer's misbehaviour; it costs that peer its stream or its request, nothing more."""


class WireError(PeerError):
    """Bytes from a peer that break a protocol rule."""


class RequestRefused(PeerError):
    """An HTTP request that cannot be served as asked."""
