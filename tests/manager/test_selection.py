"""Which hosts are meant: ids before conditions, and nobody where nothing is said."""

from typing import Any

import msgspec
import pytest

from elkeid.manager.filter import EVERYTHING, Test, holds
from elkeid.manager.selection import (
    NOBODY,
    NOT_RETIRED,
    HostConditions,
    HostSelector,
    conditions_test,
    looked_at,
    selected,
)
from elkeid.web.refusals import ParameterInvalid

HOST: dict[str, Any] = {
    "agent_id": "a-1",
    "hostname": "web.1",
    "version": "1.7.0.24",
    "intranet_ipv4": ["10.0.0.1"],
    "extranet_ipv6": ["fd00::1"],
    "tags": ["web", "eu"],
    "idc": "b",
    "platform": "debian",
    "agent_state": "running",
}


def meaning(body: dict[str, Any], *, reading: bool = False) -> Test:
    """What a body selects."""
    return selected(msgspec.convert(body, HostSelector), reading=reading)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"hostname": "web."}, True),
        ({"hostname": "eb"}, False),
        ({"hostname": "web-"}, False),
        ({"hostname": "we.*"}, False),
        ({"ip": "10.0.0."}, True),
        ({"ip": "fd00::"}, True),
        ({"ip": "0.0.1"}, False),
        ({"agent_id": "a-"}, True),
        ({"version": "1.7"}, True),
        ({"version": "1x7"}, False),
        ({"tags": ["db", "eu"]}, True),
        ({"tags": ["db"]}, False),
        ({"idc": ["b"], "platform": ["debian", "rhel"]}, True),
        ({"idc": ["b"], "platform": ["rhel"]}, False),
        ({"status": ["offline", "running"]}, True),
        ({"status": ["abnormal"]}, False),
        ({"status": ["uninstall"]}, False),
        ({"hostname": "web", "tags": [], "status": []}, True),
    ],
)
def test_conditions(conditions: dict[str, Any], expected: bool) -> None:
    """All conditions hold; prefixes are texts, not patterns; lists mean any of them."""
    assert holds(meaning({"conditions": conditions}), HOST) is expected


def test_uninstalled_hosts_are_asked_for() -> None:
    """The state of a retired host has another name there."""
    test = meaning({"conditions": {"status": ["uninstall"]}})
    assert holds(test, HOST | {"agent_state": "uninstalled"})


def test_no_conditions() -> None:
    """Whoever makes a test of no conditions can tell, and has to say what it means."""
    assert conditions_test(HostConditions()) == EVERYTHING
    assert conditions_test(HostConditions(tags=[], hostname="")) == EVERYTHING
    assert looked_at(HostConditions()) == NOT_RETIRED


def test_retired_hosts_are_not_meant() -> None:
    """Unless by their ids or their state."""
    retired = HOST | {"agent_state": "uninstalled"}
    assert not holds(meaning({"conditions": {"hostname": "web"}}), retired)
    assert not holds(meaning({"id_list": [], "all": True}), retired)
    assert holds(meaning({"id_list": ["a-1"]}), retired)
    assert holds(meaning({"conditions": {"status": ["uninstall", "running"]}}), retired)


def test_ids_win() -> None:
    """With ids, conditions do not count."""
    test = meaning({"id_list": ["a-1"], "conditions": {"hostname": "nothing"}})
    assert holds(test, HOST)
    assert not holds(meaning({"id_list": ["a-2"]}), HOST)


@pytest.mark.parametrize(
    "body",
    [
        {"id_list": []},
        {"conditions": {}},
        {"id_list": [], "conditions": {}},
        {"conditions": {"tags": [], "hostname": "", "ip": None}},
    ],
)
def test_an_empty_selection_selects_nobody(body: dict[str, Any]) -> None:
    """Everybody must be said."""
    assert meaning(body) == NOBODY
    assert not holds(NOBODY, HOST)
    assert meaning(body | {"all": True}) == NOT_RETIRED


def test_all_does_not_widen_conditions() -> None:
    """``all`` beside conditions changes nothing."""
    body = {"conditions": {"hostname": "db"}, "all": True}
    assert not holds(meaning(body), HOST)


def test_reading() -> None:
    """Who only looks and sets no conditions sees everybody; an empty list of ids is nobody."""
    assert meaning({"conditions": {}}, reading=True) == NOT_RETIRED
    assert meaning({"id_list": []}, reading=True) == NOBODY


@pytest.mark.parametrize("body", [{}, {"id_list": None, "conditions": None}])
def test_nothing_at_all(body: dict[str, Any]) -> None:
    """A body without either is refused."""
    with pytest.raises(ParameterInvalid, match="id_list"):
        meaning(body)
