"""Text of peers in terminals and logs."""

import json
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import Logger, LogLevel

from elkeid.logging import as_json, as_text
from elkeid.shown import shown, shown_json


@settings(deadline=None)
@given(st.text())
def test_nothing_is_obeyed(text: str) -> None:
    """No control character is left but tab and line feed; JSON keeps its value."""
    safe = shown(text)
    assert not [c for c in safe if unicodedata.category(c) == "Cc" and c not in "\t\n"]
    assert not [c for c in safe if unicodedata.bidirectional(c) in {"RLO", "LRO", "RLE", "LRE"}]
    line = json.dumps({"name": text}, ensure_ascii=False).encode("utf-8", "replace")
    assert json.loads(shown_json(line)) == json.loads(line)


def test_names_stay_readable() -> None:
    """Letters of every script stay as they are."""
    assert shown("größe 東京 \tא\n") == "größe 東京 \tא\n"
    assert shown("a\x1b[2Jb\x9b\u202ec") == r"a\u001b[2Jb\u009b\u202ec"


def test_lines_of_the_log() -> None:
    """Neither form of the log passes on what a peer chose for its name."""
    event = {
        "log_level": LogLevel.info,
        "log_namespace": "elkeid.part",
        "log_logger": Logger("elkeid.part"),
        "log_time": 1.0,
        "log_format": "{name} came",
        "name": "x\x1b[31m\r\x85\u202ey",
    }
    for line in (as_json(event), as_text(event)):
        assert line is not None
        assert not set("\x1b\r\x85\u202e") & set(line)
        assert "u202e" in line
    assert json.loads(as_json(event))["message"].startswith("x\x1b[31m")
