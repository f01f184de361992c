"""The limits that all HTTP faces share, for ``elkeid limits``."""

from elkeid.limits import Limit
from elkeid.web.bodies import SMALL_BODY
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
            "test_site.py::test_connection_limit",
        ),
        (
            "FaceLimits.bodies_bytes",
            face.bodies_bytes,
            "bytes of all bodies in memory, as far as they have arrived",
            "eight of the largest side by side; an eighth is kept for those up to 64 KiB",
            "503",
            "test_site.py::test_all_bodies_together",
        ),
        (
            "FaceLimits.bodies_share",
            face.bodies_share,
            "bytes of bodies in memory from one address, or network /64 of IPv6",
            "four that send all they may keep nobody else out of small calls",
            "503",
            "test_bodies.py::test_one_address_cannot_take_all",
        ),
        (
            "FaceLimits.spool_bytes",
            face.spool_bytes,
            "bytes of all bodies on disk, as far as they have arrived",
            "three of the largest uploads side by side",
            "503",
            "test_files.py::test_limits",
        ),
        (
            "FaceLimits.spool_share",
            face.spool_share,
            "bytes of bodies on disk from one address, or network /64 of IPv6",
            "the largest upload, and others beside it",
            "503",
            "test_bodies.py::test_shares",
        ),
        (
            "bodies.SMALL_BODY",
            SMALL_BODY,
            "bytes of a body that may use the last eighth of all room",
            "logins and most calls have fewer, and get in while large ones fill the rest",
            "503",
            "test_bodies.py::test_many_addresses",
        ),
        (
            "FaceLimits.idle_seconds",
            face.idle_seconds,
            "seconds without a byte",
            "agents keep connections open for nothing",
            "closed",
            "test_site.py::test_idle",
        ),
        (
            "FaceLimits.request_seconds",
            face.request_seconds,
            "seconds for a request to arrive whole",
            "a slow sender holds memory",
            "closed",
            "test_site.py::test_slow_sender",
        ),
        (
            "FaceLimits.drain_bytes",
            face.drain_bytes,
            "bytes read after a refusal",
            "so that the peer sees the answer instead of a reset",
            "closed",
            "test_site.py::test_refused_sender_finishes",
        ),
        (
            "FaceLimits.drain_seconds",
            face.drain_seconds,
            "seconds of reading after a refusal",
            "so that the peer sees the answer instead of a reset",
            "closed",
            "test_site.py::test_refused_sender_stalls",
        ),
    ]
    return [
        Limit(name, value, unit, reason, answer, ANSWERS, f"web/{test}")
        for name, value, unit, reason, answer, test in rows
    ]
