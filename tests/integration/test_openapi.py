"""Requests drawn from the Manager's document, against a real server."""

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from argon2 import PasswordHasher
from attrs import evolve
from twisted.internet import reactor as global_reactor
from twisted.internet.utils import getProcessOutputAndValue

from elkeid import config
from elkeid.discovery.service import DiscoveryRole
from elkeid.manager.service import ManagerRole
from elkeid.web.client import JsonClient, http_agent

from .servers import BIN, free_ports
from .test_manager import AK, SK, fresh_keys

pytestmark = pytest.mark.integration
reactor: Any = global_reactor
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)  # each drawn user has a password

EXAMPLES = 4  # drawn for each route; some 10 s of CPU for all
SKIPPED_CHECKS = {
    "unsupported_method": "a wrong method is 404 like a wrong path, as clients know it",
    "positive_data_acceptance": "some rules are no matter of schemas, and are 400 too",
}
SKIPPED_PATHS = {
    "/api/v1/user/logout": "the token of all other requests would end",
    "/ready": "503 is the truth here: there is no AgentCenter",
}
# Wrong methods are not drawn, as none of the checks is about them.
CONFIG = "[phases.coverage]\nunexpected-methods = []\n"


@pytest_twisted.ensureDeferred
async def test_nothing_undocumented(tmp_path: Path) -> None:
    """No drawn request gets a fault of ours, or an answer that the document does not know."""
    await draw(tmp_path, "fuzzing", EXAMPLES)


@pytest.mark.soak
@pytest_twisted.ensureDeferred
async def test_every_limit(tmp_path: Path) -> None:
    """The same for values at and beyond each limit of each schema, and for more drawn ones."""
    await draw(tmp_path, "coverage,fuzzing", 50)


async def draw(tmp_path: Path, phases: str, examples: int) -> None:
    """Start a Manager and let requests be drawn; fail if one finds something."""
    sd_port, port = free_ports(2)
    raw = {
        "discovery": {"port": sd_port, "members": [f"127.0.0.1:{sd_port}"]},
        "manager": {"port": port},
    }
    settings = config.parse(raw, tmp_path)
    settings.server.keys_dir.mkdir(mode=0o700)
    configured = tmp_path / "schemathesis.toml"
    configured.write_text(CONFIG)
    keys = evolve(fresh_keys(), keys_dir=settings.server.keys_dir)
    discovery = DiscoveryRole(settings, keys, reactor)
    manager = ManagerRole(settings, keys, reactor, hasher=QUICK)
    await discovery.start()
    await manager.start()
    http = JsonClient(reactor, http_agent(reactor), time.time)
    try:
        url = f"http://127.0.0.1:{port}"
        password = (settings.server.keys_dir / "admin-password").read_text().strip()
        body = {"username": "admin", "password": password}
        reply = await http.post(f"{url}/api/v1/user/login", body)
        options = {
            "--phases": phases,
            "--max-examples": str(examples),
            "--seed": "1",
            "--generation-database": "none",
            "--generation-with-security-parameters": "false",
            "--exclude-checks": ",".join(SKIPPED_CHECKS),
            "--warnings": "off",
        }
        out, err, status = await getProcessOutputAndValue(
            str(BIN / "schemathesis"),
            [
                *["--config-file", str(configured), "--no-color", "run", f"{url}/api/openapi.json"],
                *["--no-shrink", "--continue-on-failure"],
                *[word for option in options.items() for word in option],
                *[word for path in SKIPPED_PATHS for word in ("--exclude-path", path)],
            ],
            env={
                **os.environ,
                "ELKEID_TEST_AK": AK,
                "ELKEID_TEST_SK": SK,
                "ELKEID_TEST_TOKEN": msgspec.json.decode(reply.body)["data"]["token"],
                "SCHEMATHESIS_HOOKS": "tests.integration.known_caller",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            path=str(tmp_path),
        )
        said = (out + err).decode()
        assert status == 0, said
        assert "No issues found" in said, said
    finally:
        await http.close()
        await manager.stop()
        await discovery.stop()
