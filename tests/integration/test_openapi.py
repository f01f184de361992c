"""Requests drawn from the Manager's document, against a real server."""

import json
import os
import subprocess
import tomllib
import urllib.request
from pathlib import Path

import pytest

from .servers import BIN, free_ports, running, settings_text, twistd

pytestmark = pytest.mark.integration

EXAMPLES = 4  # drawn for each route, beside one for each limit of its schemas
SECONDS = 120.0  # until a run is given up; it takes some ten
SKIPPED_CHECKS = {
    "unsupported_method": "a wrong method is 404 like a wrong path, as clients know it",
    "positive_data_acceptance": "some rules are no matter of schemas, and are 400 too",
}
SKIPPED_PATHS = {
    "/api/v1/user/logout": "the token of all other requests would end",
}


def login(port: int, password: str) -> str:
    """A token of the admin."""
    body = json.dumps({"username": "admin", "password": password}).encode()
    url = f"http://127.0.0.1:{port}/api/v1/user/login"
    with urllib.request.urlopen(urllib.request.Request(url, body)) as answer:
        token: str = json.load(answer)["data"]["token"]
    return token


def test_nothing_undocumented(tmp_path: Path) -> None:
    """No drawn request gets a fault of ours, or an answer that the document does not know."""
    ports = free_ports(4)
    (tmp_path / "elkeid.toml").write_text(settings_text(ports))
    with running(twistd(), tmp_path):
        keys = tmp_path / "keys"
        pairs = tomllib.loads((keys / "secrets.toml").read_text())["aksk"]
        ak, sk = next(iter(pairs.items()))
        root = Path(__file__).parents[2]
        environment = {
            **os.environ,
            "ELKEID_TEST_AK": ak,
            "ELKEID_TEST_SK": sk,
            "ELKEID_TEST_TOKEN": login(ports[3], (keys / "admin-password").read_text().strip()),
            "SCHEMATHESIS_HOOKS": "tests.integration.known_caller",
            "PYTHONPATH": str(root),
        }
        options = {
            "--phases": "coverage,fuzzing",
            "--max-examples": str(EXAMPLES),
            "--seed": "1",
            "--generation-database": "none",
            "--generation-with-security-parameters": "false",
            "--exclude-checks": ",".join(SKIPPED_CHECKS),
            "--warnings": "off",
        }
        ran = subprocess.run(
            [
                *[str(BIN / "schemathesis"), "--no-color", "run"],
                f"http://127.0.0.1:{ports[3]}/api/openapi.json",
                *["--no-shrink", "--continue-on-failure"],
                *[word for option in options.items() for word in option],
                *[word for path in SKIPPED_PATHS for word in ("--exclude-path", path)],
            ],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "No issues found" in ran.stdout, ran.stdout
