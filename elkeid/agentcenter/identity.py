"""The id an agent goes by.

Source: docs/protocol.md, "Agent ids".
"""

from uuid import NAMESPACE_OID, uuid5

from elkeid.wire.rawdata import Header

ID_BYTES = 128
"""Longest id accepted; real ones are UUIDs of 36 bytes or what an operator set by hand."""

DERIVED_PREFIX = "noid-"
"""Marks an id that we made for an agent that sent none of use; no agent may send one."""

HEADER_BYTES = 64 << 10
"""What a batch may say of its host; real ones take 200 bytes, and each stream keeps it."""

HEADER_FREE_BYTES = 4 << 10
"""Of these; each byte beyond is taken from the memory of all streams."""


def header_bytes(header: Header) -> int:
    """Bytes that a header holds."""
    lists = (
        header.intranet_ipv4,
        header.extranet_ipv4,
        header.intranet_ipv6,
        header.extranet_ipv6,
    )
    texts = (header.agent_id, header.hostname, header.version, header.product)
    entries = sum(sum(map(len, each)) + 64 * len(each) for each in lists)
    return sum(map(len, texts)) + entries + len(header.tail or b"")


def usable_id(sent: bytes) -> str:
    """The id that an agent sent, as text; empty if nobody could go by it.

    Control characters, line ends and marks that turn the direction of text do harm in logs and
    terminals, and databases refuse some of them. Bytes that are no UTF-8 are escaped.
    """
    text = sent.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ""


def derived_id(header: Header) -> str:
    """The id of an agent that sent none of use: the same host gives the same id.

    Agents on virtual machines without a DMI product name send an empty id; many such hosts
    would collide on it.
    """
    addresses = b",".join(sorted(header.intranet_ipv4) + sorted(header.intranet_ipv6))
    name = header.hostname + b"\n" + addresses
    if header.agent_id:
        name += b"\n" + header.agent_id
    return DERIVED_PREFIX + str(uuid5(NAMESPACE_OID, name.decode("utf-8", "replace")))
