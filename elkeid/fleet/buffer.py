"""An agent's own buffer: small, and silent about what it loses.

Source: docs/protocol.md, "What agents do".
"""

from elkeid.fleet.records import Pending

BUFFER_RECORDS = 2048  # what a real agent holds; the rest is lost on the host


class RecordBuffer:
    """Records between two ticks, or while there is no server.

    Attributes:
        dropped: plugins' records that found it full.
        overwritten: records that one of the agent's own took the place of.
        own: of those held now, the agent's own.
    """

    __slots__ = ("_records", "dropped", "overwritten", "own")

    def __init__(self) -> None:
        self._records: list[Pending] = []
        self.dropped = self.overwritten = self.own = 0

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Pending) -> Pending | None:
        """Keep a record; when full, a plugin's is dropped and the agent's own takes slot 0.

        Returns:
            The record that was lost, if any.
        """
        own = record[0].own
        if len(self._records) < BUFFER_RECORDS:
            self._records.append(record)
            self.own += own
            return None
        if not own:
            self.dropped += 1
            return record
        lost, self._records[0] = self._records[0], record
        self.overwritten += 1
        self.own += not lost[0].own
        return lost

    def take(self) -> list[Pending]:
        """Take everything, oldest first (slot 0 aside, where it was overwritten)."""
        records, self._records = self._records, []
        self.own = 0
        return records
