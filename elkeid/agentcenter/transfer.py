"""One Transfer call: an agent's stream of records, from its first message to its end."""

from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from elkeid.agentcenter.arrivals import Arrivals
from elkeid.agentcenter.heartbeats import HEARTBEAT_BYTES, HEARTBEATS, PLUGIN_LIMIT
from elkeid.agentcenter.identity import (
    DERIVED_PREFIX,
    HEADER_BYTES,
    HEADER_FREE_BYTES,
    ID_BYTES,
    derived_id,
    header_bytes,
    usable_id,
)
from elkeid.agentcenter.link import AgentLink
from elkeid.agentcenter.rates import ClassBudget, FlowBudget
from elkeid.agentcenter.table import Claim
from elkeid.errors import WireError
from elkeid.wire.command import COMMAND_BYTES
from elkeid.wire.compression import MessageTooLarge, compressor, decompressor
from elkeid.wire.datatypes import TASK_RESULTS
from elkeid.wire.grpc import CallCancelled, Progress, Status
from elkeid.wire.protobuf import TooManyFields
from elkeid.wire.rawdata import Header, Packet, split

if TYPE_CHECKING:
    from elkeid.agentcenter.gateway import Gateway

WAITING_HEARTBEATS = 64
"""Kept from a newcomer while the holder is probed; one real batch has a few."""


class State(Enum):
    """Where a stream stands."""

    FIRST = auto()  # nothing came yet
    CLAIMING = auto()  # another address holds the id and is being probed
    HOLDER = auto()  # the agent of its id
    ENDED = auto()  # told its end; what still comes is kept, nothing of it is applied
    OVER = auto()


class TransferStream:
    """One agent's stream.

    What it brings is appended in every state but the last; only the holder's heartbeats count.
    """

    __slots__ = (
        "_decompress",
        "_encoding",
        "_flow",
        "_flow_timer",
        "_gateway",
        "_half_closed",
        "_header_bytes",
        "_held",
        "_held_bytes",
        "_link",
        "_log_failures",
        "_pauses",
        "_state",
        "_stream_id",
        "_timer",
        "_waiting",
        "_waiting_bytes",
        "_waiting_results",
        "_wire_id",
        "admitted",
        "agent_id",
        "arrivals",
        "budget",
        "complained",
        "dropped",
        "header",
        "peer_addr",
        "peer_host",
        "tags",
        "turned_away",
    )

    def __init__(self, gateway: "Gateway", link: AgentLink, stream_id: int, encoding: str) -> None:
        self._gateway = gateway
        self._link = link
        self._stream_id = stream_id
        self._decompress = decompressor(encoding)
        self._encoding = encoding
        self._state = State.FIRST
        self._log_failures = gateway.event_log.failures
        self._waiting: tuple[tuple[Header, int, bytes], ...] = ()
        self._waiting_results: tuple[tuple[int, bytes], ...] = ()
        self._waiting_bytes = 0  # of both, taken from the memory budget
        self._flow = FlowBudget(gateway.settings, gateway.monotonic())
        self._flow_timer: IDelayedCall | None = None  # until it is within its budget again
        self._pauses = 0  # reasons why its window is not refilled
        self._wire_id = b""
        self.admitted = False  # has a place under the connection limit
        self.turned_away = False  # was refused before it could claim its id
        self.agent_id = ""
        self.header: Header | None = None
        self._header_bytes = 0  # taken from the memory budget for it
        self.budget: ClassBudget | None = None
        self.complained = False  # the log has a line about its heartbeats
        self.dropped = 0  # records of this stream above its rates
        self.tags = b""
        self.arrivals = Arrivals()
        self._held: list[tuple[Header, Packet]] | None = None  # batches that wait for tags
        self._held_bytes = 0
        self._half_closed = False  # meanwhile
        host, port = link.peer
        self.peer_host = host
        self.peer_addr = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._timer: IDelayedCall | None = gateway.clock.callLater(
            gateway.settings.first_message_seconds, self._silent
        )

    # --- what the peer does

    def message(self, compressed: bool, body: bytes) -> None:
        """Take one message, a batch of records."""
        gateway = self._gateway
        gateway.counters.messages += 1
        try:
            data = self._decompress(body, gateway.inline_bytes) if compressed else body
            packet = split(data, self.header)
        except MessageTooLarge as error:
            if gateway.inline_bytes < gateway.settings.decompressed_bytes:
                self._unpack(body)
            else:
                self._refuse(error)
        except WireError as error:
            self._refuse(error)
        else:
            self._receive(packet, len(data))

    def _unpack(self, body: bytes) -> None:
        """Take a large message, once a thread has unpacked it; nothing overtakes it."""
        decompress, limit = self._decompress, self._gateway.settings.decompressed_bytes
        known = self.header

        def work() -> tuple[Packet, int]:
            data = decompress(body, limit)
            return split(data, known), len(data)

        self._link.hold(self._stream_id)
        self._gateway.unpacker.unpack(work, self._unpacked)

    def _unpacked(self, result: tuple[Packet, int] | Failure) -> None:
        if self._state is not State.OVER:  # else it was reset, or reading came to its end
            try:
                if isinstance(result, Failure):
                    result.raiseException()
                self._receive(*result)
            except WireError as error:
                self._refuse(error)
            except Exception:
                self._gateway.log.failure("a message is lost by a fault of ours")
                self._link.abort()
        self._link.go_on()

    def _refuse(self, error: WireError) -> None:
        exhausted = isinstance(error, MessageTooLarge | TooManyFields)
        self._violate(Status.RESOURCE_EXHAUSTED if exhausted else Status.INTERNAL, str(error))

    def _receive(self, packet: Packet, size: int) -> None:
        """Take a batch of ``size`` bytes."""
        gateway = self._gateway
        header = packet.header
        if header is not self.header:
            if not self._introduce(header):
                return
            if self.agent_id.startswith(DERIVED_PREFIX):
                header = header.with_agent_id(self.agent_id.encode())
            self.header = header
        if gateway.per_agent is not None:
            gateway.per_agent.count(self.agent_id, packet.count)
        flow = self._flow
        flow.records -= packet.count
        flow.octets -= size
        if flow.records < gateway.flow_floor[0] or flow.octets < gateway.flow_floor[1]:
            self._slow_down()
        if self._held is not None and self._hold(header, packet, size):
            return
        self._take(header, packet)

    def _slow_down(self) -> None:
        """Refill the window no more while the stream is beyond its budget."""
        gateway = self._gateway
        seconds = self._flow.refill(gateway.monotonic())
        if seconds <= 0 or self._flow_timer is not None:
            return
        gateway.counters.over_budget += 1
        self._pause()
        self._flow_timer = gateway.clock.callLater(seconds, self._flow_on)

    def _flow_on(self) -> None:
        self._flow_timer = None
        seconds = self._flow.refill(self._gateway.monotonic())
        if seconds > 0:  # a window's worth came meanwhile
            self._flow_timer = self._gateway.clock.callLater(seconds, self._flow_on)
            return
        self._resume()
        self._link.flush()

    def _pause(self) -> None:
        self._pauses += 1
        self._link.grpc.pause_call(self._stream_id)

    def _resume(self) -> None:
        self._pauses -= 1
        if not self._pauses:
            self._link.grpc.resume_call(self._stream_id)

    def _take(self, header: Header, packet: Packet) -> None:
        if packet.special:  # results first: they are on disk no later than their records
            self._hand_on_results(packet)
        passed = self._gateway.intake.append(self, header, packet)
        if packet.special and passed:
            self._apply(header, packet, passed)
        if self.arrivals.news:
            self.arrivals.news = False
            self._gateway.news(self)

    def _find_tags(self) -> None:
        """Go on with the tags that are known, or wait for those of an unknown agent."""
        book = self._gateway.tags
        if book is None:
            return
        tags = book.tags_of(self.agent_id)
        if tags is not None:
            self.tags = tags
        elif self._state in (State.HOLDER, State.CLAIMING) and book.wait(self):
            self._held = []

    def _hold(self, header: Header, packet: Packet, size: int) -> bool:
        """Keep a batch until its tags are known; False when there is no room."""
        book = self._gateway.tags
        if book is None or self._held is None or not book.hold(self, size):
            return False
        self._held.append((header, packet))
        self._held_bytes += size
        return True

    def tagged(self, tags: bytes) -> None:
        """The tags are known, or not to be had in time: go on with what waits for them."""
        self.tags = tags
        self._append_held()
        if self._half_closed:
            self.half_closed()
            self._link.flush()

    def _append_held(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        if self._gateway.tags is not None:
            self._gateway.tags.let_go(self, self._held_bytes)
        self._held_bytes = 0
        for header, packet in held:
            self._take(header, packet)

    def _introduce(self, header: Header) -> bool:
        """Look at what a batch says of its sender when that is new; False ends the stream."""
        wire_id = header.agent_id
        if self.header is not None and wire_id != self._wire_id:
            self._violate(
                Status.INVALID_ARGUMENT, "agent_id differs from that of the stream's first message"
            )
            return False
        size = header_bytes(header)
        if size > HEADER_BYTES or not self._keep_header(size):
            limit = f"limit {HEADER_BYTES}" if size > HEADER_BYTES else "no memory is left for it"
            self._violate(
                Status.RESOURCE_EXHAUSTED,
                f"hostname, addresses and the like take {size} bytes; {limit}",
            )
            return False
        if self.header is not None:
            return True
        if len(wire_id) > ID_BYTES:
            self._violate(
                Status.INVALID_ARGUMENT, f"agent_id of {len(wire_id)} bytes; limit {ID_BYTES}"
            )
            return False
        if wire_id.startswith(DERIVED_PREFIX.encode()):
            self._violate(
                Status.INVALID_ARGUMENT, f"agent_id begins with {DERIVED_PREFIX}, which is ours"
            )
            return False
        gateway = self._gateway
        self._wire_id = wire_id
        self.agent_id = usable_id(wire_id)
        nameless = not self.agent_id
        if nameless:
            self.agent_id = derived_id(header)
            gateway.counters.unidentified += 1
            gateway.table.claims.without_id(self.agent_id, header, self.peer_addr, gateway.wall())
        if self._state is State.FIRST:
            self._cancel_timer()
            if nameless and gateway.settings.empty_agent_id == "refuse":
                gateway.counters.refused["no_id"] += 1
                why = "has characters that cannot be shown" if wire_id else "is empty"
                self.end(Status.INVALID_ARGUMENT, f"agent_id {why}")
            else:
                self._claim()
        else:
            self.turned_away = True
        self._find_tags()
        return True

    def _keep_header(self, size: int) -> bool:
        """Take memory for a large header in place of the last one's; False if there is none.

        It may be kept twice: of the last batch, and of the last heartbeat.
        """
        memory = self._gateway.memory
        wanted = 2 * max(size - HEADER_FREE_BYTES, 0)
        more = wanted - self._header_bytes
        if more > 0 and not memory.take(more):
            return False
        self._header_bytes = wanted
        if more < 0:
            memory.give(-more)
        return True

    def _claim(self) -> None:
        gateway = self._gateway
        claim, other = gateway.table.claim(self.agent_id, self, gateway.wall())
        if claim is Claim.HELD:
            self._state = State.HOLDER
            gateway.joined(self)
            if isinstance(other, TransferStream):
                other.end(Status.ABORTED, "replaced by a newer stream of this agent")
        elif claim is Claim.REFUSED:
            gateway.counters.refused["conflict"] += 1
            self.end(Status.UNKNOWN, "agentID conflict")
        else:
            assert isinstance(other, TransferStream)
            self._state = State.CLAIMING
            self._pause()
            other.probe(self._settle)

    def probe(self, answered: Callable[[bool], None]) -> None:
        """Ask this stream's peer for a sign of life."""
        self._link.probe(self._gateway.settings.probe_seconds, answered)

    def _settle(self, answered: bool) -> None:
        """The holder was probed: this newcomer takes the id, or is refused."""
        if self._state is not State.CLAIMING:
            return
        gateway = self._gateway
        now = gateway.monotonic()
        held, old = gateway.table.settle(self.agent_id, self, answered, now, gateway.wall())
        if not held:
            gateway.counters.refused["conflict"] += 1
            self.end(Status.UNKNOWN, "agentID conflict")
            return
        self.granted()
        if isinstance(old, TransferStream):
            old.end(Status.ABORTED, "this agent answered no longer and has another stream")
            old.abandon()

    def granted(self) -> None:
        """The id that this stream claimed is its own now."""
        if self._state is not State.CLAIMING:
            return
        self._state = State.HOLDER
        self._gateway.joined(self)
        waiting, self._waiting = self._waiting, ()
        for header, data_type, body in waiting:
            self._gateway.apply(self, header, data_type, body)
        results, self._waiting_results = self._waiting_results, ()
        if results:
            self._gateway.results(self, list(results))
        self._forget_waiting()
        self._resume()
        self._link.flush()

    def _keep_waiting(self, size: int) -> bool:
        """Take memory for what waits until the claim is settled; False if there is none."""
        if not self._gateway.memory.take(size):
            return False
        self._waiting_bytes += size
        return True

    def _forget_waiting(self) -> None:
        self._waiting, self._waiting_results = (), ()
        size, self._waiting_bytes = self._waiting_bytes, 0
        if size:
            self._gateway.memory.give(size)

    def _hand_on_results(self, packet: Packet) -> None:
        results = [(kind, body) for kind, _, body in packet.special if kind in TASK_RESULTS]
        if results and self._state is State.CLAIMING:
            if not self._keep_waiting(sum(len(body) for _, body in results)):
                self._gateway.results_refused(len(results))
                return
            # As many as one window lets through: the call is paused meanwhile.
            self._waiting_results += tuple(results)
        elif results:  # also of a stream that was ended in peace: it is read to its end
            self._gateway.results(self, results)

    def _apply(self, header: Header, packet: Packet, passed: int) -> None:
        """Apply the newest heartbeats of a batch, as many as its rate let pass."""
        if self._state not in (State.HOLDER, State.CLAIMING):
            return
        fresh = [(kind, body) for kind, _, body in packet.special if kind in HEARTBEATS]
        for kind, body in fresh[-min(passed, PLUGIN_LIMIT + 1) :]:
            if len(body) > HEARTBEAT_BYTES:
                self._gateway.bad_heartbeat(self, f"{len(body)} bytes; limit {HEARTBEAT_BYTES}")
            elif self._state is State.HOLDER:
                self._gateway.apply(self, header, kind, body)
            elif len(self._waiting) < WAITING_HEARTBEATS and self._keep_waiting(len(body)):
                self._waiting += ((header, kind, body),)

    def half_closed(self) -> None:
        """All has come: store it, then say so."""
        if self._held is not None:
            self._half_closed = True
            return
        if self._state is State.ENDED:
            self._finish()
            return
        gateway = self._gateway
        gateway.event_log.commit()
        if gateway.event_log.failures != self._log_failures:
            status, text = Status.DATA_LOSS, "the event log refused records"
        elif self.dropped:
            status = Status.RESOURCE_EXHAUSTED
            text = (
                f"{self.dropped} records dropped, above the rate or the disk's room for one agent"
            )
        else:
            status, text = Status.OK, ""
        self._link.grpc.end_call(self._stream_id, status, text)
        gateway.counters.ended(status)
        self._finish()

    def over(self, cancelled: CallCancelled | None) -> None:
        """The call was cancelled, or its connection is gone."""
        if self._state is State.OVER:
            return
        self._append_held()
        if cancelled is not None and self._state is not State.ENDED:
            self._gateway.counters.ended(cancelled.status)
            if cancelled.status != Status.CANCELLED:
                self._report(cancelled.reason)
        self._cancel_timer()
        self._forget_waiting()
        self._keep_header(0)
        if self._flow_timer is not None:
            self._flow_timer.cancel()
            self._flow_timer = None
        self._state = State.OVER
        self._gateway.released(self)

    # --- what we do

    def end(self, status: int, message: str) -> None:
        """Tell the peer that the stream is over; keep what still comes, for a while."""
        if self._state in (State.ENDED, State.OVER):
            return
        self._cancel_timer()
        gateway = self._gateway
        if self._state is State.CLAIMING:
            gateway.table.release(self.agent_id, self, gateway.wall())
            self._forget_waiting()
            self._resume()
        self._state = State.ENDED
        gateway.counters.ended(status)
        self._link.grpc.end_call(self._stream_id, status, message, keep_reading=True)
        self._timer = gateway.clock.callLater(gateway.settings.drain_seconds, self._stop_reading)
        self._link.flush()

    # --- commands

    @property
    def open(self) -> bool:
        """Whether commands can be sent: the stream holds its id and was not told its end."""
        return self._state is State.HOLDER

    @property
    def blocked(self) -> bool:
        """Whether the transport has enough to send already."""
        return self._link.blocked

    @property
    def progress(self) -> Progress:
        """How far the last command has got."""
        return self._link.grpc.message_progress(self._stream_id)

    def send(self, command: bytes) -> bool:
        """Send an encoded Command in the stream's encoding; False if the stream is over.

        Raises:
            SendQueueFull: too much waits for the peer already.
        """
        if not self.open:
            return False
        body, compressed = command, False
        if command and self._encoding != "identity":
            encoded = compressor(self._encoding)(command)
            # Agents hold the size on the wire against the limit, too.
            if len(encoded) <= max(COMMAND_BYTES, len(command)):
                body, compressed = encoded, True
        sent = self._link.grpc.send_message(self._stream_id, body, compressed)
        self._link.flush()
        return sent

    def withdraw(self) -> bool:
        """Take the last command back; False if any of it was sent."""
        return self._link.grpc.withdraw_message(self._stream_id)

    def watch(self, moved: Callable[[], None] | None) -> None:
        """Call ``moved`` whenever bytes went to this peer, until it is None."""
        self._link.watch(self._stream_id, moved)

    def leave(self) -> None:
        """End the stream in peace: this process stops."""
        self.end(Status.OK, "")

    def abandon(self) -> None:
        """Reset the connection: its peer is silent."""
        self._link.abort()

    def _stop_reading(self) -> None:
        self._timer = None
        self._link.grpc.reset_call(self._stream_id)
        self._link.flush()
        self._finish()

    def _silent(self) -> None:
        self._timer = None
        seconds = self._gateway.settings.first_message_seconds
        self._gateway.counters.refused["silent"] += 1
        self.end(Status.DEADLINE_EXCEEDED, f"no message within {seconds:g} s")

    def _violate(self, status: int, message: str) -> None:
        """The peer broke a rule or a limit: the stream ends at once."""
        self._report(message)
        self._gateway.counters.refused[Status(status).name.lower()] += 1
        if self._state is not State.ENDED:
            self._gateway.counters.ended(status)
            self._link.grpc.end_call(self._stream_id, status, message)
        else:
            self._link.grpc.reset_call(self._stream_id)
        self._finish()

    def _report(self, message: str) -> None:
        self._gateway.complaints.info(
            "{peer} ({agent}): {message}", peer=self.peer_addr, agent=self.agent_id, message=message
        )

    def _finish(self) -> None:
        self._link.forget(self._stream_id)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
