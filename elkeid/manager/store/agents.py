"""What is stored of agents: reports of AgentCenters, states, connections, single agents.

Lists are in `agent_pages`. Every function takes a connection and blocks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import msgspec
from attrs import define
from sqlalchemy import Connection, any_, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from elkeid.manager.beats import Beat, Sorted, beat_of, decoded, slow_print
from elkeid.manager.documents import (
    ADDRESS_FIELDS,
    FOUND_KEYS,
    AgentReport,
    MalformedItem,
    Source,
    hot_fields,
    joined,
    local_format,
    merged,
    split,
)
from elkeid.manager.store.bulk import add_missing, is_among, sliced, update_rows
from elkeid.manager.store.schema import (
    agent,
    agent_beat,
    agent_detail,
    agent_hot,
    agent_ip,
    gateway,
    host_state,
)
from elkeid.manager.store.upsert import upsert

RUNNING, ABNORMAL, OFFLINE, UNINSTALLED = "running", "abnormal", "offline", "uninstalled"


@define
class Applied:
    """What became of a report."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    stale: int = 0  # another AC has heard the agent later
    malformed: int = 0

    def __iadd__(self, other: Self) -> Self:
        """Sum up."""
        self.added += other.added
        self.changed += other.changed
        self.unchanged += other.unchanged
        self.stale += other.stale
        self.malformed += other.malformed
        return self


def count_agents(connection: Connection) -> int:
    """How many agents there are."""
    return connection.execute(select(func.count()).select_from(agent)).scalar_one()


def slices(ids: Iterable[str]) -> Iterator[Sequence[str]]:
    """Ids for one statement each, none twice, sorted: all take their locks in that order."""
    return sliced(sorted(set(ids)))


# What readers get.

_SHOWN = (
    select(
        agent.c.agent_id,
        agent.c.agent_state,
        agent.c.connected,
        gateway.c.answers,
        agent_beat.c.last_heartbeat_time,
        agent_detail.c.fields.label("slow"),
        agent_hot.c.fields.label("hot"),
        host_state.c.protection,
        host_state.c.reason,
        host_state.c.protection_since,
        host_state.c.retired_at,
    )
    .join_from(agent, agent_beat, agent.c.agent_id == agent_beat.c.agent_id)
    .join(agent_detail, agent.c.agent_id == agent_detail.c.agent_id)
    .join(agent_hot, agent.c.agent_id == agent_hot.c.agent_id)
    .join(
        gateway,
        (gateway.c.ip == agent.c.source_ip) & (gateway.c.port == agent.c.source_port),
        isouter=True,
    )
    .join(host_state, host_state.c.agent_id == agent.c.agent_id, isouter=True)
)


_SHOWN_OF = {
    "sqlite": _SHOWN.where(agent.c.agent_id.in_(bindparam("ids", expanding=True))),
    "postgresql": _SHOWN.where(
        agent.c.agent_id == any_(bindparam("ids", type_=ARRAY(agent.c.agent_id.type)))
    ),
}
"""By dialect, made once: a statement with a hundred ids takes longer to make than to run."""

_PROTECTION = ',"protection":"%s","protection_reason":"%s","protection_since":%d'


def _shown(row: Sequence[Any]) -> msgspec.Raw:
    """The document, put together of its parts as text; a row as `_SHOWN` has them."""
    (_, state, connected, answers, seen, slow, hot, protection, reason, since, retired_at) = row
    text = (
        f'{slow[:-1]},{hot[1:-1]},"last_heartbeat_time":{seen},'
        f'"last_heartbeat_time_format":"{local_format(seen)}","agent_state":"{state}"'
    )
    if answers:
        text += ',"connected":true' if connected else ',"connected":false'
    if state in (OFFLINE, UNINSTALLED):
        why = "silent" if state == OFFLINE else "retired"
        text += _PROTECTION % ("none", why, seen)
    elif protection is not None:
        text += _PROTECTION % (protection, reason, since)
    if retired_at is not None:
        text += f',"retired_at":{retired_at}'
    return msgspec.Raw(f"{text}}}".encode())


def shown_agents(connection: Connection, ids: Sequence[str]) -> list[msgspec.Raw]:
    """The documents of these agents, as JSON, in this order; one never reported is left out."""
    found: dict[str, msgspec.Raw] = {}
    statement = _SHOWN_OF[connection.dialect.name]
    for some in slices(ids):
        for row in connection.execute(statement, {"ids": some}).all():
            found[row[0]] = _shown(row)
    return [found[each] for each in ids if each in found]


def find_agent(connection: Connection, agent_id: str) -> msgspec.Raw | None:
    """One agent's document, as JSON."""
    found = shown_agents(connection, [agent_id])
    return found[0] if found else None


def plugins_of(connection: Connection, ids: Iterable[str]) -> dict[str, frozenset[str]]:
    """The names of the plugins that agents were last reported with; of known agents only."""
    found: dict[str, frozenset[str]] = {}
    for some in slices(ids):
        rows = connection.execute(
            select(agent_hot.c.agent_id, agent_hot.c.fields).where(agent_hot.c.agent_id.in_(some))
        )
        for row in rows:
            plugins: list[Any] = msgspec.json.decode(row.fields).get("plugins", [])
            names = (each.get("name") for each in plugins if isinstance(each, dict))
            found[row.agent_id] = frozenset(name for name in names if isinstance(name, str))
    return found


def hold_documents(connection: Connection, ids: Iterable[str]) -> None:
    """Hold these agents until the end: nobody else changes what is slow of them meanwhile."""
    for some in slices(ids):
        connection.execute(
            select(agent_detail.c.agent_id)
            .where(agent_detail.c.agent_id.in_(some))
            .order_by(agent_detail.c.agent_id)
            .with_for_update()
        )


# What AgentCenters report.


def sort_out(
    connection: Connection, source: Source, items: Sequence[msgspec.Raw], skew: float
) -> Sorted:
    """Tell which entries of a report say something new; reads only.

    Args:
        connection: any.
        source: the AC.
        items: entries as sent, at most `IDS_PER_STATEMENT`.
        skew: how far the AC's clock is ahead, seconds.
    """
    result = Sorted()
    beats: dict[str, Beat] = {}
    rest: list[tuple[msgspec.Raw, int]] = []
    for item in items:
        beat = beat_of(item, source, skew)
        if beat is None or beat.agent_id in beats:
            rest.append((item, 0))
        else:
            beats[beat.agent_id] = beat
    known = connection.execute(
        select(agent_beat).where(is_among(connection, agent_beat.c.agent_id, sorted(beats)))
    ).all()
    for row in known:
        beat = beats[row.agent_id]
        if beat.raw_print != row.raw_print:
            continue
        if beat.last_heartbeat_time == row.last_heartbeat_time:
            result.unchanged += 1
        elif row.live and beat.last_heartbeat_time > row.last_heartbeat_time:
            result.beats.append(beat)
        else:
            continue
        result.ids.append(row.agent_id)
        del beats[row.agent_id]
    rest += [(beat.item, beat.raw_print) for beat in beats.values()]
    for item, raw_print in rest:
        try:
            report = decoded(item, skew)
        except MalformedItem:
            result.malformed += 1
            continue
        if report is not None:
            result.reports.append((report, raw_print))
            result.ids.append(report.agent_id)
    return result


def apply_sorted(
    connection: Connection, source: Source, given: Sorted, skew: float, fresh_since: float
) -> Applied:
    """Store what `sort_out` found new.

    Args:
        connection: that writes.
        source: the AC.
        given: of `sort_out`.
        skew: as there.
        fresh_since: unix seconds; an older last heartbeat means offline.
    """
    reports = list(given.reports)
    beats = sorted(given.beats, key=lambda each: each.agent_id)
    moved = update_rows(
        connection,
        agent_beat,
        [
            {
                "agent_id": each.agent_id,
                "last_heartbeat_time": each.last_heartbeat_time,
                "raw_print": each.raw_print,
                "live": True,
            }
            for each in beats
        ],
        key="agent_id",
        columns=["last_heartbeat_time"],
        where={"last_heartbeat_time": "<", "raw_print": "=", "live": "="},
    )
    done = Applied(unchanged=given.unchanged, malformed=given.malformed)
    if moved < len(beats):
        # Something happened between the look and now: these are looked at again, one by one.
        for each in beats:
            report = decoded(each.item, skew)
            if report is not None:
                reports.append((report, each.raw_print))
    else:
        done.changed = moved
    prints = {report.agent_id: raw_print for report, raw_print in reports}
    done += apply_reports(
        connection, source, [report for report, _ in reports], fresh_since, prints
    )
    return done


_KNOWN = (
    select(
        agent_beat,
        agent.c.agent_state,
        agent.c.connected,
        agent.c.source_ip,
        agent.c.source_port,
    )
    .join_from(agent_beat, agent, agent.c.agent_id == agent_beat.c.agent_id)
    .order_by(agent_beat.c.agent_id)
    .with_for_update(of=agent_beat)
)


@define
class _Changes:
    """Rows to write."""

    agents: list[dict[str, Any]]
    beats: list[dict[str, Any]]
    hot: list[dict[str, Any]]
    slow: list[dict[str, Any]]
    addresses: dict[str, list[dict[str, Any]]]  # agent id -> all of them, where they changed

    @classmethod
    def none(cls) -> Self:
        """To begin with."""
        return cls([], [], [], [], {})


def apply_reports(
    connection: Connection,
    source: Source,
    reports: Iterable[AgentReport],
    fresh_since: float = 0.0,
    prints: Mapping[str, int] | None = None,
) -> Applied:
    """Store what one AC says of some agents, at most `IDS_PER_STATEMENT`.

    A report that is older than what another AC said stays out: an agent that moved is told of by
    both for a while.

    Args:
        connection: that writes.
        source: the AC.
        reports: decoded.
        fresh_since: unix seconds; an older last heartbeat means offline.
        prints: agent id -> `Beat.raw_print`.
    """
    latest = {report.agent_id: report for report in reports}
    result = Applied()
    if not latest:
        return result
    known: dict[str, Any] = {
        row.agent_id: row
        for row in connection.execute(
            _KNOWN.where(is_among(connection, agent_beat.c.agent_id, sorted(latest)))
        )
    }
    fresh, changed = _Changes.none(), _Changes.none()
    whole: list[tuple[AgentReport, dict[str, Any], str]] = []  # and the state if it is not live
    for agent_id in sorted(latest):
        report, row = latest[agent_id], known.get(agent_id)
        seen = report.last_heartbeat_time
        if (
            row is not None
            and (row.source_ip, row.source_port) != (source.ip, source.port)
            and seen < row.last_heartbeat_time
        ):
            result.stale += 1
            continue
        beat = {
            "agent_id": agent_id,
            "last_heartbeat_time": seen,
            "live": seen >= fresh_since,
            "raw_print": (prints or {}).get(agent_id, 0),
            "slow_print": slow_print(report, source),
        }
        if row is None:
            result.added += 1
            _add_whole(fresh, merged(None, report, source)[0], report, beat, OFFLINE)
            continue
        result.changed += 1
        if row.agent_state == UNINSTALLED and seen <= row.last_heartbeat_time:
            beat["live"] = False  # it has not said anything since
        if row.connected and row.live == beat["live"] and row.slow_print == beat["slow_print"]:
            changed.hot.append({"agent_id": agent_id, "fields": _hot_text(report)})
            changed.beats.append(beat)
        else:
            silent = UNINSTALLED if row.agent_state == UNINSTALLED else OFFLINE
            whole.append((report, beat, silent))
    stored = _documents(connection, [report.agent_id for report, _, _ in whole])
    for report, beat, silent in whole:
        old = stored[report.agent_id]
        document, _ = merged(old, report, source)
        _add_whole(changed, document, report, beat, silent)
        if _addresses(report.agent_id, old) == changed.addresses[report.agent_id]:
            del changed.addresses[report.agent_id]
    _write_new(connection, fresh)
    _write_changes(connection, changed)
    return result


def _documents(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The documents of these agents, held, so that tags given meanwhile are not lost."""
    if not ids:  # as a rule: heartbeats change figures
        return {}
    rows = connection.execute(
        _SHOWN.where(agent.c.agent_id.in_(ids))
        .order_by(agent.c.agent_id)
        .with_for_update(of=agent_detail)
    )
    return {row.agent_id: joined(row.slow, row.hot, row.last_heartbeat_time) for row in rows}


def _hot_text(report: AgentReport) -> str:
    return split({}, hot_fields(report))[1]


def _add_whole(
    rows: _Changes,
    document: dict[str, Any],
    report: AgentReport,
    beat: dict[str, Any],
    silent: str,
) -> None:
    """Add all rows of an agent; `silent` is its state if it is not live."""
    agent_id = report.agent_id
    slow, hot = split(document, hot_fields(report))
    if not beat["live"]:
        state = silent
    else:
        state = ABNORMAL if document.get("state") == ABNORMAL else RUNNING
    columns = ("source_ip", "source_port", "first_heartbeat_time", *FOUND_KEYS)
    rows.agents.append(
        {
            "agent_id": agent_id,
            "agent_state": state,
            "connected": True,
            **{name: document.get(name) for name in columns},
        }
    )
    rows.beats.append(beat)
    rows.hot.append({"agent_id": agent_id, "fields": hot})
    rows.slow.append({"agent_id": agent_id, "fields": slow})
    rows.addresses[agent_id] = _addresses(agent_id, document)


def _addresses(agent_id: str, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for field in ADDRESS_FIELDS:
        value = document.get(field)
        texts = value if isinstance(value, list) else [value]
        previous = None
        for address in sorted({each for each in texts if isinstance(each, str)}):
            row = {"field": field, "address": address, "agent_id": agent_id, "previous": previous}
            rows.append(row)
            previous = address
    return rows


def _write_new(connection: Connection, rows: _Changes) -> None:
    """Add agents; where another Manager was faster, what it wrote stands: it heard the same."""
    addresses = [row for some in rows.addresses.values() for row in some]
    for table, keys, given in (
        (agent, ["agent_id"], rows.agents),
        (agent_beat, ["agent_id"], rows.beats),
        (agent_hot, ["agent_id"], rows.hot),
        (agent_detail, ["agent_id"], rows.slow),
        (agent_ip, ["field", "address", "agent_id"], addresses),
    ):
        add_missing(connection, table, given, keys=keys)


def _write_changes(connection: Connection, rows: _Changes) -> None:
    for table, given in (
        (agent_beat, rows.beats),
        (agent_hot, rows.hot),
        (agent_detail, rows.slow),
        (agent, rows.agents),
    ):
        if given:
            columns = [name for name in given[0] if name != "agent_id"]
            update_rows(connection, table, given, key="agent_id", columns=columns)
    if rows.addresses:
        connection.execute(delete(agent_ip).where(agent_ip.c.agent_id.in_(list(rows.addresses))))
        addresses = [row for some in rows.addresses.values() for row in some]
        add_missing(connection, agent_ip, addresses, keys=["field", "address", "agent_id"])


# States.


def silent_agents(connection: Connection, fresh_since: float, after: str, limit: int) -> list[str]:
    """Agents that are not offline yet but have been silent for long, by id.

    Args:
        connection: any.
        fresh_since: unix seconds; an older last heartbeat means offline.
        after: only ids after this one.
        limit: at most so many.
    """
    return list(
        connection.execute(
            select(agent_beat.c.agent_id)
            .where(
                agent_beat.c.live,
                agent_beat.c.last_heartbeat_time < fresh_since,
                agent_beat.c.agent_id > after,
            )
            .order_by(agent_beat.c.agent_id)
            .limit(limit)
        ).scalars()
    )


def turn_offline(connection: Connection, ids: Iterable[str], fresh_since: float) -> int:
    """Note of agents that they are offline, unless they have been heard since."""
    turned = 0
    for some in slices(ids):
        rows = connection.execute(
            update(agent_beat)
            .where(
                agent_beat.c.agent_id.in_(lock_agents(connection, some)),
                agent_beat.c.live,
                agent_beat.c.last_heartbeat_time < fresh_since,
            )
            .values(live=False)
            .returning(agent_beat.c.agent_id)
        )
        gone = list(rows.scalars())
        turned += len(gone)
        if gone:
            connection.execute(
                update(agent)
                .where(agent.c.agent_id.in_(sorted(gone)), agent.c.agent_state != UNINSTALLED)
                .values(agent_state=OFFLINE)
            )
    return turned


def retire(connection: Connection, ids: Iterable[str]) -> int:
    """Note of agents that they were uninstalled, until they are heard again."""
    retired = 0
    for some in slices(ids):
        locked = lock_agents(connection, some)
        connection.execute(
            update(agent_beat).where(agent_beat.c.agent_id.in_(locked)).values(live=False)
        )
        retired += connection.execute(
            update(agent)
            .where(agent.c.agent_id.in_(locked), agent.c.agent_state != UNINSTALLED)
            .values(agent_state=UNINSTALLED)
        ).rowcount
    return retired


def unretire(connection: Connection, ids: Iterable[str]) -> None:
    """Note of agents that were uninstalled that they are offline instead."""
    for some in slices(ids):
        connection.execute(
            update(agent)
            .where(
                agent.c.agent_id.in_(lock_agents(connection, some)),
                agent.c.agent_state == UNINSTALLED,
            )
            .values(agent_state=OFFLINE)
        )


def lock_agents(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Those of these agents that there are, held until the end, in the order that all take."""
    return list(
        connection.execute(
            select(agent_beat.c.agent_id)
            .where(agent_beat.c.agent_id.in_(ids))
            .order_by(agent_beat.c.agent_id)
            .with_for_update()
        ).scalars()
    )


# Connections.


def disconnect(connection: Connection, source: Source, ids: Iterable[str]) -> int:
    """Note that agents left an AC; those that another AC has reported since are not touched."""
    left = 0
    for some in slices(ids):
        locked = lock_agents(connection, some)
        gone = list(
            connection.execute(
                update(agent)
                .where(
                    agent.c.agent_id.in_(locked),
                    agent.c.source_ip == source.ip,
                    agent.c.source_port == source.port,
                    agent.c.connected,
                )
                .values(connected=False)
                .returning(agent.c.agent_id)
            ).scalars()
        )
        left += len(gone)
        if gone:  # what it says next is new, even if it is the same
            connection.execute(
                update(agent_beat)
                .where(agent_beat.c.agent_id.in_(sorted(gone)))
                .values(raw_print=0, slow_print=0)
            )
    return left


def on_gateways(connection: Connection, ids: Iterable[str]) -> set[str]:
    """Those of these agents that an AC has: one that answers, of others nobody knows."""
    found: set[str] = set()
    for some in slices(ids):
        query = (
            select(agent.c.agent_id)
            .join_from(
                agent,
                gateway,
                (gateway.c.ip == agent.c.source_ip) & (gateway.c.port == agent.c.source_port),
            )
            .where(
                agent.c.connected, gateway.c.answers, is_among(connection, agent.c.agent_id, some)
            )
        )
        found.update(connection.execute(query).scalars())
    return found


def connected_to(connection: Connection, source: Source) -> list[str]:
    """The agents that an AC is known to have had last."""
    return list(
        connection.execute(
            select(agent.c.agent_id).where(
                agent.c.source_ip == source.ip,
                agent.c.source_port == source.port,
                agent.c.connected,
            )
        ).scalars()
    )


def heard(connection: Connection, sources: Mapping[Source, int]) -> None:
    """Note that ACs have answered, and all they said is stored.

    Args:
        connection: that writes.
        sources: AC -> unix seconds, until when that counts.
    """
    statement = upsert(connection, gateway, ["ip", "port"], ["known_until", "answers"])
    rows = [
        {"ip": each.ip, "port": each.port, "known_until": sources[each], "answers": True}
        for each in sorted(sources, key=str)
    ]
    connection.execute(statement, rows)


def silent_gateways(connection: Connection, now: float) -> bool:
    """Whether there are ACs whose last answer counts no more."""
    query = select(gateway.c.ip).where(gateway.c.answers, gateway.c.known_until < now)
    return connection.execute(query.limit(1)).first() is not None


def forget_gateways(connection: Connection, now: float | None = None) -> None:
    """Note that nobody knows who is connected to ACs whose last answer counts no more.

    Args:
        connection: that writes.
        now: unix seconds; None forgets all answers.
    """
    statement = update(gateway).where(gateway.c.answers).values(answers=False)
    if now is not None:
        statement = statement.where(gateway.c.known_until < now)
    connection.execute(statement)


def forget_gateway(connection: Connection, source: Source) -> None:
    """Note that an AC cannot be asked, so that nobody knows whom it has."""
    connection.execute(
        update(gateway)
        .where(gateway.c.ip == source.ip, gateway.c.port == source.port)
        .values(answers=False)
    )
