"""Signed calls to a server that runs as a process of its own."""

import json
import secrets
import ssl
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from elkeid.wire.signature import sign


def signed(
    keys_dir: Path, port: int, method: str, path: str, body: Any = None
) -> tuple[int, dict[str, Any]]:
    """Call an AgentCenter of this machine; HTTP status and JSON."""
    pairs = tomllib.loads((keys_dir / "secrets.toml").read_text())["aksk"]
    ak, sk = next(iter(pairs.items()))
    raw = b"" if body is None else json.dumps(body).encode()
    query, stamp = f"nonce={secrets.token_hex(8)}", str(int(time.time()))
    headers = {
        "AccessKey": ak,
        "TimeStamp": stamp,
        "Signature": sign(method, path, query, ak, sk, stamp, raw),
        "Content-Type": "application/json",
    }
    context = ssl.create_default_context(cafile=str(keys_dir / "ca.crt"))
    request = urllib.request.Request(
        f"https://localhost:{port}{path}?{query}", raw or None, headers, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
