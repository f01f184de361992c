"""What the log says of refused results."""

from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger, formatEvent

from elkeid.manager.refusals import LINE_SECONDS, RefusedResults


def test_one_line_a_minute() -> None:
    """The first is told at once; what comes within a minute is summed up in the next line."""
    clock = Clock()
    events: list[LogEvent] = []
    refused = RefusedResults(Logger(observer=events.append), clock.seconds)
    refused.count("10.0.0.1", {"unknown_token": 2})
    for _ in range(30):
        clock.advance(1)
        refused.count("10.0.0.1", {"unknown_token": 1})
    clock.advance(29)
    refused.count("10.0.0.1", {"surplus": 7})
    assert len(events) == 1
    clock.advance(1)
    refused.count("10.0.0.2", {"malformed": 1, "unknown_token": 10})
    clock.advance(10 * LINE_SECONDS)
    refused.count("10.0.0.3", {"without_token": 1})
    assert [formatEvent(event) for event in events] == [
        "2 results were refused (unknown_token: 2); the last came from 10.0.0.1",
        "48 results were refused (malformed: 1, surplus: 7, unknown_token: 40); "
        "the last came from 10.0.0.2",
        "1 results were refused (without_token: 1); the last came from 10.0.0.3",
    ]
    assert {event["log_level"].name for event in events} == {"warn"}
