"""What operators do with hosts: select some, and change their tags, slice by slice."""

from collections.abc import AsyncIterator, Callable, Collection

import msgspec
from attrs import define

from elkeid.manager.agents import AgentStatus
from elkeid.manager.filter import Test
from elkeid.manager.news import News
from elkeid.manager.store.hosts import restore_hosts, retire_hosts
from elkeid.manager.store.store import Store
from elkeid.manager.store.tags import Retagged, retag

HOSTS_PER_SLICE = 300
"""Hosts in one transaction, in which each one's document is written anew: about 30 ms."""

HOSTS_PER_CHANGE = 200_000
"""Hosts whose tags one call changes: it takes some 30 s."""


class TooManyHosts(Exception):
    """A change is for more hosts than one call may change."""


class _Id(msgspec.Struct):
    agent_id: str


_id_of = msgspec.json.Decoder(_Id).decode


@define
class Retired:
    """What became of hosts that were to be retired."""

    count: int = 0
    connected: int = 0  # and therefore not retired


class Hosts:
    """Hosts as a whole.

    Args:
        agents: as last reported.
        store: open.
        news: tells gateways that tags changed.
        wall: seconds since the epoch.
        ring: events kept of each host.
    """

    def __init__(
        self,
        agents: AgentStatus,
        store: Store,
        news: News,
        *,
        wall: Callable[[], float],
        ring: int,
    ) -> None:
        self._agents, self._store, self._news = agents, store, news
        self._wall, self._ring = wall, ring

    async def documents(self, test: Test) -> AsyncIterator[list[msgspec.Raw]]:
        """The documents of hosts that pass a test, in slices by id, each as of its own moment."""
        last = ""
        while True:
            some = await self._agents.following(test, last, HOSTS_PER_SLICE)
            if not some:
                return
            last = _id_of(some[-1]).agent_id
            yield some

    async def retire(self, test: Test) -> Retired:
        """Note of the hosts that pass a test that they are gone for good.

        Those that are connected are passed over: they would return with their next heartbeat.
        """
        done = Retired()
        async for some in self._ids(test):
            count, connected = await self._store.write(
                retire_hosts, some, int(self._wall()), self._ring
            )
            done.count += count
            done.connected += connected
        return done

    async def restore(self, test: Test) -> int:
        """Note of the hosts that pass a test that they are not gone; return how many were."""
        count = 0
        async for some in self._ids(test):
            count += await self._store.write(restore_hosts, some, int(self._wall()), self._ring)
        return count

    async def _ids(self, test: Test) -> AsyncIterator[list[str]]:
        """The ids of hosts that pass a test, in slices.

        Raises:
            TooManyHosts: more than `HOSTS_PER_CHANGE`.
        """
        some = await self._agents.following_ids(test, "", HOSTS_PER_SLICE)
        count = len(some) if len(some) < HOSTS_PER_SLICE else await self.count(test)
        if count > HOSTS_PER_CHANGE:
            raise TooManyHosts(
                f"{count} hosts are selected, and one call changes {HOSTS_PER_CHANGE} at most: "
                "select fewer"
            )
        while some:
            yield some
            if len(some) < HOSTS_PER_SLICE:
                return
            some = await self._agents.following_ids(test, some[-1], HOSTS_PER_SLICE)

    async def count(self, test: Test) -> int:
        """How many hosts pass a test."""
        return (await self._agents.page(test, 0, 1)).total

    async def retag(self, test: Test, change: Callable[[set[str]], set[str]]) -> Retagged:
        """Change the tags of the hosts that pass a test.

        Args:
            test: which hosts.
            change: what becomes of a host's tags.

        Raises:
            TooManyHosts: nothing was changed.
        """
        done = Retagged()
        async for some in self._ids(test):
            slice_done = await self._store.write(retag, some, change)
            if slice_done.changed:
                self._news.announce(some)
            done += slice_done
        return done


def adding(tags: Collection[str]) -> Callable[[set[str]], set[str]]:
    """The change that gives these tags."""
    return lambda old: old | set(tags)


def removing(tags: Collection[str]) -> Callable[[set[str]], set[str]]:
    """The change that takes these tags."""
    return lambda old: old - set(tags)


def replacing(tags: Collection[str]) -> Callable[[set[str]], set[str]]:
    """The change that leaves these tags and no others."""
    return lambda old: set(tags)
