"""Commands to agents: a queue for each connection, and a clear outcome for each command.

A command goes to the wire only when the one before it was wholly written and the transport has
room. So at most one of a connection is under way, everything behind it can still be taken back,
and one agent that does not read holds up nobody else.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, Protocol, cast

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from elkeid.agentcenter.table import Agent, Holder
from elkeid.metrics import CommandFigures
from elkeid.wire.grpc import Progress, SendQueueFull

MiB = 1 << 20

COMMAND_SECONDS: Final = 4.0
"""For a command to be written. Stock Managers wait five seconds for the answer."""

QUEUE_COMMANDS: Final = 32
"""Commands that wait for one agent; more than operators send in the time that one may wait."""

QUEUE_BYTES: Final = 9 * MiB
"""That wait for one agent: two of the largest commands."""

TOTAL_BYTES: Final = 256 * MiB
"""That wait for all agents of this process: large configs for some dozen agents that do not
read, or small ones for all."""


class Outcome(Enum):
    """What became of a command."""

    WRITTEN = "written"  # wholly, to the connection
    NOT_CONNECTED = "not_connected"
    QUEUE_FULL = "queue_full"
    LOST = "connection_lost"  # before it was wholly written
    WITHDRAWN = "withdrawn"  # not begun in time: the agent will never see it
    PARTLY = "partly_written"  # in time; the rest follows unless the connection is lost


class Outlet(Holder, Protocol):
    """A stream, as far as commands need to know it; `TransferStream` is one."""

    @property
    def open(self) -> bool:
        """Whether the stream takes commands."""

    @property
    def blocked(self) -> bool:
        """Whether its transport has enough to send already."""

    @property
    def progress(self) -> Progress:
        """How far the last command has got."""

    def send(self, command: bytes) -> bool:
        """Send an encoded Command; False if the stream is over."""

    def withdraw(self) -> bool:
        """Take the last command back, if nothing of it was sent."""

    def watch(self, moved: Callable[[], None] | None) -> None:
        """Call ``moved`` whenever bytes went out, until it is None."""


@define(eq=False)
class _Order:
    """Commands that belong together: they are written in order, and share an outcome."""

    parts: deque[bytes]
    done: Deferred[Outcome] = field(factory=Deferred)
    timer: IDelayedCall | None = None
    begun: bool = False  # something of it went out
    settled: bool = False


class _Queue:
    """What waits for one stream; thrown away when nothing does."""

    def __init__(self, commands: "Commands", agent_id: str, outlet: Outlet) -> None:
        self._commands, self.agent_id, self.outlet = commands, agent_id, outlet
        self.orders: deque[_Order] = deque()
        self._under_way: tuple[_Order, int] | None = None  # in the wire state, and its bytes
        self.bytes = 0
        self._pumping = False

    @property
    def count(self) -> int:
        """Commands that wait or are under way."""
        return sum(len(order.parts) for order in self.orders) + (self._under_way is not None)

    def add(self, order: _Order) -> None:
        """Let ``order`` wait behind the others."""
        self.orders.append(order)
        self._grow(sum(map(len, order.parts)))

    def _grow(self, size: int) -> None:
        self.bytes += size
        self._commands.bytes += size

    def pump(self) -> None:
        """Write what can be written now."""
        if self._pumping:
            return  # this call comes from what the loop below does
        self._pumping = True
        while self._step():
            pass
        self._pumping = False
        if self.orders or self._under_way is not None:
            self.outlet.watch(self.pump)
        else:
            self._commands.drop(self)

    def _step(self) -> bool:
        """Do the next thing; False if there is none now."""
        if self._under_way is not None:
            if self.outlet.progress is not Progress.WRITTEN:
                return False
            order, size = self._under_way
            self._under_way = None
            self._grow(-size)
            self._commands.written += 1
            if not order.parts:
                self._commands.settle(order, Outcome.WRITTEN)
            return True
        if not self.orders or self.outlet.blocked:
            return False
        order = self.orders[0]
        part = order.parts.popleft()
        if not order.parts:
            self.orders.popleft()
        try:
            sent = self.outlet.send(part)
        except SendQueueFull:
            self._remove(order)
            self._grow(-len(part))
            self._commands.settle(order, Outcome.PARTLY if order.begun else Outcome.QUEUE_FULL)
            return True
        if not sent:
            self._grow(-len(part))
            self._commands.settle(order, Outcome.LOST)
            self.lose()
            return False
        self._under_way = order, len(part)
        order.begun = order.begun or self.outlet.progress is not Progress.WAITING
        return True

    def _remove(self, order: _Order) -> None:
        if self.orders and order in self.orders:
            self.orders.remove(order)
        self._grow(-sum(map(len, order.parts)))
        order.parts.clear()

    def expire(self, order: _Order) -> None:
        """Its time is up: take back what can be."""
        self._remove(order)
        if self._under_way is not None and self._under_way[0] is order:
            if self.outlet.withdraw():
                self._grow(-self._under_way[1])
                self._under_way = None
            else:
                order.begun = True
        self._commands.settle(order, Outcome.PARTLY if order.begun else Outcome.WITHDRAWN)
        self.pump()

    def lose(self) -> None:
        """The stream is over."""
        orders = list(self.orders)
        self.orders.clear()
        if self._under_way is not None:
            orders.insert(0, self._under_way[0])
            self._under_way = None
        self._grow(-self.bytes)
        self._commands.drop(self)
        for order in orders:
            self._commands.settle(order, Outcome.LOST)


class Commands:
    """Sends commands; a `Follower` of the gateway.

    Args:
        find: gives the connected agent of an id.
        clock: for the time that a command may wait.

    Attributes:
        written: commands wholly written since the start.
        outcomes: of what was asked to be sent.
        bytes: of commands that wait or are under way.
    """

    def __init__(self, find: Callable[[str], Agent | None], clock: IReactorTime) -> None:
        self._find, self._clock = find, clock
        self._queues: dict[str, _Queue] = {}
        self.written = 0
        self.bytes = 0
        self.outcomes: Counter[Outcome] = Counter()

    def figures(self) -> CommandFigures:
        """What is shown of this part."""
        return CommandFigures(
            waiting=sum(queue.count for queue in self._queues.values()),
            waiting_bytes=self.bytes,
            outcomes={outcome.value: count for outcome, count in self.outcomes.items()},
        )

    def send(
        self, agent_id: str, parts: Sequence[bytes], seconds: float = COMMAND_SECONDS
    ) -> Deferred[Outcome]:
        """Send encoded Commands to an agent, in order and with nothing between them.

        Args:
            agent_id: of a connected agent.
            parts: each at most `COMMAND_BYTES`.
            seconds: until what is not begun is taken back.

        Returns:
            Fires with the outcome of all together, within ``seconds``; never fails.
        """
        agent = self._find(agent_id)
        outlet = None if agent is None else cast(Outlet, agent.stream)
        if outlet is None or not outlet.open:
            return self._refused(Outcome.NOT_CONNECTED)
        queue = self._queues.get(agent_id)
        if queue is not None and queue.outlet is not outlet:
            queue.lose()
            queue = None
        size = sum(map(len, parts))
        waiting, count = (0, 0) if queue is None else (queue.bytes, queue.count)
        if (
            count + len(parts) > QUEUE_COMMANDS
            or waiting + size > QUEUE_BYTES
            or self.bytes + size > TOTAL_BYTES
        ):
            return self._refused(Outcome.QUEUE_FULL)
        if queue is None:
            queue = self._queues[agent_id] = _Queue(self, agent_id, outlet)
        order = _Order(deque(parts))
        queue.add(order)
        queue.pump()
        if not order.settled:
            order.timer = self._clock.callLater(seconds, queue.expire, order)
        return order.done

    def _refused(self, outcome: Outcome) -> Deferred[Outcome]:
        self.outcomes[outcome] += 1
        return succeed(outcome)

    # --- for the queues

    def settle(self, order: _Order, outcome: Outcome) -> None:
        """Tell what became of an order, once."""
        if order.settled:
            return
        order.settled = True
        if order.timer is not None and order.timer.active():
            order.timer.cancel()
        self.outcomes[outcome] += 1
        order.done.callback(outcome)

    def drop(self, queue: _Queue) -> None:
        """Forget a queue in which nothing waits."""
        queue.outlet.watch(None)
        if self._queues.get(queue.agent_id) is queue:
            del self._queues[queue.agent_id]

    # --- what the gateway tells

    def joined(self, agent: Agent) -> None:
        """A new stream has the id: what waited for the old one is lost."""
        queue = self._queues.get(agent.agent_id)
        if queue is not None and queue.outlet is not agent.stream:
            queue.lose()

    def heartbeat(self, agent: Agent, data_type: int, fields: Mapping[bytes, bytes]) -> None:
        """Nothing to do."""

    def results(self, agent: Agent, results: Sequence[Any]) -> None:
        """Nothing to do."""

    def left(self, agent: Agent) -> None:
        """The agent's stream is over."""
        queue = self._queues.get(agent.agent_id)
        if queue is not None and queue.outlet is agent.stream:
            queue.lose()
