"""Commands to agents."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.errors import WireError
from elkeid.wire.command import Command, ConfigItem, Task, decode_command, encode_command
from tests.wire.messages import VALID, damaged, put

TASK = Task(data_type=5100, name="collector", data="{}", token="tok1")
DRIVER = ConfigItem(
    name="driver",
    type="tar.gz",
    version="1.0.0.1",
    sha256="ab",
    signature="cd",
    download_url=("http://u/1", "http://u/2"),
)


def test_the_golden_commands() -> None:
    """A task and a config have the bytes that upstream's gateway sends."""
    assert encode_command(TASK).hex() == ("121808ec271209636f6c6c6563746f721a027b7d2204746f6b31")
    assert encode_command(config=[DRIVER]).hex() == (
        "1a390a0664726976657212067461722e677a1a07312e302e302e31220261622a02636432"
        "0a687474703a2f2f752f31320a687474703a2f2f752f32"
    )


def test_an_empty_task_is_there_and_an_empty_command_is_nothing() -> None:
    """Agents tell a task of zero values from no task, which they take as a full config."""
    assert encode_command(Task()).hex() == "1200"
    assert encode_command() == b""
    assert decode_command(b"\x12\x00") == Command(task=Task())
    assert decode_command(b"") == Command()


def test_agents_skip_what_they_do_not_know() -> None:
    """Field 1, the control number that only upstream's gateway knows, is skipped."""
    assert decode_command(put(1, 7) + encode_command(TASK) + put(9, b"x")) == Command(TASK)


@pytest.mark.parametrize(
    "data", [put(2, 5), put(3, 5), put(2, put(1, b"x")), put(3, put(1, 5)), b"\x12\x05a", b"\x0c"]
)
def test_a_malformed_command_is_refused(data: bytes) -> None:
    """A simulated agent tells a broken Command from an empty one."""
    with pytest.raises(WireError):
        decode_command(data)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
TASKS = st.builds(Task, st.integers(-(2**31), 2**31 - 1), TEXTS, TEXTS, TEXTS)
CONFIGS = st.lists(
    st.builds(
        ConfigItem,
        TEXTS,
        TEXTS,
        TEXTS,
        TEXTS,
        TEXTS,
        st.lists(TEXTS, max_size=3).map(tuple),
        TEXTS,
    ),
    max_size=3,
).map(tuple)


@settings(max_examples=100, deadline=None)
@given(st.none() | TASKS, CONFIGS)
def test_commands_survive_the_round_trip(task: Task | None, config: tuple[ConfigItem, ...]) -> None:
    """What the gateway encodes, an agent reads."""
    assert decode_command(encode_command(task, config)) == Command(task, config)


@settings(max_examples=300, deadline=None)
@given(damaged(st.builds(encode_command, TASKS, CONFIGS)) | damaged(VALID))
def test_a_damaged_command_raises_nothing_else(data: bytes) -> None:
    """Only `WireError` escapes."""
    with contextlib.suppress(WireError):
        decode_command(data)
