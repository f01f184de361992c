"""Message compression of gRPC: identity, gzip, snappy (its framing format) and zstd.

Every decompressor takes the data and the largest result allowed, and stops before it takes the
memory of a larger one.

Source: docs/protocol.md, "Compression".
"""

import struct
import sys
import zlib
from collections.abc import Callable
from typing import Final

import cramjam
from crc32c import crc32c

from elkeid.errors import WireError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Decompress = Callable[[bytes, int], bytes]
"""Data and the limit in bytes; raises `CompressionError` or `MessageTooLarge`."""

CHUNK_BYTES: Final = 65_536
"""Uncompressed data of one snappy chunk, at most: the format's own limit."""

CHUNK_LIMIT: Final = 16_384
"""Snappy chunks of one message: sixteen times what 64 MiB needs, to bound time."""

PART_LIMIT: Final = 16
"""gzip members or zstd frames of one message; encoders write one. What follows is copied each
time, so this bounds time."""

ZSTD_WINDOW_LOG: Final = 23
"""zstd window of 8 MiB: what its specification asks every decoder to have, and no more."""

_IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
_CHUNK = struct.Struct("<II")  # type and 24-bit length; CRC
_COMPRESSED, _STORED = 0x00, 0x01


class CompressionError(WireError):
    """Data that is not what its encoding says."""


class MessageTooLarge(WireError):
    """Data that would be larger than allowed once decompressed."""


def _too_large(limit: int) -> MessageTooLarge:
    return MessageTooLarge(f"message larger than {limit} bytes after decompression")


def _decode_identity(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise _too_large(limit)
    return bytes(data)


def _decode_snappy(data: bytes, limit: int) -> bytes:
    """Decode one framed stream; most hold one chunk of data, which is decoded at once."""
    if not data:  # a stream of nothing needs no identifier
        return b""
    if data[:10] != _IDENTIFIER:
        raise CompressionError("snappy stream lacks its identifier")
    size = len(data)
    if size >= 18:
        word, crc = _CHUNK.unpack_from(data, 10)
        if word >> 8 == size - 14 and word & 0xFF <= _STORED:
            return _decode_chunk(word & 0xFF, crc, data[18:], limit)
    return _decode_snappy_chunks(data, limit)


def _decode_chunk(kind: int, crc: int, payload: bytes, limit: int, taken: int = 0) -> bytes:
    """Decode one chunk of data, when ``taken`` bytes of the limit are used already."""
    try:
        size = cramjam.snappy.decompress_raw_len(payload) if kind == _COMPRESSED else len(payload)
        if size > CHUNK_BYTES:
            raise CompressionError(f"snappy chunk of {size} bytes, limit {CHUNK_BYTES}")
        if taken + size > limit:
            raise _too_large(limit)
        data = bytes(cramjam.snappy.decompress_raw(payload) if kind == _COMPRESSED else payload)
    except cramjam.DecompressionError as error:
        raise CompressionError("snappy chunk does not decompress") from error
    if _masked(crc32c(data)) != crc:
        raise CompressionError("snappy chunk fails its checksum")
    return data


def _masked(crc: int) -> int:
    """Mask a CRC as the framing format does, so that a CRC of data with CRCs stays sound."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _decode_snappy_chunks(data: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    taken, pos, end = 0, len(_IDENTIFIER), len(data)
    for _ in range(CHUNK_LIMIT):
        if pos == end:
            return b"".join(parts)
        if end - pos < 4:
            break
        kind = data[pos]
        start, pos = pos + 4, pos + 4 + int.from_bytes(data[pos + 1 : pos + 4], "little")
        if pos > end:
            break
        if kind <= _STORED:
            if pos - start < 4:
                raise CompressionError("snappy chunk is too short for its checksum")
            crc = int.from_bytes(data[start : start + 4], "little")
            parts.append(_decode_chunk(kind, crc, data[start + 4 : pos], limit, taken))
            taken += len(parts[-1])
        elif kind == _IDENTIFIER[0]:
            if data[start - 4 : pos] != _IDENTIFIER:
                raise CompressionError("snappy stream has a damaged identifier")
        elif kind < 0x80:
            raise CompressionError(f"snappy chunk of unknown type {kind:#04x}")
    else:
        raise CompressionError(f"snappy stream of more than {CHUNK_LIMIT} chunks")
    raise CompressionError("snappy stream is cut short")


def _decode_gzip(data: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    left, rest = limit, bytes(data)
    for _ in range(PART_LIMIT):
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            parts.append(member.decompress(rest, left + 1))  # one more shows that it is too large
        except zlib.error as error:
            raise CompressionError(f"gzip data does not decompress: {error}") from error
        left -= len(parts[-1])
        if left < 0:
            raise _too_large(limit)
        if not member.eof:
            raise CompressionError("gzip data is cut short")
        rest = member.unused_data
        if not rest:
            return b"".join(parts)
    raise CompressionError(f"gzip data of more than {PART_LIMIT} members")


_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}


def _decode_zstd(data: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    left, rest = limit, bytes(data)
    for _ in range(PART_LIMIT):
        frame = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
        try:
            parts.append(frame.decompress(rest, left + 1))  # one more shows that it is too large
        except zstd.ZstdError as error:
            raise CompressionError(f"zstd data does not decompress: {error}") from error
        left -= len(parts[-1])
        if left < 0:
            raise _too_large(limit)
        if not frame.eof:
            raise CompressionError("zstd data is cut short")
        rest = frame.unused_data
        if not rest:
            return b"".join(parts)
    raise CompressionError(f"zstd data of more than {PART_LIMIT} frames")


def snappy_frame(data: bytes) -> bytes:
    """Encode a framed snappy stream; a chunk is stored when compression saves under 12.5 %."""
    parts = [_IDENTIFIER]
    for start in range(0, len(data), CHUNK_BYTES):
        plain = data[start : start + CHUNK_BYTES]
        kind, payload = _COMPRESSED, bytes(cramjam.snappy.compress_raw(plain))
        if len(payload) >= len(plain) - len(plain) // 8:
            kind, payload = _STORED, plain
        crc = _masked(crc32c(plain))
        parts += _CHUNK.pack(len(payload) + 4 << 8 | kind, crc), payload
    return b"".join(parts)


def _encode_gzip(data: bytes) -> bytes:
    # Fixed time stamp (0): equal messages make equal bytes.
    return zlib.compress(data, level=6, wbits=16 + zlib.MAX_WBITS)


_CODECS: dict[str, tuple[Decompress, Callable[[bytes], bytes]]] = {
    "identity": (_decode_identity, bytes),
    "gzip": (_decode_gzip, _encode_gzip),
    "snappy": (_decode_snappy, snappy_frame),
    "zstd": (_decode_zstd, zstd.compress),
}

ENCODINGS: Final = tuple(_CODECS)
"""Names as in ``grpc-encoding``."""


def decompressor(encoding: str) -> Decompress:
    """Give the function that decompresses a message of ``encoding``.

    Raises:
        CompressionError: no such encoding; `ENCODINGS` are known.
    """
    return _codec(encoding)[0]


def compressor(encoding: str) -> Callable[[bytes], bytes]:
    """Give the function that compresses a message as ``encoding``.

    Raises:
        CompressionError: no such encoding; `ENCODINGS` are known.
    """
    return _codec(encoding)[1]


def _codec(encoding: str) -> tuple[Decompress, Callable[[bytes], bytes]]:
    try:
        return _CODECS[encoding]
    except KeyError:
        raise CompressionError(f"unknown encoding {encoding!r}") from None
