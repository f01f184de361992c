"""Room for the bodies of requests under way: what has arrived counts, not what is announced.

Who announces much and sends nothing takes nothing from the others, and who does send takes no
more than one address's share. The last part of all room is for small bodies alone, so that logins
and operators get in while large ones fill the rest.
"""

from elkeid.web.routes import KiB

SMALL_BODY = 64 * KiB
"""Bytes: a login and most calls of operators and agents have fewer."""

KEPT_PART = 8
"""One in so many bytes of all room, and of each share, is kept for bodies up to `SMALL_BODY`: of
128 MiB that is 256 of them at once."""


class BodyRoom:
    """Counts the bytes of bodies, all together and by address.

    Args:
        total: bytes that all bodies hold at most.
        share: bytes that the bodies from one address hold at most.

    Attributes:
        held: bytes held now.
    """

    def __init__(self, total: int, share: int) -> None:
        self.held = 0
        self._total, self._share = total, share
        self._large_total = total - total // KEPT_PART
        self._large_share = share - share // KEPT_PART
        self._addresses: dict[str, int] = {}  # bytes by address, of those that hold any

    def has(self, address: str, more: int, size: int) -> bool:
        """Say whether ``more`` bytes would fit for a body that has ``size`` with them."""
        total, share = self._total, self._share
        if size > SMALL_BODY:
            total, share = self._large_total, self._large_share
        return self.held + more <= total and self._addresses.get(address, 0) + more <= share

    def take(self, address: str, more: int, size: int) -> bool:
        """Hold ``more`` bytes for a body that has ``size`` with them, if they fit."""
        if not self.has(address, more, size):
            return False
        self.held += more
        self._addresses[address] = self._addresses.get(address, 0) + more
        return True

    def give_back(self, address: str, size: int) -> None:
        """Hold ``size`` bytes fewer."""
        self.held -= size
        left = self._addresses[address] - size
        if left:
            self._addresses[address] = left
        else:
            del self._addresses[address]
