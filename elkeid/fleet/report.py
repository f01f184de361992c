"""What a fleet counted: for each stream, for each agent, and in sum.

A report file holds one JSON object a line, one line an agent; `read_report` reads it back.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from elkeid.errors import OperatorError
from elkeid.wire.datatypes import RecordClass


class ReportError(OperatorError):
    """A report cannot be read or written."""


class StreamReport(msgspec.Struct):
    """One stream of one agent.

    Attributes:
        conn: its number in the agent's life, from 0; the records' ``fleet_conn``.
        address: where it went.
        sent: records by class; each class's ``fleet_seq`` went from 0 to one less.
        confirmed: records by class that the gateway said to have taken: all that were sent when
            the stream ended with OK trailers after a half-close, else none.
        half_closed: whether this side had ended it.
        status: its gRPC status; None while it is open.
        message: what came with the status.
    """

    conn: int
    address: str
    sent: dict[str, int]
    confirmed: dict[str, int]
    half_closed: bool
    status: int | None
    message: str


class AgentReport(msgspec.Struct):
    """One agent.

    Attributes:
        started: when its first life began, unix seconds; None when it never did.
        ended: when it was over, unix seconds.
        dropped: plugins' records lost because its buffer was full.
        overwritten: records overwritten by its own in the full buffer.
        lost_on_exit: records in its buffer when it exited.
        failed_rounds: times that no address it knows was usable.
        exits: times that it exited, at the seventh such failure in a row.
        plugins: loaded at the end, name -> version.
        version: of the agent, at the end.
        tasks, syncs, wiped: Commands with a task; without one; those that unloaded everything.
        dropped_syncs, refused_tasks, results, uploads, failed_uploads, updates: see `Tally`.
    """

    agent_id: str
    hostname: str
    number: int
    started: float | None
    ended: float
    streams: list[StreamReport]
    dropped: int
    overwritten: int
    lost_on_exit: int
    failed_rounds: int
    exits: int
    plugins: dict[str, str]
    tasks: int
    syncs: int
    wiped: int
    version: str = ""
    dropped_syncs: int = 0
    refused_tasks: int = 0
    results: int = 0
    uploads: int = 0
    failed_uploads: int = 0
    updates: int = 0

    @property
    def confirmed_at_end(self) -> bool:
        """Whether the last stream ended with everything sent known to be taken."""
        return bool(self.streams) and is_confirmed(self.streams[-1])


def is_confirmed(stream: StreamReport) -> bool:
    """Whether the gateway said to have taken all of this stream."""
    return stream.half_closed and stream.status == 0


def by_class(counts: Iterable[int]) -> dict[str, int]:
    """Counts in the order of `RecordClass`, by the classes' names."""
    return {cls.label: count for cls, count in zip(RecordClass, counts, strict=True)}


def write_report(path: Path, agents: Iterable[AgentReport]) -> None:
    """Write one line an agent.

    Raises:
        ReportError: the file cannot be written.
    """
    encode = msgspec.json.encode
    try:
        with path.open("wb") as file:
            file.writelines(encode(agent) + b"\n" for agent in agents)
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from error


def read_report(path: Path) -> Iterator[AgentReport]:
    """Read a report, an agent at a time.

    Raises:
        ReportError: the file cannot be read, or a line is not of a report.
    """
    decode = msgspec.json.Decoder(AgentReport).decode
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007
                yield decode(line)
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ReportError(f"{path}, line {number}: not of a fleet report: {error}") from error


class Summary(msgspec.Struct):
    """A whole run.

    Attributes:
        sent: records by class, the agents' own heartbeats included.
        confirmed: those that the gateway said to have taken.
        events_sent: replayed events among those sent.
        unconfirmed_streams: streams whose records may or may not have arrived.
        failed_agents: ids of agents that exited, or whose last stream was not confirmed.
        cpu_seconds: CPU time this process took.
        worst_lag: seconds by which ticks were late at worst.
    """

    agents: int
    seconds: float
    streams: int
    sent: dict[str, int]
    confirmed: dict[str, int]
    events_sent: int
    messages: int
    bytes_sent: int
    unconfirmed_streams: int
    failed_rounds: int
    exits: int
    restarts: int
    dropped: int
    overwritten: int
    lost_on_exit: int
    tasks: int
    syncs: int
    wiped: int
    remote_refused: int
    cpu_seconds: float
    worst_lag: float
    failed_agents: list[str]
    errors: dict[str, int]
    results: int = 0
    dropped_syncs: int = 0
    refused_tasks: int = 0
    uploads: int = 0
    failed_uploads: int = 0
    updates: int = 0

    @property
    def records(self) -> int:
        """Records sent, of all classes."""
        return sum(self.sent.values())
