"""The role ``ac``: one AgentCenter process."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from twisted.web.iweb import IPolicyForHTTPS

from elkeid.agentcenter.admin import AdminRoutes
from elkeid.agentcenter.api import ENVELOPE, ConnectionRoutes
from elkeid.agentcenter.command_api import CommandRoutes
from elkeid.agentcenter.commands import Commands
from elkeid.agentcenter.config_parts import ConfigParts
from elkeid.agentcenter.config_push import FETCHES
from elkeid.agentcenter.door import Door
from elkeid.agentcenter.drain import Drain, DrainState
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.last_configs import BATCHES
from elkeid.agentcenter.link import AgentLink
from elkeid.agentcenter.manager_client import ManagerClient
from elkeid.agentcenter.neighbours import Neighbours, reaches
from elkeid.agentcenter.per_agent import PerAgentMetrics
from elkeid.agentcenter.probe_api import ProbeRoutes
from elkeid.agentcenter.refresh_api import RefreshRoutes
from elkeid.agentcenter.reset import ResetRoutes
from elkeid.agentcenter.results import ResultsOutbox
from elkeid.agentcenter.siblings import Siblings
from elkeid.agentcenter.silence import SilenceWatch
from elkeid.agentcenter.sockets import AgentsPort
from elkeid.agentcenter.tag_store import TagStore
from elkeid.agentcenter.tags import TagBook
from elkeid.agentcenter.tls_socket import TlsSocket
from elkeid.agentcenter.upload_tokens import TokenCheck, UploadTokenRoutes
from elkeid.agentcenter.uploads import Uploads
from elkeid.agentcenter.watch import SocketWatch
from elkeid.config import Settings, join_endpoint
from elkeid.descriptors import UNBOUNDED, Shares
from elkeid.discovery.client import DiscoveryClient
from elkeid.discovery.load import report
from elkeid.eventlog.log import EventLog
from elkeid.garbage import pauses
from elkeid.kafka.service import KafkaFeed
from elkeid.keys import Keys
from elkeid.lateness import LatenessMonitor
from elkeid.lifecycle import stop_each
from elkeid.metrics import (
    AdmissionFigures,
    AdmissionMetrics,
    AgentCenterMetrics,
    AgentMetrics,
    CommandMetrics,
    ConfigMetrics,
    GarbageMetrics,
    GatewayFigures,
    LatenessMetrics,
    ResultMetrics,
    SignedRequestMetrics,
    TagMetrics,
    UploadMetrics,
)
from elkeid.process import CpuShare
from elkeid.tls import agent_listener_options, api_server_options, https_policy
from elkeid.tls_engine import ServerTls, TlsBuffers
from elkeid.web.api import Api
from elkeid.web.client import Credentials, JsonClient, http_agent
from elkeid.web.plain import Liveness, MetricsPage
from elkeid.web.routes import AuthKind
from elkeid.web.signed import SignatureCheck
from elkeid.web.site import FaceLimits, FaceSite, listen, listening
from elkeid.workers import Worker, left_behind, left_behind_text, siblings

GRPC_NAME: Final = "hids_svr_grpc"  # agents look for this very name
HTTP_NAME: Final = "hids_svr_http"

DRAIN_SECONDS = 6.0
"""For draining at a stop: agents find another gateway, and each is read to its end (5 s)."""


class AgentCenterRole:
    """Runs the agents' port, the HTTP API, and the event log behind them.

    Args:
        settings: of this process.
        keys: server certificate, and the access keys of the inner APIs.
        reactor: for ports, timers and threads.
        worker: which one this process is, if several share the agents' port.
    """

    name = "ac"
    stop_seconds = 7.2  # leaving ServiceDiscovery, reading agents to their end, closing the log
    log = Logger()

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        reactor: Any,
        *,
        worker: Worker | None = None,
        shares: Shares = UNBOUNDED,
    ) -> None:
        self._settings, self._keys, self._reactor = settings, keys, reactor
        self._worker, self._shares = worker, shares
        self._pool = ThreadPool(1, 4, name="eventlog")
        self._buffers = TlsBuffers()
        self.event_log = EventLog(
            self.log_directory(settings),
            settings.eventlog,
            reactor,
            self._in_thread,
            sharers=1 if worker is None else worker.of,
        )
        self._watch = SocketWatch(reactor, self.event_log)
        self.gateway = Gateway(
            settings.agentcenter, self.event_log, reactor, in_thread=self._in_thread
        )
        self.commands = Commands(self.gateway.table.get, reactor)
        self.gateway.follow(self.commands)
        self.registry = CollectorRegistry()
        AgentCenterMetrics(self.registry, self._figures)
        GarbageMetrics(self.registry, lambda: pauses)
        if settings.agentcenter.agent_metrics:
            per_agent = PerAgentMetrics(settings.agentcenter.agent_metrics)
            self.gateway.per_agent = per_agent
            self.gateway.follow(per_agent)
            AgentMetrics(self.registry, per_agent.gauges)
        AdmissionMetrics(self.registry, self._admission)
        self.lateness = LatenessMonitor(reactor, time.monotonic)
        LatenessMetrics(self.registry, self.lateness.figures)
        CommandMetrics(self.registry, self.commands.figures)
        self._agents_tls = agent_listener_options(keys)
        self._api_tls = api_server_options(keys)
        self._peers_tls = https_policy(keys)
        self._manager_http = self._http(kept=FETCHES)
        self._manager = ManagerClient(self._manager_http, settings.manager.members)
        self.configs = ConfigParts(
            self.gateway,
            self.commands,
            self._manager,
            self._http(self._peers_tls, kept=BATCHES),
            own=join_endpoint(settings.advertised("agentcenter"), settings.agentcenter.http_port),
            data_dir=settings.server.data_dir,
            reactor=reactor,
        )
        ConfigMetrics(self.registry, self.configs.figures)
        self.results = ResultsOutbox(
            settings.server.data_dir / "results",
            cap_bytes=settings.agentcenter.results_cap_bytes,
            fsync=settings.eventlog.fsync,
            clock=reactor,
            in_thread=self._in_thread,
            manager=self._manager,
            wall=time.time,
        )
        self.event_log.before_commit = self.results.commit
        self.event_log.looked = self.gateway.intake.shedder.look
        self.gateway.follow(self.results)
        self.gateway.results_refused = self.results.refused
        ResultMetrics(self.registry, self.results.figures)
        self.tags = TagBook(
            self.gateway.table,
            clock=reactor,
            in_thread=self._in_thread,
            manager=self._manager,
            store=TagStore(settings.server.data_dir / "tags.db"),
            wait_seconds=settings.agentcenter.tag_wait_seconds,
            slices=self.gateway.slices,
        )
        self.gateway.know_tags(self.tags)
        self._upload_pool = ThreadPool(0, 2, name="uploads")  # deflating takes a whole thread
        self._peer_http = self._http(self._peers_tls)
        self.uploads = Uploads(
            self.gateway,
            folder=settings.server.data_dir / "agent-uploads",
            in_thread=partial(deferToThreadPool, reactor, self._upload_pool),
            manager=self._manager,
            results=self.results,
            check=TokenCheck(
                self.gateway.tokens,
                manager=self._manager,
                peers=lambda: self.configs.peers.addresses,
                listed=self._listed_peers,
                http=self._peer_http,
                clock=reactor,
                monotonic=time.monotonic,
            ),
            room=self._room,
        )
        UploadMetrics(self.registry, self.uploads.figures)
        TagMetrics(self.registry, self.tags.figures)
        self.gateway.held_elsewhere += [
            lambda: self.commands.bytes,
            lambda: self.tags.held_bytes,
            lambda: self.uploads.queued_bytes,
        ]
        self._neighbours: Neighbours | None = None
        self.door = Door(
            settings.agentcenter,
            self.gateway,
            reactor,
            listen=self._listen_for_agents,
            secure=self._secure,
            others_have_room=self._others_have_room,
            connections=shares.agents,
        )
        self.gateway.turns_away = self.door.turns_away
        self.silence = SilenceWatch(reactor, lambda: self.gateway.links)
        self._discovery = DiscoveryClient(reactor, self._http(), settings.discovery.members)
        self._address = settings.advertised("agentcenter")
        self._siblings: Siblings | None = None
        if worker is not None:
            self._siblings = Siblings(
                self.gateway,
                self._http(self._peers_tls),
                siblings(worker, settings),
                reactor,
                time.monotonic,
            )
            self.gateway.follow(self._siblings)
        self.drain = Drain(
            self.gateway,
            self._discovery,
            name=GRPC_NAME,
            address=(self._address, settings.agentcenter.grpc_port),
            close_port=self.door.close,
            open_port=self._take_agents,
            clock=reactor,
            siblings=worker is not None and worker.of > 1,
        )
        self._kafka: KafkaFeed | None = None
        if settings.kafka.brokers:
            directory = self.log_directory(settings)
            self._kafka = KafkaFeed(
                settings.kafka, directory, self.event_log, self.registry, self._in_thread
            )
        self._api_port: IListeningPort | None = None
        self._site: FaceSite | None = None
        self._registered = False
        self._stopping = False
        self._cpu = CpuShare()

    @staticmethod
    def log_directory(settings: Settings) -> Path:
        """Where this process keeps its event log."""
        return settings.server.data_dir / "eventlog"

    def _in_thread(self, function: Any, *args: Any, **named: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._pool, function, *args, **named)

    def _room(self) -> int:
        """Bytes of disk that uploads may still take."""
        stats = self.event_log.stats()
        return stats.free_bytes - stats.min_free_bytes

    async def _listed_peers(self) -> Sequence[str]:
        """APIs of the other gateways, of those just listed too."""
        return self.configs.peers.others(await self._discovery.lookup(HTTP_NAME))

    def _http(self, policy: IPolicyForHTTPS | None = None, kept: int = 2) -> JsonClient:
        """A client of its own: of plain HTTP, or of HTTPS servers by ``policy``."""
        agent = http_agent(self._reactor, policy, kept)
        return JsonClient(self._reactor, agent, time.time, Credentials(*self._keys.signing_pair))

    async def start(self) -> None:
        """Open the log, then the API, then the agents' port; then tell ServiceDiscovery.

        Raises:
            OperatorError: the log or a port cannot be opened.
        """
        settings = self._settings.agentcenter
        if self._worker is None:
            for path in left_behind(self._settings, 1):
                self.log.warn("{text}", text=left_behind_text(path))
        self._pool.start()
        await self.event_log.open()
        if self._kafka is not None:
            self._kafka.start()
        check = SignatureCheck(self._keys.aksk, time.time)
        SignedRequestMetrics(self.registry, check.seen.figures)
        await self.results.open()
        await self.tags.open()
        await self.configs.start()
        self._upload_pool.start()
        await self.uploads.open()
        api = Api(
            ENVELOPE,
            (
                ConnectionRoutes(self.gateway, self._reactor, self.event_log.ledger),
                CommandRoutes(self.commands, self.gateway.tokens, self.configs.push.commanded),
                *self.configs.routes,
                RefreshRoutes(self.configs.push.refresh, self.tags.refresh),
                UploadTokenRoutes(self.gateway.tokens),
                ProbeRoutes(self.gateway),
                ResetRoutes(self.gateway, self._reactor, Random()),  # noqa: S311 - no secret
                *([] if self._siblings is None else [self._siblings]),
                AdminRoutes(
                    self.drain,
                    self.gateway,
                    self._reactor.stop,
                    self._reactor,
                    None if self._siblings is None else self._siblings.ask,
                ),
                Liveness(
                    self._problems,
                    remarks=tuple if self._kafka is None else self._kafka.remarks,
                ),
            ),
            {AuthKind.SIGNED: check},
        )
        api.mount("/metrics", MetricsPage(self.registry, settings.metrics_networks, api.refusal))
        self._site = FaceSite(api, self._reactor, FaceLimits(connections=self._shares.api))
        self._api_port = listen(
            self._reactor,
            self._site,
            settings.listen,
            settings.http_port,
            setting="agentcenter.http_port",
            tls=self._api_tls,
        )
        self._take_agents()
        self._discovery.register(HTTP_NAME, self._address, settings.http_port, self._load)
        self._discovery.watch(HTTP_NAME, self.configs.peers.changed)
        self._registered = True
        self._neighbours = Neighbours(
            self._reactor,
            partial(self._discovery.lookup, GRPC_NAME),
            partial(self._discovery.known, GRPC_NAME),
            (self._address, settings.grpc_port),
            partial(reaches, self._reactor),
        )
        self._neighbours.start()
        self.silence.start()
        self.lateness.start()

    def _take_agents(self) -> None:
        """Open the agents' port and let ServiceDiscovery list it, unless it is so."""
        if self.door.is_closed:
            self.door.open()
        # Several workers of a host have one process that does so for all of them.
        if self._worker is None and not self._discovery.registers(GRPC_NAME):
            port = self._settings.agentcenter.grpc_port
            self._discovery.register(GRPC_NAME, self._address, port, self._load)

    def renew_keys(self, keys: Keys) -> None:
        """Shake hands with these from now on; streams go on."""
        self._keys = keys
        for options in (self._agents_tls, self._api_tls, self._peers_tls):
            options.renew(keys)

    def _listen_for_agents(self, door: Door) -> IListeningPort:
        settings = self._settings.agentcenter
        port = AgentsPort(
            settings.grpc_port,
            door,
            settings.listen,
            self._reactor,
            entrance=door,
            watch=self._watch,
            shared=self._worker is not None,
        )
        with listening("agentcenter.grpc_port", settings.listen, settings.grpc_port):
            port.startListening()
        return port

    def _secure(self, transport: TlsSocket, link: AgentLink, held: bytes) -> None:
        transport.start_tls(ServerTls(self._agents_tls.connection(), self._buffers), link, held)

    def _others_have_room(self) -> bool:
        return self._neighbours is not None and self._neighbours.have_room()

    def _load(self) -> tuple[int, dict[str, Any] | None]:
        """Weight and extra for ServiceDiscovery."""
        limit = min(self._settings.agentcenter.connection_limit, self._shares.agents)
        draining = self.drain.state is not DrainState.SERVING
        return len(self.gateway.table), report(limit, self._cpu(), draining)

    async def stop(self) -> None:
        """Send agents elsewhere, read each to its end, leave ServiceDiscovery, flush the log."""
        self._stopping = True
        try:
            await stop_each(self.log, self.silence.stop, self.lateness.stop)
            if self._registered:
                await stop_each(self.log, partial(self.drain.finish, DRAIN_SECONDS))
            if self._neighbours is not None:
                await stop_each(self.log, self._neighbours.stop)
            if self._siblings is not None:
                await stop_each(self.log, self._siblings.stop)
            await stop_each(self.log, self.door.close, self._discovery.stop)
            if self._api_port is not None:
                await stop_each(self.log, self._api_port.stopListening)
        finally:  # also when time is up: what was accepted must be in the log
            self.gateway.abort()
            if self._site is not None:
                self._site.close()
            try:
                if self._kafka is not None:
                    await stop_each(self.log, self._kafka.stop)
                await stop_each(
                    self.log,
                    self.event_log.close,
                    self.uploads.stop,
                    self.results.stop,
                    self.tags.stop,
                    self.configs.stop,
                    self._manager_http.close,
                    self._peer_http.close,
                )
            finally:
                if self._upload_pool.started:
                    self._upload_pool.stop()
                if self._pool.started:
                    self._pool.stop()

    def _problems(self) -> list[str]:
        """What keeps this role from its job, for ``/ready``."""
        if not self._registered:
            return ["not started yet"]
        if self._stopping:
            return ["stopping"]
        if self.drain.state is not DrainState.SERVING:
            return [str(self.drain.state)]
        problems = [
            *self.event_log.problems(),
            *self.gateway.intake.shedder.problems(),
            *self.results.problems(),
            *self._discovery.problems(),
        ]
        if self.gateway.memory.spent:
            problems.append(
                f"{self.gateway.memory.waiting} messages wait for room in agentcenter.memory_bytes"
            )
        if self.door.full:
            problems.append(
                f"full: {self._settings.agentcenter.connection_limit} connections are here, "
                "as agentcenter.connection_limit allows"
            )
        return problems

    def _admission(self) -> AdmissionFigures:
        gateway, door = self.gateway, self.door
        counters, memory = gateway.counters, gateway.memory
        claims = gateway.table.claims
        return AdmissionFigures(
            port_open=door.is_open,
            port_closings=door.closings,
            connections=len(gateway.links),
            handshakes={
                "silent": door.silent,
                "waiting": door.handshakes.waiting,
                "under_way": door.handshakes.under_way,
                "slow": door.handshakes.slow,
            },
            turned_away=door.refused,
            refused_streams=counters.refused,
            refused_messages=counters.refused_messages,
            over_budget=counters.over_budget,
            memory_bytes=memory.used,
            memory_limit_bytes=memory.limit,
            memory_waiting=memory.waiting,
            memory_waits=memory.waits,
            memory_evictions=memory.evictions,
            unpacked=gateway.unpacker.messages,
            vanished=self.silence.vanished,
            turns_cut=self._watch.cut,
            slices_waiting=len(gateway.slices),
            listed={
                "conflicts": len(claims.conflicts),
                "replaced": len(claims.replaced),
                "unidentified": len(claims.unidentified),
            },
        )

    def _figures(self) -> GatewayFigures:
        gateway = self.gateway
        counters, table = gateway.counters, gateway.table
        stats = self.event_log.stats()
        classes = {cls.label: each for cls, each in stats.classes.items()}
        return GatewayFigures(
            agents=len(table),
            streams=gateway.streams,
            connection_limit=self._settings.agentcenter.connection_limit,
            handshakes=counters.handshakes,
            failed_handshakes=counters.failed_handshakes,
            messages=counters.messages,
            commands=self.commands.written,
            agent_records=None if gateway.per_agent is None else gateway.per_agent.records,
            records={str(kind): count for kind, count in counters.data_types.items()},
            ended={str(int(status)): count for status, count in counters.statuses.items()},
            unidentified=counters.unidentified,
            bad_heartbeats=counters.bad_heartbeats,
            lines_left_out=sum(
                each.complaints.left_out for each in (gateway, self.configs.push, self.silence)
            ),
            lost_before={
                "buffer": gateway.arrivals.dropped,
                "flight": gateway.arrivals.in_flight,
            },
            replaced=table.replaced,
            hands_changed=table.hands_changed,
            conflicts=table.conflicts,
            log_read={name: each.read for name, each in classes.items()},
            log_appended={name: each.next_offset for name, each in classes.items()},
            log_dropped={
                (name, reason): count
                for name, each in classes.items()
                for reason, count in each.dropped.items()
            },
            log_bytes={name: each.bytes_on_disk for name, each in classes.items()},
            log_cap_bytes={name: each.cap_bytes for name, each in classes.items()},
            log_segments={name: each.segments for name, each in classes.items()},
            log_lost_records={name: each.lost_records for name, each in classes.items()},
            log_failures={
                (name, operation): count
                for name, each in classes.items()
                for operation, count in (
                    ("write", each.write_failures),
                    ("sync", each.sync_failures),
                )
            },
            log_backlogs=self.event_log.backlogs,
            log_free_bytes=stats.free_bytes,
            log_share_bytes=gateway.intake.shedder.level,
            log_shed_agents=gateway.intake.shedder.agents,
            certificate_expiry={name: at.timestamp() for name, at in self._keys.expiry.items()},
        )
