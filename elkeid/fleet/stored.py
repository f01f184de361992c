"""Read back from the local event log what fleets sent."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from elkeid.errors import WireError
from elkeid.eventlog.reader import LogReader
from elkeid.fleet.compare import Stored
from elkeid.fleet.records import CONN_FIELD, SEQ_FIELD
from elkeid.wire import mqdata
from elkeid.wire.datatypes import CLASS_OF, RecordClass


def stored_records(directory: Path, agents: Iterable[str], since: float) -> Iterator[Stored]:
    """Yield what the log holds now of these agents.

    Args:
        directory: of the event log; a server may be writing to it.
        agents: ids; records of others are passed over.
        since: unix seconds by the agents' clock; older records are of another run with the same
            hosts.

    Raises:
        OperatorError: there is no log.
        LogFormatError: the log is of an unknown format version.
    """
    wanted = set(agents)
    with LogReader(directory) as log:
        for entry in log.entries(log.extent()):
            try:
                agent_id = mqdata.decode(entry.suffix).agent_id
                if agent_id in wanted:
                    for record in mqdata.records(entry.region):
                        found = _stored(agent_id, record, entry.record_class, since)
                        if found is not None:
                            yield found
            except WireError:  # checksums hold, so it is what some agent sent; not a fleet's
                continue


def _stored(agent_id: str, record: bytes, log: RecordClass, since: float) -> Stored | None:
    decoded = mqdata.decode(record)
    if decoded.agent_time < int(since) or decoded.fields is None:
        return None
    conn, seq = decoded.fields.get(CONN_FIELD, ""), decoded.fields.get(SEQ_FIELD, "")
    if not (conn.isdecimal() and seq.isdecimal()):
        return None
    record_class = CLASS_OF.get(decoded.data_type, RecordClass.TELEMETRY)
    return Stored(agent_id, int(conn), record_class, int(seq), log)
