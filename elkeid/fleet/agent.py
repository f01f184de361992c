"""One simulated agent: finds a gateway, streams, fails and comes back as a real one does.

    resolve -> dial -> stream -> wait 5 s -> stream on the same connection, at most 5 times
       ^                            |
       +----------------------------+ then, or when the connection is no good

Nothing is jittered: real agents are not either, and servers must bear it.

Source: docs/protocol.md, "What agents do".
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf

from attrs import asdict, define, evolve, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from elkeid.errors import PeerError
from elkeid.fleet.buffer import RecordBuffer
from elkeid.fleet.grpc_client import MESSAGE_BYTES, CallEnded
from elkeid.fleet.host import HEARTBEAT_SECONDS, STOCK_PLUGINS, Activity, Chance, Host
from elkeid.fleet.link import Address, AgentLink, DialFailed
from elkeid.fleet.orders import Orders
from elkeid.fleet.records import (
    Pending,
    StreamWriter,
    Template,
    encode_entries,
    own_template,
)
from elkeid.fleet.report import AgentReport, StreamReport, by_class
from elkeid.fleet.resolve import AddressBook, Lookup, LookupFailed
from elkeid.fleet.upload import FileUpload
from elkeid.fleet.wheel import SLOT_SECONDS, Ticked, TimerWheel
from elkeid.wire.command import decode_command
from elkeid.wire.compression import decompressor, snappy_frame
from elkeid.wire.grpc import Status

TICK_SECONDS = 0.1  # everything buffered goes out as one message
RETRY_SECONDS = 5.0  # after any end of a stream, and after any failure
STREAMS_PER_CONNECTION = 6  # the first and five on the same connection
FAILURES_TO_EXIT = 7  # rounds in a row in which no address was usable
RESTART_SECONDS = 45.0  # what systemd waits before it starts an agent again

_decompress = decompressor("snappy")


class Allowance:
    """How many events may still be sent in all; unlimited when made of None."""

    __slots__ = ("_left",)

    def __init__(self, total: int | None) -> None:
        self._left = total

    def take(self, wanted: int) -> int:
        """Take up to ``wanted``."""
        if self._left is None:
            return wanted
        taken = min(wanted, self._left)
        self._left -= taken
        return taken

    def give_back(self, count: int) -> None:
        """Return what was taken for events that were never sent."""
        if self._left is not None:
            self._left += count


@define
class Totals:
    """Sums over the whole fleet, kept as things happen."""

    connected: int = 0  # streams open now
    sent: int = 0
    events_sent: int = 0
    messages: int = 0
    bytes_sent: int = 0
    failed_rounds: int = 0
    exits: int = 0
    restarts: int = 0
    remote_refused: int = 0
    errors: dict[str, int] = field(factory=dict)  # what went wrong -> how often

    def note(self, error: str) -> None:
        """Count one kind of trouble."""
        self.errors[error] = self.errors.get(error, 0) + 1


@define(kw_only=True)
class World:
    """What all agents of a fleet share.

    Attributes:
        clock: for pauses and ticks.
        wall: unix time, for the records.
        dial: connects to one address.
        lookup: asks service discovery.
        permitted: whether an address may be dialled at all.
        templates: events to replay.
        rate: of each agent, events/s; 0 for none.
        restart: whether an agent that exited comes back after `RESTART_SECONDS`; one that was
            told to exit always does.
        chance: gives numbers from 0 to 1.
        bare: whether agents begin without plugins.
        beat: seconds between heartbeats, of each agent and each plugin.
    """

    clock: IReactorTime
    wall: Callable[[], float]
    wheel: TimerWheel
    dial: Callable[[Address], Deferred[AgentLink]]
    lookup: Lookup
    permitted: Callable[[Address], bool]
    templates: Sequence[Template]
    rate: float
    restart: bool
    chance: Chance
    allowance: Allowance
    bare: bool = False
    beat: float = HEARTBEAT_SECONDS
    totals: Totals = field(factory=Totals)


@define
class _Stream:
    """What is known of one stream."""

    number: int
    address: str
    sent: list[int]  # by class; the writer's own list
    half_closed: bool = False
    ended: CallEnded | None = None

    def report(self) -> StreamReport:
        ended = self.ended
        confirmed = ended is not None and ended.half_closed and ended.status == Status.OK
        return StreamReport(
            conn=self.number,
            address=self.address,
            sent=by_class(self.sent),
            confirmed=by_class(self.sent if confirmed else [0] * len(self.sent)),
            half_closed=self.half_closed if ended is None else ended.half_closed,
            status=None if ended is None else ended.status,
            message="" if ended is None else ended.message,
        )


class _Channel:
    """A connection as an agent's library keeps it: once lost, it is dialled anew on first use.

    Only an attempt to do so that fails makes it useless.
    """

    def __init__(self, address: Address, link: AgentLink) -> None:
        self.address, self.link = address, link
        self.good = True


class SimulatedAgent(Ticked):
    """One agent.

    Args:
        number: the agent's in its fleet, from 0.
        host: who it is.
        book: where it looks for gateways.
        world: what it shares with the others.
    """

    log = Logger()

    def __init__(self, number: int, host: Host, book: AddressBook, world: World) -> None:
        super().__init__()
        self.number, self.host = number, host
        self._book, self._world = book, world
        self._suffix = host.identity.encode()
        self._buffer = RecordBuffer()
        self._activity = Activity(world.beat)
        self.orders = Orders(self, world.clock, world.wall, host.identity.version)
        self._leaving = False  # this process ends, as it was told to
        self._made = 0  # events since the last heartbeat of plugins, kept or not
        self._streams: list[_Stream] = []
        self._writer: StreamWriter | None = None
        self._link: AgentLink | None = None  # while a stream is open on it
        self._ended: Deferred[CallEnded] | None = None
        self._net_mode = "unknown"
        self._started: float | None = None
        self._pid_start = 0.0
        self._phase = self._next_event = self._next_heartbeat = self._next_plugins = inf
        self._cursor = number * 37 % max(1, len(world.templates))
        self._finishing = self._stopped = False
        self._lost_on_exit = self.failed_rounds = self.exits = 0
        self._life: Deferred[None] | None = None
        self.done: Deferred[None] = Deferred()

    # --- from outside

    @property
    def streaming(self) -> bool:
        """Whether a stream is open."""
        return self._link is not None

    @property
    def waiting_events(self) -> int:
        """Replayed events in the buffer, taken from the allowance and not yet sent."""
        return len(self._buffer) - self._buffer.own

    def start(self) -> None:
        """Begin to live; `done` fires when it is over for good."""
        self._started = self._world.wall()
        self._life = Deferred.fromCoroutine(self._live())
        self._life.addErrback(self._fault)
        self._life.addCallback(lambda _: self.done.callback(None))

    def finish(self) -> None:
        """Send what is buffered, half-close and wait for the status; or stop where there is none.

        `done` fires at the end.
        """
        self._finishing = True
        if self._link is not None:
            self._send_buffer()
            self._streams[-1].half_closed = True
            self._link.half_close()
        else:
            self.stop()

    def stop(self) -> None:
        """Stop at once, whatever is going on."""
        if self._stopped:
            return
        self._stopped = True
        if self._life is None:
            self.done.callback(None)
        elif self._link is not None:
            self._link.cancel_stream("stopped")
        else:
            self._life.cancel()

    def cut(self) -> None:
        """Break its connection, as a network does; nothing if it has none."""
        if self._link is not None and not self._over:
            self._link.abort()

    def report(self) -> AgentReport:
        """What it counted so far."""
        return AgentReport(
            agent_id=self.host.identity.agent_id,
            hostname=self.host.identity.hostname,
            number=self.number,
            started=self._started,
            ended=self._world.wall(),
            streams=[stream.report() for stream in self._streams],
            dropped=self._buffer.dropped,
            overwritten=self._buffer.overwritten,
            lost_on_exit=self._lost_on_exit,
            failed_rounds=self.failed_rounds,
            exits=self.exits,
            plugins={name: each.version for name, each in self.orders.loaded.items()},
            version=self.orders.version,
            **asdict(self.orders.tally),
        )

    # --- its life

    async def _live(self) -> None:
        world = self._world
        while not self._over:
            self._boot()
            await self._serve_until_exit()
            self._drop_buffer()
            if self._over:
                return
            self.orders.end()
            self.exits += 1
            world.totals.exits += 1
            if not (world.restart or self._leaving):
                return
            self._leaving = False
            await self._pause(RESTART_SECONDS)
            world.totals.restarts += not self._over

    @property
    def _over(self) -> bool:
        return self._stopped or self._finishing

    @property
    def _ending(self) -> bool:
        """Whether this process ends, for good or not."""
        return self._over or self._leaving

    def _boot(self) -> None:
        """What a fresh process starts with: a heartbeat to send, no plugins until it is told.

        The first start stands for one long ago, after which it was told a stock set.
        """
        world = self._world
        self._phase = now = world.clock.seconds()
        self._pid_start = world.wall()
        self._next_heartbeat = now
        self._next_plugins = now + world.beat
        self._next_event = now if world.rate else inf
        if not self.exits and not world.bare:
            self.orders.load(STOCK_PLUGINS)
        world.wheel.schedule(self, now)

    def _drop_buffer(self) -> None:
        self._next_heartbeat = self._next_plugins = self._next_event = inf
        self._lost_on_exit += len(self._buffer)
        self._world.allowance.give_back(self.waiting_events)
        self._buffer.take()

    async def _serve_until_exit(self) -> None:
        failures = 0
        while not self._ending:
            channel = await self._connect()
            if channel is not None:
                failures = 0
                await self._use(channel)
                continue
            if self._ending:
                return
            failures += 1
            self.failed_rounds += 1
            self._world.totals.failed_rounds += 1
            if failures == FAILURES_TO_EXIT:
                return
            await self._pause(RETRY_SECONDS)

    async def _connect(self) -> _Channel | None:
        """Try every address once, in order; None when none is usable."""
        for mode in ("sd", "private"):
            for address in await self._addresses(mode):
                if not self._world.permitted(address):
                    self._world.totals.remote_refused += 1
                    continue
                link = await self._dial(address)
                if self._over:
                    if link is not None:
                        link.abort()
                    return None
                if link is not None:
                    self._net_mode = mode
                    return _Channel(address, link)
        return None

    async def _addresses(self, mode: str) -> Sequence[Address]:
        if mode == "private":
            return self._book.private
        if self._book.member is None:
            return ()
        try:
            return await self._world.lookup(self._book.member)
        except LookupFailed as error:
            self._world.totals.note(str(error))
        except CancelledError:
            self._stopped = True
        return ()

    async def _dial(self, address: Address) -> AgentLink | None:
        if self._over:
            return None
        try:
            return await self._world.dial(address)
        except DialFailed as error:
            self._world.totals.note(f"dial {error}")
        except CancelledError:
            self._stopped = True
        return None

    async def _use(self, channel: _Channel) -> None:
        for _ in range(STREAMS_PER_CONNECTION):
            await self._stream(channel)
            if self._ending:
                break
            await self._pause(RETRY_SECONDS)
            if self._ending or not channel.good:
                break
        channel.link.close()

    async def _stream(self, channel: _Channel) -> None:
        """One stream, from its opening to its end."""
        if not channel.link.usable:
            channel.link.close()
            link = await self._dial(channel.address)
            if link is None:
                channel.good = False
                return
            channel.link = link
            if self._ending:
                return
        number = len(self._streams)
        self._writer = StreamWriter(number, self.host.identity.hostname, self._suffix)
        stream = _Stream(number, str(channel.address), self._writer.sent)
        self._streams.append(stream)
        self._ended = Deferred()
        self._link = channel.link
        self._world.totals.connected += 1
        channel.link.open_stream(self)
        if len(self._buffer):
            self._world.wheel.schedule(self, self._next_tick(self._world.clock.seconds()))
        ended = await self._ended
        stream.ended = ended
        if ended.status != Status.OK:
            self._world.totals.note(f"stream ended, status {ended.status}: {ended.message}")

    async def _pause(self, seconds: float) -> None:
        if self._over:
            return
        try:
            await deferLater(self._world.clock, seconds)
        except CancelledError:
            self._stopped = True

    def _fault(self, failure: Failure) -> None:
        self.log.failure("agent {number} failed", failure, number=self.number)
        self._count_fault()

    def tick_failed(self) -> None:
        """See `Ticked`: a run with such an agent is not valid."""
        self._count_fault()

    def _count_fault(self) -> None:
        self._world.totals.note("a fault of the simulator")
        self.stop()

    # --- what its stream tells

    def stream_ended(self, ended: CallEnded) -> None:
        """See `StreamOwner`."""
        self._link = None
        self._writer = None
        self._world.totals.connected -= 1
        waiter, self._ended = self._ended, None
        assert waiter is not None
        waiter.callback(ended)

    def message_received(self, compressed: bool, body: bytes) -> None:
        """See `StreamOwner`."""
        self._activity.commands += 1
        self._activity.bytes_received += len(body)
        try:
            data = _decompress(body, MESSAGE_BYTES) if compressed else body
            command = decode_command(data)
        except PeerError as error:
            self._world.totals.note(f"command: {error}")
            if self._link is not None:
                self._link.cancel_stream(f"bad command: {error}")
            return
        self.orders.obey(command)

    # --- what its orders ask for

    def emit(self, data_type: int, fields: Mapping[str, str], own: bool) -> None:
        """See `OrderTaker`."""
        template = own_template(data_type, encode_entries(fields), own=own)
        self._keep((template, int(self._world.wall())))
        self._world.wheel.schedule(self, self._next_tick(self._world.clock.seconds()))

    def _keep(self, record: Pending) -> None:
        lost = self._buffer.add(record)
        if lost is not None and not lost[0].own and lost is not record:
            self._world.allowance.give_back(1)

    def leave(self, version: str | None) -> None:
        """See `OrderTaker`."""
        if self._ending:
            return
        self._leaving = True
        if version is not None:
            self.orders.version = version
            self._suffix = evolve(self.host.identity, version=version).encode()
        if self._link is not None:
            self._link.close()  # as the system does for a process that ended

    def upload(self, token: str, size: int, piece: int, elsewhere: bool) -> None:
        """See `OrderTaker`."""
        sending = Deferred.fromCoroutine(self._upload(token, size, piece, elsewhere))
        sending.addErrback(self._fault)

    async def _upload(self, token: str, size: int, piece: int, elsewhere: bool) -> None:
        link, own = self._link, False
        if elsewhere or link is None or not link.usable:
            link, own = await self._dial_elsewhere(), True
        if link is None:
            self.orders.uploaded(token, "no gateway takes the file")
            return
        ended: Deferred[str] = Deferred()
        FileUpload(
            link, self._world.clock, token=token, size=size, piece=piece, done=ended.callback
        )
        error = await ended
        if own:
            link.close()
        if not self._ending:
            self.orders.uploaded(token, error)

    async def _dial_elsewhere(self) -> AgentLink | None:
        """A connection of its own, to another gateway where there is one."""
        now_at = self._streams[-1].address
        listed = [*await self._addresses("sd"), *await self._addresses("private")]
        listed.sort(key=lambda address: str(address) == now_at)
        for address in listed:
            if self._world.permitted(address):
                link = await self._dial(address)
                if link is not None:
                    return link
        return None

    # --- its records

    def _next_tick(self, when: float) -> float:
        """The first of its ticks that is not before ``when``."""
        return self._phase + ceil((when - self._phase) / TICK_SECONDS - 1e-6) * TICK_SECONDS

    def tick(self, now: float) -> float | None:
        """Make what is due, send what is buffered; see `Ticked`."""
        if self._over:
            return None
        if self._started is None:
            self.start()
            return None
        if now >= self._next_heartbeat or now >= self._next_plugins:
            self._beat(now)
        if now >= self._next_event:
            self._replay(now)
        if self._link is not None and len(self._buffer):
            self._send_buffer()
            if len(self._buffer):
                return now + TICK_SECONDS
        due = min(self._next_event, self._next_heartbeat, self._next_plugins)
        # Not again in this tick, whatever became due since it began.
        return None if due == inf else self._next_tick(max(due, now + SLOT_SECONDS / 2))

    def _replay(self, now: float) -> None:
        world, buffer = self._world, self._buffer
        due = int((now - self._next_event) * world.rate) + 1
        self._made += due
        self._next_event += due / world.rate
        templates, cursor = world.templates, self._cursor
        second = int(world.wall())
        lost = 0
        for _ in range(world.allowance.take(due)):
            if buffer.add((templates[cursor], second)) is not None:
                lost += 1
            cursor = cursor + 1 if cursor + 1 < len(templates) else 0
        self._cursor = cursor
        if lost:
            world.allowance.give_back(lost)

    def _beat(self, now: float) -> None:
        chance, second, beat = self._world.chance, int(self._world.wall()), self._world.beat
        templates = []
        if now >= self._next_heartbeat:
            self._next_heartbeat += beat
            activity, self._activity = self._activity, Activity(beat)
            place = self.orders.idc, self.orders.region
            templates.append(
                self.host.heartbeat(self._pid_start, self._net_mode, activity, chance, place)
            )
        if now >= self._next_plugins:
            self._next_plugins += beat
            made, self._made = self._made, 0
            share = made / beat / max(1, len(self.orders.loaded))
            templates += [
                self.host.plugin_heartbeat(name, each.version, each.since, share, chance)
                for name, each in self.orders.loaded.items()
            ]
        for template in templates:
            self._keep((template, second))

    def _send_buffer(self) -> None:
        link = self._link
        if link is None or self._writer is None or not len(self._buffer):
            return
        if link.blocked and not self._finishing:
            return
        events = self.waiting_events
        records = self._buffer.take()
        body = snappy_frame(self._writer.encode(records))
        totals, activity = self._world.totals, self._activity
        totals.sent += len(records)
        totals.events_sent += events
        totals.messages += 1
        totals.bytes_sent += len(body)
        activity.records += len(records)
        activity.bytes_sent += len(body)
        link.send(body)
