"""Settings: frozen, typed values read from TOML; every fault is reported at once.

A settings file has one table per section below. Every key has a default, so no file is
needed at all. Durations are seconds, sizes are bytes. Relative paths count from the folder of
the settings file, or from the working directory when there is none.
"""

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import Attribute, Factory, evolve, field, fields, frozen

from elkeid.errors import ConfigError

DEFAULT_FILE = "elkeid.toml"
GiB = 1 << 30
KiB = 1 << 10
MiB = 1 << 20

_Check = Callable[[Any, "Attribute[Any]", Any], None]
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?!\d+\Z){_LABEL}\Z", re.ASCII)
_SQLITE_URL = re.compile(r"sqlite:///(?!:memory:)[^?]+\Z")
_POSTGRES_URL = re.compile(r"postgresql://[^/?#\s]+/[^/?#\s]+(\?[^#\s]*)?\Z")
_READER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}\Z")

KAFKA_READER = "kafka"
"""The event log's reader that feeds Kafka; in ``eventlog.readers`` whenever brokers are set."""


def between(low: float, high: float, *kinds: type) -> _Check:
    """Accept a number in ``low..high`` of exactly these types, so ``true`` is no number."""
    what = "a number" if float in kinds else "a whole number"

    def check(_: object, __: object, value: Any) -> None:
        if type(value) not in kinds or not low <= value <= high:
            raise ValueError(f"must be {what}, {low:.15g} to {high:.15g}")

    return check


def one_of(*choices: str) -> _Check:
    """Accept one of these words."""

    def check(_: object, __: object, value: Any) -> None:
        if value not in choices or type(value) is not str:
            raise ValueError(f"must be one of {', '.join(choices)}")

    return check


def boolean(_: object, __: object, value: Any) -> None:
    """Accept ``true`` or ``false``."""
    if type(value) is not bool:
        raise ValueError("must be true or false")


def a_path(_: object, __: object, value: Any) -> None:
    """Accept a non-empty path."""
    if not isinstance(value, Path) or "\0" in str(value):
        raise ValueError("must be a path, as a non-empty string")


def listen_address(_: object, __: object, value: Any) -> None:
    """Accept an IPv4 or IPv6 address to listen on."""
    try:
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(
            "must be an IPv4 or IPv6 address, such as 127.0.0.1, 0.0.0.0 or ::"
        ) from None


def is_host(text: object) -> bool:
    """Say whether ``text`` is an IP address (unbracketed) or a host name that can be dialled."""
    if not isinstance(text, str):
        return False
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return bool(_HOST_NAME.match(text))
    # A zone such as %eth0 means something on this machine alone.
    return not (address.is_unspecified or address.is_multicast or "%" in text)


def host(_: object, __: object, value: Any) -> None:
    """Accept an address that others can dial: IPv4, IPv6 without brackets, or a name."""
    if value is not None and not is_host(value):
        raise ValueError(
            "must be an IPv4 address, an IPv6 address without brackets or zone, or a name, "
            "that others can dial"
        )


def split_endpoint(text: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port``; `ValueError` says what is wrong."""
    name, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not host:port")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    elif ":" in name:
        raise ValueError(f"{text!r}: write an IPv6 address as [address]:port")
    if not is_host(name):
        raise ValueError(f"{text!r} is not host:port")
    return name, int(port)


def join_endpoint(name: str, port: int) -> str:
    """Write ``host:port``, an IPv6 address in brackets."""
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def dialled_from_here(listen: str) -> str:
    """The address by which this machine reaches its own port that listens on ``listen``."""
    address = ipaddress.ip_address(listen)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return listen


def endpoints(_: object, __: object, value: Any) -> None:
    """Accept a non-empty list of ``host:port``."""
    if not isinstance(value, tuple) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError('must be a non-empty list of "host:port"')
    for each in value:
        split_endpoint(each)


def networks(_: object, __: object, value: Any) -> None:
    """Accept a list of IP networks such as ``10.0.0.0/8``."""
    if not isinstance(value, tuple):
        raise ValueError("must be a list of networks such as 10.0.0.0/8")
    for each in value:
        try:
            ipaddress.ip_network(each if isinstance(each, str) else "")
        except ValueError:
            raise ValueError(f"{each!r} is not a network such as 10.0.0.0/8") from None


def zones(_: object, __: object, value: Any) -> None:
    """Accept a list of ``name=network`` such as ``idc-a=10.1.0.0/16``."""
    if not isinstance(value, tuple):
        raise ValueError("must be a list of zones such as idc-a=10.1.0.0/16")
    for each in value:
        name, _equals, network = each.partition("=") if isinstance(each, str) else ("", "", "")
        try:
            ipaddress.ip_network(network if name else "")
        except ValueError:
            raise ValueError(f"{each!r} is not a zone such as idc-a=10.1.0.0/16") from None


def reader_names(_: object, __: object, value: Any) -> None:
    """Accept a list of reader names."""
    if not isinstance(value, tuple) or not all(
        isinstance(v, str) and _READER_NAME.match(v) for v in value
    ):
        raise ValueError("must be a list of names of a-z, 0-9, _ and -, at most 63 characters")


def broker_list(_: object, __: object, value: Any) -> None:
    """Accept a list of ``host:port``, which may be empty."""
    if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
        raise ValueError('must be a list of "host:port"')
    for each in value:
        split_endpoint(each)


def topic_name(_: object, __: object, value: Any) -> None:
    """Accept a name that Kafka accepts for a topic."""
    if not isinstance(value, str) or not _TOPIC.match(value) or value in (".", ".."):
        raise ValueError("must be 1 to 249 of a-z, A-Z, 0-9, dot, _ and -")


def a_text(_: object, __: object, value: Any) -> None:
    """Accept a non-empty string, or none at all."""
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError("must be a non-empty string")


def optional_path(_: object, attribute: Any, value: Any) -> None:
    """Accept a non-empty path, or none at all."""
    if value is not None:
        a_path(_, attribute, value)


def database_url(_: object, __: object, value: Any) -> None:
    """Accept the URL of a SQLite file or of a PostgreSQL database."""
    if value is None or (isinstance(value, str) and _SQLITE_URL.match(value)):
        return
    if not isinstance(value, str) or not _POSTGRES_URL.match(value):
        raise ValueError(
            'must be a URL, "sqlite:///PATH" of a file or "postgresql://user@host/database"'
        )


def syslog_url(_: object, __: object, value: Any) -> None:
    """Accept where a syslog server listens, or none at all."""
    if value is None:
        return
    kind, separator, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    if separator and kind in ("udp", "tcp"):
        split_endpoint(rest)
    elif not (separator and kind == "unix" and rest.startswith("/")):
        raise ValueError('must be "udp://HOST:PORT", "tcp://HOST:PORT" or "unix:///PATH"')


PRIVATE_NETWORKS = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
)


def _port(default: int) -> int:
    return field(default=default, validator=between(1, 65535, int))


def _seconds(default: float, low: float, high: float) -> float:
    return field(default=default, validator=between(low, high, int, float))


def _days_or_never(days: int) -> float:
    days_at_least = between(86400, 10 * 365 * 86400, int, float)

    def check(owner: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if type(value) is not int or value != 0:
            try:
                days_at_least(owner, attribute, value)
            except ValueError as error:
                raise ValueError(f"{error}, or 0 for never") from None

    return field(default=days * 86400, validator=check)


def _number(default: int, low: int, high: int) -> int:
    return field(default=default, validator=between(low, high, int))


def _listen() -> str:
    return field(default="127.0.0.1", validator=listen_address)


def _advertise() -> str | None:
    return field(default=None, validator=host)  # type: ignore[no-any-return]


@frozen(kw_only=True)
class ServerSettings:
    """``[server]``: what every role of this process shares."""

    data_dir: Path = field(default=Path("data"), validator=a_path)
    keys_dir: Path = field(default=Path("keys"), validator=a_path)
    advertise: str | None = _advertise()
    log_level: str = field(default="info", validator=one_of("debug", "info", "warn", "error"))
    log_format: str = field(default="text", validator=one_of("text", "json"))


@frozen(kw_only=True)
class AgentCenterSettings:
    """``[agentcenter]``: the gateway that agents connect to."""

    listen: str = _listen()
    advertise: str | None = _advertise()
    grpc_port: int = _port(6751)
    http_port: int = _port(6752)
    connection_limit: int = _number(10_000, 1, 1_000_000)  # streams; what one core can serve
    trust_empty_config: bool = field(default=False, validator=boolean)
    empty_agent_id: str = field(default="derive", validator=one_of("derive", "refuse"))
    metrics_networks: tuple[str, ...] = field(default=PRIVATE_NETWORKS, validator=networks)
    message_bytes: int = _number(32 * MiB, MiB, 1024 * MiB)  # one gRPC message on the wire
    decompressed_bytes: int = _number(64 * MiB, MiB, 2048 * MiB)  # the same, decompressed
    first_message_seconds: float = _seconds(60, 1, 3600)  # a silent stream holds a slot so long
    handshake_seconds: float = _seconds(15, 1, 120)  # TLS and preface; the agent's dial budget
    handshake_rate: float = _seconds(500, 1, 1e6)  # handshakes/s; half of what one core can do
    drain_seconds: float = _seconds(5, 0.1, 60)  # reading a stream that was refused or ended
    probe_seconds: float = _seconds(5, 1, 60)  # PING answer of a holder whose id is claimed
    takeover_seconds: float = _seconds(60, 0, 3600)  # an id changes hands at most so often
    memory_bytes: int = _number(512 * MiB, 64 * MiB, 1 << 40)  # of all streams together
    message_seconds: float = _seconds(60, 1, 3600)  # from the first byte of a message to its last
    agent_records_rate: float = _seconds(2_000, 1, 1e9)  # records/s of one agent, sustained
    agent_records_burst: int = _number(32_000, 1, 1_000_000_000)
    agent_bytes_rate: float = _seconds(4 * MiB, 1024, 1e12)  # decompressed bytes/s of one agent
    agent_bytes_burst: int = _number(64 * MiB, 1024, 1 << 40)
    proxy_networks: tuple[str, ...] = field(default=(), validator=networks)
    agent_metrics: int = _number(0, 0, 100_000)  # agents with metrics of their own; 0: none
    control_rate: float = _seconds(10, 0.1, 1e6)  # records/s per agent; the rest counts as logs
    logs_rate: float = _seconds(20, 0.1, 1e6)  # records/s per agent; beyond, dropped and counted
    logs_burst: int = _number(200, 1, 1_000_000)
    tag_wait_seconds: float = _seconds(0.2, 0, 5)  # the first batch of an unknown agent
    upload_bytes: int = _number(307_200_000, MiB, 1 << 40)  # one file: 600 pieces of 512,000
    upload_disk_bytes: int = _number(2 * GiB, MiB, 1 << 50)  # files under way, together
    upload_limit: int = _number(32, 1, 10_000)  # uploads at once
    results_cap_bytes: int = _number(256 * MiB, 16 * MiB, 1 << 50)  # results the Manager lacks


@frozen(kw_only=True)
class DiscoverySettings:
    """``[discovery]``: the registry, and where every role finds it."""

    listen: str = _listen()
    advertise: str | None = _advertise()
    port: int = _port(8088)
    tls_port: int | None = field(default=None)
    members: tuple[str, ...] = field(validator=endpoints)  # default: the one of this machine
    zones: tuple[str, ...] = field(default=(), validator=zones)  # name=network each
    preserve_instances: int = _number(3, 2, 10_000)  # fewer may well have died together
    preserve_share: float = _seconds(0.5, 0, 1)  # of a name's instances
    preserve_seconds: float = _seconds(60, 1, 100)
    read_rate: float = _seconds(2000, 1, 1e6)  # requests/s per address, ten times that at once
    write_rate: float = _seconds(500, 1, 1e6)  # signed requests/s per address, likewise
    metrics_networks: tuple[str, ...] = field(default=PRIVATE_NETWORKS, validator=networks)

    @members.default
    def _own(self) -> tuple[str, ...]:
        return (join_endpoint(dialled_from_here(self.listen), self.port),)

    @tls_port.validator
    def _check_tls_port(self, attribute: object, value: Any) -> None:
        if value is not None:
            between(1, 65535, int)(self, attribute, value)  # type: ignore[arg-type]


@frozen(kw_only=True)
class ManagerSettings:
    """``[manager]``: the operators' API."""

    listen: str = _listen()
    advertise: str | None = _advertise()
    port: int = _port(6701)
    tls_port: int | None = field(default=None)
    plain_http: bool = field(default=False, validator=boolean)
    proxy_networks: tuple[str, ...] = field(default=(), validator=networks)
    # It may hold a password: not shown.
    database: str | None = field(default=None, validator=database_url, repr=False)
    database_password_file: Path | None = field(default=None, validator=optional_path)
    token_seconds: float = _seconds(7200, 60, 30 * 86400)  # sliding life of a login token
    token_max_seconds: float = _seconds(7 * 86400, 60, 365 * 86400)  # used or not
    login_tries: int = _number(5, 3, 100)  # failures of a user from an address before it waits
    lockout_seconds: float = _seconds(900, 60, 86400)  # the longest wait
    password_characters: int = _number(12, 8, 128)  # the fewest of a new password
    password_history: int = _number(5, 0, 24)  # last passwords that cannot be set again
    password_seconds: float = _seconds(0, 0, 10 * 365 * 86400)  # its longest life; 0: endless
    require_old_password: bool = field(default=False, validator=boolean)
    change_rate: float = _seconds(1, 0.1, 1000)  # changes a second of one user, sustained
    change_burst: float = _seconds(600, 10, 100_000)  # at once
    audit_seconds: float = _seconds(2 * 365 * 86400, 86400, 100 * 365 * 86400)
    audit_syslog: str | None = field(default=None, validator=syslog_url)
    offline_seconds: float = _seconds(600, 60, 86400)  # silence after which an agent is offline
    kernel_quiet_seconds: float = _seconds(900, 60, 86400)  # without events: unprotected
    # After that hosts are removed; 0: never.
    retired_host_seconds: float = _days_or_never(30)
    silent_host_seconds: float = _days_or_never(365)
    history_events: int = _number(100, 10, 10_000)  # kept of each host
    history_event_seconds: float = _seconds(90 * 86400, 3600, 10 * 365 * 86400)
    history_fine_seconds: float = _seconds(6 * 3600, 3 * 3600, 30 * 86400)  # figures of 5 minutes
    history_coarse_seconds: float = _seconds(7 * 86400, 86400, 2 * 365 * 86400)  # of an hour
    poll_seconds: float = _seconds(2, 0.2, 300)  # pause between two status queries to an AC
    inner_networks: tuple[str, ...] = field(default=PRIVATE_NETWORKS, validator=networks)
    accept_unsigned_inner: bool = field(default=False, validator=boolean)
    drop_hosts: int = _number(5, 0, 1_000_000)  # may lose most plugins within drop_seconds
    drop_seconds: float = _seconds(600, 1, 86400)
    task_result_seconds: float = _seconds(86400, 1, 90 * 86400)  # for an agent's answer
    task_wait_seconds: float = _seconds(7 * 86400, 1, 90 * 86400)  # for an absent agent
    task_lease_seconds: float = _seconds(30, 5, 600)  # silence of a Manager: others take over
    task_retention: float = _seconds(90 * 86400, 3600, 10 * 365 * 86400)  # after its end
    approval_hosts: int = _number(0, 0, 10_000_000)  # a task of more needs a second person
    approval_uploads: bool = field(default=False, validator=boolean)
    upload_quota_bytes: int = _number(10 * GiB, MiB, 1 << 50)  # all files of agents together
    upload_seconds: float = _seconds(90 * 86400, 3600, 10 * 365 * 86400)  # life of such a file
    export_quota_bytes: int = _number(4 * GiB, MiB, 1 << 50)  # all exported files together
    export_seconds: float = _seconds(86400, 60, 30 * 86400)  # life of an exported file
    metrics_networks: tuple[str, ...] = field(default=PRIVATE_NETWORKS, validator=networks)
    members: tuple[str, ...] = field(validator=endpoints)  # default: the one of this machine

    @members.default
    def _own(self) -> tuple[str, ...]:
        return (join_endpoint(dialled_from_here(self.listen), self.port),)

    @tls_port.validator
    def _check_tls_port(self, attribute: object, value: Any) -> None:
        if value is not None:
            between(1, 65535, int)(self, attribute, value)  # type: ignore[arg-type]


@frozen(kw_only=True)
class EventLogSettings:
    """``[eventlog]``: the append-only log on this node's disk."""

    segment_bytes: int = _number(64 * MiB, MiB, 4 * GiB)
    fsync: float = _seconds(1, 0.05, 3600)  # at most so much is lost in a power cut
    telemetry_cap_bytes: int | None = field(default=None)  # None: half the free space, <= 50 GiB
    control_cap_bytes: int = _number(2 * GiB, 16 * MiB, 1 << 50)
    logs_cap_bytes: int = _number(1 * GiB, 16 * MiB, 1 << 50)
    min_free_bytes: int | None = field(default=None)  # None: 5 % of the volume
    retention: float = _seconds(7 * 86400, 60, 10 * 365 * 86400)
    readers: tuple[str, ...] = field(default=(), validator=reader_names)

    @telemetry_cap_bytes.validator
    def _check_cap(self, attribute: object, value: Any) -> None:
        if value is not None:
            between(16 * MiB, 1 << 50, int)(self, attribute, value)  # type: ignore[arg-type]

    @min_free_bytes.validator
    def _check_free(self, attribute: object, value: Any) -> None:
        if value is not None:
            between(0, 1 << 50, int)(self, attribute, value)  # type: ignore[arg-type]


@frozen(kw_only=True)
class KafkaSettings:
    """``[kafka]``: where records go besides the event log."""

    brokers: tuple[str, ...] = field(default=(), validator=broker_list)  # none: no Kafka
    topic: str = field(default="hids_svr", validator=topic_name)
    compression: str = field(
        default="none", validator=one_of("none", "gzip", "snappy", "lz4", "zstd")
    )
    security_protocol: str = field(
        default="PLAINTEXT", validator=one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
    )
    sasl_mechanism: str = field(
        default="PLAIN", validator=one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    )
    sasl_username: str | None = field(default=None, validator=a_text)
    sasl_password_file: Path | None = field(default=None, validator=optional_path)
    ca_file: Path | None = field(default=None, validator=optional_path)  # None: the system's
    dead_letters_bytes: int = _number(256 * MiB, MiB, 1 << 50)  # on disk, the oldest go first


@frozen(kw_only=True)
class Settings:
    """All sections; what a process is started with."""

    server: ServerSettings = Factory(ServerSettings)
    agentcenter: AgentCenterSettings = Factory(AgentCenterSettings)
    discovery: DiscoverySettings = Factory(DiscoverySettings)
    manager: ManagerSettings = Factory(ManagerSettings)
    eventlog: EventLogSettings = Factory(EventLogSettings)
    kafka: KafkaSettings = Factory(KafkaSettings)

    def advertised(self, role: str) -> str:
        """The address others dial to reach ``role``: ``agentcenter``, ``discovery``, ``manager``.

        The section's own ``advertise``, else the server's, else the listen address (loopback
        for a wildcard, which `load` allows only while every member is loopback too).
        """
        section = getattr(self, role)
        chosen = section.advertise or self.server.advertise
        if chosen:
            return str(chosen)
        return dialled_from_here(str(section.listen))


def is_loopback(name: str) -> bool:
    """Say whether an address or name surely means this machine's loopback."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() in ("localhost", "localhost.localdomain")


def _section(name: str, kind: type, values: object, faults: list[str]) -> Any:
    if not isinstance(values, Mapping):
        faults.append(f"{name}: must be a table [{name}]")
        return kind()
    known = {a.name: a for a in fields(kind)}
    chosen: dict[str, Any] = {}
    for key in sorted(values):
        value, attribute = values[key], known.get(key)
        if attribute is None:
            faults.append(f"{name}.{key}: unknown setting")
            continue
        if isinstance(value, list):
            value = tuple(value)
        if key.endswith(("_dir", "_file")):
            value = Path(value) if isinstance(value, str) and value else value
        try:
            if attribute.validator is not None:
                attribute.validator(None, attribute, value)
        except ValueError as error:
            faults.append(f"{name}.{key}: {error}")
            continue
        chosen[key] = value
    return kind(**chosen)


def _overlap(listen: str, other: str) -> bool:
    """Say whether two listening addresses cannot share a port."""
    return listen == other or any(
        ipaddress.ip_address(each).is_unspecified for each in (listen, other)
    )


def _contradictions(settings: Settings) -> list[str]:
    """Faults that no single key shows."""
    faults = []
    remote = [
        member
        for member in settings.discovery.members
        if not is_loopback(split_endpoint(member)[0])
    ]
    for role in ("agentcenter", "discovery", "manager"):
        section = getattr(settings, role)
        address = settings.advertised(role)
        wildcard = ipaddress.ip_address(section.listen).is_unspecified
        if remote and is_loopback(address):
            faults.append(
                f"{role}.advertise: {address} is loopback, but discovery.members lists "
                f"{remote[0]}: set the address that the others can dial"
            )
        elif wildcard and not (section.advertise or settings.server.advertise):
            faults.append(
                f"{role}.listen: {section.listen} needs server.advertise or {role}.advertise, "
                "the address that others dial"
            )
    inner = settings.manager
    if inner.accept_unsigned_inner and inner.inner_networks == PRIVATE_NETWORKS:
        faults.append(
            "manager.accept_unsigned_inner: name the addresses of the AgentCenters that cannot "
            "sign in manager.inner_networks; the default would let in every host around"
        )
    center, registry, manager = settings.agentcenter, settings.discovery, settings.manager
    ports = [
        ("agentcenter.grpc_port", center.listen, center.grpc_port),
        ("agentcenter.http_port", center.listen, center.http_port),
        ("discovery.port", registry.listen, registry.port),
        ("manager.port", manager.listen, manager.port),
    ]
    if registry.tls_port is not None:
        ports.append(("discovery.tls_port", registry.listen, registry.tls_port))
    if manager.tls_port is not None:
        ports.append(("manager.tls_port", manager.listen, manager.tls_port))
    for at, (name, listen, port) in enumerate(ports):
        for other, its_listen, its_port in ports[:at]:
            if port == its_port and _overlap(listen, its_listen):
                faults.append(f"{name}: {port} is already {other}")
                break
    if not is_loopback(manager.listen) and manager.tls_port is None and not manager.plain_http:
        faults.append(
            "manager.tls_port: required when manager.listen is not loopback "
            "(or set manager.plain_http = true to serve passwords unencrypted)"
        )
    if center.decompressed_bytes < center.message_bytes:
        faults.append("agentcenter.decompressed_bytes: must not be below message_bytes")
    if center.memory_bytes < center.message_bytes + center.decompressed_bytes:
        faults.append(
            "agentcenter.memory_bytes: must not be below message_bytes and decompressed_bytes "
            "together, or the largest message could never come in"
        )
    kafka = settings.kafka
    if kafka.security_protocol.startswith("SASL_"):
        faults += [
            f"kafka.{key}: required with kafka.security_protocol = {kafka.security_protocol}"
            for key in ("sasl_username", "sasl_password_file")
            if getattr(kafka, key) is None
        ]
    return faults


def parse(raw: Mapping[str, object], base: Path) -> Settings:
    """Make settings of parsed TOML, or raise `ConfigError` with every fault.

    Args:
        raw: section name -> table.
        base: folder that relative paths count from.

    Raises:
        ConfigError: one ``section.key: reason`` per fault; values are not repeated where they
            could be secrets.
    """
    kinds: dict[str, Any] = {a.name: a.type for a in fields(Settings)}
    faults = [f"{name}: unknown section" for name in sorted(set(raw) - set(kinds))]
    sections = {
        name: _section(name, kind, raw.get(name, {}), faults) for name, kind in kinds.items()
    }
    settings = Settings(**sections)
    # A key that is at fault itself has its default meanwhile: no contradiction to speak of.
    faulty = [fault.partition(":")[0] for fault in faults]
    faults += [each for each in _contradictions(settings) if not any(key in each for key in faulty)]
    if faults:
        raise ConfigError(faults)
    server, manager, database = settings.server, settings.manager, settings.manager.database
    if database is not None and database.startswith("sqlite:"):  # an absolute path stays
        database = f"sqlite:///{base / database.removeprefix('sqlite:///')}"
    kafka, eventlog = settings.kafka, settings.eventlog
    if kafka.brokers and KAFKA_READER not in eventlog.readers:
        eventlog = evolve(eventlog, readers=(*eventlog.readers, KAFKA_READER))
    return evolve(
        settings,
        eventlog=eventlog,
        kafka=evolve(
            kafka,
            sasl_password_file=kafka.sasl_password_file and base / kafka.sasl_password_file,
            ca_file=kafka.ca_file and base / kafka.ca_file,
        ),
        server=evolve(server, data_dir=base / server.data_dir, keys_dir=base / server.keys_dir),
        manager=evolve(
            manager,
            database=database,
            database_password_file=manager.database_password_file
            and base / manager.database_password_file,
        ),
    )


def load(path: Path | None, cwd: Path | None = None) -> Settings:
    """Read settings from ``path``; without one from ``elkeid.toml`` if present, else defaults.

    Raises:
        ConfigError: the file is missing, unreadable or no TOML, or any setting is at fault.
    """
    cwd = Path.cwd() if cwd is None else cwd
    if path is None:
        if not (cwd / DEFAULT_FILE).is_file():
            return parse({}, cwd)
        path = Path(DEFAULT_FILE)
    path = cwd / path
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError([f"{path}: {reason}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error
    return parse(raw, path.resolve().parent)
