"""The role ``manager``: the operators' API, and fresh agent status behind it."""

import time
from collections.abc import Callable
from typing import Any

from argon2 import PasswordHasher
from attrs import asdict
from prometheus_client import CollectorRegistry
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from twisted.web.iweb import IAgent

from elkeid import __version__
from elkeid.config import Settings, is_loopback
from elkeid.descriptors import UNBOUNDED, Shares
from elkeid.discovery.client import DiscoveryClient
from elkeid.discovery.load import VERSION
from elkeid.discovery.registry import Record
from elkeid.keys import Keys
from elkeid.lifecycle import stop_each
from elkeid.manager.access import Access
from elkeid.manager.account_api import AccountRoutes
from elkeid.manager.accounts import Accounts
from elkeid.manager.acpoll import AC_NAME, AcPoll
from elkeid.manager.agent_api import AgentRoutes
from elkeid.manager.agents import AgentStatus
from elkeid.manager.aging import Aging
from elkeid.manager.api import ABOUT, PONG, ElsewhereRoutes, TokenCheck, make_api
from elkeid.manager.audit import AuditLog
from elkeid.manager.audit_api import AuditRoutes
from elkeid.manager.claim_watch import ClaimWatch
from elkeid.manager.cluster import MANAGER_NAME, Cluster
from elkeid.manager.cluster_api import ClusterRoutes
from elkeid.manager.config_api import ConfigRoutes
from elkeid.manager.drops import DropGuard
from elkeid.manager.fanout import Gateways
from elkeid.manager.host_parts import HostParts
from elkeid.manager.inner_api import InnerRoutes
from elkeid.manager.inner_check import InnerCheck
from elkeid.manager.job_api import AnnouncementRoutes, JobRoutes
from elkeid.manager.lists import LongLists
from elkeid.manager.live import LiveFeed
from elkeid.manager.live_api import LiveRoutes
from elkeid.manager.logins import Logins
from elkeid.manager.news import CONFIG_PATH, TAGS_PATH, News
from elkeid.manager.passwords import HASHER, Passwords
from elkeid.manager.removal import HostRemoval
from elkeid.manager.retention import Retention, Rule
from elkeid.manager.shared_api import DownloadRoutes, UploadRoutes
from elkeid.manager.store.backends import database_of
from elkeid.manager.store.store import THREADS, PoolThreads, Store, Threads
from elkeid.manager.syslog import AuditSyslog
from elkeid.manager.task_api import TaskRoutes
from elkeid.manager.task_api6 import AgentTaskRoutes
from elkeid.manager.task_sending import PER_AC, HttpSender
from elkeid.manager.tasks import make_tasks
from elkeid.manager.uploads import Uploads
from elkeid.manager.user_api import UserRoutes
from elkeid.metrics import ClaimMetrics, LiveMetrics, ManagerMetrics, SignedRequestMetrics
from elkeid.tls import api_server_options, https_policy
from elkeid.web.api import Api, Authenticator, Gate
from elkeid.web.client import Credentials, JsonClient, http_agent
from elkeid.web.documentation import DocumentationRoutes
from elkeid.web.plain import Liveness
from elkeid.web.routes import AuthKind
from elkeid.web.site import FaceLimits, FaceSite, listen

HASHING_THREADS = 1
"""Beside the store's own threads, so that a flood of logins does not hold up queries."""


class ManagerRole:
    """Serves operators and polls every AgentCenter.

    Args:
        settings: of this process.
        keys: certificates, and the key that signs our calls.
        reactor: for ports, timers and threads.
        wall: seconds since the epoch.
        monotonic: seconds that pass, whatever the wall clock is set to.
        threads: where blocking work runs; a pool of our own by default.
        discovery_agent: makes calls to ServiceDiscovery; for tests.
        ac_agent: makes calls to AgentCenters; for tests.
        hasher: hashes passwords; a weak one in tests.
    """

    name = "manager"
    log = Logger()

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        reactor: Any,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        threads: Threads | None = None,
        discovery_agent: IAgent | None = None,
        ac_agent: IAgent | None = None,
        hasher: PasswordHasher = HASHER,
        shares: Shares = UNBOUNDED,
    ) -> None:
        self._settings, self._reactor, self._shares = settings, reactor, shares
        manager = settings.manager
        self._pool: ThreadPool | None = None
        if threads is None:
            self._pool = ThreadPool(0, THREADS + HASHING_THREADS, "manager")
            threads = PoolThreads(reactor, self._pool)
        self.store = Store(database_of(settings), threads)
        self.aging = Aging(self.store, wall, monotonic)
        self.hosts = HostParts(settings, self.store, threads, reactor, wall)
        self._lists = LongLists(wall)
        self.agents = AgentStatus(
            self.store, reactor, wall, manager.offline_seconds, self.hosts.watch, lists=self._lists
        )
        credentials = Credentials(*keys.signing_pair)
        sd_http = JsonClient(reactor, discovery_agent or http_agent(reactor), wall, credentials)
        self.discovery = DiscoveryClient(
            reactor,
            sd_http,
            settings.discovery.members,
        )
        self.metrics = ManagerMetrics(
            CollectorRegistry(),
            agents=lambda: self.agents.total,
            store_pending=lambda: self.store.pending,
            skews=lambda: dict(self.polls.skews()),
            ahead=lambda: self.aging.ahead,
            bodies=self._bodies,
        )
        self._guard(keys, threads, wall, hasher)
        self._api_tls = None if manager.tls_port is None else api_server_options(keys)
        self._ac_tls = https_policy(keys) if ac_agent is None else None
        ac_http = JsonClient(
            reactor, ac_agent or http_agent(reactor, self._ac_tls), wall, credentials
        )
        self.news = News(reactor, ac_http, CONFIG_PATH)
        self.tag_news = News(reactor, ac_http, TAGS_PATH)
        gateways = Gateways(reactor, ac_http)
        self.live = LiveFeed(reactor, wall)
        LiveMetrics(self.metrics.registry, self.live.figures)
        self.claims = ClaimWatch(
            self.agents, gateways, reactor, wall=wall, threads=threads, tell=self.live.tell
        )
        ClaimMetrics(self.metrics.registry, self.claims.figures)
        self.polls = AcPoll(
            reactor,
            ac_http,
            self.claims,
            self.metrics,
            poll_seconds=manager.poll_seconds,
        )
        self._cluster = Cluster(
            reactor,
            gateways,
            self.discovery,
            self.polls,
            http=sd_http,
            members=settings.discovery.members,
            zones=settings.discovery.zones,
            across=self.claims.conflicts,
        )
        command_agent = ac_agent or http_agent(reactor, self._ac_tls, PER_AC)
        sender = HttpSender(reactor, JsonClient(reactor, command_agent, wall, credentials))
        self.task_engine, self.tasks = make_tasks(
            reactor, self.store, sender, wall, settings=manager, registry=self.metrics.registry
        )
        self._liveness = Liveness(self.problems, PONG, self.aging.remarks)
        inner_check = InnerCheck(
            keys.aksk, wall, manager.inner_networks, manager.accept_unsigned_inner
        )
        SignedRequestMetrics(self.metrics.registry, inner_check.seen.figures)
        token_check = TokenCheck(self.access, self.audit)
        self._checks: dict[AuthKind, Authenticator] = {
            AuthKind.TOKEN: token_check,
            AuthKind.SIGNED: inner_check,
        }
        self._gates: dict[AuthKind, Gate] = {AuthKind.SIGNED: inner_check.admit}
        self.uploads = Uploads(
            settings.server.data_dir / "uploads",
            self.store,
            threads,
            wall,
            manager.upload_quota_bytes,
        )
        self.retention = Retention(
            reactor,
            self.aging.now,
            [
                Rule("files of agents", manager.upload_seconds, self.uploads.forget_some),
                Rule("tasks", manager.task_retention, self.tasks.forget_some),
                Rule("entries of the audit log", manager.audit_seconds, self.audit.forget_some, 6),
                *self.hosts.history.rules(),
                *HostRemoval(self.store, self.metrics.hosts_removed, manager).rules(),
            ],
        )
        drops = DropGuard(wall, manager.drop_hosts, manager.drop_seconds)
        inner = [
            InnerRoutes(self.store, self.metrics, drops, wall, monotonic),
            UploadRoutes(self.uploads, self.metrics),
            AnnouncementRoutes(),
        ]
        documentation = DocumentationRoutes(ABOUT)
        groups = [
            documentation,
            *self._user_routes,
            AgentRoutes(self.agents),
            ConfigRoutes(self.store, drops, wall, self.news.announce),
            ClusterRoutes(self._cluster),
            LiveRoutes(self.live, token_check, threads, reactor),
            TaskRoutes(self.tasks, self.store, self._lists),
            AgentTaskRoutes(self.tasks, self.store, self._lists),
            JobRoutes(self.tasks, self.store),
            DownloadRoutes(self.uploads, self.hosts.exports),
            *self.hosts.groups(self.agents, self.tag_news),
            *inner,
        ]
        self.api = self._face(groups)
        documentation.describe(self.api.routes)
        self.plain_api = self.api
        if not is_loopback(manager.listen) and not manager.plain_http:
            where = f"the API is served over TLS only, on port {manager.tls_port}"
            self.plain_api = self._face([*inner, ElsewhereRoutes(where)])
        self._sites: list[FaceSite] = []
        self._ports: list[IListeningPort] = []

    def _guard(
        self, keys: Keys, threads: Threads, wall: Callable[[], float], hasher: PasswordHasher
    ) -> None:
        """Make what decides who may come in, and what remembers who did what."""
        manager, reactor, store = self._settings.manager, self._reactor, self.store
        self.syslog: AuditSyslog | None = None
        if manager.audit_syslog is not None:
            self.syslog = AuditSyslog(reactor, manager.audit_syslog, wall, self.metrics)
        self.audit = AuditLog(
            store,
            wall,
            self.metrics,
            settings=manager,
            tell=(lambda head: None) if self.syslog is None else self.syslog.tell,
        )
        passwords = Passwords(threads, hasher)
        self.access = Access(
            store,
            passwords,
            threads,
            reactor,
            wall=wall,
            settings=manager,
            audit=self.audit,
            keys_dir=self._settings.server.keys_dir,
        )
        logins = Logins(
            store,
            passwords,
            self.access,
            self.audit,
            metrics=self.metrics,
            wall=wall,
            settings=manager,
            captcha_key=keys.signing_pair[1].encode(),
        )
        accounts = Accounts(store, passwords, self.access, wall=wall, settings=manager)
        self._user_routes = [
            UserRoutes(
                self.access, logins, accounts, require_old_password=manager.require_old_password
            ),
            AccountRoutes(accounts, logins),
            AuditRoutes(store),
        ]

    def _bodies(self) -> dict[str, float]:
        return {
            "memory": sum(site.memory.held for site in self._sites),
            "disk": sum(site.disk.held for site in self._sites),
        }

    def _face(self, groups: Any) -> Api:
        return make_api(
            groups,
            self._liveness,
            self._checks,
            self.metrics,
            self._settings.manager.metrics_networks,
            audit=self.audit,
            proxies=self._settings.manager.proxy_networks,
            gates=self._gates,
        )

    async def start(self) -> None:
        """Open the database, then the ports; only then tell others of them.

        Raises:
            StoreError: the database cannot be used.
            OperatorError: a port cannot be opened.
        """
        if self._pool is not None:
            self._pool.start()
        await self.store.open()
        await self.aging.now()
        await self.access.start()
        if self.syslog is not None:
            self.syslog.start()
        await self.agents.start()
        await self.uploads.start()
        self.retention.start()
        self.live.start()
        self.task_engine.follow(lambda each: self.live.tell("task", **asdict(each)))
        self.task_engine.start()
        await self.hosts.start()
        manager = self._settings.manager
        self._open(self.plain_api, manager.port, "manager.port", None)
        if manager.tls_port is not None:
            self._open(self.api, manager.tls_port, "manager.tls_port", self._api_tls)
        self.discovery.register(
            MANAGER_NAME,
            self._settings.advertised("manager"),
            manager.port,
            lambda: (0, {VERSION: __version__}),
        )
        self.discovery.watch(AC_NAME, self._gateways_changed)
        self._cluster.watch()

    def _gateways_changed(self, records: list[Record]) -> None:
        self.polls.changed(records)
        self.news.changed(records)
        self.tag_news.changed(records)

    def renew_keys(self, keys: Keys) -> None:
        """Shake hands with these from now on; connections go on."""
        for options in (self._api_tls, self._ac_tls):
            if options is not None:
                options.renew(keys)

    def _open(self, api: Api, port: int, setting: str, tls: Any) -> None:
        limits = FaceLimits(connections=self._shares.face)
        site = FaceSite(api, self._reactor, limits, self.uploads.folder)
        self._sites.append(site)
        listen_on = self._settings.manager.listen
        self._ports.append(listen(self._reactor, site, listen_on, port, setting=setting, tls=tls))

    async def stop(self) -> None:
        """Tell ServiceDiscovery, close the ports, finish what was begun."""
        ports, self._ports = self._ports, []
        await stop_each(self.log, self.discovery.stop, *[port.stopListening for port in ports])
        for site in self._sites:
            site.close()
        await stop_each(
            self.log,
            self.news.stop,
            self.tag_news.stop,
            self.task_engine.stop,
            self.live.stop,
            self.polls.stop,
            self.agents.stop,
            self.retention.stop,
            self.claims.stop,
            self.hosts.stop,
            self.access.stop,
            *(() if self.syslog is None else (self.syslog.stop,)),
            self.store.close,
        )
        if self._pool is not None and self._pool.started:
            self._pool.stop()  # its threads have nothing left to do

    def problems(self) -> list[str]:
        """What keeps this role from doing its job, for ``/ready``."""
        return [*self.store.problems(), *self.discovery.problems(), *self.polls.problems()]
