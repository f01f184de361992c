"""How fast telemetry and logs may be written, so that a volume that fills up lasts."""

from math import inf
from typing import Final

from attrs import frozen

ROOM_SECONDS: Final = 30.0
"""What is left on the volume is given out over so long. The rate falls with the room, so that
there is always some for those who need little, as long as any comes back."""


@frozen
class Room:
    """What one look at the volume found, for whoever can say whose records to drop.

    Attributes:
        rate: bytes a second that telemetry and logs may take; 0 while all of them are refused,
            infinite while something can be deleted for them.
        written: bytes of them, since the start of the process.
    """

    rate: float
    written: int


def room_rate(left: int, to_seal: int, sharers: int) -> float:
    """Bytes a second that telemetry and logs may take when no segment can be deleted.

    Args:
        left: bytes free on the volume above what is kept free.
        to_seal: bytes until the segment of telemetry is full; it can be deleted then.
        sharers: processes that write to the volume alike.
    """
    if left >= to_seal * sharers:
        return inf
    return max(0, left) / ROOM_SECONDS / sharers
