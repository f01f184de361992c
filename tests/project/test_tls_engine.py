"""The server's TLS engine, against pyOpenSSL as the client, in memory."""

import contextlib
import os

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from elkeid import tls
from elkeid.tls_engine import RECEIVE_BYTES, RECORD_BYTES, ServerTls, TlsBroken, TlsBuffers
from tests.project.test_tls import OURS, changed_client

LISTENER = tls.agent_listener_options(OURS)
CLIENT = tls.agent_client_options(OURS)
OLDER = changed_client(lambda context: context.set_max_proto_version(SSL.TLS1_2_VERSION))
BUFFERS = TlsBuffers()


def taken(client: SSL.Connection) -> bytes:
    """All that a client has to send."""
    got = b""
    while True:
        try:
            got += client.bio_read(65_536)
        except SSL.WantReadError:
            return got


class Pair:
    """A client, and the engine that serves it."""

    def __init__(self, options: tls.ClientOptions = CLIENT) -> None:
        self.client = SSL.Connection(options._context, None)
        self.client.set_connect_state()
        self.server = ServerTls(LISTENER.connection(), BUFFERS)

    def put(self, cipher: bytes) -> int:
        """Leave cipher text in the buffer."""
        self.server.buffer[: len(cipher)] = cipher
        return len(cipher)

    def shake(self, step: int = RECEIVE_BYTES) -> None:
        """Do the handshake, the client's part of it ``step`` bytes at a time."""
        done = False
        for _ in range(4):
            with contextlib.suppress(SSL.WantReadError):
                self.client.do_handshake()
            up = taken(self.client)
            for at in range(0, len(up), step):
                assert not done
                done = self.server.handshake(self.put(up[at : at + step]))
                down = self.server.output()
                if down:
                    self.client.bio_write(down)
        assert done

    def decrypted(self, cipher: bytes, step: int) -> bytes:
        """What the engine makes of cipher text that comes in pieces."""
        got = b""
        for at in range(0, len(cipher), step):
            got += self.server.decrypt(self.put(cipher[at : at + step]))
        return got


class EngineTests(SynchronousTestCase):
    """What goes in comes out, however it is cut."""

    def test_handshake_in_pieces(self) -> None:
        """The handshake is done once its last byte has come, and the protocol is agreed on."""
        for options in (CLIENT, OLDER):
            pair = Pair(options)
            pair.shake(step=7)
            self.assertEqual(pair.server.protocol, b"h2")

    def test_room_of_the_handshake(self) -> None:
        """Giving it back changes nothing for data, and nothing that waits is lost by it."""
        pair = Pair()
        pair.shake()
        pair.client.send(b"waits")
        cipher = taken(pair.client)
        SSL._lib.BIO_write(pair.server._incoming, cipher, len(cipher))  # type: ignore[attr-defined]
        for _ in range(3):  # the first time something waits, the third nothing is to be given back
            pair.server.forget_handshake()
            self.assertEqual(pair.server.decrypt(0), b"waits" if pair.server._connection else b"")
        pair.client.send(b"up")
        self.assertEqual(pair.decrypted(taken(pair.client), 5), b"up")
        pair.client.bio_write(pair.server.encrypt(b"down"))
        self.assertEqual(pair.client.recv(100), b"down")

    def test_data_behind_the_handshake(self) -> None:
        """What comes with the last bytes of the handshake is not forgotten."""
        pair = Pair()
        with self.assertRaises(SSL.WantReadError):
            pair.client.do_handshake()
        self.assertFalse(pair.server.handshake(pair.put(taken(pair.client))))
        pair.client.bio_write(pair.server.output())
        pair.client.do_handshake()
        pair.client.send(b"early")
        self.assertTrue(pair.server.handshake(pair.put(taken(pair.client))))
        self.assertEqual(pair.server.decrypt(0), b"early")
        self.assertEqual(pair.server.decrypt(0), b"")

    @settings(max_examples=40, deadline=None)
    @given(
        sizes=st.lists(st.integers(1, 40_000), max_size=8),
        step=st.integers(1, RECEIVE_BYTES),
        older=st.booleans(),
    )
    def test_all_cuts(self, sizes: list[int], step: int, older: bool) -> None:
        """Records of any size, cut anywhere, give the same plain text, both ways."""
        pair = Pair(OLDER if older else CLIENT)
        pair.shake()
        texts = [os.urandom(size) for size in sizes]
        cipher = b""
        for text in texts:
            for at in range(0, len(text), RECORD_BYTES):
                pair.client.send(text[at : at + RECORD_BYTES])
            cipher += taken(pair.client)
        step = max(step, len(cipher) // 500 + 1)  # at most 500 pieces
        self.assertEqual(pair.decrypted(cipher, step), b"".join(texts))
        got = b""
        for text in texts:
            pair.client.bio_write(pair.server.encrypt(text))
            while True:
                try:
                    got += pair.client.recv(65_536)
                except SSL.WantReadError:
                    break
        self.assertEqual(got, b"".join(texts))

    def test_full_reads(self) -> None:
        """Reads as large as can be, of many small records, fit the room for their plain text."""
        pair = Pair()
        pair.shake()
        count = 2_000
        for _ in range(count):
            pair.client.send(b"x" * 100)
        cipher = taken(pair.client)
        self.assertGreater(len(cipher), 3 * RECEIVE_BYTES)
        self.assertEqual(pair.decrypted(cipher, RECEIVE_BYTES), b"x" * 100 * count)

    def test_goodbye(self) -> None:
        """The peer's goodbye is noticed behind its last data; ours makes both sides down."""
        pair = Pair()
        pair.shake()
        pair.client.send(b"last")
        pair.client.shutdown()
        self.assertEqual(pair.decrypted(taken(pair.client), RECEIVE_BYTES), b"last")
        self.assertTrue(pair.server.peer_closed)
        self.assertTrue(pair.server.shutdown())
        pair.client.bio_write(pair.server.output())
        with self.assertRaises(SSL.ZeroReturnError):
            pair.client.recv(1)

    def test_our_goodbye_first(self) -> None:
        """Both sides are down only once the peer has answered."""
        pair = Pair()
        pair.shake()
        self.assertFalse(pair.server.shutdown())
        pair.client.bio_write(pair.server.output())
        self.assertFalse(pair.server.peer_closed)
        pair.client.shutdown()
        pair.decrypted(taken(pair.client), RECEIVE_BYTES)
        self.assertTrue(pair.server.shutdown())

    def test_damaged_record(self) -> None:
        """A changed byte breaks the connection, and an alert says so; others are not touched."""
        pair, other = Pair(), Pair()
        pair.shake()
        other.shake()
        pair.client.send(b"payload")
        cipher = bytearray(taken(pair.client))
        cipher[-1] ^= 1
        with self.assertRaises(TlsBroken):
            pair.server.decrypt(pair.put(bytes(cipher)))
        self.assertNotEqual(pair.server.output(), b"")
        with self.assertRaises(TlsBroken):
            pair.server.encrypt(b"more")
        other.client.send(b"fine")
        self.assertEqual(other.decrypted(taken(other.client), 1000), b"fine")

    def test_no_tls_at_all(self) -> None:
        """Rubbish fails the handshake."""
        pair = Pair()
        with self.assertRaises(SSL.Error):
            pair.server.handshake(pair.put(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100))

    def test_shutdown_before_the_handshake(self) -> None:
        """It says nothing, and raises nothing."""
        self.assertFalse(Pair().server.shutdown())
