"""Signed calls to a server that runs as a process of its own."""

import json
import tomllib
from pathlib import Path
from typing import Any

from elkeid.cli.call import signed_call


def signed(
    keys_dir: Path, port: int, method: str, path: str, body: Any = None
) -> tuple[int, dict[str, Any]]:
    """Call an AgentCenter of this machine; HTTP status and JSON."""
    pairs = tomllib.loads((keys_dir / "secrets.toml").read_text())["aksk"]
    status, answer = signed_call(
        method,
        path,
        b"" if body is None else json.dumps(body).encode(),
        address=("127.0.0.1", port),
        pair=next(iter(pairs.items())),
        authority=keys_dir / "ca.crt",
    )
    return status, json.loads(answer)
