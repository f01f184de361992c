"""``elkeid call``: signed requests to a gateway's HTTP API."""

import http.client
import json
import secrets
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Final

import click

from elkeid.cli import Invocation
from elkeid.config import dialled_from_here, join_endpoint, split_endpoint
from elkeid.errors import OperatorError
from elkeid.key_making import AGENTS_NAME
from elkeid.keys import load_keys
from elkeid.shown import shown
from elkeid.wire.signature import sign

CALL_SECONDS: Final = 15.0
"""For connecting, and for each read: a gateway answers commands within 4 s."""


@click.command()
@click.argument("method", type=click.Choice(["GET", "POST"], case_sensitive=False))
@click.argument("path")
@click.argument("body", required=False)
@click.option(
    "--gateway",
    metavar="HOST:PORT",
    help="Whose API; that of this machine by default, or of one worker by elkeid --worker.",
)
@click.pass_obj
def call(obj: Invocation, method: str, path: str, body: str | None, gateway: str | None) -> None:
    """Call a gateway's HTTP API, signed, and print its answer.

    BODY is JSON; "-" reads it from standard input. The exit status is 1 unless the answer is
    code 0.

    \b
    Example:
      elkeid call GET /conn/list
      elkeid call POST /command '{"agent_id": "...", "command": {"task": {...}}}'
      elkeid call POST /admin/drain '{"deadline": 60}' --gateway 192.0.2.10:6752
    """
    settings = obj.settings
    if gateway is None:
        center = settings.agentcenter
        address = (dialled_from_here(center.listen), center.http_port)
    else:
        try:
            address = split_endpoint(gateway)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--gateway") from error
    if not path.startswith("/"):
        raise click.BadParameter("begins with /, such as /conn/list", param_hint="PATH")
    keys = load_keys(settings, ["ac"])
    raw = (sys.stdin.read() if body == "-" else body or "").encode()
    try:
        status, answer = signed_call(
            method.upper(),
            path,
            raw,
            address=address,
            pair=keys.signing_pair,
            authority=settings.server.keys_dir / "ca.crt",
        )
    except (OSError, http.client.HTTPException) as error:
        raise OperatorError(
            f"{join_endpoint(*address)}: {error}; does the gateway run there, with keys of the "
            "same authority?"
        ) from error
    click.echo(shown(answer.decode("utf-8", "replace")))
    if status != 200 or not _succeeded(answer):
        raise SystemExit(1)


def _succeeded(answer: bytes) -> bool:
    try:
        read = json.loads(answer)
    except ValueError:  # /metrics
        return True
    return not isinstance(read, dict) or not read.get("code")


def signed_call(
    method: str,
    target: str,
    body: bytes = b"",
    *,
    address: tuple[str, int],
    pair: tuple[str, str],
    authority: Path,
) -> tuple[int, bytes]:
    """Make one signed request over TLS. Blocking.

    Args:
        method: in upper case.
        target: path, and query if any; a nonce is added.
        body: JSON.
        address: host and port.
        pair: AK and SK.
        authority: file of the CA that the server's certificate must come from.

    Returns:
        HTTP status and the answer's body.

    Raises:
        OSError, http.client.HTTPException: no answer, or not from a server of this authority.
    """
    path, _, query = target.partition("?")
    query += f"{'&' if query else ''}nonce={secrets.token_urlsafe(16)}"
    stamp = str(int(time.time()))
    headers = {
        "AccessKey": pair[0],
        "TimeStamp": stamp,
        "Signature": sign(method, path, query, *pair, stamp, body),
    }
    if body:
        headers["Content-Type"] = "application/json"
    context = ssl.create_default_context(cafile=authority)
    with (
        socket.create_connection(address, CALL_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=AGENTS_NAME) as channel,
    ):
        connection = http.client.HTTPConnection(*address)
        connection.sock = channel
        connection.request(method, f"{path}?{query}", body or None, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
