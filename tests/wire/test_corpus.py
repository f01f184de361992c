"""What the upstream gateway made of agents' batches, recorded; we make the same of them."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from elkeid.wire import mqdata
from elkeid.wire.datatypes import CLASS_OF, RecordClass
from elkeid.wire.rawdata import split

CASES: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent.parent / "data/rawdata_to_mqdata.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_a_batch_becomes_the_values_upstream_makes(case: dict[str, Any]) -> None:
    """Byte by byte and in order, with only the time of receipt taken from the recording.

    Upstream drops task results and error logs whose body it cannot parse, and we keep them; no
    recorded case holds one, so nothing is left out here on either side.
    """
    values = [b64decode(message["value"]) for message in case["messages"]]
    theirs: dict[RecordClass, list[bytes]] = {}
    for value in values:
        cls = CLASS_OF.get(mqdata.decode(value).data_type, RecordClass.TELEMETRY)
        theirs.setdefault(cls, []).append(value)

    packet = split(b64decode(case["raw_data"]))
    time = mqdata.decode(values[0]).svr_time if values else 0
    suffix = mqdata.encode_suffix(packet.header, time, b"")
    ours = {
        cls: [record + suffix for record in mqdata.records(region)]
        for cls, _, region in packet.runs
    }

    assert ours == theirs
    assert packet.count == len(values)
    assert packet.header.agent_id.decode() == case["agent_id"]
