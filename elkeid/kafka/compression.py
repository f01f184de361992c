"""The codecs of record batches, in the framing that Kafka's other clients read.

Source: docs/kafka.md, "Compression".
"""

from collections.abc import Callable
from struct import Struct
from typing import Final

import cramjam
from attrs import frozen

from elkeid.errors import WireError

_XERIAL = b"\x82SNAPPY\x00" + (1).to_bytes(4) + (1).to_bytes(4)
_XERIAL_BLOCK = 32 * 1024
_LENGTH = Struct(">i")

# Version 1, independent blocks, nothing else; blocks of up to 4 MiB; checksum of those two bytes.
_LZ4_FRONT = b"\x04\x22\x4d\x18\x60\x70\x73"
_LZ4_BLOCK = 4 << 20
_LZ4_LENGTH = Struct("<I")
_LZ4_STORED = 0x80000000


@frozen
class Codec:
    """One way to compress the records of a batch."""

    attribute: int  # the number that a batch's header has for it
    compress: Callable[[bytes], bytes]


def _gzip(data: bytes) -> bytes:
    return bytes(cramjam.gzip.compress(data, level=1))


def _zstd(data: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(data, level=1))


def _snappy(data: bytes) -> bytes:
    parts = [_XERIAL]
    for at in range(0, len(data), _XERIAL_BLOCK):
        block = bytes(cramjam.snappy.compress_raw(data[at : at + _XERIAL_BLOCK]))
        parts += (_LENGTH.pack(len(block)), block)
    return b"".join(parts)


def _lz4(data: bytes) -> bytes:
    parts = [_LZ4_FRONT]
    for at in range(0, len(data), _LZ4_BLOCK):
        plain = data[at : at + _LZ4_BLOCK]
        block = bytes(cramjam.lz4.compress_block(plain, store_size=False))
        if len(block) < len(plain):
            parts += (_LZ4_LENGTH.pack(len(block)), block)
        else:
            parts += (_LZ4_LENGTH.pack(len(plain) | _LZ4_STORED), plain)
    parts.append(_LZ4_LENGTH.pack(0))
    return b"".join(parts)


COMPRESSORS: Final[dict[str, Codec | None]] = {
    "none": None,
    "gzip": Codec(1, _gzip),
    "snappy": Codec(2, _snappy),
    "lz4": Codec(3, _lz4),
    "zstd": Codec(4, _zstd),
}
"""By the name in the settings."""


def _unsnappy(data: bytes) -> bytes:
    if not data.startswith(_XERIAL[:8]):
        return bytes(cramjam.snappy.decompress_raw(data))
    parts, at = [], 16
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if not 0 <= length <= len(data) - at:
            raise WireError("a snappy block reaches beyond its batch")
        parts.append(bytes(cramjam.snappy.decompress_raw(data[at : at + length])))
        at += length
    return b"".join(parts)


_DECOMPRESSORS: Final[dict[int, Callable[[bytes], bytes]]] = {
    1: lambda data: bytes(cramjam.gzip.decompress(data)),
    2: _unsnappy,
    3: lambda data: bytes(cramjam.lz4.decompress(data)),
    4: lambda data: bytes(cramjam.zstd.decompress(data)),
}


def decompress(attribute: int, data: bytes) -> bytes:
    """Undo what a batch's header says was done to its records.

    Raises:
        WireError: an unknown codec, or data that is not of it.
    """
    if attribute == 0:
        return data
    try:
        return _DECOMPRESSORS[attribute](data)
    except (KeyError, cramjam.DecompressionError, ValueError) as error:
        raise WireError(f"records do not decompress: {error}") from error
