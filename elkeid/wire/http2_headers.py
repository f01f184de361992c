"""Decoding the header blocks of one connection.

Every agent's first header block is the same but for the address it dialled, and so is the state
in which it is decoded. So what the first blocks of connections mean is remembered, and most
connections never need a decoder and a dynamic table of their own.

Source: RFC 7541; RFC 9113, section 4.3.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, cast

import hpack

from elkeid.wire.http2_fields import Fields

REMEMBERED_BLOCKS: Final = 64
"""First blocks remembered in the process: addresses that agents dial times versions of agents."""

REMEMBERED_BYTES: Final = 2048
"""Of one of these, and of its fields with 32 more each; agents' have some 150 and 500. Larger ones
are decoded anew."""

_first_blocks: dict[tuple[int, bytes], tuple[bytes, Sequence[tuple[bytes, bytes]]]] = {}
# by limit and block: what came first on a connection, and was sound -> that block, its fields


class HeaderDecoder:
    """Decodes header blocks in the order in which they come.

    Args:
        limit: bytes of a header list, each field counted with 32 more (RFC 9113, 10.5.1).
    """

    __slots__ = ("_decoder", "_first", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._first = b""  # a block that was looked up and is still to be decoded here
        self._decoder: hpack.Decoder | None = None

    def decode(self, block: bytes) -> Fields:
        """Fields in their order.

        Raises:
            hpack.OversizedHeaderListError: they are larger than the limit.
            hpack.HPACKError: the block is no header block; nothing more can be decoded.
        """
        if self._decoder is None and not self._first:
            known = _first_blocks.get((self._limit, block))
            if known is not None:
                self._first, fields = known  # all connections share the block
                return fields
            decoded = self._decode(block)
            _remember(self._limit, block, decoded)
            return decoded
        if self._first:
            first, self._first = self._first, b""
            self._decode(first)  # fills the dynamic table that this block may refer to
        return self._decode(block)

    def _decode(self, block: bytes) -> Fields:
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = hpack.Decoder(self._limit)
        fields = cast(Fields, decoder.decode(block, raw=True))
        entries = decoder.header_table.dynamic_entries
        for index, entry in enumerate(entries):
            entries[index] = _shared(entry)
        return fields


def _remember(limit: int, block: bytes, fields: Fields) -> None:
    size = sum(32 + len(name) + len(value) for name, value in fields)
    if not block or len(block) > REMEMBERED_BYTES or size > REMEMBERED_BYTES:
        return
    if len(_first_blocks) >= REMEMBERED_BLOCKS:
        del _first_blocks[next(iter(_first_blocks))]
    _first_blocks[limit, block] = (block, tuple(fields))


@lru_cache(maxsize=512)
def _shared(entry: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """The first of all equal entries: agents send the same fields, so they share memory."""
    return entry
