"""The limits that all HTTP faces share, for ``elkeid limits``."""

from elkeid.limits import Limit
from elkeid.web.site import FaceLimits

ANSWERS = "elkeid_manager_answers"


def limits() -> list[Limit]:
    """All of them."""
    face = FaceLimits()
    rows = [
        (
            "FaceLimits.connections",
            face.connections,
            "connections of a face",
            "agents keep theirs to ServiceDiscovery open; fewer where open files are short",
            "the oldest that asked for nothing yet is closed, else the new one",
            "test_connection_limit",
        ),
        (
            "FaceLimits.bodies_bytes",
            face.bodies_bytes,
            "bytes of all bodies in memory",
            "a Manager's largest uploads side by side",
            "503",
            "test_all_bodies_together",
        ),
        (
            "FaceLimits.idle_seconds",
            face.idle_seconds,
            "seconds without a byte",
            "agents keep connections open for nothing",
            "closed",
            "test_idle",
        ),
        (
            "FaceLimits.request_seconds",
            face.request_seconds,
            "seconds for a request to arrive whole",
            "a slow sender holds memory",
            "closed",
            "test_slow_sender",
        ),
        (
            "FaceLimits.drain_bytes",
            face.drain_bytes,
            "bytes read after a refusal",
            "so that the peer sees the answer instead of a reset",
            "closed",
            "test_refused_sender_finishes",
        ),
        (
            "FaceLimits.drain_seconds",
            face.drain_seconds,
            "seconds of reading after a refusal",
            "so that the peer sees the answer instead of a reset",
            "closed",
            "test_refused_sender_stalls",
        ),
    ]
    return [
        Limit(name, value, unit, reason, answer, ANSWERS, f"web/test_site.py::{test}")
        for name, value, unit, reason, answer, test in rows
    ]
