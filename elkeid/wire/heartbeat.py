"""What is fixed about the fields of heartbeats.

Source: docs/protocol.md, "Heartbeats".
"""

from typing import Final

TEXT_FIELDS: Final = frozenset(
    {
        "arch",
        "cpu_name",
        "dns",
        "gateway",
        "host_id",
        "host_model",
        "host_serial",
        "host_vendor",
        "idc",
        "kernel_version",
        "net_mode",
        "platform",
        "platform_family",
        "platform_version",
        "product",
        "region",
        "state",
        "state_detail",
        "version",
    }
)
"""Of an agent's heartbeat: text for every reader, even when it looks like a number."""

PLUGIN_TEXT_FIELDS: Final = frozenset({"name", "pversion"})
"""The same of a plugin's heartbeat."""
