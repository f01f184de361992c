"""The event log's limits, for ``elkeid limits``."""

from elkeid.config import EventLogSettings
from elkeid.eventlog import log, room
from elkeid.limits import Limit


def limits(settings: EventLogSettings) -> list[Limit]:
    """Those with a number; the others follow from the volume's size."""
    deleted = "the oldest segment is deleted"
    rows = [
        (
            "eventlog.control_cap_bytes",
            settings.control_cap_bytes,
            "bytes of control records",
            "weeks of heartbeats and results",
            deleted,
            "elkeid_log_cap_bytes",
            "test_log.py::test_cap_deletes_the_oldest",
        ),
        (
            "eventlog.logs_cap_bytes",
            settings.logs_cap_bytes,
            "bytes of agents' logs",
            "agents in an error loop must not fill the volume",
            deleted,
            "elkeid_log_cap_bytes",
            "test_log.py::test_small_cap_keeps_several_segments",
        ),
        (
            "log.MAX_TELEMETRY_CAP_BYTES",
            log.MAX_TELEMETRY_CAP_BYTES,
            "bytes of telemetry, unless telemetry_cap_bytes is set",
            "half the free space, and no more than this",
            deleted,
            "elkeid_log_cap_bytes",
            "test_log.py::test_default_limits_follow_the_volume",
        ),
        (
            "eventlog.retention",
            settings.retention,
            "seconds that records are kept",
            "a week",
            "deleted, unless a named reader still needs them",
            "elkeid_log_bytes",
            "test_log.py::test_retention_by_age",
        ),
        (
            "log.RESERVE_BYTES",
            log.RESERVE_BYTES,
            "bytes of a full disk kept for control records",
            "task results are not dropped with telemetry",
            "records are dropped, telemetry first",
            "elkeid_log_dropped_total",
            "test_failures.py::test_control_has_a_reserve",
        ),
        (
            "room.ROOM_SECONDS",
            room.ROOM_SECONDS,
            "seconds that a disk without segments to delete is to last at least",
            "light agents are to find room as long as any comes",
            "records of the agents that send most are dropped",
            "elkeid_log_share_bytes",
            "test_room.py::test_rate_falls_with_the_room",
        ),
        (
            "log.MAX_BUFFER_BYTES",
            log.MAX_BUFFER_BYTES,
            "bytes that wait for the end of a turn",
            "more no longer fits the processor's cache when it is written",
            "written at once",
            "elkeid_log_appended_total",
            "test_log.py::test_much_in_one_turn_is_written_early",
        ),
    ]
    return [
        Limit(name, value, unit, reason, answer, metric, f"eventlog/{test}")
        for name, value, unit, reason, answer, metric, test in rows
    ]
