"""Finds agents that vanished without a word.

The kernel asks an idle connection for a sign of life itself, but what answers there may be a
proxy, or the kernel of a host whose agent hangs. An HTTP/2 PING is answered by the agent.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from elkeid.agentcenter.link import AgentLink
from elkeid.log_limit import LimitedLog

SWEEP_SECONDS: Final = 5.0

QUIET_SWEEPS: Final = 12
"""Sweeps without a byte, some 60 s, after which the peer is asked. Real agents heartbeat every
60 s."""

ANSWER_SECONDS: Final = 20.0
"""For the answer: so a vanished agent is noticed within 85 s."""


class SilenceWatch:
    """Asks peers that have been quiet, and resets those that do not answer.

    Args:
        clock: for the sweeps.
        links: all connections.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, links: Callable[[], Iterable[AgentLink]]) -> None:
        self._clock, self._links = clock, links
        self._timer: IDelayedCall | None = None
        self.vanished = 0
        self.complaints = LimitedLog(self.log, clock.seconds)

    def start(self) -> None:
        """Sweep from now on."""
        self._timer = self._clock.callLater(SWEEP_SECONDS, self._sweep)

    def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = self._clock.callLater(SWEEP_SECONDS, self._sweep)
        quiet = []
        for link in self._links():
            if link.reads != link.reads_seen or link.unread:
                link.reads_seen = link.reads
                link.quiet_sweeps = 0
            else:
                link.quiet_sweeps += 1
                if link.quiet_sweeps == QUIET_SWEEPS:
                    quiet.append(link)
        for link in quiet:
            link.quiet_sweeps = 0
            link.probe(ANSWER_SECONDS, partial(self._told, link))

    def _told(self, link: AgentLink, answered: bool) -> None:
        if answered or link.lost:
            return
        self.vanished += 1
        self.complaints.info("{peer}: vanished; reset", peer=link.peer)
        link.abort()
