"""What a node knows, in a few numbers that two nodes can compare.

Instances fall into buckets by their hash; each bucket's number is the exclusive or of the hashes
of its instances' stamps. So a change costs two hashes, and a comparison finds the buckets that
differ, however many instances there are.
"""

from hashlib import blake2b

BUCKETS = 64


class Digest:
    """Of everything that was toggled an odd number of times."""

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS

    def toggle(self, instance: tuple[str, str, int], stamp: tuple[int, str]) -> None:
        """Add a fact, or take it away."""
        text = "\0".join(map(str, (*instance, *stamp)))
        number = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
        self.buckets[bucket(instance)] ^= int.from_bytes(number)

    def differing(self, buckets: list[int]) -> list[int]:
        """Numbers of the buckets that are not alike in ``buckets``; all if these are no such."""
        if len(buckets) != BUCKETS:
            return list(range(BUCKETS))
        pairs = zip(self.buckets, buckets, strict=True)
        return [number for number, (ours, theirs) in enumerate(pairs) if ours != theirs]


def bucket(instance: tuple[str, str, int]) -> int:
    """The number of an instance's bucket, the same at every node."""
    text = "\0".join(map(str, instance)).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=1).digest()[0] % BUCKETS
