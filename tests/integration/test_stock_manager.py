"""Our gateway with a Manager that behaves as the stock one does: shapes, faults, outages."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from elkeid.eventlog.reader import LogReader
from elkeid.fleet.report import AgentReport, read_report
from elkeid.wire import mqdata
from tests.integration.servers import BIN, eventually, free_ports, running, settings_text, twistd
from tests.integration.signed import signed
from tests.integration.stock_manager import CONFIG, INFO, RESULTS

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parent.parent.parent
PLUGINS = {"driver": "1.0.0.16", "collector": "1.0.0.140"}
LIST = [
    {
        "name": name,
        "version": version,
        "sha256": "ab" * 32,
        "download_url": ["http://127.0.0.1/x"],
        "signature": "cd" * 32,
        "type": "tar.gz",
    }
    for name, version in PLUGINS.items()
]


class Stock:
    """A gateway, a registry, agents without plugins, and a stock Manager that can be away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ports = folder, free_ports(4)
        (folder / "elkeid.toml").write_text(settings_text(self.ports))
        (folder / "stock").mkdir()
        self._numbers = count()  # of tasks

    def know(self, **answers: Any) -> None:
        """What the Manager knows, and how it fails."""
        part = self.folder / "stock" / "part"
        part.write_text(json.dumps(answers))
        part.rename(self.folder / "stock" / "answers.json")

    def taken(self, path: str) -> list[Any]:
        """The bodies that came, in order."""
        file = self.folder / "stock" / "taken.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [each["body"] for line in lines if (each := json.loads(line))["path"] == path]

    def manager(self) -> Any:
        """The Manager runs."""
        argv = [sys.executable, "-m", "tests.integration.stock_manager"]
        return running(
            [*argv, str(self.ports[3]), str(self.folder / "stock")],
            self.folder,
            PYTHONPATH=str(ROOT),
        )

    @contextmanager
    def agents(self, count: int) -> Iterator[Callable[[], list[AgentReport]]]:
        """Agents run; calling the result ends them in order and gives their reports."""
        load = ["--agents", str(count), "--rate", "1", "--bare", "--spread", "1", "--seed", "7"]
        fleet = subprocess.Popen(
            [str(BIN / "elkeid"), "fleet", "run", *load, "--report", "sent.jsonl"],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def end() -> list[AgentReport]:
            fleet.send_signal(signal.SIGINT)
            assert fleet.wait(60) == 0
            return list(read_report(self.folder / "sent.jsonl"))

        try:
            yield end
        finally:
            fleet.kill()
            fleet.wait()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """``data`` of a success of the gateway's API."""
        status, answer = signed(self.folder / "keys", self.ports[1], method, path, body)
        assert (status, answer["code"]) == (200, 0), answer
        return answer["data"]

    def sent(self) -> int:
        """Agents that were sent a config."""
        stat = self.call("GET", "/conn/stat")
        states = [each["agent_info"].get("config", {}).get("state") for each in stat]
        return sum(state in {"sent", "applied"} for state in states)

    def tasks(
        self, ids: list[str], name: str = "collector", data_type: int = 5050, data: str = "{}"
    ) -> set[str]:
        """Send each agent a task as a stock Manager does; the tokens."""
        tokens = set()
        for agent_id, number in zip(ids, self._numbers, strict=False):
            token = f"c5mej0000000000{number:05}"
            task = {"name": name, "data": data, "token": token, "data_type": data_type}
            command = {"agent_id": agent_id, "command": {"task": task}}
            assert self.call("POST", "/command/", command) == ""
            tokens.add(token)
        return tokens

    def tokens_taken(self) -> set[str]:
        """Tokens of the results that the Manager took."""
        return {item["token"] for batch in self.taken(RESULTS) for item in batch}

    def tags_stored(self) -> set[str]:
        """The tags that stand in stored records."""
        with LogReader(self.folder / "data" / "eventlog") as log:
            suffixes = [entry.suffix for entry in log.entries(log.extent())]
        return {",".join(mqdata.decode(suffix).tags) for suffix in suffixes}


def test_faults_change_nothing_and_healing_does(tmp_path: Path) -> None:
    """Whatever a Manager answers instead of a list, no agent is sent one; then all are.

    Results that came meanwhile arrive once it takes them, also after it was killed.
    """
    stock = Stock(tmp_path)
    faults = ["null", "500", "code", "html", "close", "hang"]
    with ExitStack() as stack:
        stack.enter_context(running(twistd("--role", "sd", "--role", "ac"), tmp_path))
        stock.know(config=[], fault={INFO: "500", RESULTS: "500"})
        manager = stack.enter_context(stock.manager())
        end = stack.enter_context(stock.agents(20))
        eventually(lambda: stock.call("GET", "/conn/count") == 20, 30, "agents connect")
        eventually(lambda: len(stock.taken(CONFIG)) >= 20, 15, "configs are asked for")
        ids = stock.call("GET", "/conn/list")
        # They have no plugins yet, but an agent itself says that it cannot send a file.
        early = stock.tasks(ids, "elkeid-agent", 1050, '{"path": "/missing", "buf_size": 1}')
        for fault in faults:
            lost = "500" if fault == "null" else fault  # to results code 0 says that they are taken
            stock.know(config=LIST, fault={CONFIG: fault, INFO: fault, RESULTS: lost})
            time.sleep(2.5)
        assert stock.sent() == 0
        assert not stock.taken(RESULTS)
        tags = dict.fromkeys(ids, "web,eu")
        manager.stop(signal.SIGKILL)
        stock.know(config=LIST, tags=tags)
        stack.enter_context(stock.manager())
        detail = stock.taken(CONFIG)[0]
        assert {"agent_id", "kernel_version", "platform_family", "arch"} <= detail.keys()
        eventually(lambda: stock.sent() == 20, 90, "every host is sent its config")
        time.sleep(3)  # a sync takes 2 s
        tokens = stock.tasks(ids)
        eventually(lambda: early | tokens <= stock.tokens_taken(), 60, "every result arrives")
        stock.call("POST", "/conn/reset", {"type": "random", "count": 20})  # asked for on connect
        eventually(lambda: "web,eu" in stock.tags_stored(), 60, "tags stand in records")
        reports = end()
    assert [report.plugins for report in reports] == [PLUGINS] * 20
    assert sum(report.wiped for report in reports) == 0
    item = next(i for batch in stock.taken(RESULTS) for i in batch if i["token"] in tokens)
    assert (item["data_type"], item["status"], item["msg"]) == ("5100", "succeed", "")
    assert all(isinstance(value, str) for value in item.values())
