"""The Manager's limits on what listeners may cost, for ``elkeid limits``."""

from elkeid.limits import Limit
from elkeid.manager import live

LISTENERS = "elkeid_manager_live_listeners"
MISSED = "elkeid_manager_live_missed_total"
ANSWERS = "elkeid_manager_answers"


def limits() -> list[Limit]:
    """All of them."""
    rows = [
        (
            "live.LISTENERS",
            live.LISTENERS,
            "listeners of the live feed",
            "with full queues and buffers they take some 70 MB",
            "503; close code 4503",
            LISTENERS,
            "test_limits",
        ),
        (
            "live.USER_LISTENERS",
            live.USER_LISTENERS,
            "of these of one user",
            "more are forgotten windows, or somebody keeps others out",
            "503; close code 4503",
            LISTENERS,
            "test_one_user",
        ),
        (
            "live.STRANGERS",
            live.STRANGERS,
            "connections whose token has not come",
            "they need none to be there",
            "503",
            ANSWERS,
            "test_strangers",
        ),
        (
            "live.QUEUE_EVENTS",
            live.QUEUE_EVENTS,
            "events kept for a slow listener",
            "what a fleet of 10,000 says in some seconds",
            "the oldest are dropped, their number is told",
            MISSED,
            "test_slow",
        ),
        (
            "live.QUEUE_BYTES",
            live.QUEUE_BYTES,
            "bytes of these",
            "events have some 150 bytes",
            "the oldest are dropped, their number is told",
            MISSED,
            "test_bounds",
        ),
        (
            "live.TOKEN_SECONDS",
            live.TOKEN_SECONDS,
            "seconds for the message with the token",
            "a connection without one is of no use",
            "close code 4401",
            LISTENERS,
            "test_no_token_in_time",
        ),
        (
            "live.MESSAGE_BYTES",
            live.MESSAGE_BYTES,
            "bytes of what a listener may send",
            "its token, once",
            "close code 1009",
            LISTENERS,
            "test_listeners_may_not_talk",
        ),
    ]
    return [
        Limit(name, value, unit, reason, answer, metric, f"manager/test_live.py::{test}")
        for name, value, unit, reason, answer, metric, test in rows
    ]
