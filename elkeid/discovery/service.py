"""The role ``sd``: one ServiceDiscovery node."""

import time
from collections.abc import Callable
from random import Random
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.iweb import IAgent

from elkeid.config import Settings, join_endpoint
from elkeid.descriptors import UNBOUNDED, Shares
from elkeid.discovery.api import Node, RegistryRoutes, make_api
from elkeid.discovery.members import Zones, other_members
from elkeid.discovery.peers import Cluster
from elkeid.discovery.registry import Preservation, Registry
from elkeid.keys import Keys
from elkeid.lifecycle import stop_each
from elkeid.metrics import DiscoveryFigures, DiscoveryMetrics, SignedRequestMetrics
from elkeid.tls import ServerOptions, api_server_options
from elkeid.web.client import Credentials, JsonClient, http_agent
from elkeid.web.plain import Liveness
from elkeid.web.rates import AddressRates
from elkeid.web.signed import SD_REASONS, SignatureCheck
from elkeid.web.site import FaceLimits, FaceSite, listen

SWEEP_SECONDS = 1.0  # how late ageing may be, and a stall of this process be found
BACKLOG = 4096  # connections the kernel holds: a fleet that lost its gateway asks at once
BURST_SECONDS = 10.0  # an address may send ten seconds' worth of requests at once


class DiscoveryRole:
    """Serves the registry, sweeps it, and keeps it and its peers' alike.

    Args:
        settings: of this process.
        keys: who may register, how peers are told; with ``tls_port`` the server's certificate.
        reactor: for ports, timers and calls to peers.
        wall: seconds since the epoch.
        monotonic: seconds that only go forward.
        random: breaks ties; a seeded one in tests.
        agent: makes the calls to peers; for tests.
        node: name of this node, unlike every other one; chosen at random without one.
    """

    name = "sd"
    stop_seconds = 1.0  # for telling peers what still waits
    log = Logger()

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        reactor: Any,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        agent: IAgent | None = None,
        node: str | None = None,
        shares: Shares = UNBOUNDED,
    ) -> None:
        own = self._settings = settings.discovery
        self._keys, self._reactor, self._monotonic = keys, reactor, monotonic
        self._tls: ServerOptions | None = None
        random = random or Random()  # noqa: S311 - for fairness, not for secrets
        node = node or uuid4().hex
        zones = Zones(own.zones)
        self.registry = Registry(
            random,
            node,
            Preservation(own.preserve_instances, own.preserve_share, own.preserve_seconds),
            zones.of_record,
        )
        self.metrics = DiscoveryMetrics(CollectorRegistry(), self._figures)
        host = settings.advertised("discovery")
        shown = join_endpoint(host, own.port)
        self.cluster = Cluster(
            self.registry,
            reactor,
            JsonClient(
                reactor, agent or http_agent(reactor), wall, Credentials(*keys.signing_pair)
            ),
            node=node,
            host=shown,
            members=other_members(own, host),
            wall=wall,
            monotonic=monotonic,
            metrics=self.metrics,
        )
        routes = RegistryRoutes(
            self.registry,
            Node(node, shown, own.members),
            self.cluster,
            self.metrics,
            wall=wall,
            monotonic=monotonic,
            random=random,
            zone=zones.of_address if own.zones else None,
        )
        check = SignatureCheck(keys.aksk, wall, SD_REASONS)
        SignedRequestMetrics(self.metrics.registry, check.seen.figures)
        self._reads = AddressRates(own.read_rate, own.read_rate * BURST_SECONDS, monotonic)
        self._writes = AddressRates(own.write_rate, own.write_rate * BURST_SECONDS, monotonic)
        api = make_api(
            routes,
            Liveness(self._problems, remarks=self._remarks),
            check,
            self.metrics,
            own.metrics_networks,
            reads=self._reads,
            writes=self._writes,
        )
        self.site = FaceSite(api, reactor, FaceLimits(connections=shares.face))
        self._sweep = LoopingCall(self._sweep_once)
        self._sweep.clock = reactor
        self._ports: list[IListeningPort] = []

    async def start(self) -> None:
        """Learn what the peers know, then open the ports.

        Raises:
            OperatorError: a port cannot be opened.
        """
        own = self._settings
        await self.cluster.snapshot()
        self._sweep.start(SWEEP_SECONDS)
        self._ports.append(
            listen(
                self._reactor,
                self.site,
                own.listen,
                own.port,
                setting="discovery.port",
                backlog=BACKLOG,
            )
        )
        if own.tls_port is not None:
            self._tls = api_server_options(self._keys)
            self._ports.append(
                listen(
                    self._reactor,
                    self.site,
                    own.listen,
                    own.tls_port,
                    setting="discovery.tls_port",
                    tls=self._tls,
                )
            )
        self.cluster.start()

    def renew_keys(self, keys: Keys) -> None:
        """Shake hands with these from now on."""
        if self._tls is not None:
            self._tls.renew(keys)

    async def stop(self) -> None:
        """Close the ports, tell the peers what waits, close the connections."""
        if self._sweep.running:
            self._sweep.stop()
        ports, self._ports = self._ports, []
        await stop_each(self.log, *[port.stopListening for port in ports], self.cluster.stop)
        self.site.close()

    def _problems(self) -> list[str]:
        return [] if self._sweep.running else ["the registry is not swept: restart this role"]

    def _remarks(self) -> list[str]:
        remarks = [
            f"{name}: {kept} of {everyone} instances fell silent together and are kept: "
            "see whether they run and reach this node"
            for name, (kept, everyone) in self.registry.preserved().items()
        ]
        return [*remarks, *self.cluster.remarks()]

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

    def _figures(self) -> DiscoveryFigures:
        peers = self.cluster.peers
        return DiscoveryFigures(
            instances=self.registry.counts(),
            preserved={name: kept for name, (kept, _) in self.registry.preserved().items()},
            peers_up={peer.address: int(peer.alive) for peer in peers},
            peers_waiting={peer.address: len(peer.outbox) for peer in peers},
            rate_refused={"read": self._reads.refused, "write": self._writes.refused},
        )
