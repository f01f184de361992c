"""How much one address may ask for: a token bucket each, of which only the busy are remembered."""

from collections.abc import Callable

ADDRESSES = 10_000  # remembered at once, about 2 MB; beyond, the longest known start afresh


class AddressRates:
    """Token buckets by address.

    Args:
        rate: requests a second.
        burst: requests at once after a pause.
        clock: seconds; where they go back, no time has passed.

    Attributes:
        refused: requests above the rate so far.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted
        self.refused = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str) -> bool:
        """Say whether a request from this address passes."""
        now, buckets = self._clock(), self._buckets
        known = buckets.get(address)
        if known is None:
            if len(buckets) >= ADDRESSES:
                del buckets[next(iter(buckets))]
            tokens = self._burst
        else:
            passed = max(0.0, now - known[1])
            tokens = min(self._burst, known[0] + passed * self._rate)
        if tokens < 1:
            self.refused += 1
            buckets[address] = tokens, now
            return False
        buckets[address] = tokens - 1, now
        return True
