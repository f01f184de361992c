"""Lines that peers bring about do not fill a log."""

from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger, formatEvent

from elkeid.log_limit import LINES_BURST, LINES_RATE, LimitedLog


def test_a_flood_is_cut_and_told() -> None:
    """So many lines at once, then one each two seconds that tells how many were left out."""
    events: list[LogEvent] = []
    clock = Clock()
    log = LimitedLog(Logger(observer=events.append), clock.seconds)
    for number in range(LINES_BURST + 7):
        log.info("line {number}", number=number)
    assert [formatEvent(event) for event in events[-1:]] == [f"line {LINES_BURST - 1}"]
    assert (len(events), log.left_out) == (LINES_BURST, 7)
    clock.advance(1 / LINES_RATE)
    log.warn("late")
    log.warn("too late")
    said = [(event["log_level"].name, formatEvent(event)) for event in events[LINES_BURST:]]
    assert said == [("warn", "7 lines like the next were left out"), ("warn", "late")]
    assert log.left_out == 8
    clock.advance(3600)
    for _ in range(LINES_BURST + 1):
        log.info("again")
    assert len(events) == 2 * LINES_BURST + 3
