"""What the gateway counts while it runs: plain integers, read when somebody scrapes."""

from collections import Counter


class Counters:
    """Totals since the start of the process."""

    def __init__(self) -> None:
        self.handshakes = 0
        self.failed_handshakes = 0
        self.messages = 0
        self.records = 0
        self.unidentified = 0  # streams whose agent sent an empty id
        self.bad_heartbeats = 0
        self.over_budget = 0  # times a stream's window was not refilled for its agent's budget
        self.refused_messages: Counter[str] = Counter()  # half messages ended, by reason
        self.refused: Counter[str] = Counter()  # streams that we refused or broke off, by reason
        self.statuses: Counter[int] = Counter()  # gRPC status -> calls that we ended with it
        self.data_types: Counter[int] = Counter()  # data type -> records

    def ended(self, status: int) -> None:
        """Count a call that ended with ``status``."""
        self.statuses[status] += 1
