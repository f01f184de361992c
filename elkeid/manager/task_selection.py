"""Whom a task is for: tag, ids and filter of v1, ids or conditions of v6, as one test on agents.

What selects nobody in particular selects nobody at all: a whole fleet is meant only by
``"all": true``.

Source: docs/tasks.md, "Whom a task is for".
"""

import re
from typing import Annotated, Any

import msgspec

from elkeid.manager.filter import (
    EVERYTHING,
    FilterBody,
    IsIn,
    Matches,
    Path,
    Some,
    Test,
    parse,
)

IDS_LIMIT = 200_000
"""Agents named one by one; a larger part of a fleet has a tag or a filter in common."""

AgentId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Selection(msgspec.Struct, omit_defaults=True):
    """What an operator asked for, as it is stored: the union of its parts."""

    tag: str = ""
    id_list: Annotated[list[AgentId], msgspec.Meta(max_length=IDS_LIMIT)] = msgspec.field(
        default_factory=list
    )
    filter: FilterBody | None = None
    all: bool = False


def test_of(selection: Selection) -> Test | None:
    """The test that selected agents satisfy; None selects nobody.

    Raises:
        FilterError: the filter cannot be used.
    """
    wanted = parse(selection.filter)
    if selection.all:
        return EVERYTHING
    ways: list[Test] = []
    if selection.tag:
        ways.append(IsIn(Path(("tags",)), (selection.tag,)))
    if selection.id_list:
        ways.append(IsIn(Path(("agent_id",)), tuple(dict.fromkeys(selection.id_list))))
    if wanted != EVERYTHING:
        ways.append(wanted)
    if not ways:
        return None
    return ways[0] if len(ways) == 1 else Some(tuple(ways))


def starts_with(key: str, text: str) -> Matches:
    """A test that a field begins with this text."""
    return Matches(Path((key,)), "^" + re.escape(text))


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
    }
