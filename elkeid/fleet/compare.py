"""Compare what a fleet sent with what a server stored.

What is stored of each agent, stream and class must be a prefix of what was sent: gapless,
without doubles, in order; and all of it where the gateway confirmed the stream.
"""

from collections.abc import Iterable
from typing import NamedTuple

from attrs import define, field

from elkeid.fleet.report import AgentReport, is_confirmed
from elkeid.wire.datatypes import RecordClass

FAULTS_SHOWN = 20  # of each run; the rest is only counted


class Stored(NamedTuple):
    """One stored record, in the order of its log.

    Attributes:
        agent_id: whose it is.
        conn: its ``fleet_conn``.
        record_class: the class of its data type.
        seq: its ``fleet_seq``.
        log: the class whose log it was found in, where that can differ: a gateway counts an
            agent's control records above its rate as logs. Order holds within a log.
    """

    agent_id: str
    conn: int
    record_class: RecordClass
    seq: int
    log: RecordClass | None = None


@define
class Verdict:
    """What the comparison found.

    Attributes:
        sent: records that the report lists.
        stored: records of its agents that were found.
        confirmed: records whose arrival the gateway had confirmed.
        lost_unconfirmed: sent, not stored, and never confirmed: streams that died.
        faults: how many; each breaks a promise.
        shown: the first of them in words.
    """

    agents: int = 0
    streams: int = 0
    sent: int = 0
    stored: int = 0
    confirmed: int = 0
    lost_unconfirmed: int = 0
    faults: int = 0
    shown: list[str] = field(factory=list)

    @property
    def good(self) -> bool:
        """Whether what is stored is what may be stored."""
        return not self.faults

    def fault(self, text: str) -> None:
        """Note a broken promise."""
        self.faults += 1
        if len(self.shown) < FAULTS_SHOWN:
            self.shown.append(text)

    def text(self) -> str:
        """The verdict in a few lines."""
        word = "good" if self.good else f"BAD, {self.faults:,} faults"
        lines = [
            f"{word}: {self.agents:,} agents, {self.streams:,} streams, {self.sent:,} records "
            f"sent, {self.confirmed:,} confirmed, {self.stored:,} stored, "
            f"{self.lost_unconfirmed:,} lost with streams that died"
        ]
        lines += [f"  {fault}" for fault in self.shown]
        if self.faults > len(self.shown):
            lines.append(f"  and {self.faults - len(self.shown):,} more")
        return "\n".join(lines)


_Key = tuple[str, int, RecordClass]


@define
class _Found:
    """What is stored of one agent, stream and class."""

    next_seq: int = 0  # everything below is there
    ahead: set[int] = field(factory=set)  # beyond a gap
    last: dict[RecordClass | None, int] = field(factory=dict)  # log -> the latest seq
    count: int = 0


def compare(report: Iterable[AgentReport], stored: Iterable[Stored]) -> Verdict:
    """Judge stored records by a fleet's report; records of other agents are left aside.

    Takes memory for each agent, stream and class, and for each record that lies beyond a gap.
    """
    verdict = Verdict()
    sent: dict[_Key, tuple[int, bool]] = {}
    agents = set()
    for agent in report:
        verdict.agents += 1
        agents.add(agent.agent_id)
        for stream in agent.streams:
            verdict.streams += 1
            for cls in RecordClass:
                count = stream.sent[cls.label]
                sent[agent.agent_id, stream.conn, cls] = count, is_confirmed(stream)
                verdict.sent += count
                verdict.confirmed += stream.confirmed[cls.label]
    found = _find(agents, stored, verdict)
    for key, (count, confirmed) in sent.items():
        _judge(key, count, confirmed, found.pop(key, _Found()), verdict)
    for key, each in found.items():
        verdict.fault(f"{_name(key)}: {each.count} records stored of a stream never opened")
    return verdict


def _find(agents: set[str], stored: Iterable[Stored], verdict: Verdict) -> dict[_Key, _Found]:
    found: dict[_Key, _Found] = {}
    for record in stored:
        if record.agent_id not in agents:
            continue
        verdict.stored += 1
        key = record.agent_id, record.conn, record.record_class
        each = found.get(key)
        if each is None:
            each = found[key] = _Found()
        each.count += 1
        seq = record.seq
        if seq < each.next_seq or seq in each.ahead:
            verdict.fault(f"{_name(key)}: {seq} is stored twice")
            continue
        if seq < each.last.get(record.log, -1):
            verdict.fault(f"{_name(key)}: {seq} is stored after {each.last[record.log]}")
        each.last[record.log] = seq
        if seq == each.next_seq:
            each.next_seq += 1
            while each.ahead and each.next_seq in each.ahead:
                each.ahead.remove(each.next_seq)
                each.next_seq += 1
        else:
            each.ahead.add(seq)
    return found


def _judge(key: _Key, sent: int, confirmed: bool, found: _Found, verdict: Verdict) -> None:
    if found.ahead:
        verdict.fault(
            f"{_name(key)}: a gap at {found.next_seq}, "
            f"with {len(found.ahead)} records stored beyond it"
        )
    highest = max(found.ahead, default=found.next_seq - 1)
    if highest >= sent:
        verdict.fault(f"{_name(key)}: {highest} is stored, but only {sent} were sent")
    missing = max(0, sent - found.next_seq - len(found.ahead))
    if missing and confirmed:
        verdict.fault(f"{_name(key)}: {missing} of {sent} records confirmed, but not stored")
    elif missing:
        verdict.lost_unconfirmed += missing


def _name(key: _Key) -> str:
    agent_id, conn, cls = key
    return f"agent {agent_id}, stream {conn}, {cls.label}"
