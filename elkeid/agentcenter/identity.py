"""The id an agent goes by.

Source: docs/protocol.md, "Agent ids".
"""

from uuid import NAMESPACE_OID, uuid5

from elkeid.wire.rawdata import Header

ID_BYTES = 128
"""Longest id accepted; real ones are UUIDs of 36 bytes or what an operator set by hand."""

DERIVED_PREFIX = "noid-"
"""Marks an id that we made for an agent that sent none."""


def derived_id(header: Header) -> str:
    """The id of an agent that sent an empty one: the same host gives the same id.

    Agents on virtual machines without a DMI product name send an empty id; many such hosts
    would collide on it.
    """
    addresses = b",".join(sorted(header.intranet_ipv4) + sorted(header.intranet_ipv6))
    name = header.hostname + b"\n" + addresses
    return DERIVED_PREFIX + str(uuid5(NAMESPACE_OID, name.decode("utf-8", "replace")))
