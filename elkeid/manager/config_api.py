"""``/api/v1/agent/...DefaultConfig``: what every host shall run, as operators store it."""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from elkeid.manager.drops import DropGuard
from elkeid.manager.roles import AGENT_READERS, AGENT_WRITERS
from elkeid.manager.store.configs import StoredConfig, find_config, store_config
from elkeid.manager.store.store import Store
from elkeid.web.answers import Enveloped
from elkeid.web.refusals import ParameterInvalid
from elkeid.web.routes import AuthKind, Call, Routes

CONFIG_ITEMS = 256
"""Entries of one config; a stock set-up has seven."""

CONFIG_BYTES = 3 << 20
"""Of a whole config as JSON; agents take no Command above 4 MiB."""

_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class ConfigItem(msgspec.Struct, omit_defaults=False):
    """One plugin, or the agent itself."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_-]{1,64}\Z")]
    type: _Text = ""
    version: _Text = ""
    sha256: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    signature: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    download_url: Annotated[list[_Text], msgspec.Meta(max_length=16)] | None = None
    detail: Annotated[str, msgspec.Meta(max_length=1 << 20)] = ""

    def stored(self) -> dict[str, Any]:
        """As gateways get it; ``detail`` only where there is one."""
        item: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "download_url": self.download_url or [],
            "signature": self.signature,
            "type": self.type,
        }
        return item | ({"detail": self.detail} if self.detail else {})


class DefaultConfig(msgspec.Struct):
    """A new default config; what is not ours of upstream's keys is ignored."""

    type: str
    config: Annotated[list[ConfigItem], msgspec.Meta(max_length=CONFIG_ITEMS)]
    allow_empty: bool = False
    confirm_drops: bool = False


class DefaultConfigEcho(msgspec.Struct):
    """What was stored."""

    type: str
    version: int
    config: list[dict[str, Any]]
    create_time: int
    update_time: int


class BesideConfig(msgspec.Struct):
    """Beside ``data``: whether a config is stored, and how many hosts it is held back from."""

    stored: bool
    held_hosts: int


class ConfigRoutes:
    """The default config.

    Args:
        store: open.
        drops: told when an operator confirms.
        wall: seconds since the epoch.
        announce: tells gateways that what hosts shall run has changed.
    """

    routes = Routes("/api/v1/agent", auth=AuthKind.TOKEN)

    def __init__(
        self,
        store: Store,
        drops: DropGuard,
        wall: Callable[[], float],
        announce: Callable[[], None],
    ) -> None:
        self._store, self._drops, self._wall = store, drops, wall
        self._announce = announce

    @routes.get(
        "/getDefaultConfig",
        levels=AGENT_READERS,
        answer=list[dict[str, Any]],
        beside=BesideConfig,
        summary="Show what every host shall run",
    )
    async def show(self, call: Call) -> object:
        """An empty list where none is stored, too; ``stored`` beside it tells."""
        config = await self._store.read(find_config)
        beside = {"stored": config is not None, "held_hosts": self._drops.held}
        return Enveloped([] if config is None else config.items, beside)

    @routes.post(
        "/updateDefaultConfig",
        body=DefaultConfig,
        limit=CONFIG_BYTES,
        levels=AGENT_WRITERS,
        answer=DefaultConfigEcho,
        summary="Store what every host shall run",
    )
    async def store(self, call: Call[None, DefaultConfig]) -> object:
        """Connected hosts get it at once, others when they connect next."""
        asked = call.body
        names = [item.name for item in asked.config]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ParameterInvalid(f"config: {twice} is there twice")
        if not asked.config and not asked.allow_empty:
            raise ParameterInvalid(
                "config: an empty list unloads every plugin of every host; "
                'send "allow_empty": true if that is meant'
            )
        stored: StoredConfig = await self._store.write(
            store_config,
            [item.stored() for item in asked.config],
            drops_confirmed=asked.confirm_drops,
            now=int(self._wall()),
        )
        if asked.confirm_drops:
            self._drops.confirmed()
        self._announce()
        return DefaultConfigEcho(
            "agent_config", 0, stored.items, stored.created_at, stored.updated_at
        )
