"""The role ``sd``: one ServiceDiscovery node."""

import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elkeid.config import Settings
from elkeid.discovery.api import Node, RegistryRoutes, make_api
from elkeid.discovery.registry import Registry
from elkeid.errors import ConfigError
from elkeid.metrics import DiscoveryMetrics, SignedRequestMetrics
from elkeid.web.plain import Liveness
from elkeid.web.signed import SD_REASONS, SignatureCheck
from elkeid.web.site import FaceSite, listen

SWEEP_SECONDS = 5.0  # how much longer than its lease a silent instance may be listed


class _Keys(Protocol):
    @property
    def aksk(self) -> Mapping[str, str]:
        """Access key -> secret key."""


class DiscoveryRole:
    """Serves the registry, and sweeps it.

    Args:
        settings: of this process.
        keys: who may register: ``keys.aksk``.
        reactor: for the port and the sweep.
        wall: seconds since the epoch.
        monotonic: seconds that only go forward.
        random: breaks ties; a seeded one in tests.
    """

    name = "sd"
    log = Logger()

    def __init__(
        self,
        settings: Settings,
        keys: _Keys,
        reactor: Any,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        self._settings, self._reactor = settings.discovery, reactor
        self._monotonic = monotonic
        random = random or Random()  # noqa: S311 - for fairness, not for secrets
        self.registry = Registry(random)
        self.metrics = DiscoveryMetrics(CollectorRegistry(), self.registry.counts)
        host = settings.advertised("discovery")
        shown = f"[{host}]" if ":" in host else host
        routes = RegistryRoutes(
            self.registry,
            Node(f"{shown}:{settings.discovery.port}", settings.discovery.members),
            self.metrics,
            wall=wall,
            monotonic=monotonic,
            random=random,
        )
        check = SignatureCheck(keys.aksk, wall, SD_REASONS)
        SignedRequestMetrics(self.metrics.registry, check.seen.figures)
        api = make_api(
            routes,
            Liveness(self._problems),
            check,
            self.metrics,
            settings.discovery.metrics_networks,
        )
        self.site = FaceSite(api, reactor)
        self._sweep = LoopingCall(self._sweep_once)
        self._sweep.clock = reactor
        self._port: IListeningPort | None = None

    async def start(self) -> None:
        """Open the port.

        Raises:
            ConfigError: more members are listed than this release can keep alike.
            OperatorError: the port cannot be opened.
        """
        if len(self._settings.members) > 1:
            raise ConfigError(
                ["discovery.members: this release runs one ServiceDiscovery; list one"]
            )
        self._port = listen(
            self._reactor,
            self.site,
            self._settings.listen,
            self._settings.port,
            setting="discovery.port",
        )
        self._sweep.start(SWEEP_SECONDS)

    async def stop(self) -> None:
        """Close the port and its connections."""
        if self._sweep.running:
            self._sweep.stop()
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        self.site.close()

    def _problems(self) -> list[str]:
        return [] if self._sweep.running else ["the registry is not swept: restart this role"]

    def _sweep_once(self) -> None:
        try:
            gone = self.registry.sweep(self._monotonic())
        except Exception:  # a LoopingCall ends for good at the first error
            self.log.failure("the registry could not be swept; trying on")
            return
        for record in gone:
            self.metrics.evicted.labels("silent").inc()
            self.log.info(
                "{name} at {ip}, port {port} is silent: evicted",
                name=record.name,
                ip=record.ip,
                port=record.port,
            )
