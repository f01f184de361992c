"""Which hosts an operator means: a list of ids, or conditions that all have to hold.

A selection that says nothing selects nobody where something is changed: a form that was sent
empty must not reach the whole fleet. ``all`` says that everybody is meant.

Source: docs/protocol.md, "Manager API", "Hosts".
"""

import re
from typing import Annotated, Literal

import msgspec

from elkeid.manager.documents import AGENT_ID_CHARACTERS
from elkeid.manager.filter import (
    EVERYTHING,
    VALUE_LIMIT,
    Every,
    IsIn,
    Matches,
    Not,
    Path,
    Some,
    Test,
)
from elkeid.web.refusals import ParameterInvalid

ADDRESS_FIELDS = ("intranet_ipv4", "extranet_ipv4", "intranet_ipv6", "extranet_ipv6")

SELECTOR_BYTES = 2 << 20
"""Body with a selector: 10,000 ids of 128 characters, quoted."""

NOBODY = Some(())

NOT_RETIRED = Not(IsIn(Path(("agent_state",)), ("uninstalled",)))
"""Hosts that are gone for good are meant only by their ids, or by their state."""

AgentId = Annotated[str, msgspec.Meta(min_length=1, max_length=AGENT_ID_CHARACTERS)]
Prefix = Annotated[str, msgspec.Meta(max_length=200)]
"""Escaped it stays below what a pattern may have."""
Words = Annotated[list[Annotated[str, msgspec.Meta(max_length=256)]], msgspec.Meta(max_length=200)]
Status = Literal["running", "abnormal", "offline", "uninstall"]

_STATES: dict[Status, str] = {"uninstall": "uninstalled"}


class HostConditions(msgspec.Struct):
    """What selected hosts have in common; what is missing, null or empty asks for nothing."""

    hostname: Prefix | None = None
    ip: Prefix | None = None  # of any address
    agent_id: Prefix | None = None
    version: Prefix | None = None
    tags: Words | None = None  # any of them
    idc: Words | None = None
    platform: Words | None = None
    status: Annotated[list[Status], msgspec.Meta(max_length=4)] | None = None


class HostSelector(msgspec.Struct, kw_only=True):
    """Hosts by their ids, or else by conditions."""

    id_list: Annotated[list[AgentId], msgspec.Meta(max_length=VALUE_LIMIT)] | None = None
    conditions: HostConditions | None = None
    all: bool = False


def _prefix(field: str, value: str) -> Test:
    return Matches(Path((field,)), "^" + re.escape(value))


def conditions_test(conditions: HostConditions) -> Test:
    """The test that hosts meeting all conditions pass; `EVERYTHING` without any, for the caller
    to say what that means."""
    tests: list[Test] = []
    for field in ("hostname", "agent_id", "version"):
        value = getattr(conditions, field)
        if value:
            tests.append(_prefix(field, value))
    if conditions.ip:
        tests.append(Some(tuple(_prefix(field, conditions.ip) for field in ADDRESS_FIELDS)))
    for field in ("tags", "idc", "platform"):
        values = getattr(conditions, field)
        if values:
            tests.append(IsIn(Path((field,)), tuple(values)))
    if conditions.status:
        states = tuple(_STATES.get(each, each) for each in conditions.status)
        tests.append(IsIn(Path(("agent_state",)), states))
        if "uninstall" in conditions.status:
            return Every(tuple(tests))
    return Every((*tests, NOT_RETIRED)) if tests else EVERYTHING


def looked_at(conditions: HostConditions) -> Test:
    """The test that hosts pass which somebody wants to see: without conditions all but retired."""
    test = conditions_test(conditions)
    return NOT_RETIRED if test == EVERYTHING else test


def selected(selector: HostSelector, *, reading: bool = False) -> Test:
    """The test that selected hosts pass.

    Args:
        selector: as decoded.
        reading: whether hosts are only shown: empty conditions then ask for nothing.

    Raises:
        ParameterInvalid: neither ids nor conditions.
    """
    check_named(selector)
    if selector.id_list:
        return IsIn(Path(("agent_id",)), tuple(selector.id_list))
    whole = selector.all or (reading and selector.id_list is None)
    return conditions_or_all(selector.conditions, whole)


def check_named(selector: HostSelector) -> None:
    """Raise `ParameterInvalid` if a selector has neither ids nor conditions."""
    if selector.id_list is None and selector.conditions is None and not selector.all:
        raise ParameterInvalid("id_list: either this or conditions is required")


def conditions_or_all(conditions: HostConditions | None, whole: bool) -> Test:
    """The test that hosts meeting all conditions pass; without any, all or nobody.

    Args:
        conditions: as decoded.
        whole: whether no conditions mean all hosts that are not retired.
    """
    test = conditions_test(conditions or HostConditions())
    if test != EVERYTHING:
        return test
    return NOT_RETIRED if whole else NOBODY
