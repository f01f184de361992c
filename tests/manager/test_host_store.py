"""Hosts' states, events and figures in either database."""

from elkeid.manager.documents import Source
from elkeid.manager.figures import Figures, rolled_up
from elkeid.manager.store.agents import apply_reports
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
from elkeid.manager.store.tags import all_tags, retag
from elkeid.manager.watch import HostWatch
from tests.manager.stores import report

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
    over = figures.over(T + 10_000)
    with db.writing() as connection:
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
