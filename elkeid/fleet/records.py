"""Records as agents send them, encoded once and patched where one send differs from another.

A record is a data type, a time and a map of strings. `Template` holds all of it encoded except
for the time and the map's last entries, which differ: the host's name where the event carries
one, ``fleet_conn`` (which stream of the agent's life) and ``fleet_seq`` (which record of its
class on that stream). One template serves every agent.

Source: docs/protocol.md, "Messages".
"""

from collections.abc import Mapping, Sequence

from attrs import frozen

from elkeid.wire.datatypes import CLASS_OF, RecordClass
from elkeid.wire.protobuf import length_delimited, varint

CONN_FIELD = "fleet_conn"
SEQ_FIELD = "fleet_seq"
NODENAME_FIELD = "nodename"  # driver events carry the host's own name
PRODUCT = "elkeid-agent"
AGENT_VERSION = "1.7.0.31"

_RECORDS = b"\x0a"  # PackagedData field 1
_DATA_TYPE = b"\x08"  # Record fields 1 to 3
_TIMESTAMP = b"\x10"
_BODY = b"\x1a"


def encode_entry(key: str, value: str) -> bytes:
    """One entry of an Item's map."""
    return _entry(key.encode(), value.encode())


def _entry(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 4
    if size < 0x80:  # nearly all: every length is one byte
        return b"\x0a%c\x0a%c%b\x12%c%b" % (size, len(key), key, len(value), value)
    return length_delimited(1, length_delimited(1, key) + length_delimited(2, value))


def encode_entries(fields: Mapping[str, str]) -> bytes:
    """The entries of an Item's map, in the mapping's order."""
    return b"".join(encode_entry(key, value) for key, value in fields.items())


class Template:
    """One event, ready to be sent many times.

    Attributes:
        data_type: what the record is.
        record_class: its class, by which ``fleet_seq`` counts.
        named: whether the event carries the host's name, to be patched.
        own: whether it is the agent's own record, which the full buffer treats otherwise.
    """

    __slots__ = ("_heads", "_second", "_static", "_type", "data_type", "named", "own",
                 "record_class")  # fmt: skip

    def __init__(self, data_type: int, static: bytes, *, named: bool, own: bool) -> None:
        self.data_type = data_type
        self.record_class = CLASS_OF.get(data_type, RecordClass.TELEMETRY)
        self.named, self.own = named, own
        self._static = static
        self._type = _DATA_TYPE + varint(data_type)
        self._second = -1
        self._heads: dict[int, bytes] = {}  # size of the patched entries -> encoded, this second

    def head(self, second: int, patched: int) -> bytes:
        """Encode everything up to the patched entries.

        Args:
            second: the record's time, unix seconds.
            patched: bytes of map entries that will follow.
        """
        if second != self._second:
            self._second = second
            self._heads.clear()
        head = self._heads.get(patched)
        if head is None:
            body = varint(len(self._static) + patched)
            fixed = self._type + _TIMESTAMP + varint(second) + _BODY + body + self._static
            head = _RECORDS + varint(len(fixed) + patched) + fixed
            self._heads[patched] = head
        return head


def event_template(data_type: int, fields: Mapping[str, str]) -> Template:
    """A template of an event to replay; its own counters and host name give way to the agent's."""
    patched = (CONN_FIELD, SEQ_FIELD, NODENAME_FIELD)
    static = encode_entries({key: value for key, value in fields.items() if key not in patched})
    return Template(data_type, static, named=NODENAME_FIELD in fields, own=False)


def own_template(data_type: int, static: bytes, *, own: bool = True) -> Template:
    """A template of a record that is no replayed event, from entries encoded already.

    Args:
        data_type: of the record.
        static: its entries.
        own: whether it is the agent's own, not a plugin's.
    """
    return Template(data_type, static, named=False, own=own)


@frozen
class Identity:
    """What every batch of one agent says of its host."""

    agent_id: str
    hostname: str
    intranet_ipv4: Sequence[str]
    intranet_ipv6: Sequence[str] = ()
    version: str = AGENT_VERSION

    def encode(self) -> bytes:
        """PackagedData fields 2 to 9, which follow the records."""
        parts = [length_delimited(2, self.agent_id.encode())]
        parts += [length_delimited(3, address.encode()) for address in self.intranet_ipv4]
        parts += [length_delimited(5, address.encode()) for address in self.intranet_ipv6]
        parts.append(length_delimited(7, self.hostname.encode()))
        parts.append(length_delimited(8, self.version.encode()))
        parts.append(length_delimited(9, PRODUCT.encode()))
        return b"".join(parts)


Pending = tuple[Template, int]
"""A record in an agent's buffer: its template and its time in unix seconds."""


class StreamWriter:
    """Numbers and encodes what one agent sends on one stream.

    Attributes:
        sent: records encoded so far, by class.
    """

    __slots__ = ("_hostname", "_number", "_suffix", "_tails", "sent")

    def __init__(self, number: int, hostname: str, suffix: bytes) -> None:
        self.sent = [0] * len(RecordClass)
        self._number, self._hostname, self._suffix = number, hostname, suffix
        # Without and with the host's name: digits of fleet_seq -> the entries up to them.
        self._tails: tuple[list[bytes], list[bytes]] = ([], [])

    def encode(self, records: Sequence[Pending]) -> bytes:
        """One PackagedData of these records, not yet compressed."""
        parts: list[bytes] = []
        sent, tails = self.sent, self._tails
        for template, second in records:
            record_class = template.record_class
            number = sent[record_class]
            sent[record_class] = number + 1
            digits = b"%d" % number
            width = len(digits)
            known = tails[template.named]
            while width > len(known):
                known.append(self._tail(template.named, len(known) + 1))
            tail = known[width - 1]
            parts += (template.head(second, len(tail) + width), tail, digits)
        parts.append(self._suffix)
        return b"".join(parts)

    def _tail(self, named: bool, width: int) -> bytes:
        name = encode_entry(NODENAME_FIELD, self._hostname) if named else b""
        number = encode_entry(CONN_FIELD, str(self._number))
        return name + number + encode_entry(SEQ_FIELD, "0" * width)[:-width]
