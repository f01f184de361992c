"""The agents' transport over pairs of sockets, with pyOpenSSL as the client."""

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from elkeid import tls
from elkeid.agentcenter import watch
from elkeid.agentcenter.tls_socket import HELLO_BYTES, UNSENT_BYTES, TlsSocket
from elkeid.tls_engine import ServerTls, TlsBuffers
from tests.project.test_tls import OURS

LISTENER = tls.agent_listener_options(OURS)
BUFFERS = TlsBuffers()
CLIENT = tls.agent_client_options(OURS)
ROUNDS = 400  # of moving bytes, more than any test needs


class Recorder(Protocol):
    """Remembers what its transport tells it."""

    transport: Any

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.shaken = 0
        self.reason: Failure | None = None
        self.fault: Exception | None = None  # to raise when data comes
        self.calls: list[str] = []  # as a producer

    def handshakeCompleted(self) -> None:
        self.shaken += 1

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)
        if self.fault is not None:
            raise self.fault

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert self.reason is None
        self.reason = reason

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class Peer:
    """A client at the other end of a pair of sockets."""

    def __init__(
        self, scene: "Scene", options: tls.ClientOptions = CLIENT, tls_at_once: bool = True
    ) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.setblocking(False)
        self.tls = SSL.Connection(options._context, None)
        self.tls.set_connect_state()
        self.protocol = Recorder()
        self.first = Recorder()
        self.server = TlsSocket(ours, self.first, ("10.0.0.1", 40_000), scene, 0, scene.reactor)
        self.first.makeConnection(self.server)
        if tls_at_once:
            self.start_tls(b"")
        self.got = b""
        self.reading = True
        self.goodbye = self.eof = False
        self._up = b""

    def start_tls(self, held: bytes) -> None:
        """What the door does when the connection's turn has come."""
        self.server.start_tls(ServerTls(LISTENER.connection(), BUFFERS), self.protocol, held)

    def move(self) -> bool:
        """Move bytes between the client and its socket; False when there were none."""
        moved = False
        with contextlib.suppress(SSL.Error):
            self.tls.do_handshake()
        try:
            while True:
                self._up += self.tls.bio_read(65_536)
        except SSL.WantReadError:
            pass
        try:
            if self._up:
                self._up = self._up[self.socket.send(self._up) :]
                moved = True
            if self.reading:
                down = self.socket.recv(65_536)
                self.eof = not down
                if down:
                    self.tls.bio_write(down)
                    moved = True
                while down:
                    self.got += self.tls.recv(65_536)
        except (BlockingIOError, SSL.WantReadError):
            pass
        except SSL.ZeroReturnError:
            self.goodbye = True
        except (OSError, SSL.Error):
            self.eof = True
        return moved


class Turns:
    """Counts turns, which never overlap."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def begin_turn(self) -> None:
        assert self.begun == self.ended
        self.begun += 1

    def end_turn(self) -> None:
        self.ended += 1
        assert self.begun == self.ended


class Scene:
    """Connections, and the reactor behind them."""

    def __init__(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.turns = Turns()
        self.watch = watch.SocketWatch(self.reactor, self.turns, self.reactor.seconds)
        self.peers: list[Peer] = []

    def dial(self, options: tls.ClientOptions = CLIENT) -> Peer:
        """A connection whose handshake is not done."""
        self.peers.append(Peer(self, options))
        return self.peers[-1]

    def meet(self) -> Peer:
        """A connection whose handshake is done."""
        peer = self.dial()
        self.settle()
        assert peer.protocol.shaken == 1
        return peer

    def turn(self) -> None:
        """What the reactor does in one turn, when turns are not close to each other."""
        self.reactor.advance(watch.PAUSE_SECONDS)
        if self.watch in self.reactor.getReaders():
            self.watch.doRead()

    def settle(self) -> None:
        """Go on until nothing moves."""
        for _ in range(ROUNDS):
            moved = [peer.move() for peer in self.peers]
            self.turn()
            if not any(moved) and not self.reactor.getDelayedCalls():
                return
        raise AssertionError("it never ends")

    def close(self) -> None:
        """Let go of all sockets."""
        for peer in self.peers:
            peer.socket.close()
            peer.server.lose(Failure(ConnectionDone()))


class TransportTests(SynchronousTestCase):
    """One connection."""

    def setUp(self) -> None:
        """No connection yet."""
        self.scene = Scene()
        self.addCleanup(self.scene.close)

    def test_interfaces(self) -> None:
        """It is what Twisted's protocols expect of a transport."""
        server = self.scene.meet().server
        for interface in (ITransport, IConsumer, IPushProducer):
            self.assertTrue(verifyObject(interface, server))
        self.assertEqual(server.getPeer().host, "10.0.0.1")

    def test_handshake(self) -> None:
        """The protocol is told of the handshake, with HTTP/2 agreed on, and of no data."""
        peer = self.scene.meet()
        self.assertEqual(peer.server.negotiatedProtocol, b"h2")
        self.assertEqual(peer.protocol.got, [])
        self.assertIn(self.scene.watch, self.scene.reactor.getReaders())

    def test_refused_client(self) -> None:
        """A client without a certificate is told why and left; the protocol hears of its loss."""
        peer = self.scene.dial(tls.client_options(OURS))
        self.scene.settle()
        self.assertEqual(peer.protocol.shaken, 0)
        self.assertIsNotNone(peer.protocol.reason)
        self.assertTrue(peer.eof)
        self.assertEqual(len(self.scene.watch), 0)
        self.assertNotIn(self.scene.watch, self.scene.reactor.getReaders())

    def test_plain_at_first(self) -> None:
        """Until TLS is put in its place, the first protocol gets bytes, few at a time."""
        peer = Peer(self.scene, tls_at_once=False)
        self.scene.peers.append(peer)
        self.assertTrue(peer.move())
        self.scene.turn()
        (hello,) = peer.first.got
        peer.server.pauseProducing()
        peer.socket.send(b"x" * HELLO_BYTES)
        self.scene.turn()
        self.assertEqual(peer.first.got, [hello])
        peer.server.resumeProducing()
        self.scene.turn()
        self.assertEqual(len(peer.first.got[1]), HELLO_BYTES)

    def test_tls_after_the_first_bytes(self) -> None:
        """What the first protocol got begins the handshake; it hears nothing more."""
        peer = Peer(self.scene, tls_at_once=False)
        self.scene.peers.append(peer)
        peer.move()
        self.scene.turn()
        peer.server.pauseProducing()
        peer.start_tls(peer.first.got[0])
        self.scene.settle()
        self.assertEqual(peer.protocol.shaken, 1)
        peer.server.lose(Failure(ConnectionDone()))
        self.assertIsNone(peer.first.reason)
        self.assertIsNotNone(peer.protocol.reason)

    def test_end_before_tls(self) -> None:
        """The first protocol is told of an end, and of a reset that it asked for."""
        gone = Peer(self.scene, tls_at_once=False)
        gone.socket.close()
        turned_away = Peer(self.scene, tls_at_once=False)
        turned_away.server.loseConnection()
        self.scene.peers += [gone, turned_away]
        self.scene.turn()
        assert gone.first.reason is not None
        gone.first.reason.trap(ConnectionDone)
        assert turned_away.first.reason is not None
        turned_away.first.reason.trap(ConnectionAborted)

    def test_peer_that_left_unread(self) -> None:
        """While nothing is read, an end and a reset can still be told from a peer that waits."""
        waits = Peer(self.scene, tls_at_once=False)
        left = Peer(self.scene, tls_at_once=False)
        for each in (waits, left):
            each.server.pauseProducing()
        left.socket.close()
        self.scene.peers.append(waits)
        self.assertFalse(waits.server.peer_left())
        self.assertTrue(left.server.peer_left())
        left.server.abortConnection()
        self.scene.turn()

    def test_both_ways(self) -> None:
        """Data arrives whole and in order; one read's records come in one piece."""
        peer = self.scene.meet()
        peer.tls.send(b"one ")
        peer.tls.send(b"two")
        peer.server.write(b"three ")
        peer.server.writeSequence([b"four", b"", b" five"])
        self.scene.settle()
        self.assertEqual(peer.protocol.got, [b"one two"])
        self.assertEqual(peer.got, b"three four five")

    def test_first_words_with_the_end_of_the_handshake(self) -> None:
        """They are not lost, and the handshake's room is given back behind them."""
        peer = self.scene.dial()
        peer.move()
        self.scene.turn()
        peer.move()
        peer.tls.do_handshake()
        peer.tls.send(b"early")
        self.scene.settle()
        self.assertEqual(peer.protocol.got, [b"early"])
        engine = peer.server._tls
        assert engine is not None
        self.assertIsNone(engine._connection)
        peer.tls.send(b"later")
        peer.server.write(b"answer")
        self.scene.settle()
        self.assertEqual(peer.protocol.got, [b"early", b"later"])
        self.assertEqual(peer.got, b"answer")

    def test_back_pressure(self) -> None:
        """A producer is paused while much waits for the peer, and resumed once it is sent."""
        peer = self.scene.meet()
        peer.server.registerProducer(peer.protocol, True)
        peer.reading = False
        sent = b""
        while "pause" not in peer.protocol.calls:
            data = os.urandom(50_000)
            peer.server.write(data)
            sent += data
        self.assertGreater(len(sent), UNSENT_BYTES)
        self.scene.settle()
        self.assertEqual(peer.protocol.calls, ["pause"])
        peer.reading = True
        self.scene.settle()
        self.assertEqual(peer.protocol.calls, ["pause", "resume"])
        self.assertEqual(peer.got, sent)

    def test_producers(self) -> None:
        """Only one, only one that pushes; a lost connection stops it at once."""
        peer = self.scene.meet()
        with self.assertRaises(RuntimeError):
            peer.server.registerProducer(peer.protocol, False)
        peer.server.registerProducer(peer.protocol, True)
        with self.assertRaises(RuntimeError):
            peer.server.registerProducer(peer.protocol, True)
        peer.server.lose(Failure(ConnectionDone()))
        self.assertEqual(peer.protocol.calls, ["stop"])
        peer.server.registerProducer(peer.protocol, True)
        self.assertEqual(peer.protocol.calls, ["stop", "stop"])

    def test_paused_reading(self) -> None:
        """Nothing is read while the protocol asks for nothing; then all of it."""
        peer = self.scene.meet()
        peer.server.pauseProducing()
        peer.tls.send(b"waits")
        self.scene.settle()
        self.assertEqual(peer.protocol.got, [])
        peer.server.resumeProducing()
        self.scene.settle()
        self.assertEqual(peer.protocol.got, [b"waits"])

    def test_peer_says_goodbye(self) -> None:
        """Its last data is delivered, then both sides are closed in order."""
        peer = self.scene.meet()
        peer.tls.send(b"last")
        peer.tls.shutdown()
        self.scene.settle()
        self.assertEqual(peer.protocol.got, [b"last"])
        assert peer.protocol.reason is not None
        peer.protocol.reason.trap(ConnectionDone)
        self.assertTrue(peer.goodbye)

    def test_peer_vanishes(self) -> None:
        """An end without a goodbye is a lost connection."""
        peer = self.scene.meet()
        peer.socket.shutdown(socket.SHUT_WR)
        self.scene.settle()
        assert peer.protocol.reason is not None
        peer.protocol.reason.trap(ConnectionLost)

    def test_lose_connection(self) -> None:
        """The peer gets the rest and a goodbye; until its own, it is read."""
        peer = self.scene.meet()
        rest = os.urandom(300_000)
        peer.server.write(rest)
        peer.server.loseConnection()
        peer.server.write(b"too late")
        peer.tls.send(b"meanwhile")
        for _ in range(ROUNDS):
            peer.move()
            self.scene.turn()
        self.assertEqual(peer.got, rest)
        self.assertTrue(peer.goodbye)
        self.assertEqual(peer.protocol.got, [b"meanwhile"])
        self.assertIsNone(peer.protocol.reason)
        peer.tls.shutdown()
        self.scene.settle()
        assert peer.protocol.reason is not None
        peer.protocol.reason.trap(ConnectionDone)

    def test_lose_connection_waits_for_the_producer(self) -> None:
        """What a producer still has to say is sent before the goodbye."""
        peer = self.scene.meet()
        peer.server.registerProducer(peer.protocol, True)
        peer.server.loseConnection()
        peer.server.write(b"still")
        self.scene.settle()
        self.assertFalse(peer.goodbye)
        peer.server.unregisterProducer()
        self.scene.settle()
        self.assertEqual(peer.got, b"still")
        self.assertTrue(peer.goodbye)

    def test_before_the_handshake(self) -> None:
        """Nothing can be written, and closing is a reset."""
        peer = self.scene.dial()
        with self.assertRaises(RuntimeError):
            peer.server.write(b"x")
        peer.server.loseConnection()
        self.scene.turn()
        assert peer.protocol.reason is not None
        peer.protocol.reason.trap(ConnectionAborted)

    def test_abort(self) -> None:
        """Nothing is delivered or sent any more; the protocol is told in the next turn."""
        peer = self.scene.meet()
        peer.server.registerProducer(peer.protocol, True)
        peer.tls.send(b"never read")
        peer.move()
        peer.server.abortConnection()
        peer.server.abortConnection()
        peer.server.write(b"never sent")
        self.assertIsNone(peer.protocol.reason)
        self.scene.settle()
        self.assertEqual(peer.protocol.got, [])
        self.assertEqual(peer.got, b"")
        assert peer.protocol.reason is not None
        peer.protocol.reason.trap(ConnectionAborted)
        self.assertEqual(peer.protocol.calls, ["stop"])

    def test_abort_within_delivery(self) -> None:
        """A protocol may reset the connection while it is given data."""
        peer = self.scene.meet()
        self.patch(peer.protocol, "dataReceived", lambda _: peer.server.abortConnection())
        peer.tls.send(b"x")
        peer.tls.shutdown()
        self.scene.settle()
        assert peer.protocol.reason is not None
        peer.protocol.reason.trap(ConnectionAborted)

    def test_reset_while_nobody_reads(self) -> None:
        """A write to a peer that is gone ends the connection, even while reading is paused."""
        peer = self.scene.meet()
        peer.server.pauseProducing()
        peer.socket.close()
        peer.server.write(b"x")
        self.assertIsNone(peer.protocol.reason)
        self.scene.turn()
        assert peer.protocol.reason is not None
        peer.protocol.reason.trap(ConnectionLost)

    def test_gone_while_much_waits(self) -> None:
        """A peer that goes while it is sent to is noticed, even while reading is paused."""
        peer = self.scene.meet()
        peer.server.pauseProducing()
        peer.server.write(os.urandom(2_000_000))
        peer.socket.close()
        self.scene.turn()
        assert peer.protocol.reason is not None
        peer.protocol.reason.trap(ConnectionLost)

    def test_damaged_data(self) -> None:
        """A connection with a broken record is left with an alert."""
        peer = self.scene.meet()
        peer.socket.send(struct.pack(">BHH", 23, 0x0303, 50) + bytes(50))
        self.scene.settle()
        self.assertEqual(peer.protocol.got, [])
        self.assertIsNotNone(peer.protocol.reason)
        self.assertTrue(peer.eof)

    def test_failing_protocol(self) -> None:
        """A protocol that fails loses its connection; others are served, and it is logged."""
        peer, other = self.scene.meet(), self.scene.meet()
        peer.protocol.fault = ZeroDivisionError("a bug")
        peer.tls.send(b"x")
        other.tls.send(b"y")
        self.scene.settle()
        assert peer.protocol.reason is not None
        peer.protocol.reason.trap(ZeroDivisionError)
        self.assertEqual(other.protocol.got, [b"y"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.scene.turns.begun, self.scene.turns.ended)

    def test_reactor_lets_go(self) -> None:
        """When the reactor drops its readers, every connection is lost."""
        peers = [self.scene.meet(), self.scene.meet()]
        self.scene.watch.connectionLost(Failure(ConnectionLost()))
        for peer in peers:
            assert peer.protocol.reason is not None
        self.assertEqual(len(self.scene.watch), 0)


class Ready:
    """A watched socket that says how much it read."""

    def __init__(self, read: int, cost: Callable[[], object] = lambda: None) -> None:
        self._cost = cost
        self.pair = socket.socketpair()
        self.pair[1].send(b"x")
        self.number = self.pair[0].fileno()
        self.served = 0
        self._read = read

    def ready(self, events: int) -> int:
        self.served += 1
        self._cost()
        return self._read

    def lose(self, reason: Failure) -> None:
        raise AssertionError(reason)

    def close(self) -> None:
        for each in self.pair:
            each.close()


class WatchTests(SynchronousTestCase):
    """Turns."""

    def test_budget_of_a_turn(self) -> None:
        """A turn ends when enough was read; who was left out goes first in the next one."""
        reactor: Any = MemoryReactorClock()
        many = watch.SocketWatch(reactor, Turns())
        sockets = [Ready(watch.TURN_BYTES // 2) for _ in range(5)]
        for each in sockets:
            self.addCleanup(each.close)
            many.add(each.number, each, watch.READABLE)
        for served in (2, 4, 5, 7, 9):
            many.doRead()
            counts = [each.served for each in sockets]
            self.assertEqual(sum(counts), served)
            self.assertLessEqual(max(counts) - min(counts), 1)
        self.assertEqual(many.cut, 4)
        for each in sockets:
            many.remove(each.number, watch.READABLE)
        self.assertNotIn(many, reactor.getReaders())

    def test_time_of_a_turn(self) -> None:
        """Small reads that hold much work end a turn by what they took."""
        reactor: Any = MemoryReactorClock()
        many = watch.SocketWatch(reactor, Turns(), reactor.seconds)
        sockets = [Ready(10, lambda: reactor.advance(watch.TURN_SECONDS * 0.6)) for _ in range(3)]
        for each in sockets:
            self.addCleanup(each.close)
            many.add(each.number, each, watch.READABLE)
        many.doRead()
        self.assertEqual(sorted(each.served for each in sockets), [0, 1, 1])
        many.doRead()
        self.assertEqual([each.served for each in sockets], [1, 1, 1])

    def busy(
        self, late: Callable[[], float] = lambda: 0.0
    ) -> tuple[Any, watch.SocketWatch, Ready, Turns]:
        """A watch with one socket, which was ready so often that the pause is kept."""
        reactor: Any = MemoryReactorClock()
        turns = Turns()
        one = watch.SocketWatch(reactor, turns, lambda: reactor.seconds() + late())
        ready = Ready(1)
        self.addCleanup(ready.close)
        one.add(ready.number, ready, watch.READABLE)
        while one in reactor.getReaders():
            one.doRead()
        return reactor, one, ready, turns

    def test_busy_turns_keep_a_pause(self) -> None:
        """Turns that follow closely are spaced by a timer, until one finds nothing."""
        reactor, one, ready, turns = self.busy()
        served = ready.served
        self.assertEqual(served, watch.BUSY_TURNS)
        for _ in range(3):
            reactor.advance(watch.PAUSE_SECONDS * 0.99)
            self.assertEqual(ready.served, served)
            reactor.advance(watch.PAUSE_SECONDS * 0.02)
            served += 1
            self.assertEqual(ready.served, served)
        ready.pair[0].recv(1)
        reactor.advance(watch.PAUSE_SECONDS)
        self.assertEqual(ready.served, served)
        self.assertIn(one, reactor.getReaders())
        self.assertEqual(reactor.getDelayedCalls(), [])
        self.assertEqual(turns.ended, served + 1)

    def test_sparse_turns_keep_none(self) -> None:
        """Turns that are far apart begin as soon as there is something."""
        reactor: Any = MemoryReactorClock()
        one = watch.SocketWatch(reactor, Turns(), reactor.seconds)
        ready = Ready(1)
        self.addCleanup(ready.close)
        one.add(ready.number, ready, watch.READABLE)
        for _ in range(3 * watch.BUSY_TURNS):
            one.doRead()
            reactor.advance(watch.PAUSE_SECONDS)
        self.assertIn(one, reactor.getReaders())
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_long_turns_follow_at_once(self) -> None:
        """A turn that took longer than the pause is followed by the next without one."""
        late = 0.0
        reactor, _, ready, _ = self.busy(lambda: late)

        def take_long() -> None:
            nonlocal late
            late += watch.PAUSE_SECONDS * 2
            ready._cost = lambda: None

        ready._cost = take_long
        served = ready.served
        reactor.advance(watch.PAUSE_SECONDS)
        self.assertEqual(ready.served, served + 2)

    def test_last_socket_leaves_during_the_pause(self) -> None:
        """Without a socket nothing is left behind; with the next, the reactor watches."""
        reactor, one, ready, _ = self.busy()
        one.remove(ready.number, watch.READABLE)
        self.assertEqual(reactor.getDelayedCalls(), [])
        self.assertNotIn(one, reactor.getReaders())
        one.add(ready.number, ready, watch.READABLE)
        self.assertIn(one, reactor.getReaders())

    def test_sockets_change_within_a_spaced_turn(self) -> None:
        """One that leaves as another comes: there is one next turn, never two."""
        reactor, one, ready, _ = self.busy()

        def renew() -> None:
            one.remove(ready.number, watch.READABLE)
            one.add(ready.number, ready, watch.READABLE)

        ready._cost = renew
        reactor.advance(watch.PAUSE_SECONDS)
        self.assertNotIn(one, reactor.getReaders())
        self.assertEqual(len(reactor.getDelayedCalls()), 1)

    def test_failed_turn_is_not_the_last(self) -> None:
        """When what follows a turn fails, the reactor watches again."""
        reactor, one, _, turns = self.busy()
        turns.begun += 1  # so that the next is refused
        with self.assertRaises(AssertionError):
            reactor.advance(watch.PAUSE_SECONDS)
        self.assertIn(one, reactor.getReaders())
        self.assertEqual(reactor.getDelayedCalls(), [])
