"""Whom a task is for: tag, ids and filter of v1, ids or conditions of v6.

What selects nobody in particular selects nobody at all: a whole fleet, without the hosts that are
retired, is meant only by ``"all": true``.

Source: docs/tasks.md, "Whom a task is for".
"""

from typing import Annotated, Any

import msgspec

from elkeid.manager.filter import (
    EVERYTHING,
    FilterBody,
    IsIn,
    Path,
    Some,
    Test,
    parse,
)
from elkeid.manager.selection import NOBODY, AgentId, HostConditions, conditions_or_all

IDS_LIMIT = 200_000
"""Agents named one by one; a larger part of a fleet has a tag or a filter in common."""


class Selection(msgspec.Struct, omit_defaults=True):
    """What an operator asked for, as it is stored: the union of its parts."""

    tag: str = ""
    id_list: Annotated[list[AgentId], msgspec.Meta(max_length=IDS_LIMIT)] = msgspec.field(
        default_factory=list
    )
    filter: FilterBody | None = None
    all: bool = False
    conditions: HostConditions | None = None


def others_of(selection: Selection) -> Test | None:
    """The test that selected hosts satisfy which are not named one by one; None for no others.

    Raises:
        FilterError: the filter cannot be used.
    """
    wanted = parse(selection.filter)
    ways: list[Test] = []
    if selection.tag:
        ways.append(IsIn(Path(("tags",)), (selection.tag,)))
    if wanted != EVERYTHING:
        ways.append(wanted)
    common = conditions_or_all(selection.conditions, selection.all)
    if common != NOBODY:
        ways.append(common)
    if not ways:
        return None
    return ways[0] if len(ways) == 1 else Some(tuple(ways))


def shown(selection: Selection, limit: int) -> dict[str, Any]:
    """``tag``, ``id_list`` and ``filter`` as task documents have them.

    Args:
        selection: as stored.
        limit: ids shown at most.
    """
    return {
        "tag": selection.tag,
        "id_list": selection.id_list[:limit],
        "filter": None if selection.filter is None else msgspec.to_builtins(selection.filter),
        "all": selection.all,
        "conditions": None
        if selection.conditions is None
        else msgspec.to_builtins(selection.conditions),
    }
