"""The server side of TLS for connections that carry many small messages: bytes in, bytes out.

pyOpenSSL's `SSL.Connection` takes a fresh buffer for each call and raises an exception to say
"no more", which costs more than the decryption of a small message. `ServerTls` makes the same
calls of OpenSSL on buffers that all connections share, and tells by a number how much is left.
The handshake, which is rare and has callbacks, stays pyOpenSSL's.

It reaches below pyOpenSSL's public names (its library object, and the pointers of a connection);
this is the only module that does.
"""

from typing import Any, Final

from OpenSSL import SSL

from elkeid.errors import PeerError

RECORD_BYTES: Final = 16_384
"""Plain text of one TLS record, at most."""

RECEIVE_BYTES: Final = 65_536
"""Of cipher text, read from a socket at once."""

FEED_BYTES: Final = RECORD_BYTES
"""Cipher text handed to OpenSSL at once. What it is handed in one piece, it keeps the room for,
as long as the connection lasts."""

_SPARE_BYTES: Final = 2 * RECORD_BYTES
"""Room for the plain text of what came before and of a record's overhead."""

_lib: Any = SSL._lib  # type: ignore[attr-defined]
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]
_NULL: Any = _ffi.NULL
_bio_write, _bio_read, _bio_pending = _lib.BIO_write, _lib.BIO_read, _lib.BIO_get_mem_data
_ssl_read, _ssl_write, _unpack = _lib.SSL_read, _lib.SSL_write, _ffi.unpack


class TlsBroken(PeerError):
    """What came is no TLS, or not of this connection; nothing more can be read from it."""

    def __init__(self) -> None:
        super().__init__("the TLS connection is broken")


class TlsBuffers:
    """Room that all connections of a reactor share: each is done with it when a call returns."""

    __slots__ = ("_cipher", "_plain", "received")

    def __init__(self) -> None:
        room = bytearray(RECEIVE_BYTES)
        self.received = memoryview(room)
        self._cipher = _ffi.from_buffer("char[]", room)
        self._plain = _ffi.new("char[]", RECEIVE_BYTES + _SPARE_BYTES)


class ServerTls:
    """One connection.

    Put cipher text in the buffers and call `handshake` until it says that it is done, then
    `decrypt`; send what `output` gives after each call.

    Args:
        connection: without a socket; not used by others any more.
        buffers: shared.
    """

    __slots__ = (
        "_buffers",
        "_connection",
        "_incoming",
        "_outgoing",
        "_ssl",
        "buffer",
        "peer_closed",
    )

    def __init__(self, connection: SSL.Connection, buffers: TlsBuffers) -> None:
        own: Any = connection
        connection.set_accept_state()
        self._buffers = buffers
        self.buffer = buffers.received  # where cipher text is put
        self._connection: SSL.Connection | None = connection  # while there is a handshake
        self._ssl, self._incoming, self._outgoing = own._ssl, own._into_ssl, own._from_ssl
        self.peer_closed = False  # the peer said that it sends no more

    def handshake(self, size: int) -> bool:
        """Go on with ``size`` bytes in the buffer; tell whether the handshake is done.

        Raises:
            SSL.Error: it failed; `output` may have an alert that says why.
        """
        cipher = self._buffers._cipher
        if size and _bio_write(self._incoming, cipher, size) != size:
            raise MemoryError
        assert self._connection is not None
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        return True

    def forget_handshake(self) -> None:
        """Give back the room that the handshake's messages took, unless something waits there."""
        if self._connection is None:
            return
        if _bio_pending(self._incoming, _NULL) or _bio_pending(self._outgoing, _NULL):
            return
        incoming, outgoing = _lib.BIO_new(_lib.BIO_s_mem()), _lib.BIO_new(_lib.BIO_s_mem())
        if _NULL in {incoming, outgoing}:
            raise MemoryError
        _lib.SSL_set_bio(self._ssl, incoming, outgoing)  # which frees the old ones
        self._incoming, self._outgoing = incoming, outgoing
        self._connection = None  # what it points to is ours now

    @property
    def protocol(self) -> bytes | None:
        """The protocol agreed on by ALPN; None for none, and once the handshake is forgotten."""
        connection = self._connection
        return None if connection is None else connection.get_alpn_proto_negotiated() or None

    def decrypt(self, size: int) -> bytes:
        """Give all the plain text that ``size`` more bytes in the buffer complete.

        Args:
            size: at most `RECEIVE_BYTES`; 0 asks for what the handshake left.

        Raises:
            TlsBroken: and what came before the breach is lost.
        """
        buffers, incoming, ssl = self._buffers, self._incoming, self._ssl
        cipher, plain = buffers._cipher, buffers._plain
        at = filled = 0
        while True:
            more = size - at
            if more:
                more = min(more, FEED_BYTES)
                if _bio_write(incoming, cipher + at if at else cipher, more) != more:
                    raise MemoryError
                at += more
            while True:
                got = _ssl_read(ssl, plain + filled if filled else plain, RECORD_BYTES)
                if got <= 0:
                    self._explain(got)
                    break
                filled += got
                # A record is never given in parts, so nothing is left in OpenSSL itself.
                if not _bio_pending(incoming, _NULL):
                    break
            if at == size:
                return _unpack(plain, filled) if filled else b""

    def _explain(self, result: int) -> None:
        error = _lib.SSL_get_error(self._ssl, result)
        if error == _lib.SSL_ERROR_WANT_READ:
            return
        if error == _lib.SSL_ERROR_ZERO_RETURN:
            self.peer_closed = True
            return
        _lib.ERR_clear_error()
        raise TlsBroken

    def encrypt(self, data: bytes) -> bytes:
        """Give the cipher text of ``data``, and whatever else is to be sent.

        Raises:
            TlsBroken: nothing can be sent any more.
        """
        if len(data) <= RECORD_BYTES:
            self._encrypt_record(data)
            return self.output()
        parts = []
        for at in range(0, len(data), RECORD_BYTES):
            self._encrypt_record(data[at : at + RECORD_BYTES])
            parts.append(self.output())  # one by one: OpenSSL keeps the room for what waits
        return b"".join(parts)

    def _encrypt_record(self, data: bytes) -> None:
        if data and _ssl_write(self._ssl, _ffi.from_buffer(data), len(data)) != len(data):
            _lib.ERR_clear_error()
            raise TlsBroken

    def output(self) -> bytes:
        """Take the cipher text that is to be sent."""
        outgoing = self._outgoing
        waiting = _bio_pending(outgoing, _NULL)
        if not waiting:
            return b""
        plain = self._buffers._plain
        parts = []
        while waiting > 0:
            got = _bio_read(outgoing, plain, min(waiting, RECEIVE_BYTES))
            if got <= 0:
                break
            parts.append(_unpack(plain, got))
            waiting -= got
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def shutdown(self) -> bool:
        """Say that we send no more; tell whether the peer has said so too."""
        result = _lib.SSL_shutdown(self._ssl)
        if result < 0:  # before the handshake is done, or after it failed
            _lib.ERR_clear_error()
        return bool(result > 0)
