"""How well a host is protected, judged by what it sends."""

from typing import Any

import pytest

from elkeid.manager.protection import judge, kernel_event_at

from .stores import report

NOW = 1_700_000_000
QUIET, SILENT = 900, 600


def plugin(name: str, age: int = 10, **more: Any) -> dict[str, Any]:
    """A plugin that beat some seconds ago."""
    return {"name": name, "last_heartbeat_time": NOW - age, **more}


def counted(**ages: int) -> dict[str, Any]:
    """What a gateway counted: ``t59=5`` is a record of type 59 five seconds ago."""
    return {kind[1:]: {"count": 3, "last_seen": NOW - age} for kind, age in ages.items()}


DRIVER, SCANNER = plugin("driver"), plugin("scanner")


@pytest.mark.parametrize(
    ("data_types", "plugins", "expected"),
    [
        (counted(t59=5, t1000=1), [DRIVER], ("full", "kernel_events", True)),
        (counted(t700=900, t59=5000), [DRIVER], ("full", "kernel_events", True)),
        (counted(t59=5), [], ("full", "kernel_events", True)),
        (counted(t59=901), [DRIVER], ("no_kernel_events", "driver_silent", True)),
        (counted(t1000=1), [DRIVER], ("no_kernel_events", "driver_silent", False)),
        (counted(t5050=1), [SCANNER], ("no_kernel_events", "driver_missing", False)),
        (counted(t59=5000), [SCANNER], ("no_kernel_events", "driver_missing", True)),
        (
            counted(t59=5),
            [plugin("driver", status="exited"), SCANNER],
            ("no_kernel_events", "driver_exited", True),
        ),
        (
            counted(t59=5),
            [plugin("driver", 601), SCANNER],
            ("no_kernel_events", "driver_exited", True),
        ),
        (counted(t59=5), [plugin("driver", 601)], ("heartbeat_only", "no_plugins", True)),
        (counted(t1000=1, t1001=1), [], ("heartbeat_only", "no_plugins", False)),
        (counted(t59=5000), [], ("heartbeat_only", "no_plugins", True)),
        # A gateway of upstream counts nothing: its list of plugins has to do.
        (None, [DRIVER], ("full", "driver_runs", True)),
        (None, [SCANNER], ("no_kernel_events", "driver_missing", False)),
        (None, [], ("heartbeat_only", "no_plugins", False)),
    ],
)
def test_judgement(
    data_types: dict[str, Any] | None,
    plugins: list[dict[str, Any]],
    expected: tuple[str, str, bool],
) -> None:
    """Kernel events are the proof; what was never seen is not certain."""
    fields = {} if data_types is None else {"data_types": data_types}
    told = judge(report("a1", NOW, plugins=plugins, **fields), 0, QUIET, SILENT)
    assert (told.state, told.reason, told.certain) == expected


def test_clocks_that_differ() -> None:
    """Ages are those of the gateway's clock."""
    ahead = {"59": {"count": 1, "last_seen": NOW + 1000}}
    told = judge(report("a1", NOW, data_types=ahead), 2000, QUIET, SILENT)
    assert told.state == "heartbeat_only"
    assert judge(report("a1", NOW, data_types=ahead), 1000, QUIET, SILENT).state == "full"


@pytest.mark.parametrize(
    "data_types",
    [
        {},
        {"1000": {"last_seen": NOW}, "-1": {"last_seen": NOW}, "0": {"last_seen": NOW}},
        {"59": 5, "60": {}, "61": {"last_seen": "now"}, "x": {"last_seen": NOW}},
    ],
)
def test_no_kernel_events(data_types: dict[str, Any]) -> None:
    """Other types, and what is no time, prove nothing."""
    assert kernel_event_at(data_types) is None
