"""One agent's TLS connection: moves bytes, knows the calls on it, decides nothing about records."""

from collections import deque
from collections.abc import Callable
from os import urandom
from typing import Any
from typing import Protocol as Interface

from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from elkeid.agentcenter.memory import MemoryBudget, Share
from elkeid.agentcenter.slices import Slices
from elkeid.config import AgentCenterSettings
from elkeid.log_limit import LimitedLog
from elkeid.wire.grpc import (
    CallCancelled,
    CallStarted,
    ConnectionEnded,
    Event,
    GrpcServerConnection,
    HalfClosed,
    MessageBegan,
    MessageReceived,
    PingAcked,
    Status,
)

CLOSE_SECONDS = 5.0
"""For a peer to take what is left and say goodbye; then the connection is reset."""

SLICE_SECONDS = 0.01
"""For the messages of one connection in one reactor turn; few reads bring more than 2 ms of work.
Small compressed messages can hold records that take much longer."""

IDLE_SECONDS = 60.0
"""A connection without calls is closed: an agent opens the next one after five seconds."""


class Call(Interface):
    """One gRPC call on a connection."""

    def message(self, compressed: bool, body: bytes) -> None:
        """A whole message has come, still compressed when ``compressed`` is true."""

    def half_closed(self) -> None:
        """The peer sends no more."""

    def leave(self) -> None:
        """This process stops: end the call, and read it to its end."""

    def over(self, cancelled: CallCancelled | None) -> None:
        """Nothing more comes: the call was cancelled, or its connection is gone."""


class Calls(Interface):
    """Where a connection's calls come from; the gateway."""

    complaints: LimitedLog  # about peers

    def connected(self, link: "AgentLink") -> None:
        """The TLS handshake is done."""

    def started(self, link: "AgentLink", event: CallStarted) -> Call:
        """A peer opened a call on a known path."""

    def refused_message(self, reason: str) -> None:
        """A half-sent message ended its call, for this reason, a word."""

    def lost(self, link: "AgentLink", spoke: bool) -> None:
        """The connection is gone; ``spoke`` tells whether its handshake was ever done."""


@implementer(IHandshakeListener, IPushProducer)
class AgentLink(Protocol):
    """Moves bytes between one TLS connection and its gRPC calls.

    Args:
        grpc: the connection's wire state, without I/O.
        calls: makes and forgets calls.
        clock: for the deadlines below.
        monotonic: seconds that only go forward, to bound what one connection does in a turn.
        settings: limits, such as the time for TLS and the first request.
        peer: address and port of the other end, behind a proxy too.
        shaken: called once, when the handshake is over, well or not.
        memory: where large messages take their room.
        slices: where work beyond one slice waits for its turn.
    """

    transport: Any  # TLS, from makeConnection on

    def __init__(
        self,
        grpc: GrpcServerConnection,
        calls: Calls,
        clock: IReactorTime,
        monotonic: Callable[[], float],
        settings: AgentCenterSettings,
        *,
        peer: tuple[str, int],
        shaken: Callable[[], None],
        memory: MemoryBudget,
        slices: Slices,
    ) -> None:
        self.grpc = grpc
        self._calls = calls
        self._clock = clock
        self._monotonic = monotonic
        self._open: dict[int, Call] = {}
        self._blocked = False  # the transport's buffer is full: the wire state keeps its output
        self.peer = peer
        self._shaken = False
        self._tell_shaken: Callable[[], None] | None = shaken
        self._probe: tuple[bytes, IDelayedCall] | None = None
        self._asking: tuple[Callable[[bool], None], ...] = ()
        self._going_away = False  # GOAWAY is sent
        self._closing = False  # and nothing more will be
        self._lost = False
        # Events that wait for the next slice, or for the message that is being unpacked.
        self._backlog: deque[Event] | None = None
        self._kept = 0  # bytes of that message, of the memory budget
        # Of calls whose message is under way; None for none, as in most connections.
        self._watches: dict[int, Callable[[], None]] | None = None
        self._deadline: IDelayedCall | None = None
        self._settings = settings
        self._memory = memory
        self._slices = slices
        # Stream -> room, deadline; None for none.
        self._shares: dict[int, tuple[Share, IDelayedCall]] | None = None
        self._unroomed: Share | None = None  # nothing is read until it is granted
        self.reads = 0
        self.reads_seen = 0  # by the watch for silent peers, as the next
        self.quiet_sweeps = 0

    def connectionMade(self) -> None:
        """Arm the deadline for the handshake."""
        self._deadline = self._clock.callLater(self._settings.handshake_seconds, self._late)
        self.transport.registerProducer(self, True)

    def _late(self) -> None:
        self._deadline = None
        self.abort()

    def handshakeCompleted(self) -> None:
        """Go on only with HTTP/2 agreed on: a peer without it cannot be an agent."""
        self._handshake_over()
        if self.transport.negotiatedProtocol != b"h2":
            self.abort()
            return
        self._shaken = True
        self._calls.connected(self)

    def _handshake_over(self) -> None:
        tell, self._tell_shaken = self._tell_shaken, None
        if tell is not None:
            tell()

    def dataReceived(self, data: bytes) -> None:
        """Hand what has come to the calls, then send what that made us say."""
        self.reads += 1
        if self._closing:
            return
        events = self.grpc.receive_data(data)
        if self._backlog is not None:
            self._backlog.extend(events)
            return
        if len(events) == 1:
            self._act(events[0])
        elif events:
            self._act_in_slices(deque(events))
        self.flush()

    def _act(self, event: object) -> None:
        if type(event) is MessageReceived:
            call = self._open.get(event.stream_id)
            if call is not None:
                call.message(event.compressed, event.body)
            if self._shares:
                self._give_back(event.stream_id)
        else:
            self._rarer(event)

    def _act_in_slices(self, events: deque[Event]) -> None:
        """Act on events in order, and let other connections have their turn in between."""
        began = self._monotonic()
        while events and not self._closing:
            self._act(events.popleft())
            if self._backlog is not None:  # what that one began is not done yet
                self._backlog = events
                return
            if events and self._monotonic() - began > SLICE_SECONDS:
                self._backlog = events
                self.transport.pauseProducing()
                self._slices.add(self._go_on)
                return

    def _go_on(self) -> None:
        """The next slice; after the last one, read on, or hear of the loss of the connection."""
        events, self._backlog = self._backlog, None
        if events:
            self._act_in_slices(events)
        self.flush()
        if self._backlog is not None:
            return
        if self._lost:
            self._end()
        elif not self._closing:
            self._read_on()

    def hold(self, stream_id: int) -> None:
        """Act on nothing more, and read nothing, until `go_on`: a message is being unpacked.

        Args:
            stream_id: of its call, which gave it to who calls this. Its room stays taken.
        """
        self._backlog = deque()
        self.transport.pauseProducing()
        if not self._shares or stream_id not in self._shares:
            return
        share, deadline = self._shares[stream_id]
        if share.waiting:  # all of it came in one read
            self._give_back(stream_id)
            return
        del self._shares[stream_id]
        deadline.cancel()
        self._memory.keep(share)
        self._kept = share.size

    def go_on(self) -> None:
        """Go on after `hold`."""
        kept, self._kept = self._kept, 0
        if kept:
            self._memory.give(kept)
        if self._backlog is not None:  # else the connection was reset meanwhile
            self._go_on()

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._lost

    @property
    def unread(self) -> bool:
        """Whether what the peer sends is left in the kernel for now: its silence says nothing."""
        return self._backlog is not None or self._unroomed is not None

    def _read_on(self) -> None:
        if not self.unread:
            self.transport.resumeProducing()

    # --- large messages

    def _begin_message(self, stream_id: int, size: int) -> None:
        """Take room for a message; without any, read nothing more until there is some."""
        if stream_id not in self._open:
            return
        share = Share(self, stream_id, size)
        settings = self._settings
        deadline = self._clock.callLater(settings.message_seconds, self._overdue, stream_id)
        if self._shares is None:
            self._shares = {}
        others = sum(each.size for each, _ in self._shares.values())
        self._shares[stream_id] = (share, deadline)
        if others:  # a connection that waits could not finish those
            if others + size <= settings.message_bytes and self._memory.take(size):
                self._memory.adopt(share)
                return
            self._break_off(
                stream_id, Status.RESOURCE_EXHAUSTED, "another message is under way", "several"
            )
        elif not self._memory.ask(share):
            self._unroomed = share
            self.transport.pauseProducing()

    def granted(self, share: Share) -> None:
        """There is room for the message that waited."""
        if self._unroomed is share:
            self._unroomed = None
            if not self._closing and not self._lost:
                self._read_on()

    def left(self, share: Share) -> int:
        """Bytes still to come of a message."""
        return self.grpc.message_left(share.stream_id)

    def evict(self, share: Share) -> None:
        """Others wait for the room of a message that does not come."""
        self._break_off(
            share.stream_id,
            Status.RESOURCE_EXHAUSTED,
            "a message that comes too slowly while memory is short",
            "memory",
        )
        self._give_back(share.stream_id)
        self.flush()

    def _overdue(self, stream_id: int) -> None:
        seconds = self._settings.message_seconds
        text = f"a message that is not whole after {seconds:g} s"
        self._break_off(stream_id, Status.DEADLINE_EXCEEDED, text, "deadline")
        self._give_back(stream_id)
        self.flush()

    def _break_off(self, stream_id: int, status: Status, text: str, reason: str) -> None:
        self._calls.refused_message(reason)
        for event in self.grpc.break_off(stream_id, status, text):
            self._act(event)

    def _give_back(self, stream_id: int) -> None:
        if not self._shares or stream_id not in self._shares:
            return
        share, deadline = self._shares.pop(stream_id)
        if deadline.active():
            deadline.cancel()
        self._memory.give_back(share)
        self.granted(share)

    def _rarer(self, event: object) -> None:
        if isinstance(event, MessageBegan):
            self._begin_message(event.stream_id, event.size)
        elif isinstance(event, CallStarted):
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            self._open[event.stream_id] = self._calls.started(self, event)
        elif isinstance(event, HalfClosed):
            call = self._open.get(event.stream_id)
            if call is not None:
                call.half_closed()
        elif isinstance(event, CallCancelled):
            self.forget(event.stream_id, event)
        elif isinstance(event, PingAcked):
            if self._probe is not None and self._probe[0] == event.payload:
                self._probed(True)
        elif isinstance(event, ConnectionEnded):
            if event.error_code:
                self._calls.complaints.info(
                    "{peer}: connection ended: {reason}", peer=self.peer, reason=event.reason
                )
            self._end_calls()  # nothing more can come on them
            self._close()

    def _close(self) -> None:
        """Close once what is left is sent; a peer that does not take it is reset."""
        self._closing = True
        self._flush()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._clock.callLater(CLOSE_SECONDS, self._late)
        self.transport.unregisterProducer()  # TLS does not shut down while there is one
        self.transport.loseConnection()

    def _end_calls(self) -> None:
        self._watches = None
        for stream_id in list(self._shares or ()):
            self._give_back(stream_id)
        for stream_id in list(self._open):
            self._open.pop(stream_id).over(None)

    def _flush(self) -> None:
        out = self.grpc.data_to_send()
        if out:
            self.transport.write(out)
        if self._watches:
            self._tell_watches()

    def flush(self) -> None:
        """Send what was said, unless the transport has enough or the connection is closing."""
        if not self._blocked and not self._closing:
            self._flush()

    @property
    def blocked(self) -> bool:
        """Whether the transport has enough to send: what is said now waits here."""
        return self._blocked or self._closing

    def watch(self, stream_id: int, moved: Callable[[], None] | None) -> None:
        """Call ``moved`` whenever bytes went out, until it is None or the call is over."""
        if moved is None:
            self._unwatch(stream_id)
        else:
            self._watches = {**(self._watches or {}), stream_id: moved}

    def _unwatch(self, stream_id: int) -> None:
        if self._watches is not None:
            self._watches.pop(stream_id, None)

    def _tell_watches(self) -> None:
        for moved in list((self._watches or {}).values()):
            moved()

    def forget(self, stream_id: int, cancelled: CallCancelled | None = None) -> None:
        """A call is over; tell it, if it is still known."""
        self._give_back(stream_id)
        call = self._open.pop(stream_id, None)
        if call is None:
            return
        self._unwatch(stream_id)
        call.over(cancelled)
        if not self._open:
            if self._going_away:
                self._close()
            elif not self._closing:
                self._deadline = self._clock.callLater(IDLE_SECONDS, self._idle)

    def _idle(self) -> None:
        self._deadline = None
        self.go_away()

    def probe(self, seconds: float, answered: Callable[[bool], None]) -> None:
        """Ask the peer for a sign of life; ``answered`` gets whether it came in time."""
        self._asking += (answered,)
        if self._probe is None:  # else the PING under way serves this question too
            payload = urandom(8)
            timer = self._clock.callLater(seconds, self._unanswered, self.reads)
            self._probe = (payload, timer)
            self.grpc.send_ping(payload)
            self.flush()

    def _unanswered(self, reads: int) -> None:
        """No PING came back; anything else that came, or waits unread, is a sign of life."""
        self._probed(self.reads != reads or self.unread)

    def _probed(self, answered: bool) -> None:
        if self._probe is None:
            return
        timer = self._probe[1]
        self._probe = None
        if timer.active():
            timer.cancel()
        asking, self._asking = self._asking, ()
        for tell in asking:
            tell(answered)

    def go_away(self) -> None:
        """Tell the peer to open no more calls here; close once those under way are over."""
        if self._going_away or self._closing:
            return
        self._going_away = True
        self.grpc.send_goaway()
        for call in list(self._open.values()):
            call.leave()
        self.flush()
        if not self._open and not self._closing:
            self._close()

    def abort(self) -> None:
        """Reset the connection: the peer tries its next address at once."""
        if self._backlog is not None:
            self._slices.discard(self._go_on)
            self._backlog = None
        if self._lost:
            self._end()
        else:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell every call, and cancel what waits."""
        self._lost = True
        self._blocked = True
        if self._backlog is None:
            self._end()  # else what had come is acted on first

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._closing = True
        self._end_calls()
        self._probed(False)
        self._handshake_over()
        self._calls.lost(self, self._shaken)

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._blocked = True

    def resumeProducing(self) -> None:
        """The transport's buffer has drained."""
        self._blocked = False
        self._flush()

    def stopProducing(self) -> None:
        """The connection is going away."""
        self._blocked = True
