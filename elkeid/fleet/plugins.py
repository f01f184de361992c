"""The plugins of one simulated agent, and what Commands do to them.

Source: docs/protocol.md, "What agents do".
"""

from collections.abc import Mapping

from attrs import define, field

from elkeid.wire.command import Command

AGENT_NAME = "elkeid-agent"  # in a config it stands for the agent itself, which is no plugin


@define
class Plugin:
    """A loaded plugin."""

    version: str
    since: float  # when it was loaded, unix seconds


@define
class Plugins:
    """What is loaded, and a count of what came of Commands.

    Attributes:
        loaded: by name.
        tasks: Commands that carried a task.
        syncs: Commands that carried none, each a full statement of what shall be loaded.
        wiped: syncs that unloaded every plugin there was.
    """

    loaded: dict[str, Plugin] = field(factory=dict)
    tasks: int = 0
    syncs: int = 0
    wiped: int = 0

    def load(self, versions: Mapping[str, str], now: float) -> None:
        """Have exactly these loaded: name -> version; one that is already there stays."""
        old = self.loaded
        self.loaded = {}
        for name, version in versions.items():
            known = old.get(name)
            same = known is not None and known.version == version
            self.loaded[name] = known if known is not None and same else Plugin(version, now)

    def obey(self, command: Command, now: float) -> None:
        """Do what an agent does: with a task only the task, without one a full config sync."""
        if command.task is not None:
            self.tasks += 1
            return
        self.syncs += 1
        had_any = bool(self.loaded)
        self.load({c.name: c.version for c in command.config if c.name != AGENT_NAME}, now)
        if had_any and not self.loaded:
            self.wiped += 1
