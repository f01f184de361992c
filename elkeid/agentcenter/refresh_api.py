"""``POST /config/refresh`` and ``/tags/refresh``: a Manager says that configs or tags changed.

Source: docs/protocol.md, "Configs" and "Tags".
"""

from collections.abc import Callable, Iterable

import msgspec

from elkeid.web.routes import AuthKind, Call, Routes


class RefreshBody(msgspec.Struct):
    """Whom it concerns; null, which must be said, means every agent."""

    agent_ids: list[str] | None


Refresh = Callable[[Iterable[str] | None], int]


class RefreshRoutes:
    """Takes the word of Managers.

    Args:
        configs: asks the Manager again for the configs of these agents or all; returns how many
            are here.
        tags: the same for their tags.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self, configs: Refresh, tags: Refresh) -> None:
        self._configs, self._tags = configs, tags

    @routes.post(
        "/config/refresh",
        body=RefreshBody,
        answer=dict[str, int],
        summary="Ask the Manager again what some or all connected agents shall run",
    )
    async def refresh(self, call: Call[None, RefreshBody]) -> object:
        """``count`` of them are connected; their configs follow as the Manager answers."""
        return {"count": self._configs(call.body.agent_ids)}

    @routes.post(
        "/tags/refresh",
        body=RefreshBody,
        answer=dict[str, int],
        summary="Ask the Manager again for the tags of some or all connected agents",
    )
    async def refresh_tags(self, call: Call[None, RefreshBody]) -> object:
        """``count`` of them are connected; records carry their tags as the Manager answers."""
        return {"count": self._tags(call.body.agent_ids)}
