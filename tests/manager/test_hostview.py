"""Hosts as consoles show them, whatever their documents hold."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.manager.documents import canonical, text_of
from elkeid.manager.hostview import export_rows, item_of, items_of

_KEYS = (
    *("agent_id", "hostname", "extranet_ipv4", "intranet_ipv6", "idc", "platform", "tags"),
    *("agent_state", "state_detail", "cpu", "rss", "first_heartbeat_time", "last_heartbeat_time"),
    "of no list",
)
_SCALARS = st.sampled_from(
    (
        None,
        True,
        0,
        -3,
        (1 << 63) - 1,
        1.5,
        -0.0,
        1e300,
        "",
        "x",
        "offline",
        "uninstalled",
        "\u00e9",
    )
)
_VALUES = _SCALARS | st.lists(_SCALARS, max_size=2) | st.just({"x": 1})


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=5))
def test_a_page_shows_each_document_as_it_is_shown_alone(document: dict[str, Any]) -> None:
    """What is decoded for a list only is shown as of the whole document, of whatever types."""
    raw = [msgspec.Raw(text_of(canonical(document)).encode())] * 2
    items = [item_of(msgspec.json.decode(each)) for each in raw]
    assert bytes(items_of(raw)) == msgspec.json.encode(items)
    assert [row[0] for row in export_rows(raw)] == [each.agent_id for each in items]


def test_usual_and_unusual_values() -> None:
    """Whole numbers stay whole, what has another type is empty, and states are those of v6."""
    usual = b'{"agent_id":"a","cpu":1,"rss":2.5,"agent_state":"uninstalled","tags":["x"]}'
    odd = b'{"agent_id":"b","cpu":true,"rss":"2","agent_state":7,"tags":["x",1],"hostname":null}'
    first, second = msgspec.json.decode(items_of([msgspec.Raw(usual), msgspec.Raw(odd)]))
    assert (first["cpu"], first["memory"], first["status"]) == (1, 2, "uninstall")
    assert (first["tags"], first["hostname"], first["risk"]["vuln"]) == (["x"], "", 0)
    assert (second["cpu"], second["memory"], second["status"]) == (0, 0, "")
    assert (second["tags"], second["hostname"]) == (["x"], "")
