"""The order in which the instances of one name are to be tried.

Fresh before ever less healthy, draining last; within that those of the asking zone, then by
load, exact ties at random. The load is what the instance reported plus the answers since that
report which named it first, relative to its limit if all instances have one: so a thousand
agents that ask between two reports spread as if each had reported at once.

Source: docs/protocol.md, "ServiceDiscovery API".
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from random import Random

from attrs import define

from elkeid.discovery.load import is_draining, limit_of

DRAINING = 100  # added to the state of a draining instance: after every other one
KEPT_COUNTS = 4  # answers of different length that are kept: agents ask for 10, others for all

Key = tuple[int, bool, float]
"""State (draining: more), whether it is of another zone, load; the least comes first."""


@define(eq=False)
class Candidate:
    """One instance, as far as its place depends on it.

    Args:
        json: its record.
        status: 0 is fresh.
        weight: as reported.
        limit: what it can take, if it says so.
        draining: whether it is leaving.
        zone: where it stands, if known.
        named: answers since its latest report that named it first, those of other nodes
            estimated.
    """

    json: bytes
    status: int
    weight: int
    limit: float | None = None
    draining: bool = False
    zone: str | None = None
    named: float = 0.0


class Order:
    """Candidates in order, for those who ask from one zone.

    Args:
        candidates: all instances of a name.
        zone: that is preferred, if any.
        random: breaks ties.
    """

    def __init__(self, candidates: Iterable[Candidate], zone: str | None, random: Random) -> None:
        everyone = list(candidates)
        self._zone, self._random = zone, random
        self._relative = all(each.limit for each in everyone)
        random.shuffle(everyone)
        self._keys = {each: self._key(each) for each in everyone}
        self._ordered = sorted(everyone, key=self._keys.__getitem__)
        self._sorted_keys = [self._keys[each] for each in self._ordered]
        self._json: dict[int, bytes] = {}

    def json(self, count: int) -> bytes:
        """The first ``count`` records, all for 0, as a JSON array."""
        known = self._json.get(count)
        if known is None:
            if len(self._json) >= KEPT_COUNTS:
                self._json.clear()
            chosen = self._ordered[:count] if count > 0 else self._ordered
            known = self._json[count] = b"[" + b",".join([each.json for each in chosen]) + b"]"
        return known

    def name_first(self, charge: float) -> Candidate | None:
        """Account for an answer that named the first one; it may lose its place.

        Args:
            charge: to add to its load; with 0 it only changes places with its equals.

        Returns:
            The one that was first.
        """
        if not self._ordered:
            return None
        first, keys = self._ordered[0], self._sorted_keys
        first.named += charge
        key = self._keys[first] = keys[0] = self._key(first)
        if len(keys) > 1 and key >= keys[1]:
            del self._ordered[0], keys[0]
            self._place(first, key)
        return first

    def put(self, candidate: Candidate, former: Candidate | None) -> bool:
        """Put a candidate in its place, instead of its former self.

        Returns:
            Whether that was possible; else the order must be made anew.
        """
        limits = candidate.limit is not None, former is None or former.limit is not None
        if limits != (self._relative, self._relative):
            return False
        if former is not None:
            key = self._keys.pop(former)
            at = self._ordered.index(former, bisect_left(self._sorted_keys, key))
            del self._ordered[at], self._sorted_keys[at]
        self._place(candidate, self._key(candidate))
        return True

    def _place(self, candidate: Candidate, key: Key) -> None:
        keys = self._sorted_keys
        at = self._random.randint(bisect_left(keys, key), bisect_right(keys, key))
        keys.insert(at, key)
        self._ordered.insert(at, candidate)
        self._keys[candidate] = key
        self._json.clear()

    def _key(self, each: Candidate) -> Key:
        load = each.weight + each.named
        if self._relative:
            assert each.limit is not None
            load /= each.limit
        away = self._zone is not None and (
            each.zone != self._zone or (self._relative and load >= 1)
        )
        return each.status + DRAINING * each.draining, away, load


def candidate(
    json: bytes, status: int, weight: int, extra: dict[str, object] | None, zone: str | None
) -> Candidate:
    """Make one of a record's fields."""
    return Candidate(json, status, weight, limit_of(extra), is_draining(extra), zone)
