"""Hosts' states, events and figures in either database."""

from typing import Any

import msgspec
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from elkeid.manager.documents import Source
from elkeid.manager.figures import Figures, rolled_up
from elkeid.manager.filter import EVERYTHING
from elkeid.manager.protection import Protection
from elkeid.manager.store.agent_pages import page_of_agents
from elkeid.manager.store.agents import apply_reports, disconnect, heard, turn_offline
from elkeid.manager.store.backends import make_database
from elkeid.manager.store.engine import Database
from elkeid.manager.store.figures import forget_figures, join_stretches, keep_rollups, rollups_of
from elkeid.manager.store.fleet import (
    FleetFigure,
    all_platforms,
    count_hosts,
    keep_figure,
    newest_figure,
)
from elkeid.manager.store.hosts import forget_events, history_of, restore_hosts, retire_hosts
from elkeid.manager.store.migrate import SCRIPTS, migrate
from elkeid.manager.store.tags import all_tags, retag
from elkeid.manager.watch import HostWatch
from tests.manager.stores import report
from tests.manager.test_agent_store import asked

T = 1_700_000_000 // 3600 * 3600


def test_hosts_in_either_database(any_database: Database) -> None:
    """States, events, tags, figures and counts are stored, found and forgotten alike."""
    db = any_database
    figures = Figures()
    watch = HostWatch(figures, lambda: T, quiet_seconds=900, silent_seconds=600, ring=10)
    source = Source("10.0.0.1", 6752)
    reports = [
        report(f"a{number}", T, create_at=T, platform="debian", cpu=0.5, rss=5)
        for number in range(5)
    ]
    for _ in range(2):
        with db.writing() as connection:
            apply_reports(connection, source, reports)
            watch.reported(connection, source, reports, 0.0)
            heard(connection, {source: T + 10})
    over = figures.over(T + 10_000)
    with db.writing() as connection:
        disconnect(connection, source, ["a1"])
        watch.left(connection, source, ["a1"])
        assert retag(connection, ["a1", "a2"], lambda old: old | {"x"}).changed == 2
        assert all_tags(connection) == ["x"]
        assert retire_hosts(connection, ["a1", "a2"], T, 10) == (1, 1)
        assert count_hosts(connection, T).uninstalled == 1
        assert restore_hosts(connection, ["a1"], T, 10) == 1
        for _ in range(2):
            keep_rollups(connection, 300, [rolled_up(*each) for each in over])
        assert join_stretches(connection, "", 10, (300, 3600), T) == "a4"
        assert len(rollups_of(connection, "a1", 3600, [T])) == 1
        for hosts in (5, 6, 4):
            keep_figure(connection, FleetFigure(T, hosts, 5, 0, 0.5, 5.0))
        newest = newest_figure(connection)
        assert newest is not None
        assert newest.hosts == 6
        assert all_platforms(connection) == ["debian"]
        total, events = history_of(connection, "a1", 10, 0, offset=0, limit=5)
        kinds = ["returned", "retired", "disconnected", "connected"]
        assert (total, [event.kind for event in events]) == (4, kinds)
        assert forget_figures(connection, 300, T + 1, 100) == 5
        assert forget_events(connection, T + 1, 3) == 3


def agree(connection: Connection) -> dict[str, str]:
    """Host -> how well it is protected, by the lists of each; it is what its document says."""
    found: dict[str, str] = {}
    for each in map(str, Protection):
        page = page_of_agents(connection, asked("protection", "$eq", each), 0, 100)
        for document in map(msgspec.json.decode, page.items):
            assert document["protection"] == each
            assert document["agent_id"] not in found
            found[document["agent_id"]] = each
    documents = page_of_agents(connection, EVERYTHING, 0, 100).items
    shown = {each["agent_id"]: each for each in map(msgspec.json.decode, documents)}
    assert found == {key: each["protection"] for key, each in shown.items() if "protection" in each}
    return found


def test_protection_by_lists_and_documents(any_database: Database) -> None:
    """Whatever changes it, the list of it has the host at once, whoever writes."""
    watch = HostWatch(Figures(), lambda: T, quiet_seconds=900, silent_seconds=600, ring=10)
    source = Source("10.0.0.1", 6752)
    full = [{"name": "driver", "last_heartbeat_time": T}]
    bare = [{"name": "x", "last_heartbeat_time": T}]

    def heard(connection: Connection, seen: int, plugins: list[Any], **fields: Any) -> None:
        said = [report("a", seen, plugins=plugins, **fields), report("b", seen, plugins=[])]
        apply_reports(connection, source, said, T - 600.0)
        watch.reported(connection, source, said, 0.0)

    with any_database.writing() as connection:
        apply_reports(connection, source, [report("a", T), report("old", T - 601)], T - 600.0)
        assert agree(connection) == {"old": "none"}  # of the other nobody has judged
        heard(connection, T, full)
        assert agree(connection) == {"a": "full", "b": "heartbeat_only", "old": "none"}
        heard(connection, T + 1, [{**full[0], "status": "exited"}, *bare])
        assert agree(connection)["a"] == "no_kernel_events"
        assert turn_offline(connection, ["a"], T + 2.0) == 1
        assert agree(connection)["a"] == "none"
        apply_reports(connection, source, [report("a", T + 3, plugins=full)], T - 600.0)
        assert agree(connection)["a"] == "no_kernel_events"  # as last judged
        heard(connection, T + 4, full)
        assert agree(connection)["a"] == "full"
        watch.left(connection, source, ["a"])
        assert retire_hosts(connection, ["a"], T + 5, 10) == (1, 0)
        assert agree(connection)["a"] == "none"
        counts = count_hosts(connection, T)
        assert counts.protection == {
            "none": 1,
            "heartbeat_only": 1,
            "full": 0,
            "no_kernel_events": 0,
        }
        assert restore_hosts(connection, ["a"], T + 6, 10) == 1
        assert agree(connection)["a"] == "none"
        heard(connection, T + 7, full)
        assert agree(connection)["a"] == "full"
        # What another release does not know of: it writes what it always wrote.
        connection.execute(text("UPDATE host_state SET protection = 'heartbeat_only'"))
        assert agree(connection) == {"a": "heartbeat_only", "b": "heartbeat_only", "old": "none"}
        connection.execute(text("UPDATE agent SET agent_state = 'offline'"))
        assert set(agree(connection).values()) == {"none"}


def test_protection_of_hosts_known_before(empty_url: str) -> None:
    """A database of the release before is brought up to date with what it knows."""
    database = make_database(empty_url)
    database.open()
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with database.migrating() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    with database.writing() as connection:
        for number, state in enumerate(("running", "abnormal", "offline", "uninstalled")):
            connection.execute(
                text(
                    "INSERT INTO agent (agent_id, agent_state, connected, first_heartbeat_time)"
                    " VALUES (:id, :state, true, 1)"
                ),
                {"id": f"a{number}", "state": state},
            )
            if number:
                connection.execute(
                    text(
                        "INSERT INTO host_state (agent_id, gateway, connected, connected_at,"
                        " protection, reason, protection_since, kernel_version, events)"
                        " VALUES (:id, '', true, 1, 'full', '', 1, '', 0)"
                    ),
                    {"id": f"a{number}"},
                )
    assert migrate(database)
    with database.reading() as connection:
        found = connection.execute(text("SELECT protection FROM agent ORDER BY agent_id"))
        assert list(found.scalars()) == [None, "full", "none", "none"]
    database.close()
