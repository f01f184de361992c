"""What heartbeats measure, as least, mean and greatest value of each stretch of time.

Samples wait in memory, packed, until their stretch is over; nothing is written with a heartbeat.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Final

from attrs import frozen

from elkeid.manager.documents import AgentReport

NAMES: Final = (
    *("cpu", "rss", "du", "load_1", "cpu_usage", "mem_usage"),
    *("rx_speed", "tx_speed", "read_speed", "write_speed"),
)
"""Fields of heartbeats that are kept. The first three are the agent's own process and files."""

FINE_SECONDS: Final = 300
"""Of one stretch: five heartbeats."""

COARSE_SECONDS: Final = 3600
"""Of a stretch that is kept for longer; a multiple of the fine one."""

LATE_SECONDS: Final = 60
"""After the end of a stretch, heartbeats of it may still come."""

HOSTS: Final = 1_500_000
"""Whose samples wait in memory at most, some 300 bytes each."""

_SAMPLE: Final = struct.Struct(f"<{len(NAMES)}f")
_ROW: Final = struct.Struct(f"<{3 * len(NAMES)}f")
_MISSING: Final = math.nan
_GREATEST: Final = 3.0e38


@frozen
class Rollup:
    """One host in one stretch of time.

    ``least``, ``mean`` and ``greatest`` are in the order of `NAMES`; NaN where nothing was told.
    """

    agent_id: str
    began: int  # unix seconds
    beats: int
    least: tuple[float, ...]
    mean: tuple[float, ...]
    greatest: tuple[float, ...]

    def packed(self) -> bytes:
        """For the store: 12 bytes a figure."""
        return _ROW.pack(*self.least, *self.mean, *self.greatest)


def unpacked(agent_id: str, began: int, beats: int, data: bytes) -> Rollup:
    """What `Rollup.packed` gave."""
    values, count = _ROW.unpack(data), len(NAMES)
    return Rollup(
        agent_id, began, beats, values[:count], values[count : 2 * count], values[2 * count :]
    )


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if value == value]  # noqa: PLR0124 - NaN is not itself


def _column(values: Sequence[float]) -> tuple[float, float, float]:
    known = _known(values)
    if not known:
        return _MISSING, _MISSING, _MISSING
    return min(known), sum(known) / len(known), max(known)


def rolled_up(agent_id: str, began: int, samples: bytes) -> Rollup:
    """The rollup of packed samples."""
    rows = list(_SAMPLE.iter_unpack(samples))
    least, mean, greatest = zip(
        *(_column(column) for column in zip(*rows, strict=True)), strict=True
    )
    return Rollup(agent_id, began, len(rows), least, mean, greatest)


def joined(agent_id: str, began: int, parts: Sequence[Rollup]) -> Rollup:
    """The rollup of a longer stretch; each part counts by its heartbeats."""
    beats = sum(part.beats for part in parts)
    columns = []
    for place in range(len(NAMES)):
        told = [part for part in parts if not math.isnan(part.mean[place])]
        if not told:
            columns.append((_MISSING, _MISSING, _MISSING))
            continue
        weight = sum(part.beats for part in told)
        columns.append(
            (
                min(part.least[place] for part in told),
                sum(part.mean[place] * part.beats for part in told) / weight,
                max(part.greatest[place] for part in told),
            )
        )
    least, mean, greatest = zip(*columns, strict=True)
    return Rollup(agent_id, began, beats, least, mean, greatest)


def sample_of(fields: Mapping[str, object]) -> bytes:
    """The figures of a heartbeat, packed."""
    values = []
    for name in NAMES:
        value = fields.get(name)
        if type(value) not in (int, float) or not -_GREATEST < value < _GREATEST:  # type: ignore[operator]
            value = _MISSING
        values.append(value)
    return _SAMPLE.pack(*values)


class _Open:
    """Samples of one host's current stretch."""

    __slots__ = ("began", "samples", "seen")

    def __init__(self, began: int) -> None:
        self.began = began
        self.seen = 0  # the last heartbeat
        self.samples = bytearray()


class Figures:
    """Takes heartbeats in any thread; gives what is over.

    Args:
        hosts: so many at most.
    """

    def __init__(self, hosts: int = HOSTS) -> None:
        self._hosts = hosts
        self._open: dict[str, _Open] = {}
        self._over: list[tuple[str, int, bytes]] = []
        self._lock = Lock()
        self.left_out = 0  # heartbeats for which there was no room

    def take(self, report: AgentReport) -> None:
        """Note a heartbeat; the same one again, or an older one, changes nothing."""
        seen = report.last_heartbeat_time
        began = seen - seen % FINE_SECONDS
        with self._lock:
            current = self._open.get(report.agent_id)
            if current is None:
                if len(self._open) >= self._hosts:
                    self.left_out += 1
                    return
                current = self._open[report.agent_id] = _Open(began)
            elif began > current.began:
                self._over.append((report.agent_id, current.began, bytes(current.samples)))
                seen_before = current.seen
                current = self._open[report.agent_id] = _Open(began)
                current.seen = seen_before
            if seen > current.seen:
                current.seen = seen
                current.samples += sample_of(report.fields)

    def over(self, now: float, *, everything: bool = False) -> list[tuple[str, int, bytes]]:
        """Stretches that are over, for `rolled_up`, by their begin; they are forgotten here.

        Args:
            now: unix seconds.
            everything: whether those that go on are wanted as well.
        """
        with self._lock:
            before = now - FINE_SECONDS - LATE_SECONDS
            ended = [
                agent_id
                for agent_id, current in self._open.items()
                if everything or current.began <= before
            ]
            for agent_id in ended:
                current = self._open.pop(agent_id)
                self._over.append((agent_id, current.began, bytes(current.samples)))
            taken, self._over = self._over, []
        return sorted((each for each in taken if each[2]), key=lambda each: (each[1], each[0]))
