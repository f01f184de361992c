"""What a config task makes of the list of what a host shall run.

Source: docs/tasks.md, "Config tasks".
"""

from collections.abc import Mapping, Sequence
from typing import Any

_CONTENT = ("type", "signature", "version", "sha256", "download_url", "detail")


def merged_config(
    base: Sequence[Mapping[str, Any]], changes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Apply changes by name; neither argument is touched.

    An item with nothing but a name takes that entry away. Of another each field that is not
    empty overwrites; one whose name is not there yet is appended.

    Args:
        base: what the host shall run so far.
        changes: items of the task, in their order.
    """
    result = {str(item["name"]): dict(item) for item in base}
    for change in changes:
        name = str(change["name"])
        content = {key: change[key] for key in _CONTENT if change.get(key)}
        if not content:
            result.pop(name, None)
        else:
            result[name] = {**result.get(name, _blank(name)), **content}
    return list(result.values())


def _blank(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "version": "",
        "sha256": "",
        "download_url": [],
        "signature": "",
        "type": "",
    }
