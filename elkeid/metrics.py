"""Prometheus names in one place: one class per part, each on the registry it is given.

Names that upstream consumers query are kept exactly (docs/protocol.md, "Metrics").
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf
from typing import Any, Generic, TypeVar

from attrs import frozen
from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from elkeid.garbage import Pauses

F = TypeVar("F")


class FiguresCollector(Collector, Generic[F]):
    """Families made of figures that are read when they are shown.

    Args:
        registry: where they are shown.
        read: gives the figures of this moment.
    """

    def __init__(self, registry: CollectorRegistry, read: Callable[[], F]) -> None:
        self._read = read
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """No name in advance: nothing else registers names of these prefixes."""
        return []

    def collect(self) -> Iterable[Metric]:
        """All families, of the figures of this moment."""
        return self.families(self._read())

    def families(self, now: F) -> Iterable[Metric]:
        """The families that these figures make."""
        raise NotImplementedError


class ExactCounter(Collector):
    """A counter whose series bear exactly its name.

    The library's own appends ``_total``, which queries written for upstream do not know. Its
    text format knows no counter without that suffix, hence the type ``untyped``.

    Args:
        name: of the series.
        documentation: one line.
        labels: names, in the order of `add`'s values.
        registry: where it is shown.
    """

    def __init__(
        self, name: str, documentation: str, labels: tuple[str, ...], registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._values: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def add(self, *values: str, amount: float = 1) -> None:
        """Add to the series with these label values."""
        self._values[values] = self._values.get(values, 0) + amount

    def describe(self) -> Iterable[Metric]:
        """Name the family without collecting it."""
        return [Metric(self._name, self._documentation, "unknown")]

    def collect(self) -> Iterable[Metric]:
        """The family with all its series."""
        family = Metric(self._name, self._documentation, "unknown")
        for values, value in list(self._values.items()):
            family.add_sample(self._name, dict(zip(self._labels, values, strict=True)), value)
        return [family]


class SizesGauge(Collector):
    """A gauge read when it is shown: series of what has vanished vanish with it.

    Args:
        name: of the series.
        documentation: one line.
        label: its one label.
        sizes: label value -> number.
        registry: where it is shown.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        label: str,
        sizes: Callable[[], Mapping[str, float]],
        registry: CollectorRegistry,
    ) -> None:
        self._family = name, documentation
        self._label, self._sizes = label, sizes
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Name the family without collecting it."""
        return [GaugeMetricFamily(*self._family, labels=[self._label])]

    def collect(self) -> Iterable[Metric]:
        """The family with all its series."""
        family = GaugeMetricFamily(*self._family, labels=[self._label])
        for name, size in self._sizes().items():
            family.add_metric([name], size)
        return [family]


@frozen(kw_only=True)
class DiscoveryFigures:
    """What a registry shows at one moment; totals count since the start of the process."""

    instances: Mapping[str, int]  # by name
    preserved: Mapping[str, int]  # silent ones that are kept, by name
    peers_up: Mapping[str, int]  # 1 if it answers, by address
    peers_waiting: Mapping[str, int]  # instances that a peer is still to be told of, by address
    rate_refused: Mapping[str, int]  # requests above an address's rate: read, write


class DiscoveryMetrics:
    """What the registry counts.

    Args:
        registry: where it is shown.
        figures: asked when they are shown.
    """

    def __init__(
        self, registry: CollectorRegistry, figures: Callable[[], DiscoveryFigures]
    ) -> None:
        self.registry = registry
        for name, documentation, label, field in (
            ("elkeid_sd_registry_list", "Registered instances by name", "name", "instances"),
            (
                "elkeid_sd_preserved",
                "Silent instances that are kept, as too many fell silent at once",
                "name",
                "preserved",
            ),
            ("elkeid_sd_peer_up", "1 if the other node answers", "peer", "peers_up"),
            (
                "elkeid_sd_peer_waiting",
                "Instances that the other node is still to be told of",
                "peer",
                "peers_waiting",
            ),
            (
                "elkeid_sd_rate_refused",
                "Requests refused since the start, as their address sent too many",
                "kind",
                "rate_refused",
            ),
        ):
            SizesGauge(name, documentation, label, partial(_figure, figures, field), registry)
        self.answers = ExactCounter(
            "elkeid_sd_http_api", "Answers by route and status", ("path", "code"), registry
        )
        self.evicted = Counter(
            "elkeid_sd_evicted",
            "Instances removed: asked, by a peer, or after too long a silence",
            ["reason"],
            registry=registry,
        )
        self.ignored_events = Counter(
            "elkeid_sd_ignored_events",
            "Events from peers not applied: older than what is known, aged out there, or invalid",
            ["reason"],
            registry=registry,
        )
        self.pushes = Counter(
            "elkeid_sd_pushes",
            "Batches told to other nodes by outcome",
            ["outcome"],
            registry=registry,
        )
        self.repairs = Counter(
            "elkeid_sd_repairs",
            "Facts that a comparison with another node brought, by what became of them",
            ["outcome"],
            registry=registry,
        )


def _figure(figures: Callable[[], DiscoveryFigures], field: str) -> Mapping[str, float]:
    found: Mapping[str, float] = getattr(figures(), field)
    return found


class GarbageMetrics(FiguresCollector[Pauses]):
    """How long Python's garbage collector held up everything else in this process."""

    def families(self, now: Pauses) -> Iterable[Metric]:
        """The three families."""
        for name, text, values in (
            ("collections_total", "Garbage collections", now.count),
            ("pause_seconds_total", "Time that garbage collections took", now.seconds),
        ):
            by_generation = {str(number): value for number, value in enumerate(values)}
            yield _by(f"elkeid_gc_{name}", text, "generation", by_generation)
        yield _gauge("elkeid_gc_longest_pause_seconds", "Longest garbage collection", now.longest)


class SignedRequestMetrics(FiguresCollector[tuple[int, int, int]]):
    """What a face remembers of signed requests, so that none is taken twice.

    Its figures are the requests remembered, refused as repeated, and forgotten too early.
    """

    def families(self, now: tuple[int, int, int]) -> Iterable[Metric]:
        """The three families."""
        remembered, refused, forgotten = now
        yield _gauge("elkeid_signed_requests_remembered", "Signed requests remembered", remembered)
        for name, text, value in (
            ("refused", "Signed requests refused because they came before", refused),
            ("forgotten", "Signed requests forgotten before their time", forgotten),
        ):
            yield _total(f"elkeid_signed_requests_{name}_total", text, value)


@frozen(kw_only=True)
class CommandFigures:
    """Commands to agents, at one moment; totals count since the start of the process."""

    waiting: int
    waiting_bytes: int
    outcomes: Mapping[str, int]


class CommandMetrics(FiguresCollector[CommandFigures]):
    """What becomes of commands to agents, read when it is shown."""

    def families(self, now: CommandFigures) -> Iterable[Metric]:
        """The three families."""
        yield _gauge("elkeid_ac_commands_waiting", "Commands not wholly written", now.waiting)
        yield _gauge("elkeid_ac_commands_waiting_bytes", "Bytes of these", now.waiting_bytes)
        yield _by(
            "elkeid_ac_commands_total", "Commands by what became of them", "outcome", now.outcomes
        )


@frozen(kw_only=True)
class ConfigFigures:
    """Configs of hosts, at one moment; totals count since the start of the process."""

    agents: Mapping[str, int]  # by state
    waiting: int  # hosts that the Manager is asked for
    fetches: Mapping[str, int]  # answers by outcome
    sent: Mapping[str, int]  # by source
    repeated: int
    searches: Mapping[str, int]  # for what a host ran last, by outcome
    store_failures: int = 0
    peer_failures: int = 0


class ConfigMetrics(FiguresCollector[ConfigFigures]):
    """How far configs have got, read when it is shown."""

    def families(self, now: ConfigFigures) -> Iterable[Metric]:
        """All families of configs."""
        yield _by(
            "elkeid_ac_config_agents", "Agents by state of config", "state", now.agents, "gauge"
        )
        yield _gauge(
            "elkeid_ac_config_waiting", "Agents whose config is asked of the Manager", now.waiting
        )
        for name, text, label, values in (
            ("fetches", "Answers of the Manager", "outcome", now.fetches),
            ("sent", "Configs sent, repetitions apart", "source", now.sent),
            ("searches", "Searches for what a host ran last", "outcome", now.searches),
        ):
            yield _by(f"elkeid_ac_config_{name}_total", text, label, values)
        for name, text, value in (
            ("repeated", "Configs sent again, not being applied", now.repeated),
            ("store_failures", "Writes of last configs that failed", now.store_failures),
            ("peer_failures", "Peers that did not tell last configs", now.peer_failures),
        ):
            yield _total(f"elkeid_ac_config_{name}_total", text, value)


class ClaimMetrics(FiguresCollector[tuple[int, Mapping[str, int]]]):
    """Claims to ids that another AgentCenter has: those that wait, and what became of them."""

    def families(self, now: tuple[int, Mapping[str, int]]) -> Iterable[Metric]:
        """The two families."""
        waiting, outcomes = now
        yield _gauge(
            "elkeid_manager_claims_waiting", "Claims that wait for a sign of life", waiting
        )
        yield _by(
            "elkeid_manager_claims_total",
            "Claims to ids of other AgentCenters by what became of them",
            "outcome",
            outcomes,
        )


class LiveMetrics(FiguresCollector[tuple[int, int, int]]):
    """The Manager's live feed: listeners, events told to them, events that slow ones missed."""

    def families(self, now: tuple[int, int, int]) -> Iterable[Metric]:
        """The three families."""
        listeners, told, missed = now
        yield _gauge("elkeid_manager_live_listeners", "Listeners of the live feed", listeners)
        yield _total(
            "elkeid_manager_live_events_total", "Events for listeners of the live feed", told
        )
        yield _total(
            "elkeid_manager_live_missed_total", "Events that listeners were too slow for", missed
        )


class ManagerMetrics:
    """What the Manager counts.

    Args:
        registry: where it is shown.
        agents: gives the number of agents that are known.
        store_pending: gives the number of database queries in progress or waiting.
        skews: AC address -> its clock minus ours, seconds.
        ahead: gives by how much our clock is ahead of the time that was seen to pass, seconds.
        bodies: where bodies of requests under way are kept -> their bytes.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        agents: Callable[[], float],
        store_pending: Callable[[], float],
        skews: Callable[[], Mapping[str, float]],
        ahead: Callable[[], float],
        *,
        bodies: Callable[[], Mapping[str, float]],
    ) -> None:
        self.registry = registry
        SizesGauge(
            "elkeid_manager_bodies_bytes",
            "Bytes of the bodies of requests under way that are kept",
            "where",
            bodies,
            registry,
        )
        self.answers = Counter(
            "elkeid_manager_answers",
            "Answers by declared route and status",
            ["path", "status"],
            registry=registry,
        )
        Gauge("elkeid_manager_agents", "Agents that are known", registry=registry).set_function(
            agents
        )
        self.hosts_removed = Counter(
            "elkeid_manager_hosts_removed",
            "Hosts removed since they were gone for long, by reason",
            ["reason"],
            registry=registry,
        )
        Gauge(
            "elkeid_manager_store_pending",
            "Database queries in progress or waiting",
            registry=registry,
        ).set_function(store_pending)
        SizesGauge(
            "elkeid_manager_clock_skew_seconds",
            "Clock of an AgentCenter minus ours",
            "ac",
            skews,
            registry,
        )
        Gauge(
            "elkeid_manager_clock_ahead_seconds",
            "Our clock minus the time that was seen to pass, by which retention counts",
            registry=registry,
        ).set_function(ahead)
        self.polls = Counter(
            "elkeid_manager_polls",
            "Status queries to AgentCenters by outcome",
            ["outcome"],
            registry=registry,
        )
        self.reports = Counter(
            "elkeid_manager_reports",
            "Agents in the answers to these, by what became of them",
            ["outcome"],
            registry=registry,
        )
        self.results = Counter(
            "elkeid_manager_results",
            "Task results from AgentCenters, by what became of them",
            ["outcome"],
            registry=registry,
        )
        self.configs = Counter(
            "elkeid_manager_configs",
            "Questions of AgentCenters what a host shall run, by outcome",
            ["outcome"],
            registry=registry,
        )
        self.uploads = Counter(
            "elkeid_manager_uploads",
            "Files that agents uploaded, by outcome",
            ["outcome"],
            registry=registry,
        )
        self.logins = Counter(
            "elkeid_manager_logins", "Logins by outcome", ["outcome"], registry=registry
        )
        self.audit = Counter(
            "elkeid_manager_audit",
            "Entries of the audit log by kind, and what is not in it",
            ["outcome"],
            registry=registry,
        )
        self.audit_heads = Counter(
            "elkeid_manager_audit_heads",
            "Heads of the audit log for syslog, by outcome",
            ["outcome"],
            registry=registry,
        )


class TaskMetrics:
    """What the engine of tasks counts.

    Args:
        registry: where it is shown.
        open_tasks: gives the number of tasks with work left.
    """

    def __init__(self, registry: CollectorRegistry, open_tasks: Callable[[], float]) -> None:
        self.sends = Counter(
            "elkeid_manager_task_sends",
            "Commands for AgentCenters, by what became of them",
            ["outcome"],
            registry=registry,
        )
        self.resends = Counter(
            "elkeid_manager_task_resends",
            "Subtasks to be sent again that may have been sent before, by reason",
            ["reason"],
            registry=registry,
        )
        self.superseded = Counter(
            "elkeid_manager_task_outcomes_superseded",
            "Outcomes that changed nothing: a result came before, or the lease was lost",
            registry=registry,
        )
        Gauge("elkeid_manager_tasks_open", "Tasks with work left", registry=registry).set_function(
            open_tasks
        )


@frozen(kw_only=True)
class GatewayFigures:
    """What a gateway shows at one moment; totals count since the start of the process."""

    agents: int
    streams: int
    connection_limit: int
    handshakes: int
    failed_handshakes: int
    messages: int
    commands: int
    agent_records: Callable[[int], Mapping[str, int]] | None  # of all records; None: not by agent
    records: Mapping[str, int]  # by data type
    ended: Mapping[str, int]  # calls by gRPC status
    unidentified: int
    bad_heartbeats: int
    lines_left_out: int
    lost_before: Mapping[str, int]  # records lost by agents, by where; an estimate
    replaced: int
    hands_changed: int
    conflicts: int
    log_read: Mapping[str, int]  # records by class, over all runs, as the next two
    log_appended: Mapping[str, int]
    log_dropped: Mapping[tuple[str, str], int]  # by class and reason
    log_bytes: Mapping[str, int]  # on disk, by class
    log_cap_bytes: Mapping[str, int]
    log_segments: Mapping[str, int]
    log_lost_records: Mapping[str, int]  # from the log's end, in crashes or power cuts
    log_failures: Mapping[tuple[str, str], int]  # by class and operation: write, sync
    log_backlogs: Mapping[tuple[str, str], tuple[int, int, float, float]]
    """By reader and class: records, bytes on disk, age of the oldest in seconds."""
    log_free_bytes: int  # on the log's volume
    log_share_bytes: float  # a second, that one agent may store; infinite while there is room
    log_shed_agents: int  # that lost records as they sent more
    certificate_expiry: Mapping[str, float]  # file name -> unix seconds


class AgentCenterMetrics(FiguresCollector[GatewayFigures]):
    """What the gateway counts, read when it is shown."""

    def families(self, now: GatewayFigures) -> Iterable[Metric]:
        """All families of the gateway."""
        yield _gauge("elkeid_ac_grpc_conn_count", "Connected agents", now.agents)
        yield _total("elkeid_ac_grpc_recv_qps", "Messages received", now.messages)
        yield _total("elkeid_ac_grpc_send_qps", "Commands written", now.commands)
        yield _by(
            "elkeid_ac_output_data_type_count", "Records by data type", "data_type", now.records
        )
        total = sum(now.records.values())
        if now.agent_records is None:
            yield _total("elkeid_ac_output_count", "Records received", total)
        else:
            each = now.agent_records(total)
            yield _by("elkeid_ac_output_count", "Records received", "agent_id", each)
        yield _gauge("elkeid_ac_streams", "Transfer streams that hold a place", now.streams)
        yield _gauge(
            "elkeid_ac_connection_limit", "Transfer streams served at most", now.connection_limit
        )
        handshakes = {"done": now.handshakes, "failed": now.failed_handshakes}
        yield _by("elkeid_ac_handshakes_total", "TLS handshakes", "outcome", handshakes)
        yield _by(
            "elkeid_ac_calls_ended_total", "Calls ended by us, by gRPC status", "status", now.ended
        )
        yield _by(
            "elkeid_ac_agents_lost_records_total",
            "Records that agents lost before they got here, estimated from their counters",
            "where",
            now.lost_before,
        )
        for name, text, value in (
            ("unidentified_total", "Streams of agents without an id", now.unidentified),
            ("bad_heartbeats_total", "Heartbeats not understood", now.bad_heartbeats),
            ("log_lines_left_out_total", "Lines about peers not written", now.lines_left_out),
            ("replaced_total", "Streams replaced from their own address", now.replaced),
            ("hands_changed_total", "Ids that went to another address", now.hands_changed),
            ("conflicts_total", "Claims to an id that lost", now.conflicts),
        ):
            yield _total(f"elkeid_ac_{name}", text, value)
        for name, text, by_class in (
            ("elkeid_log_read_total", "Records read, by class", now.log_read),
            ("elkeid_log_appended_total", "Records appended, by class", now.log_appended),
        ):
            yield _by(name, text, "class", by_class)
        yield _exact(
            "elkeid_log_dropped_total",
            "Records read and not kept",
            ("class", "reason"),
            now.log_dropped,
        )
        for name, text, by_class in (
            ("elkeid_log_bytes", "Bytes of the log on disk", now.log_bytes),
            ("elkeid_log_cap_bytes", "Bytes that the log may take", now.log_cap_bytes),
            ("elkeid_log_segments", "Segments of the log", now.log_segments),
        ):
            yield _by(name, text, "class", by_class, "gauge")
        yield _by(
            "elkeid_log_lost_records_total",
            "Records lost at the log's end",
            "class",
            now.log_lost_records,
        )
        yield _exact(
            "elkeid_log_failures_total",
            "Writes and fsyncs of the log that failed",
            ("class", "operation"),
            now.log_failures,
        )
        for index, (name, text) in enumerate(
            (
                ("records", "Records that a reader has before it"),
                ("bytes", "Bytes on disk that a reader has before it"),
                ("seconds", "Age of the oldest record that a reader has before it"),
                ("room_seconds", "Until that one is deleted unread, at the rate of late"),
            )
        ):
            left = {key: each[index] for key, each in now.log_backlogs.items()}
            yield _exact(f"elkeid_log_backlog_{name}", text, ("reader", "class"), left, "gauge")
        yield _gauge("elkeid_log_free_bytes", "Free on the log's volume", now.log_free_bytes)
        yield _gauge(
            "elkeid_log_share_bytes",
            "A second, that each agent may store while the disk is short of room",
            now.log_share_bytes,
        )
        yield _gauge(
            "elkeid_log_shed_agents", "Agents that lose what is above that", now.log_shed_agents
        )
        yield _by(
            "elkeid_certificate_expiry_seconds",
            "End of validity, unix seconds",
            "file",
            now.certificate_expiry,
            "gauge",
        )


@frozen(kw_only=True)
class AdmissionFigures:
    """Who is let in, and what limits were reached; totals since the start of the process."""

    port_open: bool
    port_closings: int
    connections: int
    handshakes: Mapping[str, int]  # connections whose handshake is not over, by state
    turned_away: Mapping[str, int]  # connections, by reason
    refused_streams: Mapping[str, int]  # by reason
    refused_messages: Mapping[str, int]  # half-sent, by reason
    over_budget: int
    memory_bytes: int
    memory_limit_bytes: int
    memory_waiting: int
    memory_waits: int
    memory_evictions: int
    unpacked: int
    vanished: int
    turns_cut: int
    slices_waiting: int
    listed: Mapping[str, int]  # entries by list


class AdmissionMetrics(FiguresCollector[AdmissionFigures]):
    """What the agents' door counts, read when it is shown."""

    def families(self, now: AdmissionFigures) -> Iterable[Metric]:
        """All families of the door."""
        yield _gauge("elkeid_ac_port_open", "Whether agents find an open port", now.port_open)
        yield _gauge("elkeid_ac_connections", "Agents' connections", now.connections)
        for name, text, label, values, kind in (
            ("handshakes_pending", "Accepted connections", "state", now.handshakes, "gauge"),
            ("turned_away_total", "Connections reset", "reason", now.turned_away, "unknown"),
            ("streams_refused_total", "Streams ended", "reason", now.refused_streams, "unknown"),
            (
                "messages_refused_total",
                "Half-sent messages that ended their calls",
                "reason",
                now.refused_messages,
                "unknown",
            ),
            ("listed", "Entries of the lists of ids", "list", now.listed, "gauge"),
        ):
            yield _by(f"elkeid_ac_{name}", text, label, values, kind)
        for name, text, value in (
            ("memory_bytes", "Held of the budget of all streams", now.memory_bytes),
            ("memory_limit_bytes", "The budget of all streams", now.memory_limit_bytes),
            ("memory_waiting", "Messages that wait for room", now.memory_waiting),
            ("slices_waiting", "Connections with work for later turns", now.slices_waiting),
        ):
            yield _gauge(f"elkeid_ac_{name}", text, value)
        for name, text, value in (
            ("port_closings_total", "Times the port was closed as full", now.port_closings),
            ("over_budget_total", "Windows not refilled for an agent's rate", now.over_budget),
            ("memory_waits_total", "Messages that had to wait for room", now.memory_waits),
            ("memory_evictions_total", "Messages that had to make room", now.memory_evictions),
            ("unpacked_total", "Large messages unpacked in a thread", now.unpacked),
            ("vanished_total", "Connections reset for their silence", now.vanished),
            ("turns_cut_total", "Reactor turns cut for their budget", now.turns_cut),
        ):
            yield _total(f"elkeid_ac_{name}", text, value)


AgentGauges = Mapping[str, Mapping[tuple[str, str], float]]
"""Gauge -> (agent id, name of the plugin or ``agent``) -> value."""


class AgentMetrics(FiguresCollector[AgentGauges]):
    """What each agent and plugin says of its load; names and labels as queries expect them."""

    def families(self, now: AgentGauges) -> Iterable[Metric]:
        """One family for each gauge."""
        for name, series in now.items():
            family = f"elkeid_ac_agent_{name}"
            text = f"{name} as agents report it"
            yield _exact(family, text, ("agent_id", "name"), series, "gauge")


Lateness = tuple[list[tuple[float, int]], float]
"""Upper bounds in seconds with the number of ticks up to each; the sum of all, seconds."""


class LatenessMetrics(FiguresCollector[Lateness]):
    """How late the reactor's timers are."""

    def families(self, now: Lateness) -> Iterable[Metric]:
        """One histogram."""
        bounds, total = now
        buckets = [(f"{bound:g}" if bound != inf else "+Inf", count) for bound, count in bounds]
        yield HistogramMetricFamily(
            "elkeid_reactor_lateness_seconds",
            "How late a timer of the reactor is called",
            buckets=buckets,
            sum_value=total,
        )


@frozen(kw_only=True)
class TagFigures:
    """What is known of agents' tags, and who waits for them; totals since the start."""

    known: int
    held_bytes: int
    waiting: int
    queries: Mapping[str, int]  # by outcome: answered, failed
    waits: Mapping[str, int]  # by outcome: answered, failed, late, full


class TagMetrics(FiguresCollector[TagFigures]):
    """What is counted of tags, read when it is shown."""

    def families(self, now: TagFigures) -> Iterable[Metric]:
        """All families of tags."""
        for name, text, value in (
            ("known", "Agents whose tags are known", now.known),
            ("waiting", "Streams whose first batch waits for tags", now.waiting),
            ("held_bytes", "Bytes of batches that wait for tags", now.held_bytes),
        ):
            yield _gauge(f"elkeid_ac_tags_{name}", text, value)
        for name, text, counts in (
            ("queries", "Queries for tags", now.queries),
            ("waits", "Streams that waited for tags, by what ended that", now.waits),
        ):
            yield _by(f"elkeid_ac_tags_{name}_total", text, "outcome", counts)


@frozen(kw_only=True)
class UploadFigures:
    """Files that hosts bring; totals since the start."""

    active: int
    held_bytes: int
    received_bytes: int
    outcomes: Mapping[str, int]


class UploadMetrics(FiguresCollector[UploadFigures]):
    """What is counted of files that hosts bring, read when it is shown."""

    def families(self, now: UploadFigures) -> Iterable[Metric]:
        """All families of uploads."""
        yield _gauge("elkeid_ac_uploads_active", "Files under way to the Manager", now.active)
        yield _gauge("elkeid_ac_uploads_held_bytes", "Bytes of these", now.held_bytes)
        yield _total("elkeid_ac_uploads_received_bytes_total", "Bytes of files", now.received_bytes)
        yield _by(
            "elkeid_ac_uploads_total", "Uploads by what became of them", "outcome", now.outcomes
        )


@frozen(kw_only=True)
class ResultFigures:
    """What the outbox of task results shows."""

    waiting: int = 0
    sent: int = 0  # over all runs, as the next three
    set_aside: int = 0
    expired: int = 0  # given up at the disk cap
    dropped: int = 0  # not taken in: the disk was full, or the agent's share of the cap
    retries: int = 0  # since the start, as the next two
    unreadable: int = 0
    shortened: int = 0
    bytes_on_disk: int = 0
    kept: int = 0
    taken_late: int = 0  # since the start


class ResultMetrics(FiguresCollector[ResultFigures]):
    """What the outbox of task results counts, read when it is shown."""

    def families(self, now: ResultFigures) -> Iterable[Metric]:
        """All families of the outbox."""
        for name, text, value in (
            ("waiting", "Task results that the Manager has not taken yet", now.waiting),
            ("bytes", "Bytes of task results on disk", now.bytes_on_disk),
            ("kept_aside", "Refused task results that are tried again beside others", now.kept),
        ):
            yield _gauge(f"elkeid_ac_results_{name}", text, value)
        for name, text, value in (
            ("sent", "Task results that the Manager has taken", now.sent),
            ("set_aside", "Task results unreadable, refused, or kept aside", now.set_aside),
            ("taken_late", "Task results taken after they were kept aside", now.taken_late),
            ("expired", "Task results given up at results_cap_bytes", now.expired),
            (
                "dropped",
                "Task results not kept: full disk or agent's share",
                now.dropped,
            ),
            ("retries", "Calls with task results that failed", now.retries),
            ("unreadable", "Task results whose body is empty or no Item", now.unreadable),
            ("shortened", "Task results too large to be sent whole", now.shortened),
        ):
            yield _total(f"elkeid_ac_results_{name}_total", text, value)


@frozen(kw_only=True)
class KafkaFigures:
    """What the bridge to Kafka shows at one moment; totals count since the start of the process
    where nothing else is said.
    """

    connected: bool
    partitions: int  # of the topic
    held: int  # of them, held back alone
    acknowledged: Mapping[str, int]  # records by class, over all runs, as the next
    set_aside: Mapping[str, int]
    lag_seconds: float  # age of the oldest record that is read and not acknowledged
    retries: int  # batches sent again by the client, which brokers recognise
    repeats: Mapping[str, int]  # by cause, over all runs: events after which records may come twice
    refusals: Mapping[str, int]  # batches by the brokers' reason
    dead_letters: Mapping[str, int]  # records by reason
    batches: int
    bytes: int  # on the wire
    batch_limit: int
    outage_seconds: float  # since when Kafka has not taken all that is there; 0 while it does
    ack_bounds: tuple[float, ...]  # seconds
    ack_records: tuple[int, ...]  # in each bucket, one more than there are bounds
    ack_sum: float


class KafkaMetrics(FiguresCollector[KafkaFigures]):
    """What the bridge counts, read when it is shown."""

    def families(self, now: KafkaFigures) -> Iterable[Metric]:
        """All families of the bridge."""
        for name, text, value in (
            ("connected", "Whether brokers are connected", float(now.connected)),
            ("partitions", "Partitions of the topic", now.partitions),
            ("partitions_held", "Partitions whose records wait alone", now.held),
            ("lag_seconds", "Age of the oldest record read and not acknowledged", now.lag_seconds),
            ("batch_limit_bytes", "Largest batch that is made", now.batch_limit),
            ("outage_seconds", "For how long records wait for Kafka; 0: none", now.outage_seconds),
        ):
            yield _gauge(f"elkeid_kafka_{name}", text, value)
        for name, text, label, counts in (
            ("acknowledged", "Records acknowledged", "class", now.acknowledged),
            ("set_aside", "Records in the dead letters", "class", now.set_aside),
            ("dead_letters", "Records set aside", "reason", now.dead_letters),
            ("refusals", "Batches refused", "reason", now.refusals),
            ("repeats", "Events after which records may come twice", "cause", now.repeats),
        ):
            yield _by(f"elkeid_kafka_{name}_total", text, label, counts)
        for name, text, count in (
            ("retries", "Batches sent again by the client", now.retries),
            ("batches", "Batches made", now.batches),
            ("bytes", "Bytes of batches", now.bytes),
        ):
            yield _total(f"elkeid_kafka_{name}_total", text, count)
        buckets, total = [], 0
        for bound, count in zip((*now.ack_bounds, float("inf")), now.ack_records, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        yield HistogramMetricFamily(
            "elkeid_kafka_ack_seconds",
            "From a record's arrival to its acknowledgement",
            buckets=buckets,
            sum_value=now.ack_sum,
        )


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)


def _total(name: str, documentation: str, value: float) -> Metric:
    return _exact(name, documentation, (), {(): value})


def _by(
    name: str, documentation: str, label: str, values: Mapping[str, float], kind: str = "unknown"
) -> Metric:
    """A family with one label: its value -> number."""
    series = {(each,): value for each, value in values.items()}
    return _exact(name, documentation, (label,), series, kind)


def _exact(
    name: str,
    documentation: str,
    labels: tuple[str, ...],
    values: Mapping[Any, float],  # label values, in order -> number
    kind: str = "unknown",
) -> Metric:
    """A family whose series bear exactly ``name``, whatever its ending."""
    family = Metric(name, documentation, kind)
    for key, value in values.items():
        family.add_sample(name, dict(zip(labels, key, strict=True)), value)
    return family
