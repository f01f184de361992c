"""Wakes a reader in another thread of the writer's process as soon as there is something new."""

import threading


class Wakeup:
    """One thread waits, others wake it. Costs the writer one look at a flag a commit."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.armed = False
        self.fresh = False  # woken by a commit since it was armed

    def arm(self) -> None:
        """From now on commits wake; to be called before the last look that finds nothing."""
        self.fresh, self.armed = False, True

    def disarm(self) -> None:
        """Commits wake no more."""
        self.armed = False

    def committed(self) -> None:
        """Tell that something was appended."""
        if self.armed:
            self.armed, self.fresh = False, True
            self._event.set()

    def wake(self) -> None:
        """Wake in any case."""
        self._event.set()

    def wait(self, seconds: float) -> None:
        """Wait to be woken, at most so long."""
        self._event.wait(seconds)
        self._event.clear()
