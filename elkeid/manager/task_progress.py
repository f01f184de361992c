"""Telling whoever listens how tasks go on, each task at most so often."""

from collections.abc import Callable
from typing import Any, Final

from attrs import frozen
from twisted.logger import Logger

from elkeid.manager.store.task_lists import counters

FOLLOWERS: Final = 100
"""Listeners; the live feed is one, whatever its clients."""


@frozen
class TaskProgress:
    """Where a task stands.

    Attributes:
        status: created, running, finished or cancelled.
        paused: why it is paused; empty if it is not.
        counters: ``sub_task_created``, ``_running``, ``_failed``, ``_succeed``, ``_cancelled``.
    """

    task_id: str
    task_name: str
    status: str
    paused: str
    id_count: int
    counters: dict[str, int]


Listener = Callable[[TaskProgress], None]


class Progress:
    """Remembers what was told last, and tells what differs.

    It is fed once a second, so no task is told of more often than that.
    """

    log = Logger()

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._told: dict[int, TaskProgress] = {}

    def follow(self, listener: Listener) -> Callable[[], None]:
        """Tell this listener from now on; returns what ends that."""
        if len(self._listeners) >= FOLLOWERS:
            raise RuntimeError(f"more than {FOLLOWERS} listeners")
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    @property
    def known(self) -> list[int]:
        """Numbers of the tasks that were open when `saw` was called last."""
        return list(self._told)

    def saw(self, rows: list[Any], *, closed: bool = False) -> None:
        """Take rows of `task` as they are now; ``closed`` ones are told of for the last time."""
        for row in rows:
            now = TaskProgress(
                row.task_id, row.task_name, row.status, row.paused, row.id_count, counters(row)
            )
            before = self._told.pop(row.number, None)
            if not closed:
                self._told[row.number] = now
            if now != before:
                self._tell(now)

    def _tell(self, progress: TaskProgress) -> None:
        for listener in list(self._listeners):
            try:
                listener(progress)
            except Exception:
                self.log.failure("a listener to tasks failed")
