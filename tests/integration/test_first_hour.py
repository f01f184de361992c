"""The README's first hour of an operator, word for word, and what clients of the product call."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.servers import BIN, free_ports, running, settings_text, twistd
from tests.integration.test_first_light import Manager, connected, fleet

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not shutil.which("curl"), reason="curl is missing: apt-get install curl"),
]

README = Path(__file__).parents[2] / "README.md"


def commands(title: str) -> str:
    """All that a section of the README has one type."""
    section = README.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))


def shell(script: str, folder: Path) -> list[Any]:
    """Run it; every line that is JSON, decoded, and the others."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return [json.loads(line) if line[:1] == "{" else line for line in done.stdout.splitlines()]


def test_first_hour(tmp_path: Path) -> None:
    """Each command works as it stands and shows what the text says."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    url = f"http://127.0.0.1:{ports[3]}"
    with (
        running(twistd(), tmp_path) as server,
        fleet(tmp_path, "--agents", "20", "--spread", "0.1", "--rate", "20"),
    ):
        password = (tmp_path / "keys" / "admin-password").read_text().strip()
        manager, deadline = Manager(ports[3], password), time.monotonic() + 60
        while time.monotonic() < deadline:
            shown = manager.agents()
            if connected(manager) == 20 and all(each["protection"] == "full" for each in shown):
                break
            time.sleep(0.5)
        script = commands("An operator's first hour")
        script = script.replace("http://127.0.0.1:6701", url).replace(".venv/bin/", f"{BIN}/")
        said = shell(script, tmp_path)
        answers = [each for each in said if isinstance(each, dict)]
        assert {answer["code"] for answer in answers} == {0}
        hosts, statistics, unprotected, history, tagged = answers[:5]
        found = hosts["page_info"]["total"]
        assert found > 0
        assert all(each["hostname"].startswith("db-") for each in hosts["data"])
        assert statistics["data"]["total"] == 20
        assert statistics["data"]["protection"]["full"] == 20
        assert unprotected["data"]["total"] == 0
        assert '"protection":"full"' in said
        assert "connected" in [event["kind"] for event in history["data"]["items"]]
        assert tagged["data"] is None
        _, half, _, subtasks, audit = answers[5:]
        assert half["data"]["id_count"] == found
        assert half["data"]["sub_task_succeed"] == found // 2
        assert {each["status"] for each in subtasks["data"]} <= {"succeed", "result_succeed"}
        assert any(entry["path"].endswith("/AddTags") for entry in audit["data"])

        # The two calls that the product documents, as they stand there.
        login = f"""curl --location --request POST '{url}/api/v1/user/login' -s --data-raw '{{
            "username": "hids_test", "password": "look at hosts, touch none"}}'"""
        (answer,) = shell(f"{login}; echo", tmp_path)
        assert (answer["code"], answer["msg"]) == (0, "success")
        token = answer["data"]["token"]
        status = (
            f"curl --location --request GET '{url}/api/v1/agent/getStatus' -s -H 'token:{token}'"
        )
        (answer,) = shell(f"{status}; echo", tmp_path)
        assert answer["data"]["total"] == 20
        refused = f"curl -s -X POST {url}/api/v6/asset-center/AddTags -H 'token:{token}' -d '{{}}'"
        (answer,) = shell(f"{refused}; echo", tmp_path)
        assert answer["code"] == 1
    assert not any("were refused" in line for line in server.lines)  # no result but of this task
