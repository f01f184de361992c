"""The parts that keep hosts at their configs, put together: store, peers, push and routes."""

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from elkeid.agentcenter.commands import Commands
from elkeid.agentcenter.config_push import ConfigPush
from elkeid.agentcenter.config_store import ConfigStore
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.last_configs import LastConfigRoutes, LastConfigs, Peers
from elkeid.agentcenter.manager_client import ManagerClient
from elkeid.metrics import ConfigFigures
from elkeid.web.client import JsonClient

STORE_FILE = "last-configs.db"


class ConfigParts:
    """Runs them for one AgentCenter.

    Args:
        gateway: whose agents.
        commands: sends to them.
        manager: is asked for configs.
        peers_http: asks other AgentCenters; closed by `stop`.
        own: ``host:port`` of this one's API, as ServiceDiscovery lists it.
        data_dir: where the last configs are kept.
        reactor: for timers and the store's thread.
        wall: unix seconds.
    """

    def __init__(
        self,
        gateway: Gateway,
        commands: Commands,
        manager: ManagerClient,
        peers_http: JsonClient,
        *,
        own: str,
        data_dir: Path,
        reactor: Any,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._reactor, self._http = reactor, peers_http
        self._pool = ThreadPool(1, 1, name="configs")
        self._store = ConfigStore(
            data_dir / STORE_FILE,
            reactor,
            self._in_thread,
            wall,
            lambda: [agent.agent_id for agent in gateway.table],
        )
        self.peers = Peers(reactor, peers_http, own, wall)
        self._last = LastConfigs(self._store, self.peers, reactor, wall)
        self.push = ConfigPush(
            gateway.table,
            commands,
            manager,
            self._last,
            clock=reactor,
            wall=gateway.wall,
            random=Random(),  # noqa: S311 - spreads pauses
            trust_empty=gateway.settings.trust_empty_config,
        )
        gateway.follow(self.push)
        self.routes = (LastConfigRoutes(self._store),)

    def _in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._pool, function, *args)

    async def start(self) -> None:
        """Open the store.

        Raises:
            OperatorError: it cannot be opened.
        """
        self._pool.start()
        await self._store.open()

    async def stop(self) -> None:
        """Ask and send no more, and write what was delivered."""
        self.push.stop()
        self._last.stop()
        try:
            await self._http.close()
            await self._store.close()
        finally:
            if self._pool.started:
                self._pool.stop()

    def figures(self) -> ConfigFigures:
        """What is shown of these parts."""
        return evolve(
            self.push.figures(),
            store_failures=self._store.failures,
            peer_failures=self.peers.failures,
        )
