"""Hosts that are gone for long are removed, and no others."""

import threading
from collections.abc import Sequence
from typing import Any

from msgspec import Raw
from sqlalchemy import Connection, func, insert, select, update
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager import removal
from elkeid.manager.documents import Source
from elkeid.manager.figures import Figures
from elkeid.manager.removal import ROUNDS
from elkeid.manager.retention import PAUSE_SECONDS
from elkeid.manager.store.agents import (
    OFFLINE,
    UNINSTALLED,
    apply_reports,
    apply_sorted,
    disconnect,
    forget_gateways,
    heard,
    sort_out,
    turn_offline,
)
from elkeid.manager.store.engine import Database
from elkeid.manager.store.host_configs import HostConfig, host_configs, store_host_configs
from elkeid.manager.store.hosts import retire_hosts
from elkeid.manager.store.removal import hosts_gone, remove_hosts
from elkeid.manager.store.schema import agent, agent_beat, host_config, metadata
from elkeid.manager.store.tags import retag
from elkeid.manager.watch import HostWatch
from tests.manager.stores import report

from .deployment import Deployment

T = 1_700_000_000
DAY = 86_400
SOURCE = Source("10.0.0.1", 6752)


def hear(connection: Connection, seen: int, *ids: str) -> None:
    """A gateway that answers tells of these hosts."""
    reports = [
        report(each, seen, intranet_ipv4=["10.1.0.1"], kernel_version="6.1", create_at=seen)
        for each in ids
    ]
    apply_reports(connection, SOURCE, reports)
    watch = HostWatch(Figures(), lambda: seen, quiet_seconds=900, silent_seconds=600, ring=10)
    watch.reported(connection, SOURCE, reports, 0.0)
    heard(connection, {SOURCE: seen + 10})


def fall_silent(connection: Connection, *ids: str) -> None:
    """They leave their gateway, and are offline."""
    disconnect(connection, SOURCE, ids)
    turn_offline(connection, ids, T + 1000 * DAY)


def due(connection: Connection, state: str, before: float) -> list[str]:
    """Hosts to remove, looked for in one go."""
    gone, last = hosts_gone(connection, state, before, "", 100)
    assert last is None
    return gone


def left(connection: Connection) -> list[str]:
    """The hosts that there are."""
    return list(connection.execute(select(agent.c.agent_id).order_by(agent.c.agent_id)).scalars())


def rows_of(connection: Connection, agent_id: str) -> dict[str, int]:
    """Table -> rows of a host in it, of all tables that name hosts."""
    return {
        table.name: count
        for table in metadata.sorted_tables
        if "agent_id" in table.c
        and (
            count := connection.execute(
                select(func.count()).select_from(table).where(table.c.agent_id == agent_id)
            ).scalar_one()
        )
    }


def test_who_is_due(any_database: Database) -> None:
    """Retired hosts go by the time of that, silent ones by their last heartbeat."""
    with any_database.writing() as connection:
        hear(connection, T, "early", "late", "silent")
        hear(connection, T + 10 * DAY, "fresh", "connected")
        fall_silent(connection, "early", "late", "silent", "fresh")
        assert retire_hosts(connection, ["early"], T + DAY, 10) == (1, 0)
        assert retire_hosts(connection, ["late"], T + 5 * DAY, 10) == (1, 0)
        assert due(connection, UNINSTALLED, T + DAY) == []
        assert due(connection, UNINSTALLED, T + DAY + 1) == ["early"]
        assert due(connection, UNINSTALLED, T + 5 * DAY + 1) == ["early", "late"]
        assert due(connection, OFFLINE, T) == []
        assert due(connection, OFFLINE, T + 1) == ["silent"]
        assert due(connection, OFFLINE, T + 20 * DAY) == ["fresh", "silent"]
        assert hosts_gone(connection, OFFLINE, T + 20 * DAY, "", 1) == (["fresh"], "fresh")
        assert hosts_gone(connection, OFFLINE, T + 20 * DAY, "fresh", 1) == (["silent"], "silent")
        assert hosts_gone(connection, OFFLINE, T + 20 * DAY, "silent", 1) == ([], None)


def test_connected_hosts_stay(any_database: Database) -> None:
    """A stream is a sign of life, however silent, unless its gateway is away itself."""
    with any_database.writing() as connection:
        hear(connection, T, "a")
        turn_offline(connection, ["a"], T + 1.0)
        assert due(connection, OFFLINE, T + DAY) == []
        assert retire_hosts(connection, ["a"], T + DAY, 10) == (0, 1)
        forget_gateways(connection)
        assert due(connection, OFFLINE, T + DAY) == ["a"]
        assert retire_hosts(connection, ["a"], T + DAY, 10) == (1, 0)
        assert due(connection, UNINSTALLED, T + 2 * DAY) == ["a"]


def test_nothing_is_left(any_database: Database) -> None:
    """Of a removed host no row is left, its own config included; others lose nothing."""
    with any_database.writing() as connection:
        hear(connection, T, "a", "b")
        fall_silent(connection, "a", "b")
        retag(connection, ["a", "b"], lambda old: {"web"})
        item = {"name": "driver", "version": "1"}
        for each in "ab":
            config = HostConfig(
                agent_id=each, items=[item], allow_empty=False, drops_confirmed=False, updated_at=T
            )
            store_host_configs(connection, [config])
        before = rows_of(connection, "b")
        assert len(before) == 9
        assert remove_hosts(connection, ["a"], OFFLINE, T + 1) == 1
        assert rows_of(connection, "a") == {}
        assert rows_of(connection, "b") == before
        assert remove_hosts(connection, ["a"], OFFLINE, T + 1) == 0
        hear(connection, T + DAY, "a")  # it is new
        assert set(before) - set(rows_of(connection, "a")) == {"agent_tag", "host_config"}


def test_who_returned_meanwhile(any_database: Database) -> None:
    """What changed between the look and the lock counts: who was heard or restored stays."""
    with any_database.writing() as connection:
        hear(connection, T, "a", "b")
        fall_silent(connection, "a", "b")
        assert due(connection, OFFLINE, T + 1) == ["a", "b"]
        hear(connection, T + DAY, "a")
        retire_hosts(connection, ["b"], T, 10)
        assert remove_hosts(connection, ["a", "b"], OFFLINE, T + 1) == 0
        assert left(connection) == ["a", "b"]


def test_heard_in_that_moment(any_database: Database) -> None:
    """A removal that begins while a report is being stored waits for it, and finds it."""
    with any_database.writing() as connection:
        hear(connection, T, "a", "b")
        fall_silent(connection, "a", "b")
    begins, removed = threading.Event(), list[int]()

    def remove() -> None:
        begins.set()
        with any_database.writing() as connection:
            removed.append(remove_hosts(connection, ["a", "b"], OFFLINE, T + 1))

    other = threading.Thread(target=remove)
    with any_database.writing() as connection:
        hear(connection, T + DAY, "a")
        other.start()
        begins.wait()
    other.join()
    with any_database.reading() as connection:
        assert (removed, left(connection)) == ([1], ["a"])


def test_reports_of_who_was_removed_meanwhile(any_database: Database) -> None:
    """A report that was compared with what is removed then makes the host anew."""
    info = b'{"agent_id":"a","hostname":"h","state":"running","last_heartbeat_time":%d}'

    def said(seen: int) -> Sequence[Raw]:
        return [Raw(b'{"agent_info":' + info % seen + b',"plugins_info":[]}')]

    with any_database.writing() as connection:
        for seen in (T, T + 1):
            some = sort_out(connection, SOURCE, said(seen), 0.0)
            apply_sorted(connection, SOURCE, some, 0.0, T - 600.0)
        beat = sort_out(connection, SOURCE, said(T + 2), 0.0)
        assert beat.beats
        connection.execute(update(agent).values(agent_state=OFFLINE, connected=False))
        assert remove_hosts(connection, ["a"], OFFLINE, T + 2) == 1
        done = apply_sorted(connection, SOURCE, beat, 0.0, T - 600.0)
        assert (done.added, done.changed) == (1, 0)
        assert left(connection) == ["a"]
        assert connection.execute(select(agent_beat.c.last_heartbeat_time)).scalar() == T + 2


class RuleTests(SynchronousTestCase):
    settings: dict[str, Any] = {}  # noqa: RUF012

    def setUp(self) -> None:
        self.deployment = Deployment(**self.settings).start()
        self.addCleanup(self.deployment.end)
        self.network = self.deployment.network
        self.store = self.deployment.manager.store
        self.now = int(self.network.wall())
        self.write(self.fill)

    def fill(self, connection: Connection) -> None:
        """Hosts that were retired, or fell silent, this many days ago."""
        for days in (20, 31, 300, 366):
            for kind in ("retired", "silent"):
                name, seen = f"{kind}-{days}", self.now - days * DAY
                hear(connection, seen, name)
                fall_silent(connection, name)
                if kind == "retired":
                    retire_hosts(connection, [name], seen, 10)

    def write(self, query: Any, *arguments: Any) -> Any:
        """In the Manager's database."""
        return self.network.run(self.store.write(query, *arguments))

    def rounds(self) -> None:
        """Long enough for every rule."""
        for _ in range(ROUNDS):
            self.network.advance(PAUSE_SECONDS, step=PAUSE_SECONDS)

    def shown(self) -> list[str]:
        """Hosts in the list, and that all counts are theirs."""
        self.network.advance(10)
        page = self.deployment.status(self.deployment.login(), "?page_size=100")
        ids = [each["agent_id"] for each in page["items"]]
        self.assertEqual(page["total"], len(ids))
        self.assertEqual(self.deployment.manager.agents.total, len(ids))
        return ids


class DefaultTests(RuleTests):
    def test_removed_in_the_end(self) -> None:
        """Retired ones after 30 days, silent ones after a year; counted, and out of the list."""
        self.patch(removal, "HOSTS_PER_LOOK", 2)
        self.patch(removal, "HOSTS_PER_REMOVAL", 1)
        self.assertEqual(len(self.shown()), 8)
        self.rounds()
        left = ["retired-20", "silent-20", "silent-300", "silent-31"]
        self.assertEqual(self.shown(), left)
        metrics = self.deployment.call("GET", "/metrics").text.decode()
        self.assertIn('elkeid_manager_hosts_removed_total{reason="retired"} 3.0', metrics)
        self.assertIn('elkeid_manager_hosts_removed_total{reason="silent"} 1.0', metrics)
        self.rounds()
        self.assertEqual(self.shown(), left)

    def test_no_host_of_that_id(self) -> None:
        """Routes answer for a removed host as for one never reported."""
        self.rounds()
        token = self.deployment.login()
        got = self.deployment.call("GET", "/api/v1/agent/getHistory/silent-366", token=token)
        self.assertEqual(got.json["code"], 3)

    def test_configs_of_hosts_never_reported(self) -> None:
        """A config that was stored for an id without a host is nobody's to remove."""
        row = {
            "agent_id": "other",
            "items": "[]",
            "allow_empty": False,
            "drops_confirmed": False,
            "updated_at": self.now - 1000 * DAY,
        }
        self.write(lambda connection: connection.execute(insert(host_config).values(row)) and None)
        self.rounds()
        self.assertIn("other", self.network.run(self.store.read(host_configs, ["other"])))


class NeverTests(RuleTests):
    settings = {"retired_host_seconds": 0, "silent_host_seconds": 0}  # noqa: RUF012

    def test_never(self) -> None:
        """With 0 nothing is removed."""
        self.rounds()
        self.assertEqual(len(self.shown()), 8)
