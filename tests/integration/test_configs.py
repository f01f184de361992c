"""Commands and configs over real connections: another gRPC client, outages, and the neighbours."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from elkeid.wire.command import COMMAND_BYTES
from tests.integration.servers import eventually, free_ports, running, settings_text, twistd
from tests.integration.signed import signed
from tests.integration.test_first_light import Manager, fleet
from tests.integration.test_load import generator, server_in

pytestmark = pytest.mark.integration

CONFIG = [
    {"name": "driver", "type": "tar.gz", "version": "1.0.0.1", "sha256": "ab" * 32},
    {"name": "collector", "type": "tar.gz", "version": "1.0.0.2", "sha256": "cd" * 32},
]


class Gateway:
    """Signed requests to a gateway's API."""

    def __init__(self, keys: Path, port: int) -> None:
        self._keys, self._port = keys, port

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The answer's JSON, whatever its status."""
        return signed(self._keys, self._port, method, path, body)[1]

    def configs(self) -> list[dict[str, Any]]:
        """Where each agent stands with its config."""
        agents = self.ask("GET", "/conn/stat")["data"]
        return [agent["agent_info"].get("config", {}) for agent in agents]

    def sources(self) -> set[str]:
        """Where the agents' configs came from."""
        return {config.get("source", "") for config in self.configs()}


def test_commands_to_another_client(tmp_path: Path) -> None:
    """grpc-go takes tasks and a config of just 4 MiB, window by window; it is sent none above."""
    program = generator()
    with server_in(tmp_path) as (_, ports):
        gateway = Gateway(tmp_path / "keys", ports[1])
        argv = ["-addr", f"127.0.0.1:{ports[0]}", "-certs", str(tmp_path / "keys")]
        with subprocess.Popen(
            [program, *argv, "-agents", "2", "-total", "0", "-hold", "12s"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as swarm:
            try:
                eventually(lambda: gateway.ask("GET", "/conn/count")["data"] == 2)
                first, second = gateway.ask("GET", "/conn/list")["data"]
                task = {"data_type": 5100, "name": "collector", "data": "{}", "token": "t"}
                for path in ("/command", "/command/"):
                    answer = gateway.ask(
                        "POST", path, {"agent_id": first, "command": {"task": task}}
                    )
                    assert answer == {"code": 0, "msg": "success", "data": ""}
                large = {"name": "driver", "version": "1", "detail": token_hex(2_097_100)}
                answer = gateway.ask(
                    "POST", "/command", {"agent_id": second, "command": {"config": [large]}}
                )
                assert answer["code"] == 0, answer
                above = {"name": "driver", "version": "1", "detail": "x" * COMMAND_BYTES}
                answer = gateway.ask(
                    "POST", "/command", {"agent_id": second, "command": {"config": [above]}}
                )
                assert answer["code"] == 2, answer
                answer = gateway.ask(
                    "POST", "/command", {"agent_id": second, "command": {"task": task}}
                )
                assert answer["code"] == 0, answer
                said, complaints = swarm.communicate(timeout=60)
            finally:
                swarm.kill()
    report = json.loads(said)
    assert report["commands_received"] == 4, complaints
    assert (report["ended_early"], report["unconfirmed"]) == (0, 0), complaints


@contextmanager
def role(folder: Path, ports: list[int], name: str, *roles: str) -> Iterator[Any]:
    """One process of a deployment, with data of its own and the keys of all."""
    text = settings_text(ports, f'data_dir = "{name}"')
    (folder / f"{name}.toml").write_text(text)
    argv = twistd("--config", f"{name}.toml", *(f"--role={each}" for each in roles))
    with running(argv, folder) as server:
        yield server


def test_last_known_config(tmp_path: Path) -> None:
    """Without a Manager, hosts get what they ran last: from a neighbour, and after a restart."""
    grpc_a, http_a, sd, manager_port, grpc_b, http_b = free_ports(6)
    ports_a = [grpc_a, http_a, sd, manager_port]
    ports_b = [grpc_b, http_b, sd, manager_port]
    keys = tmp_path / "keys"
    hosts = ["--agents", "3", "--spread", "0", "--seed", "7", "--rate", "0", "--bare"]
    on_a = ["--address", f"127.0.0.1:{grpc_a}", "--keys", str(keys)]
    on_b = ["--address", f"127.0.0.1:{grpc_b}", "--keys", str(keys)]
    with (
        role(tmp_path, ports_a, "registry", "sd"),
        role(tmp_path, ports_a, "manager", "manager") as manager_process,
        role(tmp_path, ports_a, "a", "ac") as process_a,
    ):
        manager = Manager(manager_port, (keys / "admin-password").read_text().strip())
        stored = manager._call(
            "/agent/updateDefaultConfig",
            json.dumps({"type": "agent_config", "config": CONFIG}).encode(),
        )
        assert stored["code"] == 0, stored
        a = Gateway(keys, http_a)
        with fleet(tmp_path, *hosts, *on_a):
            eventually(lambda: len(a.configs()) == 3 and a.sources() == {"manager"})
            versions = {"driver": "1.0.0.1", "collector": "1.0.0.2"}
            assert all(config["versions"] == versions for config in a.configs())
            assert {config["state"] for config in a.configs()} <= {"sent", "applied"}
        assert manager_process.stop(signal.SIGKILL) == -signal.SIGKILL
        with role(tmp_path, ports_b, "b", "ac") as process_b:
            b = Gateway(keys, http_b)
            time.sleep(3)  # b learns of a from ServiceDiscovery, which it asks every 2 s
            with fleet(tmp_path, *hosts, *on_b):
                eventually(lambda: len(b.configs()) == 3 and b.sources() == {"last-known"}, 12)
                assert all(config["versions"] == versions for config in b.configs())
            process_a.stop(signal.SIGKILL)
            time.sleep(1.5)  # what was delivered is written within a second
            process_b.stop(signal.SIGKILL)
        with role(tmp_path, ports_b, "b", "ac"), fleet(tmp_path, *hosts, *on_b):
            eventually(lambda: len(b.configs()) == 3 and b.sources() == {"last-known"}, 12)
            assert all(config["versions"] == versions for config in b.configs())


def test_new_config_reaches_connected_hosts(tmp_path: Path) -> None:
    """What an operator stores reaches hosts that are connected; anybody may ask for it again."""
    with server_in(tmp_path) as (_, ports):
        keys = tmp_path / "keys"
        gateway = Gateway(keys, ports[1])
        manager = Manager(ports[3], (keys / "admin-password").read_text().strip())
        with fleet(tmp_path, "--agents", "3", "--spread", "0", "--rate", "0"):
            # Each shows a state from its first heartbeat on.
            eventually(lambda: sum("state" in config for config in gateway.configs()) == 3)
            assert {config["state"] for config in gateway.configs()} == {"none"}
            manager._call(
                "/agent/updateDefaultConfig",
                json.dumps({"type": "agent_config", "config": CONFIG}).encode(),
            )
            eventually(lambda: gateway.sources() == {"manager"})
            answer = gateway.ask("POST", "/config/refresh", {"agent_ids": None})
            assert answer["data"] == {"count": 3}
