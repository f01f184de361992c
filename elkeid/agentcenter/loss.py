"""How many records an agent lost before they got here, by its own counters; an estimate.

Once a minute, in one moment, an agent tells two rates and starts counting anew: each plugin's
``tx_tps`` (1001) is what the plugin handed over, the agent's own (1000) is what it sent. It has a
buffer of 2,048 records in between, which overflows in silence. So, of one interval:

    dropped in the buffer = plugins' records + the agent's own - what it sent
    lost in flight        = what it sent - what was read here

The agent's own records are its heartbeats and log records, as they were read here. Both
differences err by what waits in the buffer at that moment, but such errors cancel out from one
interval to the next. So the differences are summed, and a loss counts once two sums in a row
show it; what waits for longer, a buffer's content at most, may count too. No figure is made of
an interval whose length is not known (a heartbeat is missing, the agent was elsewhere or began
anew), nor one of drops while plugins come or go.

Source: docs/protocol.md, "Loss".
"""

import math
from collections.abc import Mapping
from typing import Final

INTERVAL_SECONDS: Final = 60.0
"""Between two heartbeats, by the agent's clock."""

SLACK_SECONDS: Final = 5.0
"""A heartbeat that is later or earlier than that belongs to another interval. One that is less
late was late on its way: the interval is taken as its whole 60 s."""

BUFFER_RECORDS: Final = 2_048
"""What an agent's buffer holds: differences below zero by more than that are no delay."""

NOISE_RECORDS: Final = 10
NOISE_SHARE: Final = 0.002
"""What a difference may be without a loss: some records, and the share of an interval's that
0.1 s of its 60 s make up."""

_MASK64: Final = (1 << 64) - 1

RATE_LIMIT: Final = 1e6
"""Records a second; a higher rate is no agent's."""


def rate(fields: Mapping[bytes, bytes]) -> float | None:
    """Read ``tx_tps`` of a heartbeat; None when it is missing or no rate."""
    try:
        value = float(fields.get(b"tx_tps", b""))
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= RATE_LIMIT else None


class _Loss:
    """A sum of differences that are zero in the long run, but for losses."""

    __slots__ = ("_last", "_sum", "counted")

    def __init__(self) -> None:
        self._sum = self._last = 0.0
        self.counted = 0  # records

    def add(self, difference: float, records: float) -> int:
        """Take the difference of an interval with so many records; return what is lost anew."""
        self._last = self._sum
        self._sum = max(self._sum + difference, self.counted - float(BUFFER_RECORDS))
        shown = min(self._sum, self._last)
        if shown - self.counted <= NOISE_RECORDS + NOISE_SHARE * records:
            return 0
        more = round(shown - self.counted)
        self.counted += more
        return more


class AgentLoss:
    """The estimate of one agent: feed it the heartbeats in their order.

    Attributes:
        dropped: records, in the agent's buffer.
        in_flight: records, between the agent's buffer and here.
        intervals: that figures were made of.
        skipped: intervals that none could be made of.
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_flight",
        "_handed",
        "_heard",
        "_known",
        "_own",
        "_pending",
        "_process",
        "_read",
        "intervals",
        "skipped",
    )

    def __init__(self) -> None:
        self._buffer, self._flight = _Loss(), _Loss()
        self._at: float | None = None  # of the last heartbeat, seconds
        self._process = b""  # of the agent, to know a restart
        self._read = self._own = 0  # records until the last heartbeat
        # Of the plugins heard of since: the sum of their rates, and of hashes of their names
        # and processes. One that is heard of twice changes that, and so gives no figure.
        self._handed, self._heard = 0.0, 0
        self._known: int | None = None  # that of an interval ago
        self._pending: float | None = None  # records that the agent handed on for plugins
        self.intervals = self.skipped = 0

    @property
    def dropped(self) -> int:
        """Records lost in the agent's buffer."""
        return self._buffer.counted

    @property
    def in_flight(self) -> int:
        """Records that the agent sent and that were not read."""
        return self._flight.counted

    def plugin(self, fields: Mapping[bytes, bytes]) -> None:
        """Take a plugin's heartbeat; it belongs to the agent's last one."""
        value = rate(fields)
        if value is not None:
            key = hash((fields.get(b"name", b""), fields.get(b"pid", b"")))
            self._heard = (self._heard + key) & _MASK64
            self._handed += value

    def agent(
        self, fields: Mapping[bytes, bytes], at: float, read: int, own: int
    ) -> tuple[int, int]:
        """Take the agent's heartbeat.

        Args:
            fields: of the heartbeat.
            at: when it came, seconds of a clock that only goes forward.
            read: records of this agent read until now, without this heartbeat's batch.
            own: those among them that are the agent's own.

        Returns:
            What was dropped in the buffer and lost in flight, as far as it is new.
        """
        dropped = self._settle_plugins()
        process = fields.get(b"pid", b"") + b" " + fields.get(b"start_time", b"")
        passed = math.inf if self._at is None else at - self._at
        sent_rate = rate(fields)
        same = process == self._process and abs(passed - INTERVAL_SECONDS) <= SLACK_SECONDS
        read_now, own_now = read - self._read, own - self._own
        first = self._at is None
        self._at, self._process, self._read, self._own = at, process, read, own
        if sent_rate is None or not same:
            self.skipped += not first
            self._known = self._pending = None
            return dropped, 0
        self.intervals += 1
        sent = sent_rate * INTERVAL_SECONDS
        self._pending = sent - own_now
        return dropped, self._flight.add(sent - read_now, sent)

    def _settle_plugins(self) -> int:
        """Compare what plugins handed over in the interval before the last heartbeat."""
        rates, self._handed = self._handed, 0.0
        known, self._known = self._known, self._heard
        pending, self._pending, self._heard = self._pending, None, 0
        if pending is None or known != self._known:
            return 0
        handed = rates * INTERVAL_SECONDS
        return self._buffer.add(handed - pending, handed)
