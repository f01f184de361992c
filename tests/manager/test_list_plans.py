"""Lists of agents go along an index: nothing is sorted, and no table is read whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert

from elkeid.manager.documents import Source
from elkeid.manager.filter import Test
from elkeid.manager.selection import HostConditions, looked_at
from elkeid.manager.store.agent_pages import page_of_agents
from elkeid.manager.store.agents import heard
from elkeid.manager.store.engine import Database
from elkeid.manager.store.schema import agent, agent_beat, agent_ip, agent_tag

from .stores import KINDS, database_of_kind
from .test_agent_store import asked

HOSTS = 2_000
"""So many that a database of either kind takes an index where one is worth it."""

RARE = 5


def fill(database: Database) -> None:
    """Hosts of which a few are different in everything that a filter can ask for."""
    ids = [f"a{number:04}" for number in range(HOSTS)]
    rare = set(ids[:: HOSTS // RARE])
    rows = [
        {
            "agent_id": each,
            "hostname": f"{'rare' if each in rare else 'web'}-{each}",
            "state": "abnormal" if each in rare else "running",
            "agent_state": "offline" if each in rare else "running",
            "version": "2" if each in rare else "1",
            "platform": "rare" if each in rare else "debian",
            "idc": "rare" if each in rare else "x",
            "source_ip": "10.0.0.9" if each in rare else "10.0.0.1",
            "source_port": 6752,
            "connected": each not in rare,
            "first_heartbeat_time": 2_000 if each in rare else 1_000,
        }
        for each in ids
    ]
    addresses = [
        {
            "field": "intranet_ipv4",
            "address": f"{'9' if each in rare else '10'}.0.0.{each}",
            "agent_id": each,
            "previous": None,
        }
        for each in ids
    ]
    with database.writing() as connection:
        connection.execute(insert(agent), rows)
        connection.execute(
            insert(agent_beat),
            [
                {
                    "agent_id": each,
                    "last_heartbeat_time": 1_000,
                    "live": True,
                    "raw_print": 0,
                    "slow_print": 0,
                }
                for each in ids
            ],
        )
        connection.execute(insert(agent_ip), addresses)
        heard(connection, {Source("10.0.0.9", 6752): 2_000})
        tags = [{"agent_id": each, "tag": "rare" if each in rare else "prod"} for each in ids]
        connection.execute(insert(agent_tag), tags)
    if connection.dialect.name == "postgresql":
        with database.migrating() as connection:  # no limit of time
            connection.exec_driver_sql("ANALYZE")


@pytest.fixture(scope="module", params=KINDS)
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A database of each kind that no test here changes."""
    folder: Path = tmp_path_factory.mktemp("plans")
    with database_of_kind(request.param, folder) as database:
        fill(database)
        yield database


def plans(connection: Connection, test: Test, most: int = 2) -> list[str]:
    """How the database comes by a count, and by the ids of a page; of each way, at most so many."""
    asked_for: list[tuple[str, Any]] = []

    def see(_: Any, __: Any, sql: str, parameters: Any, *___: Any) -> None:
        if sql.startswith("SELECT"):
            asked_for.append((sql, parameters))

    event.listen(connection, "before_cursor_execute", see)
    page = page_of_agents(connection, test, 0, 3)
    event.remove(connection, "before_cursor_execute", see)
    assert page.total == RARE
    word = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    return [
        "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{word} {sql}", parameters))
        for sql, parameters in asked_for[:most]
        if "agent_detail" not in sql
    ]


ALONG = (
    ("hostname", "$regex", "^rare-", "ix_agent_hostname"),
    ("state", "$eq", "abnormal", "ix_agent_state"),
    ("agent_state", "$eq", "offline", "ix_agent_agent_state"),
    ("version", "$eq", "2", "ix_agent_version"),
    ("platform", "$eq", "rare", "ix_agent_platform"),
    ("idc", "$regex", "^rare", "ix_agent_idc"),
    ("protection", "$eq", "none", "ix_agent_protection"),
    ("connected", "$eq", False, "ix_agent_away"),
    ("first_heartbeat_time", "$gt", 1_500.5, "ix_agent_first_heartbeat_time"),
    ("source_ip", "$eq", "10.0.0.9", "ix_agent_source"),
    ("tags", "$eq", "rare", "ix_agent_tag_tag"),
    ("intranet_ipv4", "$regex", r"^9\.0", "agent_ip"),
)


@pytest.mark.parametrize(("key", "operator", "value", "index"), ALONG)
def test_lists_go_along_indices(
    filled: Database, key: str, operator: str, value: Any, index: str
) -> None:
    """By what operators look for hosts by."""
    test = asked(key, operator, value)
    with filled.reading() as connection:
        counted, listed = plans(connection, test)
    for plan in (counted, listed):
        assert index in plan
        is_along_indices(plan)
    if key != "source_ip":  # those of one address are few
        is_in_order(listed)


def is_along_indices(plan: str) -> None:
    """No table is read whole."""
    assert "Seq Scan on agent" not in plan
    assert "SCAN agent" not in plan.replace("SCAN agent USING", "")


def is_in_order(plan: str) -> None:
    """Nothing is sorted."""
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan


CONDITIONS = (
    (HostConditions(ip="9.0"), "agent_ip"),
    (HostConditions(tags=["rare", "none"]), "ix_agent_tag_tag"),
    (HostConditions(idc=["rare", "none"]), "ix_agent_idc"),
    (HostConditions(status=["offline", "abnormal"]), "ix_agent_agent_state"),
    (HostConditions(tags=["rare"], ip="9."), "ix_agent_tag_tag"),
)


@pytest.mark.parametrize(("conditions", "index"), CONDITIONS)
def test_conditions_go_along_indices(
    filled: Database, conditions: HostConditions, index: str
) -> None:
    """Also where several things are asked for, or any of some."""
    with filled.reading() as connection:
        found = plans(connection, looked_at(conditions), 10)
    assert any(index in plan for plan in found)
    for plan in found:
        is_along_indices(plan)
