"""``POST /config/refresh``: a Manager says that configs changed.

Source: docs/protocol.md, "Configs".
"""

from collections.abc import Callable, Iterable

import msgspec

from elkeid.web.routes import AuthKind, Call, Routes


class RefreshBody(msgspec.Struct):
    """Body of ``POST /config/refresh``; null, which must be said, means every agent."""

    agent_ids: list[str] | None


class RefreshRoutes:
    """Takes the word of Managers.

    Args:
        refresh: asks the Manager again for these agents or all; returns how many are here.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(self, refresh: Callable[[Iterable[str] | None], int]) -> None:
        self._refresh = refresh

    @routes.post(
        "/config/refresh",
        body=RefreshBody,
        answer=dict[str, int],
        summary="Ask the Manager again what some or all connected agents shall run",
    )
    async def refresh(self, call: Call[None, RefreshBody]) -> object:
        """``count`` of them are connected; their configs follow as the Manager answers."""
        return {"count": self._refresh(call.body.agent_ids)}
